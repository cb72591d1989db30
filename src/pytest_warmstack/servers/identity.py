"""Identifies servers, projects and processes: names, labels and fingerprints."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, Self

from pytest_warmstack import originals

NAMESPACE: Final = "pytest-warmstack"
"""The prefix of every label."""

SERVER_FORMAT: Final = "4"
"""Increase it when servers of older versions of this package must not be reused."""

BUILD_FORMAT: Final = "5"
"""Increase it when templates of older versions of this package must not be reused.

With a fingerprint of files alone, a broken builder once went unnoticed (pgtestdb, changelog 0.1.1).
"""


class Service(StrEnum):
    """The kinds of server."""

    POSTGRES = "postgres"
    REDIS = "redis"


class Label(StrEnum):
    """The labels of a managed server: on its container, or in the record in its folder."""

    PROJECT = f"{NAMESPACE}.project"
    PATH = f"{NAMESPACE}.path"
    SERVICE = f"{NAMESPACE}.service"
    NUMBER = f"{NAMESPACE}.number"
    FINGERPRINT = f"{NAMESPACE}.fingerprint"
    CONFIG = f"{NAMESPACE}.config"
    VERSION = f"{NAMESPACE}.version"
    RUN = f"{NAMESPACE}.run"
    OWNER = f"{NAMESPACE}.owner"


KEPT: Final = "kept"
"""The value of `Label.RUN` on a server that outlives its run."""


def fingerprint(*parts: str | bytes) -> str:
    """Return 16 hexadecimal digits for *parts*; their order and boundaries matter."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()


VARIABLE: Final = "env."
"""The prefix of a variable's key in a configuration, which has only a digest of the value."""


def digest(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the entries of a configuration for *variables*; their values may be secret."""
    return {f"{VARIABLE}{name}": fingerprint(name, value)[:8] for name, value in variables.items()}


def changes(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Return a phrase for each key with different values, such as `image: a -> b`."""
    return [
        _change(key, old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _change(key: str, old: str | None, new: str | None) -> str:
    if key.startswith(VARIABLE):
        return f"{key}: {'set' if old is None else 'unset' if new is None else 'changed'}"
    return f"{key}: {'unset' if old is None else old} -> {'unset' if new is None else new}"


def random_password() -> str:
    """Return 32 letters and digits.

    Other characters would cause errors: many `env.py` files pass URLs to ConfigParser unescaped.
    """
    return originals.urandom(16).hex()


def write_private(path: Path, text: str) -> None:
    """Write *text* to the file *path* so that only its owner can read it.

    Readers see either the old text or the new one, never a part of it.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    draft = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        draft.replace(path)
    except BaseException:
        draft.unlink()
        raise


class Process(NamedTuple):
    """A process, running or ended: its *host*, its *pid*, and when it *started*.

    The pid alone is not enough: systems reuse pids, and a container has its own. *host* is the
    machine and the process-id namespace.
    """

    host: str
    pid: int
    started: str

    @classmethod
    def current(cls) -> Self:
        """Return this process."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> Self:
        """Return the process that has the id *pid* on this machine now."""
        return cls(_host(), pid, _started(pid) or "")

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the process that `str()` turned into *text*, or None for any other text."""
        host, _, rest = text.partition("/")
        pid, _, started = rest.partition("/")
        return cls(host, int(pid), started) if pid.isdigit() else None

    def __str__(self) -> str:
        return f"{self.host}/{self.pid}/{self.started}"

    @property
    def is_near(self) -> bool:
        """Whether it runs, or ran, on this machine and sees the same folders."""
        return self.host == _host()

    def is_gone(self) -> bool:
        """Return whether this process has certainly ended; False on another machine."""
        return self.is_near and _started(self.pid) != self.started

    def family_memory(self) -> int:
        """Return the bytes that only this process and its children use; 0 if unknown.

        The children are the other members of the session that it leads.
        """
        total = 0
        for folder in Path("/proc").glob("[0-9]*") if sys.platform == "linux" else ():
            try:
                # proc_pid_stat(5): session is field 6, so the fourth after the name.
                fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
                status = (folder / "status").read_text(errors="replace")
            except OSError:
                # It has ended, or only its owner can see it (hidepid).
                continue
            if fields[3] == str(self.pid):
                own = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
                total += int(own[1]) * 1024 if own else 0
        return total


class Daemon(subprocess.Popen[bytes]):
    """A process that may outlive this one.

    It has its own session, so Ctrl-C in the terminal doesn't reach it.
    """

    def __init__(
        self, command: Sequence[str], output: int | IO[bytes] = subprocess.DEVNULL, **options: Any
    ) -> None:
        super().__init__(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **options,
        )

    def __del__(self) -> None:
        """Suppress the warning of `Popen` that the process is still running."""


def _host() -> str:
    """Return a text that identifies this machine and process-id namespace."""
    if sys.platform == "linux":
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot}.{Path('/proc/self/ns/pid').stat().st_ino}"
    return platform.node()


def _started(pid: int) -> str | None:
    """Return when the process with this id started, or None if there is none.

    A zombie counts as ended: it only waits for its parent, which may never collect it.
    """
    if sys.platform == "linux":
        try:
            text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return None
        # proc_pid_stat(5): the name, in parentheses, may contain anything; state is field 3,
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


class Project(NamedTuple):
    """A checkout of a project, identified by the real path of its root."""

    path: str

    @property
    def id(self) -> str:
        """12 hexadecimal digits, the same in every run of this checkout."""
        return fingerprint(self.path)[:12]

    @property
    def slug(self) -> str:
        """The folder's name, reduced to what the name of a container may contain."""
        return re.sub(r"[^a-z0-9]+", "-", self.path.rsplit("/", 1)[-1].lower()).strip("-")[:24]
