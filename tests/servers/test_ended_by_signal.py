"""After SIGTERM or SIGHUP at any moment, the servers are gone and the exit status is right."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from projects import Library, Running, _hear_signals, assert_nothing_left, pytest_with, until

REUSE = "--reuse-containers"
NUMBERS = [signal.SIGTERM, signal.SIGHUP]

BLOCKS = """
import asyncio
import time
from pathlib import Path

import pytest

def block():
    Path("running").touch()
    time.sleep(60)

async def async_block():
    Path("running").touch()
    await asyncio.sleep(60)

@pytest.fixture
def fixture(redis_url):
    block()

@pytest.fixture
def teardown(redis_url):
    yield
    block()

@pytest.fixture(scope="session")
def session_teardown(redis_container):
    yield
    block()

def test_in_a_test(redis_url):
    block()

async def test_in_a_loop(redis_client):
    await async_block()

async def test_in_a_task(redis_client):
    await asyncio.create_task(async_block())

def test_in_a_fixture(fixture):
    pass

def test_in_a_teardown(teardown):
    pass

def test_in_the_last_teardown(session_teardown):
    pass

def test_in_a_test_that_swallows(redis_url):
    try:
        block()
    except BaseException:
        Path("swallowed").touch()

def test_that_swallows_is_the_last(redis_url):
    block()
"""

TELLS = """
import time
from pathlib import Path

def test_that_tells(redis_url):
    try:
        Path("running").touch()
        time.sleep(60)
    except BaseException as error:
        Path("told").write_text(type(error).__name__)
        raise
"""

REMOVES = """
import asyncio
import signal
import time
from pathlib import Path

async def test_that_removes_its_own(redis_url):
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, print)
        loop.remove_signal_handler(number)
        assert signal.getsignal(number) is signal.SIG_DFL

def test_after_it(redis_url):
    Path("running").touch()
    time.sleep(60)
"""

FORKS = """
import os
import signal
import time

def test_that_forks(redis_container):
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM

async def test_after_it(redis_client):
    assert await redis_client.ping()
"""

HANGS = """
import time
from pathlib import Path
import pytest

@pytest.fixture(scope="session")
def hangs(redis_container):
    yield
    Path("cleaning").touch()
    time.sleep(60)

def test_it(hangs):
    Path("running").touch()
    time.sleep(60)
"""

HANDLERS = """
import signal
from pathlib import Path

def pytest_configure(config):
    {setting}

def pytest_unconfigure(config):
    Path("handlers").write_text(str([signal.getsignal(n) for n in (15, 1)]))
"""

WAITS = """
import time
from pathlib import Path

def test_that_waits({fixture}):
    Path("running").touch()
    deadline = time.monotonic() + 60
    while not Path("go").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
"""

SLOW_REMOVAL = """
import time
from pathlib import Path
from pytest_warmstack import cleanup

tidy = cleanup.tidy

def slow(*arguments):
    Path("running").touch()
    time.sleep(2)
    return tidy(*arguments)

cleanup.tidy = slow
"""

HELD_START = """
import time
from pytest_warmstack.environment import Environment

start = Environment._find_or_start

def held(self, spec):
    server = start(self, spec)
    deadline = time.monotonic() + 60
    while not self._ending and time.monotonic() < deadline:
        time.sleep(0.01)
    return server

Environment._find_or_start = held
"""
"""No server is handed out before the run ends."""

REVISION = """
import select
from pathlib import Path

revision, down_revision = "0004", "0003"

def upgrade():
    Path("running").touch()
    select.select([], [], [])
"""


def begun(project: Library, *arguments: str) -> Running:
    """Return a run that has come to where it waits."""
    running = project.start(*arguments)
    until((project.folder / "running").exists, "the run waits")
    return running


def assert_ended(project: Library, result: pytest.RunResult, number: signal.Signals) -> None:
    """See that the signal ended the run in order, and that nothing is left of it."""
    assert result.ret == 128 + number
    assert_nothing_left(project.folder)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_run_that_a_signal_ends_leaves_nothing(project: Library, number: signal.Signals) -> None:
    """In either runtime; the output names the signal."""
    project.write("test_blocks.py", BLOCKS)
    running = begun(project, "test_blocks.py", "-k", "in_a_test")

    running.process.send_signal(number)

    result = running.wait()
    assert_ended(project, result, number)
    result.stdout.fnmatch_lines([f"*{number.name} ends the run*"])


@pytest.mark.parametrize(
    "where", ["loop", "task", "fixture", "a_teardown", "last_teardown", "swallows"]
)
@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_a_signal_may_come_anywhere(
    embedded_project: Library, where: str, number: signal.Signals
) -> None:
    """In a loop, in a fixture, in a teardown, in a test that swallows what interrupts it."""
    project = embedded_project
    project.write("test_blocks.py", BLOCKS)
    running = begun(project, "test_blocks.py", "-k", where)

    running.process.send_signal(number)

    assert_ended(project, running.wait(), number)


def test_a_signal_may_follow_a_ctrl_c(embedded_project: Library) -> None:
    """As GitHub cancels a job: the one, and some seconds later the other."""
    project = embedded_project
    project.write("test_hangs.py", HANGS)
    running = begun(project, "test_hangs.py")
    running.process.send_signal(signal.SIGINT)
    until((project.folder / "cleaning").exists, "the session's fixtures are torn down")

    running.process.send_signal(signal.SIGTERM)

    assert_ended(project, running.wait(), signal.SIGTERM)


def test_a_signal_may_come_while_the_servers_start(project: Library) -> None:
    """Also those that are just being made go."""
    project.write("conftest.py", HELD_START)
    running = project.start()
    until(lambda: project.containers() or project.folders(), "a server is being made")

    running.process.send_signal(signal.SIGTERM)

    assert_ended(project, running.wait(), signal.SIGTERM)
    assert project.lines("servers.log") == []
    assert project.executions() == 0  # Of env.py: no test waits for a template any more.


def test_a_signal_may_come_while_the_template_is_built(embedded_project: Library) -> None:
    """The child process that migrates ends as well."""
    project = embedded_project
    project.write("migrations/versions/0004_more.py", REVISION)
    running = begun(project)

    running.process.send_signal(signal.SIGTERM)

    assert_ended(project, running.wait(), signal.SIGTERM)


def test_a_signal_may_come_while_the_servers_are_removed(embedded_project: Library) -> None:
    """It does not interrupt that."""
    project = embedded_project
    project.write("conftest.py", SLOW_REMOVAL)
    running = begun(project, "-k", "reader")

    running.process.send_signal(signal.SIGTERM)

    result = running.wait()
    result.assert_outcomes(passed=1, deselected=4)
    assert_ended(project, result, signal.SIGTERM)


@pytest.mark.parametrize("whole_group", [False, True], ids=["controller", "group"])
@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_ends_workers_too(
    project: Library, number: signal.Signals, whole_group: bool
) -> None:
    """Their controller passes it on, so that also a worker in a long test ends at once."""
    project.write("test_tells.py", TELLS)
    running = begun(project, "test_tells.py", "-n", "2")

    (os.killpg if whole_group else os.kill)(running.process.pid, number)

    assert_ended(project, running.wait(), number)
    assert project.lines("told") == ["Terminated"]


def test_a_signal_may_come_while_workers_collect(embedded_project: Library) -> None:
    """They have no server yet, and end at once."""
    project = embedded_project
    project.write(
        "test_collect.py", TELLS.partition("def")[0] + "Path('running').touch()\ntime.sleep(60)\n"
    )
    running = begun(project, "-n", "2")

    running.process.send_signal(signal.SIGTERM)

    assert_ended(project, running.wait(), signal.SIGTERM)


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "workers"])
def test_kept_servers_stay_with_no_more_in_them_than_after_any_run(
    embedded_project: Library, workers: tuple[str, ...]
) -> None:
    """No database in use is left, and the stock is filled."""
    project = embedded_project
    project.write("test_waits.py", WAITS.format(fixture="db_url, redis_url"))
    running = begun(project, REUSE, "test_waits.py", *workers)
    servers = project.servers()

    os.killpg(running.process.pid, signal.SIGTERM)

    result = running.wait()
    assert result.ret == 128 + signal.SIGTERM
    result.stdout.fnmatch_lines(["warmstack: set-up*: servers *"])
    assert project.servers() == servers
    assert project.databases("u") == project.databases("b") == []
    until(lambda: len(project.databases("r")) == 2, "two stand ready")


def test_the_second_signal_ends_the_run_at_once(embedded_project: Library) -> None:
    """Whoever does not want to wait for the clean-up need not."""
    project = embedded_project
    project.write("test_hangs.py", HANGS)
    running = begun(project, "test_hangs.py")
    running.process.send_signal(signal.SIGTERM)
    until((project.folder / "cleaning").exists, "the run cleans up")

    def again() -> int | None:
        running.process.send_signal(signal.SIGTERM)
        return running.process.poll()

    assert until(again, "the run has ended") == -signal.SIGTERM


def test_a_handler_that_a_test_takes_away_comes_back(embedded_project: Library) -> None:
    """For asyncio leaves the default one where it had its own."""
    project = embedded_project
    project.write("test_removes.py", REMOVES)
    running = begun(project, "test_removes.py")

    running.process.send_signal(signal.SIGTERM)

    assert_ended(project, running.wait(), signal.SIGTERM)


def test_a_forked_process_ends_as_any_other(embedded_project: Library) -> None:
    """And leaves the servers to its parent."""
    project = embedded_project
    project.write("test_forks.py", FORKS)

    project.run("test_forks.py").assert_outcomes(passed=2)


def test_a_signal_that_is_ignored_stays_ignored(embedded_project: Library) -> None:
    """As nohup has it; and a handler of the project's stays, too."""
    project = embedded_project
    setting = "signal.signal(1, signal.SIG_IGN); signal.signal(15, print)"
    project.write("conftest.py", HANDLERS.format(setting=setting))
    project.write("test_waits.py", WAITS.format(fixture="redis_url"))
    running = begun(project, "test_waits.py")

    for number in NUMBERS:
        running.process.send_signal(number)
    (project.folder / "go").touch()

    running.wait().assert_outcomes(passed=1)
    assert_nothing_left(project.folder)


def test_the_handlers_are_put_back(embedded_project: Library) -> None:
    """Before the plugins are told that the run has ended."""
    project = embedded_project
    project.write("conftest.py", HANDLERS.format(setting="pass"))

    project.run("-k", "reader").assert_outcomes(passed=1, deselected=4)

    assert project.lines("handlers") == [str([signal.SIG_DFL, signal.SIG_DFL])]


def test_a_run_without_servers_ends_as_ever(embedded_project: Library) -> None:
    """It has nothing to clean up."""
    project = embedded_project
    project.write("test_waits.py", WAITS.format(fixture=""))
    running = begun(project, "test_waits.py")

    running.process.send_signal(signal.SIGTERM)

    assert running.wait().ret == -signal.SIGTERM


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["alone", "workers"])
def test_a_closed_terminal_leaves_nothing(embedded_project: Library, workers: list[str]) -> None:
    """The kernel sends SIGHUP, and whatever is written then fails."""
    project = embedded_project
    project.write("test_tells.py", TELLS)
    master, slave = os.openpty()
    command = [sys.executable, "-m", *pytest_with(*workers), "-v", "test_tells.py", *workers]
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *command],  # noqa: S607 - wherever it is
        cwd=project.folder,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        preexec_fn=_hear_signals,
    )
    os.close(slave)
    project.runs.append(Running(process, Path(project.folder)))
    until((project.folder / "running").exists, "the test runs")

    os.close(master)

    process.wait(60)
    assert project.lines("told") == ["Terminated"]
    assert_nothing_left(project.folder)
