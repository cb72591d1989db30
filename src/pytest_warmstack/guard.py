"""The guard: a test connects only to the databases of the plugin, not to yours.

It is on while a test runs that uses the plugin's fixtures, in all threads of the process. It
refuses a connection before anything is sent, even before the name of a host is looked up.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

import pytest

from pytest_warmstack import drivers
from pytest_warmstack.drivers import Observer, Target
from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.options import Settings
from pytest_warmstack.postgres import DatabaseName
from pytest_warmstack.servers.identity import Service
from pytest_warmstack.servers.model import MAINTENANCE

if TYPE_CHECKING:
    from pytest_warmstack.environment import Environment

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1", ""})
"""Names of this machine; libpq uses its default socket if it gets no host."""

_TITLES: Final = {Service.POSTGRES: "PostgreSQL", Service.REDIS: "Redis"}

_HANDLE: Final = "postgres_container"
"""The fixture whose URL leads to the maintenance database."""

_LOGIN: Final = frozenset({"{db_user}", "{db_password}"})

_PARTS: Final = "{db_user}:{db_password}@{db_host}:{db_port}/{db_name}"


class RefusedConnection(WarmstackError):
    """A test tried to connect to a database that isn't the plugin's."""

    @classmethod
    def elsewhere(
        cls, *, title: str, driver: str, address: str, test: str, lines: str, entry: str
    ) -> RefusedConnection:
        """*driver* wanted to connect to *address* in *test*.

        *lines* lead the application to the test's database, and *entry* allows the address; both
        are as you write them in pytest's configuration file.
        """
        fixture = "db_url" if title == _TITLES[Service.POSTGRES] else "redis_url"
        return cls(
            f"Refused a connection to another {title} than the test's: {address}.",
            why=f"{test} uses a server of pytest-warmstack, so it may not connect to yours;"
            f" {driver} sent nothing",
            todo=[
                lines,
                f"or, if the application can be given a URL, give it that of the fixture {fixture}"
                " (in FastAPI, with app.dependency_overrides)",
                f"or, if the test is meant to connect to it, {entry}",
            ],
        )


class OwnServer(NamedTuple):
    """A server that tests may connect to.

    On an *external* server they may use only the plugin's databases; *indexes* are those of Redis.
    """

    service: str
    host: str
    port: int
    external: bool
    indexes: Collection[int] = ()


def own_servers(environment: Environment) -> Iterator[OwnServer]:
    """Yield the servers of *environment* that are ready; don't start any."""
    if (postgres := environment.postgres.value) is not None:
        at = postgres.client.endpoint
        yield OwnServer(Service.POSTGRES, at.host, at.port, postgres.external)
    if (leases := environment.leases.value) is not None:
        at = leases.server.client.endpoint
        yield OwnServer(Service.REDIS, at.host, at.port, leases.server.external, leases.indexes)


_installed: list[Guard] = []
"""The guards of this process: a test may run pytest in its own process. The last one decides."""


class Guard(Observer):
    """Refuses connections of covered tests to other databases, from `install` to `uninstall`.

    *own* returns the servers that the plugin uses now. `test` is the id of the covered test that is
    running, or "". `refused` are the refusals in the last covered test.
    """

    def __init__(self, settings: Settings, own: Callable[[], Iterable[OwnServer]]) -> None:
        self.test = ""
        self.refused: list[RefusedConnection] = []
        self._settings = settings
        self._own = own
        self._has_handle = False
        self._started: set[tuple[str, int]] = set()

    def install(self) -> None:
        """Begin to see connections."""
        _installed.append(self)
        drivers.install(self)

    def uninstall(self) -> None:
        """Stop; you can call it twice."""
        if self in _installed:
            _installed.remove(self)
            drivers.uninstall(self)

    def begin(self, test: str, fixtures: Collection[str] = ()) -> None:
        """Be on for *test*, until `end`."""
        self.refused = []
        self._has_handle = _HANDLE in fixtures
        self.test = test

    def end(self) -> None:
        """Be off."""
        self.test = ""

    def opening(self, target: Target) -> None:
        """Raise `RefusedConnection` if a test is covered and *target* isn't allowed."""
        __tracebackhide__ = True
        test = self.test
        if not test or self is not _installed[-1] or self._is_own(target):
            return
        if _is_listed(target, self._settings.allow) or self._is_of_testcontainers(target):
            return
        refusal = RefusedConnection.elsewhere(
            title=_TITLES[Service(target.service)],
            driver=target.driver,
            address=_shown(target),
            test=test,
            lines=_lines(target, self._settings),
            entry=_entry(target, self._settings.file),
        )
        self.refused.append(refusal)
        raise refusal

    def _is_own(self, target: Target) -> bool:
        if _is_socket(target):  # The plugin connects over TCP only.
            return False
        place = host_of(target.host), target.port
        return any(
            each.service == target.service
            and place == (host_of(each.host), each.port)
            and (not each.external or self._is_own_database(target, each))
            for each in self._own()
        )

    def _is_own_database(self, target: Target, server: OwnServer) -> bool:
        name = target.database
        if target.service == Service.REDIS:
            return name.isdigit() and int(name) in server.indexes
        is_handles = self._has_handle and name == MAINTENANCE
        return is_handles or DatabaseName.parse(name) is not None

    def _is_of_testcontainers(self, target: Target) -> bool:
        """Return whether testcontainers started the server in this process."""
        place = host_of(target.host), target.port
        if place not in self._started and "testcontainers" in sys.modules:
            from pytest_warmstack.servers.docker import engine

            self._started = {(host_of(host), port) for host, port in engine.of_testcontainers()}
        return place in self._started


class GuardHooks:
    """The hooks that switch a guard on and off, and report what it refused.

    *bases* are the fixtures that all fixtures with a database are built on.
    """

    def __init__(self, guard: Guard, bases: Collection[str]) -> None:
        self._guard = guard
        self._bases = frozenset(bases)
        self._item = ""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Cover a test from the beginning of its set-up to the end of its tear-down."""
        names = getattr(item, "fixturenames", ())
        self._item = item.nodeid
        if not self._bases.isdisjoint(names):
            self._guard.begin(item.nodeid, names)
        try:
            return (yield)
        finally:
            self._item = ""
            self._guard.end()

    @pytest.hookimpl(tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> None:
        """Cover the rest of a test that requests a fixture while it runs."""
        is_own = str(fixturedef.func.__module__).startswith(f"{__package__}.")
        if is_own and self._item and not self._guard.test:
            self._guard.begin(self._item, {str(fixturedef.argname)})

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Add refusals that the application has suppressed to the report of a test that failed."""
        report = yield
        if call.excinfo is not None and self._guard.test:
            shown = report.longreprtext
            hidden = {str(each): None for each in self._guard.refused if each.what not in shown}
            if hidden and not report.skipped:
                report.sections.append(("warmstack: refused connections", "\n".join(hidden)))
        return report


# Addresses


def host_of(host: str) -> str:
    """Return *host*, or `localhost` if it is another name of this machine."""
    return "localhost" if host in _LOOPBACK else host.rstrip("/")


def _is_listed(target: Target, allowed: Iterable[str]) -> bool:
    """Return whether an address is one of `warmstack_allow`."""
    for line in allowed:
        if line == "*" or (line.startswith("/") and host_of(line) == host_of(target.host)):
            return True
        host, _, port = line.rpartition(":")
        same_host = host_of(host.strip("[]")) == host_of(target.host)
        if same_host and port in {"*", str(target.port)}:
            return True
    return False


def _is_socket(target: Target) -> bool:
    return not target.host or target.host.startswith("/")


def _place(target: Target) -> str:
    host = target.host or "localhost"
    return f"[{host}]:{target.port}" if ":" in host else f"{host}:{target.port}"


def _shown(target: Target) -> str:
    where = f"the Unix socket {target.host or 'of this machine'}"
    place = where if _is_socket(target) else _place(target)
    return f"{place}, database {target.database}"


# Cures


def _lines(target: Target, settings: Settings) -> str:
    """Return the advice to set the variables that lead the application to the test's database."""
    from pytest_warmstack.placeholders import lines_for

    found = variables_for(target)
    own = {line.partition("=")[0] for line in settings.env}
    new = {name: value for name, value in found.items() if name not in own}
    more = bool(settings.env)
    if new:
        advice = lines_for(new, file=settings.file, more=more)
        return f"lead the application to the test's database: {advice}"
    if found:
        names = ", ".join(found)
        return (
            f"{names} has another value than warmstack_env has set: if conftest.py or the"
            " application assigns it, remove that"
        )
    name = "DATABASE_URL" if target.service == Service.POSTGRES else "REDIS_URL"
    guess = lines_for({name: _url_line(target, "")}, file=settings.file, more=more)
    return (
        "lead the application to the test's database: find the variable that it reads, such as"
        f" {name}, and {guess}"
    )


def variables_for(target: Target) -> dict[str, str]:
    """Return the environment variables that lead to *target*, and the values for a test.

    These are variables with its URL, or else those with the parts of the address.
    """
    from pytest_warmstack.placeholders import placeholder_of

    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    urls = {name: value for name, value in environ.items() if _leads_to(value, target)}
    if urls:
        return {name: _url_line(target, value) for name, value in urls.items()}
    if target.service == Service.REDIS:
        return {}
    parts = {
        "{db_host}": host_of(target.host),
        "{db_port}": str(target.port),
        "{db_name}": target.database,
    }
    roles = {name: placeholder_of(name) for name in environ}
    found = {
        name: role
        for name, role in roles.items()
        if role in _LOGIN or (role in parts and host_of(environ[name]) == parts[role])
    }
    return found if {"{db_host}", "{db_name}"} & {*found.values()} else {}


def _leads_to(url: str, target: Target) -> bool:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return False
    if "://" not in url or host is None:
        return False
    default = 6379 if target.service == Service.REDIS else 5432
    if (host_of(host), port or default) != (host_of(target.host), target.port):
        return False
    is_redis = parts.scheme.startswith("redis")
    if is_redis or target.service == Service.REDIS:
        return is_redis and target.service == Service.REDIS
    return unquote(parts.path.lstrip("/")) in {"", target.database}


def _url_line(target: Target, url: str) -> str:
    """Return the value for a variable that has *url* now; it keeps the driver."""
    if target.service == Service.REDIS:
        return "{redis_url}"
    scheme = url.partition("://")[0]
    return "{db_url}" if scheme in {"", "postgresql+asyncpg"} else f"{scheme}://{_PARTS}"


def _entry(target: Target, file: str) -> str:
    from pytest_warmstack.placeholders import entries_for

    line = target.host if target.host.startswith("/") else _place(target)
    return entries_for("warmstack_allow", [line], file=file)
