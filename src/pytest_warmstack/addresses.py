"""Chooses the addresses of a process's databases, before the application is imported.

An address doesn't change during a run, so it is that of a server that runs, or is reserved for one
that starts when a test needs it.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from pytest_warmstack import originals
from pytest_warmstack.options import RuntimeName, Settings
from pytest_warmstack.placeholders import filled, url_like
from pytest_warmstack.postgres import DatabaseName
from pytest_warmstack.servers import ENGINE, RememberedServers, make
from pytest_warmstack.servers.errors import RuntimeUnavailable
from pytest_warmstack.servers.identity import (
    Label,
    Process,
    Project,
    Service,
    random_password,
)
from pytest_warmstack.servers.lifecycle import LOOPBACK, free_port, is_free
from pytest_warmstack.servers.model import (
    REDIS_DATABASES,
    Endpoint,
    RunContext,
    plain_url,
    postgres_url,
    redis_url,
)

_PROBE_TIMEOUT: Final = 1.0
"""Seconds that a server on this machine may take to accept a connection."""


@dataclass
class Reserved:
    """What a process must get, because the application may have read it.

    *servers* has the address of each server, *database* the name of the test's PostgreSQL database,
    *indexes* the Redis databases; None if any will do.
    """

    servers: dict[Service, Endpoint] = field(default_factory=dict)
    database: DatabaseName | None = None
    indexes: range | None = None


class Addresses(NamedTuple):
    """The servers, the *database* of PostgreSQL and the number of the first Redis database.

    A server is None if no line of `warmstack_env` names it.
    """

    postgres: Endpoint | None
    database: str
    redis: Endpoint | None
    redis_index: int

    def variables(self, lines: Collection[str], environ: Mapping[str, str]) -> dict[str, str]:
        """Return the variables of *lines*, such as `DATABASE_URL={db_url}`.

        If a variable has a PostgreSQL URL in *environ*, its driver and options are kept.
        """
        found = {}
        for line in lines:
            name, _, value = line.partition("=")
            values = self._values(environ.get(name, ""))
            if "?" in values.get("db_url", ""):
                value = value.replace("{db_url}?", "{db_url}&")
            found[name] = filled(value, values)
        return found

    def _values(self, own: str) -> dict[str, Any]:
        values: dict[str, Any] = {}
        if (server := self.postgres) is not None:
            url = postgres_url(server, self.database, "asyncpg")
            values |= {
                "db_url": url_like(own, str(url)),
                "db_dsn": str(plain_url(url)),
                "db_host": server.host,
                "db_port": server.port,
                "db_user": server.user or "postgres",
                "db_password": server.password,
                "db_name": self.database,
            }
        if (server := self.redis) is not None:
            values |= {
                "redis_url": str(redis_url(server, self.redis_index)),
                "redis_host": server.host,
                "redis_port": server.port,
                "redis_user": server.user,
                "redis_password": server.password,
                "redis_db": self.redis_index,
            }
        return values


def find(
    service: Service, settings: Settings, project: Project, remembered: RememberedServers
) -> Endpoint | None:
    """Return the address of the external or remembered server, or None.

    A remembered server may have ended; then it starts again at the same address, unless another
    program has taken the port.
    """
    if url := settings.url(service):
        from pytest_warmstack.servers.external import endpoint_of

        return endpoint_of(url, service)
    found, _ = remembered.read(service)
    if found is None or found.labels.get(Label.PROJECT) != project.id:
        return None
    process = Process.parse(found.id)
    has_ended = process is not None and process.is_gone()
    return None if has_ended and not is_free(found.endpoint.port) else found.endpoint


def reserve(project: Project, service: Service, *, kept: bool, taken: Collection[int]) -> Endpoint:
    """Return an address on this machine for a server that starts later.

    A kept server of the project gets the same port again, if it is free. *taken* are the ports that
    are reserved already.
    """
    port = free_port(f"{project.path} {service}" if kept else originals.urandom(8), taken)
    return Endpoint(host=LOOPBACK, port=port, password=random_password())


def reserve_databases(count: int, *, base: int, worker: int) -> range:
    """Return *count* Redis databases for a server that starts later.

    *base* is a number that the workers of a run share. The databases are in the upper half: leases
    on a running server begin with the lower ones.
    """
    blocks = max((REDIS_DATABASES - 1) // count, 1)
    block = blocks - 1 - (base + worker) % max(blocks // 2, 1)
    return range(1 + block * count, 1 + (block + 1) * count)


def answers(endpoint: Endpoint) -> bool:
    """Return whether something listens at *endpoint*."""
    try:
        originals.create_connection(endpoint.host, endpoint.port, _PROBE_TIMEOUT).close()
    except OSError:
        return False
    return True


def is_on_loopback(settings: Settings, run_context: RunContext, environ: Mapping[str, str]) -> bool:
    """Return whether the servers that this run starts are at `LOOPBACK`.

    Only if Docker's engine may be elsewhere, this asks the engine.
    """
    if settings.runtime is RuntimeName.EMBEDDED or not _may_be_elsewhere(environ):
        return True
    try:
        with closing(make(RuntimeName.DOCKER, run_context)) as docker:
            return docker.on_loopback
    except RuntimeUnavailable:
        return True  # Embedded servers, or none.


def _may_be_elsewhere(environ: Mapping[str, str]) -> bool:
    home = Path(environ.get("HOME", "/"))
    config = Path(environ.get("DOCKER_CONFIG") or home / ".docker", "config.json")
    try:
        context = "currentContext" in config.read_text(encoding="utf-8", errors="replace")
    except OSError:
        context = False
    # testcontainers takes the last one for the sign of a container (its `inside_container`).
    files = home / ".testcontainers.properties", Path("/.dockerenv")
    named = any(environ.get(name) for name in ENGINE)
    return named or context or any(os.path.lexists(each) for each in files)
