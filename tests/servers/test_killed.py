"""After kill -9 in any state, the next run passes, and its sweep removes what is left."""

from __future__ import annotations

import asyncio
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any

import pytest

from projects import Library, Running, query, until
from pytest_warmstack.postgres.sql import MARK

REUSE = "--reuse-containers"

WAITING = """
import time
from pathlib import Path
import pytest
from sqlalchemy import text

def wait():
    Path("running").touch()
    deadline = time.monotonic() + 60
    while not Path("go").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)

async def test_in_use(db_session, redis_client):
    await db_session.execute(text("INSERT INTO author VALUES (1, 'Ursula')"))
    await db_session.commit()
    await redis_client.set("key", "value")
    wait()

@pytest.mark.warmstack_isolation("rollback")
async def test_undone(db_session):
    await db_session.execute(text("INSERT INTO author VALUES (1, 'Ursula')"))
    await db_session.commit()
    wait()

@pytest.mark.warmstack_isolation("rollback")
def test_synchronous(db_url):
    wait()

@pytest.mark.warmstack_isolation("class")
class TestShared:
    async def test_shared(self, db_session):
        await db_session.execute(text("INSERT INTO author VALUES (1, 'Ursula')"))
        await db_session.commit()
        wait()
"""

REVISION = """
import time
from pathlib import Path
from alembic import op

revision = "0004"
down_revision = "0003"

def upgrade():
    op.execute("CREATE TABLE more (id int)")
    if not Path("go").exists():
        Path("running").touch()
        time.sleep(60)
"""

FORKS = """
import os
import sys

from sqlalchemy import text

def test_that_forks(db_url, redis_url):
    child = os.fork()
    if child == 0:
        sys.exit("pytest takes this for a failure of the test, and goes on")
    os.waitpid(child, 0)

async def test_after_it(db_session, redis_client):
    assert await db_session.scalar(text("SELECT count(*) FROM author")) == 0
    await redis_client.set("key", "value")

async def test_at_last(db_session, redis_client):
    assert await redis_client.dbsize() == 0
"""

MANY = """
import pytest
from sqlalchemy import text

@pytest.mark.parametrize("number", range(60))
async def test_many(db_session, redis_client, number):
    assert await db_session.scalar(text("SELECT count(*) FROM author")) == 0
    await db_session.execute(text("INSERT INTO author VALUES (1, 'Ursula')"))
    await db_session.commit()
    assert await redis_client.dbsize() == 0
    await redis_client.set("key", number)
"""


def begun(project: Library, *arguments: str) -> Running:
    """Return a run that has come to where it waits."""
    running = project.start(REUSE, *arguments)
    until((project.folder / "running").exists, "the run waits")
    return running


def assert_healed(project: Library, servers: list[str] | None = None) -> None:
    """Run the project's own tests on the same servers; nothing of the dead may be left then."""
    project.run(REUSE, "test_library.py").assert_outcomes(passed=5)

    assert project.databases("u") == project.databases("b") == []
    assert len(project.databases("r")) <= 2
    assert until(lambda: not leases(project), "no lease is held")
    if servers is not None:
        assert project.servers() == servers


def leases(project: Library) -> list[str]:
    """Return the leases of Redis databases that living connections hold."""
    from redis import Redis

    place = project.kept("redis")
    with Redis(host=place.host, port=place.port, password=place.password) as client:
        names = [each["name"] for each in client.client_list()]
    return [name for name in names if name.startswith("pytest-warmstack:lease")]


@contextmanager
def locked(project: Library) -> Iterator[Callable[[str], Any]]:
    """Let nobody make, rename or drop a database; yield a way to wait until somebody tries."""
    release, ready = Event(), Event()

    async def hold() -> None:
        import asyncpg

        place = project.kept("postgres")
        connection = await asyncpg.connect(
            host=place.host,
            port=place.port,
            user="postgres",
            password=place.password,
            database="postgres",
            ssl=False,
        )
        await connection.execute("BEGIN; LOCK TABLE pg_database IN SHARE MODE")
        ready.set()
        await asyncio.get_running_loop().run_in_executor(None, release.wait, 60)
        await connection.close()

    holder = Thread(target=lambda: asyncio.run(hold()), daemon=True)
    holder.start()
    assert ready.wait(10)

    def tries(words: str) -> Any:
        waiting = (
            "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            f" AND query LIKE '{words}%' AND application_name LIKE 'pytest-warmstack%'"
        )
        return until(
            lambda: asyncio.run(query(project.kept("postgres"), waiting)), f"{words} waits"
        )

    try:
        yield tries
    finally:
        release.set()
        holder.join(10)


@pytest.mark.parametrize("which", ["in_use", "undone", "shared"])
@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "worker"])
def test_killed_while_a_test_runs(kept: Library, which: str, workers: tuple[str, ...]) -> None:
    """In each isolation, and with a worker of xdist."""
    kept.write("test_waiting.py", WAITING)
    servers = kept.servers()
    running = begun(kept, "test_waiting.py", "-k", which, *workers)
    assert kept.databases("u")

    running.kill()

    assert_healed(kept, servers)


def test_killed_while_the_template_is_built(kept: Library) -> None:
    """The next run builds it from where it was begun, and the half-built one is dropped."""
    kept.write("migrations/versions/0004_more.py", REVISION)
    servers = kept.servers()
    running = begun(kept, "test_library.py")
    assert len(kept.databases("b")) == 1

    running.kill()
    (kept.folder / "go").touch()

    assert_healed(kept, servers)


def test_killed_while_it_waits_for_anothers_build(kept: Library) -> None:
    """The one that builds goes on, and finds its own way."""
    kept.write("migrations/versions/0004_more.py", REVISION.replace("60", "9"))
    builder = begun(kept, "test_library.py")
    waiter = kept.start(REUSE, "-s", "test_library.py")
    output = waiter.stem.with_suffix(".out")
    until(lambda: "waiting for another build" in output.read_text(), "the second run waits")

    waiter.kill()

    builder.wait().assert_outcomes(passed=5)
    (kept.folder / "go").touch()
    assert_healed(kept)


def test_killed_while_a_clone_is_made(kept: Library) -> None:
    """Before it is there, and although PostgreSQL goes on with it."""
    kept.write("test_many.py", MANY)
    servers = kept.servers()
    with locked(kept) as tries:
        running = kept.start(REUSE, "test_many.py", "--warmstack-clones-ahead=4")
        tries("CREATE DATABASE")
        running.kill()

    assert_healed(kept, servers)


def test_killed_while_a_clone_is_taken_from_the_stock(kept: Library) -> None:
    """Its lock is held, and its name still says that it stands ready."""
    kept.run(REUSE, "test_library.py").assert_outcomes(passed=5)
    until(lambda: len(kept.databases("r")) == 2, "two stand ready")
    with locked(kept) as tries:
        running = kept.start(REUSE, "test_library.py")
        tries("ALTER DATABASE")
        running.kill()

    assert_healed(kept)


def test_killed_while_a_clone_is_dropped(kept: Library) -> None:
    """Its test is done; the drop has begun and is not done."""
    kept.write("test_waiting.py", WAITING)
    running = begun(kept, "test_waiting.py", "-k", "in_use")
    with locked(kept) as tries:
        (kept.folder / "go").touch()
        tries("DROP DATABASE")
        running.kill()

    assert_healed(kept)


def test_killed_while_it_sweeps(kept: Library) -> None:
    """What it was about to drop, the next one does."""
    name = "warmstack_u_0123456789abcdef_0123456789"
    kept.sql(f"CREATE DATABASE {name} CONNECTION LIMIT {MARK}", "SELECT 1")
    kept.write("test_waiting.py", WAITING)
    running = begun(kept, "test_waiting.py", "-k", "in_use")
    with locked(kept) as tries:
        (kept.folder / "go").touch()
        tries("%DATABASE")
        running.kill()

    assert_healed(kept)


def test_killed_between_the_name_and_the_key_of_a_lease(kept: Library) -> None:
    """Redis is paused for all that writes: the connection has its name, the key is not there."""
    from redis import Redis

    kept.write("test_waiting.py", WAITING)
    place = kept.kept("redis")
    with Redis(host=place.host, port=place.port, password=place.password) as client:
        client.client_pause(30_000, all=False)
        running = kept.start(REUSE, "test_waiting.py", "-k", "in_use")
        until(lambda: leases(kept), "the connection has its name")
        running.kill()
        client.client_unpause()

    assert_healed(kept)


def test_killed_again_and_again_at_any_moment(kept: Library) -> None:
    """Six times, from before the servers are asked for until after the last test."""
    kept.write("test_many.py", MANY)
    servers = kept.servers()
    moments = random.Random(4)  # noqa: S311 - nothing is kept secret by it

    for turn in range(6):
        workers = ("-n", "2") if turn % 2 else ()
        running = kept.start(REUSE, "test_many.py", *workers)
        try:
            running.process.wait(moments.uniform(0.3, 2.0))
        except subprocess.TimeoutExpired:
            running.kill()

    assert_healed(kept, servers)


def test_a_forked_process_that_comes_back_into_the_run_takes_nothing(
    embedded_project: Library,
) -> None:
    """It is told so, ends, and leaves to its parent what is its parent's."""
    project = embedded_project
    project.write("test_forks.py", FORKS)

    result = project.run("test_forks.py")

    # What the parent printed comes last.
    result.assert_outcomes(passed=3)
    result.stdout.re_match_lines(
        [r".*Why: a test forked it from process \d+, .*", r"=* ?1 failed, 3 errors in .*"]
    )


def test_a_server_that_is_killed_under_a_run_is_told_and_replaced(
    embedded_project: Library,
) -> None:
    """The run ends, with errors that say so; the next one has another server."""
    import signal

    project = embedded_project
    project.write("test_many.py", MANY)
    project.write("test_waiting.py", WAITING)
    running = begun(project, "test_waiting.py", "test_many.py", "-k", "in_use or many")

    project.stop("postgres", signal.SIGKILL)
    (project.folder / "go").touch()

    result = running.wait()
    result.assert_outcomes(passed=1, failed=2, errors=58)
    assert "PostgreSQL stopped answering during the run." in result.stdout.str()
    project.run(REUSE, "test_library.py").assert_outcomes(passed=5)


def test_a_server_that_is_killed_is_told_although_nobody_asks_for_it_any_more(
    embedded_project: Library,
) -> None:
    """Of the last test it is to be known whether it undid all; now that can't be known."""
    import signal

    project = embedded_project
    project.write("test_waiting.py", WAITING)
    running = begun(project, "test_waiting.py", "-k", "synchronous")

    project.stop("postgres", signal.SIGKILL)
    (project.folder / "go").touch()

    result = running.wait()
    result.assert_outcomes(passed=1, deselected=3)
    assert result.ret == 0
    assert "whether it connected without db_engine is not known" in result.stdout.str()
