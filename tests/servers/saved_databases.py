"""A project whose tests change tables of all kinds and fail, and what `warmstack diff` shows."""

from __future__ import annotations

import json
from typing import Any, Final

from projects import Library

REUSE: Final = "--reuse-containers"

SCHEMA: Final = """
CREATE TYPE mood AS ENUM ('calm', 'glad');
CREATE SCHEMA "Stock";
CREATE TABLE shelf (
    id serial PRIMARY KEY, name text, mood mood DEFAULT 'calm', tags text[], data jsonb, raw bytea,
    price numeric(8, 2), shout text GENERATED ALWAYS AS (upper(name)) STORED);
INSERT INTO shelf (name, tags, data, raw, price) VALUES
    ('Ada', '{a,b}', '{"k": 1}', '\\x00ff', 1.50),
    ('Bob', NULL, NULL, NULL, 2), ('Cy', '{}', '{}', '', 3);
CREATE TABLE "Stock"."Odd Name" ("Key" uuid NOT NULL UNIQUE, "a""b" text);
INSERT INTO "Stock"."Odd Name" VALUES ('00000000-0000-0000-0000-000000000001', 'x');
CREATE TABLE log (line text, at timestamptz);
INSERT INTO log VALUES ('same', NULL), ('same', NULL), ('gone', '2024-01-01T00:00Z');
CREATE TABLE event (id int, day date, note text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
CREATE TABLE event_1 PARTITION OF event FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE TABLE event_2 PARTITION OF event FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
INSERT INTO event VALUES (1, '2024-05-05', 'first'), (2, '2025-05-05', 'second');
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (more text) INHERITS (parent);
CREATE VIEW names AS SELECT name FROM shelf;
CREATE MATERIALIZED VIEW counted AS SELECT count(*) AS many FROM shelf;
CREATE MATERIALIZED VIEW unfilled AS SELECT 1 AS one WITH NO DATA;
CREATE TABLE secret (id int PRIMARY KEY, word text);
ALTER TABLE secret ENABLE ROW LEVEL SECURITY;
ALTER TABLE secret FORCE ROW LEVEL SECURITY;
CREATE POLICY adds ON secret FOR INSERT WITH CHECK (true);
CREATE TABLE dropped (id int PRIMARY KEY);
INSERT INTO dropped VALUES (7);
CREATE TABLE many (id int PRIMARY KEY, word text);
INSERT INTO many SELECT n, 'word ' || n FROM generate_series(1, 3000) n;
CREATE FUNCTION twice(n int) RETURNS int LANGUAGE sql AS 'SELECT n * 2';
"""

CHANGES: Final = """
UPDATE shelf SET name = 'Bert', price = NULL,
    data = ('{"long": "' || repeat('x', 3000) || '"}')::jsonb
    WHERE id = 2;
DELETE FROM shelf WHERE id = 3;
INSERT INTO shelf (name, mood, tags, raw) VALUES
    (E'Dan''s\\n\\x1b[31m', 'glad', '{"c d",NULL}', '\\xdead');
UPDATE "Stock"."Odd Name" SET "a""b" = NULL;
DELETE FROM log WHERE line = 'gone';
INSERT INTO log VALUES ('same', NULL), ('new', NULL);
UPDATE event SET day = '2025-06-06' WHERE id = 1;
UPDATE event SET note = 'third' WHERE id = 2;
INSERT INTO child VALUES (5, 'more');
CREATE OR REPLACE VIEW names AS SELECT name FROM shelf WHERE name <> '';
REFRESH MATERIALIZED VIEW unfilled;
INSERT INTO secret VALUES (1, 'hush');
DROP TABLE dropped;
CREATE TABLE made (id serial PRIMARY KEY, word text);
INSERT INTO made (word) VALUES ('one'), ('two');
ALTER TABLE log DROP COLUMN at, ADD COLUMN level int NOT NULL DEFAULT 1;
ALTER TABLE parent ALTER COLUMN id TYPE bigint;
UPDATE many SET word = 'other' WHERE id IN (5, 2999);
CREATE OR REPLACE FUNCTION twice(n int) RETURNS int LANGUAGE sql AS 'SELECT n + n';
ALTER TYPE mood ADD VALUE 'wild';
CREATE INDEX shelf_name ON shelf (name);
"""

TEST: Final = """
import asyncpg
from pathlib import Path

async def test_that_changes(db_dsn):
    connection = await asyncpg.connect(db_dsn)
    await connection.execute(Path("changes.sql").read_text())
    await connection.close()
    assert False

async def test_that_reads(db_session):
    assert False
"""

EXPECTED: Final = r"""
"Stock"."Odd Name": 1 changed
  ~ Key='00000000-0000-0000-0000-000000000001': a"b 'x' -> NULL
public.child: 1 added
  + id=5, more='more'
public.dropped: 1 removed
  - id=7
public.event: 1 added, 1 removed, 1 changed
  ~ id=2, day='2025-05-05': note 'second' -> 'third'
  - id=1, day='2024-05-05', note='first'
  + id=1, day='2025-06-06', note='first'
public.log: 2 added, 1 removed
  - line='gone', at='2024-01-01 00:00:00+00'
  + line='new', level=1
  + line='same', level=1
public.made: 2 added
  + id=1, word='one'
  + id=2, word='two'
public.many: 2 changed
  ~ id=5: word 'word 5' -> 'other'
  ~ id=2999: word 'word 2999' -> 'other'
public.secret: 1 added
  + id=1, word='hush'
public.shelf: 1 added, 1 removed, 1 changed
  ~ id=2: name 'Bob' -> 'Bert',
     data NULL -> '{"long": "xxxxxxxxxxxxxxxxxxxxxxxxxxx...',
     price 2.00 -> NULL, shout 'BOB' -> 'BERT'
  - id=3, name='Cy', mood='calm', tags='{}', data='{}', raw='\x', price=3.00,
     shout='CY'
  + id=4, name='Dan''s\n\x1b[31m', mood='glad', tags='{"c d",NULL}', data=NULL,
     raw='\xdead', price=NULL, shout='DAN''S\n\x1b[31M'
public.unfilled: 1 added
  + one=1
sequence public.shelf_id_seq: 3 -> 4
column public.child.id changed: integer NOT NULL -> bigint NOT NULL
table public.dropped dropped
column public.log.at dropped: timestamp with time zone
column public.log.level made: integer NOT NULL DEFAULT 1
table public.made made
type public.mood changed: 'calm', 'glad' -> 'calm', 'glad', 'wild'
view public.names changed:
  - SELECT name FROM public.shelf;
  + SELECT name FROM public.shelf WHERE (name <> ''::text);
column public.parent.id changed: integer NOT NULL -> bigint NOT NULL
index public.shelf_name made
function public.twice(n integer) changed:
  - ...ELECT n * 2$function$
  + ...ELECT n + n$function$
2 tables with the same rows
"""


def prepare(project: Library) -> None:
    """Let the tests of a project change their databases and fail."""
    project.configure("warmstack_schema = schema.sql", "warmstack_alembic = none")
    project.write("schema.sql", SCHEMA)
    project.write("changes.sql", CHANGES)
    project.write("test_shop.py", TEST)
    project.run(REUSE, "test_shop.py").assert_outcomes(failed=2)


def saved(project: Library) -> list[dict[str, Any]]:
    """Return what `warmstack failed` lists."""
    return list(json.loads("\n".join(project.warmstack("failed", "--json").outlines)))


def number_of(project: Library, test: str) -> str:
    """Return the number of the one saved database of *test*."""
    (found,) = [each for each in saved(project) if test in each["test"]]
    return str(found["id"])
