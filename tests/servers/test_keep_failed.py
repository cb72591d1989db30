"""Databases of failed tests are saved with their data, named, limited in number, and reopened."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from projects import Bench, Library, keeping, script, until
from pytest_warmstack.options import RuntimeName
from pytest_warmstack.postgres import DatabaseName, State
from pytest_warmstack.postgres.clones import LOCK_BATCH

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
    pattern = r"warmstack: (\S+): its database is saved: warmstack psql ([0-9a-f]{10})$"
    found = (re.match(pattern, line) for line in result.outlines)
    return {each[1]: each[2] for each in found if each}


def numbers(project: Library) -> set[str]:
    """Return the numbers of the databases of failed tests that are there."""
    return {name.rpartition("_")[2] for name in project.databases("k")}


def clear(project: Library) -> None:
    """Drop the databases that another test has left."""
    for name in project.databases("k"):
        project.sql(f'DROP DATABASE "{name}"', "SELECT 1")


RERUN = """
import pytest
from sqlalchemy import text

attempts = []

{marks}
class TestShelf:
    {decorator}
    async def test_that_is_run_again(self, db_session):
        attempts.append(1)
        await db_session.execute(text(f"INSERT INTO author VALUES (1, 'Ursula{{len(attempts)}}')"))
        await db_session.commit()
        assert len(attempts) > {failures}

    async def test_that_passes(self, db_session):
        pass
"""

PLUGINS = {
    "rerunfailures": ("pytest_rerunfailures", "@pytest.mark.flaky(reruns=3)"),
    "flaky": ("flaky.flaky_pytest_plugin", "@pytest.mark.flaky(max_runs=4)"),
    "retry": ("retry", ""),
}

RETRY = """
import pytest

@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    for _ in range(3):
        if call.when != "call" or call.excinfo is None:
            return
        elsewhere = pytest.Class.from_parent(item.session, name="Elsewhere")
        item.ihook.pytest_runtest_teardown(item=item, nextitem=elsewhere)
        item._initrequest()
        item.ihook.pytest_runtest_setup(item=item)
        call = pytest.CallInfo.from_call(
            lambda: item.ihook.pytest_runtest_call(item=item), when="call"
        )
        outcome.force_result(pytest.TestReport.from_item_and_call(item, call))
"""
"""A plugin that does as pytest-retry does."""


@pytest.mark.parametrize("plugin", PLUGINS)
@pytest.mark.parametrize("failures", [1, 3, 4])
def test_a_test_that_is_run_again_is_kept_once(kept: Library, plugin: str, failures: int) -> None:
    """What its last failed attempt left, also when a later one passes; of that one, nothing."""
    clear(kept)
    name, decorator = PLUGINS[plugin]
    kept.write("retry.py", RETRY)
    kept.write("test_run.py", RERUN.format(marks="", decorator=decorator, failures=failures))

    result = kept.run(REUSE, "-p", name, "test_run.py")

    failed = int(failures == 4)
    assert result.parseoutcomes().get("failed", 0) == failed
    ((test, number),) = lines(result).items()
    assert test == "test_run.py::TestShelf::test_that_is_run_again"
    assert numbers(kept) == {number}
    (row,) = kept.sql("SELECT name FROM author", database=kept.databases("k")[0])
    assert row["name"] == f"Ursula{failures}"


@pytest.mark.parametrize(("failures", "count"), [(1, 0), (4, 1)])
def test_what_a_class_shares_is_kept_if_a_test_of_it_failed_in_the_end(
    kept: Library, failures: int, count: int
) -> None:
    """Not when it passed as it was run again."""
    clear(kept)
    name, decorator = PLUGINS["rerunfailures"]
    marks = "@pytest.mark.warmstack_isolation('class')"
    text = RERUN.format(marks=marks, decorator=decorator, failures=failures)
    kept.write("test_run.py", text.replace("VALUES (1,", "VALUES ({len(attempts)},"))

    result = kept.run(REUSE, "-p", name, "test_run.py")

    assert len(lines(result)) == count
    assert numbers(kept) == set(lines(result).values())


def test_what_is_no_failure_keeps_nothing(kept: Library) -> None:
    """An expected failure, a skip, and the teardown of something else."""
    clear(kept)
    kept.write(
        "test_odd.py",
        "import pytest\n\n"
        "@pytest.fixture\n"
        "def bad(db_url):\n    yield\n    assert False\n\n"
        "@pytest.mark.xfail\n"
        "def test_expected(db_url):\n    assert False\n\n"
        "def test_called(db_url):\n    pytest.xfail()\n\n"
        "def test_skipped(db_url):\n    pytest.skip()\n\n"
        "def test_teardown(bad, db_url):\n    pass\n",
    )

    result = kept.run(REUSE, "test_odd.py")

    result.assert_outcomes(xfailed=2, skipped=1, passed=1, errors=1)
    assert lines(result) == {}
    assert numbers(kept) == set()


@pytest.mark.parametrize("options", [("-q",), ("-x",), ("--maxfail=4",)], ids=str)
@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "workers"])
def test_what_the_run_names_is_there(
    kept: Library, options: tuple[str, ...], workers: tuple[str, ...]
) -> None:
    """However it ends, and whatever its workers dropped on the way."""
    clear(kept)
    kept.write("test_failing.py", FAILING.format(count=9))

    result = kept.run(REUSE, "--warmstack-keep-failed=2", "test_failing.py", *options, *workers)

    assert 1 <= len(lines(result)) <= 2 * max(len(workers) * 2, 1)
    assert set(lines(result).values()) == numbers(kept)


def test_no_worker_drops_what_another_one_keeps(kept: Library) -> None:
    """Also when that one has ended, and no process holds its locks any more."""
    clear(kept)
    kept.write(
        "conftest.py",
        "from pathlib import Path\n\ndef pytest_unconfigure(config):\n    Path('ended').touch()\n",
    )
    kept.write("test_a.py", "def test_first(db_url):\n    assert False\n")
    kept.write(
        "test_b.py",
        "import time\nfrom pathlib import Path\n\n"
        "def test_second(db_url):\n"
        "    deadline = time.monotonic() + 30\n"
        "    while not Path('ended').exists():\n"
        "        assert time.monotonic() < deadline\n"
        "        time.sleep(0.02)\n"
        "    assert False\n",
    )

    result = kept.run(REUSE, "--warmstack-keep-failed=1", "test_a.py", "test_b.py", "-n2")

    assert sorted(lines(result)) == ["test_a.py::test_first", "test_b.py::test_second"]
    assert numbers(kept) == set(lines(result).values())


@pytest.mark.parametrize("runtime", [RuntimeName.EMBEDDED], indirect=True)
def test_no_other_run_drops_what_a_run_in_progress_keeps(standing: Bench, runtime: str) -> None:
    """However many of its other clones it drops, and so lets go of."""
    admin, other = (standing.ensure(standing.postgres).client for _ in range(2))
    template = DatabaseName(State.TEMPLATE, "c" * 16)
    admin.create(template).result(30)
    with keeping(admin, template) as clone_factory:
        saved = clone_factory.save(clone_factory.prepare().result(30), "test").result(30).name
        for _ in range(LOCK_BATCH):
            clone_factory.drop(clone_factory.prepare().result(30)).result(30)

        other.drop_unlocked([saved])

        assert saved in {each.name for each in other.all()}
    admin.drop(saved)
    admin.drop(template)
    standing.leave()


def test_what_a_failed_test_left_can_be_looked_at(kept: Library) -> None:
    """Its rows are there, after the run and after the next one; a test that passed leaves none."""
    clear(kept)
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


def test_there_are_few_of_them(kept: Library) -> None:
    """The last ones stay, in a run with many failures and over many runs."""
    kept.write("test_failing.py", FAILING.format(count=9))

    for _ in range(2):
        result = kept.run(REUSE, "--warmstack-keep-failed=2", "test_failing.py")
        result.assert_outcomes(failed=9, passed=1)

        last = {f"test_failing.py::test_that_fails[{number}]" for number in (7, 8)}
        assert set(lines(result)) == last
        assert set(lines(result).values()) <= numbers(kept)
        assert len(kept.databases("k")) <= 4

    kept.write("test_failing.py", FAILING.format(count=0))
    kept.run(REUSE, "--warmstack-keep-failed=2", "-k", "passes").assert_outcomes(
        passed=1, deselected=6
    )
    assert len(kept.databases("k")) == 2
    kept.run(REUSE, "--warmstack-keep-failed=0", "-k", "passes")
    assert kept.databases("k") == []


def test_there_are_no_more_after_several_runs(kept: Library) -> None:
    """Those of earlier runs make room as a run ends, not only when the next one begins."""
    clear(kept)
    kept.write("test_fails.py", FAILING.format(count=5))

    for _ in range(3):
        result = kept.run(REUSE, "test_fails.py")
        assert set(lines(result).values()) == numbers(kept)
        assert len(numbers(kept)) == 3


def test_a_run_that_keeps_no_server_keeps_no_database(embedded_project: Library) -> None:
    """It would be gone with the server; and with a limit of none, nothing is kept either."""
    project = embedded_project
    project.write("test_failing.py", FAILING.format(count=1))

    assert lines(project.run("test_failing.py")) == {}
    assert lines(project.run(REUSE, "--warmstack-keep-failed=0", "test_failing.py")) == {}
    assert project.databases("k") == []


def test_one_that_a_class_shares_is_kept_when_one_of_its_tests_failed(kept: Library) -> None:
    """With its name; one of tests that undo what they do has nothing to show."""
    clear(kept)
    kept.write(
        "test_shared.py",
        "import pytest\n"
        "from sqlalchemy import text\n\n"
        "@pytest.mark.warmstack_isolation('class')\n"
        "class TestShelf:\n"
        "    async def test_first(self, db_session):\n        assert False\n"
        "    async def test_second(self, db_session):\n        pass\n\n"
        "@pytest.mark.warmstack_isolation('class')\n"
        "class TestOther:\n"
        "    async def test_third(self, db_session):\n        pass\n\n"
        "@pytest.mark.warmstack_isolation('rollback')\n"
        "async def test_undone(db_session):\n    assert False\n",
    )

    result = kept.run(REUSE, "test_shared.py")

    result.assert_outcomes(failed=2, passed=2)
    assert list(lines(result)) == ["test_shared.py::TestShelf::test_first"]
    assert len(kept.databases("k")) == 1


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
    status.stdout.fnmatch_lines([f"    warmstack_k_*_{number} saved, * of {literal}"])
    (clone,) = [each for each in mine["inside"]["clones"] if each["state"] == "saved"]
    assert clone["test"] == test
    assert missing.ret == 1
    assert f"_{number}" in "\n".join(missing.errlines)


@pytest.mark.docker
def test_psql_opens_what_the_run_names_on_whichever_server_it_is(
    docker_project: Library, embedded_programs: None, tmp_path: Path
) -> None:
    """A project has one in each runtime that its runs name."""
    project = docker_project
    project.write("test_failing.py", FAILING.format(count=1))
    for runtime in RuntimeName.DOCKER, RuntimeName.EMBEDDED:
        result = project.run(REUSE, f"--warmstack-runtime={runtime}", "test_failing.py")
        (number,) = lines(result).values()
        path = script(tmp_path / runtime, "psql")

        opened = project.warmstack("psql", number, PATH=path)

        assert opened.ret == 0
        assert f"_{number}" in opened.stdout.str()


def test_a_connection_that_a_failed_test_left_does_not_keep_it_from_being_kept(
    kept: Library,
) -> None:
    """It is cut off, as for any other test."""
    clear(kept)
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

    result.stdout.fnmatch_lines(["warmstack: *ould not save the database *"])
    query = "SELECT count(*) FROM pg_database WHERE datname = 'elsewhere'"
    until(lambda: kept.sql(query)[0][0] == 0, "it is dropped", seconds=10)


def test_it_is_kept_on_a_server_of_somebody_else_too(
    kept: Library, library_in: Callable[..., Library]
) -> None:
    """Whatever becomes of the machine that ran the test."""
    clear(kept)
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
