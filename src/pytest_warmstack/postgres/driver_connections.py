"""The class of the connections of `db_engine`, and how one is cleaned for the next test.

asyncpg asks each connection for each type that is not built in, such as an enum or an array of
one, and planning its query takes the server longer than everything else that a new connection
costs. An oid means the same type in every clone of a template, so these connections share the
answers, and only ask whether the types are still called the same.
"""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any, Final, NamedTuple

from asyncpg.connection import Connection

from pytest_warmstack.postgres import sql

LOOKUP: Final = "_introspect_types"
"""asyncpg's method that queries types: of the oids of types it makes rows and a statement."""

CLEAN_TIMEOUT: Final = 2.0
"""Seconds that the server may take to clean a session; afterwards the connection is closed."""

_COMPOSITE: Final = b"c"
"""The kind of types that can change without a new oid: ALTER TYPE adds attributes to them."""

_LISTENING: Final = (
    "add_listener",
    "add_log_listener",
    "add_termination_listener",
    "add_query_logger",
    "set_type_codec",
    "set_builtin_type_codec",
    "reset_type_codec",
)
"""Methods after which a connection differs from a new one in this process."""

_EXECUTING: Final = (
    "execute",
    "executemany",
    "fetch",
    "fetchval",
    "fetchrow",
    "fetchmany",
    "prepare",
    "cursor",
    "copy_from_query",
)
"""Methods whose first argument is SQL."""

_CUSTOM_SETTING: Final = re.compile(
    r'\bset_config\b|\bset\s+(?:session\s+|local\s+)?"?\w+"?\s*\.', re.IGNORECASE
)
"""Matches SQL that sets a setting with a dot in its name, such as `app.tenant`.

Once set, it is never NULL again in the session, but empty: after RESET ALL, and after SET LOCAL.
"""

_SCHEMA: Final = re.compile(
    r"\b(?:alter|create|drop|search_path|do\s+(?:\$|'|language)|set\s+(?:\w+\s+)?schema)",
    re.IGNORECASE,
)
"""Matches SQL after which a statement that is prepared may have other columns.

PostgreSQL refuses to execute it then (`RevalidateCachedQuery` in its plancache.c). A new connection
would have prepared it afterwards.
"""

HAS_SETTERS: Final = (
    "SELECT EXISTS (SELECT FROM pg_catalog.pg_proc WHERE oid >= 16384 AND"
    " concat(prosrc, pg_catalog.pg_get_function_sqlbody(oid))"
    r" ~* '\yset_config\y|\yset\s+(session\s+|local\s+)?\w+\s*\.')"
)
"""Asks whether a function of the database does what `_CUSTOM_SETTING` looks for."""

_CLEAN: Final = "; ".join(
    (
        # What DISCARD ALL does, which can't be in one request with others; but what was prepared
        # stays, with its plans.
        "CLOSE ALL",
        "SET SESSION AUTHORIZATION DEFAULT",
        "RESET ALL",
        "UNLISTEN *",
        "SELECT pg_catalog.pg_advisory_unlock_all()",
        "DISCARD TEMP",
        "DISCARD SEQUENCES",
        # Otherwise the server counts what was done when the connection ends.
        "SELECT pg_catalog.pg_stat_force_next_flush()",
        "SELECT FROM pg_catalog.pg_prepared_statements WHERE from_sql",
    )
)


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


class DriverConnection(Connection):  # type: ignore[misc]
    """A connection of asyncpg that notes what makes it different from a new one.

    `is_noting` is set once SQLAlchemy has set it up; `is_changed` says whether it was made
    different since, in a way that `clean` can't undo, and `is_tuned` whether that was done in this
    process, by a listener or a codec. `prepared` is what SQLAlchemy has prepared in earlier tests;
    `is_outdated` says whether what is prepared may be wrong for the next test.
    """

    __slots__ = ("is_changed", "is_noting", "is_outdated", "is_tuned", "prepared")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.is_changed = self.is_noting = self.is_tuned = self.is_outdated = False
        self.prepared: MutableMapping[Any, Any] | None = None

    def forget_prepared(self) -> None:
        """Forget what was prepared: the schema, or a codec, is about to be another one."""
        self.is_outdated = True
        if self.prepared is not None:
            self.prepared.clear()
        if (drop := getattr(self, "_drop_local_statement_cache", None)) is not None:
            drop()

    async def clean(self) -> bool:
        """Make the session like that of a new connection; return whether that was possible.

        What was prepared stays. The server's statistics are up to date afterwards. Raises asyncpg's
        errors, and `TimeoutError` after `CLEAN_TIMEOUT`.
        """
        if self.is_changed or self.is_closed() or self.is_in_transaction():
            return False
        async with asyncio.timeout(CLEAN_TIMEOUT):
            return bool(await Connection.execute(self, _CLEAN) == "SELECT 0")


def _noting_call(name: str) -> Any:
    original = getattr(Connection, name)

    @functools.wraps(original)
    def call(self: DriverConnection, *args: Any, **options: Any) -> Any:
        if self.is_noting:
            self.is_changed = self.is_tuned = True
            self.forget_prepared()
        return original(self, *args, **options)

    return call


@functools.lru_cache(maxsize=1000)
def _effects(query: str) -> tuple[bool, bool]:
    """Return whether *query* sets what can't be reset, and whether it may change the schema."""
    return bool(_CUSTOM_SETTING.search(query)), bool(_SCHEMA.search(query))


def _noting_settings(name: str) -> Any:
    original = getattr(Connection, name)

    @functools.wraps(original)
    def call(self: DriverConnection, query: str, *args: Any, **options: Any) -> Any:
        if self.is_noting:
            sets, alters = _effects(query)
            if sets:
                self.is_changed = True
            if alters:
                self.forget_prepared()
        return original(self, query, *args, **options)

    return call


for _name in _LISTENING:
    if hasattr(Connection, _name):  # Older versions have no query loggers.
        setattr(DriverConnection, _name, _noting_call(_name))
for _name in _EXECUTING:
    setattr(DriverConnection, _name, _noting_settings(_name))


@functools.cache
def connection_class(template: str) -> type[DriverConnection]:
    """Return the class of the connections to clones of *template*."""
    if not hasattr(Connection, LOOKUP):  # Then asyncpg's own way is fine.
        return DriverConnection
    types = Types()

    class SharingConnection(DriverConnection):
        """A connection that knows what others have found out about types."""

        __slots__ = ()

        async def _introspect_types(
            self,
            oids: Iterable[int],
            timeout: float | None,  # noqa: ASYNC109 - asyncpg's
        ) -> tuple[Sequence[Any], Any]:
            oids = list(oids)
            rows = types.known(oids)
            if rows and await self.execute(_names(rows), timeout=timeout) == f"SELECT {len(rows)}":
                return rows, _Unnamed()
            rows, statement = await super()._introspect_types(oids, timeout)
            types.add(rows)
            return rows, statement

    return SharingConnection
