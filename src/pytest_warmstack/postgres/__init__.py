"""Everything inside a running PostgreSQL; this module has names and addresses of databases."""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum
from typing import NamedTuple, Self
from urllib.parse import unquote, urlsplit

from pytest_warmstack import originals
from pytest_warmstack.servers.identity import fingerprint


class State(StrEnum):
    """The purpose of a database; the letter or word is part of its name."""

    BUILDING = "b"
    TEMPLATE = "t"
    READY = "r"
    IN_USE = "u"
    SAVED = "k"
    DEVELOPMENT = "dev"


class DatabaseName(NamedTuple):
    """The name of a database of this package: its state, its template's fingerprint, its serial.

    A template has no serial. The process that holds the advisory lock `lock_key` owns the
    database; the key does not change with the state. A development database has the fingerprint of
    its project and, as its serial, that of its Alembic configuration, so its name never changes.
    """

    state: State
    fingerprint: str
    serial: str = ""

    @classmethod
    def new(cls, state: State, fingerprint: str) -> Self:
        """Return a new, unique name."""
        return cls(state, fingerprint, originals.urandom(5).hex())

    @classmethod
    def development(cls, project: str, configuration: str = "") -> Self:
        """Return the name of the development database of the project in the folder *project*."""
        return cls(State.DEVELOPMENT, fingerprint(project), fingerprint(configuration)[:10])

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the name in *text*, or None if it isn't a name of this package."""
        match = re.fullmatch(r"warmstack_([btruk]|dev)_([0-9a-f]{16})(?:_([0-9a-f]{10}))?", text)
        if match is None or (match[1] == State.TEMPLATE) != (match[3] is None):
            return None
        return cls(State(match[1]), match[2], match[3] or "")

    def __str__(self) -> str:
        serial = f"_{self.serial}" if self.serial else ""
        return f"warmstack_{self.state}_{self.fingerprint}{serial}"

    @property
    def prefix(self) -> str:
        """What all names with this state and fingerprint begin with."""
        return f"warmstack_{self.state}_{self.fingerprint}_"

    @property
    def lock_key(self) -> int:
        """The key for pg_advisory_lock, a signed 64-bit number."""
        digest = hashlib.blake2b(f"{self.fingerprint}_{self.serial}".encode(), digest_size=8)
        return int.from_bytes(digest.digest(), "big", signed=True)


class Database(NamedTuple):
    """A database of this package, as the server lists it.

    A *sealed* database is a complete template. *used* is the time of its last use in seconds since
    the epoch, *project* is the project that used it, and *unused* is the number of seconds since
    then, by the server's clock. *visits* counts the connections that were ever made to it. A long
    *comment* may be cut off.
    """

    name: DatabaseName
    sealed: bool
    used: float = 0.0
    comment: str = ""
    visits: int = 0
    project: str = ""
    unused: float = 0.0


class DatabaseAddress(NamedTuple):
    """The parts of a database's URL, for code that doesn't take a URL."""

    host: str
    port: int
    user: str
    password: str
    name: str

    @classmethod
    def parse(cls, url: str) -> Self:
        """Return the parts of *url*.

        >>> DatabaseAddress.parse("postgresql+asyncpg://ci:p%40ss@[::1]:5433/shop")
        DatabaseAddress(host='::1', port=5433, user='ci', password='***', name='shop')
        """
        parts = urlsplit(url)
        return cls(
            host=unquote(parts.hostname or ""),
            port=parts.port or 5432,
            user=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            name=unquote(parts.path.removeprefix("/")),
        )

    def __repr__(self) -> str:
        place = f"host={self.host!r}, port={self.port}"
        return f"DatabaseAddress({place}, user={self.user!r}, password='***', name={self.name!r})"
