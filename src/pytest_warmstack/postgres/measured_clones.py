"""Clones that measure what each test's database costs, for a run with `--warmstack-report`.

Each measurement is a step `spent` of the ledger: *on* is what took the time, *test* whose database
it was for. A run without the option doesn't import this module.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from pytest_warmstack import originals
from pytest_warmstack.postgres.clones import Clone, CloneFactory, Clones, Leak
from pytest_warmstack.postgres.connections import Connection
from pytest_warmstack.postgres.put_back import Runs
from pytest_warmstack.report import Step

Note = Callable[[Step], None]

_OWNER: Final[ContextVar[str | None]] = ContextVar("warmstack_owner", default=None)
"""The test whose used clone the current task takes care of."""


_MEASURED: Final = {"CREATE DATABASE ": "copy", "DROP DATABASE ": "drop"}
"""The names of measured statements, by their beginnings."""


def _current_test() -> str:
    # pytest sets this to the test's id and phase (its documentation, "Examples").
    return os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" (")[0]


class MeasuredCloneFactory(CloneFactory):
    """A factory that *note*s the seconds of each copy, drop and undoing.

    `owners` has the test of each clone, by the clone's oid.
    """

    def __init__(self, note: Note, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.owners: dict[int, str] = {}
        self._note = note
        self._copier = _MeasuredConnection(self, self._databases.endpoint)
        self._dropper = _MeasuredConnection(self, self._databases.endpoint)
        self._note(Step("clones", 0.0, {"puts_back": "yes" if self.puts_back else ""}))

    @contextmanager
    def measured(self, on: str, test: str, **facts: str) -> Iterator[dict[str, str]]:
        """Measure the `with` block, unless it fails; it can add facts to those that this yields."""
        facts |= {"on": on, "test": test}
        begin = originals.monotonic()
        yield facts
        self._note(Step("spent", originals.monotonic() - begin, facts))

    async def _isolate(self, clone: Clone) -> tuple[list[Leak], Clone | None]:
        test = self.owners.get(clone.oid, "")
        _OWNER.set(test)
        with self.measured("connections", test):
            return await super()._isolate(clone)

    async def _undo_on(self, inside: Runs, outside: Runs, clone: Clone, **details: Any) -> None:
        touched: list[str] = []
        how = "at_once" if inside is outside else "later"
        with self.measured(f"put_back_{how}", self.owners.get(clone.oid, "")) as facts:
            await super()._undo_on(inside, outside, clone, touched=touched, **details)
            facts["tables"] = ", ".join(touched)

    async def _read_baseline(self, clone: Clone) -> None:
        await super()._read_baseline(clone)
        if self._baseline is not None:
            self._note(Step("clones", 0.0, {"tables": str(len(self._baseline.tables))}))


class _MeasuredConnection(Connection):
    """A connection that measures the statements that copy or drop clones, without its queue."""

    def __init__(self, factory: MeasuredCloneFactory, *args: Any) -> None:
        super().__init__(*args)
        self._factory = factory

    async def try_to_execute(self, statement: str, seconds: float = 0.0) -> None:
        owner = _OWNER.get()
        on = next((on for begin, on in _MEASURED.items() if statement.startswith(begin)), None)
        # Without an owner, a drop is part of the sweep of what dead runs left.
        if on is None or (on == "drop" and owner is None):
            await super().try_to_execute(statement, seconds)
            return
        async with self.turn():
            with self._factory.measured(on, owner or ""):
                await super().try_to_execute(statement, seconds)


class MeasuredClones(Clones):
    """Clones that note which test has which clone, and how long each test waited for its own."""

    _factory: MeasuredCloneFactory

    def take(self, *, at_address: bool = True, fresh: bool = False) -> Clone:
        """Do what `Clones.take` does, and measure it."""
        test = _current_test()
        with self._factory.measured("clone", test):
            clone = super().take(at_address=at_address, fresh=fresh)
        self._factory.owners[clone.oid] = test
        return clone

    def take_again(self) -> None:
        """Do what `Clones.take_again` does, and count it."""
        with self._factory.measured("again", _current_test()):
            super().take_again()

    async def put_back_on(self, connection: Any, clone: Clone) -> bool:
        """Do what `Clones.put_back_on` does, for the current test."""
        self._factory.owners[clone.oid] = _current_test()
        return await super().put_back_on(connection, clone)

    def give_back(self, clone: Clone, test: str, *, again: bool = False) -> None:
        """Do what `Clones.give_back` does, for *test*."""
        self._factory.owners[clone.oid] = test or self._factory.owners.get(clone.oid, "")
        super().give_back(clone, test, again=again)
