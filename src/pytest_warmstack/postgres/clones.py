"""Clones: a database for each test, ready before the test, and put back or dropped after it.

`Clones` decides when; `CloneFactory` does the work in SQL, in the background.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, wait
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pytest_warmstack import originals
from pytest_warmstack.background import sleep
from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.postgres import DatabaseName, State, sql
from pytest_warmstack.postgres.connections import (
    APPLICATION,
    BUSY_TIMEOUT,
    TITLE,
    Connection,
    StatementRefused,
    persistent,
    retry,
)
from pytest_warmstack.postgres.databases import (
    Databases,
    blocking,
    clone_errors,
    databases_of,
    drop_sealed,
    drop_unlocked,
    in_background,
)
from pytest_warmstack.postgres.retention import Retention
from pytest_warmstack.servers.errors import ConnectionLost, ServerFailed, ServerFull
from pytest_warmstack.structs import Struct

if TYPE_CHECKING:
    from pytest_warmstack.postgres.address import Address
    from pytest_warmstack.postgres.put_back import Baseline, Runs
    from pytest_warmstack.servers.model import Endpoint

MAX_DROPS: Final = 8
"""How many clones may wait to be dropped before tests wait for the drops."""

TAKE_TIMEOUT: Final = 180.0
"""Seconds that a test waits for its clone, or for the drop of others.

Each step of the background work has a shorter timeout, and its error says what it waited for.
"""

LEAK_GRACE: Final = 0.5
"""Seconds that a connection may take to end after its test; afterwards it is a leak.

A backend needs a millisecond or two, and longer on a busy machine.
"""

_END_TIMEOUT: Final = 0.05
"""Seconds that a test waits for the end of its other connections, which it has closed."""

LOCK_BATCH: Final = 16
"""How many locks are taken or released at once, because each call takes time from a test."""


class Clone(NamedTuple):
    """A test's own database: its name, oid and SQLAlchemy URL.

    The oid doesn't change if a test renames the database.
    """

    name: DatabaseName
    oid: int
    url: str


class Leak(NamedTuple):
    """A connection that a test left open: its application_name, state and last query."""

    application: str
    state: str
    query: str


class Use(NamedTuple):
    """Whether no connection was ever made to a clone, and the connections that a test left busy."""

    is_unused: bool
    leaks: Sequence[Leak] = ()


class Finding(NamedTuple):
    """Something that a *test* left behind.

    It is a *leak*, or *trouble*, which says why its database could not be reused or dropped, or the
    name of its *saved* database, or why its database was *replaced* instead of put back.
    """

    test: str
    leak: Leak | None = None
    trouble: str = ""
    saved: str = ""
    replaced: str = ""


class Shared(Struct):
    """A clone that tests use one after the other, each in a transaction that is rolled back.

    `connections` counts the connections that belong to these transactions; any others may have
    committed. `trouble` says why the clone can't be reused after the current test. *moves* is how
    often its address had led to another clone before.
    """

    clone: Clone
    moves: int = 0
    connections: int = 0
    trouble: str = ""


class Clones:
    """The clones of one template in this process.

    *ahead* is how many are kept ready, but never more than *expected*, the number of tests that
    will use one. *stock* is how many are left ready for the next run, *keep* is how many databases
    of failed tests are saved. With *puts_back*, a used clone is put back and used again where that
    is possible. *found* is called with findings, from another thread. *forget_pools* is called with
    the name of a database before its connections end.
    """

    def __init__(
        self,
        factory: CloneFactory,
        *,
        ahead: int,
        expected: int,
        stock: int,
        keep: int = 0,
        puts_back: bool = True,
        found: Callable[[Finding], None],
        forget_pools: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._factory = factory
        self._limit = ahead
        self._expected = expected
        self._stock = stock
        self._keep = keep
        self._puts_back = puts_back and factory.puts_back
        self._found = found
        self._forget_pools = forget_pools
        self._saved: dict[str, Future[Clone]] = {}
        self._ahead: deque[Future[Clone]] = deque()
        self._drops: deque[Future[list[Leak]]] = deque()
        self._shared: Shared | None = None
        self._unused: Clone | None = None
        self._last: tuple[str, Future[int]] | None = None
        self._is_lost = False
        self._fill()

    def take(self, *, at_address: bool = True, fresh: bool = False) -> Clone:
        """Return a clone that no other test gets; *at_address*, if the application has read one.

        A *fresh* one was never put back. Raises `CloneFailed`, also after `TAKE_TIMEOUT`,
        `ServerFull` or `ServerFailed`.
        """
        if at_address and not fresh and (unused := self._unused) is not None:
            self._unused = None
            # Something may have connected to it since, between the tests.
            if (use := self._factory.inspect(unused)) is not None and use.is_unused:
                return unused
            self.give_back(unused, "")
        while len(self._drops) >= MAX_DROPS:
            if not wait([self._drops.popleft()], timeout=TAKE_TIMEOUT).done:
                raise _too_slow("the databases of earlier tests are waiting to be dropped")
        was_ahead = bool(self._ahead) and not (fresh and self._puts_back)
        future = self._next() if was_ahead else self._factory.prepare(fresh=fresh)
        self._expected -= 1
        self._fill()
        try:
            try:
                clone = future.result(TAKE_TIMEOUT)
            except ServerFailed as error:
                # The server was restarting when it refused, and may be back now.
                if not (was_ahead and isinstance(error.__cause__, ConnectionRefusedError)):
                    raise
                future = self._factory.prepare()
                clone = future.result(TAKE_TIMEOUT)
            if not at_address:
                return clone
            if (name := self._factory.occupied_address) is not None:
                self._forget_pools(str(name))
            return self._factory.lead_to(clone)
        except TimeoutError as error:
            self._ahead.append(future)  # `close` takes care of it.
            raise _too_slow("PostgreSQL has not finished the clone") from error
        except Exception:
            raise
        except BaseException:
            # Ctrl-C, or a timeout of the test: the next test can have the clone.
            self._ahead.appendleft(future)
            raise

    async def put_back_on(self, connection: Any, clone: Clone) -> bool:
        """Undo what was done to *clone* on its only *connection*; return whether that worked.

        It is not done if there are clones enough for all further tests. *connection* is one of
        asyncpg, in the running loop.
        """
        return self._needs_more and await self._factory.put_back_on(connection, clone)

    def take_again(self) -> None:
        """Note that a test gets the clone of the last one, which `put_back_on` has put back."""
        self._expected -= 1

    def hand_back(self, clone: Clone) -> None:
        """Take back a clone that `put_back_on` has put back; its connection is ending."""
        if self._needs_more:
            self._ahead.appendleft(self._factory.settle(clone))
        else:
            self.give_back(clone, "")

    @property
    def _needs_more(self) -> bool:
        return self._puts_back and self._expected > len(self._ahead)

    def return_address(self, clone: Clone) -> None:
        """Lead the address to *clone* again, which several tests share."""
        if self._factory.return_address(clone):
            self._forget_pools(str(clone.name))

    def inspect(self, clone: Clone) -> Use | None:
        """Return how the clone at the address was used; None if *clone* is not there.

        The next test gets a clone that was never used.
        """
        use = self._factory.inspect(clone)
        if use is not None and use.is_unused:
            self._unused = clone
        return use

    def _next(self) -> Future[Clone]:
        """Return the clone that was put back last, or else any that is ready, or the next one."""
        # The same few clones again and again: the server's caches know them, and the others stay
        # unused, so that the next run can have them.
        ready = next((each for each in self._ahead if each.done()), self._ahead[0])
        self._ahead.remove(ready)
        return ready

    def give_back(self, clone: Clone, test: str, *, again: bool = False) -> None:
        """Drop the clone of *test* in the background; or put it back if it may be used *again*."""
        while self._drops and self._drops[0].done():
            self._drops.popleft()
        self._forget_pools(str(clone.name))
        if again and self._needs_more:
            self._ahead.appendleft(
                self._factory.put_back(clone, partial(self._report_replaced, test))
            )
            return
        future = self._factory.drop(clone)
        future.add_done_callback(partial(self._report_drop, test))
        self._drops.append(future)

    def save(self, clone: Clone, test: str) -> None:
        """Save the clone of *test*, which failed; drop the oldest one if there are too many.

        It replaces the one from an earlier attempt of the same test. A clone that can't be saved
        doesn't count; the next run sweeps it.
        """
        self._forget_pools(str(clone.name))
        future = self._factory.save(clone, test)
        future.add_done_callback(partial(self._report_not_saved, test))
        self._drop_saved(test)
        self._saved = {test: each for test, each in self._saved.items() if not _has_failed(each)}
        self._saved[test] = future
        while len(self._saved) > self._keep:
            self._drop_saved(next(iter(self._saved)))

    @property
    def has_saved(self) -> bool:
        """Whether a failed test's database is saved."""
        return bool(self._saved)

    def _drop_saved(self, test: str) -> None:
        if (saved := self._saved.pop(test, None)) is not None:
            with suppress(Exception):  # `_report_not_saved` has reported it.
                self.give_back(saved.result(TAKE_TIMEOUT), test)

    @property
    def is_shared(self) -> bool:
        """Whether there is a clone for the next test that rolls back."""
        self._check_last_test()
        return self._shared is not None

    def borrow(self) -> Shared:
        """Return the clone of the tests that roll back; a new one if a test could not."""
        self._check_last_test()
        if self._shared is not None and self._shared.moves != self._factory.moves:
            # Another clone had its address meanwhile, so its connection has ended.
            self.give_back(self._shared.clone, "")
            self._shared = None
        if self._shared is None:
            self._shared = Shared(self.take(), moves=self._factory.moves)
        return self._shared

    def restore(self, shared: Shared, test: str) -> None:
        """Take the shared clone back after *test*.

        A check in the background finds out whether the test connected to it without db_engine.
        """
        self._last = test, self._factory.visits(shared.clone)
        if shared.trouble:
            self._replace_shared(test, shared.trouble)

    def close(self, *, timeout: float) -> None:
        """End the background work, waiting *timeout* seconds; the next run sweeps the rest."""
        self._check_last_test()
        if self._shared is not None:
            self.give_back(self._shared.clone, "")
        if self._unused is not None:
            self.give_back(self._unused, "")
        self._factory.stop()
        wait(self._ahead, timeout=timeout)
        wait(self._saved.values(), timeout=timeout)
        wait(self._drops, timeout=timeout)
        for test, future in self._saved.items():
            for clone in _finished_clones([future]):
                self._found(Finding(test, saved=str(clone.name)))
        wait(
            [self._factory.leave(_finished_clones(self._ahead), stock=self._stock)], timeout=timeout
        )

    def _fill(self) -> None:
        while len(self._ahead) < min(self._limit, self._expected):
            self._ahead.append(self._factory.prepare())

    def _check_last_test(self) -> None:
        """Replace the shared clone if the last test connected to it without db_engine."""
        if self._last is None or self._shared is None:
            return
        test, visits = self._last
        self._last = None
        try:
            # A smaller number proves nothing: PostgreSQL 14 counts all connections late.
            if visits.result(TAKE_TIMEOUT) > self._shared.connections:
                self._replace_shared(
                    test, "it connected to its database without db_engine or db_sync_engine"
                )
        except Exception as error:
            why = _reason(error)
            self._replace_shared(
                test, f"whether it connected without db_engine is not known: {why}"
            )

    def _replace_shared(self, test: str, trouble: str) -> None:
        self._found(Finding(test, trouble=f"{trouble}; its database was not used again"))
        if self._shared is not None:
            self.give_back(self._shared.clone, test)
        self._shared = self._last = None

    def _report_replaced(self, test: str, why: str, leaks: Sequence[Leak]) -> None:
        for leak in leaks:
            self._found(Finding(test, leak))
        self._found(Finding(test, replaced=why))

    def _report_not_saved(self, test: str, future: Future[Clone]) -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            self._found(Finding(test, trouble=_reason(error)))

    def _report_drop(self, test: str, future: Future[list[Leak]]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is None:
            for leak in future.result():
                self._found(Finding(test, leak))
            return
        # If the server has gone, one finding is enough: the next test gets the error.
        is_lost = isinstance(error, ConnectionLost)
        if not (self._is_lost and is_lost):
            self._found(Finding(test, trouble=_reason(error)))
        self._is_lost = is_lost


def _too_slow(cause: str) -> WarmstackError:
    from pytest_warmstack.postgres.errors import CloneFailed

    return CloneFailed.too_slow(cause=cause, seconds=TAKE_TIMEOUT)


def _has_failed(future: Future[Any]) -> bool:
    return future.done() and (future.cancelled() or future.exception() is not None)


def _finished_clones(futures: Sequence[Future[Clone]] | deque[Future[Clone]]) -> list[Clone]:
    """Return the clones of those *futures* that are ready."""
    clones = []
    for future in futures:
        with suppress(WarmstackError, CancelledError, TimeoutError):
            clones.append(future.result(timeout=0))
    return clones


def _reason(error: BaseException) -> str:
    """Return what went wrong in the background, in one line."""
    if isinstance(error, WarmstackError):
        return f"{error.what} {error.why}"
    return f"its database could not be dropped: {type(error).__name__}: {error}"


class CloneFactory:
    """Makes and drops clones of *template* in the background; its methods return immediately.

    With an *address*, each clone that a test takes is there. The lock of a clone shows which
    process owns it. The main connection holds the locks; slow
    statements run on two other connections, one for copies and one for drops.
    """

    def __init__(
        self,
        databases: Databases,
        template: DatabaseName,
        project: str = "",
        run: str = "",
        address: Address | None = None,
    ) -> None:
        self._databases = databases
        self._address = address
        self.background = databases.background
        self._template = template
        self._project = project
        self._run = run
        self._main = databases.main
        self._copier = Connection(databases.endpoint)
        self._dropper = Connection(databases.endpoint)
        self._listing = asyncio.Lock()
        self._stock: deque[tuple[DatabaseName, int, Sequence[Any]]] | None = None
        self._names: deque[DatabaseName] = deque()
        self._dropped_keys: list[int] = []
        self._doubtful: list[DatabaseName] = []
        self._stopped = False
        self.puts_back = databases.may_put_back
        self._baseline: Baseline | None = None
        self._turn = asyncio.Lock()
        # What `put_back.Mark` has, of each clone.
        self._marks: dict[int, Sequence[Any]] = {}
        # The clones that were put back, and those of them that a connection was left to.
        self._used: set[int] = set()
        self._connected: set[int] = set()

    def open(self, *, many: bool) -> None:
        """Begin to connect, before a test can freeze the clock or block sockets.

        With *many* tests, the stock is not enough, so also open the connection for copies.
        """
        for connection in (self._dropper, self._copier) if many else (self._dropper,):
            # If this fails, the first statement tries again and raises the error.
            self.background.submit(connection.open)

    def stop(self) -> None:
        """Make no more clones; cancel those that are waiting."""
        self._stopped = True

    @blocking
    async def name(self, clone: Clone, test: str) -> None:
        """Note on a clone that *test* uses it, for `warmstack psql`.

        Raises `StatementRefused`, for example if the database does not exist.
        """
        await self._main.execute(sql.comment(clone.name, sql.paused(test)))

    @in_background
    @persistent
    async def visits(self, clone: Clone) -> int:
        """Return how many connections were ever made to a clone."""
        return int(await self._main.fetchval(sql.VISITS, clone.oid) or 0)

    @blocking
    async def holders(self) -> list[str]:
        """Return who holds the server's connections, beginning with the largest number."""
        return await self._holders()

    async def _holders(self) -> list[str]:
        rows = await self._main.fetch(sql.HOLDERS)
        return [
            f"{row['connections']} of {row['most']}: {row['application'] or 'unnamed'},"
            f" from {row['client']}, on {row['database']}"
            for row in rows[:12]
        ]

    # For the report of a failure

    @property
    def endpoint(self) -> Endpoint:
        """The address of the server."""
        return self._databases.endpoint

    @property
    def main(self) -> Connection:
        """The connection to the maintenance database."""
        return self._main

    def has(self, clone: Clone) -> bool:
        """Return whether *clone* is one of this factory."""
        return clone.oid in self._marks

    def xid_of(self, clone: Clone) -> int:
        """Return the first transaction that can be one of the test that has *clone*."""
        return int(self._marks[clone.oid][0])

    def own_name(self, clone: Clone) -> DatabaseName:
        """Return the name that *clone* has when it is not at the address."""
        own = self._address.own_name(clone.oid) if self._address is not None else None
        return own or clone.name

    # The address that the application has read

    @property
    def moves(self) -> int:
        """How often the address has led to another clone; 0 without one."""
        return self._address.moves if self._address is not None else 0

    @property
    def occupied_address(self) -> DatabaseName | None:
        """The address if it leads to a clone, such as that of a module."""
        address = self._address
        return address.name if address is not None and address.is_occupied else None

    def lead_to(self, clone: Clone) -> Clone:
        """Lead the address to *clone*; return the clone as it is called then.

        Raises `StatementRefused`, `ConnectionLost`.
        """
        if self._address is None:
            return clone
        self._address.enter(clone.oid, clone.name)
        return Clone(self._address.name, clone.oid, self._address.url)

    def return_address(self, clone: Clone) -> bool:
        """Lead the address to *clone*, which was there before; return whether another one was."""
        if self._address is None or not self._is_at_address(clone):
            return False
        return self._address.return_to(clone.oid)

    async def _leave_address(self, clone: Clone) -> Clone | None:
        """Return the clone under its own name; None if it could not have it, and was dropped."""
        if self._address is None or not self._is_at_address(clone):
            return clone
        own = await self._address.leave(clone.oid, lambda: self._drop_by_force(clone))
        return clone._replace(name=own) if own is not None else None

    def inspect(self, clone: Clone) -> Use | None:
        """Return how *clone* was used; None if it is not at the address."""
        if not self._is_at_address(clone):
            return None
        with suppress(WarmstackError):
            return self._inspect(clone)
        return Use(is_unused=False)

    @blocking
    async def _inspect(self, clone: Clone) -> Use:
        if await self._main.fetch(sql.SESSIONS, clone.oid):
            return Use(is_unused=False, leaks=await self._find_leaks(clone))
        # PostgreSQL 14 counts connections late.
        visits = self._main.major < 15 or await self._main.fetchval(sql.VISITS, clone.oid)
        return Use(is_unused=not visits)

    def _is_at_address(self, clone: Clone) -> bool:
        return self._address is not None and clone.name == self._address.name

    # Making clones

    def take(self) -> Clone:
        """Return what `prepare` makes, at no address. Raises its errors."""
        return self.prepare().result(TAKE_TIMEOUT)

    @in_background
    async def prepare(self, *, fresh: bool = False) -> Clone:
        """Return a clone that this process owns: a ready one from the stock, or a new one.

        A *fresh* one is always new. Raises `CloneFailed` or `ServerFull`.
        """
        return await self._prepare(fresh=fresh)

    async def _prepare(self, *, fresh: bool) -> Clone:
        try:
            return await self._claim_or_make(fresh=fresh)
        except ServerFull as error:
            # Only an open connection can query the others.
            if self._main.is_connected:
                error.looked_at = tuple(await self._holders()) or error.looked_at
            raise

    @persistent
    async def _claim_or_make(self, *, fresh: bool) -> Clone:
        return (None if fresh else await self._claim()) or await self._make()

    async def _claim(self) -> Clone | None:
        """Take a ready clone; return None if there is none, or other runs were faster."""
        async with self._listing:
            if self._stock is None:
                self._stock = deque(await self._ready())
        while self._stock:
            ready, oid, mark = self._stock.popleft()
            if not await self._main.lock(ready.lock_key):
                continue
            name = ready._replace(state=State.IN_USE)
            try:
                # Rename it first: if the next step fails, no run mistakes it for a ready clone.
                await self._main.try_to_execute(sql.rename(ready, name))
            except StatementRefused:  # Another run has used it, or someone is connected to it.
                await self._main.unlock(ready.lock_key)
            else:
                return await self._complete(name, oid, mark)
        return None

    async def _make(self) -> Clone:
        if not self._names:
            await self._reserve_names()
        name = self._names.popleft()
        try:
            with clone_errors(self._template):
                async with self._copier.turn():
                    if self._stopped:
                        raise asyncio.CancelledError
                    await self._copier.execute(self._databases.copy_statement(self._template, name))
                return await self._complete(name)
        except ConnectionLost:
            self._doubtful.append(name)  # `persistent` makes another; this one may exist too.
            raise

    async def _reserve_names(self) -> None:
        """Choose names for clones, and lock them before the clones exist.

        A sweep drops a clone in use without a lock.
        """
        names = [
            DatabaseName.new(State.IN_USE, self._template.fingerprint) for _ in range(LOCK_BATCH)
        ]
        await self._main.lock_new([name.lock_key for name in names])
        self._names.extend(names)

    async def _complete(self, name: DatabaseName, oid: int = 0, mark: Sequence[Any] = ()) -> Clone:
        await self._databases.apply_properties(self._template, name)
        if not mark:
            ((oid, *mark),) = await self._main.fetch(sql.MOMENT, str(name))
        self._marks[oid] = mark
        return Clone(name, oid, self._databases.url(name))

    async def _ready(self) -> list[tuple[DatabaseName, int, Sequence[Any]]]:
        """Return the names, oids and marks of the ready clones on the server."""
        rows = await self._main.fetch(sql.stock(self._template))
        return [
            (found, oid, mark) for name, oid, *mark in rows if (found := DatabaseName.parse(name))
        ]

    # Putting clones back

    @in_background
    async def put_back(
        self, clone: Clone, replaced: Callable[[str, Sequence[Leak]], None]
    ) -> Clone:
        """Return *clone* as if no test had used it, or else another one.

        *replaced* is called with the reason why it is another one, and with the connections that
        the test left. Raises `CloneFailed` or `ServerFull`.
        """
        leaks, own = await self._isolate(clone)
        is_first = self._baseline is None
        if own is None:
            why = "renamed or blocked its database"
        elif leaks:
            why = "left a connection open"
        elif not is_first and not (why := await self._undo(own)):
            return own
        if leaks or not is_first:
            replaced(why, leaks)
        if own is not None:
            await self._drop(own)
        new = await self._prepare(fresh=True)
        if is_first:
            # It is read where no test has been. If that fails, the next used clone tries again.
            with suppress(WarmstackError):
                await self._read_baseline(new)
        return new

    @persistent
    async def _isolate(self, clone: Clone) -> tuple[list[Leak], Clone | None]:
        """Return the connections that a test left, and the clone, which has its own name again."""
        # The application's pools were emptied, which would hide leaks: `inspect` has found them.
        leaks = [] if self._is_at_address(clone) else await self._find_leaks(clone)
        return leaks, await self._leave_address(clone)

    async def _undo(self, clone: Clone) -> str:
        """Undo what was done to *clone*; return why that can't be done, or "" if it was."""
        from pytest_warmstack.postgres.put_back import NotPutBack

        try:
            # One at a time: it takes one connection more.
            async with self._turn:
                async with Connection(self._databases.endpoint, str(clone.name)) as inside:
                    may_be_unused = clone.oid not in self._connected
                    await self._undo_on(inside, self._dropper, clone, may_be_unused=may_be_unused)
                    was_used = inside.is_connected
                if was_used:
                    await self._wait_until_unused(clone)
        except NotPutBack as error:
            return str(error)
        except (StatementRefused, ConnectionLost) as error:
            return f"could not be undone: {error.why}"
        self._connected.discard(clone.oid)
        self._used.add(clone.oid)
        return ""

    async def _undo_on(self, inside: Runs, outside: Runs, clone: Clone, **details: Any) -> None:
        """Call `put_back.put_back` for *clone*, with *details*. Raises its errors."""
        from pytest_warmstack.postgres.put_back import Mark, put_back

        assert self._baseline is not None  # noqa: S101 - read for the first clone
        mark = Mark(*self._marks[clone.oid])
        self._marks[clone.oid] = await put_back(
            inside, outside, clone.oid, self._baseline, mark, **details
        )

    async def put_back_on(self, connection: Any, clone: Clone) -> bool:
        """Do what `Clones.put_back_on` does, in the event loop of *connection*."""
        if self._baseline is None:
            return False
        from pytest_warmstack.postgres.put_back import StillConnected

        deadline = originals.monotonic() + _END_TIMEOUT
        try:
            async with asyncio.timeout(BUSY_TIMEOUT):
                while True:
                    try:
                        await self._undo_on(connection, connection, clone)
                        break
                    except StillConnected:
                        if originals.monotonic() > deadline:
                            raise
                        await sleep(0.001)
        except Exception:  # Whatever it is, `put_back` finds it too.
            return False
        self._connected.add(clone.oid)
        self._used.add(clone.oid)
        return True

    @in_background
    async def settle(self, clone: Clone) -> Clone:
        """Return *clone* when the connection to it has ended; if it doesn't end, another clone."""
        try:
            await self._wait_until_unused(clone)
        except WarmstackError:
            await self._drop(clone)
            return await self._prepare(fresh=True)
        return clone

    async def _read_baseline(self, clone: Clone) -> None:
        from pytest_warmstack.postgres.put_back import Baseline

        async with self._turn:
            if self._baseline is None:
                async with Connection(self._databases.endpoint, str(clone.name)) as inside:
                    baseline = await Baseline.read(inside, clone.oid)
                    await inside.execute("SELECT pg_stat_reset()")
                await self._wait_until_unused(clone)
                ((_, *now),) = await self._main.fetch(sql.MOMENT, str(clone.name))
                self._marks[clone.oid] = now
                self._baseline = baseline

    async def _wait_until_unused(self, clone: Clone) -> None:
        """Wait until the connection of this package to *clone* has ended.

        The next test doesn't see it, and a rename doesn't have to wait for it. Raises
        `ConnectionLost` after `BUSY_TIMEOUT`.
        """
        deadline, pause = originals.monotonic() + BUSY_TIMEOUT, 0.001
        while await self._dropper.fetch(sql.SESSIONS, clone.oid):
            if originals.monotonic() > deadline:
                cause = f"a connection to {clone.name} did not end within {BUSY_TIMEOUT:g} seconds"
                raise ConnectionLost.lost(title=TITLE, statement=sql.SESSIONS, cause=cause)
            await sleep(pause)
            pause = min(pause * 2, 0.05)

    # Dropping and saving clones

    @in_background
    async def drop(self, clone: Clone) -> list[Leak]:
        """Drop a clone, whatever its test left in it; return the connections that were left.

        Raises `CloneFailed`.
        """
        leaks, own = await self._isolate(clone)
        if own is not None:
            await self._drop(own)
        return leaks

    @persistent
    async def _drop(self, clone: Clone) -> None:
        try:
            await self._dropper.try_to_execute(sql.drop(str(clone.name), missing_ok=False))
        except (StatementRefused, ConnectionLost) as error:
            if _is_lost(error):
                raise
            # Even if the name does not exist: a test may have renamed the database.
            await self._drop_by_force(clone)
        self._marks.pop(clone.oid, None)
        self._dropped_keys.append(clone.name.lock_key)
        if len(self._dropped_keys) >= LOCK_BATCH:
            keys, self._dropped_keys = self._dropped_keys, []
            await self._main.unlock(*keys)

    async def _find_leaks(self, clone: Clone) -> list[Leak]:
        """Return the connections that remain open after `LEAK_GRACE`; the drop ends them."""
        if self._databases.pooled:
            return []  # The pooler keeps connections open after the test has closed them.
        at_address = self._is_at_address(clone)
        query = sql.BUSY_SESSIONS if at_address else sql.SESSIONS
        deadline = originals.monotonic() + LEAK_GRACE
        pause = 0.003
        if not at_address:  # By then most have ended, and one query is enough.
            await sleep(pause)
        while rows := await self._dropper.fetch(query, clone.oid):
            if originals.monotonic() > deadline:
                break
            await sleep(pause)
            pause = min(pause * 2, 0.05)
        leaks = [Leak(*row) for row in rows]
        return [leak for leak in leaks if not leak.application.startswith(APPLICATION)]

    @in_background
    @persistent
    async def save(self, clone: Clone, test: str) -> Clone:
        """Rename a clone to save it for *test*, and end the connections to it.

        Raises `CloneFailed`.
        """
        named = await self._leave_address(clone)
        if named is None:
            from pytest_warmstack.postgres.errors import CloneFailed

            cause = "PostgreSQL refused to rename it"
            raise CloneFailed.not_saved(name=str(clone.name), cause=cause)
        clone = named
        name = clone.name._replace(state=State.SAVED)
        note = sql.note(name, used=self._databases.now(), project=self._project)
        try:
            async with self._dropper.turn():
                await self._dropper.fetch(sql.END_SESSIONS, clone.oid)
                await self._dropper.execute(
                    sql.rename(clone.name, name),
                    f"{sql.comment(name, sql.saved(test, self._run))}; {note}",
                )
        except StatementRefused as error:
            from pytest_warmstack.postgres.errors import CloneFailed

            # A test may have renamed it.
            await self._drop_by_force(clone)
            raise CloneFailed.not_saved(name=str(clone.name), cause=error.why) from error
        # Keep its lock, so that no sweep drops it while this process runs.
        return Clone(name, clone.oid, self._databases.url(name))

    @blocking
    async def promote(self, clone: Clone, name: DatabaseName, comment: str) -> None:
        """Rename a clone to *name*, in place of the database that has this name now.

        Ends the connections to that database. Raises `CloneFailed` if it can't be dropped.
        """
        if (oid := await self._dropper.fetchval(sql.OID, str(name))) is not None:
            await self._drop_by_force(Clone(name, oid, ""))
        await self._dropper.execute(f"{sql.rename(clone.name, name)}; {sql.comment(name, comment)}")

    async def _drop_by_force(self, clone: Clone) -> None:
        """Drop a clone that was renamed or sealed, or that more than connections block."""
        name = str(clone.name)

        async def attempt() -> None:
            nonlocal name
            while (found := await self._dropper.fetchval(sql.NAME_OF, clone.oid)) is not None:
                name = found
                await self._unblock_drop(name, clone.oid)
                async with self._dropper.turn():
                    await drop_sealed(self._dropper, name)

        try:
            await retry(
                attempt, lambda error: not _is_lost(error), pause=0.05, seconds=BUSY_TIMEOUT
            )
        except (StatementRefused, ConnectionLost) as error:
            if _is_lost(error):
                raise
            from pytest_warmstack.postgres.errors import CloneFailed

            raise CloneFailed.not_dropped(
                name=name, seconds=BUSY_TIMEOUT, cause=error.why
            ) from error

    async def _unblock_drop(self, name: str, oid: int) -> None:
        """End what blocks the drop of a database that has no connections.

        These are active replication slots, prepared transactions and subscriptions (PostgreSQL's
        documentation, "DROP DATABASE"). The last two can only be ended from inside the database.
        """
        await self._dropper.fetch(sql.END_REPLICATION, oid)
        prepared = await self._dropper.fetch(sql.PREPARED_TRANSACTIONS, name)
        subscriptions = await self._dropper.fetch(sql.SUBSCRIPTIONS, oid)
        if not prepared and not subscriptions:
            return
        await self._dropper.try_to_execute(
            f"ALTER DATABASE {sql.quote(name)} ALLOW_CONNECTIONS true CONNECTION LIMIT -1"
        )
        async with Connection(self._databases.endpoint, name) as inside:
            for row in prepared:
                await inside.try_to_execute(f"ROLLBACK PREPARED {sql.literal(row['gid'])}")
            for row in subscriptions:
                subscription = f"SUBSCRIPTION {sql.quote(row['subname'])}"
                await inside.try_to_execute(f"ALTER {subscription} DISABLE")
                # Keep the slot on the publisher: other subscribers may use it.
                await inside.try_to_execute(f"ALTER {subscription} SET (slot_name = NONE)")
                await inside.try_to_execute(f"DROP {subscription}")

    # Between runs

    @in_background
    async def sweep(self, retention: Retention, *, notes: Sequence[str] = ()) -> list[DatabaseName]:
        """Drop the databases that *retention* doesn't keep and no process has locked.

        First execute *notes*, the statements that note which templates this run uses. The sweep
        doesn't use the main connection, so it respects the locks of this process too; most runs
        find nothing else, and need not query the locks of others.
        """
        for note in notes:
            # Another run may write the same note at the same time; both are right.
            with suppress(StatementRefused):
                await self._dropper.execute(note)
        databases = databases_of(await self._dropper.fetch(sql.DATABASES))
        doomed = [
            each for each in retention.doomed(databases) if not self._main.holds(each.lock_key)
        ]
        return await drop_unlocked(self._dropper, doomed)

    @in_background
    async def leave(self, unused: Sequence[Clone], *, stock: int) -> None:
        """Leave *stock* clones ready, some of them *unused*, and close the connections.

        PostgreSQL completes missing clones after this method returns; surplus clones are dropped.
        """
        for name in self._doubtful:
            await self._dropper.execute(sql.drop(str(name)))
        missing = await self._restock(unused, stock) if stock else 0
        # An open connection comes first: often one clone is missing.
        connections = sorted(
            [self._copier, self._dropper], key=lambda each: each.is_connected, reverse=True
        )
        connections += [
            Connection(self._databases.endpoint) for _ in range(missing - len(connections))
        ]
        for connection in connections[:missing]:
            name = DatabaseName.new(State.READY, self._template.fingerprint)
            await connection.post(self._databases.copy_statement(self._template, name))
        for connection in connections:
            connection.end()

    async def _restock(self, unused: Sequence[Clone], stock: int) -> int:
        """Add unused clones to the stock until it is full; return how many are missing."""
        # One worker at a time: several that end together would fill the stock several times.
        gate = DatabaseName(State.READY, self._template.fingerprint, "gate")
        missing = stock - len(await self._ready()) if await self._main.lock(gate.lock_key) else 0
        for clone in unused:
            if missing > 0 and clone.oid not in self._used:
                ready = clone.name._replace(state=State.READY)
                await self._main.execute(sql.rename(clone.name, ready))
                missing -= 1
            else:
                await self._dropper.execute(sql.drop(str(clone.name)))
        return max(missing, 0)


def _is_lost(error: WarmstackError) -> bool:
    """Return whether the connection was lost, rather than waiting for a slow answer."""
    return isinstance(error, ConnectionLost) and not error.timed_out
