"""A timeout or Ctrl-C during lazy set-up ends one test; the next one still gets its servers."""

from __future__ import annotations

import signal

import pytest

from projects import Library, assert_nothing_left, until

REUSE = "--reuse-containers"
TIMEOUT = ("-p", "pytest_timeout")

LAZY = """
from itertools import accumulate, repeat

import pytest
from sqlalchemy import text

def lazy(name, *seconds):
    marks = [pytest.mark.timeout(each) for each in seconds]
    params = [pytest.param(name, id=f"{name}-{each}", marks=mark)
              for each, mark in zip(seconds, marks)]
    return pytest.mark.parametrize("name", params)

@lazy("db_url", *[0.02 + number / 20 for number in range(8)], 60)
def test_lazy(request, name):
    assert request.getfixturevalue(name)

@pytest.fixture
def rows(request):
    return request.getfixturevalue("db_session")

async def test_that_it_is_migrated(rows):
    assert await rows.scalar(text("SELECT count(*) FROM author")) == 0
"""

CACHED = """
import pytest

@pytest.mark.timeout(0.05)
def test_interrupted(request):
    request.getfixturevalue({name!r})

def test_next(request):
    assert request.getfixturevalue({name!r})
"""

CLASS = """
import pytest

@pytest.mark.warmstack_isolation("class")
class TestClass:
    @pytest.mark.timeout(0.05)
    def test_interrupted(self, request):
        request.getfixturevalue("db_url")

    def test_next(self, request):
        assert request.getfixturevalue("db_url")
"""

LAYERS = """
import sys
import pytest

times = []

def fail():
    pytest.fail("interrupted")

def pytest_warmstack_template_layers(config):
    times.append(1)
    if len(times) == {time}:
        {raise_}
    return []
"""

TWO = """
def test_first(request):
    assert request.getfixturevalue("db_url")

def test_second(request):
    assert request.getfixturevalue("db_url")
"""

EXIT = """
import signal
import pytest

def test_exit(request):
    signal.signal(signal.SIGALRM, lambda *_: pytest.exit("enough", returncode=7))
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    request.getfixturevalue("db_url")
"""


def test_timeouts_at_many_moments_of_lazy_set_up(project: Library) -> None:
    """Each ends its test alone; the set-up goes on, and is done once."""
    project.write("test_lazy.py", LAZY)
    project.run("test_library.py")
    usual = project.executions()
    (project.folder / "executions.log").unlink()

    result = project.run(*TIMEOUT, "test_lazy.py")

    # How many there are depends on the machine; the last two tests wait long enough.
    outcomes = result.parseoutcomes()
    assert outcomes["failed"] >= 3
    assert outcomes["passed"] >= 2
    assert outcomes["passed"] + outcomes["failed"] == 10
    assert project.executions() == usual
    assert_nothing_left(project.folder)


@pytest.mark.parametrize("name", ["postgres_container", "redis_container", "redis_url"])
def test_pytest_does_not_remember_the_timeout_of_a_fixture(
    embedded_project: Library, name: str
) -> None:
    """Not even that of a session's fixture, which it would raise for all later tests."""
    embedded_project.write("test_cached.py", CACHED.format(name=name))

    result = embedded_project.run(*TIMEOUT, "test_cached.py")

    result.assert_outcomes(passed=1, failed=1)


def test_nor_that_of_a_class(embedded_project: Library) -> None:
    """Its database is made for the next test."""
    embedded_project.write("test_class.py", CLASS)

    embedded_project.run(*TIMEOUT, "test_class.py").assert_outcomes(passed=1, failed=1)


@pytest.mark.parametrize("raise_", ["sys.exit('interrupted')", "raise KeyboardInterrupt", "fail()"])
def test_what_is_no_exception_is_raised_once(embedded_project: Library, raise_: str) -> None:
    """The project's own code interrupts the build; the next test builds."""
    project = embedded_project
    project.write("conftest.py", LAYERS.format(time=1, raise_=raise_))
    project.write("test_two.py", TWO)

    result = project.run("test_two.py")

    if "Keyboard" in raise_:
        assert result.ret == pytest.ExitCode.INTERRUPTED
    else:
        result.assert_outcomes(passed=1, failed=1)
    assert_nothing_left(project.folder)


def test_an_exception_is_remembered(embedded_project: Library) -> None:
    """What failed once is not tried again by every test."""
    project = embedded_project
    project.write("conftest.py", LAYERS.format(time=1, raise_="raise ValueError"))
    project.write("test_two.py", TWO)

    project.run("test_two.py").assert_outcomes(failed=2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_lazy_set_up_leaves_nothing(project: Library, number: signal.Signals) -> None:
    """Ctrl-C while the first test waits for its servers."""
    project.write("test_two.py", TWO)
    running = project.start("test_two.py")
    until(lambda: project.containers() or project.folders(), "a server is being made")

    running.process.send_signal(number)

    expected = pytest.ExitCode.INTERRUPTED if number is signal.SIGINT else 128 + number
    assert running.wait().ret == expected
    assert_nothing_left(project.folder)


def test_pytest_exit_in_lazy_set_up_leaves_nothing(embedded_project: Library) -> None:
    """It is raised for the test, and ends the run."""
    project = embedded_project
    project.write("test_exit.py", EXIT)

    assert project.run("test_exit.py").ret == 7
    assert_nothing_left(project.folder)


def test_a_timeout_that_ends_the_process_is_healed_by_the_next_run(kept: Library) -> None:
    """pytest-timeout's other method does so."""
    kept.write(
        "test_thread.py",
        "import time\n\ndef test_thread(db_url, redis_url):\n    time.sleep(60)\n",
    )

    result = kept.run(REUSE, *TIMEOUT, "--timeout=0.5", "--timeout-method=thread", "test_thread.py")

    assert result.ret == 1
    kept.run(REUSE, "test_library.py").assert_outcomes(passed=5)
    assert kept.databases("u") == kept.databases("b") == []
