"""The fixture `db_queries`: what it records, what it leaves out, and how it shows N + 1 queries."""

from __future__ import annotations

from typing import Final

import pytest

from projects import Library

REUSE: Final = "--reuse-containers"

SHOP: Final = """
from sqlalchemy import ForeignKey, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

class Base(DeclarativeBase):
    pass

class Author(Base):
    __tablename__ = "author"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]

class Book(Base):
    __tablename__ = "book"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    author_id: Mapped[int] = mapped_column(ForeignKey("author.id"))
    author: Mapped[Author] = relationship()

def titles(session):
    books = session.scalars(select(Book).order_by(Book.id)).all()  # list
    return [f"{book.author.name}: {book.title}" for book in books]  # each

def names(session):
    return list(session.scalars(select(Author.name)))  # names

async def async_names(session):
    return list(await session.scalars(select(Author.name)))  # async
"""
"""The comments are names of lines."""

BEGIN: Final = """
import asyncio
import threading
from pathlib import Path

import pytest
from shop import Author, Book, async_names, names, titles
from sqlalchemy import create_engine, event, insert, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

def books(number):
    return [Book(id=n, title=f"B{n}", author=Author(id=n, name=f"A{n}"))
            for n in range(1, number + 1)]

def line(name, file="shop.py"):
    lines = Path(__file__).with_name(file).read_text().splitlines()
    return f"{file}:{next(n for n, each in enumerate(lines, 1) if each.endswith('# ' + name))}"

def texts(queries):
    return [each.statement for each in queries]

ISOLATIONS = pytest.mark.parametrize("isolation", [
    pytest.param(word, marks=pytest.mark.warmstack_isolation(word))
    for word in ("clone", "fresh-clone", "rollback")])
"""


def write(project: Library, tests: str) -> None:
    """Write the application, and *tests* as the only ones."""
    project.write("shop.py", SHOP)
    project.write("test_library.py", BEGIN + tests)


N_PLUS_ONE: Final = """
@pytest.fixture
def filled(db_sync_engine):
    with Session(db_sync_engine) as session:
        session.add_all(books(4))
        session.commit()

def test_sync(db_queries, filled, db_sync_session):
    assert len(titles(db_sync_session)) == 4
    assert len(db_queries) == 5
    db_queries.assert_at_most(5)
    db_queries.assert_at_most(2)

async def test_async(filled, db_session, db_queries):
    assert len(await db_session.run_sync(titles)) == 4
    await async_names(db_session)
    await async_names(db_session)
    await db_session.execute(text("SELECT 1"))  # one
    db_queries.assert_at_most(2)
"""


def at(project: Library, name: str, file: str = "shop.py") -> str:
    """Return the line of a message about the line *name* of a file."""
    lines = enumerate(project.lines(file), 1)
    return f"    at {file}:{next(n for n, each in lines if each.endswith(f'# {name}'))}"


def message(result: pytest.RunResult, test: str) -> list[str]:
    """Return the lines of the error of *test*."""
    lines = result.outlines[result.outlines.index(f"{f' {test} ':_^80}") :]
    begin = next(n for n, line in enumerate(lines) if line.startswith("E  "))
    end = next(n for n, line in enumerate(lines) if n > begin and not line.startswith("E"))
    return [line.removeprefix("E").removeprefix("       ") for line in lines[begin:end]]


def test_too_many_statements_are_an_error_that_groups_them(kept: Library) -> None:
    """It names the application's lines, also behind a greenlet, and stands at the test's line."""
    write(kept, N_PLUS_ONE)

    result = kept.run(REUSE, "-p", "no:randomly")

    result.assert_outcomes(failed=2)
    assert message(result, "test_sync") == [
        "AssertionError: 5 statements sent, at most 2 allowed",
        "",
        "Sent several times, as with N + 1 queries:",
        "  4 times: SELECT author.id, author.name FROM author WHERE author.id = %(pk_1)s::INTEGER",
        at(kept, "each"),
        "",
        "Sent once:",
        "  SELECT book.id, book.title, book.author_id FROM book ORDER BY book.id",
        at(kept, "list"),
    ]
    assert message(result, "test_async") == [
        "AssertionError: 8 statements sent, at most 2 allowed",
        "",
        "Sent several times, as with N + 1 queries:",
        "  4 times: SELECT author.id, author.name FROM author WHERE author.id = $1::INTEGER",
        at(kept, "each"),
        "  2 times: SELECT author.name FROM author",
        at(kept, "async"),
        "",
        "Sent once:",
        "  SELECT book.id, book.title, book.author_id FROM book ORDER BY book.id",
        at(kept, "list"),
        "  SELECT 1",
        at(kept, "one", "test_library.py"),
    ]
    assert "queries.py" not in result.stdout.str()


RECORDED: Final = """
@ISOLATIONS
def test_sync(db_queries, db_sync_session, db_sync_engine, isolation):
    db_sync_session.add_all(books(2))
    db_sync_session.flush()  # flush
    assert [each.split("(")[0] for each in texts(db_queries)] == [
        "INSERT INTO author ", "INSERT INTO book "]
    assert [each.caller for each in db_queries] == [line("flush", "test_library.py")] * 2
    with db_sync_session.begin_nested():
        names(db_sync_session)
    with pytest.raises(DBAPIError), db_sync_session.begin_nested():
        db_sync_session.execute(text("SELECT pg_sleep(0.01), 1 / (SELECT 0)"))
    db_sync_session.rollback()
    *_, read, failed = db_queries
    assert read.statement.split() == "SELECT author.name FROM author".split()
    assert read.caller == line("names") and read.seconds > 0 and not read.parameters
    assert failed.seconds > 0.005
    assert len(db_queries) == 4

@ISOLATIONS
async def test_async(db_session, db_queries, isolation):
    assert len(db_queries) == 0
    async with db_session.begin_nested():
        await db_session.execute(insert(Author), [{"id": n, "name": "A"} for n in (1, 2)])
    await db_session.execute(insert(Author).values(id=3, name="B"))
    await db_session.commit()
    assert await async_names(db_session) == ["A", "A", "B"]
    several, one, read = db_queries
    assert several.executemany and len(several.parameters) == 2
    assert not one.executemany and one.parameters == (3, "B")
    assert read.caller == line("async")
    assert "'B'" not in repr(one) and "parameters" not in repr(one)

async def test_tasks_and_threads(db_engine, db_sync_engine, db_queries):
    async def task():
        async with AsyncSession(db_engine) as session:
            await async_names(session)

    def thread():
        with Session(db_sync_engine) as session:
            names(session)

    await asyncio.gather(task(), task(), asyncio.to_thread(thread))
    other = threading.Thread(target=lambda: asyncio.run(task()))
    other.start()
    other.join()
    assert sorted(each.caller for each in db_queries) == [
        line("names"), *[line("async")] * 3]

def test_engines_of_the_test_and_its_first_connection(db_dsn, db_queries, db_factory):
    import psycopg
    url = db_dsn.replace("postgresql", "postgresql+psycopg")
    by_creator = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(db_dsn))
    by_name = create_engine(url.replace("@127.0.0.1", "@localhost"))
    for engine in (create_engine(url), by_creator, by_name):
        assert len(db_queries) == 0
        with engine.connect() as connection:  # SQLAlchemy asks the server for its version.
            assert len(db_queries) == 0
            connection.execute(text("SELECT 1"))
            connection.exec_driver_sql("BEGIN")
            connection.exec_driver_sql("ROLLBACK;")
        engine.dispose()
        assert texts(db_queries) == ["SELECT 1"]
        db_queries.clear()

async def test_further_databases_are_the_tests_and_others_are_not(db_factory, db_dsn, db_queries):
    async with db_factory().engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
    server = db_dsn.rpartition("/")[0].replace("postgresql", "postgresql+psycopg")
    for engine in (create_engine(f"{server}/postgres"), create_engine("sqlite://")):
        with engine.connect() as connection:
            connection.execute(text("SELECT 2"))
        engine.dispose()
    assert texts(db_queries) == ["SELECT 1"]

async def test_a_part(db_session, db_queries):
    await async_names(db_session)
    with db_queries.recording() as part:
        await db_session.execute(text("SELECT 1"))
        with part.recording() as inner:
            await db_session.execute(text("SELECT 2"))  # two
    await db_session.execute(text("SELECT 3"))
    assert texts(part) == ["SELECT 1", "SELECT 2"] and texts(inner) == ["SELECT 2"]
    part.assert_at_most(2)
    with pytest.raises(AssertionError, match="2 statements sent, at most 1 allowed"):
        part.assert_at_most(1)
    db_queries[3:].assert_at_most(1)
    assert type(db_queries[1:]) is type(db_queries)
    assert repr(db_queries) == "<Queries: 4 statements>" and repr(inner) == "<Queries: 1 statement>"
    assert str(inner).splitlines() == [
        "1 statement sent", "", "Sent once:", "  SELECT 2",
        f"    at {line('two', 'test_library.py')}"]
    db_queries.clear()
    assert not db_queries and len(part) == 2

def test_requested_while_it_runs(request, db_sync_session):
    names(db_sync_session)
    queries = request.getfixturevalue("db_queries")
    names(db_sync_session)
    assert len(queries) == 1

ENDED = []

def test_a_connection_that_was_open_before(db_sync_engine, db_queries):
    ENDED.append(db_queries)
    with db_sync_engine.connect() as connection:
        connection.execute(text("SELECT 1"))

def test_a_recording_ends_with_its_test(db_sync_session, db_sync_engine):
    assert not list(db_sync_engine.dispatch.before_cursor_execute)
    names(db_sync_session)
    assert len(ENDED[0]) == 1
"""

WIDER: Final = """
pytestmark = pytest.mark.warmstack_isolation("module")

@pytest.fixture(scope="module")
def opened(db_sync_engine):
    with db_sync_engine.connect() as connection:
        connection.execute(text("SELECT 0"))
        yield connection

@pytest.mark.parametrize("number", range(2))
def test_shared(opened, db_queries, number):
    assert not db_queries
    opened.execute(text("SELECT 1"))
    assert texts(db_queries) == ["SELECT 1"]

@pytest.fixture(autouse=True)
def budget(db_queries):
    yield
    db_queries.assert_at_most(2)

@pytest.fixture
def asks_at_its_end(budget, db_sync_engine):
    yield
    with Session(db_sync_engine) as session:
        for _ in range(3):
            names(session)

def test_a_limit_for_all(db_sync_session, asks_at_its_end):
    names(db_sync_session)
"""


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
def test_statements_are_recorded_and_nothing_else(kept: Library, workers: tuple[str, ...]) -> None:
    """In every isolation, event loop and thread; not of other databases, or of the plugin."""
    write(kept, RECORDED)
    kept.write("test_wider.py", BEGIN + WIDER)
    if workers:
        kept.edit("test_library.py", RECORDED[RECORDED.index("ENDED = []") :], "")

    result = kept.run(REUSE, *workers)

    result.assert_outcomes(passed=14 if workers else 16)


APP: Final = """
import os
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

engine = create_async_engine(os.environ["DATABASE_URL"])
sync_engine = create_engine(os.environ["SYNC_URL"])

async def count():
    async with engine.connect() as connection:
        return await connection.scalar(text("SELECT count(*) FROM author"))

def sync_count():
    with sync_engine.connect() as connection:
        return connection.scalar(text("SELECT count(*) FROM author"))
"""

APP_TESTS: Final = """
import app
import pytest

@pytest.mark.parametrize("number", range(2))
async def test_async(db_queries, number):
    assert await app.count() == 0
    assert [each.caller for each in db_queries] == ["app.py:11"]

@pytest.mark.parametrize("number", range(2))
def test_sync(db_queries, number):
    assert app.sync_count() == 0
    assert [each.caller for each in db_queries] == ["app.py:15"]
"""


def test_an_application_at_its_own_address_is_recorded(kept: Library) -> None:
    """Its engines outlive the tests."""
    parts = "{db_user}:{db_password}@{db_host}:{db_port}/{db_name}"
    kept.configure(
        "warmstack_env =", "    DATABASE_URL={db_url}", f"    SYNC_URL=postgresql+psycopg://{parts}"
    )
    kept.write("app.py", APP)
    kept.write("test_library.py", APP_TESTS)

    kept.run(REUSE).assert_outcomes(passed=4)


WITHOUT: Final = """
import sys

def test_none(db_session):
    pass

def test_no_listener():
    from sqlalchemy import Engine
    assert "pytest_warmstack.queries" not in sys.modules
    assert not Engine._has_events
"""


def test_a_run_without_the_fixture_imports_nothing_for_it(kept: Library) -> None:
    """And SQLAlchemy calls no listener."""
    kept.write("test_library.py", WITHOUT)

    kept.run(REUSE).assert_outcomes(passed=2)
