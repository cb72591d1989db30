"""A template with every kind of table, and clones of it that are used, put back and compared."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, NamedTuple

import psycopg

from projects import Bench, until
from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.postgres import sql
from pytest_warmstack.postgres.connections import Connection
from pytest_warmstack.postgres.put_back import Baseline, Mark, put_back
from pytest_warmstack.servers.model import MAINTENANCE, USER, Server

TEMPLATE: Final = r"""
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE DOMAIN positive AS integer CHECK (VALUE > 0);
CREATE TYPE pair AS (x integer, y text);
CREATE SCHEMA other;
CREATE SCHEMA "Odd ""schema";
CREATE FUNCTION twice(integer) RETURNS integer IMMUTABLE LANGUAGE sql AS 'SELECT $1 * 2';

-- Empty in the template.
CREATE TABLE plain (
    id serial PRIMARY KEY, name text UNIQUE, mood mood DEFAULT 'ok', amount positive, tags text[],
    spot pair, document jsonb, body text
);
ALTER TABLE plain ALTER body SET STORAGE EXTERNAL;
CREATE INDEX ON plain USING gin (tags);
CREATE INDEX ON plain (lower(name)) WHERE amount > 3;
CREATE INDEX ON plain USING hash (mood);
CREATE INDEX ON plain USING brin (id);
CREATE TABLE other.numbered (
    id integer GENERATED ALWAYS AS IDENTITY (START 100 INCREMENT 5) PRIMARY KEY,
    plain_id integer REFERENCES plain ON DELETE CASCADE,
    n integer, twice integer GENERATED ALWAYS AS (twice(n)) STORED
);
CREATE TABLE nothing ();
CREATE TABLE "Odd ""schema"."Odd 'table" ("Odd column" integer);
CREATE UNLOGGED TABLE fast (id serial PRIMARY KEY, note text);
CREATE TABLE booking (
    during int4range, place integer, rank integer UNIQUE DEFERRABLE INITIALLY DEFERRED,
    EXCLUDE USING gist (during WITH &&)
);
CREATE TABLE log (day integer, kind text, note text) PARTITION BY RANGE (day);
CREATE TABLE log_1 PARTITION OF log FOR VALUES FROM (0) TO (10) PARTITION BY LIST (kind);
CREATE TABLE log_1_a PARTITION OF log_1 FOR VALUES IN ('a');
CREATE TABLE log_1_rest PARTITION OF log_1 DEFAULT;
CREATE TABLE log_rest PARTITION OF log DEFAULT;
CREATE INDEX ON log (note);
CREATE TABLE spread (id bigserial, n integer, PRIMARY KEY (id)) PARTITION BY HASH (id);
CREATE TABLE spread_0 PARTITION OF spread FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE spread_1 PARTITION OF spread FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE egg (id integer PRIMARY KEY, hen_id integer);
CREATE TABLE hen (id integer PRIMARY KEY, egg_id integer);
ALTER TABLE hen ADD FOREIGN KEY (egg_id) REFERENCES egg DEFERRABLE INITIALLY DEFERRED;
ALTER TABLE egg ADD FOREIGN KEY (hen_id) REFERENCES hen DEFERRABLE INITIALLY DEFERRED;
CREATE TABLE tree (id serial PRIMARY KEY, parent_id integer REFERENCES tree ON DELETE RESTRICT);
CREATE TABLE secret (id serial, owner text);
ALTER TABLE secret ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY nobody ON secret USING (false);
CREATE TABLE analyzed (id serial PRIMARY KEY, note text);
CREATE INDEX ON analyzed (note);

-- Triggers and rules, some of which no role of the connection stops.
CREATE TABLE audit (id serial, what text);
CREATE FUNCTION note_it() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN INSERT INTO audit (what) VALUES (TG_TABLE_NAME || ' ' || TG_OP); RETURN NULL; END $$;
CREATE TRIGGER note_it AFTER INSERT OR UPDATE OR DELETE ON other.numbered
    FOR EACH ROW EXECUTE FUNCTION note_it();
CREATE TRIGGER note_all AFTER TRUNCATE OR DELETE ON other.numbered EXECUTE FUNCTION note_it();
CREATE TABLE watched (id integer);
CREATE TRIGGER note_it AFTER DELETE OR TRUNCATE ON watched EXECUTE FUNCTION note_it();
ALTER TABLE watched ENABLE ALWAYS TRIGGER note_it;
CREATE TABLE replicated (id integer);
CREATE TRIGGER note_it AFTER DELETE ON replicated FOR EACH ROW EXECUTE FUNCTION note_it();
ALTER TABLE replicated ENABLE REPLICA TRIGGER note_it;
CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
CREATE TABLE held (id integer);
CREATE TRIGGER hold BEFORE DELETE ON held FOR EACH ROW EXECUTE FUNCTION hold();
ALTER TABLE held ENABLE ALWAYS TRIGGER hold;
CREATE TABLE ruled (id integer);
CREATE RULE stays AS ON DELETE TO ruled DO INSTEAD NOTHING;
ALTER TABLE ruled ENABLE ALWAYS RULE stays;
CREATE TABLE announced (id integer);
CREATE PUBLICATION announced FOR TABLE announced;

-- With rows in the template.
INSERT INTO watched VALUES (1);
INSERT INTO ruled VALUES (1);
CREATE TABLE spoken AS SELECT 1 AS id;
CREATE PUBLICATION spoken FOR TABLE spoken;
CREATE TABLE country (code text PRIMARY KEY, name text, head_id integer REFERENCES plain);
INSERT INTO country SELECT 'c' || i, 'Country ' || i FROM generate_series(1, 5) i;
CREATE TABLE city (
    id serial PRIMARY KEY, country text REFERENCES country ON UPDATE CASCADE,
    near_id integer REFERENCES city ON DELETE SET NULL, note text
);
CREATE INDEX ON city (country);
INSERT INTO city (country, near_id)
    SELECT 'c' || 1 + i % 5, nullif(i - 1, 0) FROM generate_series(1, 30) i;
CREATE TABLE large (id serial PRIMARY KEY, n integer, note text);
ALTER TABLE large ALTER note SET STORAGE EXTERNAL;
CREATE INDEX ON large (n);
INSERT INTO large (n, note) SELECT i % 100, repeat('x', 30) FROM generate_series(1, 2000) i;
CREATE TABLE large_raw AS SELECT i AS id, repeat('y', 30) AS note FROM generate_series(1, 2000) i;
CREATE TABLE document (id serial PRIMARY KEY, body text);
ALTER TABLE document ALTER body SET STORAGE EXTERNAL;
INSERT INTO document (body) SELECT repeat(i::text, 20000) FROM generate_series(1, 2) i;
CREATE TABLE animal (id serial PRIMARY KEY, name text);
CREATE TABLE dog (race text) INHERITS (animal);
INSERT INTO dog (name, race) VALUES ('Rex', 'spaniel'), ('Fido', 'poodle');
CREATE TABLE plant (name text);
CREATE TABLE tulip () INHERITS (plant);
INSERT INTO plant VALUES ('oak');
INSERT INTO tulip VALUES ('semper augustus');
CREATE TABLE shelf (n integer, note text) PARTITION BY LIST (n);
CREATE TABLE shelf_1 PARTITION OF shelf FOR VALUES IN (1);
CREATE TABLE shelf_2 PARTITION OF shelf FOR VALUES IN (2);
INSERT INTO shelf VALUES (1, 'a'), (1, 'b');
CREATE MATERIALIZED VIEW cities AS SELECT id, country FROM city;
CREATE UNIQUE INDEX ON cities (id);
CREATE MATERIALIZED VIEW plains AS SELECT id, name FROM plain;
CREATE UNIQUE INDEX ON plains (id);
CREATE VIEW names AS SELECT name FROM plain;
CREATE STATISTICS of_large ON n, note FROM large;

-- Sequences in each state.
CREATE SEQUENCE free CACHE 10;
CREATE SEQUENCE started;
SELECT setval('started', 42);
CREATE SEQUENCE backwards INCREMENT -3 MAXVALUE 1000 START 1000 CYCLE;
SELECT nextval('backwards');
CREATE SEQUENCE "Odd ""schema"."Odd sequence" AS smallint;

SELECT lo_from_bytea(4711, 'seeded');
COMMENT ON TABLE plain IS 'plain';
ANALYZE country, city, large, analyzed, document, shelf, dog;
DELETE FROM city WHERE id IN (5, 30);
"""
"""Statements that make the template; its tables come with rows and without, analyzed and not."""

_IGNORED_COLUMNS: Final = {
    # A new file for an emptied table, and what PostgreSQL counts from.
    "pg_class": ("relfilenode", "relfrozenxid", "relminmxid"),
}

_SHARED: Final = {
    "pg_database": "datname = current_database()",
    "pg_db_role_setting": "setdatabase = {oid}",
    "pg_shdepend": "dbid = {oid}",
    "pg_shdescription": "classoid = 'pg_database'::regclass AND objoid = {oid}",
    "pg_shseclabel": "classoid = 'pg_database'::regclass AND objoid = {oid}",
    "pg_subscription": "subdbid = {oid}",
}
"""PostgreSQL's tables that all databases share, and which of their rows are about this one."""

_OWN_COLUMNS: Final = {
    "oid", "datname", "setdatabase", "dbid", "objoid", "datfrozenxid", "datminmxid", "datconnlimit"
}  # fmt: skip
"""The columns in which the rows of two databases differ."""

PLANS: Final = (
    "SELECT * FROM plain WHERE id = 3",
    "SELECT * FROM plain WHERE name = 'n3' OR tags @> '{t1}'",
    "SELECT * FROM plain JOIN other.numbered ON plain_id = plain.id WHERE plain.id < 10",
    "SELECT * FROM egg JOIN hen ON hen.egg_id = egg.id ORDER BY egg.id",
    "SELECT * FROM log WHERE day = 3 AND note = 'x'",
    "SELECT * FROM spread ORDER BY id",
    "SELECT * FROM analyzed WHERE note = 'x'",
    "SELECT * FROM booking WHERE during && '[1,5)'",
    "SELECT * FROM country JOIN city ON city.country = code WHERE city.id = 3",
    "SELECT * FROM large WHERE n = 3 ORDER BY id",
    "SELECT * FROM large_raw WHERE id < 30",
    "SELECT * FROM animal WHERE id = 1",
    "SELECT * FROM shelf JOIN large ON large.id = shelf.n",
    "SELECT * FROM cities WHERE id = 3",
    "SELECT * FROM tree JOIN tree AS child ON child.parent_id = tree.id",
)
"""Queries whose plans are compared."""


class Operation(NamedTuple):
    """One statement of a test: on which of its connections, and *data* for COPY."""

    connection: int
    text: str
    data: str = ""


class Difference(NamedTuple):
    """What is different in a database that was put back, and the rows on either side only."""

    what: str
    fresh: Sequence[str]
    put_back: Sequence[str]

    def __repr__(self) -> str:
        both = (" | ".join(each[:150] for each in side[:6]) for side in (self.fresh, self.put_back))
        return "\n".join([f"\n{self.what}:", *map("  {} {}".format, "-+", both)])


class Clone:
    """A clone of the template that tests use one after the other."""

    def __init__(self, databases: Databases, name: str, mark: Mark, oid: int) -> None:
        self.databases = databases
        self.name = name
        self.mark = mark
        self.oid = oid

    def connect(self) -> psycopg.Connection[Any]:
        """Return a connection as tests have it."""
        return self.databases.connect(self.name)

    def sql(self, *statements: str) -> None:
        """Execute statements on a connection of their own, and end it."""
        self.run([Operation(0, text) for text in statements], strict=True)

    def run(self, operations: Sequence[Operation], *, strict: bool = False) -> list[str]:
        """Execute *operations*; return what each answered. End all connections."""
        connections: dict[int, psycopg.Connection[Any]] = {}
        answers = []
        try:
            for number, text, data in operations:
                if number not in connections:
                    connections[number] = self.connect()
                    connections[number].execute("SET lock_timeout = '10ms'")
                if text == CLOSE:
                    connections.pop(number).close()
                    continue
                named = text.replace("{database}", self.name)
                answer = _answer(connections[number], named, data, strict)
                answers.append(answer.replace(self.name, "{database}"))
        finally:
            for connection in connections.values():
                connection.close()
            self.databases.wait_until_unused(self.name)
        return answers

    def put_back(self, baseline: Baseline | None = None) -> None:
        """Put the clone back as the plugin does it; raises `NotPutBack` and `StatementRefused`."""
        databases = self.databases
        databases.background.call(self._put_back, baseline or databases.baseline)
        databases.wait_until_unused(self.name)

    async def _put_back(self, baseline: Baseline) -> None:
        databases = self.databases
        async with databases.connection(self.name) as inside, databases.connection() as outside:
            self.mark = await put_back(inside, outside, self.oid, baseline, self.mark)
            # The plugin may keep the connection.
            names = ("session_replication_role", "track_counts")
            settings = [await inside.fetchval(f"SHOW {name}") for name in names]
            assert settings == ["origin", "on"]

    def differences(self, *, thorough: bool = False) -> list[Difference]:
        """Return what tells the clone from a fresh one; a *thorough* look takes longer."""
        return self.databases.differences(self, thorough=thorough)

    def differences_from(self, other: Clone) -> list[Difference]:
        """Return what tells the clone from *other*, after the same was done to both."""
        return self.databases.differences(self, fresh=other)

    def dump(self) -> str:
        """Return what pg_dump writes of the clone."""
        return self.databases.dump(self.name)

    def drop(self) -> None:
        """Drop the clone, whatever a test left in it."""
        self.databases.drop(self.name)


CLOSE: Final = "close"
"""The text of an operation that ends its connection."""


def _answer(connection: psycopg.Connection[Any], text: str, data: str, strict: bool) -> str:
    """Execute one statement; return its rows, its command tag or its error."""
    try:
        with connection.cursor() as cursor:
            if data:
                with cursor.copy(text) as copy:
                    copy.write(data)
            else:
                cursor.execute(text)
            rows = [str(row) for row in cursor.fetchall()] if cursor.description else []
            return "\n".join([cursor.statusmessage or "", *rows])
    except psycopg.Error as error:
        if strict:
            raise
        return f"{error.sqlstate}: {error.diag.message_primary}"


class Databases:
    """The template on a server, its clones, and one that stays fresh."""

    def __init__(
        self, bench: Bench, server: Server[Any], background: BackgroundLoop, more: str = ""
    ) -> None:
        self.background = background
        self._bench = bench
        self._server = server
        self._count = 0
        self._admin = self.connect(MAINTENANCE)
        self._admin.execute("CREATE ROLE exact_role")
        self._admin.execute("CREATE DATABASE exact")
        with self.connect("exact") as connection:
            for statement in [TEMPLATE, more]:
                connection.execute(statement)
            self._since = int(_one(connection, "SELECT pg_current_xact_id()::text"))
        self.wait_until_unused("exact")
        self._fresh = self._copy()
        self._queries = self._make_queries()
        self._states: dict[bool, dict[str, Any]] = {}
        used = self._copy()
        self.baseline = self.read_baseline(used)
        used.drop()

    def read_baseline(self, clone: Clone) -> Baseline:
        """Return what each clone has, as this one has it."""
        baseline: Baseline = self.background.call(self._read_baseline, clone)
        self.wait_until_unused(clone.name)
        return baseline

    async def _read_baseline(self, clone: Clone) -> Baseline:
        async with self.connection(clone.name) as connection:
            return await Baseline.read(connection, clone.oid)

    def connection(self, name: str = MAINTENANCE) -> Connection:
        """Return a connection of the plugin."""
        return Connection(self._server.endpoint, name)

    def connect(self, name: str) -> psycopg.Connection[Any]:
        """Return a connection as tests have it."""
        endpoint = self._server.endpoint
        return psycopg.connect(
            host=endpoint.host,
            port=endpoint.port,
            user=USER,
            password=endpoint.password,
            dbname=name,
            autocommit=True,
            sslmode="disable",
        )

    def close(self) -> None:
        """Drop everything."""
        self.reset()
        self._fresh.drop()
        self.drop("exact")
        self._admin.execute("DROP ROLE exact_role")
        self._admin.close()

    @contextmanager
    def clone(self) -> Iterator[Clone]:
        """Yield a new clone."""
        clone = self._copy()
        try:
            yield clone
        finally:
            clone.drop()

    def reset(self) -> None:
        """Undo what was done to the server itself."""
        self._admin.execute("ALTER SYSTEM RESET ALL")
        self._admin.execute("ALTER ROLE exact_role RESET ALL")

    def is_back(self) -> bool:
        """Tell whether the server answers, after a crash."""
        self._admin.close()
        with suppress(psycopg.OperationalError):
            self._admin = self.connect(MAINTENANCE)
        return not self._admin.closed

    def _copy(self) -> Clone:
        self._count += 1
        name = f"exact_{self._count}"
        self._admin.execute(f"CREATE DATABASE {name} TEMPLATE exact STRATEGY FILE_COPY")
        ((oid, *mark),) = self._admin.execute(sql.MOMENT.replace("$1", "%s"), [name]).fetchall()
        return Clone(self, name, Mark(*mark), oid)

    def drop(self, name: str) -> None:
        """Drop a database, and what blocks that."""
        prepared = self._admin.execute(
            "SELECT gid FROM pg_prepared_xacts WHERE database = %s", [name]
        ).fetchall()
        subscribed = self._admin.execute(
            "SELECT FROM pg_subscription JOIN pg_database d ON d.oid = subdbid WHERE datname = %s",
            [name],
        ).fetchall()
        if prepared or subscribed:
            self._admin.execute(f"ALTER DATABASE {name} CONNECTION LIMIT -1")
            with self.connect(name) as connection:
                for (gid,) in prepared:
                    connection.execute(f"ROLLBACK PREPARED '{gid}'")
                if subscribed:
                    connection.execute("ALTER SUBSCRIPTION made SET (slot_name = NONE)")
                    connection.execute("DROP SUBSCRIPTION made")
        self._admin.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def wait_until_unused(self, name: str) -> None:
        """Wait until the connections to a database have ended."""
        query = "SELECT FROM pg_stat_activity WHERE datname = %s"
        # `until` pauses for longer than a connection needs.
        for _ in range(200):
            if not self._admin.execute(query, [name]).fetchall():
                return
        until(lambda: not self._admin.execute(query, [name]).fetchall(), f"{name} is unused")

    # Comparing

    def _make_queries(self) -> dict[bool, str]:
        """Return the queries for a state: quick, and thorough."""
        with self._fresh.connect() as connection:
            catalogs = connection.execute(
                "SELECT relname, relisshared, (SELECT array_agg(attname ORDER BY attnum)"
                " FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0) FROM pg_class c"
                " WHERE relkind = 'r' AND relnamespace = 'pg_catalog'::regnamespace ORDER BY 1"
            ).fetchall()
            tables = connection.execute(
                "SELECT oid::regclass::text, relkind FROM pg_class WHERE relkind IN ('r', 'm')"
                " AND relispopulated AND relnamespace <> 'pg_catalog'::regnamespace ORDER BY 1"
            ).fetchall()
            sequences = connection.execute(
                "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'S' ORDER BY 1"
            ).fetchall()
        parts = {True: [], False: []}  # type: dict[bool, list[str]]
        for name, shared, columns in catalogs:
            thorough, quick = self._catalog(name, shared, columns)
            parts[True].append(thorough)
            parts[False].append(quick)
        # Rows in the order in which a plain SELECT has them.
        common = [
            f"SELECT $q${name}$q$, (SELECT string_agg(t::text, E'\\n') FROM {only}{name} t)"
            for name, kind in tables
            for only in ["ONLY " if kind == "r" else ""]
        ]
        common += [
            f"SELECT $q${name}$q$, (SELECT concat(last_value, ' ', is_called) FROM {name})"
            for (name,) in sequences
        ]
        common.append(
            "SELECT 'prepared', (SELECT string_agg(gid, ' ') FROM pg_prepared_xacts"
            " WHERE database = current_database())"
        )
        common.append(
            "SELECT 'settings', (SELECT string_agg(concat(name, '=', setting), E'\\n')"
            " FROM pg_settings WHERE name NOT LIKE 'transaction%')"
        )
        return {
            thorough: " UNION ALL ".join([*catalog, *common]) for thorough, catalog in parts.items()
        }

    def _catalog(self, name: str, shared: bool, columns: Sequence[str]) -> tuple[str, str]:
        """Return the query for the rows of one of PostgreSQL's tables, thorough and quick."""
        if shared and name not in _SHARED:
            return (f"SELECT '{name}', NULL",) * 2
        ignored: set[str] = set(_IGNORED_COLUMNS.get(name, ()))
        if shared:
            ignored |= _OWN_COLUMNS
        shown = ", ".join(f"t.{each}" for each in columns if each not in ignored)
        oid = "(SELECT oid FROM pg_database WHERE datname = current_database())"
        where = _SHARED[name].format(oid=oid) if shared else "true"
        rows = f"string_agg(ROW({shown})::text, E'\\n' ORDER BY ROW({shown})::text)"
        thorough = f"SELECT '{name}', (SELECT {rows} FROM {name} t WHERE {where})"
        if shared or name in {"pg_class", "pg_largeobject_metadata"}:
            return thorough, thorough
        # What was changed or added has a younger transaction, and what was removed is missing.
        young = f"FILTER (WHERE t.xmin::text::bigint > {self._since})"
        return thorough, f"SELECT '{name}', (SELECT concat(count(*), {rows} {young}) FROM {name} t)"

    def differences(
        self, clone: Clone, *, thorough: bool = False, fresh: Clone | None = None
    ) -> list[Difference]:
        """Return what tells a clone that was put back from a fresh one."""
        if fresh is not None:
            states = [self._state(fresh, thorough=False)]
        else:
            if thorough not in self._states:
                self._states[thorough] = self._state(self._fresh, thorough=thorough)
            states = [self._states[thorough]]
        states.append(self._state(clone, thorough=thorough))
        return self._compare(*states, used=fresh is not None)

    def _compare(
        self, fresh: dict[str, Any], state: dict[str, Any], *, used: bool
    ) -> list[Difference]:
        found = []
        if not used:
            grown = {
                name: (pages, before)
                for name, pages in state["sizes"].items()
                if pages != (before := fresh["sizes"].get(name))
                and not (before == 0 and pages < 10)
            }
            found += [Difference("sizes", [], [f"{grown}"])] if grown else []
        for name in sorted(state.keys() | fresh.keys()):
            if name == "sizes" or (used and (name.startswith("pg_") or name == "counters")):
                continue
            if state.get(name) != fresh.get(name):
                lines = [(each.get(name) or "").splitlines() for each in (fresh, state)]
                one, two = (Counter(each) for each in lines)
                shown = [list((one - two).elements()), list((two - one).elements())]
                found.append(Difference(name, *(shown if any(shown) else lines)))
        return found

    def _state(self, clone: Clone, *, thorough: bool) -> dict[str, Any]:
        """Return everything that can be told of a clone."""
        with clone.connect() as connection:
            # First, because the other queries count.
            counted = connection.execute(
                "SELECT relname || ' ' || s::text FROM pg_stat_user_tables s WHERE seq_scan > 0"
                " OR idx_scan > 0 OR n_tup_ins > 0 OR n_tup_upd > 0 OR n_tup_del > 0"
                " OR n_live_tup > 0 OR n_dead_tup > 0 OR vacuum_count > 0 OR analyze_count > 0"
            ).fetchall()
            state: dict[str, Any] = dict(connection.execute(self._queries[thorough]).fetchall())
            state["counters"] = "\n".join(row[0] for row in counted)
            sizes = connection.execute(
                "SELECT oid::regclass::text, pg_relation_size(oid) / 8192 FROM pg_class"
                " WHERE oid >= 16384 AND (relkind IN ('r', 'm', 't')"
                # No plan uses the index of a TOAST table.
                " OR relkind = 'i' AND relnamespace <> 'pg_toast'::regnamespace)"
            )
            state["sizes"] = dict(sizes.fetchall())
            for query in PLANS:
                plan = connection.execute(f"EXPLAIN {query}").fetchall()
                state[f"plan of {query}"] = "\n".join(row[0] for row in plan)
        self.wait_until_unused(clone.name)
        return state

    def dump(self, name: str) -> str:
        """Return what pg_dump writes of a database."""
        endpoint = self._server.endpoint
        programs: Any = self._bench.postgres.native("")
        place = {
            "PGHOST": endpoint.host,
            "PGPORT": str(endpoint.port),
            "PGUSER": USER,
            "PGPASSWORD": endpoint.password,
        }
        command = [programs._find().folder / "pg_dump", "--create", name]
        done = subprocess.run(command, env=place, check=True, capture_output=True, text=True)
        self.wait_until_unused(name)
        text = done.stdout.replace(name, "database")
        return re.sub(r"^\\(un)?restrict .*\n", "", text, flags=re.M)

    def fresh_dump(self) -> str:
        """Return what pg_dump writes of a fresh clone."""
        return self.dump(self._fresh.name)


def _one(connection: psycopg.Connection[Any], query: str) -> Any:
    row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]
