"""A failed test shows what it did to its data, in each kind of report; others pay nothing."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

from projects import Library, pytest_with, script

REUSE = "--reuse-containers"

BEGIN = """
import asyncpg
import pytest
from sqlalchemy import text

async def run(session, *statements):
    for statement in statements:
        await session.execute(text(statement))
"""

OPENING = [
    "open it: warmstack psql NUMBER",
    "     or: psql postgresql://postgres@127.0.0.1:PORT/warmstack_k_TEMPLATE_NUMBER",
    "compare its rows with those of the template: warmstack diff NUMBER",
    "(saved as one of those of the last 3 failed tests)",
]
OPENING_OPEN = [*OPENING[:3], f"{OPENING[3][:-1]}, without what is not committed)"]
DATABASE = "changes in its database"


def plain(line: str) -> str:
    """Return *line* without what differs from run to run."""
    line = re.sub(r"(psql |diff |_)[0-9a-f]{10}\b", r"\1NUMBER", line)
    line = re.sub(r"(warmstack_[ku]_)[0-9a-f]{16}", r"\1TEMPLATE", line)
    return re.sub(r"127.0.0.1:\d+", "127.0.0.1:PORT", re.sub(r"\b\d+\.\d s\b", "N s", line))


def sections(lines: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Return the titles and lines of the plugin's sections in what a run wrote, in order."""
    found: list[tuple[str, list[str]]] = []
    is_inside = False
    for line in lines:
        if title := re.fullmatch(r"-+ warmstack: (.*?) -+", line):
            found.append((title[1], []))
            is_inside = True
        elif re.match(r"[-=_>]{3}|-+ generated |-- |warmstack: ", line):
            is_inside = False
        elif is_inside and line:
            found[-1][1].append(plain(line))
    return found


def failed(project: Library, body: str, *arguments: str) -> list[tuple[str, list[str]]]:
    """Return the sections that a run of one failing test with this *body* writes."""
    project.write("test_failing.py", BEGIN + body)
    result = project.run(REUSE, "--tb=short", "test_failing.py", *arguments)
    assert result.parseoutcomes().get("failed") == 1, result.outlines
    return sections(result.outlines)


ROWS = """
async def test_rows(db_session):
    await run(
        db_session,
        "INSERT INTO author VALUES (1, 'Ursula'), (2, 'Ada')",
        "INSERT INTO book VALUES (1, 'Rocannon', 1)",
    )
    await db_session.commit()
    assert False
"""
ROWS_SHOWN = [(DATABASE, ["author: 2 inserted", "book: 1 inserted", *OPENING])]


def test_rows_by_table(kept: Library) -> None:
    """Exact counts, though the server's own have not arrived."""
    assert failed(kept, ROWS) == ROWS_SHOWN


def test_rows_of_the_template_are_told_apart(kept: Library) -> None:
    """By their primary keys; where there is none, in words."""
    kept.configure("warmstack_seed = seed.sql")
    kept.write(
        "seed.sql",
        "INSERT INTO author SELECT n, 'Ursula' FROM generate_series(1, 9) n;"
        "CREATE TABLE note (words text); INSERT INTO note VALUES ('one'), ('two'), ('three');",
    )

    found = failed(
        kept,
        """
async def test_rows(db_session):
    await run(
        db_session,
        "DELETE FROM author WHERE id <= 2",
        "UPDATE author SET name = 'Ada' WHERE id IN (3, 4, 5)",
        "INSERT INTO author VALUES (10, 'Grace')",
        "UPDATE note SET words = 'four' WHERE words = 'one'",
    )
    await db_session.commit()
    await run(db_session, "DELETE FROM note WHERE words = 'three'")
    await db_session.commit()
    assert False
""",
    )

    assert found == [
        (
            DATABASE,
            [
                "author: 1 inserted, 3 updated, 2 deleted",
                "note: 1 inserted or updated, 2 of the template updated or deleted",
                *OPENING,
            ],
        )
    ]


def test_tables_types_functions_and_sequences(kept: Library) -> None:
    """What was made, dropped and altered; not what is part of these."""
    kept.configure("warmstack_seed = seed.sql")
    kept.write("seed.sql", "CREATE TABLE tag (id serial PRIMARY KEY); CREATE SCHEMA shop;")

    found = failed(
        kept,
        """
async def test_objects(db_session):
    await run(
        db_session,
        "CREATE TABLE shop.scratch (id serial PRIMARY KEY, words text UNIQUE)",
        "CREATE TYPE mood AS ENUM ('sad')",
        "CREATE FUNCTION double(n int) RETURNS int LANGUAGE sql AS 'SELECT 2 * n'",
        "CREATE VIEW names AS SELECT name FROM author",
        "CREATE TEMP TABLE mine (id int)",
        "ALTER TABLE author ADD COLUMN born date",
        "DROP TABLE book",
        "INSERT INTO tag DEFAULT VALUES",
    )
    await db_session.commit()
    assert False
""",
    )

    assert found == [
        (
            DATABASE,
            [
                "tag: 1 inserted",
                "made: function double(n integer), table shop.scratch, type mood, view names",
                "dropped: table book",
                "altered: table author (+ born date)",
                "sequences: tag_id_seq unused -> 1",
                *OPENING,
            ],
        )
    ]


OPEN = {
    "async": """
@pytest.fixture
async def later(db_session):
    yield
    query = text("SELECT count(*), current_setting('search_path') FROM author")
    print("later:", *(await db_session.execute(query)).one())

async def test_open(later, db_session):
    await run(db_session, "INSERT INTO author VALUES (1, 'Ursula')")
    await db_session.commit()
    await run(db_session, "INSERT INTO author VALUES (2, 'Ada')")
    assert False
""",
    "sync": """
@pytest.fixture
def later(db_sync_session):
    yield
    query = text("SELECT count(*), current_setting('search_path') FROM author")
    print("later:", *db_sync_session.execute(query).one())

def test_open(later, db_sync_session):
    db_sync_session.execute(text("INSERT INTO author VALUES (1, 'Ursula')"))
    db_sync_session.commit()
    db_sync_session.execute(text("INSERT INTO author VALUES (2, 'Ada')"))
    assert False
""",
}


@pytest.mark.parametrize("kind", OPEN)
def test_rows_that_are_not_committed(kept: Library, kind: str) -> None:
    """The test's own connection shows them, and its transaction goes on as it was."""
    found = failed(kept, OPEN[kind], "-s")

    assert found == [
        (
            DATABASE,
            [
                "author: 2 inserted (committed: 1 inserted)",
                "a transaction is open for N s, with changes of author;"
                " last: INSERT INTO author VALUES (2, 'Ada')",
                *OPENING_OPEN,
            ],
        )
    ]
    assert 'later: 2 "$user", public' in kept.runs[-1].wait().stdout.str()


def test_a_transaction_on_a_connection_of_its_own(kept: Library) -> None:
    """The plugin can't ask that one, and doesn't wait for its locks."""
    found = failed(
        kept,
        """
LEFT = []

async def test_leak(db_dsn):
    connection = await asyncpg.connect(db_dsn, server_settings={"application_name": "shop"})
    transaction = connection.transaction()
    LEFT.extend([connection, transaction])
    await transaction.start()
    await connection.execute("INSERT INTO book VALUES (1, 'Rocannon', NULL)")
    await connection.execute("ALTER TABLE author ADD COLUMN born date")
    assert False
""",
    )

    assert found == [
        (
            DATABASE,
            [
                "locked by an open transaction, so not counted: author",
                "a transaction of 'shop' is open for N s, with changes of author, book;"
                " last: ALTER TABLE author ADD COLUMN born date",
                "to see changes that are not committed: commit them, or stop the test with --pdb",
                *OPENING_OPEN,
            ],
        )
    ]


def test_a_rollback(kept: Library) -> None:
    """Its rows are shown, which are gone later, and the next test gets the same database."""
    kept.write(
        "test_failing.py",
        BEGIN
        + """
pytestmark = pytest.mark.warmstack_isolation("rollback")
URLS = []

async def test_undone(db_session, db_url):
    URLS.append(db_url)
    await run(db_session, "INSERT INTO author VALUES (1, 'Ursula')")
    await db_session.commit()
    assert False

async def test_after_it(db_session, db_url):
    URLS.append(db_url)
    await run(db_session, "SELECT 1")

async def test_the_same(db_url):
    assert URLS == [db_url, db_url]
""",
    )

    result = kept.run(REUSE, "test_failing.py")

    result.assert_outcomes(failed=1, passed=2)
    shown = ["what the test did is rolled back when it ends", "author: 1 inserted"]
    assert sections(result.outlines) == [(DATABASE, shown)]


def test_statements_that_failed_and_the_servers_log(kept: Library) -> None:
    """Those of this test only, though the same database had another test before."""
    kept.write(
        "test_failing.py",
        BEGIN
        + """
@pytest.mark.parametrize("name", ["Ursula", "Ada"])
async def test_twice(db_session, db_engine, name):
    async with db_engine.begin() as connection:
        await connection.execute(text(f"DO $$ BEGIN RAISE WARNING 'careful, {name}'; END $$"))
    await run(db_session, f"INSERT INTO author VALUES (1, '{name}')")
    await db_session.commit()
    try:
        await run(db_session, f"INSERT INTO author VALUES (1, '{name}')")
    except Exception:
        pass
    assert name == "Ursula"
""",
    )

    result = kept.run(REUSE, "test_failing.py")

    result.assert_outcomes(failed=1, passed=1)
    assert sections(result.outlines) == [
        (
            DATABASE,
            [
                "author: 1 inserted",
                "a transaction has failed, so its changes are undone;"
                " last: INSERT INTO author VALUES (1, 'Ada')",
                *OPENING,
            ],
        ),
        (
            "statements that failed",
            [
                "INSERT INTO author VALUES (1, 'Ada')",
                '  ERROR: duplicate key value violates unique constraint "author_pkey"',
                "  DETAIL: Key (id)=(1) already exists.",
            ],
        ),
        (
            "log of PostgreSQL",
            [
                "WARNING: careful, Ada",
                "  CONTEXT: PL/pgSQL function inline_code_block line 1 at RAISE",
            ],
        ),
    ]


def test_keys_in_redis(kept: Library) -> None:
    """With type, size and time to live; a name may be any bytes."""
    found = failed(
        kept,
        """
async def test_keys(redis_client):
    await redis_client.set("reader", "Ada", ex=60)
    await redis_client.hset("basket", mapping={"a": "1", "b": "2"})
    await redis_client.rpush(b"queue\\xff\\n", "one")
    await redis_client.xadd("events", {"a": "1"})
    assert False
""",
    )

    assert found == [
        (
            "keys in Redis",
            [
                "4 keys",
                "  basket: hash, 2 fields",
                "  events: stream, 1 entry",
                r"  queue\xff\n: list, 1 element",
                "  reader: string, 3 bytes, 60 s to live",
            ],
        )
    ]


def test_only_some_of_many_keys_and_tables(kept: Library) -> None:
    """What is left out is counted."""
    ((_, tables), (_, keys)) = failed(
        kept,
        """
async def test_many(db_session, redis_client):
    for number in range(20):
        await run(db_session, f"CREATE TABLE extra_{number:02} (id int)")
        await redis_client.set(f"key_{number:02}", "")
    for number in range(2000):
        await redis_client.set(f"more_{number:04}", "")
    await db_session.commit()
    assert False
""",
    )

    assert tables[0].startswith("made: table extra_00, table extra_01, ")
    assert tables[0].endswith("table extra_14 and 5 more")
    assert (keys[0], keys[-1], len(keys)) == ("2020 keys", "  ... and 2000 more", 22)


def test_a_timeout(kept: Library) -> None:
    """The statement that still runs is shown, and whom it waits for."""
    found = failed(
        kept,
        """
LEFT = []

@pytest.mark.timeout(1)
def test_waits(db_sync_session, db_sync_engine):
    LEFT.append(db_sync_engine.connect())
    LEFT[0].execute(text("INSERT INTO author VALUES (1, 'Ursula')"))
    db_sync_session.execute(text("SET application_name = 'second'"))
    db_sync_session.execute(text("INSERT INTO author VALUES (1, 'Ada')"))
""",
        *("-p", "timeout"),
    )

    ((title, lines),) = found
    lines = [re.sub(r"process \d+", "process PID", line) for line in lines]
    assert title == DATABASE
    assert (
        "a statement of 'second' runs for N s, with changes of author, waits for process PID:"
        " INSERT INTO author VALUES (1, 'Ada')"
    ) in lines
    assert lines[-4:] == OPENING_OPEN


def test_a_server_that_does_not_answer(embedded_project: Library) -> None:
    """The report says so after its deadline, and the failure is there."""
    project = embedded_project
    project.run(REUSE).assert_outcomes(passed=5)
    folders = [str(each) for each in project.folders()]
    found = failed(
        project,
        f"""
import json, os, signal
from pathlib import Path

def send(number):
    for folder in {folders}:
        record = json.loads((Path(folder) / "server.json").read_text())
        os.kill(int(record["id"].split("/")[1]), number)

@pytest.fixture
def stopped(db_session, redis_client):
    yield
    send(signal.SIGCONT)

async def test_stopped(db_session, redis_client, stopped):
    await run(db_session, "SELECT 1")
    send(signal.SIGSTOP)
    assert False
""",
    )

    ((_, database), (_, (keys,))) = found
    assert database == ["PostgreSQL did not answer within 1.2 seconds", *OPENING]
    assert re.fullmatch(r"could not be read, with 1 s for each answer: .*timed out", keys)


def test_many_failures_that_take_long(kept: Library) -> None:
    """Together they have so many seconds, here none: the first one is shown, later ones say so."""
    kept.write(
        "conftest.py", "from pytest_warmstack import failure_report\nfailure_report._BUDGET = 0.0\n"
    )
    kept.write(
        "test_failing.py",
        "import pytest\n\n@pytest.mark.parametrize('number', [1, 2])\n"
        "def test_fails(db_url, number):\n    assert False\n",
    )

    result = kept.run(REUSE, "--tb=short", "test_failing.py")

    first, second = sections(result.outlines)
    assert first == (DATABASE, ["no connection came to it", *OPENING])
    assert second == (
        "what the test did",
        ["not read: earlier failures have taken 0 seconds"],
    )


def test_what_a_class_shares(kept: Library) -> None:
    """All of its tests did that."""
    found = failed(
        kept,
        """
@pytest.mark.warmstack_isolation("class")
class TestShelf:
    async def test_first(self, db_session):
        await run(db_session, "INSERT INTO author VALUES (1, 'Ursula')")
        await db_session.commit()

    def test_of_another_kind(self):
        pass

    async def test_second(self, db_session):
        assert False
""",
    )

    shared = "shared by the tests of test_failing.py::TestShelf: what all of them did so far"
    assert found == [(DATABASE, [shared, "author: 1 inserted", *OPENING])]


def test_what_all_tests_share(kept: Library) -> None:
    """It says so."""
    found = failed(
        kept,
        """
pytestmark = pytest.mark.warmstack_isolation("session")

async def test_first(db_session):
    await run(db_session, "INSERT INTO author VALUES (1, 'Ursula')")
    await db_session.commit()
    assert False
""",
        "--warmstack-isolation=session",
    )

    shared = "shared by all tests of this process: what all of them did so far"
    assert found == [(DATABASE, [shared, "author: 1 inserted", *OPENING])]


def test_at_the_address_of_the_application(kept: Library) -> None:
    """It has its own number there; one to which no connection came is not saved."""
    kept.configure("warmstack_env =", "    DATABASE_URL={db_dsn}", "warmstack_autouse = .")
    kept.write(
        "test_failing.py",
        BEGIN
        + """
import os

async def test_connected():
    connection = await asyncpg.connect(os.environ["DATABASE_URL"])
    await connection.execute("INSERT INTO author VALUES (1, 'Ursula')")
    await connection.close()
    assert False

def test_not_connected():
    assert False
""",
    )

    result = kept.run(REUSE, "test_failing.py")

    result.assert_outcomes(failed=2)
    assert sections(result.outlines) == [
        (DATABASE, ["author: 1 inserted", *OPENING]),
        (DATABASE, ["no connection came to it"]),
    ]
    shown, saved = re.findall(r"warmstack psql (\w+)$", result.stdout.str(), re.M)
    assert shown == saved


def test_one_that_the_test_has_renamed(kept: Library) -> None:
    """It is not saved, so no line opens it."""
    found = failed(
        kept,
        """
async def test_renames(db_dsn, postgres_container):
    connection = await asyncpg.connect(db_dsn)
    await connection.close()
    name = db_dsn.rpartition("/")[2]
    connection = await asyncpg.connect(postgres_container.get_connection_url(driver=None))
    await connection.execute(f"ALTER DATABASE {name} RENAME TO elsewhere")
    await connection.close()
    assert False
""",
    )

    assert found == [(DATABASE, ["the test has renamed or dropped it"])]


def test_a_table_that_is_too_large(kept: Library) -> None:
    """It is named, and the others are counted."""
    kept.configure("warmstack_seed = seed.sql")
    kept.write(
        "seed.sql",
        "CREATE TABLE event (words text);"
        "ALTER TABLE event ALTER COLUMN words SET STORAGE plain;"
        "INSERT INTO event SELECT repeat('x', 7000) FROM generate_series(1, 9000);",
    )

    found = failed(
        kept,
        """
async def test_large(db_session):
    await run(db_session, "DELETE FROM event", "INSERT INTO author VALUES (1, 'Ursula')")
    await db_session.commit()
    assert False
""",
    )

    assert found == [(DATABASE, ["author: 1 inserted", "too large to count: event", *OPENING])]


def test_each_further_database(kept: Library) -> None:
    """Those of `db_factory` have sections of their own."""
    found = failed(
        kept,
        """
async def test_two(db_factory):
    async with db_factory().engine.begin() as connection:
        await connection.execute(text("INSERT INTO author VALUES (1, 'Ursula')"))
    db_factory()
    assert False
""",
    )

    assert found == [
        ("changes in database 1 of db_factory", ["author: 1 inserted", *OPENING]),
        ("changes in database 2 of db_factory", ["no connection came to it", *OPENING]),
    ]


def test_what_had_no_database(kept: Library) -> None:
    """A test without these fixtures, one that failed before it had them, or after it was done."""
    kept.write(
        "test_failing.py",
        """
import pytest

@pytest.fixture
def early():
    assert False

@pytest.fixture
def late(db_url):
    yield
    assert False

def test_unit():
    assert False

def test_not_yet(early, db_url, redis_url):
    pass

def test_no_more(late):
    pass

@pytest.mark.xfail
def test_expected(db_url, redis_url):
    assert False
""",
    )

    result = kept.run(REUSE, "test_failing.py")

    result.assert_outcomes(failed=1, errors=2, passed=1, xfailed=1)
    assert sections(result.outlines) == []


def test_a_fixture_that_failed(kept: Library) -> None:
    """It had the database already, and what it did is there."""
    kept.write(
        "test_failing.py",
        BEGIN
        + """
@pytest.fixture
async def author(db_session):
    await run(db_session, "INSERT INTO author VALUES (1, 'Ursula')")
    await db_session.commit()
    assert False

def test_never(author):
    pass
""",
    )

    result = kept.run(REUSE, "test_failing.py")

    result.assert_outcomes(errors=1)
    assert sections(result.outlines) == [(DATABASE, ["author: 1 inserted", *OPENING])]


def test_a_run_that_keeps_nothing(embedded_project: Library) -> None:
    """It has no lines to open a database that is gone."""
    project = embedded_project
    project.write("test_failing.py", BEGIN + ROWS)

    for result in (
        project.run("test_failing.py"),
        project.run(REUSE, "--warmstack-keep-failed=0", "test_failing.py"),
    ):
        result.assert_outcomes(failed=1)
        assert sections(result.outlines) == [(DATABASE, ROWS_SHOWN[0][1][:2])]


def test_the_line_opens_what_the_run_saves(kept: Library) -> None:
    """Its number is the one that the end of the run names."""
    kept.write("test_failing.py", BEGIN + ROWS)

    result = kept.run(REUSE, "test_failing.py")

    (number,) = re.findall(r"^open it: warmstack psql (\w+)$", result.stdout.str(), re.M)
    (url,) = re.findall(r"^     or: psql (\S+)$", result.stdout.str(), re.M)
    (saved,) = re.findall(
        r"its database is saved: warmstack psql (\w+)$", result.stdout.str(), re.M
    )
    assert number == saved
    assert url.rpartition("/")[2] in kept.databases("k")


# The kinds of reports.

KINDS = {
    "alone": ("-n0",),
    "workers": ("-n2",),
    "no xdist": ("-p", "no:xdist"),
    "first failure": ("-x",),
    "sugar": ("-p", "pytest_sugar"),
    "rerun": ("-p", "pytest_rerunfailures", "--reruns=2"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_same_in_each_kind_of_run(kept: Library, kind: str) -> None:
    """One section for a test, whatever shows it, and however often it was run."""
    assert failed(kept, ROWS, *KINDS[kind]) == ROWS_SHOWN


def properties(project: Library) -> list[dict[str | None, str | None]]:
    """Return the plugin's properties of each test in the run's JUnit XML."""
    tree = ElementTree.parse(project.folder / "junit.xml")  # noqa: S314 - our own
    return [
        {
            each.get("name"): plain(each.get("value", ""))
            for each in case.iter("property")
            if each.get("name", "").startswith("warmstack_")
        }
        for case in tree.iter("testcase")
    ]


@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "workers"])
def test_junit_xml(kept: Library, workers: tuple[str, ...]) -> None:
    """It has short values as properties, also without a terminal."""
    kept.write(
        "test_failing.py",
        BEGIN
        + """
async def test_rows(db_session, redis_client):
    await redis_client.set("reader", "Ada")
    await run(
        db_session, "CREATE TABLE extra (id int)", "INSERT INTO author VALUES (1, 'Ursula')"
    )
    await db_session.commit()
    await run(db_session, "SELECT 1 / 0")
""",
    )

    kept.run(REUSE, "-p", "no:terminal", "--junitxml=junit.xml", "test_failing.py", *workers)

    assert properties(kept) == [
        {
            "warmstack_psql": "warmstack psql NUMBER",
            "warmstack_rows": "author: 1 inserted",
            "warmstack_objects": "made: table extra",
            "warmstack_failed_statements": "1",
            "warmstack_redis_keys": "1",
        }
    ]


@pytest.mark.parametrize("failures", [1, 3])
def test_only_the_last_attempt_counts(kept: Library, failures: int) -> None:
    """A test that passes when it is run again has no properties of its failures."""
    kept.write(
        "test_failing.py",
        BEGIN
        + f"""
ATTEMPTS = []

async def test_again(db_session):
    ATTEMPTS.append(1)
    for number in range(len(ATTEMPTS)):
        await run(db_session, f"INSERT INTO author VALUES ({{number}}, 'Ursula')")
    await db_session.commit()
    assert len(ATTEMPTS) > {failures}
""",
    )

    arguments = ("-p", "pytest_rerunfailures", "--reruns=2", "--junitxml=junit.xml")
    result = kept.run(REUSE, *arguments, "test_failing.py")

    # pytest's JUnit XML has all attempts.
    assert [each.get("warmstack_rows", "") for each in properties(kept)] == [
        *(f"author: {number} inserted" for number in range(1, failures + 1)),
        *([""] if failures == 1 else []),
    ]
    shown = [(DATABASE, ["author: 3 inserted", *OPENING])]
    assert sections(result.outlines) == (shown if failures == 3 else [])


def test_html(kept: Library) -> None:
    """pytest-html has the section with the traceback."""
    html = (
        "-p",
        "pytest_metadata.plugin",
        "-p",
        "pytest_html.plugin",
        "-p",
        "pytest_html.fixtures",
    )
    failed(kept, ROWS, *html, "--html=report.html", "--self-contained-html")

    text = (kept.folder / "report.html").read_text()
    assert f"warmstack: {DATABASE}" in text
    assert "author: 2 inserted" in text


def test_rich(kept: Library) -> None:
    """pytest-rich shows the section in its own frame."""
    kept.write("test_failing.py", BEGIN + ROWS)

    result = kept.run(REUSE, "-p", "pytest_rich.plugin", "--rich", "test_failing.py")

    assert DATABASE in result.stdout.str()
    assert "author: 2 inserted" in result.stdout.str()


@pytest.mark.docker
def test_the_log_of_a_container(docker_project: Library) -> None:
    """It is read through the engine."""
    found = failed(
        docker_project,
        """
async def test_fails(db_session):
    await run(db_session, "SELECT 1 / 0")
""",
    )

    assert found[1:] == [("statements that failed", ["SELECT 1 / 0", "  ERROR: division by zero"])]


def read_until(terminal: int, wanted: str) -> str:
    """Return what a program writes to its *terminal* until it has written *wanted*."""
    text, deadline = "", time.monotonic() + 60
    while wanted not in text:
        left = deadline - time.monotonic()
        assert select.select([terminal], [], [], max(left, 0))[0], text
        text += os.read(terminal, 65536).decode()
    return text


def test_in_the_debugger(kept: Library, tmp_path: Path) -> None:
    """It is shown before the prompt, the database is there, and its line opens it."""
    kept.write("test_failing.py", BEGIN + ROWS)
    arguments = (REUSE, "--pdb", "test_failing.py")
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", *pytest_with(), *arguments],
        cwd=kept.folder,
        env={name: value for name, value in os.environ.items() if "PYTEST" not in name},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        try:
            before = read_until(ours, "(Pdb) ")
            (number,) = re.findall(r"open it: warmstack psql (\w+)", before)
            (name,) = (each for each in kept.databases("u") if each.endswith(number))
            rows = kept.sql("SELECT name FROM author ORDER BY id", database=name)
            opened = kept.warmstack("psql", number, PATH=script(tmp_path / "bin", "psql"))
            os.write(ours, b"q\n")
            read_until(ours, f"its database is saved: warmstack psql {number}")
            while select.select([ours], [], [], 60)[0]:
                try:
                    os.read(ours, 65536)
                except OSError:  # The other end is closed.
                    break
            process.wait(60)
        finally:
            process.kill()
            os.close(ours)

    shown = before.replace("\r\n", "\n").splitlines()
    opening = [
        OPENING[0],
        OPENING[1].replace("_k_", "_u_"),
        OPENING[2],
        OPENING[3].replace("saved as", "saved when the test has ended, as"),
    ]
    assert sections(shown) == [(DATABASE, [*ROWS_SHOWN[0][1][:2], *opening])]
    assert [row["name"] for row in rows] == ["Ursula", "Ada"]
    assert f"--dbname={name}" in opened.stdout.str()


def test_a_run_that_passes_imports_nothing_of_it(kept: Library) -> None:
    """Also if tests are skipped, or expected to fail."""
    kept.write(
        "conftest.py",
        "import sys\nfrom pathlib import Path\n\n"
        "def pytest_unconfigure(config):\n"
        "    own = [name for name in sys.modules if name.startswith('pytest_warmstack')]\n"
        "    Path('own.log').write_text('\\n'.join(own))\n",
    )
    new = {
        f"pytest_warmstack.{name}"
        for name in ("failure_report", "postgres.changes", "postgres.server_log", "redis.contents")
    }
    expected = """
import pytest

@pytest.mark.xfail
def test_expected(db_url, redis_url):
    assert False

def test_skipped(db_url):
    pytest.skip()
"""
    kept.write("test_expected.py", expected)

    kept.run(REUSE).assert_outcomes(passed=5, xfailed=1, skipped=1)
    assert not new & set(kept.lines("own.log"))

    kept.write("test_failing.py", BEGIN + ROWS + "\ndef test_keys(redis_url):\n    assert False\n")
    kept.run(REUSE, "test_failing.py").assert_outcomes(failed=2)
    assert new <= set(kept.lines("own.log"))
