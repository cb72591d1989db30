"""Tests that freeze the clock, block sockets and so on don't disturb the plugin's work beside them.

Each case changes something for a whole run, or for each test of it. Then the plugin does all its
background work: it makes and drops clones, looks for connections that tests left open, reopens
connections that a test ended, sweeps, and leaves a stock.
"""

from __future__ import annotations

from typing import Final

import pytest

from projects import Library, until

LIFE: Final = """
import os

import psycopg2
import pytest

left = []


def connect(url):
    # This driver reads them too.
    own = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("PG")}
    connection = psycopg2.connect(url.replace("+asyncpg", ""))
    connection.autocommit = True
    os.environ.update(own)
    return connection


def add(url):
    connection = connect(url)
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM author")
        assert cursor.fetchone() == (0,)
        cursor.execute("INSERT INTO author VALUES (1, 'Ada')")
    connection.close()


@pytest.mark.parametrize("n", range(12))
def test_each_test_has_a_database_of_its_own(db_url, n):
    add(db_url)


def test_that_forgets_a_connection(db_url):
    left.append(connect(db_url))


def test_that_ends_all_connections(db_url):
    connection = connect(db_url)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name LIKE 'pytest-warmstack%'"
        )
        assert cursor.rowcount > 1
    connection.close()


@pytest.mark.parametrize("n", range(12))
def test_after_that(db_url, n):
    add(db_url)
"""
"""Tests that let the plugin do what it does. Their driver is in C, which no change here reaches."""

PATCH: Final = """
import pytest

@pytest.fixture(autouse=True{scope})
def changed_world():
    patch = pytest.MonkeyPatch()
{lines}
    yield
    patch.undo()
"""

REFUSES: Final = "def refuse(*args, **kwargs): raise RuntimeError('not in this world')\n"

WORLDS: Final = {
    "asyncio.sleep": ["patch.setattr('asyncio.sleep', refuse)"],
    "asyncio.sleep that returns at once": [
        "async def at_once(seconds, result=None): slept.append(seconds)",
        "patch.setattr('asyncio.sleep', at_once)",
    ],
    "time": [
        *(f"patch.setattr('time.{name}', lambda: 42.0)" for name in ("time", "monotonic")),
        "patch.setattr('time.perf_counter', lambda: 42.0)",
        "patch.setattr('time.sleep', refuse)",
    ],
    "random numbers": [
        "patch.setattr('os.urandom', lambda size: bytes(size))",
        "patch.setattr('random.random', lambda: 0.5)",
        "patch.setattr('uuid.uuid4', lambda: uuid.UUID(int=0))",
        "patch.setattr('secrets.token_hex', lambda size=16: '00' * size)",
    ],
    "sockets": [
        "patch.setattr('socket.socket', refuse)",
        "patch.setattr('socket.create_connection', refuse)",
        "patch.setattr('socket.getaddrinfo', refuse)",
    ],
    "the methods of sockets": ["patch.setattr(socket.socket, 'connect', refuse)"],
    "asyncpg.connect": ["patch.setattr('asyncpg.connect', refuse)"],
    "threads": ["patch.setattr('threading.Thread', refuse)"],
    "the event loop policy": [
        "class Policy(asyncio.DefaultEventLoopPolicy): new_event_loop = get_event_loop = refuse",
        "asyncio.set_event_loop_policy(Policy())",
        "patch.setattr('asyncio.new_event_loop', refuse)",
        "patch.setattr('asyncio.get_event_loop', refuse)",
    ],
    "the environment": [
        "for name in list(os.environ):",
        "    if not name.startswith('PYTEST_'): patch.delenv(name)",
        "for name in ('PGHOST', 'PGSERVICE', 'PGTARGETSESSIONATTRS', 'PGSSLMODE', 'PGPORT',",
        "    'PGSSLNEGOTIATION', 'PGGSSLIB', 'PGOPTIONS'): patch.setenv(name, 'nonsense')",
        "patch.setenv('HOME', '/nowhere')",
    ],
}
"""For each world the lines that change it."""

TOOLS: Final = {
    "pytest-freezer": (
        ["-p", "freezer"],
        "@pytest.fixture(autouse=True)\ndef changed(freezer): ...",
    ),
    "freezegun": (
        [],
        "import freezegun\n"
        "@pytest.fixture(autouse=True, scope='session')\n"
        "def changed():\n    with freezegun.freeze_time('2001-02-03'): yield",
    ),
    "freezegun that ticks backwards": (
        [],
        "import freezegun\n"
        "@pytest.fixture(autouse=True)\n"
        "def changed(request):\n"
        "    year = 2050 - len(request.node.name)\n"
        "    with freezegun.freeze_time(f'{year}-02-03', tick=True): yield",
    ),
    "time-machine": (
        [],
        "import time_machine\n"
        "@pytest.fixture(autouse=True, scope='session')\n"
        "def changed():\n    with time_machine.travel('2040-02-03', tick=False): yield",
    ),
    "pytest-socket": (["-p", "socket", "--disable-socket"], ""),
    "pytest-socket, hosts": (["-p", "socket", "--allow-hosts=192.0.2.1"], ""),
}
"""For each tool the arguments of the run that uses it, and the lines that its conftest has."""

PASSED: Final = 12 + 2 + 12


def run(project: Library, *arguments: str, conftest: str) -> pytest.RunResult:
    """Return the result of the whole life of a run in a world that *conftest* changes."""
    project.write("conftest.py", conftest)
    project.write("test_life.py", LIFE)
    return project.run("--reuse-containers", *arguments, "test_life.py")


def assert_all_was_done(project: Library, result: pytest.RunResult) -> None:
    """Fail unless every test had its database, and what was done behind it was done."""
    result.assert_outcomes(passed=PASSED)
    told = [line for line in result.outlines if "it left a connection" in line]
    assert len(told) == 1
    assert "::test_that_forgets_a_connection" in told[0]
    assert not [line for line in result.outlines if "could not" in line or "Error" in line]
    until(lambda: len(project.databases("r")) == 2, "two clones stand ready")
    until(lambda: not project.databases("u"), "all used clones are dropped", seconds=15)


@pytest.mark.parametrize("scope", ["function", "session"])
@pytest.mark.parametrize("world", WORLDS)
def test_what_a_test_replaces_is_not_used_beside_it(kept: Library, world: str, scope: str) -> None:
    """Neither for the time of a test nor for that of the whole run, whose end comes after it."""
    lines = "\n".join(f"    {line}" for line in WORLDS[world])
    conftest = "import asyncio, os, socket, uuid\nimport asyncpg, secrets\nslept = []\n" + REFUSES
    conftest += PATCH.format(lines=lines, scope=f", scope={scope!r}")
    conftest += "def pytest_sessionfinish():\n    assert slept == []\n"

    result = run(kept, conftest=conftest)

    assert_all_was_done(kept, result)


@pytest.mark.parametrize("tool", TOOLS)
def test_the_tools_that_people_use_for_it_stop_nothing(kept: Library, tool: str) -> None:
    """A frozen clock, a moved one, one that jumps between tests, and blocked sockets."""
    arguments, lines = TOOLS[tool]

    result = run(kept, *arguments, conftest=f"import pytest\n{lines}\n")

    assert_all_was_done(kept, result)


def test_the_note_of_the_last_use_is_true_in_a_frozen_run(kept: Library) -> None:
    """It has PostgreSQL's time: templates that were used today are not dropped as old ones."""
    arguments, lines = TOOLS["freezegun"]
    run(kept, *arguments, conftest=f"import pytest\n{lines}\n")

    ages = kept.sql(
        "SELECT extract(epoch FROM now()) - split_part(setting, ' ', 2)::float8 AS age"
        " FROM pg_db_role_setting, unnest(setconfig) AS setting"
        " WHERE setting LIKE 'application_name=warmstack %'"
    )

    assert ages
    assert all(0 <= each["age"] < 300 for each in ages)
