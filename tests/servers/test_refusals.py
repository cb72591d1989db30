"""If PostgreSQL refuses a statement of the plugin, or stops, an error says what failed and why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import psycopg2
import pytest

import external_servers
from external_servers import Cluster
from projects import Library

URL: Final = "WARMSTACK_POSTGRES_URL"
BOOKS: Final = ("-k", "book or shelves")
"""The tests of the example that need PostgreSQL alone."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A PostgreSQL that the tests of this file share."""
    with external_servers.cluster() as server:
        yield server


@pytest.fixture
def server(cluster: Cluster) -> Iterator[Cluster]:
    """The same without databases of the plugin, and with its role as it was."""
    yield cluster
    cluster.sql("ALTER ROLE ci LOGIN CREATEDB CONNECTION LIMIT -1 PASSWORD 'ci'", "SELECT 1")
    cluster.clear()


def test_a_session_in_template1_stands_in_no_ones_way(guest: Library, server: Cluster) -> None:
    """An empty database is copied from template0, to which nobody can connect."""
    place = server.endpoint
    other = psycopg2.connect(
        host=place.host, port=place.port, user="postgres", password="secret", dbname="template1"
    )
    try:
        guest.run(*BOOKS, **{URL: server.url()}).assert_outcomes(passed=2, deselected=3)
    finally:
        other.close()


def test_another_collation_of_template1_stands_in_no_ones_way(
    guest: Library, server: Cluster
) -> None:
    """As after an upgrade of the system's C library; template0 has no version of its collation."""
    change = "UPDATE pg_database SET datcollversion = {} WHERE datname = 'template1'"
    server.sql(change.format("'0.1'"), "SELECT 1")
    try:
        guest.run(*BOOKS, **{URL: server.url()}).assert_outcomes(passed=2, deselected=3)
    finally:
        server.sql(change.format("NULL"), "SELECT 1")


def test_what_is_in_template1_is_in_every_database(guest: Library, server: Cluster) -> None:
    """Somebody has put it there for that."""
    guest.write(
        "test_house.py",
        "import psycopg2\n"
        "def test_house(db_url):\n"
        "    with psycopg2.connect(db_url.replace('+asyncpg', '')) as connection:\n"
        "        cursor = connection.cursor()\n"
        "        cursor.execute('SELECT count(*) FROM house')\n"
        "        assert cursor.fetchone() == (0,)\n"
        "    connection.close()\n",
    )
    server.sql("CREATE TABLE house (id int)", "GRANT SELECT ON house TO ci", database="template1")
    try:
        result = guest.run("test_house.py", **{URL: server.url()})
    finally:
        server.sql("DROP TABLE house", "SELECT 1", database="template1")

    result.assert_outcomes(passed=1)


FAULTS: Final = {
    "the right to create databases is gone": (
        "ALTER ROLE ci NOCREATEDB",
        "PostgreSQL could not clone the template",
        "permission denied to create database",
    ),
    "another password": (
        "ALTER ROLE ci PASSWORD 'other'",
        "PostgreSQL could not clone the template",
        'password authentication failed for user "ci"',
    ),
    "no right to log in": (
        "ALTER ROLE ci NOLOGIN",
        "PostgreSQL could not clone the template",
        'role "ci" is not permitted to log in',
    ),
    "no connection to spare": (
        "ALTER ROLE ci CONNECTION LIMIT 0",
        "PostgreSQL has no free connection.",
        'too many connections for role "ci"',
    ),
}
"""For each fault that is made during a run: the statement, and what is said of it."""

TESTS: Final = """
import psycopg2
import pytest


def administrate(*statements):
    connection = psycopg2.connect({dsn!r})
    connection.autocommit = True
    for statement in statements:
        connection.cursor().execute(statement)
    connection.close()


def test_1_before(db_url): ...


def test_2_fault():
    administrate(
        {statement!r},
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'ci'",
    )


@pytest.mark.parametrize("n", range(3))
def test_3_after(db_url, n): ...
"""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_refusal_is_explained(guest: Library, server: Cluster, fault: str) -> None:
    """With the statement, the server's own answer and what to do; asyncpg's errors stay inside."""
    statement, headline, cause = FAULTS[fault]
    place = server.endpoint
    dsn = f"host={place.host} port={place.port} user=postgres password=secret dbname=postgres"
    guest.write("test_fault.py", TESTS.format(statement=statement, dsn=dsn))

    result = guest.run("-x", "test_fault.py", "--warmstack-clones-ahead=1", **{URL: server.url()})

    told = "\n".join([*result.outlines, *result.errlines])
    outcomes = result.parseoutcomes()
    assert outcomes["passed"] in {2, 3}  # One clone may have been there already.
    assert outcomes["errors"] == 1
    assert headline in told
    assert cause in told
    assert "What to do:" in told
    assert "Traceback" not in told
    assert "asyncpg" not in told.replace("postgresql+asyncpg", "")
    assert place.password not in told.replace(dsn, "")


def test_a_server_that_is_gone_is_explained(guest: Library) -> None:
    """Whoever asks next for a database gets the reason, and the run comes to its end."""
    with external_servers.cluster() as own:
        assert own.process is not None
        guest.write(
            "test_gone.py",
            "import os, signal, time, pytest\n"
            "def test_1_before(db_url): ...\n"
            f"def test_2_fault(): os.kill({own.process.pid}, signal.SIGQUIT); time.sleep(0.5)\n"
            "@pytest.mark.parametrize('n', range(4))\n"
            "def test_3_after(db_url, n): ...\n",
        )

        result = guest.run("test_gone.py", "--warmstack-clones-ahead=1", **{URL: own.url()})

    told = "\n".join([*result.outlines, *result.errlines])
    assert result.parseoutcomes()["errors"] >= 3
    assert "PostgreSQL stopped answering during the run." in told
    assert "Traceback" not in told
    assert "asyncpg" not in told.replace("postgresql+asyncpg", "")
