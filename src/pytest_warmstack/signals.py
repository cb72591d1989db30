"""SIGTERM and SIGHUP end a run as Ctrl-C does, so that its servers are removed.

A cancelled CI job sends SIGTERM, a closed terminal SIGHUP. By default, both end Python at once.
"""

from __future__ import annotations

from collections.abc import Callable
from os import kill, register_at_fork
from signal import (
    SIG_BLOCK,
    SIG_DFL,
    SIG_SETMASK,
    SIGHUP,
    SIGTERM,
    Signals,
    getsignal,
    pthread_sigmask,
    signal,
)
from threading import local
from typing import Any, Final

from pytest_warmstack import originals

ENDING: Final = (SIGTERM, SIGHUP)

REPEAT_WINDOW: Final = 0.5
"""Seconds within which a second signal counts as the same one.

When a terminal is closed, both the shell and the kernel send a signal.
"""


class Terminated(KeyboardInterrupt):
    """A signal ends the run. Event loops, libraries and pytest let KeyboardInterrupt pass."""


class SignalWatch:
    """A pytest plugin that handles SIGTERM and SIGHUP.

    On the first signal, the handler calls *stop* with the signal's name and number, and raises
    `Terminated` in the main thread. The next signal ends the process at once; with *patient*, it is
    ignored.
    """

    def __init__(self, stop: Callable[[str, int], None], *, patient: bool = False) -> None:
        self.number = 0
        self._stop = stop
        self._patient = patient
        self._since = 0.0
        self._cleaning = False
        self._handler = self._handle  # One object, to compare with `is`.
        self._installed = [number for number in ENDING if getsignal(number) is SIG_DFL]
        try:
            self.pytest_runtest_logfinish()
        except ValueError:  # Only the main thread may install handlers.
            self._installed = []
        # A forked child loses a signal that comes before Python runs in it, and would not end
        # (CPython's signalmodule.c, _PySignal_AfterFork).
        self._mask = local()
        register_at_fork(
            before=self._before_fork,
            after_in_parent=self._unmask,
            after_in_child=self._after_fork_in_child,
        )

    def pytest_runtest_logfinish(self) -> None:
        """Install the handlers again if a test removed them; asyncio's loops do that."""
        for number in self._installed:
            if getsignal(number) is SIG_DFL:
                signal(number, self._handler)

    def clean_up(self) -> None:
        """From now on, record signals but don't interrupt anything: the clean-up begins."""
        self._cleaning = True

    def restore(self) -> None:
        """Restore the default handlers."""
        for number in self._installed:
            if getsignal(number) is self._handler:
                signal(number, SIG_DFL)
        self._installed = []

    @property
    def status(self) -> int:
        """The exit status that a shell reports for the signal that ended the run; else 0."""
        return self.number and 128 + self.number

    def _handle(self, number: int, _frame: Any) -> None:
        if not self.number:
            self.number, self._since = number, originals.monotonic()
            name = Signals(number).name
            try:
                self._stop(name, number)
            finally:
                if not self._cleaning:
                    raise Terminated(f"{name} ends the run")
        elif not self._patient and originals.monotonic() - self._since > REPEAT_WINDOW:
            signal(number, SIG_DFL)
            kill(originals.getpid(), number)

    def _before_fork(self) -> None:
        if self._installed:
            self._mask.before = pthread_sigmask(SIG_BLOCK, self._installed)

    def _after_fork_in_child(self) -> None:
        # The servers belong to the parent.
        self.restore()
        self._unmask()

    def _unmask(self) -> None:
        if hasattr(self._mask, "before"):
            pthread_sigmask(SIG_SETMASK, self._mask.before)
            del self._mask.before
