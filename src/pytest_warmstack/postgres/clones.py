"""A database for every test: cloned from the template, dropped when the test is done."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import NamedTuple, Protocol

from pytest_warmstack.identity import DatabaseName


class Clone(NamedTuple):
    """A test's own database, and its SQLAlchemy URL."""

    name: DatabaseName
    url: str


class Maker(Protocol):
    """What makes and drops databases; this room knows no SQL."""

    def clone(self, template: DatabaseName) -> DatabaseName:
        """Return a new clone that this process owns."""

    def drop_later(self, name: DatabaseName) -> Future[None]:
        """Drop a database in the background."""


class Clones:
    """The clones of one template that this process uses.

    A test waits for its clone to be made, never for one to be dropped.
    """

    def __init__(
        self, maker: Maker, template: DatabaseName, url: Callable[[DatabaseName], str]
    ) -> None:
        self._maker = maker
        self._template = template
        self._url = url
        self._going: set[Future[None]] = set()

    def take(self) -> Clone:
        """Return a clone that no other test has, had or will have."""
        name = self._maker.clone(self._template)
        return Clone(name, self._url(name))

    def give_back(self, clone: Clone) -> None:
        """Have the clone dropped, in the background."""
        self._going = {future for future in self._going if not future.done()}
        self._going.add(self._maker.drop_later(clone.name))

    def close(self, *, timeout: float) -> None:
        """Wait up to *timeout* seconds for the drops to end; the next run sweeps the rest."""
        wait(self._going, timeout=timeout)
