"""The marker `warmstack_seed`: tests get copies of a template that their scripts have filled.

Most tests share one embedded PostgreSQL, which keeps the templates of the tests before them. So
each test has scripts of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pytest

from projects import Library, until

REUSE: Final = "--reuse-containers"

COUNT: Final = """
import pytest
from sqlalchemy import text

pytestmark = pytest.mark.asyncio(loop_scope="module")
seed, isolation = pytest.mark.warmstack_seed, pytest.mark.warmstack_isolation


async def names(session):
    rows = await session.scalars(text("SELECT string_agg(name, ' ' ORDER BY id) FROM author"))
    return rows.one() or ""


async def add(session):
    await session.execute(text("INSERT INTO author VALUES (99, 'test')"))
    await session.commit()
"""
"""The beginning of each test file."""

SEEDS: Final = """
from pathlib import Path
from sqlalchemy import text
from helper import NAME

INSERT = text("INSERT INTO author SELECT coalesce(max(id), 0) + 1, :name FROM author")

def catalogue(connection):
    connection.execute(INSERT, {"name": NAME})

async def async_catalogue(session):
    await session.execute(INSERT, {"name": "async"})

def failing(session):
    raise RuntimeError("no catalogue today")

def reading(connection):
    connection.execute(INSERT, {"name": Path(__file__).with_name("names.txt").read_text()})
"""


@pytest.fixture
def shop(kept: Library) -> Library:
    """The project with scripts: a function for each need, and SQL files."""
    return filled(kept)


def filled(library: Library) -> Library:
    """Write the scripts and their folders."""
    library.configure("pythonpath = .")
    library.write("helper.py", 'NAME = "one"\n')
    library.write("seeds.py", SEEDS)
    library.write("names.txt", "read")
    for name in "abc":
        library.write(f"sql/{name}.sql", insert(name))
    return library


def insert(name: str) -> str:
    """Return the statement that adds the author *name*."""
    return f"INSERT INTO author SELECT coalesce(max(id), 0) + 1, '{name}' FROM author;"


def run(library: Library, tests: str, *arguments: str, **outcomes: int) -> list[str]:
    """Run *tests*; return the lines about templates with seeds, without times."""
    library.write("tests/test_it.py", COUNT + tests)
    result = library.run(REUSE, "tests", *arguments)
    found = result.parseoutcomes()
    found.pop("warnings", None)
    assert found == outcomes
    return lines(result)


def lines(result: pytest.RunResult) -> list[str]:
    """Return the lines about templates with the seeds of markers, without times."""
    found = [each for each in result.outlines if each.startswith("warmstack: template of")]
    texts = [each.removeprefix("warmstack: template of 3 revisions, ") for each in found]
    return [" ".join(cut(each)) for each in texts if each.startswith("seed")]


def cut(line: str) -> Sequence[str]:
    """Return the line without its time: what was done, and why."""
    before, _, after = line.partition(" in ")
    why = after.partition("(")
    return [before, *([f"({why[2]}"] if why[2] else [])]


def test_a_template_with_seeds_is_kept_and_rebuilt_when_what_it_read_changes(
    shop: Library,
) -> None:
    """The second run finds it; no change runs a migration, and an unrelated one runs nothing."""
    tests = """
@seed("seeds:catalogue", "big.sql", "seeds:async_catalogue", "seeds:reading")
class TestSeeded:
    async def test_one(self, db_session):
        assert await names(db_session) == Path("expected").read_text()
        await add(db_session)

    async def test_two(self, db_session):
        assert await names(db_session) == Path("expected").read_text()
"""
    shop.write("tests/big.sql", insert("big"))
    what = "seed seeds:catalogue + tests/big.sql + seeds:async_catalogue + seeds:reading"
    ran = shop.executions()

    def again(expected: str) -> list[str]:
        shop.write("expected", expected)
        return run(shop, f"from pathlib import Path\n{tests}", passed=2)

    assert again("one big async read") == [f"{what}: extended by {what} from 3 revisions"]
    assert again("one big async read") == [f"{what}: found"]
    shop.write("unrelated.py", "")
    shop.write("tests/unrelated.sql", "")
    shop.edit("seeds.py", "def failing", "def failing")
    assert again("one big async read") == [f"{what}: found"]

    shop.write("tests/big.sql", insert("bigger"))
    (line,) = again("one bigger async read")
    assert line.endswith("from 3 revisions (big.sql changed)")
    shop.write("helper.py", 'NAME = "two"\n')
    (line,) = again("two bigger async read")
    assert line.endswith("(helper.py changed (imported by seeds:catalogue))")
    shop.write("names.txt", "reads")
    (line,) = again("two bigger async reads")
    assert line.endswith("(names.txt changed (used by seeds:reading))")
    assert shop.executions() == ran


def test_a_new_revision_runs_alone_and_the_seeds_after_it(shop: Library) -> None:
    """On the plain template, which the new revision has extended."""
    tests = """
async def test_plain(db_session):
    assert await names(db_session) == ""

@seed("fresh.sql")
async def test_seeded(db_session):
    assert (await names(db_session)).startswith("fresh")
"""
    shop.write("tests/fresh.sql", insert("fresh"))
    run(shop, tests, passed=2)
    shop.write(
        "migrations/versions/0004_more.py",
        "from alembic import op\n\nrevision = '0004'\ndown_revision = '0003'\n\n\n"
        "def upgrade():\n    op.execute('ALTER TABLE author ADD born integer')\n",
    )
    ran = shop.executions()

    result = shop.run(REUSE, "tests")

    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        [
            "warmstack: template of 4 revisions: extended by 1 revision from 3 in *",
            "warmstack: template of 4 revisions, seed tests/fresh.sql: extended by"
            " seed tests/fresh.sql from 4 revisions in *",
        ]
    )
    assert shop.executions() == ran + 1


@pytest.mark.parametrize("arguments", [[], ["-n2"]], ids=["one process", "xdist"])
def test_forty_tests_build_two_templates(
    embedded_project: Library, arguments: Sequence[str]
) -> None:
    """Twenty with the marker and twenty without, in turn, each as its own test or class."""
    shop = filled(embedded_project)
    tests = """
@pytest.mark.parametrize("n", range(20))
class TestInTurn:
    async def test_plain(self, db_session, n):
        assert await names(db_session) == ""
        await add(db_session)

    @seed("sql/a.sql", "seeds:catalogue")
    async def test_seeded(self, db_session, n):
        assert await names(db_session) == "a one"
        await add(db_session)
"""
    what = "seed sql/a.sql + seeds:catalogue"

    assert run(shop, tests, *arguments, passed=40) == [
        f"{what}: extended by {what} from 3 revisions"
    ]
    assert len(shop.databases("t")) == 2
    assert shop.executions() == 1
    assert run(shop, tests, *arguments, passed=40) == [f"{what}: found"]
    assert len(shop.databases("t")) == 2


def test_without_kept_servers_the_migrations_run_once_for_all_seeds(
    embedded_project: Library,
) -> None:
    """Also if no test needs the template without seeds."""
    shop = filled(embedded_project)
    shop.write(
        "test_it.py",
        COUNT
        + """
@seed("sql/a.sql")
async def test_a(db_session):
    assert await names(db_session) == "a"

@seed("sql/b.sql")
async def test_b(db_session):
    assert await names(db_session) == "b"
""",
    )

    result = shop.run("test_it.py")

    result.assert_outcomes(passed=2)
    assert lines(result) == [
        "seed sql/a.sql: built",
        "seed sql/b.sql: extended by seed sql/b.sql from 3 revisions",
    ]
    assert shop.executions() == 1


def test_the_markers_of_wider_nodes_come_first(shop: Library) -> None:
    """Each adds its scripts, a script runs once, and the same list has the same template."""
    tests = """
pytestmark = [pytestmark, seed("sql/a.sql")]

@seed("sql/b.sql")
class TestB:
    @seed("sql/c.sql", "sql/a.sql")
    async def test_c(self, db_session):
        assert await names(db_session) == "a b c"

    async def test_b(self, db_session):
        assert await names(db_session) == "a b"

@seed("../sql/b.sql", "sql/c.sql")
async def test_the_same_list(db_session):
    assert await names(db_session) == "a b c"

@pytest.mark.parametrize("n", [1, pytest.param(2, marks=seed("sql/b.sql"))])
async def test_parameters(db_session, n):
    assert await names(db_session) == "a b"[:2 * n - 1]
"""
    found = run(shop, tests, passed=5)

    assert sorted(each.partition(":")[0] for each in found) == [
        "seed sql/a.sql",
        "seed sql/a.sql + sql/b.sql",
        "seed sql/a.sql + sql/b.sql + sql/c.sql",
    ]
    # Each is built on the one with fewer scripts.
    assert "extended by seed sql/c.sql from 3 revisions, seed sql/a.sql + sql/b.sql" in found[2]


def test_every_isolation_has_the_seeds(shop: Library) -> None:
    """A class or module shares a seeded database; tests with rollback share one as well."""
    tests = """
pytestmark = [pytestmark, seed("every.sql")]

@isolation("class")
class TestShared:
    async def test_first(self, db_session):
        assert await names(db_session) == "every"
        await add(db_session)

    async def test_second(self, db_session):
        assert await names(db_session) == "every test"

@isolation("rollback")
@pytest.mark.parametrize("n", [1, 2])
async def test_rolled_back(db_session, n):
    assert await names(db_session) == "every"
    await add(db_session)

@isolation("module")
@pytest.mark.parametrize("n", [0, 1])
async def test_of_the_module(db_session, n):
    assert await names(db_session) == "every" + " test" * n
    await add(db_session) if n == 0 else None

@isolation("rollback")
@seed("sql/b.sql")
async def test_another_seed(db_session):
    assert await names(db_session) == "every b"

async def test_of_its_own(db_session):
    assert await names(db_session) == "every"
"""
    shop.write("tests/every.sql", insert("every"))

    found = run(shop, tests, passed=8)

    assert len(found) == 2


def test_the_seeds_come_after_the_settings_seed_and_custom_layers(shop: Library) -> None:
    """A script that the setting names runs once."""
    shop.configure("warmstack_seed =", "    sql/a.sql", "    seeds:catalogue")
    shop.write("sql/d.sql", insert("d"))
    tests = """
@seed("sql/a.sql", "sql/d.sql")
async def test_seeded(db_session):
    assert await names(db_session) == "a one d"

@seed("./sql/a.sql")
async def test_plain(db_session):
    assert await names(db_session) == "a one"
"""
    shop.write("tests/test_it.py", COUNT + tests)

    result = shop.run(REUSE, "tests")

    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        [
            "warmstack: template of 3 revisions, 2 seed scripts: * in *",
            "warmstack: template of 3 revisions, 2 seed scripts, seed sql/d.sql: extended by"
            " seed sql/d.sql from 3 revisions, 2 seed scripts in *",
        ]
    )


def test_a_rebuild_builds_each_template_once(shop: Library) -> None:
    """The one with seeds on the plain one of the same run, and the next run finds both."""
    tests = """
async def test_plain(db_session):
    assert await names(db_session) == ""

@seed("rebuilt.sql")
async def test_seeded(db_session):
    assert await names(db_session) == "rebuilt"
"""
    shop.write("tests/rebuilt.sql", insert("rebuilt"))
    run(shop, tests, passed=2)
    ran = shop.executions()

    result = shop.run(REUSE, "tests", "--warmstack-rebuild", "-n2")

    result.assert_outcomes(passed=2)
    what = "seed tests/rebuilt.sql"
    result.stdout.fnmatch_lines(
        [
            "warmstack: template of 3 revisions: rebuilt in * (--warmstack-rebuild)",
            f"warmstack: template of 3 revisions, {what}: extended by {what} from 3 revisions in *"
            " (--warmstack-rebuild)",
        ]
    )
    assert shop.executions() == ran + 1
    result = shop.run(REUSE, "tests")
    result.stdout.fnmatch_lines(["warmstack: template of 3 revisions: found in *"])
    assert lines(result) == [f"{what}: found"]


def test_templates_with_seeds_push_no_other_out(embedded_project: Library) -> None:
    """Where one template stays, the plain one stays beside that of the last run."""
    shop = filled(embedded_project)
    shop.configure("warmstack_keep_templates = 1")
    run(shop, "async def test_plain(db_url):\n    pass\n", passed=1)
    (plain,) = shop.databases("t")
    for name in "abb":  # The last run only finds a template, and has no use for the plain one.
        run(shop, f'@seed("sql/{name}.sql")\nasync def test_it(db_url):\n    pass\n', passed=1)

    until(lambda: len(shop.databases("t")) == 2, "the template of the other seed is dropped")
    assert plain in shop.databases("t")
    assert shop.executions() == 1


BAD: Final = {
    "nothing": ("seed()", "*names no script.", "*warmstack_seed(*"),
    "a mark without a call": ("seed", "*names no script.", "*warmstack_seed(*"),
    "a function": (
        'seed("sql/a.sql", print)',
        "Invalid script <built-in function print> in the marker *.",
        '*"builtins:print"',
    ),
    "a list": ('seed(["sql/a.sql"])', "Invalid script *", "*an argument of its own*"),
    "a wrong text": ('seed("a.sq")', "Invalid script 'a.sq' in *", "*write texts like these*"),
    "a keyword": ('seed("sql/a.sql", once=True)', "Unknown keyword once in *", "*remove*"),
    "no file": ('seed("absent.sql")', "The seed file absent.sql does not exist.", "*root*"),
    "two files": ('seed("two.sql")', "The seed file two.sql can be two files.", '*"../two.sql" *'),
    "no function": (
        'seed("seeds:catalog")',
        "The seed seeds:catalog failed*",
        "*seeds has no attribute catalog; did you mean catalogue?",
    ),
    "no module": ('seed("nowhere:it")', "The seed nowhere:it failed*", "*named 'nowhere'"),
    "a failing function": (
        'seed("seeds:failing")',
        "The seed seeds:failing failed in seeds.py, line *",
        "*RuntimeError: no catalogue today",
    ),
    "failing SQL": (
        'seed("bad.sql")',
        "The seed tests/bad.sql failed in bad.sql, line 2.",
        '*relation "nowhere" does not exist',
    ),
}


@pytest.mark.parametrize(("marker", "what", "cure"), BAD.values(), ids=BAD)
def test_a_wrong_marker_fails_its_own_tests_with_the_cure(
    shop: Library, marker: str, what: str, cure: str
) -> None:
    """The first test has the whole text, the other a line; a test without the marker passes."""
    shop.write("two.sql", insert("two"))
    shop.write("tests/two.sql", insert("two"))
    shop.write("tests/bad.sql", "SELECT 1;\nINSERT INTO nowhere VALUES (1);\n")
    tests = f"""
@{marker}
@pytest.mark.parametrize("n", [1, 2])
async def test_wrong(db_session, n):
    raise AssertionError("never runs")

async def test_right(db_session):
    assert await names(db_session) == ""
"""
    shop.write("tests/test_it.py", COUNT + tests)

    result = shop.run(REUSE, "tests")

    result.assert_outcomes(passed=1, errors=2)
    result.stdout.fnmatch_lines([what, "Why:*", "*first occurrence for details*"])
    result.stdout.fnmatch_lines([cure])
    if "seeds:" not in marker and "sql" in marker:
        assert "Traceback" not in str(result.stdout)
    assert shop.databases("b") == []


@pytest.mark.parametrize(
    ("word", "wider", "cure"),
    [
        ("module", "tests/test_it.py", "*move the marker to tests/test_it.py, *"),
        ("class", "tests/test_it.py::TestShared", "*move the marker to *::TestShared, *"),
    ],
)
def test_a_test_can_not_fill_the_database_of_others(
    shop: Library, word: str, wider: str, cure: str
) -> None:
    """The others run, and one whose marker adds nothing does as well."""
    tests = f"""
pytestmark = [pytestmark, isolation("{word}"), seed("sql/a.sql")]

class TestShared:
    @seed("sql/b.sql")
    async def test_wrong(self, db_session):
        raise AssertionError("never runs")

    @seed("sql/a.sql")
    async def test_the_same(self, db_session):
        assert await names(db_session) == "a"

    @seed("sql/b.sql")
    @isolation("clone")
    async def test_of_its_own(self, db_session):
        assert await names(db_session) == "a b"

    async def test_shared(self, db_session):
        assert await names(db_session) == "a"
"""
    shop.write("tests/test_it.py", COUNT + tests)

    result = shop.run(REUSE, "tests")

    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(
        [
            "The marker warmstack_seed of tests/test_it.py::TestShared::test_wrong can't fill a"
            " database that other tests share.",
            f"Why: with the isolation {word}, *",
            cure,
        ]
    )


def test_a_module_with_seeds_can_be_filled_further_by_its_fixtures(shop: Library) -> None:
    """Synchronous and asynchronous ones, once for the module."""
    tests = """
import psycopg
import pytest_asyncio

pytestmark = [pytestmark, isolation("module"), seed("sql/a.sql")]

@pytest.fixture(scope="module")
def more(db_dsn):
    with psycopg.connect(db_dsn) as connection:
        connection.execute("INSERT INTO author VALUES (2, 'more')")

@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def most(more, db_engine):
    async with db_engine.begin() as connection:
        await connection.execute(text("INSERT INTO author VALUES (3, 'most')"))

@pytest.mark.parametrize("n", [1, 2])
async def test_filled(most, db_session, n):
    assert await names(db_session) == "a more most"
"""
    run(shop, tests, passed=2)


def test_the_seeds_are_behind_the_exported_address(shop: Library) -> None:
    """An application that read it once finds those of the test at hand, and no others."""
    shop.configure("warmstack_env = DATABASE_URL={db_url}")
    shop.write("app.py", "import os\nURL = os.environ['DATABASE_URL']\n")
    tests = """
import app
import asyncpg

async def names():
    connection = await asyncpg.connect(app.URL.replace("+asyncpg", ""))
    found = await connection.fetchval("SELECT string_agg(name, ' ' ORDER BY id) FROM author")
    await connection.close()
    return found

@pytest.mark.parametrize("n", [1, 2])
class TestInTurn:
    @seed("sql/a.sql")
    async def test_a(self, db_url, n):
        assert (db_url, await names()) == (app.URL, "a")

    async def test_plain(self, db_url, n):
        assert (db_url, await names()) == (app.URL, None)

@isolation("class")
@seed("sql/b.sql")
class TestShared:
    @pytest.mark.parametrize("n", [1, 2])
    async def test_b(self, db_url, n):
        assert (db_url, await names()) == (app.URL, "b")
"""
    run(shop, tests, passed=6)


def test_a_test_that_needs_no_database_starts_nothing_for_its_marker(
    embedded_project: Library,
) -> None:
    """Nor does a test with a wrong marker, which fails before it needs anything."""
    shop = filled(embedded_project)
    shop.write(
        "test_it.py",
        COUNT
        + """
@seed("sql/a.sql")
def test_unit():
    pass

@seed("absent.sql")
def test_wrong(db_url, redis_url):
    pass
""",
    )

    result = shop.run("test_it.py")

    result.assert_outcomes(passed=1, errors=1)
    assert "warmstack: PostgreSQL" not in str(result.stdout)


def test_the_marker_is_among_pytests_markers(shop: Library) -> None:
    """So that --strict-markers knows it, and --markers tells what it is for."""
    result = shop.run("--markers")

    result.stdout.fnmatch_lines(["@pytest.mark.warmstack_seed(*scripts): *"])
