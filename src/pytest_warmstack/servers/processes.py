"""Who a process is, so that another one can tell whether it still lives.

A process id alone is not enough: ids are given out again, and a container has its own. So a
process is known by three things: the machine (and its process-id namespace), the id, and the
time it started.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True)
class Process:
    """A process, now or in the past: *host* it runs on, *pid*, and when it *started*."""

    host: str
    pid: int
    started: str

    @classmethod
    def current(cls) -> Self:
        """Return the process that asks."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> Self:
        """Return the process that has the id *pid* on this machine now."""
        return cls(_host(), pid, _started(pid) or "")

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return what `str()` of a process spelt, or None when *text* is something else."""
        host, _, rest = text.partition("/")
        pid, _, started = rest.partition("/")
        return cls(host, int(pid), started) if pid.isdigit() else None

    def __str__(self) -> str:
        return f"{self.host}/{self.pid}/{self.started}"

    @property
    def is_near(self) -> bool:
        """Whether it runs, or ran, on this machine and beside us: it sees the same folders."""
        return self.host == _host()

    def is_gone(self) -> bool:
        """Tell whether this process has certainly ended.

        False also when it can't be known, since it runs on another machine.
        """
        return self.is_near and _started(self.pid) != self.started

    def family_memory(self) -> int:
        """Return how many bytes this process, and those it started, have for themselves.

        They are known by its session, which it leads. 0 where that can't be known.
        """
        total = 0
        for folder in Path("/proc").glob("[0-9]*") if sys.platform == "linux" else ():
            try:
                # proc_pid_stat(5): session is field 6, so the fourth after the name.
                fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
                status = (folder / "status").read_text(errors="replace")
            except OSError:
                # It has ended, or the machine shows it to nobody but its owner (hidepid).
                continue
            if fields[3] == str(self.pid):
                own = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
                total += int(own[1]) * 1024 if own else 0
        return total


def _host() -> str:
    """Return what tells this machine and process-id namespace from others."""
    if sys.platform == "linux":
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}.{Path('/proc/self/ns/pid').stat().st_ino}"
    return platform.node()


def _started(pid: int) -> str | None:
    """Return when the process with this id started, or None when none runs under it.

    A zombie has ended: it only waits to be collected by a parent that may never do so.
    """
    if sys.platform == "linux":
        try:
            text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return None
        # proc_pid_stat(5): the name, in parentheses, may hold anything; state is field 3,
        # starttime field 22.
        fields = text.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    answer = subprocess.run(
        ["/bin/ps", "-o", "state=,lstart=", "-p", str(pid)],
        capture_output=True,
        text=True,
        check=False,
        timeout=5,
    ).stdout.split(maxsplit=1)
    return answer[1].strip() if len(answer) == 2 and not answer[0].startswith("Z") else None
