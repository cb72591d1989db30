"""`Process` tells which processes still run, checked with real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pytest_warmstack.servers.identity import Process


@pytest.fixture
def zombie() -> Iterator[Process]:
    """A child that has ended and was not collected by its parent."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = Process.of(child.pid)
    assert child.stdin is not None
    child.stdin.close()
    # Waits for its end and leaves it as it is.
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    yield process
    child.wait()


def test_the_process_that_asks_is_not_gone() -> None:
    """The current process runs."""
    own = Process.current()

    assert own.pid == os.getpid()
    assert not own.is_gone()


def test_a_child_that_runs_is_not_gone() -> None:
    """A process runs from its start until its end, also as seen from another one."""
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        assert not Process.of(child.pid).is_gone()
        child.kill()


def test_a_child_that_ended_and_was_collected_is_gone() -> None:
    """An unused process id belongs to a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        process = Process.of(child.pid)
    assert child.returncode == 0

    assert process.is_gone()


def test_a_zombie_is_gone(zombie: Process) -> None:
    """A process that only waits to be collected does nothing any more."""
    assert zombie.started
    assert zombie.is_gone()


def test_a_process_that_was_a_zombie_when_it_was_looked_at_is_gone(zombie: Process) -> None:
    """A process whose start could not be told any more has ended, and stays so."""
    assert Process.of(zombie.pid).is_gone()


def test_a_process_of_another_machine_is_never_called_gone() -> None:
    """It can't be known, even if the id is unused here."""
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        process = Process.of(child.pid)

    assert process.is_gone()
    assert not process._replace(host="elsewhere").is_gone()


def test_a_process_whose_id_was_given_out_again_is_gone() -> None:
    """The same id with another start time is another process."""
    own = Process.current()

    assert own._replace(started=f"{own.started}0").is_gone()


def test_a_process_is_spelt_and_read_back() -> None:
    """The text contains everything that is needed to judge the process later."""
    own = Process.current()

    assert Process.parse(str(own)) == own
    assert str(own) == f"{own.host}/{own.pid}/{own.started}"


def test_a_start_time_with_slashes_or_spaces_is_read_back() -> None:
    """Where `ps` reports the start, the text contains what `ps` wrote."""
    process = Process("mac.local", 12, "Sat Nov 22 23:39:01 2025 a/b")

    assert Process.parse(str(process)) == process


@pytest.mark.parametrize("text", ["", "x", "host/", "host//1", "host/12x/1", "host/-1/1", "/"])
def test_another_text_is_no_process(text: str) -> None:
    """Only the spelling of `str()` is read."""
    assert Process.parse(text) is None
