"""The specs and overviews of servers, by service. Imports only the driver of that service."""

from __future__ import annotations

from typing import Any

from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.options import Settings
from pytest_warmstack.servers.identity import Service
from pytest_warmstack.servers.model import ServerSpec


def make(
    service: str, settings: Settings, background: BackgroundLoop | None = None, *, number: int = 0
) -> ServerSpec[Any]:
    """Return the spec of the server of *service* that *settings* ask for.

    *background* runs PostgreSQL's connections; the default is a new loop. *number* is the number of
    a Redis server that belongs to one process.
    """
    if service == Service.POSTGRES:
        from pytest_warmstack.postgres import server as postgres

        return postgres.spec(settings, background or BackgroundLoop())
    from pytest_warmstack import redis

    return redis.spec(settings, number)


def look(service: str, client: Any) -> Any:
    """Return the `Overview` of the server that *client* is connected to."""
    if service == Service.POSTGRES:
        from pytest_warmstack.postgres import overview as postgres

        return postgres.look(client)
    from pytest_warmstack.redis import overview as redis

    return redis.look(client)
