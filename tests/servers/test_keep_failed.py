"""Databases of failed tests: kept with what the test left in them, named, few, and opened again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from sample import Library, until

REUSE = "--reuse-containers"

FAILING = """
import pytest
from sqlalchemy import text

@pytest.mark.parametrize("number", range({count}))
async def test_that_fails(db_session, number):
    await db_session.execute(text(f"INSERT INTO author VALUES ({{number}}, 'Ursula')"))
    await db_session.commit()
    assert number == -1

async def test_that_passes(db_session):
    await db_session.execute(text("INSERT INTO author VALUES (1, 'Ursula')"))
    await db_session.commit()
"""


def lines(result: pytest.RunResult) -> dict[str, str]:
    """Return the numbers by which the run says that databases are kept, by test."""
    pattern = r"warmstack: (\S+): its database is kept: warmstack psql ([0-9a-f]{10})$"
    found = (re.match(pattern, line) for line in result.outlines)
    return {each[1]: each[2] for each in found if each}


def test_what_a_failed_test_left_can_be_looked_at(kept: Library) -> None:
    """Its rows are there, after the run and after the next one; a test that passed leaves none."""
    kept.write("test_failing.py", FAILING.format(count=1))

    result = kept.run(REUSE, "test_failing.py")

    result.assert_outcomes(failed=1, passed=1)
    told = lines(result)
    assert list(told) == ["test_failing.py::test_that_fails[0]"]
    (name,) = kept.databases("k")
    assert name.endswith(told["test_failing.py::test_that_fails[0]"])
    kept.run(REUSE).assert_outcomes(passed=6, failed=1)
    assert name in kept.databases("k")
    (row,) = kept.sql("SELECT name FROM author", database=name)
    assert row["name"] == "Ursula"
    for each in kept.databases("k"):
        kept.sql(f'DROP DATABASE "{each}"', "SELECT 1")


def test_there_are_few_of_them(kept: Library) -> None:
    """The last ones stay, in a run with many failures and over many runs."""
    kept.write("test_failing.py", FAILING.format(count=9))

    for _ in range(2):
        result = kept.run(REUSE, "--warmstack-keep-failed=2", "test_failing.py")
        result.assert_outcomes(failed=9, passed=1)

        last = {f"test_failing.py::test_that_fails[{number}]" for number in (7, 8)}
        assert last <= set(lines(result))
        numbers = {lines(result)[test] for test in last}
        assert numbers <= {name.rpartition("_")[2] for name in kept.databases("k")}
        assert len(kept.databases("k")) <= 4

    kept.write("test_failing.py", FAILING.format(count=0))
    kept.run(REUSE, "--warmstack-keep-failed=2", "-k", "passes").assert_outcomes(
        passed=1, deselected=6
    )
    assert len(kept.databases("k")) == 2
    kept.run(REUSE, "--warmstack-keep-failed=0", "-k", "passes")
    assert kept.databases("k") == []


def test_a_run_that_keeps_no_server_keeps_no_database(embedded_project: Library) -> None:
    """It would be gone with the server; and with a limit of none, nothing is kept either."""
    project = embedded_project
    project.write("test_failing.py", FAILING.format(count=1))

    assert lines(project.run("test_failing.py")) == {}
    assert lines(project.run(REUSE, "--warmstack-keep-failed=0", "test_failing.py")) == {}
    assert project.databases("k") == []


def test_one_that_a_class_shares_is_kept_when_one_of_its_tests_failed(kept: Library) -> None:
    """With the class's name; one of tests that undo what they do has nothing to show."""
    kept.write(
        "test_shared.py",
        "import pytest\n"
        "from sqlalchemy import text\n\n"
        "@pytest.mark.warmstack_isolation('class')\n"
        "class TestShelf:\n"
        "    async def test_first(self, db_session):\n        assert False\n"
        "    async def test_second(self, db_session):\n        pass\n\n"
        "@pytest.mark.warmstack_isolation('rollback')\n"
        "async def test_undone(db_session):\n    assert False\n",
    )

    result = kept.run(REUSE, "test_shared.py")

    result.assert_outcomes(failed=2, passed=1)
    assert list(lines(result)) == ["test_shared.py::TestShelf"]
    (name,) = kept.databases("k")
    kept.sql(f'DROP DATABASE "{name}"', "SELECT 1")


def test_the_commands_know_it(project: Library) -> None:
    """Status shows it with its test, psql finds it by its number or its test, clean removes it."""
    project.write("test_failing.py", FAILING.format(count=1))
    result = project.run(REUSE, "test_failing.py", "-n2")
    result.assert_outcomes(failed=1, passed=1)
    ((test, number),) = lines(result).items()

    status = project.warmstack("status")
    facts = json.loads("\n".join(project.warmstack("status", "--json").outlines))
    (mine,) = [
        each
        for each in facts
        if each["project"] == str(project.folder) and each["service"] == "postgres"
    ]
    missing = project.warmstack("psql", "that_never_failed")

    literal = test.replace("[", "[[]")
    status.stdout.fnmatch_lines([f"    warmstack_k_*_{number} kept, * of {literal}"])
    (clone,) = [each for each in mine["inside"]["clones"] if each["state"] == "kept"]
    assert clone["test"] == test
    assert missing.ret == 1
    assert f"_{number}" in "\n".join(missing.errlines)


def test_a_connection_that_a_failed_test_left_does_not_keep_it_from_being_kept(
    kept: Library,
) -> None:
    """It is cut off, as for any other test."""
    kept.write(
        "test_failing.py",
        "import asyncpg\n\n"
        "async def test_that_fails(db_url):\n"
        "    connection = await asyncpg.connect(db_url.replace('+asyncpg', ''))\n"
        "    await connection.execute('CREATE TABLE left_behind (id int)')\n"
        "    globals()['stays'] = connection\n"
        "    assert False\n",
    )

    result = kept.run(REUSE, "test_failing.py")

    assert len(lines(result)) == 1
    (name,) = kept.databases("k")
    assert kept.sql("SELECT to_regclass('left_behind') IS NOT NULL AS there", database=name)[0][0]
    kept.sql(f'DROP DATABASE "{name}"', "SELECT 1")


def test_one_that_the_test_has_renamed_is_told_and_dropped(kept: Library) -> None:
    """It no longer has a name of ours; nothing is left of it."""
    kept.write(
        "test_failing.py",
        "import asyncpg\n\n"
        "async def test_that_fails(db_url, postgres_container):\n"
        "    url = postgres_container.get_connection_url(driver=None)\n"
        "    connection = await asyncpg.connect(url)\n"
        "    name = db_url.rpartition('/')[2]\n"
        "    await connection.execute(f'ALTER DATABASE {name} RENAME TO elsewhere')\n"
        "    await connection.close()\n"
        "    assert False\n",
    )

    result = kept.run(REUSE, "test_failing.py")

    result.stdout.fnmatch_lines(["warmstack: *of a test that failed could not be kept. *"])
    query = "SELECT count(*) FROM pg_database WHERE datname = 'elsewhere'"
    until(lambda: kept.sql(query)[0][0] == 0, "it is dropped", seconds=10)


def test_it_is_kept_on_a_server_of_somebody_else_too(
    kept: Library, library_in: Callable[..., Library]
) -> None:
    """Whatever becomes of the machine that ran the test."""
    guest = library_in("external")
    guest.write("test_failing.py", FAILING.format(count=1))
    endpoint = kept.kept("postgres")
    url = f"postgresql://postgres:{endpoint.password}@{endpoint.place}"
    try:
        result = guest.run("test_failing.py", WARMSTACK_POSTGRES_URL=url)

        assert len(lines(result)) == 1
        (name,) = kept.databases("k")
        assert guest.warmstack("clean", WARMSTACK_POSTGRES_URL=url).ret == 0
        assert name not in kept.databases()
    finally:
        guest.end()
