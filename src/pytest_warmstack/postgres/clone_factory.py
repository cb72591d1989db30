"""Makes clones of one template and drops them, in the background, on connections of its own.

Who owns a clone is told by its advisory lock, which hangs on the process's maintenance connection;
the long statements run on two others, one that makes and one that drops.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Final

from pytest_warmstack import originals
from pytest_warmstack.background import sleep
from pytest_warmstack.postgres import Database, DatabaseName, State, sql
from pytest_warmstack.postgres.admin import Admin
from pytest_warmstack.postgres.clones import Clone, Leak
from pytest_warmstack.postgres.connections import (
    APPLICATION,
    BUSY,
    Maintenance,
    connect,
    persistent,
    retried,
)
from pytest_warmstack.postgres.errors import CloneFailed, StatementRefused
from pytest_warmstack.postgres.sweep import sweep, unsealed_and_dropped
from pytest_warmstack.servers.errors import ConnectionLost, ServerFull

LEAK_GRACE: Final = 0.5
"""Seconds that a connection may take to end after its test; one that is still there is a leak.

A backend needs a millisecond or two for it, and on a machine with more to do than it can, longer.
"""

BATCH: Final = 16
"""How many locks are taken at once, and how many are given up: each call is work for a test."""


class CloneFactory:
    """The clones of *template* on one server, as SQL.

    Every method returns at once; what it does goes on in the background.
    """

    def __init__(
        self, admin: Admin, template: DatabaseName, project: str = "", run: str = ""
    ) -> None:
        self._admin = admin
        self._background = admin.background
        self._template = template
        self._project = project
        self._run = run
        self._main = admin.main
        self._maker = Maintenance(admin.endpoint)
        self._drop_connection = Maintenance(admin.endpoint)
        self._dress = admin.dress(template)
        self._listing = asyncio.Lock()
        self._stock: deque[DatabaseName] | None = None
        self._names: deque[DatabaseName] = deque()
        self._gone: list[int] = []
        self._doubtful: list[DatabaseName] = []
        self._leaving = False

    def open(self, *, many: bool) -> None:
        """Begin to open the connections that will be needed, before a test changes its world.

        With *many* tests the clones that stand ready are not enough, and others have to be made.
        """
        for each in [self._drop_connection, *([self._maker] if many else [])]:
            # If this fails, the first statement tries again, and raises.
            self._background.submit(each.connected)

    def prepare(self) -> Future[Clone]:
        """Return a clone that this process owns: one that stands ready, else a new one.

        The future raises `CloneFailed` with PostgreSQL's own words, or `ServerFull`.
        """
        return self._background.submit(self._prepare)

    def drop(self, clone: Clone) -> Future[list[Leak]]:
        """Drop a clone, whatever its test left; the future gives the connections among it.

        The future raises `CloneFailed` when it could not be dropped.
        """
        return self._background.submit(self._drop, clone)

    def keep(self, clone: Clone, test: str) -> Future[Clone]:
        """Give a clone the name of one that is kept; whoever is connected to it is cut off.

        The future raises `CloneFailed` when PostgreSQL refuses.
        """
        return self._background.submit(self._keep, clone, test)

    def name(self, clone: Clone, test: str) -> None:
        """Note on a clone which *test* uses it, for whoever looks for it from outside.

        Raises `StatementRefused` when PostgreSQL refuses, or has no such database any more.
        """
        comment = sql.comment(clone.name, sql.paused(test))
        self._background.call(self._main.execute, comment)

    def visits(self, clone: Clone) -> Future[int]:
        """Return how many connections there have been to a clone, since it was made."""
        return self._background.submit(self._visits, clone)

    def sweep(
        self,
        doomed: Callable[[list[Database]], list[DatabaseName]],
        *,
        notes: Sequence[str] = (),
    ) -> Future[list[DatabaseName]]:
        """Drop what *doomed* picks of our databases and nobody holds a lock on.

        Before, execute *notes*, the statements that note which templates were just used. The locks
        are tried on the second connection, so that those of this process count too.
        """
        return self._background.submit(sweep, self._drop_connection, doomed, notes)

    def stop(self) -> None:
        """Begin to make no more clones; those that were asked for are cancelled."""
        self._leaving = True

    def leave(self, unused: Sequence[Clone], *, stock: int) -> Future[None]:
        """Put clones that no test had to the stock, so that *stock* stand ready; end all else.

        What is missing is sent and not waited for. What is too much is dropped.
        """
        return self._background.submit(self._leave, unused, stock)

    def holders(self) -> list[str]:
        """Return who holds the connections of the server, most first."""
        return self._background.call(self._holders)

    # What follows runs on the background loop.

    async def _prepare(self) -> Clone:
        try:
            return await self._claimed_or_made()
        except ServerFull as error:
            # Without this connection there is none to ask by.
            holders = await self._holders() if self._main.is_connected else []
            raise ServerFull.connections(cause=error.why, seconds=BUSY, holders=holders) from error

    @persistent
    async def _claimed_or_made(self) -> Clone:
        return await self._claimed() or await self._made()

    async def _claimed(self) -> Clone | None:
        """Take a clone that stands ready; None when there is none, or none any more."""
        async with self._listing:
            if self._stock is None:
                rows = await self._main.fetch(sql.stock(self._template))
                names = (DatabaseName.parse(row["datname"]) for row in rows)
                self._stock = deque(name for name in names if name)
        while self._stock:
            ready = self._stock.popleft()
            key = ready.lock_key
            if not await self._main.lock(key):
                continue
            name = ready._replace(state=State.IN_USE)
            try:
                # The name first: whatever comes next, nobody takes this one for an unused one.
                async with self._main.turn() as connection:
                    await connection.execute(sql.rename(ready, name))
            except (
                StatementRefused
            ):  # Another run had it and is done with it, or somebody is looking at it.
                await self._main.unlock(key)
                continue
            return await self._dressed(name)
        return None

    async def _made(self) -> Clone:
        if not self._names:
            await self._name_some()
        name = self._names.popleft()
        try:
            async with self._maker.turn() as connection:
                if self._leaving:
                    raise asyncio.CancelledError
                await retried(connection, self._admin.copying(self._template, name))
            return await self._dressed(name)
        except ConnectionLost:
            self._doubtful.append(name)  # Another one is made; this one may be there as well.
            raise
        except StatementRefused as error:
            raise CloneFailed.refused(
                template=str(self._template), cause=error.why, looked_at=error.looked_at
            ) from error

    async def _name_some(self) -> None:
        """Choose names for clones, and take their locks.

        The lock comes first: a database in use without one belongs to nobody, and is swept.
        """
        names = [DatabaseName.new(State.IN_USE, self._template.fingerprint) for _ in range(BATCH)]
        await self._main.lock_new([name.lock_key for name in names])
        self._names.extend(names)

    async def _dressed(self, name: DatabaseName) -> Clone:
        """Give a clone the template's own settings and grants, which are not copied."""
        if self._dress:
            await self._main.execute(sql.dressing(self._dress, name))
        oid = await self._main.fetchval(sql.OID, str(name))
        return Clone(name, oid, self._admin.url(name))

    @persistent
    async def _drop(self, clone: Clone) -> list[Leak]:
        leaks = await self._left(clone)
        try:
            async with self._drop_connection.turn() as janitor:
                await janitor.execute(sql.drop(str(clone.name), missing_ok=False))
        except (StatementRefused, ConnectionLost) as error:
            if isinstance(error, ConnectionLost) and not error.timed_out:
                raise
            # Also when it is not there: then it may be, under another name.
            await self._drop_by_force(clone)
        self._gone.append(clone.name.lock_key)
        if len(self._gone) >= BATCH:
            keys, self._gone = self._gone, []
            await self._main.unlock(*keys)
        return leaks

    @persistent
    async def _keep(self, clone: Clone, test: str) -> Clone:
        name = clone.name._replace(state=State.SAVED)
        note = sql.note(name, used=self._admin.now(), project=self._project)
        try:
            async with self._drop_connection.turn() as janitor:
                await janitor.fetch(sql.END_ALL, clone.oid)
                await retried(janitor, sql.rename(clone.name, name))
                await janitor.execute(f"{sql.comment(name, sql.kept(test, self._run))}; {note}")
        except StatementRefused as error:
            # It may be there, under a name that the test has given it.
            await self._drop_by_force(clone)
            raise CloneFailed.not_kept(name=str(clone.name), cause=error.why) from error
        # Its lock stays: until this process ends, no sweep drops it.
        return Clone(name, clone.oid, self._admin.url(name))

    async def _left(self, clone: Clone) -> list[Leak]:
        """Return the connections that do not end by themselves; the drop will end them."""
        if self._admin.pooled:
            return []  # The pooler's: whether a test has closed its own can't be seen from here.
        deadline = originals.monotonic() + LEAK_GRACE
        # Most have ended by then, and one look is enough.
        await sleep(pause := 0.003)
        while rows := await self._drop_connection.fetch(sql.SESSIONS, clone.oid):
            if originals.monotonic() > deadline:
                break
            await sleep(pause)
            pause = min(pause * 2, 0.05)
        return [
            Leak(row["application_name"], row["state"], row["query"])
            for row in rows
            if not row["application_name"].startswith(APPLICATION)
        ]

    async def _drop_by_force(self, clone: Clone) -> None:
        """Drop a clone that resists: renamed, sealed, or held by what no connection is."""
        deadline = originals.monotonic() + BUSY
        query = "SELECT datname FROM pg_database WHERE oid = $1"
        while (name := await self._drop_connection.fetchval(query, clone.oid)) is not None:
            try:
                await self._cleared(name, clone.oid)
                async with self._drop_connection.turn() as janitor:
                    await unsealed_and_dropped(janitor, name)
            except (StatementRefused, ConnectionLost) as error:
                if isinstance(error, ConnectionLost) and not error.timed_out:
                    raise
                if originals.monotonic() > deadline:
                    raise CloneFailed.kept(name=name, seconds=BUSY, cause=error.why) from error
                await sleep(0.05)

    async def _cleared(self, name: str, oid: int) -> None:
        """End what keeps a database from being dropped although nobody is connected to it.

        These are active replication slots, prepared transactions and subscriptions (PostgreSQL's
        documentation, "DROP DATABASE"); the latter two can be ended from inside alone.
        """
        async with self._drop_connection.turn() as janitor:
            await janitor.execute(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots"
                f" WHERE datoid = {oid} AND active"
            )
            prepared = await janitor.fetch(
                f"SELECT gid FROM pg_prepared_xacts WHERE database = {sql.literal(name)}"
            )
            subscribed = await janitor.fetchval(
                f"SELECT count(*) FROM pg_subscription WHERE subdbid = {oid}"
            )
            if not prepared and not subscribed:
                return
            await janitor.execute(
                f"ALTER DATABASE {sql.quote(name)} ALLOW_CONNECTIONS true CONNECTION LIMIT -1"
            )
        inside = await connect(self._admin.endpoint, name)
        try:
            for row in prepared:
                await inside.execute(f"ROLLBACK PREPARED {sql.literal(row['gid'])}")
            if subscribed:
                names = await inside.fetch(
                    f"SELECT subname FROM pg_subscription WHERE subdbid = {oid}"
                )
                for row in names:
                    quoted = sql.quote(row["subname"])
                    await inside.execute(f"ALTER SUBSCRIPTION {quoted} DISABLE")
                    # The slot on the other side is not ours to drop.
                    await inside.execute(f"ALTER SUBSCRIPTION {quoted} SET (slot_name = NONE)")
                    await inside.execute(f"DROP SUBSCRIPTION {quoted}")
        finally:
            await inside.close()

    @persistent
    async def _visits(self, clone: Clone) -> int:
        query = "SELECT sessions FROM pg_stat_database WHERE datid = $1"
        return int(await self._main.fetchval(query, clone.oid) or 0)

    async def _leave(self, unused: Sequence[Clone], stock: int) -> None:
        for name in self._doubtful:
            await self._drop_connection.execute(sql.drop(str(name)))
        missing = await self._stocked(unused, stock) if stock else 0
        posts = [self._maker, self._drop_connection]
        posts += [Maintenance(self._admin.endpoint) for _ in range(missing - len(posts))]
        for post, _ in zip(posts, range(missing), strict=False):
            name = DatabaseName.new(State.READY, self._template.fingerprint)
            await post.post(self._admin.copying(self._template, name))
        for post in posts:
            await post.close()

    async def _stocked(self, unused: Sequence[Clone], stock: int) -> int:
        """Put unused clones to the stock as far as it has room; return how many are missing."""
        # One at a time, else each of several workers that end at once would fill it.
        gate = DatabaseName(State.READY, self._template.fingerprint, "gate")
        turn = await self._main.lock(gate.lock_key)
        rows = await self._main.fetch(sql.stock(self._template)) if turn else []
        missing = stock - len(rows) if turn else 0
        for clone in unused:
            if missing > 0:
                ready = clone.name._replace(state=State.READY)
                await self._main.execute(sql.rename(clone.name, ready))
                missing -= 1
            else:
                await self._drop_connection.execute(sql.drop(str(clone.name)))
        return max(missing, 0)

    async def _holders(self) -> list[str]:
        rows = await self._main.fetch(sql.HOLDERS)
        return [
            f"{row['connections']} of {row['most']}: {row['application'] or 'unnamed'},"
            f" from {row['client']}, on {row['database']}"
            for row in rows[:12]
        ]
