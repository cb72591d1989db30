"""The keys that a test left in its Redis databases. Imported by failures only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from pytest_warmstack.redis.connections import Admin
from pytest_warmstack.servers.model import Endpoint

MAX_KEYS: Final = 20
"""How many keys of a database are described."""

_MAX_SCANNED: Final = 1000
"""How many keys of a database are listed, to describe the first ones by name."""

_SIZES: Final = {
    "string": ("STRLEN", "byte"),
    "list": ("LLEN", "element"),
    "set": ("SCARD", "member"),
    "zset": ("ZCARD", "member"),
    "hash": ("HLEN", "field"),
    "stream": ("XLEN", "entry"),
}
"""The command that returns the size of each type, and what it counts."""


class Key(NamedTuple):
    """A key with its type, and its *size* in *unit*; *ttl* is in milliseconds, None for ever.

    The *unit* is empty if the type is one of a module.
    """

    name: str
    type: str
    size: int
    unit: str
    ttl: int | None


class Keys(NamedTuple):
    """How many keys a database has in *total*, and the first of them."""

    number: int
    total: int
    first: list[Key]


def read(
    endpoint: Endpoint, fingerprint: str, indexes: Iterable[int], seconds: float
) -> list[Keys]:
    """Return the keys of each database, on a connection that doesn't count as a use.

    The server may take *seconds* for each answer. Raises `NotReady`, `NotOurs` and `ServerFailed`.
    """
    admin = Admin.connect(endpoint.replace(looks=True), fingerprint, seconds, answer=seconds)
    try:
        return [_keys(admin, index) for index in indexes]
    finally:
        admin.close()


def _keys(admin: Admin, index: int) -> Keys:
    _, total = admin.commands(("SELECT", index), ("DBSIZE",))
    names: set[str] = set()
    cursor = "0"
    while len(names) < _MAX_SCANNED:
        cursor, some = admin.command("SCAN", cursor, "COUNT", _MAX_SCANNED)
        names.update(some)
        if str(cursor) == "0":
            break
    shown = sorted(names)[:MAX_KEYS]
    types = admin.commands(*(("TYPE", each) for each in shown)) if shown else []
    ttls = admin.commands(*(("PTTL", each) for each in shown)) if shown else []
    found = []
    for name, kind, ttl in zip(shown, types, ttls, strict=True):
        command, unit = _SIZES.get(kind, ("", ""))
        # None if it has expired, or has another type since.
        size = admin.attempt((command, name))[0] if command else 0
        if kind != "none" and size is not None:
            found.append(Key(name, kind, int(size), unit, None if ttl < 0 else int(ttl)))
    return Keys(index, int(total), found)
