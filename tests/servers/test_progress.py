"""What takes longer than a second is shown on the terminal, whatever captures the output."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from projects import Library, Running, pytest_with, until

REUSE = "--reuse-containers"

WAIT = """
import time
from pathlib import Path

def wait_for(name):
    Path(f"{name}.begun").touch()
    deadline = time.monotonic() + 60
    while not Path(name).exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
"""
"""A module of the project with which it waits until a test makes a file."""

SEED = "from waiting import wait_for\n\ndef fill():\n    wait_for('seed')\n"

LATE = """
def test_that_asks_late(request):
    print("printed by the test")
    request.getfixturevalue("db_url")
    assert request.config.option.fails is False
"""
"""A test whose need is not known before it runs."""

CONFTEST = """
import sys
from pathlib import Path

def pytest_addoption(parser):
    parser.addoption("--fails", action="store_true")

def pytest_unconfigure():
    shown = "pytest_warmstack.progress" in sys.modules
    Path("imported.log").write_text(str(shown))
"""

SLOW_SERVERS = """
from pytest_warmstack.servers.embedded import Embedded
from waiting import wait_for

def slow(original, name):
    def method(*arguments):
        wait_for(name)
        return original(*arguments)
    return method

Embedded.ensure = slow(Embedded.ensure, "server")
Embedded.remove = slow(Embedded.remove, "removal")
"""

REVISION = "warmstack: revision 3 of 3, 0003_index_titles.py"
SCRIPT = "warmstack: running the seed seeding:fill"
HOLDER = "waiting for another build: process "


@pytest.fixture
def slow(kept_project: Library) -> Iterator[Library]:
    """The same with a revision and a seed that wait until a test makes a file."""
    kept_project.reset()
    kept_project.write("waiting.py", WAIT)
    # Unlike any before, so that no template of it is found.
    body = (
        f"    # {os.urandom(8).hex()}\n    from waiting import wait_for\n    wait_for('revision')\n"
    )
    step = '    op.execute("CREATE'
    kept_project.edit("migrations/versions/0003_index_titles.py", step, body + step)
    kept_project.write("seeding.py", f"# {os.urandom(8).hex()}\n{SEED}")
    kept_project.configure("warmstack_seed = seeding:fill")
    kept_project.write("conftest.py", CONFTEST)
    kept_project.write("test_late.py", LATE)
    yield kept_project
    for path in kept_project.folder.iterdir():
        if path.name.partition(".")[0] in {"revision", "seed"}:
            path.unlink()
    kept_project.quit()


def shown(text: str) -> list[str]:
    """Return the lines about what the project waits for, in *text*, without their times.

    A slow machine may show other things between them.
    """
    lines = [re.sub(r" \(\d+ s\)", "", line.rstrip()) for line in text.splitlines()]
    return [line for line in lines if re.search(r"revision 3|running the seed", line)]


def go_on(project: Library, read: Callable[[], str]) -> None:
    """Let the revision go on when it is shown, then the seed."""
    until(lambda: REVISION[11:] in read(), "the revision is shown")
    (project.folder / "revision").touch()
    until(lambda: SCRIPT[11:] in read(), "the seed is shown")
    (project.folder / "seed").touch()


def written(running: Running, suffix: str = ".out") -> str:
    """Return what a run has written so far."""
    return running.stem.with_suffix(suffix).read_text()


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("-q",),
        ("-s",),
        ("--capture=sys",),
        ("-p", "no:terminal"),
        ("-p", "no:xdist"),
        ("-n0",),
        ("test_late.py",),
        ("test_late.py", "-s"),
        ("test_late.py", "--capture=sys"),
        ("test_late.py", "--fails"),
        ("-p", "pytest_sugar"),
        ("-p", "pytest_rich.plugin", "--rich"),
        ("-p", "pytest_metadata.plugin", "-p", "pytest_html.plugin", "--html=report.html"),
    ],
    ids=" ".join,
)
def test_lines_in_a_file(slow: Library, arguments: tuple[str, ...]) -> None:
    """One for each thing, not in what a test printed; the next run has none, and no code of it."""
    running = slow.start(REUSE, *arguments)

    go_on(slow, lambda: written(running))
    result = running.wait()

    assert shown(str(result.stdout)) == [REVISION, SCRIPT]
    assert result.ret == (1 if "--fails" in arguments else 0)
    assert slow.lines("imported.log") == ["True"]
    again = slow.run(REUSE, *arguments)
    assert shown(str(again.stdout)) == []
    assert slow.lines("imported.log") == ["False"]


def test_nothing_with_qq(slow: Library) -> None:
    """As pytest shows its own lines."""
    for name in ("revision", "seed"):
        (slow.folder / name).unlink(missing_ok=True)
    running = slow.start(REUSE, "-qq")
    for name in ("revision", "seed"):
        until((slow.folder / f"{name}.begun").exists, "it has begun")
        # Longer than it takes until something is shown.
        subprocess.run(["/bin/sleep", "1.3"], check=True)
        (slow.folder / name).touch()

    result = running.wait()

    assert result.ret == 0
    assert "warmstack" not in str(result.stdout)
    assert str(result.stderr) == ""


def test_the_controller_shows_its_workers(slow: Library) -> None:
    """One of them builds, and the other waits for that one."""
    running = slow.start(REUSE, "-n", "2")

    def read() -> str:
        # The second worker may begin to wait when the line about the first is written already.
        return "\n".join(line for line in written(running).splitlines() if HOLDER in line)

    go_on(slow, read)
    result = running.wait()

    result.assert_outcomes(passed=6)
    waiting = (
        r"waiting for another build: process \d+@"
        + re.escape(socket.gethostname()[:32])
        + r", connected since \d\d:\d\d:\d\d"
    )
    lines = [line for line in shown(str(result.stdout)) if HOLDER in line]
    assert len(lines) >= 2
    texts = (REVISION[11:], SCRIPT[11:])
    for line, text in zip((lines[0], lines[-1]), texts, strict=True):
        pattern = rf"warmstack: (gw[01]): {re.escape(text)}; (gw[01]): {waiting}"
        match = re.fullmatch(pattern, line)
        assert match, line
        assert match[1] != match[2]
    assert slow.lines("imported.log") == ["True"]
    again = slow.run(REUSE, "-n", "2")
    assert shown(str(again.stdout)) == []
    assert slow.lines("imported.log") == ["False"]


def test_a_second_run_tells_whose_build_it_waits_for(slow: Library) -> None:
    """The process, its machine, and since when it has been connected."""
    first = slow.start(REUSE)
    until((slow.folder / "revision.begun").exists, "the first one migrates")
    second = slow.start(REUSE)
    line = (
        rf"warmstack: waiting for another build: process {first.process.pid}"
        rf"@{re.escape(socket.gethostname()[:32])}, connected since \d\d:\d\d:\d\d \(\d+ s\)\n"
    )
    until(lambda: re.search(line, written(second)), "the second one waits")
    for name in ("revision", "seed"):
        (slow.folder / name).touch()

    assert (first.wait().ret, second.wait().ret) == (0, 0)


@pytest.mark.parametrize("command", ["up", "url"])
def test_commands_write_to_standard_error(slow: Library, command: str) -> None:
    """Standard output is for the result."""
    running = slow.start(command, command=("pytest_warmstack.cli",))

    go_on(slow, lambda: written(running, ".err"))
    result = running.wait()

    assert result.ret == 0
    assert shown(str(result.stderr)) == [REVISION, SCRIPT]
    assert shown(str(result.stdout)) == []


def in_terminal(project: Library, *arguments: str, columns: int, **variables: str) -> str:
    """Return what a run writes to a terminal in which both waits are shown."""
    main, other = os.openpty()
    termios.tcsetwinsize(other, (24, columns))
    command = [sys.executable, "-m", *pytest_with(*arguments), REUSE, *arguments]
    environ = {**os.environ, "COLUMNS": str(columns), **variables}
    process = subprocess.Popen(
        command, cwd=project.folder, env=environ, stdin=other, stdout=other, stderr=other
    )
    os.close(other)
    text = b""

    def read() -> str:
        nonlocal text
        with suppress(OSError):  # All have closed it.
            text += os.read(main, 100_000)
        return text.decode()

    go_on(project, lambda: re.sub(r"revision 3 of 3$", "", read()))
    until(lambda: read() and process.poll() is not None, "the run ends")
    os.close(main)
    assert process.returncode == 0
    return text.decode().replace("\r\n", "\n")


def test_one_line_of_a_terminal_is_rewritten(slow: Library) -> None:
    """It is erased for the lines about what was done."""
    text = in_terminal(slow, columns=100, TERM="xterm")

    *lines, last = text.split("\r\x1b[2K")
    texts = [re.sub(r" \(\d+ s\)", "", line) for line in lines]
    assert texts[0].endswith(f"\n{REVISION}")
    assert SCRIPT in texts
    assert last.startswith("warmstack: PostgreSQL ")
    assert "revision 3" not in last


def test_a_dumb_terminal_has_plain_lines(slow: Library) -> None:
    """No escape sequences."""
    text = in_terminal(slow, columns=100, TERM="dumb")

    assert "\x1b[2K" not in text
    assert shown(text) == [REVISION, SCRIPT]


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "workers"])
def test_servers_that_start_together_share_a_line(
    embedded_project: Library, workers: tuple[str, ...]
) -> None:
    """And so do those that are removed at the end."""
    project = embedded_project
    project.write("waiting.py", WAIT)
    project.write("conftest.py", SLOW_SERVERS)
    running = project.start(*workers)

    def lines() -> list[str]:
        return [re.sub(r" \(\d+ s\)", "", line) for line in written(running).splitlines()]

    both = {
        f"warmstack: starting {one}; starting {other}"
        for one, other in (("PostgreSQL", "Redis"), ("Redis", "PostgreSQL"))
    }
    if workers:
        until(lambda: "starting " in written(running), "the start is shown")
    else:
        until(lambda: both & {*lines()}, "both starts are shown")
    (project.folder / "server").touch()
    until(lambda: "removing " in written(running), "the removal is shown")
    (project.folder / "removal").touch()

    result = running.wait()
    result.assert_outcomes(passed=5)
    assert "warmstack: removing the servers" in lines()
