"""Which lines are written about what takes long, and when."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from pytest_warmstack import originals, progress
from pytest_warmstack.progress import REPEAT, Display, Progress, Screen, Sender, Wait


@dataclass
class Pipe:
    """A pipe instead of a terminal; *column* is where pytest's last line ends."""

    reader: int
    writer: int
    column: int = 0

    def screen(self) -> Screen:
        """Return it as what pytest writes to."""
        return Screen(self.writer, lambda: self.column)

    def read(self) -> str:
        """Return what was written since the last call."""
        os.write(self.writer, b"\0")
        return os.read(self.reader, 100_000).decode()[:-1]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """A pipe, which is closed at the end."""
    made = Pipe(*os.pipe())
    yield made
    os.close(made.reader)
    os.close(made.writer)


@pytest.fixture
def rewritten(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> Display:
    """A terminal of 40 columns, which is the pipe."""
    monkeypatch.setattr(os, "isatty", lambda _: True)
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((40, 24)))
    monkeypatch.setenv("TERM", "xterm")
    return pipe.screen().display()


def test_a_line_is_written_when_something_else_takes_a_second(pipe: Pipe) -> None:
    """And again after ten seconds, with how far it has come."""
    lines = pipe.screen().display()
    wait = Wait("pulling redis:7: 1 MB")
    now = wait.since

    def shown(seconds: float) -> str:
        lines.show([wait], now + seconds)
        return pipe.read()

    assert shown(1) == "warmstack: pulling redis:7: 1 MB (1 s)\n"
    wait.text = "pulling redis:7: 2 MB"
    assert shown(REPEAT) == ""
    assert shown(1 + REPEAT) == "warmstack: pulling redis:7: 2 MB (11 s)\n"
    wait.update("starting Redis")
    wait.since = now + 12
    assert shown(12.5) == ""
    assert shown(13) == "warmstack: starting Redis (1 s)\n"
    assert shown(14) == ""


def test_lines_begin_after_what_pytest_has_written(pipe: Pipe) -> None:
    """The dots of tests stay on a line of their own."""
    pipe.column = 14

    pipe.screen().display().show([Wait("starting Redis")], originals.monotonic())

    assert pipe.read() == "\nwarmstack: starting Redis\n"


def test_a_terminal_has_one_line_that_is_erased_at_the_end(pipe: Pipe, rewritten: Display) -> None:
    """It is cut off at the width, and not written again while it is the same."""
    wait = Wait("running the seed a_seed_with_a_long_name.sql")
    now = wait.since

    rewritten.show([Wait("starting Redis")], originals.monotonic())
    rewritten.show([wait], now)
    rewritten.show([wait], now + 0.5)
    rewritten.show([], now)
    rewritten.show([], now)

    begin = "\r\x1b[2K"
    cut = "warmstack: running the seed a_seed_w..."
    assert pipe.read() == f"warmstack: starting Redis{begin}{cut}{begin}"


def test_a_narrow_terminal_still_shows_the_seconds(pipe: Pipe, rewritten: Display) -> None:
    """They show that the run goes on; the names are cut."""
    one = Wait("revision 2 of 3, 0002_add_the_orders.py", worker="gw0")
    other = Wait("waiting for another build: process 7@host", worker="gw1")
    now = one.since = other.since = originals.monotonic() - 12

    rewritten.show([one], now + 12)
    assert pipe.read() == "warmstack: gw0: revision 2 of... (12 s)"
    rewritten.show([one, other], now + 12)
    text = pipe.read().rpartition("\x1b[2K")[2]

    assert text == "warmstack: gw0... (12 s); gw1... (12 s)"


def test_what_pytest_adds_to_the_line_is_not_erased(pipe: Pipe, rewritten: Display) -> None:
    """Workers of xdist go on with their tests while another one waits."""
    rewritten.show([Wait("a")], originals.monotonic())
    pipe.column = 1
    rewritten.show([Wait("b")], originals.monotonic())
    pipe.column = 2
    rewritten.show([], originals.monotonic())

    assert pipe.read() == "warmstack: a\nwarmstack: b"


@pytest.mark.parametrize("term", ["dumb", None])
def test_a_terminal_without_escape_sequences_has_plain_lines(
    pipe: Pipe, rewritten: Display, monkeypatch: pytest.MonkeyPatch, term: str | None
) -> None:
    """Such as that of an editor."""
    monkeypatch.delenv("TERM")
    if term:
        monkeypatch.setenv("TERM", term)

    pipe.screen().display().show([Wait("starting Redis")], originals.monotonic())

    assert pipe.read() == "warmstack: starting Redis\n"


def test_workers_that_do_the_same_share_their_text(pipe: Pipe) -> None:
    """What is only waited for comes last."""
    waits = [
        Wait("waiting for another build", worker="gw2"),
        Wait("waiting for another build", worker="gw0", age=3),
        Wait("running the migrations", worker="gw1"),
    ]

    pipe.screen().display().show(waits, originals.monotonic())

    assert pipe.read() == (
        "warmstack: gw1: running the migrations; gw0, gw2: waiting for another build (3 s)\n"
    )


def test_a_worker_sends_changes_and_the_controller_shows_them(pipe: Pipe) -> None:
    """A wait keeps its age; it ends with the worker, too, which then sends nothing."""
    sent: list[Any] = []
    sender, shown = Sender(sent.append), Progress(pipe.screen().display())
    wait = Wait("running the seed a.sql", age=2, total=2)

    for _ in range(2):
        sender.show([wait], originals.monotonic())
    (message,) = sent
    shown.receive("gw0", message)

    assert pipe.read() == "warmstack: gw0: running the seed a.sql (2 s)\n"
    shown.receive("gw0", [])
    shown.receive("gw1", [(1, "starting Redis", 0.0, 0.5)])
    assert pipe.read() == ""
    shown.close()
    shown.receive("gw1", [(1, "starting Redis", 5.0, 5.0)])
    assert pipe.read() == ""


def test_nothing_is_shown_of_what_takes_less(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else is shown."""
    shown = Progress(pipe.screen().display())

    with shown.waiting("starting Redis"):
        pass
    assert pipe.read() == ""
    monkeypatch.setattr(progress, "DELAY", 0.0)
    with shown.waiting("starting PostgreSQL") as wait:
        wait.update("starting it again")
        with shown.waiting("b"):
            pass

    assert "warmstack: starting it again\n" in pipe.read()
    shown.close()


def test_a_terminal_that_is_gone_is_no_error(pipe: Pipe) -> None:
    """The run goes on."""
    gone = os.dup(pipe.writer)
    display = Screen(gone).display()
    os.close(gone)

    display.show([Wait("starting Redis")], originals.monotonic())
