"""Puts a used clone back: undoes exactly what a test did to it, or says why that can't be done.

PostgreSQL counts the rows that are inserted, updated and deleted in each relation, its own catalogs
included, also those of transactions that were rolled back. So what a test did is known without a
look at the data: tables that the template has empty are truncated, rows beside those of the
template are found by the transactions that made them, and touched sequences get their values back.
A clone with any other change can't be put back.

The files get back what a new clone has, too. In a page with dead rows, later rows get other places
than in a new page: PostgreSQL even uses the place of a dead row for a new one, before the rows that
were inserted earlier. And an index that was used has a page more than a new one, for which the
planner may choose another join. A query without ORDER BY shows both. So tables that the template
has empty are truncated, and the others vacuumed. What the planner knows of a table is restored.

What still differs from a new clone, because it costs too much to restore: ``ctid``, ``xmin``,
``xmax`` and the files' names; dead rows after those of the template in a table of several pages;
``log_cnt`` of sequences; and the time of the last reset of statistics. REINDEX TABLE pg_class is
not noticed. In a connection in which a superuser sets ``track_counts`` off, PostgreSQL counts
nothing: changes of the template's own rows, of sequences and of most catalogs are not noticed then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from pytest_warmstack.postgres import sql

_MAX_PAGES: Final = 9
"""How many pages of new rows are deleted and vacuumed; more would leave larger indexes."""

_VACUUM: Final = "VACUUM (INDEX_CLEANUP on, TRUNCATE on, PROCESS_TOAST off, PARALLEL 0)"

_MARK_AGAIN: Final = f"SELECT {sql.SINCE} FROM pg_database d WHERE oid = $1"

_STATE: Final = (
    f"SELECT {sql.SINCE}, pg_stat_get_db_sessions(d.oid) AS sessions,"
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
    " FROM pg_db_role_setting s WHERE s.setdatabase = d.oid"
    " OR s.setdatabase = 0 AND s.setconfig::text LIKE '%track_counts%'),"
    " (SELECT string_agg(l.label, ' ' ORDER BY l.provider)"
    " FROM pg_shseclabel l WHERE l.objoid = d.oid), current_setting('track_counts')) AS properties"
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
    " FROM pg_class c WHERE c.relkind IN ('r', 'p', 't', 'm', 'S') AND NOT c.relisshared) each"
    " WHERE is_new OR inserted > 0 OR rewritten > 0 OR vacuumed > 0 OR bytes > 0"
)
"""The relations that may be changed; a relation of PostgreSQL has an oid below 16384.

For a sequence, *inserted* counts the blocks that were read. VACUUM changes rows in place, which is
not counted. *is_new* finds relations that were made or altered where nothing was counted.
"""

_RELATIONS: Final = (
    "SELECT c.oid, c.relkind::text AS kind, format('%I.%I', n.nspname, c.relname) AS name,"
    " coalesce(i.indrelid, c.oid) AS of, c.reltoastrelid AS toast,"
    " c.relpages, c.reltuples, c.relallvisible, c.relhastriggers,"
    " c.relkind = 'i' AND n.nspname <> 'pg_toast' AS is_index,"
    " CASE WHEN c.relkind = 'S' THEN 0 ELSE pg_relation_size(c.oid) END AS bytes,"
    " EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgenabled IN ('A', 'R'))"
    " OR EXISTS (SELECT FROM pg_rewrite w WHERE w.ev_class = c.oid AND w.ev_enabled IN ('A', 'R'))"
    " AS is_firing"
    " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
    " LEFT JOIN pg_index i ON i.indexrelid = c.oid"
    " WHERE c.relkind IN ('r', 'm', 'S', 't', 'i') AND c.oid >= 16384"
)

_SERVER: Final = (
    "SELECT current_setting('server_version_num')::int / 10000,"
    " current_setting('block_size')::int, current_setting('track_counts') = 'on',"
    " (SELECT count(*) FROM pg_event_trigger WHERE evtevent = 'login' AND evtenabled <> 'D')"
)
"""Version, bytes of a page, whether changes are counted, how many triggers fire for the plugin."""


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


class StillConnected(NotPutBack):
    """Another connection to the clone has not ended yet."""


class Table(NamedTuple):
    """A table as the template has it.

    *rows* is the number of rows, if they fill one page at most, without a gap. A table that
    *is_firing* has triggers or rules that nothing silences. *limit* is the number of bytes up to
    which new rows can be deleted.
    """

    name: str
    bytes: int
    limit: int
    rows: int | None
    is_firing: bool


class Toast(NamedTuple):
    """The TOAST table of the table *owner*."""

    name: str
    bytes: int
    owner: int


class Statistics(NamedTuple):
    """What pg_class has about a table, its TOAST table, or an index of either; and its *bytes*.

    *is_index* is true for an index of the table itself, which the planner looks at.
    """

    oid: int
    relpages: int
    reltuples: float
    relallvisible: int
    relhastriggers: bool
    is_index: bool
    bytes: int


class Baseline(NamedTuple):
    """What every new clone of a template has.

    *sequences* are the statements that restore them; *statistics* are those of a table, of its
    TOAST table and of the indexes of both. All by oid, which is the same in every clone. *only*
    keeps VACUUM from other tables than the named one. *refusal* says why no clone can be put back,
    or is empty.
    """

    tables: Mapping[int, Table]
    sequences: Mapping[int, str]
    toast: Mapping[int, Toast]
    statistics: Mapping[int, Sequence[Statistics]]
    only: str
    properties: str
    refusal: str

    @classmethod
    async def read(cls, connection: Runs, oid: int) -> Baseline:
        """Return the baseline; *connection* leads to a new clone, the database *oid*."""
        ((major, block, counts, firing),) = await connection.fetch(_SERVER)
        (state,) = await connection.fetch(_STATE, oid)
        rows = await connection.fetch(_RELATIONS)
        names = {
            kind: {row["oid"]: row["name"] for row in rows if row["kind"] == kind} for kind in "rS"
        }
        small = {row["oid"] for row in rows if row["bytes"] <= block}
        counted = await _count(
            connection, {oid: name for oid, name in names["r"].items() if oid in small}
        )
        owners = {row["toast"]: row["oid"] for row in rows}
        statistics: dict[int, list[Statistics]] = {}
        for row in rows:
            known = Statistics(*(row[name] for name in Statistics._fields))
            statistics.setdefault(owners.get(row["of"], row["of"]), []).append(known)
        return cls(
            {
                row["oid"]: _table(row, block, counted.get(row["oid"]))
                for row in rows
                if row["kind"] == "r"
            },
            await _restored(connection, names["S"]),
            {
                row["oid"]: Toast(row["name"], row["bytes"], owners[row["oid"]])
                for row in rows
                if row["kind"] == "t"
            },
            statistics,
            # Since PostgreSQL 18, VACUUM goes on to the tables that inherit.
            "ONLY " if major >= 18 else "",
            state["properties"],
            "has an event trigger for logins"
            if firing
            else ("" if counts else "has track_counts set off"),
        )


def _table(row: Any, block: int, rows: int | None) -> Table:
    size = row["bytes"]
    return Table(
        row["name"],
        size,
        size if rows is None else _MAX_PAGES * block,
        rows,
        is_firing=row["is_firing"],
    )


async def _count(connection: Runs, tables: Mapping[int, str]) -> dict[int, int]:
    """Return how many rows *tables* of one page have; without those that have a gap.

    VACUUM would let the next row fill the gap of a row that the template has deleted.
    """
    if not tables:
        return {}
    query = " UNION ALL ".join(
        f"SELECT {oid}, count(*) FROM ONLY {name}"
        " HAVING count(*) = coalesce((max(ctid)::text::point)[1], 0)"
        for oid, name in tables.items()
    )
    return dict(await connection.fetch(query))


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


class _Undo:
    """What undoes the changes of a test.

    *truncated* are tables without rows in the template, *deleted* the others, from which the rows
    of the test are deleted, *vacuumed* names of tables. Of *counted* tables, template rows may have
    changed. What pg_class has about *restored* tables changes meanwhile.
    """

    def __init__(self) -> None:
        self.statements: list[str] = []
        self.truncated: dict[int, Table] = {}
        self.deleted: dict[int, Table] = {}
        self.counted: dict[int, Table] = {}
        self.vacuumed: list[str] = []
        self.restored: set[int] = set()


async def put_back(
    inside: Runs,
    outside: Runs,
    oid: int,
    baseline: Baseline,
    mark: Mark,
    *,
    may_be_unused: bool = False,
    touched: list[str] | None = None,
) -> Mark:
    """Undo what was done to a clone since *mark*; return the mark from which changes count now.

    *inside* is the only connection to the clone, the database *oid*; its settings are like those of
    a new one. *outside* is any connection to its server. A clone that *may_be_unused* had no
    connection at *mark*: if it has had none since, nothing is done, and *inside* is not used.
    *touched* gets the names of the tables with rows of the template that the test wrote to. Raises
    `NotPutBack`, and the errors of the connections.
    """
    rows = await outside.fetch(_STATE, oid)
    _check_state(baseline, mark, rows)
    if may_be_unused and not rows[0]["sessions"]:
        return mark
    xid = str(mark.xid % 2**32)
    undo = _undo(baseline, xid, await inside.fetch(_CHANGES, xid))
    if touched is not None:
        touched += [table.name for table in undo.deleted.values()]
    statements = [
        # Foreign keys, triggers and rules stay silent, and nothing is counted.
        "SET session_replication_role = replica",
        "SET track_counts = off",
        *undo.statements,
        *_truncating(undo.truncated),
    ]
    if undo.deleted or undo.vacuumed:
        await inside.execute("; ".join(statements))
        await _vacuum(inside, baseline, undo)
        statements = []
    await inside.execute(
        "; ".join(
            [
                *statements,
                *_restoring(baseline, undo.restored),
                "SELECT pg_stat_reset()",
                "RESET session_replication_role",
                "RESET track_counts",
            ]
        )
    )
    (row,) = await outside.fetch(_MARK_AGAIN, oid)
    if row["reset"] == mark.reset:
        # *inside* led to another database, which the test gave this name.
        raise NotPutBack("renamed its database")
    return Mark(*row)


def _truncating(tables: Mapping[int, Table]) -> Iterator[str]:
    """Return the statements that truncate *tables*."""
    if tables:
        # PostgreSQL refuses a table that others refer to (`heap_truncate_check_FKs` in its heap.c)
        # unless it has no triggers; all others are empty soon. `_restoring` restores this.
        yield f"UPDATE pg_class SET relhastriggers = false WHERE relhastriggers AND {_are(tables)}"
        yield f"TRUNCATE {', '.join(f'ONLY {table.name}' for table in tables.values())}"


async def _vacuum(inside: Runs, baseline: Baseline, undo: _Undo) -> None:
    """Free the places of deleted rows. Raises `NotPutBack` if something else differs then."""
    counted = await _count(inside, {oid: table.name for oid, table in undo.counted.items()})
    for oid, table in undo.counted.items():
        if counted.get(oid) != table.rows:
            raise NotPutBack(f"changed rows of the template in {table.name}")
    if undo.vacuumed:
        names = [f"{baseline.only}{name}" for name in undo.vacuumed]
        await inside.execute(f"{_VACUUM} {', '.join(names)}")
    indexes = {
        each.oid: (each.bytes, table)
        for oid, table in undo.deleted.items()
        for each in baseline.statistics[oid]
        if each.is_index
    }
    if indexes:
        query = f"SELECT oid, pg_relation_size(oid) FROM pg_class WHERE {_are(indexes)}"
        for oid, size in await inside.fetch(query):
            known, table = indexes[oid]
            if size != known:
                raise NotPutBack(f"inserted many rows into {table.name}")


def _are(oids: Iterable[int]) -> str:
    """Return the condition that an oid is one of *oids*."""
    return f"oid IN ({', '.join(map(str, oids))})"


def _restoring(baseline: Baseline, tables: Iterable[int]) -> Iterator[str]:
    """Return the statement that restores what pg_class has about *tables*."""
    values = [
        f"({each.oid}, {each.relpages}, {each.reltuples}, {each.relallvisible},"
        f" {each.relhastriggers})"
        for oid in tables
        for each in baseline.statistics[oid]
    ]
    if values:
        columns = "relpages, reltuples, relallvisible, relhastriggers"
        yield (
            f"UPDATE pg_class c SET ({columns}) = (v.p, v.t, v.a, v.h)"
            f" FROM (VALUES {', '.join(values)}) v (oid, p, t, a, h) WHERE c.oid = v.oid"
            f" AND ({columns}) IS DISTINCT FROM (v.p, v.t::real, v.a, v.h)"
        )


def _undo(baseline: Baseline, xid: str, changed: Sequence[Any]) -> _Undo:
    """Return what undoes what was *changed* since *xid*. Raises `NotPutBack`."""
    _check_schema(baseline, changed)
    undo = _Undo()
    for row in changed:
        oid = row["oid"]
        if oid in baseline.sequences:
            undo.statements.append(baseline.sequences[oid])
        elif oid in baseline.toast:
            toast = baseline.toast[oid]
            if row["bytes"] > toast.bytes and baseline.tables[toast.owner].bytes:
                undo.vacuumed.append(toast.name)
        elif _is_touched(table := baseline.tables[oid], row):
            undo.restored.add(oid)
            if table.bytes:
                _delete(undo, oid, table, xid, row)
            else:
                undo.truncated[oid] = table
    return undo


def _is_touched(table: Table, row: Any) -> bool:
    # Whatever was counted: rows may be there that were not.
    return bool(row["inserted"] or row["rewritten"] or row["bytes"] != table.bytes)


def _delete(undo: _Undo, oid: int, table: Table, xid: str, row: Any) -> None:
    """Delete the rows of the test in a table that has rows in the template."""
    if table.is_firing:
        raise NotPutBack(f"changed {table.name}, which has triggers or rules that always fire")
    if row["bytes"] > table.limit:
        raise NotPutBack(f"inserted many rows into {table.name}")
    undo.statements.append(f"DELETE FROM ONLY {table.name} WHERE age(xmin) <= age('{xid}'::xid)")
    undo.deleted[oid] = table
    if table.rows is not None:
        undo.vacuumed.append(table.name)
    if row["rewritten"]:
        if table.rows is None:
            raise NotPutBack(f"changed rows of the template in {table.name}")
        # A row that was changed has another transaction, and was deleted too.
        undo.counted[oid] = table


def _check_state(baseline: Baseline, mark: Mark, rows: Sequence[Any]) -> None:
    if baseline.refusal:
        raise NotPutBack(baseline.refusal)
    if not rows:
        raise NotPutBack("dropped its database")
    (state,) = rows
    if state["started"] != mark.started:
        raise NotPutBack("outlived its server")
    if state["reset"] != mark.reset:
        raise NotPutBack("reset the statistics")
    if state["connections"]:
        raise StillConnected("left a connection open")
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
        # A table of the test says more than the catalogs that it is in.
        first = sorted(names, key=lambda name: (name.startswith("pg_"), name))
        shown = ", ".join(first[:5])
        raise NotPutBack(f"changed the schema ({shown})")
