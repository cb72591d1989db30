"""However a run ends, nothing is left; the next run removes what a killed run leaves behind."""

from __future__ import annotations

import os
import signal

import pytest

from projects import Library, assert_nothing_left, until

BLOCKING = """
import signal
from pathlib import Path

def test_that_never_ends(redis_url, redis_container):
    Path("servers.log").open("a").write(f"{redis_container.id}\\n")
    Path("running").touch()
    signal.pause()
"""

WAITING = """
import time
from pathlib import Path

def test_that_waits(redis_url, redis_container):
    Path("servers.log").open("a").write(f"{redis_container.id}\\n")
    Path("running").touch()
    deadline = time.monotonic() + 60
    while not Path("go").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
"""

FAILING = """
import os
from pathlib import Path

def test_that_fails(redis_url, redis_container):
    Path("servers.log").open("a").write(f"{redis_container.id}\\n")
    assert redis_url == "somewhere else"

def test_that_fails_too(redis_url):
    assert redis_url == "somewhere else"

def test_that_ends_its_process(redis_url):
    os._exit(3)
"""


def assert_used_and_gone(project: Library, *, servers: int) -> None:
    """See that the run had so many servers, and that nothing is left of it."""
    assert len(set(project.lines("servers.log"))) == servers
    assert_nothing_left(project.folder)


def test_a_green_run_leaves_nothing(project: Library) -> None:
    """Both servers are gone after a run whose tests all passed."""
    project.run().assert_outcomes(passed=5)

    assert_used_and_gone(project, servers=2)


def test_a_run_with_workers_leaves_nothing(project: Library) -> None:
    """The workers of one run share its two servers, and the controller removes them."""
    project.run("-n", "2").assert_outcomes(passed=5)

    assert_used_and_gone(project, servers=2)


@pytest.mark.parametrize(
    ("option", "failed"), [("--maxfail=3", 2), ("-x", 1), ("--maxfail=2", 2)], ids=str
)
def test_a_run_that_stops_at_a_failure_leaves_nothing(
    project: Library, option: str, failed: int
) -> None:
    """The servers are gone after failed tests, and when the run stopped at the first of them."""
    project.write("test_failures.py", FAILING)

    result = project.run("test_failures.py", "-k", "fails", option)

    result.assert_outcomes(failed=failed)
    assert_used_and_gone(project, servers=1)


def test_an_interrupted_test_leaves_nothing(project: Library) -> None:
    """Ctrl-C in the middle of a test ends the run, and the servers with it."""
    project.write("test_block.py", BLOCKING)
    running = project.start("test_block.py")
    until((project.folder / "running").exists, "the test runs")

    result = running.interrupt()

    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert_used_and_gone(project, servers=1)


def test_an_interrupted_start_of_the_servers_leaves_nothing(project: Library) -> None:
    """Ctrl-C while the servers are starting removes also those that were just being made."""
    running = project.start()
    until(lambda: project.containers() or project.folders(), "a server is being made")

    result = running.interrupt()

    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert project.lines("servers.log") == []
    assert_nothing_left(project.folder)


def test_an_interrupted_migration_leaves_nothing(project: Library) -> None:
    """Ctrl-C while the template is being built ends the migrations, and the servers go."""
    project.write(
        "migrations/versions/0004_wait.py",
        "import select\n"
        "from pathlib import Path\n"
        'revision, down_revision = "0004", "0003"\n'
        "def upgrade():\n"
        '    Path("migrating").touch()\n'
        "    select.select([], [], [])\n",
    )
    running = project.start()
    until((project.folder / "migrating").exists, "the migrations run")

    result = running.interrupt()

    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert_nothing_left(project.folder)


def test_an_interrupted_run_with_workers_leaves_nothing(project: Library) -> None:
    """Ctrl-C reaches controller and workers alike, as a terminal sends it; the servers go."""
    project.write("test_block.py", BLOCKING)
    running = project.start("test_block.py", "-n", "2")
    until((project.folder / "running").exists, "the test runs")

    os.killpg(running.process.pid, signal.SIGINT)
    result = running.wait()

    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert_used_and_gone(project, servers=1)


def test_a_crashed_worker_leaves_nothing(project: Library) -> None:
    """A worker that ended without a word does not keep the controller from cleaning up."""
    project.write("test_failures.py", FAILING)

    result = project.run("test_failures.py", "-n", "2")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*crashed*"])
    assert_used_and_gone(project, servers=1)


def test_the_next_run_of_anyone_removes_what_a_killed_run_left(
    project: Library, other_project: Library
) -> None:
    """After kill -9 the servers stay; another project's run removes them at its own end."""
    project.write("test_block.py", BLOCKING)
    running = project.start("test_block.py", "-n", "2")
    until((project.folder / "running").exists, "the test runs")

    running.kill()
    assert project.servers() == sorted(set(project.lines("servers.log")))

    other_project.run("-k", "reader").assert_outcomes(passed=1, deselected=4)
    assert_nothing_left(project.folder)
    assert_used_and_gone(other_project, servers=1)


def test_the_servers_of_a_living_run_are_spared_by_others(
    project: Library, other_project: Library
) -> None:
    """A run that ends while another one goes on leaves the other one's servers alone."""
    project.write("test_wait.py", WAITING)
    running = project.start("test_wait.py")
    until((project.folder / "running").exists, "the test runs")

    own = project.lines("servers.log")
    other_project.run("-k", "reader").assert_outcomes(passed=1, deselected=4)
    assert project.servers() == own
    # Nor does a second run in the same project touch it.
    project.run("-k", "reader").assert_outcomes(passed=1, deselected=5)
    assert project.servers() == own

    (project.folder / "go").touch()
    running.wait().assert_outcomes(passed=1)
    assert_used_and_gone(project, servers=2)
