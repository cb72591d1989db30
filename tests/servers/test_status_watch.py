"""`warmstack status --watch` shows the servers again and again, until Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fcntl import ioctl
from struct import pack
from termios import TIOCSWINSZ
from threading import Thread

import pytest

from projects import Library, Running, until

STATUS = ("pytest_warmstack.cli", "status")
TIME = r"\d\d:\d\d:\d\d"


@dataclass
class Terminal:
    """A terminal with a command in it; `text` is what was written there."""

    master: int
    process: subprocess.Popen[bytes]
    text: str = field(default="")

    def read(self) -> None:
        """Collect what is written, until the command has ended."""
        try:
            while data := os.read(self.master, 4096):
                self.text += data.decode()
        except OSError:  # The other end is closed.
            pass


@contextmanager
def terminal(project: Library, *arguments: str, rows: int) -> Iterator[Terminal]:
    """Yield a terminal of 100 columns, in which a command of the project runs."""
    master, slave = os.openpty()
    ioctl(slave, TIOCSWINSZ, pack("HHHH", rows, 100, 0, 0))
    command = [sys.executable, "-m", *STATUS, *arguments]
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *command],  # noqa: S607 - wherever it is
        cwd=project.folder,
        env={each: os.environ[each] for each in os.environ if each not in {"LINES", "COLUMNS"}},
        stdin=slave,
        stdout=slave,
        stderr=slave,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(slave)
    project.runs.append(Running(process, project.folder))
    found = Terminal(master, process)
    reader = Thread(target=found.read)
    reader.start()
    try:
        yield found
    finally:
        process.kill()
        process.wait(60)
        reader.join(60)
        os.close(master)


def screen(text: str) -> list[str]:
    """Return the lines that a terminal shows of *text*, with what the command uses of ECMA-48."""
    lines: list[str] = [""]
    row = 0
    for part in re.findall(r"\x1b\[\d*[A-Z]|\r?\n|[^\x1b\r\n]+|\r", text):
        if match := re.fullmatch(r"\x1b\[(\d+)F", part):
            row -= int(match[1])
            assert row >= 0
        elif part == "\x1b[J":
            lines[row:] = [""]
        elif part.endswith("\n"):
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif not part.startswith(("\x1b", "\r")):
            lines[row] = part
    return lines


def test_a_terminal_shows_one_block_that_is_replaced(kept: Library) -> None:
    """Ctrl-C, typed there, ends it with status 0 and no word of Python."""
    with terminal(kept, "--watch=0.2", f"--project={kept.folder}", rows=40) as found:
        until(lambda: len(re.findall(TIME, found.text)) >= 3, "it is shown three times")
        os.write(found.master, b"\x03")
        status = found.process.wait(30)
        until(lambda: found.text.endswith("\x1b[J") or "^C" in found.text, "all is read")

    assert status == 0
    assert "Traceback" not in found.text
    shown = screen(found.text.replace("^C", ""))
    assert re.fullmatch(TIME, shown[0])
    assert shown[2] == str(kept.folder)
    assert sum("PostgreSQL" in line for line in shown) == 1
    assert sum(bool(re.search(TIME, line)) for line in shown) == 1


def test_a_low_terminal_shows_the_beginning(kept: Library) -> None:
    """What does not fit is counted: the block would scroll away, and could not be replaced."""
    with terminal(kept, "--watch=0.2", f"--project={kept.folder}", rows=5) as found:
        until(lambda: len(re.findall(TIME, found.text)) >= 2, "it is shown twice")
        os.write(found.master, b"\x03")
        assert found.process.wait(30) == 0

    blocks = re.split(r"\x1b\[\d+F", found.text)
    assert re.search(r"\.\.\. \d+ more lines", blocks[0])
    assert blocks[0].count("\n") == 4


def test_a_pipe_gets_blocks_one_below_the_other(kept: Library) -> None:
    """Without any control sequence; SIGINT ends it with status 0."""
    running = kept.start("--watch", "0.2", f"--project={kept.folder}", command=STATUS)
    out = running.stem.with_suffix(".out")
    until(lambda: len(re.findall(f"(?m)^{TIME}$", out.read_text())) >= 3, "three blocks")

    result = running.interrupt()

    assert result.ret == 0
    assert result.errlines == []
    assert "\x1b" not in result.stdout.str()
    assert result.outlines.count(str(kept.folder)) >= 3


@pytest.mark.parametrize("value", ["0", "-1", "nan", "often", "4000"])
def test_an_interval_that_is_none_is_refused(kept: Library, value: str) -> None:
    """With what would be one."""
    result = kept.warmstack("status", f"--watch={value}")

    assert result.ret == 2
    result.stderr.fnmatch_lines([f"*'{value}' is not a number of seconds from 0.1 to 3600*"])


def test_it_is_for_people_only(kept: Library) -> None:
    """A list of objects after the other would be no JSON."""
    assert kept.warmstack("status", "--watch", "--json").ret == 2
