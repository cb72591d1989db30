"""The database name that the application has read: it leads to the clone of the current test."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from pytest_warmstack import originals
from pytest_warmstack.background import sleep
from pytest_warmstack.postgres import DatabaseName, sql
from pytest_warmstack.postgres.connections import BUSY_TIMEOUT, StatementRefused
from pytest_warmstack.postgres.databases import Databases, blocking

_MAX_PAUSE: Final = 0.02
"""Seconds between two checks whether the connections to a clone have ended."""


class Address:
    """Gives the database name *name* to one clone after the other.

    A clone that has the name when another one gets it has it again afterwards, as the clone of a
    module has it again after a test with a clone of its own.
    """

    def __init__(self, name: DatabaseName, databases: Databases) -> None:
        self.name = name
        self.url = databases.url(name)
        self.background = databases.background
        self._main = databases.main
        self._turn = asyncio.Lock()
        # The own names of the clones by oid; the last one has the name.
        self._clones: dict[int, DatabaseName] = {}
        self.moves = 0

    @property
    def is_occupied(self) -> bool:
        """Whether a clone has the name."""
        return bool(self._clones)

    def own_name(self, oid: int) -> DatabaseName | None:
        """Return the own name of a clone that has the name, or has had it before another one."""
        return self._clones.get(oid)

    @blocking
    async def enter(self, oid: int, own: DatabaseName) -> None:
        """Give the name to the clone *oid*, which is called *own*."""
        async with self._turn:
            if not self.moves:
                # Until this process ends, no sweep drops what has the name.
                await self._main.lock(self.name.lock_key)
            if self._clones:
                await self._move_away()
            await self._main.execute(sql.rename(own, self.name))
            self._clones[oid] = own
            self.moves += 1

    @blocking
    async def return_to(self, oid: int) -> bool:
        """Give the name to a clone that has had it before; return whether another one had it."""
        async with self._turn:
            if oid not in self._clones or oid == next(reversed(self._clones)):
                return False
            await self._move_away()
            own = self._clones.pop(oid)
            await self._main.execute(sql.rename(own, self.name))
            self._clones[oid] = own
            self.moves += 1
            return True

    async def leave(self, oid: int, drop: Callable[[], Awaitable[None]]) -> DatabaseName | None:
        """End the connections to the clone *oid*, and return its own name, which it has again.

        If PostgreSQL refuses to rename it, *drop* it, and return None.
        """
        async with self._turn:
            if oid not in self._clones:
                return None
            own: DatabaseName | None = self._clones[oid]
            if oid == next(reversed(self._clones)):
                try:
                    await self._move_away()
                except StatementRefused:  # A test may have renamed it, or prepared a transaction.
                    await drop()
                    own = None
                del self._clones[oid]
                if self._clones:
                    outer = next(reversed(self._clones.values()))
                    await self._main.execute(sql.rename(outer, self.name))
                self.moves += 1
            else:
                del self._clones[oid]
            return own

    async def _move_away(self) -> None:
        """End the connections to the clone that has the name, and give it its own name again.

        Meanwhile no one can connect: a process may try to as soon as its connection is lost.
        """
        oid, own = next(reversed(self._clones.items()))
        await self._main.execute(sql.allow_connections(self.name, allowed=False))
        deadline, pause = originals.monotonic() + BUSY_TIMEOUT, 0.001
        # Waiting inside PostgreSQL takes at least 100 ms (pg_wait_until_termination in its
        # signalfuncs.c), and so does renaming a database that has a connection.
        while await self._main.fetch(sql.TERMINATE, oid) and originals.monotonic() < deadline:
            await sleep(pause)
            pause = min(pause * 2, _MAX_PAUSE)
        # Sent together, they are one transaction.
        await self._main.execute(
            f"{sql.rename(self.name, own)}; {sql.allow_connections(own, allowed=True)}"
        )
