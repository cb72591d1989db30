"""External servers behave like managed ones, and other data on them is never touched."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from redis import Redis

from projects import WAITING, Bench, Library, query, until
from pytest_warmstack.options import RuntimeName
from pytest_warmstack.postgres import sql
from pytest_warmstack.servers.model import Endpoint, redis_url

REUSE = "--reuse-containers"
PASSWORD = "p@ss:word/%"
"""Of the role; with characters that mean something in a URL."""

DATABASES = "SELECT datname FROM pg_database WHERE datname LIKE 'warmstack%' ORDER BY oid"

REUSED = """
from pathlib import Path

import pytest
from sqlalchemy import text

@pytest.mark.parametrize("number", range(12))
async def test_that_adds_an_author(db_session, number):
    oid = text("SELECT oid FROM pg_database WHERE datname = current_database()")
    with Path("oids.log").open("a") as log:
        log.write(f"{await db_session.scalar(oid)}\\n")
    await db_session.execute(text("INSERT INTO author VALUES (1, 'Ursula')"))
    await db_session.commit()
"""


@dataclass(frozen=True)
class Foreign:
    """A PostgreSQL and a Redis with everything that an administrator has, seen from outside."""

    postgres: Endpoint
    redis: Endpoint

    def sql(self, *statements: str, database: str = "postgres") -> list[Any]:
        """Return the rows that the last statement gives the administrator."""
        return asyncio.run(query(self.postgres, *statements, database=database))

    def databases(self, state: str = "") -> list[str]:
        """Return the plugin's databases, all or those of one *state*."""
        names = [row["datname"] for row in self.sql(DATABASES)]
        return [name for name in names if name.startswith(f"warmstack_{state}")]

    def cache(self, index: int = 0) -> Redis:
        """Return a client of a Redis database."""
        return Redis.from_url(redis_url(self.redis, index), decode_responses=True)

    def keys(self) -> dict[int, int]:
        """Return how many keys each Redis database has."""
        with self.cache() as client:
            found = client.info("keyspace")
        return {int(name[2:]): facts["keys"] for name, facts in found.items()}

    def urls(self, role: str = "ci", password: str = PASSWORD) -> dict[str, str]:
        """Return the variables that tell a run about both servers."""
        quoted = password.replace("%", "%25").replace("@", "%40").replace("/", "%2F")
        place = f"{self.postgres.host}:{self.postgres.port}"
        return {
            "WARMSTACK_POSTGRES_URL": f"postgresql://{role}:{quoted.replace(':', '%3A')}@{place}",
            "WARMSTACK_REDIS_URL": redis_url(self.redis, 0),
        }

    def clear(self) -> None:
        """Remove everything that is not as it was at first."""
        for row in self.sql(DATABASES):
            name = row["datname"]
            self.sql(sql.unseal(name), "SELECT 1")
            self.sql(sql.drop(name), "SELECT 1")
        with self.cache() as client:
            client.flushall()


@pytest.fixture(scope="module")
def foreign_servers(standing: Bench) -> Foreign:
    """Servers that are there for the whole file, with a role that may create databases."""
    servers = standing.ensure(standing.postgres), standing.ensure(standing.redis)
    found = Foreign(*(server.endpoint for server in servers))
    for role, rights in (("ci", "CREATEDB"), ("guest", "NOCREATEDB")):
        found.sql(f"CREATE ROLE {role} LOGIN {rights} PASSWORD {sql.literal(PASSWORD)}", "SELECT 1")
    return found


@pytest.fixture
def foreign(foreign_servers: Foreign) -> Iterator[Foreign]:
    """The same, as they were at first."""
    yield foreign_servers
    foreign_servers.clear()


@pytest.mark.parametrize("arguments", [(), (REUSE,), ("-n2",)], ids=["once", "reuse", "workers"])
@pytest.mark.parametrize("role", ["ci", "postgres"])
def test_a_run_uses_them_and_leaves_what_the_next_one_needs(
    guest: Library, foreign: Foreign, role: str, arguments: tuple[str, ...]
) -> None:
    """A template, found again by the next run, and clones that stand ready; no key in Redis.

    A role that may create databases can do all that a superuser can.
    """
    password = PASSWORD if role == "ci" else foreign.postgres.password
    urls = foreign.urls(role, password)

    first = guest.run(*arguments, **urls)
    first.assert_outcomes(passed=5)
    first.stdout.fnmatch_lines(
        [
            f"warmstack: PostgreSQL * on {foreign.postgres.place}, external, as {role}: connected*",
            f"warmstack: Redis * on {foreign.redis.place}, external: connected in *",
            "warmstack: template of 3 revisions: built in *",
        ]
    )
    built = foreign.databases("t")
    second = guest.run(*arguments, **urls)
    second.assert_outcomes(passed=5)
    second.stdout.fnmatch_lines(["warmstack: template of 3 revisions: found in *"])

    assert guest.executions() == 1
    assert guest.servers() == []
    assert foreign.databases("t") == built
    assert len(built) == 1
    # What is sent at the end is not waited for.
    until(lambda: len(foreign.databases("r")) >= 2, "two clones stand ready")
    assert foreign.keys() == {}
    assert not any(PASSWORD in line for line in (*first.outlines, *first.errlines))


@pytest.mark.parametrize(("role", "is_put_back"), [("ci", False), ("postgres", True)])
def test_databases_are_put_back_for_a_superuser_only(
    guest: Library, foreign: Foreign, role: str, is_put_back: bool
) -> None:
    """Another role can't silence triggers: each of its tests gets a new clone."""
    guest.write("test_reused.py", REUSED)
    password = PASSWORD if role == "ci" else foreign.postgres.password

    guest.run("test_reused.py", **foreign.urls(role, password)).assert_outcomes(passed=12)

    oids = guest.lines("oids.log")
    guest.write("oids.log", "")
    assert len(oids) == 12
    assert (len(set(oids)) < 12) == is_put_back


def test_a_kept_hint_is_not_written_for_them(guest: Library, foreign: Foreign) -> None:
    """The URL is all that the next run needs, and no file holds its password."""
    guest.run(REUSE, **foreign.urls()).assert_outcomes(passed=5)

    assert not guest.hint_file("postgres").exists()
    assert not guest.hint_file("redis").exists()


def test_databases_that_only_look_like_ours_are_left_alone(
    guest: Library, foreign: Foreign
) -> None:
    """A name proves nothing: what lacks our mark is not dropped, not cloned and not given out."""
    urls = foreign.urls()
    guest.run(**urls).assert_outcomes(passed=5)
    (template,) = foreign.databases("t")
    fingerprint = template.rpartition("_")[2]
    named = [
        f"warmstack_{rest}"
        for rest in (
            "u_0123456789abcdef_0123456789",
            "b_0123456789abcdef_0123456789",
            "t_0123456789abcdef",
            f"r_{fingerprint}_0123456789",
        )
    ]
    for name in named:
        foreign.sql(f"CREATE DATABASE {name} OWNER ci", "SELECT 1")
    for name in foreign.databases("r"):
        if name not in named:
            foreign.sql(sql.drop(name), "SELECT 1")
    foreign.sql(f"ALTER DATABASE {named[2]} IS_TEMPLATE true ALLOW_CONNECTIONS false", "SELECT 1")

    guest.run(**urls).assert_outcomes(passed=5)
    cleaned = guest.warmstack("clean", **urls)

    assert cleaned.ret == 0
    until(lambda: foreign.databases() == named, "all but those are gone", seconds=5)


def test_what_a_killed_run_left_is_dropped_by_the_next_one(
    guest: Library, foreign: Foreign
) -> None:
    """On a server that nobody else cleans; also the Redis database, which has our mark."""
    urls = foreign.urls()
    guest.write("test_wait.py", WAITING)
    running = guest.start("test_wait.py", **urls)
    until((guest.folder / "running").exists, "the test runs")
    database = (guest.folder / "running").read_text().split()[0].rpartition("/")[2]
    with foreign.cache(1) as client:
        client.set("left", "behind")
    running.kill()
    assert database in foreign.databases("u")

    guest.run("-k", "not waits", **urls).assert_outcomes(passed=5, deselected=1)

    assert database not in foreign.databases()
    assert foreign.databases("u") == []


def test_keys_of_somebody_else_are_never_flushed(guest: Library, foreign: Foreign) -> None:
    """A database that is not empty and has no mark of ours is passed over, also by a clean-up."""
    urls = foreign.urls()
    with foreign.cache(0) as zero, foreign.cache(1) as one:
        zero.set("app:user:1", "Ada")
        one.set("session:1", "Grace")

    for _ in range(2):
        guest.run("-k", "read", **urls).assert_outcomes(passed=2, deselected=3)
    guest.warmstack("clean", **urls)

    assert foreign.keys() == {0: 1, 1: 1}


def test_where_every_database_holds_keys_the_refusal_says_what_was_found(
    guest: Library, foreign: Foreign
) -> None:
    """No test passes on somebody's data, and nothing of it is lost."""
    for index in range(1, 256):
        with foreign.cache(index) as client:
            client.set(f"session:{index}", "Grace")

    result = guest.run("-k", "read", **foreign.urls())

    result.assert_outcomes(errors=2, deselected=3)
    result.stdout.fnmatch_lines(
        [
            "*No database of the Redis server can be used: the free ones are not empty.",
            "*database 1: 1 key, such as 'session:1'",
        ]
    )
    assert foreign.keys() == dict.fromkeys(range(1, 256), 1)


def test_what_belongs_to_the_whole_redis_is_left_as_it_is(guest: Library, foreign: Foreign) -> None:
    """Settings, functions and scripts may be anybody's there."""
    with foreign.cache() as client:
        client.config_set("maxmemory-samples", "7")
        script = client.script_load("return 1")
    guest.write(
        "test_samples.py",
        "async def test_one(redis_client):\n"
        "    await redis_client.config_set('slowlog-max-len', '77')\n\n"
        "async def test_two(redis_client):\n"
        "    found = await redis_client.config_get('slowlog-max-len')\n"
        "    assert found == {'slowlog-max-len': '77'}\n",
    )

    guest.run("test_samples.py", **foreign.urls()).assert_outcomes(passed=2)

    with foreign.cache() as client:
        assert client.config_get("maxmemory-samples") == {"maxmemory-samples": "7"}
        assert client.script_exists(script) == [True]
        client.config_set("maxmemory-samples", "5")
        client.config_set("slowlog-max-len", "128")


def told(result: pytest.RunResult) -> str:
    """Return all that a run has written."""
    return "\n".join([*result.outlines, *result.errlines])


def test_a_role_that_may_not_create_databases_is_told_so(guest: Library, foreign: Foreign) -> None:
    """With the statement that gives it the right."""
    result = guest.run("-k", "book", **foreign.urls("guest"))

    result.assert_outcomes(errors=1, deselected=4)
    place = foreign.postgres.place
    assert f"The role guest at {place} may not create databases." in told(result)
    assert "ALTER ROLE guest CREATEDB" in told(result)


def test_a_wrong_password_is_told_at_once_and_not_shown(guest: Library, foreign: Foreign) -> None:
    """PostgreSQL's answer and Redis', and not what was tried."""
    urls = foreign.urls(password="hunter2")
    redis = redis_url(Endpoint(**{**vars(foreign.redis), "password": "hunter2"}), 0)

    result = guest.run(**{**urls, "WARMSTACK_REDIS_URL": redis})

    result.assert_outcomes(passed=1, errors=4)
    assert f"PostgreSQL at {foreign.postgres.place} rejected the connection." in told(result)
    assert f"Redis at {foreign.redis.place} rejected the connection." in told(result)
    assert "hunter2" not in told(result)


@pytest.mark.parametrize("runtime", [RuntimeName.EMBEDDED], indirect=True)
@pytest.mark.parametrize("word", ["docker", "embedded"])
def test_a_url_and_a_runtime_of_our_own_are_two_answers(
    guest: Library, foreign: Foreign, word: str
) -> None:
    """Neither is followed in silence."""
    result = guest.run(f"--warmstack-runtime={word}", **foreign.urls())

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: Conflicting settings: WARMSTACK_" in told(result)
    assert "_URL and --warmstack-runtime are both set." in told(result)
    assert f"the runtime {word} starts one" in told(result)


def test_external_without_a_url_names_the_variable(guest: Library) -> None:
    """And the way back to servers that are started."""
    result = guest.run()

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.re_match_lines(
        [r"ERROR: The runtime external needs a URL of (PostgreSQL|Redis), and none is set"]
    )
    assert re.search("WARMSTACK_(POSTGRES|REDIS)_URL=URL", told(result))


@pytest.mark.parametrize("runtime", [RuntimeName.EMBEDDED], indirect=True)
def test_one_may_be_external_and_the_other_ours(
    embedded_project: Library, foreign: Foreign
) -> None:
    """With `auto`, each goes its own way; ours is removed at the end."""
    project = embedded_project
    urls = foreign.urls()

    result = project.run(
        "--warmstack-runtime=auto",
        DOCKER_HOST="unix:///nonexistent.sock",
        WARMSTACK_POSTGRES_URL=urls["WARMSTACK_POSTGRES_URL"],
    )

    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines_random(
        ["warmstack: PostgreSQL *, external, *", "warmstack: Redis *, embedded*"]
    )
    assert project.servers() == []


def test_a_redis_for_each_process_can_not_be_somebody_elses(
    guest: Library, foreign: Foreign
) -> None:
    """It would be emptied as a whole."""
    result = guest.run("--warmstack-redis=per-process", "-k", "read", **foreign.urls())

    result.assert_outcomes(errors=2, deselected=3)
    assert "Conflicting settings: a Redis URL is set" in told(result)


def test_its_template_and_clones_are_shown_and_removed_by_the_commands(
    guest: Library, foreign: Foreign
) -> None:
    """What a run in progress uses is spared, and named."""
    urls = foreign.urls()
    guest.write("test_wait.py", WAITING)
    running = guest.start("test_wait.py", **urls)
    until((guest.folder / "running").exists, "the test runs")
    (template,) = foreign.databases("t")

    status = guest.warmstack("status", **urls)
    spared = guest.warmstack("clean", **urls)
    (guest.folder / "go").touch()
    running.wait().assert_outcomes(passed=1)
    dry = guest.warmstack("clean", "--dry-run", **urls)
    assert template in foreign.databases()
    cleaned = guest.warmstack("clean", **urls)

    assert status.ret == 0
    status.stdout.fnmatch_lines(
        [
            "external servers",
            "* PostgreSQL * external *",
            "*template of 3 revisions, *",
            "*1 clone* in use by process *",
            "*database 1 in use by process *",
        ]
    )
    assert spared.ret == 1
    spared.stdout.fnmatch_lines([f"spared database {template} *: a run in progress uses it*"])
    assert dry.ret == cleaned.ret == 0
    dry.stdout.fnmatch_lines([f"would remove database {template} (external, *)"])
    cleaned.stdout.fnmatch_lines([f"removed database {template} (external, *)"])
    assert foreign.databases() == []


def test_the_databases_of_other_projects_are_only_removed_on_demand(
    guest: Library, foreign: Foreign, library_in: Callable[..., Library]
) -> None:
    """A project is known by its folder's name there, since each machine has it somewhere else."""
    urls = foreign.urls()
    other = library_in(RuntimeName.EXTERNAL, "archive")
    other.write("migrations/versions/0009_more.py", REVISION)
    try:
        guest.run(**urls).assert_outcomes(passed=5)
        (first,) = foreign.databases("t")
        other.run(**urls).assert_outcomes(passed=5)
        (second,) = {*foreign.databases("t")} - {first}

        # A dry run, since on this machine there may be servers of other projects.
        listed = guest.warmstack("clean", "--all-projects", "--dry-run", **urls)
        recent = guest.warmstack("clean", "--older-than=1d", **urls)
        cleaned = guest.warmstack("clean", **urls)

        for name in (first, second):
            listed.stdout.fnmatch_lines([f"would remove database {name} (external, *)"])
        assert recent.ret == cleaned.ret == 0
        recent.stdout.fnmatch_lines(["nothing to remove for *"])
        assert foreign.databases("t") == [second]
    finally:
        other.end()


REVISION = '''
"""A table of the archive."""

from alembic import op

revision = "0009"
down_revision = None
branch_labels = ("archive",)


def upgrade():
    op.execute("CREATE TABLE shelf (id int)")
'''


def test_up_makes_everything_ready_on_them(guest: Library, foreign: Foreign) -> None:
    """So that the first of many machines does not keep the others waiting."""
    result = guest.warmstack("up", **foreign.urls())

    assert result.ret == 0
    result.stdout.fnmatch_lines(["warmstack: template of 3 revisions: built in *"])
    until(lambda: len(foreign.databases("r")) >= 2, "two clones stand ready")
    assert guest.servers() == []


def test_a_commit_in_one_test_is_not_seen_by_another_under_every_isolation(
    guest: Library, foreign: Foreign
) -> None:
    """The other isolations need nothing that a plain role has not."""
    for word in ("rollback", "class", "module"):
        guest.run(
            f"--warmstack-isolation={word}", "-k", "author", **foreign.urls()
        ).assert_outcomes(passed=1, deselected=4)


def test_the_project_may_be_anywhere_and_finds_the_same_template(
    guest: Library, foreign: Foreign, library_in: Callable[..., Library]
) -> None:
    """Another checkout of the same files, as on another machine, builds nothing."""
    other = library_in(RuntimeName.EXTERNAL, "checkout")
    urls = foreign.urls()
    try:
        guest.run(**urls).assert_outcomes(passed=5)
        other.run(**urls).assert_outcomes(passed=5)

        assert (guest.executions(), other.executions()) == (1, 0)
    finally:
        other.end()


def test_the_application_s_own_url_is_no_target(
    embedded_project: Library, foreign: Foreign
) -> None:
    """With `DATABASE_URL` and `REDIS_URL` in the environment a run still starts its own servers."""
    urls = foreign.urls()

    result = embedded_project.run(
        DATABASE_URL=urls["WARMSTACK_POSTGRES_URL"], REDIS_URL=urls["WARMSTACK_REDIS_URL"]
    )

    result.assert_outcomes(passed=5)
    assert foreign.databases() == []
    assert foreign.keys() == {}
