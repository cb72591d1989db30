"""What the server of a service looks like; only the driver that it takes is imported."""

from __future__ import annotations

from typing import Any

from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.servers.identity import Service
from pytest_warmstack.servers.model import ServerSpec
from pytest_warmstack.settings import Settings


def make(
    service: str, settings: Settings, background: BackgroundLoop | None = None, *, number: int = 0
) -> ServerSpec[Any]:
    """Return the description of the server of *service* that *settings* ask for.

    *background* is where PostgreSQL's connections live; one of its own is made when there is none.
    *number* is that of a Redis that one process has to itself.
    """
    if service == Service.POSTGRES:
        from pytest_warmstack.postgres import server as postgres

        return postgres.spec(settings, background or BackgroundLoop())
    from pytest_warmstack import redis

    return redis.spec(settings, number)


def look(service: str, client: Any) -> Any:
    """Return the `Overview` of what is on the server of *service* behind *client*."""
    if service == Service.POSTGRES:
        from pytest_warmstack.postgres import overview

        return overview.look(client)
    from pytest_warmstack.redis import overview as of_redis

    return of_redis.look(client)
