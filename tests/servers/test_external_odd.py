"""External servers with an unusual set-up work if possible; otherwise an error explains why not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis

import external_servers
from external_servers import Cluster
from projects import Library, until
from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.postgres import DatabaseName, State, sql
from pytest_warmstack.postgres.databases import Databases


@pytest.fixture(scope="module")
def plain_server() -> Iterator[Cluster]:
    """A PostgreSQL with two roles that may create databases."""
    with external_servers.cluster(roles=("ci", "ci2")) as server:
        yield server


@pytest.fixture
def plain(plain_server: Cluster) -> Iterator[Cluster]:
    """The same without any databases of ours."""
    yield plain_server
    plain_server.clear()


@pytest.fixture(scope="module")
def secure() -> Iterator[Cluster]:
    """A PostgreSQL that lets roles in over TLS only."""
    native = external_servers.postgres_programs(tls=True)
    with external_servers.open_folder() as folder:
        crt = external_servers.certificate(folder)
        lines = ["host all postgres 127.0.0.1/32 trust", "hostssl all all 127.0.0.1/32 md5"]
        hba = external_servers.write(folder / "pg_hba.conf", "\n".join([*lines, ""]))
        with external_servers.cluster(
            "ssl=on",
            f"ssl_cert_file={crt}",
            f"ssl_key_file={crt.with_suffix('.key')}",
            f"hba_file={hba}",
            native=native,
        ) as server:
            yield server


BOOKS = ("-k", "book or shelves")
"""The example's tests of PostgreSQL alone."""


READERS = ("-k", "read")
"""Those of Redis alone."""


def told(result: pytest.RunResult) -> str:
    """Return all that a run has written."""
    return "\n".join([*result.outlines, *result.errlines])


TLS = """
import pytest
from sqlalchemy import make_url, text

USED = text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")

@pytest.mark.parametrize("turn", [1, 2])
async def test_a_session_uses_tls(db_session, turn):
    assert await db_session.scalar(USED)

@pytest.mark.parametrize("turn", [1, 2])
async def test_an_engine_uses_tls(db_engine, turn):
    async with db_engine.connect() as connection:
        assert await connection.scalar(USED)

@pytest.mark.parametrize("turn", [1, 2])
def test_a_synchronous_session_uses_tls(db_sync_session, turn):
    assert db_sync_session.scalar(USED)

def test_the_url_says_so(db_url):
    assert make_url(db_url).query == {"ssl": MODE}
"""
"""Tests that pass if every connection of theirs is encrypted."""

SYNCHRONOUS = """
from pathlib import Path

from alembic import context
from sqlalchemy import create_engine, make_url

url = context.config.get_main_option("sqlalchemy.url")
with Path(__file__).parents[1].joinpath("executions.log").open("a") as log:
    log.write(f"{make_url(url).query.get('sslmode')}\\n")
with create_engine(url).connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
"""
"""An env.py that uses another driver, and tells what its URL says about TLS."""


# PgBouncer


@pytest.mark.parametrize("mode", ["transaction", "statement"])
@pytest.mark.parametrize("size", [1, 20])
def test_a_pooler_that_shares_connections_is_explained_at_once(
    guest: Library, plain: Cluster, mode: str, size: int
) -> None:
    """Locks would be another's; with each number of connections that it may have."""
    with external_servers.bouncer(plain, mode, f"default_pool_size = {size}") as place:
        result = guest.run(*BOOKS, WARMSTACK_POSTGRES_URL=f"postgresql://ci:ci@{place}")

    result.assert_outcomes(errors=2, deselected=3)
    assert f"The pooler at {place} is in transaction mode." in told(result)
    assert "pool_mode=session" in told(result)
    assert "waiting up to" not in told(result)
    assert plain.databases() == []


def test_a_pooler_in_session_mode_is_as_good_as_the_server(guest: Library, plain: Cluster) -> None:
    """Each connection has a backend of its own; what the pooler keeps open is no leak."""
    with external_servers.bouncer(plain, "session") as place:
        url = f"postgresql://ci:ci@{place}"
        first = guest.run(*BOOKS, WARMSTACK_POSTGRES_URL=url)
        second = guest.run(*BOOKS, "-n2", WARMSTACK_POSTGRES_URL=url)

    for result in (first, second):
        result.assert_outcomes(passed=2, **({"deselected": 3} if result is first else {}))
        assert "left" not in told(result)
    second.stdout.fnmatch_lines(["warmstack: template of 3 revisions: found in *"])
    assert plain.databases("u") == []


def test_a_pooler_that_demands_tls_gets_it_on_every_connection(
    guest: Library, plain: Cluster
) -> None:
    """PostgreSQL knows only how the pooler has come, which is without."""
    with external_servers.open_folder() as folder:
        crt = external_servers.certificate(folder)
        tls = (
            "client_tls_sslmode = require",
            f"client_tls_cert_file = {crt}",
            f"client_tls_key_file = {crt.with_suffix('.key')}",
        )
        with external_servers.bouncer(plain, "session", *tls) as place:
            result = guest.run(*BOOKS, WARMSTACK_POSTGRES_URL=f"postgresql://ci:ci@{place}")

    result.assert_outcomes(passed=2, deselected=3)


def test_a_pooler_with_too_few_connections_is_told_so(guest: Library, plain: Cluster) -> None:
    """In session mode as well each connection of ours keeps one, so the second would wait."""
    with external_servers.bouncer(plain, "session", "default_pool_size = 1") as place:
        result = guest.run(
            *BOOKS,
            WARMSTACK_POSTGRES_URL=f"postgresql://ci:ci@{place}",
            WARMSTACK_START_TIMEOUT="3",
        )

    result.assert_outcomes(errors=2, deselected=3)
    assert f"The pooler at {place} has too few connections." in told(result)
    assert "default_pool_size" in told(result)


# Durability


@pytest.mark.parametrize(("fsync", "by_file"), [("on", False), ("off", True)])
def test_how_a_clone_is_copied_follows_from_how_durable_the_server_is(
    background: BackgroundLoop, fsync: str, by_file: bool
) -> None:
    """A copy of files would wait for two checkpoints where a server waits for its disk."""
    template = DatabaseName(State.TEMPLATE, "0" * 16)
    with external_servers.cluster(f"fsync={fsync}") as server:
        ci = server.endpoint.replace(user="ci", password="ci")
        admin = Databases.connect(ci, "", background=background, timeout=10)
        try:
            statement = admin.copy_statement(template, DatabaseName.new(State.READY, "0" * 16))
        finally:
            admin.close()

    assert ("STRATEGY FILE_COPY" in statement) is by_file


# A standby


def test_a_standby_is_told_as_what_it_is(guest: Library) -> None:
    """Nothing can be written to it, and its primary is what is meant."""
    with external_servers.cluster("hot_standby=on") as server:
        server.stop()
        external_servers.write(server.folder / "data/standby.signal", "")
        server.start()

        result = guest.run(*BOOKS, WARMSTACK_POSTGRES_URL=server.url())

    result.assert_outcomes(errors=2, deselected=3)
    assert f"PostgreSQL at {server.endpoint.place} is a standby." in told(result)
    assert "use the URL of the primary server" in told(result)
    assert "waiting up to" not in told(result)


# TLS


@pytest.mark.parametrize("isolation", ["clone", "rollback"])
@pytest.mark.parametrize("mode", ["", "require"])
def test_a_server_that_speaks_tls_is_spoken_to_with_tls(
    guest: Library, secure: Cluster, mode: str, isolation: str
) -> None:
    """Every connection: ours, those of a session, and those of an engine, one after the other."""
    guest.write("test_tls.py", TLS.replace("MODE", repr(mode or "prefer")))
    url = secure.url(query=mode and f"sslmode={mode}")

    result = guest.run(
        *("-k", "not read", f"--warmstack-isolation={isolation}"), WARMSTACK_POSTGRES_URL=url
    )

    result.assert_outcomes(passed=10, deselected=2)


def test_migrations_with_another_driver_are_told_in_its_own_words(
    guest: Library, secure: Cluster
) -> None:
    """Libpq knows `sslmode`, where asyncpg knows `ssl`."""
    guest.edit("alembic.ini", "postgresql+asyncpg://", "postgresql+psycopg://")
    guest.write("migrations/env.py", SYNCHRONOUS)

    result = guest.run(*BOOKS, WARMSTACK_POSTGRES_URL=secure.url(query="sslmode=require"))

    result.assert_outcomes(passed=2, deselected=3)
    assert set(guest.lines("executions.log")) == {"require"}


def test_a_server_that_demands_tls_is_told_in_its_own_words(
    guest: Library, secure: Cluster
) -> None:
    """Where the URL forbids it; at once, since that will not change."""
    result = guest.run(*BOOKS, WARMSTACK_POSTGRES_URL=secure.url(query="sslmode=disable"))

    result.assert_outcomes(errors=2, deselected=3)
    assert f"PostgreSQL at {secure.endpoint.place} rejected the connection." in told(result)
    assert 'no pg_hba.conf entry for host "127.0.0.1", user "ci"' in told(result)
    assert "sslmode=require" in told(result)
    assert "waiting up to" not in told(result)


def test_a_server_without_tls_is_told_where_the_url_demands_it(
    guest: Library, plain: Cluster
) -> None:
    """At once as well."""
    result = guest.run(*BOOKS, WARMSTACK_POSTGRES_URL=plain.url(query="sslmode=require"))

    result.assert_outcomes(errors=2, deselected=3)
    assert f"PostgreSQL at {plain.endpoint.place} rejected the connection." in told(result)
    assert "waiting up to" not in told(result)


def test_a_check_of_the_certificate_that_is_not_possible_is_told(
    guest: Library, secure: Cluster
) -> None:
    """At once as well, with the name of the file that would be needed."""
    url = secure.url(query="sslmode=verify-full")

    result = guest.run(*BOOKS, WARMSTACK_POSTGRES_URL=url, HOME="/nonexistent")

    result.assert_outcomes(errors=2, deselected=3)
    assert f"PostgreSQL at {secure.endpoint.place} rejected the connection." in told(result)
    assert "root.crt" in told(result)
    assert "waiting up to" not in told(result)


# Redis


def redis_url(client: Redis, user: str = "", scheme: str = "redis", query: str = "") -> str:
    """Return the URL of the server of *client*, for a user whose password is the name."""
    port = client.connection_pool.connection_kwargs["port"]
    return f"{scheme}://{user and f'{user}:{user}@'}127.0.0.1:{port}{query and f'?{query}'}"


def test_a_user_of_redis_with_a_name_has_what_it_needs(guest: Library) -> None:
    """Every command for every key, as its administrator may grant it, but for CONFIG."""
    with external_servers.redis_server("user ada on >ada ~* &* +@all -config") as client:
        result = guest.run(*READERS, WARMSTACK_REDIS_URL=redis_url(client, "ada"))

        assert client.info("keyspace") == {}
    result.assert_outcomes(passed=2, deselected=3)


@pytest.mark.parametrize("arguments", [(), ("-n2",)], ids=["one", "workers"])
def test_the_databases_of_a_redis_without_config_are_counted(
    guest: Library, arguments: tuple[str, ...]
) -> None:
    """A managed server has often renamed the command that would tell how many there are."""
    with external_servers.redis_server('rename-command CONFIG ""', "databases 3") as client:
        result = guest.run("-k", "read", *arguments, WARMSTACK_REDIS_URL=redis_url(client))

        assert client.info("keyspace") == {}
    assert result.ret == 0
    assert "2 passed" in told(result)


def test_a_redis_with_one_database_is_told_so(guest: Library) -> None:
    """The first database holds the leases, and there is no second one."""
    with external_servers.redis_server("databases 1") as client:
        result = guest.run(*READERS, WARMSTACK_REDIS_URL=redis_url(client))

    result.assert_outcomes(errors=2, deselected=3)
    assert "The Redis server has fewer databases than one process asks for." in told(result)
    assert "it has 1, and the first one holds the leases" in told(result)


def test_a_redis_cluster_is_told_as_what_it_is(guest: Library) -> None:
    """It has one database only, and would send us to other nodes."""
    with external_servers.redis_server("cluster-enabled yes") as client:
        result = guest.run(*READERS, WARMSTACK_REDIS_URL=redis_url(client))

    result.assert_outcomes(errors=2, deselected=3)
    assert "is a node of a cluster." in told(result)


@pytest.mark.parametrize(
    ("rights", "missing"),
    [
        ("-client", "client|setname"),
        ("-client|list", "client|list"),
        ("-info", "info"),
        ("-eval", "eval"),
        ("-select", "select"),
        ("-flushdb", "flushdb"),
    ],
)
def test_a_command_that_is_forbidden_is_named(guest: Library, rights: str, missing: str) -> None:
    """With whom it is forbidden to, and what has to be granted."""
    with external_servers.redis_server(f"user ada on >ada ~* &* +@all {rights}") as client:
        result = guest.run(*READERS, WARMSTACK_REDIS_URL=redis_url(client, "ada"))

    result.assert_outcomes(errors=2, deselected=3)
    lines = told(result)
    assert f"'{missing}' command" in lines
    assert "What to do:" in lines
    assert "does not accept the password" not in lines
    assert "waiting up to" not in lines
    assert "ACL SETUSER ada" in lines


def test_keys_that_are_forbidden_are_named(guest: Library) -> None:
    """A user with a prefix of its own can't have a database of its own."""
    with external_servers.redis_server("user ada on >ada ~app:* &* +@all") as client:
        result = guest.run(*READERS, WARMSTACK_REDIS_URL=redis_url(client, "ada"))

    result.assert_outcomes(errors=2, deselected=3)
    assert "ACL SETUSER ada" in told(result)
    assert "~*" in told(result)


@pytest.mark.parametrize("check", ["required", "none"])
def test_a_redis_with_tls_is_used(guest: Library, check: str) -> None:
    """With the certificate that is to be trusted, or without a look at it."""
    path = external_servers.program("redis-server")
    with external_servers.open_folder() as folder:
        crt = external_servers.certificate(folder)
        port = external_servers.free_port()
        lines = ("port 0", f"tls-port {port}", "tls-auth-clients no", f"tls-cert-file {crt}")
        key = f"tls-key-file {crt.with_suffix('.key')}"
        trust = {"ssl": True, "ssl_ca_certs": str(crt), "port": port}
        with external_servers.redis_server(*lines, key, path=path, connect=trust) as client:
            query = f"ssl_ca_certs={crt}" if check == "required" else "ssl_cert_reqs=none"
            result = guest.run(
                *READERS, WARMSTACK_REDIS_URL=redis_url(client, scheme="rediss", query=query)
            )
            untrusted = guest.run(*READERS, WARMSTACK_REDIS_URL=redis_url(client, scheme="rediss"))

            assert client.info("keyspace") == {}
    result.assert_outcomes(passed=2, deselected=3)
    untrusted.assert_outcomes(errors=2, deselected=3)
    assert f"Redis at 127.0.0.1:{port} rejected the connection." in told(untrusted)
    assert "certificate verify failed" in told(untrusted)
    assert "waiting up to" not in told(untrusted)


# Servers that do not answer


def test_a_role_whose_password_is_wrong_is_told_at_once(guest: Library, plain: Cluster) -> None:
    """And so is a role that is not there, which PostgreSQL does not tell apart."""
    for role in ("ci", "nobody"):
        url = plain.url(role).replace(f":{role}@", ":hunter2@")

        result = guest.run(*BOOKS, WARMSTACK_POSTGRES_URL=url)

        result.assert_outcomes(errors=2, deselected=3)
        assert f"PostgreSQL at {plain.endpoint.place} rejected the connection." in told(result)
        assert f'password authentication failed for user "{role}"' in told(result)
        assert "hunter2" not in told(result)
        assert "waiting up to" not in told(result)


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_a_server_that_never_says_a_word_is_given_up_in_time(guest: Library, scheme: str) -> None:
    """Within the seconds that it may take to start, and the message has their number."""
    with external_servers.talker() as place:
        running = guest.start(
            WARMSTACK_POSTGRES_URL=f"postgresql://ci:ci@{place}",
            WARMSTACK_REDIS_URL=f"{scheme}://ci:ci@{place}",
            WARMSTACK_START_TIMEOUT="2.5",
        )
        result = running.wait(seconds=20)

    result.assert_outcomes(passed=1, errors=4)
    for title in ("PostgreSQL", "Redis"):
        assert f"{title} at {place} did not answer within 2.5 seconds." in told(result)


RESTARTED = """
from pathlib import Path
import time
import pytest
from sqlalchemy import text

def waited_for(name):
    deadline = time.monotonic() + 60
    while not Path(name).exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)

@pytest.mark.parametrize("turn", range(5))
async def test_a_turn(db_session, turn):
    assert await db_session.scalar(text("SELECT count(*) FROM author")) == 0
    await db_session.execute(text("INSERT INTO author VALUES (1, 'Ursula')"))
    await db_session.commit()
    if turn == 1:
        Path("running").touch()
        waited_for("go")
"""


@pytest.mark.parametrize("isolation", ["clone", "rollback"])
def test_a_server_that_is_restarted_is_gone_on_with(
    guest: Library, plain: Cluster, isolation: str
) -> None:
    """The tests after that have databases; a drop that it interrupted, the next run completes."""
    guest.write("test_turns.py", RESTARTED)
    running = guest.start(
        *("test_turns.py", f"--warmstack-isolation={isolation}"), WARMSTACK_POSTGRES_URL=plain.url()
    )
    until((guest.folder / "running").exists, "the second test is at work")

    plain.stop()
    plain.start()
    (guest.folder / "go").touch()
    result = running.wait()

    result.assert_outcomes(passed=5)
    guest.run(*BOOKS, WARMSTACK_POSTGRES_URL=plain.url())
    assert plain.databases("u") == []


def test_a_server_that_stays_away_is_told_clearly(guest: Library) -> None:
    """The tests that need a database are told why there is none, and the run ends."""
    guest.write("test_turns.py", RESTARTED)
    with external_servers.cluster() as server:
        running = guest.start("test_turns.py", WARMSTACK_POSTGRES_URL=server.url())
        until((guest.folder / "running").exists, "the second test is at work")
        server.stop()
        (guest.folder / "go").touch()
        result = running.wait()

    outcomes = result.parseoutcomes()
    # One that has its database already fails by itself, in its driver's words.
    assert outcomes["passed"] + outcomes.get("failed", 0) + outcomes["errors"] == 5
    assert outcomes["errors"] >= 1
    assert "PostgreSQL stopped answering during the run." in told(result)
    assert "INTERNALERROR" not in told(result)


# Two roles on one server


def test_each_of_two_roles_has_a_template_and_leaves_what_is_the_others(
    guest: Library, plain: Cluster
) -> None:
    """In a clone of another role's template nothing could be read; and only its owner drops it."""
    ci, ci2 = ({"WARMSTACK_POSTGRES_URL": plain.url(role)} for role in ("ci", "ci2"))
    guest.run(*BOOKS, **ci).assert_outcomes(passed=2, deselected=3)
    (template,) = plain.databases("t")
    until(lambda: len(plain.databases("r")) >= 2, "clones stand ready")
    left = killed(plain, template)

    second = guest.run(*BOOKS, **ci2)
    cleaned = guest.warmstack("clean", **ci2)

    second.assert_outcomes(passed=2, deselected=3)
    second.stdout.fnmatch_lines(["warmstack: template of 3 revisions: built in *"])
    assert cleaned.ret == 0
    for result in (second, cleaned):
        assert "Privilege" not in told(result)
        assert "must be owner" not in told(result)
    assert plain.databases("t") == [template]
    assert left in plain.databases()

    third = guest.run(*BOOKS, **ci)
    third.assert_outcomes(passed=2, deselected=3)
    third.stdout.fnmatch_lines(["warmstack: template of 3 revisions: found in *"])
    assert left not in plain.databases()


def test_a_role_with_the_rights_of_another_shares_its_template(
    guest: Library, plain: Cluster
) -> None:
    """Also what the other one left is then dropped; and of both is noted when they used it."""
    plain.sql("GRANT ci TO ci2", "SELECT 1")
    try:
        guest.run(*BOOKS, WARMSTACK_POSTGRES_URL=plain.url()).assert_outcomes(
            passed=2, deselected=3
        )
        (template,) = plain.databases("t")
        left = killed(plain, template)

        result = guest.run(*BOOKS, WARMSTACK_POSTGRES_URL=plain.url("ci2"))

        result.assert_outcomes(passed=2, deselected=3)
        result.stdout.fnmatch_lines(["warmstack: template of 3 revisions: found in *"])
        assert [row[0] for row in plain.sql(NOTED)] == ["ci", "ci2"]
        assert left not in plain.databases()
    finally:
        plain.sql("REVOKE ci FROM ci2", "SELECT 1")


NOTED = (
    "SELECT r.rolname FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole"
    " JOIN pg_database d ON d.oid = s.setdatabase WHERE d.datistemplate ORDER BY 1"
)
"""Which roles have noted when they used a template."""


def killed(server: Cluster, template: str) -> str:
    """Leave a clone of *template* as a run does that is killed; return its name."""
    left = f"warmstack_u_{template.rpartition('_')[2]}_0123456789"
    server.sql(
        f"CREATE DATABASE {left} OWNER ci TEMPLATE {template} CONNECTION LIMIT {sql.MARK}",
        "SELECT 1",
    )
    return left
