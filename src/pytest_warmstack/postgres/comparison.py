"""Compares the database of a failed test with its template: rows, sequences and structure.

Neither database is changed. The template accepts no connections, so a short-lived copy of it is
read. If the process is killed, the next sweep drops the copy, like any clone without an owner.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Final, NamedTuple, Self

from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.postgres import DatabaseName, State, sql
from pytest_warmstack.postgres.connections import Connection, StatementRefused
from pytest_warmstack.postgres.databases import Databases

TABLE_TIMEOUT: Final = 60
"""Seconds that PostgreSQL may take for one statement; each statement reads one table."""

VALUE_LENGTH: Final = 1000
"""How many characters of a value are read."""

_MOST_ROWS: Final = 200_000
"""How many rows of a table are compared one by one."""

_ROWS_OF_BUCKET: Final = 16
_MOST_BUCKETS: Final = 65_536

_SETTINGS: Final = {
    # Values must have the same text in both databases, whatever their own settings are.
    "search_path": "pg_catalog",
    "timezone": "UTC",
    "datestyle": "ISO, MDY",
    "intervalstyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "lc_monetary": "C",
    # Without this, row-level security would hide rows; with it, the statement fails.
    "row_security": "off",
    "default_transaction_read_only": "on",
    "statement_timeout": f"{TABLE_TIMEOUT}s",
    # A test that is paused in a debugger may hold a lock.
    "lock_timeout": "5s",
}

_SCHEMAS: Final = r"nspname NOT LIKE 'pg\_%' AND nspname <> 'information_schema'"

_RELATIONS: Final = f"""
SELECT format('%I.%I', n.nspname, c.relname) AS name, c.relkind::text AS kind,
  c.relispopulated AS filled,
  (SELECT json_agg(json_build_array(a.attname, t.typcategory) ORDER BY a.attnum)
   FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
   WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)::text AS columns,
  (SELECT json_agg(k.names ORDER BY k.indisprimary DESC, k.indnkeyatts, k.indexrelid) FROM (
   SELECT i.indisprimary, i.indnkeyatts, i.indexrelid, json_agg(a.attname ORDER BY p.place) AS names
   FROM pg_index i, unnest(i.indkey) WITH ORDINALITY p(attnum, place), pg_attribute a
   WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid AND i.indpred IS NULL
   AND p.place <= i.indnkeyatts AND a.attrelid = c.oid AND a.attnum = p.attnum
   GROUP BY 1, 2, 3 HAVING count(*) = i.indnkeyatts AND bool_and(a.attnotnull)) k)::text AS keys
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'm', 'S') AND NOT c.relispartition AND c.relpersistence <> 't'
AND {_SCHEMAS} ORDER BY 1
"""
"""What has rows, with its columns and its keys without NULL; a partitioned table only as a whole.

A column is its name and the category of its type (PostgreSQL's documentation, "pg_type").
"""

_OBJECTS: Final = f"""
WITH schemas AS (SELECT oid, quote_ident(nspname) AS schema FROM pg_namespace WHERE {_SCHEMAS}),
tables AS (
  SELECT c.*, format('%s.%I', schema, relname) AS name
  FROM pg_class c JOIN schemas s ON s.oid = c.relnamespace WHERE c.relpersistence <> 't'
), parts(class, id, kind, name, parent, definition) AS (
  SELECT 'pg_namespace'::regclass, oid, 'schema', schema, '', '' FROM schemas
  UNION ALL SELECT 'pg_extension'::regclass, oid, 'extension', quote_ident(extname), '', extversion
  FROM pg_extension
  UNION ALL SELECT 'pg_class'::regclass, oid, 'table', name, '',
    concat_ws(', ', pg_get_expr(relpartbound, oid),
      CASE WHEN relrowsecurity THEN 'row security' END,
      CASE WHEN relpersistence = 'u' THEN 'unlogged' END)
  FROM tables WHERE relkind IN ('r', 'p', 'f')
  UNION ALL SELECT 'pg_class'::regclass, c.oid, 'column',
    format('%s.%I', c.name, a.attname), c.name,
    concat_ws(' ', format_type(a.atttypid, a.atttypmod),
      CASE WHEN a.attnotnull THEN 'NOT NULL' END,
      CASE WHEN a.attidentity <> '' THEN 'IDENTITY' END,
      CASE WHEN a.attgenerated <> '' THEN 'GENERATED' WHEN d.oid IS NOT NULL THEN 'DEFAULT' END,
      pg_get_expr(d.adbin, d.adrelid))
  FROM tables c JOIN pg_attribute a ON a.attrelid = c.oid
  LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
  WHERE c.relkind IN ('r', 'p', 'f') AND NOT c.relispartition AND a.attnum > 0
  AND NOT a.attisdropped
  UNION ALL SELECT 'pg_class'::regclass, oid, CASE relkind WHEN 'v' THEN 'view' ELSE
    'materialized view' END, name, '', pg_get_viewdef(oid)
  FROM tables WHERE relkind IN ('v', 'm')
  UNION ALL SELECT 'pg_class'::regclass, c.oid, 'sequence', c.name, coalesce(o.name, ''), ''
  FROM tables c LEFT JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid
  AND d.deptype IN ('a', 'i') AND d.refclassid = 'pg_class'::regclass
  LEFT JOIN tables o ON o.oid = d.refobjid WHERE c.relkind = 'S'
  UNION ALL SELECT 'pg_class'::regclass, c.oid, 'index', x.name, c.name,
    pg_get_indexdef(i.indexrelid)
  FROM pg_index i JOIN tables c ON c.oid = i.indrelid JOIN tables x ON x.oid = i.indexrelid
  WHERE NOT x.relispartition
  AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid AND k.contype <> 'f')
  UNION ALL SELECT 'pg_class'::regclass, c.oid, 'constraint', format('%s.%I', c.name, k.conname),
    c.name, pg_get_constraintdef(k.oid)
  FROM pg_constraint k JOIN tables c ON c.oid = k.conrelid
  WHERE k.contype NOT IN ('n', 't') AND k.conparentid = 0
  UNION ALL SELECT 'pg_class'::regclass, c.oid, 'trigger',
    format('%s.%I', c.name, t.tgname), c.name,
    concat_ws(' ', pg_get_triggerdef(t.oid), CASE WHEN t.tgenabled = 'D' THEN 'DISABLED' END)
  FROM pg_trigger t JOIN tables c ON c.oid = t.tgrelid
  WHERE NOT t.tgisinternal AND t.tgparentid = 0
  UNION ALL SELECT 'pg_class'::regclass, c.oid, 'policy',
    format('%s.%I', c.name, p.polname), c.name,
    concat_ws(' ', p.polcmd, pg_get_expr(p.polqual, c.oid), pg_get_expr(p.polwithcheck, c.oid))
  FROM pg_policy p JOIN tables c ON c.oid = p.polrelid
  UNION ALL SELECT 'pg_proc'::regclass, p.oid, 'function',
    format('%s.%I(%s)', schema, proname, pg_get_function_identity_arguments(p.oid)), '',
    CASE WHEN prokind <> 'a' THEN pg_get_functiondef(p.oid) ELSE '' END
  FROM pg_proc p JOIN schemas s ON s.oid = p.pronamespace
  UNION ALL SELECT 'pg_type'::regclass, t.oid, 'type', format('%s.%I', schema, typname), '',
    coalesce(
      (SELECT string_agg(quote_literal(enumlabel), ', ' ORDER BY enumsortorder) FROM pg_enum
       WHERE enumtypid = t.oid),
      (SELECT string_agg(format('%I %s', attname, format_type(atttypid, atttypmod)), ', '
       ORDER BY attnum) FROM pg_attribute
       WHERE attrelid = t.typrelid AND attnum > 0 AND NOT attisdropped),
      CASE WHEN typtype = 'd' THEN format_type(typbasetype, typtypmod) ELSE '' END)
  FROM pg_type t JOIN schemas s ON s.oid = t.typnamespace LEFT JOIN pg_class c ON c.oid = t.typrelid
  WHERE typtype IN ('e', 'd', 'r') OR c.relkind = 'c'
)
SELECT kind, name, parent, definition FROM parts WHERE NOT EXISTS (
  SELECT FROM pg_depend WHERE classid = class AND objid = id AND deptype = 'e') ORDER BY 2, 1
"""
"""The structure: each object with its definition as text, without those of extensions.

Changes of a *parent* that was made or dropped are not listed one by one.
"""


@dataclass(frozen=True)
class RowChange:
    """A row that differs; *change* is `added`, `removed` or `changed`.

    *before* and *after* are its values as text by column, None for NULL; for a changed row they are
    those that differ, and *key* identifies it. *times* counts equal rows of a table without a key.
    """

    change: str
    key: Mapping[str, str | None]
    before: Mapping[str, str | None]
    after: Mapping[str, str | None]
    times: int = 1


@dataclass(kw_only=True)
class TableChange:
    """A table whose rows differ: how many it had *before* and *after*, and which ones.

    The counts are None if there are too many rows to compare one by one. *rows* is limited.
    *numeric* are the columns whose values need no quotes. If the table can't be read, *problem* is
    the reason.
    """

    table: str
    before: int = 0
    after: int = 0
    added: int | None = 0
    removed: int | None = 0
    changed: int | None = 0
    rows: list[RowChange] = field(default_factory=list)
    numeric: frozenset[str] = frozenset()
    problem: str = ""


@dataclass(frozen=True)
class ObjectChange:
    """An object of the structure, or a sequence's value, that was made, dropped or changed."""

    kind: str
    name: str
    change: str
    before: str = ""
    after: str = ""


@dataclass
class Comparison:
    """All differences, and how many tables have the same rows in both databases."""

    tables: list[TableChange] = field(default_factory=list)
    sequences: list[ObjectChange] = field(default_factory=list)
    objects: list[ObjectChange] = field(default_factory=list)
    unread: list[TableChange] = field(default_factory=list)
    same: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether no difference was found."""
        return not (self.tables or self.sequences or self.objects)

    def plain(self) -> dict[str, Any]:
        """Return the comparison for JSON."""
        plain = asdict(self)
        for each in (*plain["tables"], *plain["unread"]):
            del each["numeric"]
        return plain


@contextmanager
def copy_of(databases: Databases, template: DatabaseName) -> Iterator[DatabaseName | None]:
    """Yield a copy of *template* for the `with` block; None if that template doesn't exist.

    Raises `CloneFailed`.
    """
    if not databases.find_template(template):
        yield None
        return
    copy = DatabaseName.new(State.IN_USE, template.fingerprint)
    databases.try_lock(copy)  # New, so it is free. The lock marks the copy as in use.
    try:
        databases.copy(template, copy)
        yield copy
    finally:
        with suppress(WarmstackError):  # The next sweep drops it.
            databases.drop(copy)


def compare(
    databases: Databases, before: DatabaseName, after: DatabaseName, *, limit: int
) -> Comparison:
    """Return what differs in *after* from *before*.

    At most *limit* added, removed and changed rows of each table are listed, *limit* of each kind.
    Raises `StatementRefused` and `ConnectionLost`.
    """
    return databases.background.call(_compare, databases, before, after, limit)


async def _compare(
    databases: Databases, before: DatabaseName, after: DatabaseName, limit: int
) -> Comparison:
    # A connection that is lost during its turn does not reopen, so the settings stay in force.
    async with (
        Connection(databases.endpoint, str(before)) as first,
        Connection(databases.endpoint, str(after)) as second,
        first.turn(),
        second.turn(),
    ):
        sides = await _Side.open(first), await _Side.open(second)
        comparison = Comparison(objects=_compare_objects(sides[0].objects, sides[1].objects))
        for name in sorted({name for side in sides for name in side.relations}):
            relations = [side.relations.get(name) or _Relation(name) for side in sides]
            try:
                if _SEQUENCE in {each.kind for each in relations}:
                    values = [
                        await side.value(each) for side, each in zip(sides, relations, strict=True)
                    ]
                    if "" not in values and values[0] != values[1]:
                        change = ObjectChange("sequence", name, "changed", *values)
                        comparison.sequences.append(change)
                    continue
                table = await _compare_table(sides, relations, limit)
            except StatementRefused as refusal:
                comparison.unread.append(
                    TableChange(table=name, problem=refusal.why.splitlines()[0])
                )
                continue
            if table is None:
                comparison.same += 1
            else:
                comparison.tables.append(table)
        return comparison


_SEQUENCE: Final = "S"


class _Relation(NamedTuple):
    """A table, materialized view or sequence; without a *kind* it does not exist.

    *columns* maps the name of each column to the category of its type. *keys* are the lists of
    columns that identify a row, the primary key first.
    """

    name: str
    kind: str = ""
    columns: Mapping[str, str] = {}
    keys: Sequence[Sequence[str]] = ()

    @property
    def source(self) -> str:
        """What a query reads: the rows of the partitions, but not those of tables that inherit."""
        return self.name if self.kind == "p" else f"ONLY {self.name}"


class _Found(NamedTuple):
    """The *digest* of a row, and how many equal ones there are."""

    digest: int
    times: int


class _Side:
    """One of the two databases; `relations` and `objects` are by name."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.relations: dict[str, _Relation] = {}
        self.objects: dict[tuple[str, str], tuple[str, str]] = {}

    @classmethod
    async def open(cls, connection: Connection) -> Self:
        """Read what is in the database."""
        side = cls(connection)
        await connection.try_to_execute(sql.settings(_SETTINGS))
        for row in await side._fetch(_RELATIONS):
            if row["filled"]:
                columns = dict(json.loads(row["columns"] or "[]"))
                keys = json.loads(row["keys"] or "[]")
                side.relations[row["name"]] = _Relation(row["name"], row["kind"], columns, keys)
        for row in await side._fetch(_OBJECTS):
            side.objects[row["kind"], row["name"]] = row["parent"], row["definition"] or ""
        return side

    async def _fetch(self, query: str) -> Sequence[Any]:
        # The server gives up first, so that the connection stays.
        return await self._connection.fetch(query, seconds=TABLE_TIMEOUT + 15)

    async def value(self, sequence: _Relation) -> str:
        """Return the last value of a sequence as text; "" if it does not exist."""
        if not sequence.kind:
            return ""
        (row,) = await self._fetch(f"SELECT last_value, is_called FROM {sequence.name}")
        return f"{row['last_value']}{'' if row['is_called'] else ' (not used yet)'}"

    async def summary(self, relation: _Relation, digest: str) -> tuple[int, Any]:
        """Return the number of rows, and a sum of their digests."""
        if not relation.kind:
            return 0, None
        (row,) = await self._fetch(f"SELECT count(*), sum({digest}) FROM {relation.source}")
        return row[0], row[1]

    async def buckets(
        self, relation: _Relation, key: str, digest: str, count: int
    ) -> dict[int, tuple[int, Any]]:
        """Return the number of rows, and a sum of their digests, for each of *count* buckets."""
        rows = await self._fetch(
            f"SELECT {key} & {count - 1}, count(*), sum({digest}) FROM {relation.source} GROUP BY 1"
        )
        return {row[0]: (row[1], row[2]) for row in rows}

    async def rows(
        self, relation: _Relation, plan: _Plan, condition: str
    ) -> dict[int, _Found] | None:
        """Return the rows that *condition* selects, by key; None if there are too many."""
        if plan.key:
            what, how = "1", ", ".join(map(sql.quote, plan.key))
        else:
            what, how = "count(*)", f'{plan.text} COLLATE "C"'
        group = "" if plan.key else f"GROUP BY {plan.text}"
        rows = await self._fetch(
            f"SELECT {plan.key_digest}, {plan.digest}, {what} FROM {relation.source} {condition}"
            f" {group} ORDER BY {how} LIMIT {_MOST_ROWS + 1}"
        )
        if len(rows) > _MOST_ROWS:
            return None
        return {row[0]: _Found(row[1], row[2]) for row in rows}

    async def values(
        self, relation: _Relation, plan: _Plan, keys: Sequence[int]
    ) -> dict[int, dict[str, _Value]]:
        """Return the values of the rows with these *keys*."""
        if not keys:
            return {}
        rows = await self._fetch(
            f"SELECT DISTINCT ON (1) {plan.key_digest}, {_values(relation.columns)}"
            f" FROM {relation.source} WHERE {plan.key_digest} = ANY ('{sql.array(keys)}')"
        )
        return {row[0]: _read(relation.columns, row[1]) for row in rows}

    async def first(self, relation: _Relation, plan: _Plan, limit: int) -> list[dict[str, _Value]]:
        """Return the values of the first *limit* rows, in the order of the key."""
        order = f"ORDER BY {', '.join(map(sql.quote, plan.key))}" if plan.key else ""
        rows = await self._fetch(
            f"SELECT {_values(relation.columns)} FROM {relation.source} {order} LIMIT {limit}"
        )
        return [_read(relation.columns, row[0]) for row in rows]


class _Value(NamedTuple):
    """The beginning of a value as text, and a digest of all of it."""

    text: str | None
    digest: int | None


def _values(columns: Mapping[str, str]) -> str:
    """Return the expression for the values of a row, as JSON: arrays need another round trip."""
    texts = [f"{sql.quote(each)}::text" for each in columns]
    shown = ", ".join(
        f"CASE WHEN length({each}) > {VALUE_LENGTH} THEN"
        f" left({each}, {VALUE_LENGTH}) || ' ... (' || length({each}) || ' characters)'"
        f" ELSE {each} END"
        for each in texts
    )
    digests = ", ".join(map(_digest, texts))
    return f"to_json(ARRAY[{shown}]::text[])::text || to_json(ARRAY[{digests}]::bigint[])::text"


def _read(columns: Mapping[str, str], text: str) -> dict[str, _Value]:
    values, end = json.JSONDecoder().raw_decode(text)
    return {
        name: _Value(*pair)
        for name, pair in zip(
            columns, zip(values, json.loads(text[end:]), strict=True), strict=True
        )
    }


def _digest(text: str) -> str:
    return f'hashtextextended({text} COLLATE "C", 0)'


def _row(columns: Sequence[str]) -> str:
    return f"ROW({', '.join(map(sql.quote, columns))})::text"


class _Plan(NamedTuple):
    """How the rows of a table are compared: by *key*, or as a whole if that is empty.

    *text*, *digest* and *key_digest* are SQL expressions over the *columns* that both sides have.
    """

    columns: Sequence[str]
    key: Sequence[str]
    text: str
    digest: str
    key_digest: str

    @classmethod
    def make(cls, before: _Relation, after: _Relation) -> Self:
        """Return the plan for a table that may exist on one side only."""
        if not (before.kind and after.kind):
            only = before if before.kind else after
            columns, key = list(only.columns), next(iter(only.keys), ())
        else:
            columns = [each for each in after.columns if each in before.columns]
            key = next((each for each in after.keys if each in before.keys), ())
        text = f"({_row(columns)})"
        digest = _digest(text)
        return cls(columns, key, text, digest, _digest(f"({_row(key)})") if key else digest)


async def _compare_table(
    sides: tuple[_Side, _Side], relations: Sequence[_Relation], limit: int
) -> TableChange | None:
    """Return how the rows of a table differ; None if they don't."""
    before, after = relations
    plan = _Plan.make(before, after)
    summaries = [await s.summary(r, plan.digest) for s, r in zip(sides, relations, strict=True)]
    if summaries[0] == summaries[1] or not any(count for count, _ in summaries):
        return None
    counts = summaries[0][0], summaries[1][0]
    categories = {**before.columns, **after.columns}
    found = TableChange(
        table=after.name,
        before=counts[0],
        after=counts[1],
        numeric=frozenset(name for name, each in categories.items() if each in "NB"),
    )
    if not all(counts):
        await _list_one_side(found, sides, relations, plan, limit)
        return found
    condition = await _narrow(sides, relations, plan, max(counts))
    rows = [await s.rows(r, plan, condition) for s, r in zip(sides, relations, strict=True)]
    if rows[0] is None or rows[1] is None:
        found.added = found.removed = found.changed = None
        return found
    await _list_rows(found, sides, relations, plan, (rows[0], rows[1]), limit)
    return found


async def _list_one_side(
    found: TableChange,
    sides: tuple[_Side, _Side],
    relations: Sequence[_Relation],
    plan: _Plan,
    limit: int,
) -> None:
    """List rows of a table that has none on the other side."""
    found.added, found.removed = found.after, found.before
    which = 0 if found.before else 1
    for values in await sides[which].first(relations[which], plan, limit):
        texts = {name: value.text for name, value in values.items()}
        change = RowChange("added", {}, {}, texts) if which else RowChange("removed", {}, texts, {})
        found.rows.append(change)


async def _narrow(
    sides: tuple[_Side, _Side], relations: Sequence[_Relation], plan: _Plan, count: int
) -> str:
    """Return the condition for the part of a large table that has the rows that differ.

    The rows are in buckets by a digest of their keys. A bucket that is the same on both sides is
    not read.
    """
    wanted = count // _ROWS_OF_BUCKET
    if wanted < _ROWS_OF_BUCKET:
        return ""
    many = min(_MOST_BUCKETS, 1 << wanted.bit_length())
    one, other = [
        await s.buckets(r, plan.key_digest, plan.digest, many)
        for s, r in zip(sides, relations, strict=True)
    ]
    differing = [each for each in one.keys() | other.keys() if one.get(each) != other.get(each)]
    return f"WHERE {plan.key_digest} & {many - 1} = ANY ('{sql.array(differing)}')"


async def _list_rows(
    found: TableChange,
    sides: tuple[_Side, _Side],
    relations: Sequence[_Relation],
    plan: _Plan,
    rows: tuple[dict[int, _Found], dict[int, _Found]],
    limit: int,
) -> None:
    """Count the rows that differ, and list the first ones."""
    before, after = rows
    added, removed = _more(after, before), _more(before, after)
    changed = [
        key for key, row in after.items() if key in before and before[key].digest != row.digest
    ]
    found.added, found.removed = sum(added.values()), sum(removed.values())
    found.changed = len(changed)
    shown = [list(each)[:limit] for each in (added, removed, changed)]
    old = await sides[0].values(relations[0], plan, shown[1] + shown[2])
    new = await sides[1].values(relations[1], plan, shown[0] + shown[2])
    for key in shown[2]:
        pairs = {each: (old[key][each], new[key][each]) for each in plan.columns}
        differing = {name: pair for name, pair in pairs.items() if pair[0].digest != pair[1].digest}
        found.rows.append(
            RowChange(
                "changed",
                {name: pairs[name][1].text for name in plan.key},
                {name: pair[0].text for name, pair in differing.items()},
                {name: pair[1].text for name, pair in differing.items()},
            )
        )
    for key in shown[1]:
        texts = {name: value.text for name, value in old[key].items()}
        found.rows.append(RowChange("removed", {}, texts, {}, removed[key]))
    for key in shown[0]:
        texts = {name: value.text for name, value in new[key].items()}
        found.rows.append(RowChange("added", {}, {}, texts, added[key]))


def _more(rows: Mapping[int, _Found], others: Mapping[int, _Found]) -> dict[int, int]:
    """Return, by key, how many more equal rows there are than among *others*."""
    nothing = _Found(0, 0)
    more = {key: row.times - others.get(key, nothing).times for key, row in rows.items()}
    return {key: times for key, times in more.items() if times > 0}


def _compare_objects(
    before: Mapping[tuple[str, str], tuple[str, str]],
    after: Mapping[tuple[str, str], tuple[str, str]],
) -> list[ObjectChange]:
    """Return what was made, dropped and changed, without the parts of what was made or dropped."""
    changes = []
    for kind, name in sorted(before.keys() | after.keys(), key=lambda each: each[::-1]):
        old, new = before.get((kind, name)), after.get((kind, name))
        if old is not None and new is not None:
            if old[1] != new[1]:
                changes.append(ObjectChange(kind, name, "changed", old[1], new[1]))
            continue
        parent = (old or new or ("", ""))[0]
        if not parent or (("table", parent) in before and ("table", parent) in after):
            change = "made" if old is None else "dropped"
            definitions = old[1] if old else "", new[1] if new else ""
            changes.append(ObjectChange(kind, name, change, *definitions))
    return changes
