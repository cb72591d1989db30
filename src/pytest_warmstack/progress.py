"""What the run is doing, once it has taken a second: one line that is rewritten, or plain lines.

A run that finds everything ready doesn't import this module. Nothing here uses `sys.stdout`, which
pytest captures: a line goes to the descriptor of the terminal.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, NamedTuple, Protocol

from pytest_warmstack import originals

DELAY: Final = 1.0
"""Seconds that a step takes before it is shown."""

REPEAT: Final = 10.0
"""Seconds between two plain lines, if nothing else begins."""

_TICK: Final = 0.1
"""Seconds between two looks at the waits."""

_CLEAR: Final = "\r\x1b[2K"
"""Moves the cursor to the beginning of its line and erases the line (ECMA-48, EL)."""

_WIDTH: Final = 80
"""Columns of a terminal that doesn't tell its width."""


class Wait:
    """Something that may take long. `text` says what; `since` is when that began."""

    def __init__(
        self, text: str, *, worker: str = "", age: float = 0.0, total: float = 0.0
    ) -> None:
        now = originals.monotonic()
        self.text, self.worker = text, worker
        self.since, self.begun = now - age, now - total

    def update(self, text: str) -> None:
        """Say what happens now; what follows a colon only says how far it has come."""
        if _subject(text) != _subject(self.text):
            self.since = originals.monotonic()
        self.text = text

    @property
    def subject(self) -> tuple[str, str]:
        """What is done, and the worker of xdist that does it."""
        return self.worker, _subject(self.text)


def _subject(text: str) -> str:
    return text.partition(": ")[0]


class Display(Protocol):
    """Shows waits."""

    def show(self, waits: Sequence[Wait], now: float) -> None:
        """Show *waits*, all that have taken `DELAY` seconds, as they are *now*."""


class Screen(NamedTuple):
    """A terminal or a file: its descriptor, and what pytest has written there.

    `column` returns how many columns of the last line are written; `flush` writes what pytest has
    not written yet.
    """

    descriptor: int
    column: Callable[[], int] = lambda: 0
    flush: Callable[[], None] = lambda: None

    def display(self) -> Display:
        """Return how to show waits there."""
        is_terminal = os.isatty(self.descriptor) and os.environ.get("TERM", "dumb") != "dumb"
        return _Rewritten(self) if is_terminal else _Lines(self)

    def write(self, text: str) -> None:
        """Write *text* after what pytest has written. A terminal that is gone is no error."""
        with suppress(OSError, ValueError):
            self.flush()
            os.write(self.descriptor, text.encode(errors="replace"))


class _Rewritten:
    """One line of a terminal; it is erased at the end."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._shown = ""
        self._column = 0

    def show(self, waits: Sequence[Wait], now: float) -> None:
        text = _line(waits, now, self._width() - 1) if waits else ""
        if text == self._shown:
            return
        # If pytest has continued the line in the meantime, begin a new one.
        column = self._screen.column()
        if self._shown and column == self._column:
            begin = _CLEAR
        else:
            begin = "\n" if text and (column or self._shown) else ""
        self._screen.write(begin + text)
        self._shown, self._column = text, column

    def _width(self) -> int:
        try:
            return os.get_terminal_size(self._screen.descriptor).columns or _WIDTH
        except OSError:
            return _WIDTH


class _Lines:
    """Plain lines: one for each thing that takes long, and one every `REPEAT` seconds."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._told: set[object] = set()
        self._last = 0.0

    def show(self, waits: Sequence[Wait], now: float) -> None:
        is_new = any(
            each not in self._told or (each.subject not in self._told and now - each.since >= DELAY)
            for each in waits
        )
        if is_new or (waits and now - self._last >= REPEAT):
            begin = "\n" if self._screen.column() else ""
            self._screen.write(f"{begin}{_line(waits, now)}\n")
            self._told = {*waits, *(each.subject for each in waits)}
            self._last = now


class Sender:
    """Sends the waits of a worker of xdist to the controller, which shows them."""

    def __init__(self, send: Callable[[Any], None]) -> None:
        self._send = send
        self._sent: list[str] = []

    def show(self, waits: Sequence[Wait], now: float) -> None:
        """Send *waits* if they have changed."""
        texts = [each.text for each in waits]
        if texts != self._sent:
            self._sent = texts
            with suppress(OSError):  # The controller has ended.
                self._send(
                    [[id(each), each.text, now - each.since, now - each.begun] for each in waits]
                )


class Progress:
    """The waits of a process, and in xdist's controller those of its workers.

    A thread looks at them while there are any. Without a *display*, nothing is shown.
    """

    def __init__(self, display: Display | None) -> None:
        self._display = display
        self._lock = threading.Lock()
        self._own: list[Wait] = []
        self._workers: dict[str, dict[int, Wait]] = {}
        self._is_running = False

    @contextmanager
    def waiting(self, text: str) -> Iterator[Wait]:
        """Show *text* while the block runs, if it takes longer than `DELAY` seconds."""
        wait = Wait(text)
        with self._lock:
            self._own.append(wait)
            self._begin()
        try:
            yield wait
        finally:
            with self._lock:
                self._own.remove(wait)
                self._show()

    def receive(self, worker: str, waits: Sequence[tuple[int, str, float, float]]) -> None:
        """Replace the waits of *worker*: the number, the text, its age, and that of the wait."""
        with self._lock:
            known, own = self._workers.get(worker, {}), {}
            for number, text, age, total in waits:
                own[number] = known.get(number) or Wait(text, worker=worker, age=age, total=total)
                own[number].update(text)
            self._workers[worker] = own
            self._begin()
            self._show()

    def close(self) -> None:
        """Erase the line, and show nothing any more."""
        with self._lock:
            self._own, self._workers = [], {}
            self._show()
            self._display = None

    def _begin(self) -> None:
        """Start the thread, if nothing runs it yet."""
        if not self._is_running and self._display is not None:
            self._is_running = True
            originals.Thread(target=self._run, name="warmstack-progress", daemon=True).start()

    def _run(self) -> None:
        while True:
            originals.sleep(_TICK)
            with self._lock:
                self._show()
                if self._display is None or not (self._own or any(self._workers.values())):
                    self._is_running = False
                    return

    def _show(self) -> None:
        if self._display is not None:
            now = originals.monotonic()
            every = [*self._own, *(each for own in self._workers.values() for each in own.values())]
            self._display.show([each for each in every if now - each.begun >= DELAY], now)


def _line(waits: Sequence[Wait], now: float, width: int = 0) -> str:
    """Return the line about *waits*; those that only wait come last.

    Workers that do the same share their text. If the line is wider than *width*, texts are cut, but
    not the seconds, which show that the run goes on.
    """
    texts: dict[str, list[Wait]] = {}
    for each in sorted(waits, key=lambda wait: wait.text.startswith("waiting")):
        texts.setdefault(each.text, []).append(each)
    parts: list[tuple[str, str]] = []
    for text, same in texts.items():
        workers = ", ".join(sorted(each.worker for each in same if each.worker))
        seconds = int(max(now - each.since for each in same))
        parts.append((f"{workers}: {text}" if workers else text, f" ({seconds} s)" * (seconds > 0)))
    begin, separator = "warmstack: ", "; "
    free = width - len(begin) - sum(len(age) + len(separator) for _, age in parts) + len(separator)
    if width and sum(len(text) for text, _ in parts) > free:
        parts = [(_cut(text, max(free // len(parts), 1)), age) for text, age in parts]
    line = begin + separator.join(text + age for text, age in parts)
    return line[:width] if width else line


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: max(width - 3, 0)]}..."[:width]
