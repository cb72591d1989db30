"""What the guard of tests allows, and what its refusal advises."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from pytest_warmstack.drivers import Target
from pytest_warmstack.guard import Guard, OwnServer, RefusedConnection, variables_for
from pytest_warmstack.options import Settings

CLONE = "warmstack_u_0123456789abcdef_0123456789"
OWN = OwnServer("postgres", "127.0.0.1", 54321, external=False)
OWN_REDIS = OwnServer("redis", "localhost", 63790, external=False)
SHARED = OwnServer("postgres", "db.example", 5432, external=True)
SHARED_REDIS = OwnServer("redis", "cache.example", 6379, external=True, indexes=range(3, 5))
TEST = "tests/test_orders.py::test_one"


@contextmanager
def covering(guard: Guard, test: str, fixtures: Sequence[str] = ()) -> Iterator[None]:
    """Have *guard* on for *test*, which uses *fixtures*, as its hooks do."""
    guard.begin(test, fixtures)
    try:
        yield
    finally:
        guard.end()


def postgres(host: str = "db", port: int = 5432, database: str = "shop") -> Target:
    """Return an address of a PostgreSQL."""
    return Target("asyncpg", "postgres", host, port, database)


def redis(host: str = "cache", port: int = 6379, database: str = "0") -> Target:
    """Return an address of a Redis."""
    return Target("redis-py", "redis", host, port, database)


def refusal(
    target: Target,
    *,
    own: Iterable[OwnServer] = (OWN, OWN_REDIS, SHARED, SHARED_REDIS),
    fixtures: Iterable[str] = (),
    **settings: Any,
) -> RefusedConnection | None:
    """Return how a covered test's connection is refused, or None if it is not."""
    guard = Guard(Settings(**settings), own=lambda: own)
    guard.install()
    with covering(guard, TEST, list(fixtures)), suppress(RefusedConnection):
        guard.opening(target)
    guard.uninstall()
    return next(iter(guard.refused), None)


@pytest.mark.parametrize(
    "target",
    [
        *(postgres(host, 54321, "any") for host in ("127.0.0.1", "localhost", "::1")),
        *(redis(host, 63790, "9") for host in ("127.0.0.1", "localhost", "::1")),
        postgres("db.example", 5432, CLONE),
        *(redis("cache.example", 6379, index) for index in ("3", "4")),
    ],
)
def test_the_databases_of_the_plugin_are_allowed(target: Target) -> None:
    """All of a managed server; on an external one those with the plugin's names and numbers."""
    assert refusal(target) is None


@pytest.mark.parametrize(
    "target",
    [
        postgres("localhost", 5432),
        postgres("localhost", 63790),
        postgres("", 54321),
        postgres("/tmp", 54321),
        postgres("db.example", 5432, "shop"),
        postgres("db.example", 5432, "postgres"),
        redis("localhost", 54321),
        redis("cache.example", 6379, "0"),
        redis("cache.example", 6379, "5"),
        redis("/run/redis.sock", 0, "3"),
    ],
)
def test_everything_else_is_refused(target: Target) -> None:
    """Another port, another service, a socket, or another database of an external server."""
    assert refusal(target)


def test_the_handle_of_an_external_server_may_be_used() -> None:
    """The URL of `postgres_container` leads to the maintenance database."""
    target = postgres("db.example", 5432, "postgres")

    assert refusal(target, fixtures=["postgres_container"]) is None


def test_the_guard_is_off_outside_of_a_covered_test() -> None:
    """Also after one that a timeout interrupted."""
    guard = Guard(Settings(), own=tuple)
    guard.install()
    guard.opening(postgres())
    with pytest.raises(SystemExit), covering(guard, TEST):
        raise SystemExit
    guard.opening(postgres())
    guard.uninstall()
    guard.uninstall()


def test_the_guard_of_a_run_inside_a_test_decides() -> None:
    """It knows the servers of its run; the outer one is back when that run ends."""
    outer, inner = (Guard(Settings(), own=tuple) for _ in range(2))
    outer.install()
    with covering(outer, TEST):
        inner.install()
        outer.opening(postgres())
        inner.opening(postgres())
        with covering(inner, TEST), pytest.raises(RefusedConnection):
            inner.opening(postgres())
        inner.uninstall()
        with pytest.raises(RefusedConnection):
            outer.opening(postgres())
    outer.uninstall()


@pytest.mark.parametrize(
    ("line", "target"),
    [
        ("*", postgres()),
        ("*", redis("/run/redis.sock", 0)),
        ("db:5432", postgres()),
        ("db:*", postgres(port=7)),
        ("localhost:5432", postgres("127.0.0.1")),
        ("127.0.0.1:5432", postgres("")),
        ("[::1]:5432", postgres("localhost")),
        ("/run/postgresql", postgres("/run/postgresql/")),
        ("/run/redis.sock", redis("/run/redis.sock", 0)),
    ],
)
def test_listed_addresses_are_allowed(line: str, target: Target) -> None:
    """Each form of a line."""
    assert refusal(target, allow=("x:1", line)) is None


@pytest.mark.parametrize("line", ["db:5433", "dbx:*", "/db", "b:5432"])
def test_other_addresses_are_not(line: str) -> None:
    """A line is compared whole."""
    assert refusal(postgres(), allow=(line,))


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without variables."""
    monkeypatch.setattr("os.environ", {})
    return monkeypatch


def set_variables(environ: pytest.MonkeyPatch, **variables: str) -> None:
    """Set variables, which `environ` removes at the end."""
    for name, value in variables.items():
        environ.setenv(name, value)


URL = "postgresql+asyncpg://app:hunter2@db:5432/shop"


@pytest.mark.parametrize(
    ("url", "line"),
    [
        (URL, "{db_url}"),
        ("postgresql+asyncpg://db/shop?ssl=require", "{db_url}"),
        (
            "postgresql://app:hunter2@db/shop",
            "postgresql://{db_user}:{db_password}@{db_host}:{db_port}/{db_name}",
        ),
        (
            "postgresql+psycopg://db",
            "postgresql+psycopg://{db_user}:{db_password}@{db_host}:{db_port}/{db_name}",
        ),
    ],
)
def test_the_variable_with_the_url_is_found(
    environ: pytest.MonkeyPatch, url: str, line: str
) -> None:
    """Its value keeps the driver."""
    set_variables(environ, APP_DB=url, OTHER="postgresql://db/archive", CACHE="redis://db:5432/0")

    assert variables_for(postgres()) == {"APP_DB": line}


def test_variables_with_the_parts_of_the_address_are_found(environ: pytest.MonkeyPatch) -> None:
    """Those of the login as well; a variable for another host is left out."""
    set_variables(environ, DB_HOST="db", DB_PORT="5432", DB_USER="app", DB_PASSWORD="x", PGHOST="y")

    assert variables_for(postgres()) == {
        "DB_HOST": "{db_host}",
        "DB_PORT": "{db_port}",
        "DB_USER": "{db_user}",
        "DB_PASSWORD": "{db_password}",
    }
    assert variables_for(postgres("elsewhere", 7)) == {}


def test_the_variable_of_redis_is_found(environ: pytest.MonkeyPatch) -> None:
    """Whatever the number of the database: a client may select another one."""
    set_variables(environ, REDIS_URL="redis://:pw@cache/1", BROKER="redis://cache:6380")

    assert variables_for(redis()) == {"REDIS_URL": "{redis_url}"}


def test_the_advice_begins_with_the_line_to_write(environ: pytest.MonkeyPatch) -> None:
    """The password is not shown."""
    set_variables(environ, DATABASE_URL=URL)
    error = refusal(postgres(), file="pytest.ini")

    assert error is not None
    assert str(error) == (
        "Refused a connection to another PostgreSQL than the test's: db:5432, database shop.\n"
        f"Why: {TEST} uses a server of pytest-warmstack, so it may not connect to yours;"
        " asyncpg sent nothing\n"
        "What to do:\n"
        "  - lead the application to the test's database: write in pytest.ini:\n"
        "    warmstack_env = DATABASE_URL={db_url}\n"
        "  - or, if the application can be given a URL, give it that of the fixture db_url"
        " (in FastAPI, with app.dependency_overrides)\n"
        "  - or, if the test is meant to connect to it, write in pytest.ini:\n"
        "    warmstack_allow = db:5432"
    )


def test_a_variable_that_has_a_line_was_set_again(environ: pytest.MonkeyPatch) -> None:
    """The line is not suggested once more."""
    set_variables(environ, DATABASE_URL=URL)
    error = refusal(postgres(), file="pytest.ini", env=("DATABASE_URL={db_url}",))

    assert error is not None
    assert error.todo[0].startswith("DATABASE_URL has another value than warmstack_env has set")


@pytest.mark.parametrize(
    ("target", "line"),
    [(postgres(), "DATABASE_URL={db_url}"), (redis(), "REDIS_URL={redis_url}")],
)
def test_without_a_variable_the_advice_says_which_one_to_look_for(
    environ: pytest.MonkeyPatch, target: Target, line: str
) -> None:
    """The address is perhaps a default in the application."""
    error = refusal(target, file="pyproject.toml", env=("A=b",))

    assert error is not None
    assert error.todo[0].endswith(f'add to warmstack_env in pyproject.toml:\n    "{line}",')


@pytest.mark.parametrize(
    ("target", "shown", "allowed"),
    [
        (postgres("::1"), "[::1]:5432, database shop", "[::1]:5432"),
        (postgres("/run/pg"), "the Unix socket /run/pg, database shop", "/run/pg"),
        (postgres(""), "the Unix socket of this machine, database shop", "localhost:5432"),
        (redis("/r.sock", 0), "the Unix socket /r.sock, database 0", "/r.sock"),
    ],
)
def test_each_address_can_be_read_and_allowed(target: Target, shown: str, allowed: str) -> None:
    """The line in the advice does what it promises."""
    error = refusal(target, own=(), file="pytest.ini")

    assert error is not None
    assert error.what.endswith(f": {shown}.")
    assert error.todo[-1].endswith(f"warmstack_allow = {allowed}")
    assert refusal(target, own=(), allow=(allowed,)) is None
