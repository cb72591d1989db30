"""Secrets are never printed or written: these tests plant some and search all output for them."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from projects import Bench, Library, query
from pytest_warmstack.options import RuntimeName
from pytest_warmstack.servers.model import Endpoint, redis_url

embedded = pytest.mark.parametrize("runtime", [RuntimeName.EMBEDDED], indirect=True)

POSTGRES, REDIS, PLANTED = "p@ss-Geheim/1", "redis-Geheim-2", "sk_live_Geheim3"
SHOWN = ("Geheim", "%40ss", "sk_live")
"""No part of what was planted is shown."""

TESTS = """
import logging
import warnings
import psycopg
import pytest

def test_compares(db_url):
    assert db_url == "nothing"

def test_compares_a_part(redis_url, db_url):
    assert "x" + redis_url + db_url in ["nothing"]

def test_gives_it_to_the_wrong_driver(db_url):
    psycopg.connect(db_url)

def test_gives_it_to_no_driver(db_url, redis_process_url, postgres_container):
    urls = [db_url, redis_process_url, postgres_container.get_connection_url(), {"a": db_url}]
    parts = db_url.split("/")
    print(urls, *parts)
    logging.getLogger().warning("at %s, %r", db_url, db_url)
    assert not urls

@pytest.mark.asyncio
async def test_closes_a_session(db_session, redis_client, record_property, db_url):
    record_property("url", db_url)
    print(db_session.bind.url, redis_client, db_url)
    warnings.warn(f"slow: {db_url}")
"""
FAILING = 4


@pytest.fixture(scope="module")
def servers(standing: Bench) -> tuple[Endpoint, Endpoint]:
    """PostgreSQL and Redis with a user `planted`, whose passwords are looked for."""
    postgres = standing.ensure(standing.postgres).endpoint
    redis = standing.ensure(standing.redis).endpoint
    role = f"CREATE ROLE planted LOGIN CREATEDB PASSWORD '{POSTGRES}'"
    asyncio.run(query(postgres, role, "SELECT 1"))
    return postgres, redis


@pytest.fixture
def planted(guest: Library, servers: tuple[Endpoint, Endpoint]) -> Iterator[dict[str, str]]:
    """The variables of a run on these servers."""
    postgres, redis = servers
    with Redis.from_url(redis_url(redis, 0)) as client:
        client.acl_setuser(
            "planted",
            enabled=True,
            passwords=[f"+{REDIS}"],
            keys=["*"],
            channels=["*"],
            categories=["+@all"],
        )
    password = POSTGRES.replace("@", "%40").replace("/", "%2F")
    own = Endpoint(host=redis.host, port=redis.port, password=REDIS, user="planted")
    guest.configure(
        "warmstack_env =",
        f"    SHOP_KEY={PLANTED}",
        "    DATABASE_URL={db_url}",
        f"warmstack_postgres_env = TOKEN={PLANTED}",
    )
    guest.write("test_planted.py", TESTS)
    yield {
        "WARMSTACK_POSTGRES_URL": f"postgresql://planted:{password}@{postgres.place}",
        "WARMSTACK_REDIS_URL": redis_url(own, 0),
    }
    with Redis.from_url(redis_url(redis, 0)) as client:
        client.acl_deluser("planted")


def shows_nothing(folder: Path, result: pytest.RunResult) -> None:
    """Fail if a secret is in what a run printed, or in a file that it wrote."""
    texts = {"output": result.stdout.str() + result.stderr.str()}
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "pytest.ini" and path.suffix not in {".py", ".pyc"}:
            texts[str(path)] = path.read_text(errors="replace")
    for name, text in texts.items():
        assert not [each for each in SHOWN if each in text], name


@embedded
@pytest.mark.parametrize("arguments", [(), ("-l", "-vv"), ("--tb=native",), ("-n1", "-l")])
def test_a_failing_test_shows_no_password(
    guest: Library, planted: dict[str, str], arguments: tuple[str, ...]
) -> None:
    """Neither in the terminal, with the output of the tests that passed, nor in JUnit's file."""
    result = guest.run(
        "test_planted.py",
        "-rA",
        "--junitxml=report.xml",
        "-ojunit_logging=all",
        *arguments,
        **planted,
    )

    result.assert_outcomes(failed=FAILING, passed=1)
    assert "planted:***@" in result.stdout.str()
    assert "planted:***@" in (guest.folder / "report.xml").read_text()
    shows_nothing(guest.folder, result)


@embedded
@pytest.mark.parametrize(
    "text",
    [
        "import os; print(dict(os.environ), url); raise RuntimeError(url)",
        "import os; raise RuntimeError(os.environ['DATABASE_URL'] + os.environ['SHOP_KEY'])",
        "import os; print(os.environ); connectable.connect('postgresql://me:Geheim@prod/shop')",
        "import psycopg; psycopg.connect('postgresql+asyncpg://me:Geheim@prod/shop')",
    ],
)
def test_a_failing_migration_shows_no_password(
    guest: Library, planted: dict[str, str], text: str
) -> None:
    """Whatever env.py prints or raises."""
    env = (guest.folder / "migrations/env.py").read_text()
    guest.write(
        "migrations/env.py",
        f"from alembic import context\n"
        f"url = context.config.get_main_option('sqlalchemy.url')\n{text}\n{env}",
    )

    result = guest.run("test_planted.py", "-rA", "-l", "--junitxml=report.xml", **planted)

    assert "The migrations failed in env.py" in result.stdout.str()
    shows_nothing(guest.folder, result)


@embedded
@pytest.mark.parametrize(
    "command", ["doctor", "status", "status --json", "up", "clean --dry-run", "clean", "--help"]
)
def test_a_command_shows_no_password(guest: Library, planted: dict[str, str], command: str) -> None:
    """Nor any value of the lines that may hold one."""
    guest.run("test_planted.py", **planted)

    result = guest.warmstack(*command.split(), **planted)

    assert result.stdout.lines
    shows_nothing(guest.folder, result)
    if command == "doctor":
        assert "SHOP_KEY, DATABASE_URL" in result.stdout.str()


def test_a_file_with_a_password_is_for_its_owner(embedded_project: Library) -> None:
    """That of a kept server is written down for the next run."""
    embedded_project.run("--reuse-containers", "-k", "book").assert_outcomes(passed=1, deselected=4)

    secrets = [embedded_project.kept(name).password for name in ("postgres",)]
    roots = [embedded_project.folder, *embedded_project.folders()]
    found = [
        path
        for root in roots
        for path in root.rglob("*")
        if path.is_file() and any(each.encode() in path.read_bytes() for each in secrets)
    ]
    assert found
    assert [stat.filemode(path.stat().st_mode) for path in found] == ["-rw-------"] * len(found)
    assert os.getuid() == found[0].stat().st_uid
