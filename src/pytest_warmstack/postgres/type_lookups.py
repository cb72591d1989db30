"""What asyncpg finds out about types, shared between the connections to clones of one template.

asyncpg asks each connection for each type that is not built in, such as an enum or an array of
one, and planning its query takes the server longer than everything else that a new connection
costs. An oid means the same type in every clone, so a connection only asks whether the types are
still called the same.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from asyncpg.connection import Connection

from pytest_warmstack.postgres import sql

LOOKUP: Final = "_introspect_types"
"""asyncpg's method that queries types: of the oids of types it makes rows and a statement."""

_COMPOSITE: Final = b"c"
"""The kind of types that can change without a new oid: ALTER TYPE adds attributes to them."""


class _Unnamed(NamedTuple):
    """Stands for the statement of asyncpg's query: it had no name, so it replaced another one."""

    name: str = ""


class Types:
    """What is known about the types of one template."""

    def __init__(self) -> None:
        self._rows: dict[int, Sequence[Any]] = {}

    def known(self, oids: Iterable[int]) -> Sequence[Any]:
        """Return the rows about types and what they consist of; none if one is not known."""
        found: dict[int, Any] = {}
        for oid in oids:
            if oid not in self._rows:
                return ()
            found.update((row["oid"], row) for row in self._rows[oid])
        return list(found.values())

    def add(self, rows: Sequence[Any]) -> None:
        """Add what asyncpg has found out."""
        by_oid = {row["oid"]: row for row in rows}
        for oid in by_oid:
            parts = _parts(by_oid, oid)
            if not any(by_oid[each]["kind"] == _COMPOSITE for each in parts):
                # asyncpg wants each type after its parts, as in its own rows.
                self._rows[oid] = [row for row in rows if row["oid"] in parts]


def _parts(rows: Mapping[int, Any], oid: int) -> set[int]:
    """Return the oids of a type and of all that it consists of, as far as there are rows."""
    parts, new = set[int](), {oid}
    while new:
        parts |= new
        of = [rows[each] for each in new]
        found = {row[name] for row in of for name in ("elemtype", "basetype", "range_subtype")} | {
            each for row in of for each in row["attrtypoids"] or ()
        }
        new = {each for each in found if each in rows} - parts
    return parts


def _names(rows: Sequence[Any]) -> str:
    """Return the query that finds as many types as there are *rows* if all have their names."""
    names = ", ".join(
        f"({row['oid']}, {sql.literal(row['ns'])}, {sql.literal(row['name'])})" for row in rows
    )
    return (
        "SELECT FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace"
        f" WHERE t.oid IN ({', '.join(str(row['oid']) for row in rows)})"
        f" AND (t.oid::bigint, n.nspname, t.typname) IN ({names})"
    )


@functools.cache
def connection_class(template: str) -> type[Any]:
    """Return the class of connections to clones of *template*; asyncpg's own if it has changed."""
    if not hasattr(Connection, LOOKUP):
        return Connection  # type: ignore[no-any-return]
    types = Types()

    class SharingConnection(Connection):  # type: ignore[misc]
        """A connection that knows what others have found out."""

        __slots__ = ()

        async def _introspect_types(
            self, oids: Iterable[int], timeout: float | None
        ) -> tuple[Sequence[Any], Any]:
            oids = list(oids)
            rows = types.known(oids)
            if rows and await self.execute(_names(rows), timeout=timeout) == f"SELECT {len(rows)}":
                return rows, _Unnamed()
            rows, statement = await super()._introspect_types(oids, timeout)
            types.add(rows)
            return rows, statement

    return SharingConnection
