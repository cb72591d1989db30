"""Ready clones: those that a run makes ahead of its tests, and those that a kept server stores."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from projects import Bench, Library, keeping, until, with_command, with_options
from pytest_warmstack.options import RuntimeName, Settings
from pytest_warmstack.postgres import DatabaseName, State
from pytest_warmstack.postgres.clones import CloneFactory
from pytest_warmstack.postgres.connections import connect_raw
from pytest_warmstack.postgres.sql import MARK
from pytest_warmstack.servers.errors import ServerFull
from pytest_warmstack.servers.lifecycle import in_use

REUSE = "--reuse-containers"
AHEAD = Settings().clones_ahead

WHICH = """
from pathlib import Path
from sqlalchemy import text

async def test_which(db_session):
    query = "SELECT oid || ' ' || datname FROM pg_database WHERE datname = current_database()"
    with Path("which.log").open("a") as log:
        log.write(await db_session.scalar(text(query)) + "\\n")
"""

MANY = """
import os
from pathlib import Path
import pytest
from sqlalchemy import text

async def others(session):
    # Each of ours, but for templates.
    query = "SELECT count(*) FROM pg_database WHERE datname ~ '^warmstack_[bru]_'"
    return await session.scalar(text(query))

@pytest.mark.parametrize("number", range(int(os.environ["TESTS"])))
async def test_many(db_session, number):
    with Path("many.log").open("a") as log:
        log.write(f"{await others(db_session)}\\n")
    await db_session.execute(text("INSERT INTO author VALUES (1, 'Ursula')"))
    await db_session.commit()
"""

NAMES = """
import asyncio
import os
import time
from pathlib import Path
import pytest
from sqlalchemy import text

@pytest.mark.parametrize("number", range(30))
async def test_name(db_session, number):
    name = await db_session.scalar(text("SELECT current_database()"))
    with Path("names.log").open("a") as log:
        log.write(f"{name} {os.getpid()}\\n")
    assert await db_session.scalar(text("SELECT count(*) FROM author")) == 0
    await db_session.execute(text("INSERT INTO author VALUES (1, 'Ursula')"))
    await db_session.commit()
    # As long as a test takes: another one meanwhile may do the same.
    await asyncio.sleep(0.005)
    assert await db_session.scalar(text("SELECT count(*) FROM author")) == 1
"""

CONNECTIONS = """
import os
from pathlib import Path
import pytest
from sqlalchemy import text

@pytest.mark.parametrize("number", range(12))
async def test_connections(db_session, number):
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name"
        f" LIKE 'pytest-warmstack {os.getpid()}@%'"
    )
    with Path("connections.log").open("a") as log:
        log.write(f"{await db_session.scalar(text(query))}\\n")
"""

GREEDY = """
import asyncpg

async def test_that_takes_all_there_are(db_url):
    taken = []
    try:
        while True:
            taken.append(await asyncpg.connect(db_url.replace("+asyncpg", ""), ssl=False,
                                               server_settings={"application_name": "greedy"}))
    finally:
        for each in taken[1:]:
            each.terminate()
"""


def ready(project: Library, count: int = AHEAD) -> dict[str, int]:
    """Return the clones that stand ready, with their oids, as soon as there are *count*.

    Nobody waits for the last of them.
    """
    rows = until(
        lambda: (
            len(
                found := project.sql(
                    "SELECT datname, oid FROM pg_database WHERE datname ~ '^warmstack_r_'"
                )
            )
            == count
            and [*found, True]
        ),
        f"{count} clones stand ready",
    )
    return {row["datname"]: row["oid"] for row in rows[:-1]}


def taken(project: Library) -> list[tuple[int, str]]:
    """Return the databases that the tests of `WHICH` had, the last one last."""
    lines = [line.split() for line in project.lines("which.log")]
    return [(int(oid), name) for oid, name in lines]


# Between runs


def test_a_kept_server_has_clones_ready_and_a_test_takes_one_of_them(project: Library) -> None:
    """In either runtime: the database that stood there, under a name that says it is in use."""
    project.write("test_which.py", WHICH)
    project.run(REUSE, "test_which.py").assert_outcomes(passed=1)
    stock = ready(project)
    (template,) = project.databases("t")
    assert all(name.startswith(template.replace("_t_", "_r_")) for name in stock)

    project.run(REUSE, "test_which.py").assert_outcomes(passed=1)

    oid, name = taken(project)[-1]
    assert oid in stock.values()
    assert name.startswith(template.replace("_t_", "_u_"))
    # What was taken is dropped, and made up for.
    again = ready(project)
    assert oid not in again.values()
    assert len(again.keys() & stock.keys()) == AHEAD - 1
    assert sorted(project.databases()) == sorted([template, *again])


def test_a_run_without_reuse_has_no_stock(embedded_project: Library) -> None:
    """Its servers are gone with it."""
    embedded_project.run().assert_outcomes(passed=5)

    assert embedded_project.folders() == []


def test_the_stock_is_of_the_current_template_only(kept: Library) -> None:
    """After a migration was added, the clones of the template before it are swept."""
    kept.run(REUSE, "-k", "shelves").assert_outcomes(passed=1, deselected=4)
    before = set(ready(kept))
    kept.write(
        "migrations/versions/0004_more.py",
        'revision = "0004"\ndown_revision = "0003"\n'
        "from alembic import op\n"
        'def upgrade():\n    op.execute("CREATE TABLE more (id int)")\n',
    )

    kept.run(REUSE, "-k", "shelves").assert_outcomes(passed=1, deselected=4)

    until(lambda: not before & set(kept.databases("r")), "the old stock is swept")
    assert before.isdisjoint(ready(kept))


def test_the_stock_is_as_large_as_asked(kept: Library) -> None:
    """More on demand, and a smaller one is what the next run leaves."""
    kept.run(REUSE, "--warmstack-clones-ahead=5").assert_outcomes(passed=5)
    ready(kept, 5)

    kept.run(REUSE, "--warmstack-clones-ahead=1").assert_outcomes(passed=5)
    ready(kept, 1)


def test_workers_and_runs_together_leave_no_more_than_one_stock(kept: Library) -> None:
    """Three workers and a second run end at the same time; what is too much, the next run drops."""
    kept.write("test_names.py", NAMES)
    runs = [kept.start(REUSE, "-n", "3", "test_names.py"), kept.start(REUSE, "test_names.py")]
    for running in runs:
        running.wait().assert_outcomes(passed=30)

    kept.run(REUSE, "-k", "shelves", "test_library.py").assert_outcomes(passed=1, deselected=4)

    ready(kept)
    assert kept.databases("u") == kept.databases("b") == []


def test_a_clone_that_somebody_looked_into_is_not_given_out(kept: Library) -> None:
    """It may have been changed; it is swept, and another one stands ready in its place."""
    kept.write("test_which.py", WHICH)
    kept.run(REUSE, "test_which.py").assert_outcomes(passed=1)
    stock = ready(kept)
    for name in stock:
        kept.sql("CREATE TABLE forgotten (id int)", "SELECT 1", database=name)

    kept.run(REUSE, "test_which.py").assert_outcomes(passed=1)

    oid, _ = taken(kept)[-1]
    assert oid not in stock.values()
    assert stock.keys().isdisjoint(ready(kept))


def test_a_clone_from_the_stock_has_what_a_template_has_beside_its_tables(kept: Library) -> None:
    """Settings and grants, which PostgreSQL does not copy."""
    kept.write(
        "migrations/versions/0004_settings.py",
        'revision = "0004"\ndown_revision = "0003"\n'
        "from alembic import op\n"
        "def upgrade():\n"
        '    name = op.get_bind().exec_driver_sql("SELECT current_database()").scalar()\n'
        "    op.execute(f\"ALTER DATABASE {name} SET app.tenant = 'one'\")\n"
        '    op.execute(f"REVOKE TEMPORARY ON DATABASE {name} FROM PUBLIC")\n',
    )
    kept.write(
        "test_settings.py",
        WHICH + "    assert await db_session.scalar(text('SHOW app.tenant')) == 'one'\n"
        "    grants = 'SELECT datacl::text FROM pg_database WHERE datname = current_database()'\n"
        "    assert '=c/' in await db_session.scalar(text(grants))\n",
    )
    kept.run(REUSE, "test_settings.py").assert_outcomes(passed=1)
    stock = ready(kept)

    kept.run(REUSE, "test_settings.py").assert_outcomes(passed=1)

    assert taken(kept)[-1][0] in stock.values()


# Whose a clone is


@pytest.mark.parametrize("runtime", [RuntimeName.EMBEDDED], indirect=True)
def test_a_clone_that_stands_ready_is_taken_once(standing: Bench, runtime: str) -> None:
    """Eight processes that want one of three at the same moment: three get those, five new ones."""
    admins = [standing.ensure(standing.postgres).client for _ in range(8)]
    template = DatabaseName(State.TEMPLATE, "f" * 16)
    admins[0].create(template).result(30)
    with keeping(admins[0], template) as clone_factory:
        clone_factory.leave([], stock=3).result(30)
        names = until(
            lambda: (
                len(
                    found := [
                        each.name for each in admins[0].all() if each.name.state is State.READY
                    ]
                )
                == 3
                and found
            ),
            "three stand ready",
        )
    keepers = [CloneFactory(admin, template) for admin in admins]
    with ThreadPoolExecutor(8) as pool:
        clones = list(pool.map(lambda clone_factory: clone_factory.prepare().result(30), keepers))

    assert len({clone.name for clone in clones}) == len({clone.oid for clone in clones}) == 8
    assert {name.serial for name in names} <= {clone.name.serial for clone in clones}
    standing.ensure(standing.postgres).client.drop_unlocked([clone.name for clone in clones])
    assert {clone.name for clone in clones} <= {each.name for each in admins[0].all()}
    for clone_factory, clone in zip(keepers, clones, strict=True):
        assert clone_factory.drop(clone).result(30) == []
        clone_factory.leave([], stock=0).result(30)
    admins[0].drop(template)
    standing.leave()


@pytest.mark.parametrize("runtime", [RuntimeName.EMBEDDED], indirect=True)
def test_a_clone_that_is_being_swept_is_not_taken(standing: Bench, runtime: str) -> None:
    """It stands ready, and somebody holds its lock: another one is made."""
    admin, other = (standing.ensure(standing.postgres).client for _ in range(2))
    template = DatabaseName(State.TEMPLATE, "b" * 16)
    admin.create(template).result(30)
    ready = DatabaseName.new(State.READY, template.fingerprint)
    admin.background.call(admin.main.execute, admin.copy_statement(template, ready))
    assert other.try_lock(ready)
    with keeping(admin, template) as clone_factory:
        clone = clone_factory.prepare().result(30)

        assert clone.name.serial != ready.serial
        assert ready in {each.name for each in other.all()}

        other.unlock(ready)
        assert clone_factory.drop(clone).result(30) == []
    with keeping(other, template) as clone_factory:
        clone = clone_factory.prepare().result(30)
        assert clone.name.serial == ready.serial
        assert clone_factory.drop(clone).result(30) == []
    admin.drop(template)
    standing.leave()


@pytest.mark.parametrize("runtime", [RuntimeName.EMBEDDED], indirect=True)
def test_a_sweep_spares_the_clone_of_one_who_connects_again(
    standing: Bench, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a moment nobody holds its lock; then its owner does again, and keeps it."""
    owner, other = (standing.ensure(standing.postgres).client for _ in range(2))
    template = DatabaseName(State.TEMPLATE, "c" * 16)
    owner.create(template).result(30)
    with keeping(owner, template) as clone_factory:
        clone = clone_factory.prepare().result(30)

        async def slowly(*args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(0.05)
            return await connect_raw(*args, **kwargs)

        monkeypatch.setattr("pytest_warmstack.postgres.connections.connect_raw", slowly)
        lost = owner.main.pid
        other.background.call(other.main.fetch, f"SELECT pg_terminate_backend({lost}, 5000)")
        other.drop_unlocked([clone.name])
        other.drop_unlocked([clone.name])

        assert clone.name in {each.name for each in other.all()}
        assert owner.main.pid != lost
        assert clone_factory.drop(clone).result(30) == []
    owner.drop(template)
    standing.leave()


def test_no_clone_is_ever_given_twice(kept: Library) -> None:
    """Two runs with two workers each, at once, on one server that has some ready."""
    kept.write("test_names.py", NAMES)

    fresh = "--override-ini=warmstack_isolation=fresh-clone"
    runs = [kept.start(REUSE, "-n", "2", fresh, "test_names.py") for _ in range(2)]
    for running in runs:
        running.wait().assert_outcomes(passed=30)

    names = [line.split()[0] for line in kept.lines("names.log")]
    assert len(names) == len(set(names)) == 60
    assert len({line.split()[1] for line in kept.lines("names.log")}) == 4


def test_the_dead_are_swept_after_the_first_test(kept: Library) -> None:
    """It still sees the rubbish, since nothing slows it down; the end of the run does not.

    One is a database whose drop was interrupted, which PostgreSQL lets nobody change.
    """
    print_, serial = "0123456789abcdef", "0123456789"
    rubbish = [f"warmstack_{state}_{print_}_{serial}" for state in "bru"]
    for name in rubbish:
        kept.sql(f"CREATE DATABASE {name} CONNECTION LIMIT {MARK}", "SELECT 1")
    interrupted = f"UPDATE pg_database SET datconnlimit = -2 WHERE datname = '{rubbish[0]}'"
    kept.sql(interrupted, "SELECT 1")
    kept.write(
        "test_rubbish.py",
        "from sqlalchemy import text\n"
        "async def test_first(db_session):\n"
        f"    query = \"SELECT count(*) FROM pg_database WHERE datname ~ '{print_}_{serial}'\"\n"
        "    assert await db_session.scalar(text(query)) == 3\n",
    )

    kept.run(REUSE, "test_rubbish.py").assert_outcomes(passed=1)

    assert not set(rubbish) & set(kept.databases())


# How many there are


@pytest.mark.slow
def test_however_many_tests_there_are_there_are_few_databases(kept: Library) -> None:
    """Two thousand tests have no more at any moment than is made ahead, in use and being dropped.

    And they leave as many as twenty tests do.
    """
    kept.write("test_many.py", MANY)
    kept.run(REUSE, "test_many.py", TESTS="20").assert_outcomes(passed=20)
    ready(kept)
    few = len(kept.databases())
    kept.write("many.log", "")

    running = kept.start(REUSE, "test_many.py", TESTS="2000")
    running.wait(seconds=300).assert_outcomes(passed=2000)

    counts = [int(line) for line in kept.lines("many.log")]
    assert len(counts) == 2000
    # One is in use, eight may wait to be dropped, and the stock of before may still be there.
    assert max(counts) <= AHEAD + 1 + 8 + AHEAD
    ready(kept)
    assert len(kept.databases()) == few


def test_a_process_has_four_connections_of_its_own_at_most(kept: Library) -> None:
    """One with its locks, one that makes, one that drops, and one that puts back."""
    kept.write("test_connections.py", CONNECTIONS)

    kept.run(REUSE, "test_connections.py").assert_outcomes(passed=12)

    counts = [int(line) for line in kept.lines("connections.log")]
    assert 3 <= max(counts) <= 4


# No connection to spare


def test_a_test_that_gets_no_connection_is_told_who_has_them(kept: Library) -> None:
    """By database and application, in a section of its own."""
    kept.write("test_greedy.py", GREEDY)

    result = kept.run(REUSE, "test_greedy.py")

    result.assert_outcomes(failed=1)
    result.stdout.re_match_lines(
        [
            r".*warmstack: who holds the connections.*",
            r"\d+ of 300: greedy, from 127\.0\.0\.1, on warmstack_u_.*",
        ]
    )


@pytest.mark.parametrize("runtime", [RuntimeName.EMBEDDED], indirect=True)
def test_a_full_server_is_waited_for_told_and_left_alone(
    bench: Bench, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not broken: it is neither replaced nor removed, and counts as in use."""
    monkeypatch.setattr("pytest_warmstack.postgres.connections.BUSY_TIMEOUT", 0.3)
    spec = with_command(
        with_options(bench.postgres, max_connections="5"),
        lambda words: [*words, "-c", "max_connections=5", "-c", "superuser_reserved_connections=0"],
    )
    first = bench.ensure(spec)
    others = [bench.ensure(spec) for _ in range(4)]
    assert {each.id for each in others} == {first.id}

    with pytest.raises(ServerFull, match="no free connection") as caught:
        bench.ensure(spec)
    assert "0.3 seconds" in str(caught.value)

    runtime_ = bench.runtime()
    (found,) = [
        each
        for each in runtime_.list()
        if each.labels["pytest-warmstack.path"] == str(bench.folder)
    ]
    assert in_use(runtime_, spec, found)
    others.pop().client.close()
    assert bench.ensure(spec).id == first.id
