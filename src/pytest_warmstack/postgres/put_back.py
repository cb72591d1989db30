"""Puts a used clone back: undoes exactly what a test did to it, or says why that can't be done.

PostgreSQL counts the rows that are inserted, updated and deleted in each relation, its own catalogs
included, also those of transactions that were rolled back. So what a test did is known without a
look at the data: rows in tables that the template has empty are deleted, rows beside those of the
template are found by the transactions that made them, and touched sequences get their values back.
A clone with any other change can't be put back. A last look confirms that nothing is left.

What still differs from a new clone, because it costs too much to restore: ``ctid``, ``xmin``,
``xmax`` and the files' names; up to nine pages of dead rows in a table that is never analyzed,
which the planner counts as ten pages in any case (`table_block_relation_estimate_size` in
PostgreSQL's tableam.c), and the pages of its indexes; ``log_cnt`` of sequences; and the time of the
last reset of statistics. In a connection in which a superuser sets ``track_counts`` off, PostgreSQL
counts nothing: changes of the template's own rows, of sequences and of most catalogs are not
noticed then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from pytest_warmstack.postgres import sql

_MAX_TOAST: Final = 64
"""How many pages of dead values a table may have in its TOAST table."""

_MARK_AGAIN: Final = f"SELECT {sql.SINCE} FROM pg_database d WHERE oid = $1"

_STATE: Final = (
    f"SELECT {sql.SINCE},"
    # The functions behind the views pg_stat_activity, pg_prepared_xacts and so on, which take
    # longer to plan.
    " (SELECT count(*) FROM pg_stat_get_activity(NULL) a"
    " WHERE a.datid = d.oid AND a.pid <> pg_backend_pid()) AS connections,"
    " (SELECT count(*) FROM pg_prepared_xact() p WHERE p.dbid = d.oid) AS prepared,"
    " (SELECT count(*) FROM pg_get_replication_slots() s WHERE s.datoid = d.oid)"
    " + (SELECT count(*) FROM pg_subscription s WHERE s.subdbid = d.oid) AS replication,"
    " concat_ws(' ', d.datdba, d.datistemplate, d.datallowconn, d.datconnlimit, d.dattablespace,"
    " d.datacl, shobj_description(d.oid, 'pg_database'),"
    " (SELECT string_agg(concat_ws(' ', s.setrole, s.setconfig), ' ' ORDER BY s.setrole)"
    " FROM pg_db_role_setting s WHERE s.setdatabase = d.oid),"
    " (SELECT string_agg(l.label, ' ' ORDER BY l.provider)"
    " FROM pg_shseclabel l WHERE l.objoid = d.oid)) AS properties"
    " FROM pg_database d WHERE oid = $1"
)
"""What every database of the server can tell about one of them."""

_UPDATED: Final = "pg_stat_get_tuples_updated(c.oid) + pg_stat_get_tuples_deleted(c.oid)"
_VACUUMED: Final = (
    "pg_stat_get_vacuum_count(c.oid) + pg_stat_get_analyze_count(c.oid)"
    " + pg_stat_get_autovacuum_count(c.oid) + pg_stat_get_autoanalyze_count(c.oid)"
)

_CHANGES: Final = (
    "SELECT * FROM (SELECT c.oid, c.relname, c.relkind::text AS kind,"
    " age(c.xmin) <= age($1::text::xid) AS is_new,"
    " CASE WHEN c.relkind = 'S' THEN pg_stat_get_blocks_fetched(c.oid)"
    " ELSE pg_stat_get_tuples_inserted(c.oid) END AS inserted,"
    f" CASE WHEN c.relkind = 'S' THEN 0 ELSE {_UPDATED} END AS rewritten,"
    f" CASE WHEN c.relkind = 'S' THEN 0 ELSE {_VACUUMED} END AS vacuumed,"
    # Unlike pg_relation_size, this doesn't open the relation.
    " CASE WHEN c.relkind IN ('r', 't') AND c.oid >= 16384"
    " THEN (pg_stat_file(pg_relation_filepath(c.oid), true)).size ELSE 0 END AS bytes"
    " FROM pg_class c WHERE c.relkind IN ('r', 't', 'm', 'S') AND NOT c.relisshared) each"
    " WHERE is_new OR inserted > 0 OR rewritten > 0 OR vacuumed > 0 OR bytes > 0"
)
"""The relations that may be changed; a relation of PostgreSQL has an oid below 16384.

For a sequence, *inserted* counts the blocks that were read. VACUUM changes rows in place, which is
not counted. *is_new* finds relations that were made or altered where nothing was counted.
"""

_RELATIONS: Final = (
    "SELECT c.oid, c.relkind::text, format('%I.%I', n.nspname, c.relname) AS name, c.reltoastrelid,"
    " CASE WHEN c.relkind = 'S' THEN 0 ELSE pg_relation_size(c.oid) END AS bytes,"
    " c.reltuples < 0 AND NOT c.relhassubclass AS is_guessed,"
    " EXISTS (SELECT FROM pg_constraint f WHERE f.confrelid = c.oid AND f.conrelid <> c.oid"
    " AND f.contype = 'f') AS is_referenced,"
    " EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgenabled IN ('A', 'R'))"
    " OR EXISTS (SELECT FROM pg_rewrite w WHERE w.ev_class = c.oid AND w.ev_enabled IN ('A', 'R'))"
    " AS is_firing"
    " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE c.relkind IN ('r', 'S', 't') AND c.oid >= 16384"
)

_SERVER: Final = (
    "SELECT current_setting('block_size')::int,"
    " (SELECT count(*) FROM pg_event_trigger WHERE evtenabled IN ('A', 'R'))"
)
"""The bytes of a page, and the number of event triggers that fire for the plugin too."""


class Runs(Protocol):
    """A connection to the clone: the plugin's, or one of asyncpg."""

    async def fetch(self, query: str, *values: Any) -> Sequence[Any]:
        """Return the rows of *query*."""

    async def execute(self, statements: str, /) -> Any:
        """Execute *statements*, separated by `;`, in one transaction."""


class Mark(NamedTuple):
    """When a clone was like new: the next transaction then, and the server's life at that time.

    *reset* is when the statistics were reset, *started* when the server started.
    """

    xid: int
    reset: object
    started: object


class NotPutBack(Exception):
    """The clone has to be replaced; the text says why, after "the test"."""


class Table(NamedTuple):
    """A table as the template has it.

    *limit* is the number of bytes up to which the planner notices no difference.
    """

    name: str
    bytes: int
    limit: int
    may_truncate: bool
    may_delete: bool


class Baseline(NamedTuple):
    """What every new clone of a template has.

    *sequences* are the statements that restore them, *toast* maps TOAST tables to their tables and
    to the number of bytes that they may have. All by oid, which is the same in every clone.
    *refusal* says why no clone can be put back, or is empty.
    """

    tables: Mapping[int, Table]
    sequences: Mapping[int, str]
    toast: Mapping[int, tuple[int, int]]
    properties: str
    refusal: str

    @classmethod
    async def read(cls, connection: Runs, oid: int) -> Baseline:
        """Return the baseline; *connection* leads to a new clone, the database *oid*."""
        ((block, firing),) = await connection.fetch(_SERVER)
        (state,) = await connection.fetch(_STATE, oid)
        rows = await connection.fetch(_RELATIONS)
        sizes = {row["oid"]: row["bytes"] for row in rows}
        tables = {row["oid"]: _table(row, block) for row in rows if row["relkind"] == "r"}
        toast = {
            row["reltoastrelid"]: (row["oid"], sizes[row["reltoastrelid"]] + _MAX_TOAST * block)
            for row in rows
            if row["relkind"] == "r" and row["reltoastrelid"] in sizes
        }
        sequences = {row["oid"]: row["name"] for row in rows if row["relkind"] == "S"}
        return cls(
            tables,
            await _restored(connection, sequences),
            toast,
            state["properties"],
            "has an event trigger that is ENABLE ALWAYS or REPLICA" if firing else "",
        )


def _table(row: Any, block: int) -> Table:
    size, is_guessed = row["bytes"], row["is_guessed"]
    return Table(
        row["name"],
        size,
        max(size, 9 * block) if is_guessed else size,
        # TRUNCATE makes the planner guess, as for a table that was never analyzed.
        may_truncate=not size and is_guessed and not row["is_referenced"],
        may_delete=not row["is_firing"],
    )


async def _restored(connection: Runs, sequences: Mapping[int, str]) -> dict[int, str]:
    """Return the statements that give *sequences* the values that they have now."""
    if not sequences:
        return {}
    rows = await connection.fetch(
        " UNION ALL ".join(
            f"SELECT {oid}, last_value, is_called FROM {name}" for oid, name in sequences.items()
        )
    )
    return {
        oid: f"SELECT setval({oid}, {value}, {str(is_called).lower()})"
        for oid, value, is_called in rows
    }


async def put_back(inside: Runs, outside: Runs, oid: int, baseline: Baseline, mark: Mark) -> Mark:
    """Undo what was done to a clone since *mark*; return the mark from which changes count now.

    *inside* must be the only connection to the clone, the database *oid*. *outside* is any
    connection to its server. Raises `NotPutBack`, and the errors of the connections.
    """
    (state,) = await outside.fetch(_STATE, oid)
    _check_state(baseline, mark, state)
    xid = str(mark.xid % 2**32)
    changes = await inside.fetch(_CHANGES, xid)
    await inside.execute(
        "; ".join(
            [
                # Foreign keys, triggers and rules stay silent, and nothing is counted.
                "SET LOCAL session_replication_role = replica",
                "SET LOCAL track_counts = off",
                *_undo(baseline, xid, changes),
                "SELECT pg_stat_reset()",
            ]
        )
    )
    ((xid, reset, started),) = await outside.fetch(_MARK_AGAIN, oid)
    return Mark(xid, reset, started)


def _undo(baseline: Baseline, xid: str, changed: Sequence[Any]) -> list[str]:
    """Return the statements that undo what was *changed* since *xid*. Raises `NotPutBack`."""
    _check_schema(baseline, changed)
    full = _full_tables(baseline, changed)
    truncated = [each.name for each in full if each.may_truncate]
    statements = [f"TRUNCATE ONLY {', '.join(truncated)}"] if truncated else []
    for row in changed:
        if row["kind"] == "S":
            statements.append(baseline.sequences[row["oid"]])
        elif row["kind"] == "r" and (table := baseline.tables[row["oid"]]) not in full:
            statements += _deletion(table, xid, row)
    return statements


def _check_state(baseline: Baseline, mark: Mark, state: Any) -> None:
    if baseline.refusal:
        raise NotPutBack(baseline.refusal)
    if state["started"] != mark.started:
        raise NotPutBack("outlived its server")
    if state["reset"] != mark.reset:
        raise NotPutBack("reset the statistics")
    if state["connections"]:
        raise NotPutBack("left a connection open")
    if state["prepared"]:
        raise NotPutBack("left a prepared transaction")
    if state["replication"]:
        raise NotPutBack("left a replication slot or a subscription")
    if state["properties"] != baseline.properties:
        raise NotPutBack("changed settings, privileges or the comment of the database")


def _check_schema(baseline: Baseline, changed: Sequence[Any]) -> None:
    """Raise `NotPutBack` if more changed than the rows of tables and the values of sequences."""
    vacuumed = [row["relname"] for row in changed if row["vacuumed"]]
    if vacuumed:
        raise NotPutBack(f"ran VACUUM or ANALYZE on {', '.join(sorted(vacuumed)[:5])}")
    known = baseline.tables.keys() | baseline.sequences.keys() | baseline.toast.keys()
    names = {row["relname"] for row in changed if row["oid"] not in known or row["is_new"]}
    if names:
        shown = ", ".join(sorted(names)[:5])
        raise NotPutBack(f"changed the schema ({shown})")


def _full_tables(baseline: Baseline, changed: Sequence[Any]) -> set[Table]:
    """Return the tables that have so many rows now that they have to be truncated."""
    full = set()
    for row in changed:
        table, limit = baseline.tables.get(row["oid"]), 0
        if table is not None:
            limit = table.limit
        elif row["oid"] in baseline.toast:
            owner, limit = baseline.toast[row["oid"]]
            table = baseline.tables[owner]
        if table is not None and row["bytes"] > limit:
            full.add(table)
            if not table.may_truncate:
                raise NotPutBack(f"inserted many rows into {table.name}")
            if not table.may_delete:
                raise NotPutBack(f"changed {table.name}, which has triggers that always fire")
    return full


def _deletion(table: Table, xid: str, row: Any) -> Iterator[str]:
    is_touched = row["inserted"] or row["rewritten"]
    if not table.may_delete and (is_touched or row["bytes"] > table.bytes):
        raise NotPutBack(f"changed {table.name}, which has triggers or rules that always fire")
    if not table.bytes:
        # Whatever was counted: rows may be there that were not.
        yield f"DELETE FROM ONLY {table.name}"
    elif row["rewritten"]:
        raise NotPutBack(f"changed rows of the template in {table.name}")
    elif row["inserted"]:
        yield f"DELETE FROM ONLY {table.name} WHERE age(xmin) <= age('{xid}'::xid)"
