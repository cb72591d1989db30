"""What tests do to a database: statements by hypothesis, most of them valid."""

from __future__ import annotations

from typing import Final

from hypothesis import strategies as st

from put_back_databases import CLOSE, Operation

_TEMPLATE_EMPTY: Final = (
    "INSERT INTO plain (name, mood, amount, tags, spot, document) SELECT 'n' || {a} * i, 'happy',"
    " i, ARRAY['t' || i % 3], ROW(i, 'y')::pair, jsonb_build_object('i', i)"
    " FROM generate_series(1, {n}) i ON CONFLICT DO NOTHING",
    "INSERT INTO plain (name) VALUES ('n{a}')",
    "INSERT INTO plain (name) VALUES ('n{a}') ON CONFLICT (name) DO UPDATE SET mood = 'sad'",
    "INSERT INTO plain (name, amount) VALUES ('bad', -1)",
    "INSERT INTO plain (name, body) VALUES ('big{a}', repeat('{b}', 100000))",
    "UPDATE plain SET mood = 'sad' WHERE id % {b} = 0",
    "UPDATE plain SET name = name || {a}, tags = NULL",
    "DELETE FROM plain WHERE id % {b} = 0",
    "SELECT name, mood FROM plain ORDER BY id LIMIT {b} FOR UPDATE",
    "MERGE INTO plain USING (VALUES ('n{a}'), ('m{b}')) AS new (name) ON plain.name = new.name"
    " WHEN MATCHED THEN UPDATE SET amount = {b}"
    " WHEN NOT MATCHED THEN INSERT (name) VALUES (new.name)",
    "INSERT INTO other.numbered (n, plain_id) SELECT i, (SELECT max(id) FROM plain)"
    " FROM generate_series(1, {n}) i",
    "UPDATE other.numbered SET n = {a}",
    "DELETE FROM other.numbered WHERE n < {a}",
    "INSERT INTO nothing DEFAULT VALUES",
    'INSERT INTO "Odd ""schema"."Odd \'table" VALUES ({a})',
    "INSERT INTO fast (note) SELECT 'x' FROM generate_series(1, {n})",
    "INSERT INTO booking VALUES (int4range({a}, {a} + 2), {b}, {b})",
    "UPDATE booking SET rank = rank + 1",
    "INSERT INTO log SELECT i, CASE i % 2 WHEN 0 THEN 'a' ELSE 'z' END, 'n{a}'"
    " FROM generate_series(1, {n}) i",
    "UPDATE log SET day = day + {a} WHERE day < 20",
    "DELETE FROM log WHERE day < {a}",
    "INSERT INTO spread (n) SELECT i FROM generate_series(1, {n}) i",
    "INSERT INTO spread (id, n) VALUES ({a} * 100000, {b})",
    "INSERT INTO egg VALUES ({a}, {a})",
    "INSERT INTO hen VALUES ({a}, {a})",
    "WITH e AS (INSERT INTO egg VALUES ({b} * 10, {b})) INSERT INTO hen VALUES ({b}, {b} * 10)",
    "INSERT INTO tree (parent_id) SELECT max(id) FROM tree",
    "DELETE FROM tree WHERE id = {a}",
    "INSERT INTO secret (owner) VALUES ('o{a}')",
    "INSERT INTO animal (name) VALUES ('a{a}') RETURNING id",
    "INSERT INTO shelf VALUES (2, 'n{a}')",
    "INSERT INTO audit (what) VALUES ('n{a}')",
)
"""What tests do to tables without rows in the template."""

_COPIES: Final = (
    Operation(0, "COPY plain (name, amount) FROM STDIN", "c1\t1\nc2\t2\nc3\t3\n"),
    Operation(0, "COPY log FROM STDIN", "1\ta\tn\n2\tb\tn\n77\tc\tn\n"),
)

_FIRING: Final = (
    "INSERT INTO watched SELECT i FROM generate_series(1, {n}) i",
    "INSERT INTO replicated SELECT i FROM generate_series(1, {n}) i",
    "INSERT INTO held SELECT i FROM generate_series(1, {n}) i",
    "INSERT INTO ruled SELECT i FROM generate_series(1, {n}) i",
    "INSERT INTO spoken VALUES ({a})",
    "INSERT INTO announced SELECT i FROM generate_series(1, {n}) i",
    "INSERT INTO analyzed (note) SELECT 'n' || i FROM generate_series(1, {n}) i",
    "INSERT INTO analyzed (note) VALUES ('one')",
)
"""Tables that are difficult to put back."""

_TEMPLATE_ROWS: Final = (
    "INSERT INTO country VALUES ('n{a}', 'New')",
    "INSERT INTO country VALUES ('c1', 'Again') ON CONFLICT DO NOTHING",
    "INSERT INTO country (code, head_id) SELECT 'h' || id, id FROM plain LIMIT {b}",
    "INSERT INTO city (country, near_id) VALUES ('c{b}', {a})",
    "INSERT INTO city (country) SELECT 'c1' FROM generate_series(1, {n})",
    "INSERT INTO large (n, note) SELECT i, 'new' FROM generate_series(1, {n}) i",
    "INSERT INTO large_raw SELECT i, 'new' FROM generate_series(1, {n}) i",
    "INSERT INTO document (body) VALUES (repeat('{a}', 100000))",
    "INSERT INTO dog (name, race) VALUES ('n{a}', 'mixed')",
    "INSERT INTO shelf VALUES (1, 'n{a}')",
    "SELECT code FROM country ORDER BY code FOR UPDATE",
    "SELECT id FROM city WHERE id < {a} FOR SHARE",
)
"""What tests add beside the template's rows."""

_TEMPLATE_CHANGES: Final = (
    "UPDATE country SET name = 'Changed' WHERE code = 'c{b}'",
    "UPDATE country SET code = code || {a}",
    "INSERT INTO country VALUES ('c2') ON CONFLICT (code) DO UPDATE SET name = 'Again'",
    "UPDATE country SET head_id = (SELECT max(id) FROM plain)",
    "DELETE FROM city WHERE id = {a}",
    "DELETE FROM city",
    "DELETE FROM city WHERE id > 30",
    "UPDATE large SET note = 'changed' WHERE n = {a}",
    "DELETE FROM large_raw WHERE id = {a}",
    "UPDATE document SET body = 'short' WHERE id = 1",
    "UPDATE animal SET name = 'changed'",
    "DELETE FROM shelf WHERE n = 1",
    "UPDATE shelf SET n = 2 WHERE note = 'a'",
    "MERGE INTO country USING (VALUES ('c1')) AS new (code) ON country.code = new.code"
    " WHEN MATCHED THEN DELETE",
)
"""What tests do to the template's rows."""

_SEQUENCES: Final = (
    "SELECT nextval('free')",
    "SELECT nextval('started'), nextval('backwards')",
    "SELECT nextval('backwards') FROM generate_series(1, {n})",
    "SELECT setval('free', {a})",
    "SELECT setval('free', {a}, false)",
    "SELECT setval('started', 42, false)",
    "SELECT setval('started', {a}, true)",
    "SELECT setval('plain_id_seq', 1000 * {a})",
    'SELECT nextval(\'"Odd ""schema"."Odd sequence"\')',
    "SELECT setval('other.numbered_id_seq', 100, true)",
    "SELECT last_value FROM free",
)

_TRANSACTIONS: Final = (
    "BEGIN", "BEGIN", "BEGIN ISOLATION LEVEL SERIALIZABLE", "COMMIT", "COMMIT", "ROLLBACK",
    "SAVEPOINT a", "ROLLBACK TO a", "RELEASE a", "SELECT 1 / 0", "SET CONSTRAINTS ALL IMMEDIATE",
    CLOSE,
)  # fmt: skip

_TWO_PHASES: Final = (
    "PREPARE TRANSACTION '{database}'", "COMMIT PREPARED '{database}'",
    "ROLLBACK PREPARED '{database}'",
)  # fmt: skip

_CONNECTIONS: Final = (
    "SET session_replication_role = replica",
    "SET session_replication_role = origin",
    "LISTEN a", "NOTIFY a, 'b'", "SELECT pg_advisory_lock({a})",
    "DECLARE held CURSOR WITH HOLD FOR SELECT * FROM large",
    "SET search_path = other, public",
    "SET default_transaction_isolation = 'serializable'",
    "SET row_security = off",
    "SELECT pg_stat_force_next_flush()",
    "SELECT count(*) FROM pg_class",
    "SELECT * FROM animal",
    "LOCK TABLE plain",
    "SET ROLE exact_role", "RESET ROLE",
    "SELECT pg_terminate_backend(pg_backend_pid())",
)  # fmt: skip
"""What ends with a connection, in most cases."""

_SCHEMA: Final = (
    "CREATE TABLE made (id serial PRIMARY KEY, n integer)",
    "INSERT INTO made (n) SELECT i FROM generate_series(1, {n}) i",
    "CREATE TABLE made_too AS SELECT * FROM country",
    "CREATE TABLE log_2 PARTITION OF log FOR VALUES FROM (100) TO (200)",
    "CREATE TABLE cat () INHERITS (animal)",
    "CREATE TEMPORARY TABLE passing (n integer) ON COMMIT DROP",
    "CREATE TEMPORARY TABLE passing AS SELECT * FROM large",
    "CREATE TEMPORARY SEQUENCE passing_seq",
    "ALTER TABLE plain ADD extra integer DEFAULT {a}",
    "ALTER TABLE plain ALTER amount TYPE bigint",
    "ALTER TABLE plain ALTER amount SET DEFAULT {a}",
    "ALTER TABLE plain RENAME TO renamed",
    "ALTER TABLE other.numbered RENAME n TO m",
    "ALTER SCHEMA other RENAME TO another",
    "ALTER TABLE country SET (fillfactor = 50)",
    "ALTER TABLE plain SET UNLOGGED",
    "ALTER TABLE fast SET LOGGED",
    "ALTER TABLE log DETACH PARTITION log_rest",
    "ALTER TABLE city DISABLE TRIGGER ALL",
    "ALTER TABLE egg ENABLE ALWAYS TRIGGER ALL",
    "ALTER TABLE secret DISABLE ROW LEVEL SECURITY",
    "ALTER TABLE plain REPLICA IDENTITY FULL",
    "ALTER TABLE plain CLUSTER ON plain_pkey",
    "ALTER TABLE large ALTER n SET STATISTICS 500",
    "ALTER TABLE plain OWNER TO exact_role",
    "ALTER TABLE fast SET SCHEMA other",
    "ALTER TABLE tree ADD CHECK (id < 100000) NOT VALID",
    "ALTER SEQUENCE free RESTART WITH {a}",
    "ALTER SEQUENCE free RESTART",
    "ALTER SEQUENCE started INCREMENT {b}",
    "ALTER TYPE mood ADD VALUE IF NOT EXISTS 'm{a}'",
    "ALTER DOMAIN positive DROP CONSTRAINT positive_check",
    "ALTER TYPE pair ADD ATTRIBUTE z integer CASCADE",
    "DROP TABLE tree", "DROP VIEW names", "DROP TABLE spread CASCADE",
    "CREATE INDEX made_index ON plain (amount)",
    "CREATE INDEX CONCURRENTLY ON large (note)",
    "CREATE INDEX ON country (name)",
    "DROP INDEX large_n_idx",
    "DROP INDEX CONCURRENTLY plain_tags_idx",
    "REINDEX TABLE plain", "REINDEX TABLE CONCURRENTLY country", "CLUSTER large USING large_pkey",
    "CREATE SCHEMA made CREATE TABLE t (n integer)",
    "CREATE TYPE made_type AS ENUM ('a')",
    "CREATE DOMAIN made_domain AS text",
    "CREATE VIEW made_view AS SELECT * FROM plain",
    "CREATE OR REPLACE VIEW names AS SELECT name, 1 AS one FROM plain",
    "CREATE MATERIALIZED VIEW made_cities AS SELECT * FROM city",
    "REFRESH MATERIALIZED VIEW cities",
    "REFRESH MATERIALIZED VIEW CONCURRENTLY cities",
    "REFRESH MATERIALIZED VIEW CONCURRENTLY plains",
    "CREATE FUNCTION made() RETURNS integer LANGUAGE sql AS 'SELECT {a}'",
    "CREATE OR REPLACE FUNCTION twice(integer) RETURNS integer IMMUTABLE LANGUAGE sql"
    " AS 'SELECT $1 * {a}'",
    "CREATE TRIGGER made AFTER INSERT ON plain EXECUTE FUNCTION note_it()",
    "CREATE RULE made AS ON INSERT TO plain DO ALSO INSERT INTO audit (what) VALUES ('rule')",
    "CREATE POLICY made ON secret USING (true)",
    "CREATE STATISTICS made ON name, mood FROM plain",
    "CREATE CAST (text AS pair) WITH INOUT",
    "CREATE OPERATOR === (LEFTARG = integer, RIGHTARG = integer, FUNCTION = int4eq)",
    "CREATE AGGREGATE made_sum (integer) (SFUNC = int4pl, STYPE = integer)",
    "CREATE COLLATION made (LOCALE = 'C')",
    "CREATE TEXT SEARCH CONFIGURATION made (COPY = english)",
    "CREATE EVENT TRIGGER made ON ddl_command_end EXECUTE FUNCTION made_event()",
    "CREATE PUBLICATION made FOR ALL TABLES", "DROP PUBLICATION announced",
    "CREATE FOREIGN DATA WRAPPER made", "CREATE EXTENSION vector",
    "CREATE SUBSCRIPTION made CONNECTION 'host=127.0.0.1 port=1' PUBLICATION none"
    " WITH (connect = false)",
    "COMMENT ON TABLE plain IS 'changed {a}'", "COMMENT ON COLUMN plain.id IS 'new'",
    "GRANT SELECT ON plain TO exact_role", "GRANT USAGE ON SCHEMA other TO PUBLIC",
    "GRANT SELECT (name) ON country TO exact_role", "REVOKE ALL ON FUNCTION twice FROM PUBLIC",
    "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO exact_role",
    "SECURITY LABEL ON TABLE plain IS 'x'",
    "TRUNCATE plain CASCADE", "TRUNCATE tree", "TRUNCATE tree RESTART IDENTITY",
    "TRUNCATE large, spread", "TRUNCATE ONLY dog",
    "SELECT lo_create({a})", "SELECT lo_put(4711, 0, 'changed')", "SELECT lo_unlink(4711)",
    "DO 'BEGIN CREATE TABLE undone (n integer); RAISE division_by_zero; END'",
    "UPDATE pg_class SET reltuples = {a} WHERE relname = 'plain'",
    "DELETE FROM pg_description WHERE objoid = 'plain'::regclass",
    "DELETE FROM pg_statistic",
)  # fmt: skip

_STATISTICS: Final = (
    "ANALYZE", "ANALYZE plain", "ANALYZE country", "ANALYZE log", "ANALYZE pg_class",
    "VACUUM", "VACUUM plain", "VACUUM (FREEZE) country", "VACUUM FULL plain",
    "VACUUM FULL pg_class",
    "VACUUM (ANALYZE) large", "CHECKPOINT",
    "SELECT pg_stat_reset()", "SELECT pg_stat_reset_single_table_counters('plain'::regclass)",
    "SELECT pg_stat_reset_single_table_counters('country'::regclass)",
    "SELECT pg_stat_reset_shared('bgwriter')",
    "SELECT pg_stat_clear_snapshot()",
)  # fmt: skip

_DATABASE: Final = (
    "ALTER DATABASE {database} SET work_mem = '5MB'",
    "ALTER DATABASE {database} SET search_path = other, public",
    "ALTER DATABASE {database} SET track_counts = off",
    "ALTER DATABASE {database} CONNECTION LIMIT 77",
    "ALTER DATABASE {database} OWNER TO exact_role",
    "GRANT CREATE ON DATABASE {database} TO exact_role",
    "COMMENT ON DATABASE {database} IS 'x{a}'",
    "ALTER ROLE exact_role IN DATABASE {database} SET work_mem = '{a}MB'",
    "ALTER SYSTEM SET log_min_duration_statement = '{a}min'",
)  # fmt: skip


def _filled(*texts: str) -> st.SearchStrategy[str]:
    """Return a strategy for statements with small numbers, of which many collide."""

    def fill(text: str, n: int, a: int, b: int) -> str:
        values = {"n": n, "a": a, "b": b}
        for name, value in values.items():
            text = text.replace(f"{{{name}}}", str(value))
        return text

    return st.builds(
        fill,
        st.sampled_from(texts),
        st.sampled_from((1, 3, 30, 300, 1500)),
        st.integers(1, 9),
        st.integers(1, 5),
    )


def _operations(*texts: str) -> st.SearchStrategy[Operation]:
    return st.builds(Operation, st.integers(0, 2), _filled(*texts))


_PLAIN: Final = st.one_of(
    *[_operations(*_TEMPLATE_EMPTY)] * 4,
    _operations(*_SEQUENCES),
    _operations(*_TRANSACTIONS),
    st.builds(
        lambda number, copy: copy._replace(connection=number),
        st.integers(0, 2),
        st.sampled_from(_COPIES),
    ),
)

ROWS: Final = st.lists(_PLAIN, min_size=1, max_size=12)
"""What most tests do: rows in tables without rows in the template, and sequences."""

MORE_ROWS: Final = st.lists(
    st.one_of(
        *[_PLAIN] * 2,
        _operations(*_TEMPLATE_ROWS),
        _operations(*_TEMPLATE_ROWS, *_FIRING),
        _operations(*_CONNECTIONS),
        _operations(*_TEMPLATE_CHANGES, *_TWO_PHASES),
    ),
    min_size=1,
    max_size=12,
)
"""The same, with rows in all tables and of all kinds."""

EVERYTHING: Final = st.lists(
    st.one_of(
        _PLAIN,
        _operations(*_TEMPLATE_ROWS, *_FIRING, *_TEMPLATE_CHANGES),
        _operations(*_CONNECTIONS, *_TWO_PHASES),
        _operations(*_SCHEMA),
        _operations(*_STATISTICS, *_DATABASE),
    ),
    min_size=1,
    max_size=8,
)
"""Everything that can be done to a database."""
