"""Puts the lines of `warmstack_env` into the environment of pytest, before conftest files.

So an application that reads its addresses when it is imported finds the databases of the tests.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

import pytest

from pytest_warmstack import addresses, drivers, originals
from pytest_warmstack.addresses import Addresses, Reserved
from pytest_warmstack.drivers import Observer, Target
from pytest_warmstack.errors import WarmstackError, did_you_mean, line_of
from pytest_warmstack.options import RedisPlan
from pytest_warmstack.placeholders import services
from pytest_warmstack.pools import Pools
from pytest_warmstack.postgres import DatabaseName, State
from pytest_warmstack.servers.identity import Service, fingerprint
from pytest_warmstack.servers.model import Endpoint
from pytest_warmstack.session import Session
from pytest_warmstack.settings_errors import SettingsError

EXPORTS: Final = pytest.StashKey["Exports"]()


class NoDatabaseYet(WarmstackError):
    """Code connected to the test's PostgreSQL or Redis while no test had it."""

    @classmethod
    def outside(
        cls, *, title: str, driver: str, variables: str, test: str, file: str
    ) -> NoDatabaseYet:
        """*driver* connected in *test*, which has no database, or in none, if it is empty.

        *file* is pytest's configuration file.
        """
        when = f"{test} has none" if test else "no test is running, for example during an import"
        path = test.partition("::")[0]
        return cls(
            f"No test has a database of {title} now, but {driver} connects to it.",
            why=f"the database of the current test is behind {variables}; {when}",
            todo=[
                f"name the tests that use it: {line_of('warmstack_autouse', path, file)}, in "
                f"{file or 'pytest.ini'}; or mark them with @pytest.mark.warmstack, or let them "
                "request a fixture such as db_url"
                if test
                else "connect when the application starts, not when it is imported",
            ],
        )


class Exports(Observer):
    """The variables of `warmstack_env` in this process.

    `services` are the services that they name. `reserved` is what they lead to; the environment
    reads it when it makes servers, databases and leases.

    With *has_workers*, other processes run the tests, and no database belongs to this one.
    """

    def __init__(self, session: Session, *, has_workers: bool = False) -> None:
        self._session = session
        self._settings = session.settings
        self._has_workers = has_workers
        self._before: dict[str, str | None] = {}
        self._matched: set[str] = set()
        self._collected: set[str] = set()
        self._redis = "", 0
        self.services = {Service(each) for each in services(self._settings.env)}
        self.reserved = session.reserved = Reserved()
        self._pools = session.pools = Pools(self._is_own)

    def begin(self) -> None:
        """Choose the addresses, and set the variables.

        This starts servers only if their address is not known before: if Docker's engine is on
        another machine, or if each process has its own Redis. Raises `SettingsError`.
        """
        settings = self._settings
        if settings.autouse and not self.services:
            source = settings.sources.get("autouse", "")
            raise SettingsError.no_address(
                name="warmstack_autouse", source=source, file=settings.file
            )
        found = self._choose()
        variables = found.variables(self._settings.env, os.environ)
        self._before = {name: os.environ.get(name) for name in variables}
        originals.variables.update(self._before)
        os.environ.update(variables)
        self._pools.install()
        drivers.install(self)

    def end(self) -> None:
        """Set the variables to what they were before. You can end twice."""
        drivers.uninstall(self)
        self._pools.uninstall()
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
            originals.variables.pop(name, None)
        self._before = {}

    def names(self, item: pytest.Item) -> bool:
        """Return whether the marker `warmstack` or a line of `warmstack_autouse` names *item*."""
        root, path = self._session.config.rootpath, item.path
        here = {path, *path.parents}
        found = item.get_closest_marker("warmstack") is not None
        if self._settings.autouse:
            below = [each for each in here if root in each.parents]
            self._collected.update(str(each.relative_to(root)) for each in below)
        for line in self._settings.autouse:
            is_path = root / line in here or fnmatch(path.as_posix(), (root / line).as_posix())
            if is_path or item.get_closest_marker(line) is not None:
                self._matched.add(line)
                found = True
        return found

    def unmatched(self) -> list[str]:
        """Return a sentence for each line of `warmstack_autouse` that names no path or marker."""
        config, root = self._session.config, self._session.config.rootpath
        markers = {re.split(r"[(:]", line)[0].strip() for line in config.getini("markers")}
        # Like the tests that were collected, it may be a folder or a file.
        known = {*markers, *self._collected}
        return [
            f"warmstack_autouse: {line} is neither a path below {root.name} nor a marker"
            f"{did_you_mean(line, known)}"
            for line in self._settings.autouse
            if line not in self._matched | markers and not _exists(root / line)
        ]

    def opening(self, target: Target) -> None:
        """Raise `NoDatabaseYet` if *target* is the test's database, and no test has one."""
        __tracebackhide__ = True
        if not self._is_own(target) or self._session.has_databases:
            return
        is_redis = target.service == Service.REDIS
        start = "{redis_" if is_redis else "{db_"
        named = [each.partition("=")[0] for each in self._settings.env if start in each]
        raise NoDatabaseYet.outside(
            title="Redis" if is_redis else "PostgreSQL",
            driver=target.driver,
            variables=", ".join(named),
            # pytest sets this to the test's id and phase (its documentation, "Examples").
            test=os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" (")[0],
            file=self._settings.file,
        )

    def leave_redis(self) -> None:
        """Cut the connections to Redis before a test that has none, which could read old keys."""
        self._pools.cut(self._is_own, Service.REDIS)

    def _is_own(self, target: Target) -> bool:
        """Return whether *target* is what the variables lead to."""
        if target.service == Service.POSTGRES:
            return target.database == str(self.reserved.database)
        return (target.host, target.port) == self._redis

    def _choose(self) -> Addresses:
        project = self._session.run_context().project
        found = {service: self._server(service) for service in sorted(self.services)}
        name = DatabaseName.new(State.IN_USE, fingerprint(project.path))
        if Service.POSTGRES in found:
            self.reserved.database = name
        if (redis := found.get(Service.REDIS)) is not None:
            self._redis = redis.host, redis.port
        return Addresses(
            postgres=found.get(Service.POSTGRES),
            database=str(name),
            redis=found.get(Service.REDIS),
            redis_index=self._index(found[Service.REDIS]) if Service.REDIS in found else 0,
        )

    def _server(self, service: Service) -> Endpoint:
        """Return the address of a server that runs, or reserve one."""
        session, settings = self._session, self._settings
        context, shared = session.run_context(), session.run["servers"]
        is_shared = service is Service.POSTGRES or settings.redis is RedisPlan.SHARED
        given = shared.get(str(service)) if is_shared else None
        found = Endpoint(**given) if given else None
        if found is None and is_shared:
            found = addresses.find(service, settings, context.project, session.remembered())
        if found is None and (is_shared or self._has_workers):
            found = self._reserve(service)
        if found is None:
            found = self._start(service)
        if is_shared:
            shared[str(service)] = found.fields()
            if not settings.url(service):
                self.reserved.servers[service] = found
        return found

    def _reserve(self, service: Service) -> Endpoint | None:
        """Return an address for a server that starts later; None if it can't be known now."""
        session, context = self._session, self._session.run_context()
        if not addresses.is_on_loopback(self._settings, context, os.environ):
            return None
        if context.keep and (running := session.open().find_running(service)):
            return running
        taken = [each.port for each in self.reserved.servers.values()]
        own = addresses.reserve(context.project, service, kept=context.keep, taken=taken)
        if not context.keep:
            return own
        return session.remembered().reserve(service, own, context.project)

    def _start(self, service: Service) -> Endpoint:
        """Start the server now, and return its address."""
        environment = self._session.open()
        try:
            if service is Service.POSTGRES:
                return environment.postgres.get().client.endpoint
            environment.leases.get().take()
            return environment.leases.get().server.client.endpoint
        except WarmstackError:  # Raised for the tests that need it.
            return addresses.reserve(
                self._session.run_context().project, service, kept=False, taken=()
            )

    def _index(self, server: Endpoint) -> int:
        """Return the number of this process's first Redis database."""
        session, settings = self._session, self._settings
        if self._has_workers:
            return 0
        if settings.redis_url or addresses.answers(server):
            with suppress(WarmstackError):  # Raised for the tests that need it.
                return session.open().leases.get().take().index
        self.reserved.indexes = addresses.reserve_databases(
            settings.redis_databases, base=session.run["base"], worker=session.worker_number()
        )
        return self.reserved.indexes.start


def _exists(pattern: Path) -> bool:
    """Return whether a file fits *pattern*, which is an absolute path."""
    root = Path(pattern.anchor)
    return any(root.glob(str(pattern.relative_to(root))))
