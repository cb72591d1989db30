"""A database for every test: made ahead of it, dropped behind it, and always few at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.postgres import DatabaseName
from pytest_warmstack.postgres.errors import CloneFailed
from pytest_warmstack.servers.errors import ConnectionLost, ServerFailed

DROPPING: Final = 8
"""How many clones of tests that are done may wait to be dropped; more, and the tests wait."""

TAKE_TIMEOUT: Final = 180.0
"""Seconds that a test waits for its clone, or for the drop of others, at most.

Each step of the work in the background has a shorter deadline, and says what it waited for.
"""


class Clone(NamedTuple):
    """A database of a test's own: its name, its SQLAlchemy URL, and the server's number for it.

    The number stays when a test gives its database another name.
    """

    name: DatabaseName
    oid: int
    url: str


class Leak(NamedTuple):
    """A connection that a test left open: as what it announced itself, and what it was doing."""

    application: str
    state: str
    query: str


class Finding(NamedTuple):
    """What a *test* left behind: a leak, or why its database could not be used again or dropped.

    Or what its database is called now, since it is *kept*.
    """

    test: str
    leak: Leak | None = None
    trouble: str = ""
    kept: str = ""


@dataclass
class Shared:
    """A clone that tests use one after the other, each undoing what it did.

    `connections` counts those that were made to undo what went over them; any other one may have
    committed. `trouble` is why the clone can't be used again after the test at hand.
    """

    clone: Clone
    connections: int = 0
    trouble: str = ""


class CloneBackend(Protocol):
    """What makes and drops databases, in the background; this room knows no SQL."""

    def prepare(self) -> Future[Clone]:
        """Return a clone that this process owns, and that no test had."""

    def drop(self, clone: Clone) -> Future[list[Leak]]:
        """Drop a clone whatever its test left; give the connections among it."""

    def keep(self, clone: Clone, test: str) -> Future[Clone]:
        """Give a clone the name of one that is kept, of the *test* that failed with it."""

    def visits(self, clone: Clone) -> Future[int]:
        """Return how many connections there have been to a clone since it was made."""

    def stop(self) -> None:
        """Begin to make no more clones; those that were asked for are cancelled."""

    def leave(self, unused: Sequence[Clone], *, stock: int) -> Future[None]:
        """Leave *stock* clones ready for the next run, some of them *unused* ones."""


class Clones:
    """The clones of one template that this process uses.

    *ahead* of them are kept ready, and no more than *expected*, the number of tests that will ask
    for one. *stock* is how many the next run is to find ready, *keep* how many of failed tests
    stay. *found* is told what tests left behind, from another thread.
    """

    def __init__(
        self,
        maker: CloneBackend,
        *,
        ahead: int,
        expected: int,
        stock: int,
        keep: int = 0,
        found: Callable[[Finding], None],
    ) -> None:
        self._maker = maker
        self._limit = ahead
        self._expected = expected
        self._stock = stock
        self._keep = keep
        self._found = found
        self._kept: dict[str, Future[Clone]] = {}
        self._ahead: deque[Future[Clone]] = deque()
        self._dropping: deque[Future[list[Leak]]] = deque()
        self._shared: Shared | None = None
        self._last: tuple[str, Future[int]] | None = None
        self._is_lost = False
        self._fill()

    def take(self) -> Clone:
        """Return a clone that no other test has, had or will have.

        Raises `CloneFailed` with PostgreSQL's own words or after `TAKE_TIMEOUT` seconds,
        `ServerFull` or `ServerFailed`.
        """
        while len(self._dropping) >= DROPPING:
            oldest = self._dropping.popleft()
            if not wait([oldest], timeout=TAKE_TIMEOUT).done:
                raise CloneFailed.not_dropped_in_time(seconds=TAKE_TIMEOUT)
        was_ahead = bool(self._ahead)
        future = self._ahead.popleft() if was_ahead else self._maker.prepare()
        self._expected -= 1
        self._fill()
        try:
            try:
                return future.result(TAKE_TIMEOUT)
            except ServerFailed as error:
                # A server that was restarted meanwhile refused then, and may be there now.
                if not (was_ahead and isinstance(error.__cause__, ConnectionRefusedError)):
                    raise
                future = self._maker.prepare()
                return future.result(TAKE_TIMEOUT)
        except TimeoutError as error:
            self._ahead.append(future)  # It may come yet, and is closed with the others.
            raise CloneFailed.too_slow(seconds=TAKE_TIMEOUT) from error
        except BaseException as error:
            if not isinstance(error, Exception):
                # An interruption, such as Ctrl-C or a timeout of the test: no test had the clone.
                self._ahead.appendleft(future)
            raise

    def give_back(self, clone: Clone, test: str) -> None:
        """Have the clone of *test*, which is done, dropped in the background."""
        while self._dropping and self._dropping[0].done():
            self._dropping.popleft()
        future = self._maker.drop(clone)
        future.add_done_callback(lambda done: self._tell(done, test))
        self._dropping.append(future)

    def keep(self, clone: Clone, test: str) -> None:
        """Have the clone of *test*, which failed, kept, and the oldest dropped if there are many.

        It takes the place of the one that the same test failed with before it was run again. One
        that can't be kept takes no place, and is swept by the next run.
        """
        future = self._maker.keep(clone, test)
        future.add_done_callback(lambda done: self._tell_not_kept(done, test))
        self._release(test)
        self._kept = {whose: kept for whose, kept in self._kept.items() if not _failed(kept)}
        self._kept[test] = future
        while len(self._kept) > self._keep:
            self._release(next(iter(self._kept)))

    @property
    def has_saved(self) -> bool:
        """Whether there is a database of a failed test that stays."""
        return bool(self._kept)

    def _release(self, test: str) -> None:
        """Have the kept clone of *test* dropped, if there is one."""
        if (kept := self._kept.pop(test, None)) is not None:
            with suppress(Exception):  # It was told if it could not be kept.
                self.give_back(kept.result(TAKE_TIMEOUT), test)

    @property
    def is_shared(self) -> bool:
        """Whether there is a clone already for the next test that undoes what it does."""
        self._look()
        return self._shared is not None

    def borrow(self) -> Shared:
        """Return the clone of the tests that undo what they did; a new one if one did not."""
        self._look()
        if self._shared is None:
            self._shared = Shared(self.take())
        return self._shared

    def restore(self, shared: Shared, test: str) -> None:
        """Take the shared clone back after *test*.

        Whether the test connected to it without db_engine is asked in the background.
        """
        self._last = test, self._maker.visits(shared.clone)
        if shared.trouble:
            self._replace(test, shared.trouble)

    def close(self, *, timeout: float) -> None:
        """End it, waiting up to *timeout* seconds; the next run sweeps what is left then."""
        self._look()
        if self._shared is not None:
            self.give_back(self._shared.clone, "")
        self._maker.stop()
        wait(self._ahead, timeout=timeout)
        wait(self._kept.values(), timeout=timeout)
        wait(self._dropping, timeout=timeout)
        for test, future in self._kept.items():
            with suppress(WarmstackError, CancelledError, TimeoutError):
                self._found(Finding(test, kept=str(future.result(timeout=0).name)))
        unused = []
        for future in self._ahead:
            with suppress(WarmstackError, CancelledError, TimeoutError):
                unused.append(future.result(timeout=0))
        wait([self._maker.leave(unused, stock=self._stock)], timeout=timeout)

    def _fill(self) -> None:
        while len(self._ahead) < min(self._limit, self._expected):
            self._ahead.append(self._maker.prepare())

    def _look(self) -> None:
        """See what came of the question whether the last test connected without db_engine."""
        if self._last is None or self._shared is None:
            return
        test, visits = self._last
        self._last = None
        try:
            # Fewer is not known yet: PostgreSQL 14 counts late, our own connections as well.
            if visits.result(TAKE_TIMEOUT) > self._shared.connections:
                self._replace(test, "it connected to its database without db_engine")
        except Exception as error:
            why = _why(error)
            self._replace(test, f"whether it connected without db_engine is not known: {why}")

    def _replace(self, test: str, trouble: str) -> None:
        """Let the next test have another shared clone."""
        self._found(Finding(test, trouble=f"{trouble}; its database was not used again"))
        if self._shared is not None:
            self.give_back(self._shared.clone, test)
        self._shared = self._last = None

    def _tell_not_kept(self, future: Future[Clone], test: str) -> None:
        """Report why a clone could not be kept; `close` reports those that are there at the end."""
        if not future.cancelled() and (error := future.exception()) is not None:
            self._found(Finding(test, trouble=_why(error)))

    def _tell(self, future: Future[list[Leak]], test: str) -> None:
        """Tell what the drop of a clone has shown."""
        if future.cancelled():
            return
        error = future.exception()
        if error is not None:
            # Whoever asks for the next clone of a server that is gone gets the error.
            if not (self._is_lost and isinstance(error, ConnectionLost)):
                self._found(Finding(test, trouble=_why(error)))
            self._is_lost = isinstance(error, ConnectionLost)
            return
        for leak in future.result():
            self._found(Finding(test, leak))


def _failed(future: Future[Any]) -> bool:
    """Tell whether what was begun has come to nothing."""
    return future.done() and (future.cancelled() or future.exception() is not None)


def _why(error: BaseException) -> str:
    """Return what went wrong in the background, in one line; whatever it was, it is shown."""
    if isinstance(error, WarmstackError):
        return f"{error.what} {error.why}"
    return f"its database could not be dropped: {type(error).__name__}: {error}"
