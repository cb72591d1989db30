"""What a test did to its database: a clone compared with its template. Imported by failures only.

PostgreSQL's own counters are not enough: those of a connection that is still open lag behind by up
to ten seconds (its documentation, "Viewing Statistics"). So the rows are counted. Those of the test
belong to transactions that began after the clone was handed out (`put_back.Mark`). What the
template has is read once in a process, from a new copy of it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from pytest_warmstack import originals
from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.postgres import sql
from pytest_warmstack.postgres.connections import Connection
from pytest_warmstack.postgres.databases import COUNTS_AT_ONCE
from pytest_warmstack.structs import Struct

if TYPE_CHECKING:
    from pytest_warmstack.postgres.clones import Clone, CloneFactory

T = TypeVar("T")

Rows = Sequence[Sequence[Any]]
Reading = Generator[str, Rows, T]
"""Yields queries without values, gets their rows, and returns a result: for every driver."""

_MAX_KEYS: Final = 1000
"""How many rows a table may have for its primary keys to be compared."""

_MAX_BYTES: Final = 64 * 1024 * 1024
"""How many bytes of tables are counted, the smallest first: it takes a tenth of a second or two."""

_LOCK_TIMEOUT: Final = 200
"""Milliseconds to wait for a lock."""

_OBJECTS: Final = r"""
WITH members AS (
    SELECT classid, objid FROM pg_depend WHERE deptype = 'e'
), locked AS (
    SELECT relation FROM pg_locks
    WHERE mode = 'AccessExclusiveLock' AND granted AND pid <> pg_backend_pid()
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
), schemas AS (
    SELECT oid, quote_ident(nspname) || '.' AS path
    FROM pg_namespace WHERE nspname !~ '^pg_(toast|temp)'
), relations AS (
    SELECT c.oid, c.relkind, path || quote_ident(relname) AS name,
    c.oid IN (SELECT relation FROM locked WHERE relation IS NOT NULL) AS is_locked
    FROM pg_class c JOIN schemas s ON s.oid = relnamespace
    WHERE c.oid >= 16384 AND relpersistence <> 't'
    AND c.oid NOT IN (SELECT objid FROM members WHERE classid = 'pg_class'::regclass)
)
SELECT CASE relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view'
    WHEN 'f' THEN 'foreign table' WHEN 'c' THEN 'type' ELSE 'table' END AS kind,
    oid::int8 AS oid, name, 0::int8 AS owner,
    coalesce((SELECT string_agg(concat_ws(' ', quote_ident(attname),
        format_type(atttypid, atttypmod), CASE WHEN attnotnull THEN 'NOT NULL' END),
        E'\n' ORDER BY attnum)
        FROM pg_attribute WHERE attrelid = r.oid AND attnum > 0 AND NOT attisdropped), '')
    AS definition,
    CASE WHEN relkind <> 'r' THEN 0 WHEN is_locked THEN -1 ELSE pg_relation_size(oid) END AS size,
    coalesce((SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum)
        FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = ANY (indkey)
        WHERE indrelid = r.oid AND indisprimary), '') AS key
    FROM relations r WHERE relkind IN ('r', 'p', 'v', 'm', 'f', 'c')
UNION ALL
SELECT 'index', oid, name, indrelid, pg_get_indexdef(oid), 0, ''
    FROM relations JOIN pg_index ON indexrelid = oid
    WHERE oid NOT IN (SELECT conindid FROM pg_constraint WHERE contype IN ('p', 'u', 'x'))
UNION ALL
SELECT 'sequence', r.oid, name, coalesce(refobjid, 0), '',
    CASE WHEN is_locked THEN -1 ELSE coalesce(pg_sequence_last_value(r.oid), 0) END,
    CASE WHEN is_locked OR pg_sequence_last_value(r.oid) IS NULL THEN '' ELSE 'used' END
    FROM relations r LEFT JOIN pg_depend ON classid = 'pg_class'::regclass AND objid = r.oid
    AND refclassid = 'pg_class'::regclass AND deptype IN ('a', 'i')
    WHERE relkind = 'S'
UNION ALL
SELECT 'type', t.oid, path || quote_ident(typname), 0,
    concat_ws(' ', format_type(nullif(typbasetype, 0), typtypmod),
    CASE WHEN typnotnull THEN 'NOT NULL' END,
    (SELECT string_agg(quote_literal(enumlabel), E'\n' ORDER BY enumsortorder)
    FROM pg_enum WHERE enumtypid = t.oid)), 0, ''
    FROM pg_type t JOIN schemas s ON s.oid = typnamespace
    WHERE t.oid >= 16384 AND typrelid = 0 AND typtype IN ('b', 'd', 'e', 'r')
    AND t.oid NOT IN (SELECT typarray FROM pg_type)
    AND t.oid NOT IN (SELECT objid FROM members WHERE classid = 'pg_type'::regclass)
UNION ALL
SELECT CASE prokind WHEN 'p' THEN 'procedure' ELSE 'function' END, p.oid,
    format('%s%I(%s)', path, proname, pg_get_function_identity_arguments(p.oid)), 0,
    md5(concat_ws(' ', prosrc, prorettype, proconfig, provolatile, prosecdef)), 0, ''
    FROM pg_proc p JOIN schemas s ON s.oid = pronamespace
    WHERE p.oid >= 16384
    -- Those of extensions, and those that a type of ranges brings.
    AND NOT EXISTS (SELECT FROM pg_depend WHERE classid = 'pg_proc'::regclass
    AND objid = p.oid AND deptype IN ('e', 'i'))
UNION ALL
SELECT 'constraint', oid, format('%I on %s', conname, conrelid::regclass), conrelid,
    pg_get_constraintdef(oid), 0, ''
    FROM pg_constraint WHERE conrelid >= 16384 AND contype IN ('c', 'f', 'p', 'u', 'x')
    AND conrelid IN (SELECT oid FROM relations)
UNION ALL
SELECT 'trigger', oid, format('%I on %s', tgname, tgrelid::regclass), tgrelid,
    concat_ws(' ', tgenabled, pg_get_triggerdef(oid)), 0, ''
    FROM pg_trigger WHERE NOT tgisinternal AND tgrelid IN (SELECT oid FROM relations)
UNION ALL
SELECT 'schema', n.oid, quote_ident(nspname), 0, '', 0, ''
    FROM pg_namespace n JOIN schemas s USING (oid) WHERE n.oid >= 16384
UNION ALL
SELECT 'extension', oid, quote_ident(extname), 0, extversion, 0, ''
    FROM pg_extension WHERE oid >= 16384
"""
"""The objects of a database that a user has made; an oid below 16384 is one of PostgreSQL's own.

*size* is the bytes of a table, or a sequence's value; -1 if an open transaction alters it, because
a query would wait for that. *key* has the columns of a primary key; *owner* is a table that an
object is part of.
"""

_SESSIONS: Final = """
SELECT pid, application_name, coalesce(state, ''),
    extract(epoch FROM clock_timestamp() - xact_start)::float8, coalesce(query, ''),
    coalesce((SELECT string_agg(DISTINCT c.oid::regclass::text, ', ' ORDER BY c.oid::regclass::text)
    FROM pg_locks l JOIN pg_class c ON c.oid = l.relation WHERE l.pid = a.pid AND c.oid >= 16384
    AND c.relkind IN ('r', 'p') AND l.mode IN ('RowExclusiveLock', 'AccessExclusiveLock',
    'ShareRowExclusiveLock') AND l.granted), ''),
    array_to_string(pg_blocking_pids(pid), ', ')
    FROM pg_stat_activity a WHERE datid = (SELECT oid FROM pg_database
    WHERE datname = current_database()) AND pid <> pg_backend_pid()
    AND backend_type = 'client backend' AND state <> 'idle'
UNION ALL
SELECT 0, gid, 'prepared', extract(epoch FROM clock_timestamp() - prepared)::float8, '', '', ''
    FROM pg_prepared_xacts WHERE database = current_database()
"""

_NOW: Final = "SELECT extract(epoch FROM clock_timestamp())::float8, pg_backend_pid()"


class Thing(NamedTuple):
    """An object of a database, such as a table, with its *definition*; see `_OBJECTS`."""

    kind: str
    oid: int
    name: str
    owner: int
    definition: str
    size: int
    key: str


class Contents(NamedTuple):
    """What the template has: its objects by kind and oid, the rows of tables, and their keys.

    *large* are the oids of tables that were not counted.
    """

    objects: Mapping[tuple[str, int], Thing]
    rows: Mapping[int, int]
    keys: Mapping[int, frozenset[str]]
    large: frozenset[int] = frozenset()


class TableChange(NamedTuple):
    """The rows of a table that a test has changed.

    *written* rows were inserted or updated, *gone* rows of the template updated or deleted, where
    only that is known. Otherwise there are exact numbers.
    """

    table: str
    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    written: int = 0
    gone: int = 0

    def __str__(self) -> str:
        """Return the numbers in words."""
        own = [
            f"{count} {word}"
            for count, word in (
                (self.inserted, "inserted"),
                (self.updated, "updated"),
                (self.deleted, "deleted"),
                (self.written, "inserted or updated"),
                (self.gone, "of the template updated or deleted"),
            )
            if count
        ]
        return ", ".join(own)


class Transaction(NamedTuple):
    """A connection in a transaction, or running a statement.

    *state* is PostgreSQL's word for it, or `prepared`. *seconds* is the age of the transaction,
    *query* its last statement, *tables* those that it has locked to write to them, *blockers* the
    process ids that it waits for.
    """

    pid: int
    name: str
    state: str
    seconds: float | None
    query: str
    tables: str
    blockers: str


class Changes(Struct):
    """What a test did to a database; *locked* and *large* are tables that were not counted."""

    tables: list[TableChange]
    made: list[str]
    dropped: list[str]
    altered: list[str]
    sequences: list[str]
    locked: list[str]
    large: list[str]


class Look(Struct):
    """The state of a database when its test has failed.

    It *is_unused* if no connection ever came to it, and *is_gone* if it no longer has its name.
    *template* is what it had at first. *pid* is
    the plugin's own connection, *epoch* the server's time in seconds since the epoch when
    `originals.monotonic` was 0, and *problem* says what could not be read.
    """

    is_unused: bool = False
    is_gone: bool = False
    template: Contents | None = None
    changes: Changes | None = None
    transactions: Sequence[Transaction] = ()
    pid: int = 0
    epoch: float = 0.0
    problem: str = ""


# What is read, whatever connection reads it.


def contents() -> Reading[Contents]:
    """Return what a new clone has."""
    objects = _by_oid((yield _OBJECTS))
    tables, large = _countable(objects.values())
    rows: dict[int, int] = {}
    if tables:
        query = "SELECT {}, count(*) FROM ONLY {}"
        counts = yield _union(query.format(each.oid, each.name) for each in tables)
        rows = dict(map(tuple, counts))
    few = [each for each in tables if each.key and 0 < rows[each.oid] <= _MAX_KEYS]
    keys: dict[int, set[str]] = {}
    if few:
        for oid, key in (yield _union(map(_keys_of, few))):
            keys.setdefault(oid, set()).add(key)
    return Contents(
        objects,
        rows,
        {oid: frozenset(own) for oid, own in keys.items()},
        frozenset(each.oid for each in large),
    )


def changes(template: Contents, xid: int) -> Reading[Changes]:
    """Return what differs from *template*, with the rows of transactions since *xid*."""
    now = _by_oid((yield _OBJECTS))
    found = Changes(*([] for _ in Changes.field_names))
    _compare_objects(template.objects, now, found)
    tables = sorted(each for each in now.values() if each.kind == "table")
    found.locked = [short(each.name) for each in tables if each.size < 0]
    filled, large = _countable(tables)
    large += [each for each in tables if each.oid in template.large and each not in large]
    found.large = sorted(short(each.name) for each in large)
    counts: dict[int, tuple[int, int]] = {}
    if filled:
        is_new = f"age(xmin) <= age('{xid % 2**32}'::xid)"
        query = "SELECT {}, count(*), count(*) FILTER (WHERE {}) FROM ONLY {}"
        rows = yield _union(query.format(each.oid, is_new, each.name) for each in filled)
        counts = {oid: (count, new) for oid, count, new in rows}
    unclear = []
    for each in sorted(tables, key=lambda each: each.name):
        if each.size < 0 or each in large:
            continue
        count, new = counts.get(each.oid, (0, 0))
        gone = template.rows.get(each.oid, 0) - (count - new)
        if not new or not gone:
            change = TableChange(short(each.name), inserted=new, deleted=gone)
        else:
            change = TableChange(short(each.name), written=new, gone=gone)
            known = template.objects.get((each.kind, each.oid))
            if each.oid in template.keys and known and known.key == each.key and new <= _MAX_KEYS:
                unclear.append(each)
        if new or gone:
            found.tables.append(change)
    if unclear:
        keys = yield _union(map(_keys_of, unclear))
        _tell_apart(found, unclear, template, counts, keys)
    return found


def _tell_apart(
    found: Changes,
    tables: Sequence[Thing],
    template: Contents,
    counts: Mapping[int, tuple[int, int]],
    keys: Rows,
) -> None:
    """Replace the changes of *tables* by exact ones: a row is the same if its key is."""
    now: dict[int, set[str]] = {}
    for oid, key in keys:
        now.setdefault(oid, set()).add(key)
    exact = {}
    for each in tables:
        name, (_, new) = short(each.name), counts[each.oid]
        old, own = template.keys[each.oid], now.get(each.oid, set())
        deleted, inserted = len(old - own), len(own - old)
        # The rows whose key was there before, but which are new: all others of the template stay.
        exact[name] = TableChange(name, inserted=inserted, updated=new - inserted, deleted=deleted)
    found.tables = [exact.get(each.table, each) for each in found.tables]


def _countable(things: Iterable[Thing]) -> tuple[list[Thing], list[Thing]]:
    """Return the tables that have rows, perhaps, and those of them that are too large to count."""
    small: list[Thing] = []
    large: list[Thing] = []
    total = 0
    for each in sorted(things, key=lambda each: each.size):
        if each.kind == "table" and each.size > 0:
            total += each.size
            (small if total <= _MAX_BYTES else large).append(each)
    return small, large


def _by_oid(rows: Rows) -> dict[tuple[str, int], Thing]:
    things = [Thing(*row) for row in rows]
    return {(each.kind, each.oid): each for each in things}


def _keys_of(table: Thing) -> str:
    return f"SELECT {table.oid}, ROW({table.key})::text FROM ONLY {table.name}"


def _union(queries: Iterable[str]) -> str:
    return " UNION ALL ".join(queries)


def _compare_objects(
    before: Mapping[tuple[str, int], Thing], now: Mapping[tuple[str, int], Thing], found: Changes
) -> None:
    made = [now[key] for key in now.keys() - before.keys()]
    dropped = [before[key] for key in before.keys() - now.keys()]
    found.made = _named(made, {each.oid for each in made})
    found.dropped = _named(dropped, {each.oid for each in dropped})
    for key in sorted(now.keys() & before.keys()):
        old, new = before[key], now[key]
        if new.kind == "sequence":
            if new.size >= 0 and (old.size, old.key) != (new.size, new.key):
                found.sequences.append(f"{short(new.name)} {_moved(old)} -> {_moved(new)}")
        elif old.definition != new.definition:
            found.altered.append(f"{_label(new)}{_difference(old, new)}")
        # A constraint and a trigger have the name of their table, too.
        if old.name.partition(" on ")[0] != new.name.partition(" on ")[0]:
            found.altered.append(f"{_label(old)} (renamed to {short(new.name)})")


def _named(things: Sequence[Thing], oids: set[int]) -> list[str]:
    """Return the names of *things*, without those that are part of another one."""
    return sorted(_label(each) for each in things if each.owner not in oids)


def _label(thing: Thing) -> str:
    return f"{thing.kind} {short(thing.name)}"


def short(text: str) -> str:
    """Return *text* without the name of the usual schema."""
    return re.sub(r"\bpublic\.", "", text)


def _moved(sequence: Thing) -> str:
    return str(sequence.size) if sequence.key else "unused"


def _difference(old: Thing, new: Thing) -> str:
    """Return the columns or labels that differ, if the definition lists them."""
    if old.kind in {"function", "procedure", "index", "constraint", "trigger"}:
        return ""
    lines = {name: each.definition.split("\n") for name, each in (("-", old), ("+", new))}
    parts = [
        *(f"- {each}" for each in lines["-"] if each not in lines["+"]),
        *(f"+ {each}" for each in lines["+"] if each not in lines["-"]),
    ]
    return short(f" ({', '.join(parts)})") if parts else ""


# Connections that read.


async def run(reading: Reading[T], fetch: Callable[[str], Awaitable[Rows]]) -> T:
    """Return the result of *reading*, whose queries *fetch* sends."""
    try:
        query = next(reading)
        while True:
            query = reading.send(await fetch(query))
    except StopIteration as end:
        result: T = end.value
        return result


def run_now(reading: Reading[T], fetch: Callable[[str], Rows]) -> T:
    """Do the same with a synchronous connection."""
    try:
        query = next(reading)
        while True:
            query = reading.send(fetch(query))
    except StopIteration as end:
        result: T = end.value
        return result


LIMITS: Final = f"lock_timeout = {_LOCK_TIMEOUT}", "statement_timeout = 1000", "search_path = ''"
"""The settings with which a connection reads: it doesn't wait long, and names are complete."""

_templates: WeakKeyDictionary[CloneFactory, asyncio.Future[Contents]] = WeakKeyDictionary()
"""What each template has, as soon as it is read."""


async def look(
    factory: CloneFactory, clone: Clone, seconds: float, connected: Callable[[], None]
) -> Look:
    """Return what was done to *clone*, within *seconds*, on the background loop.

    *connected* is called before the plugin connects to it.
    """
    found = Look()
    inside = Connection(factory.endpoint, str(clone.name))
    try:
        async with asyncio.timeout(seconds):
            await _look(factory, clone, found, inside, connected)
        await inside.close()
    except TimeoutError:
        found.problem = f"PostgreSQL did not answer within {seconds:g} seconds"
    except WarmstackError as error:
        found.problem = f"its database could not be read: {error.why or error.what}"
    except Exception as error:  # A failure must not hide that of the test.
        found.problem = f"its database could not be read: {type(error).__name__}: {error}"
    finally:
        inside.end()
    return found


async def _look(
    factory: CloneFactory,
    clone: Clone,
    found: Look,
    inside: Connection,
    connected: Callable[[], None],
) -> None:
    if await _is_unused(factory, clone):
        found.is_unused = True
        return
    if await factory.main.fetchval(sql.NAME_OF, clone.oid) != str(clone.name):
        found.is_gone = True
        found.problem = "the test has renamed or dropped it"
        return
    template = _templates.get(factory)
    if template is None:
        template = _templates[factory] = asyncio.ensure_future(_read_template(factory))
        # Perhaps no one waits for it any more.
        template.add_done_callback(lambda done: done.cancelled() or done.exception())
    connected()
    await _limit(inside)
    ((now, found.pid),) = await inside.fetch(_NOW)
    found.epoch = now - originals.monotonic()
    found.transactions = [Transaction(*row) for row in await inside.fetch(_SESSIONS)]
    # Other failures wait for it too.
    found.template = await asyncio.shield(template)
    found.changes = await run(changes(found.template, factory.xid_of(clone)), inside.fetch)


async def _is_unused(factory: CloneFactory, clone: Clone) -> bool:
    """Return whether no connection ever came to *clone*, without one to it."""
    main = factory.main
    if main.major < COUNTS_AT_ONCE or await main.fetch(sql.SESSIONS, clone.oid):
        return False
    return not await main.fetchval(sql.VISITS, clone.oid)


async def _read_template(factory: CloneFactory) -> Contents:
    """Return what the template has, from a copy of it: no one can connect to the template."""
    copy = await asyncio.wrap_future(factory.prepare(fresh=True))
    try:
        async with Connection(factory.endpoint, str(copy.name)) as inside:
            await _limit(inside)
            return await run(contents(), inside.fetch)
    finally:
        await asyncio.wrap_future(factory.drop(copy))


async def _limit(connection: Connection) -> None:
    await connection.try_to_execute("; ".join(f"SET {each}" for each in LIMITS))
