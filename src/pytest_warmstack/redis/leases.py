"""A Redis database of its own for every process, held by a living connection.

The lease is a key in database 0 that holds the id of the holder's connection; when that
connection is gone, the lease is free. The connection also bears the database's number in its
name, so that a test's FLUSHALL, which removes the key, does not give the database away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pytest_warmstack.errors import LeaseFailed, ServerFailed
from pytest_warmstack.redis.admin import NAME, Admin

_CLAIM: Final = """
local holder = redis.call('GET', KEYS[1])
if (holder or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""
"""Take a lease if its holder is still the one that was found to be gone (or there is none)."""


@dataclass(frozen=True)
class Lease:
    """The database with the number *index*, and its URL."""

    index: int
    url: str


class Leases:
    """The lease of this process.

    *connect* makes a new connection when the first one was lost: a test may kill every client.
    """

    def __init__(self, admin: Admin, connect: Callable[[], Admin]) -> None:
        self._admin = admin
        self._connect = connect
        self._lease: Lease | None = None

    def acquire(self) -> Lease:
        """Return the lease, with its database empty.

        Raises `LeaseFailed` when every database is leased by a living process.
        """
        if self._lease is None:
            self._lease = self._taken()
        try:
            self._flush()
        except ServerFailed:
            # The connection is gone, and the lease with it. Once more, on a new one.
            self._admin = self._connect()
            self._lease = self._taken(preferred=self._lease.index)
            self._flush()
        return self._lease

    def close(self) -> None:
        """End the connection, and with it the lease."""
        self._admin.close()

    def _flush(self) -> None:
        # SYNC: an asynchronous flush could remove what the test has begun to write.
        self._admin.command("FLUSHDB", "SYNC")

    def _taken(self, preferred: int = 1) -> Lease:
        """Take a free database and select it."""
        admin = self._admin
        databases = int(admin.command("CONFIG", "GET", "databases")[1])
        own = str(admin.command("CLIENT", "ID"))
        indexes = [preferred, *(each for each in range(1, databases) if each != preferred)]
        holders = admin.command("MGET", *(_key(index) for index in indexes))
        clients = admin.clients()
        for index, holder in zip(indexes, holders, strict=True):
            if holder in clients or _name(index) in clients.values():
                continue
            # The name first: from now on nobody else takes this database for free.
            admin.command("CLIENT", "SETNAME", _name(index))
            if admin.command("EVAL", _CLAIM, 1, _key(index), holder or "", own):
                admin.command("SELECT", index)
                place = f"{admin.endpoint.host}:{admin.endpoint.port}"
                return Lease(index, f"redis://:{admin.endpoint.password}@{place}/{index}")
        admin.command("CLIENT", "SETNAME", NAME)
        raise LeaseFailed.none_free(databases=databases, holders=len(clients) - 1)


def _key(index: int) -> str:
    return f"{NAME}:lease:{index}"


def _name(index: int) -> str:
    """Return the name of the connection that holds the lease; it may hold no space."""
    return f"{NAME}:lease:{index}"
