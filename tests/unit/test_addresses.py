"""Addresses as URLs, as each driver and client takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from redis.connection import parse_url
from sqlalchemy import make_url

from pytest_warmstack.options import Settings
from pytest_warmstack.postgres import DatabaseName, State
from pytest_warmstack.postgres.clones import Clone
from pytest_warmstack.postgres.template.dependencies import FileState
from pytest_warmstack.postgres.template.layers import BuildContext
from pytest_warmstack.redis.leases import Lease
from pytest_warmstack.server_specs import make
from pytest_warmstack.servers.external import endpoint_of
from pytest_warmstack.servers.identity import Service
from pytest_warmstack.servers.model import (
    Endpoint,
    ServerHandle,
    ServerSpec,
    postgres_url,
    redis_url,
)

MANAGED = Endpoint(host="127.0.0.1", port=5432, password="0a1b")
ODD = "p@ss/w:rd%?#"
"""A password with everything that means something in a URL."""


def spec(service: Service, url: str) -> ServerSpec[Any]:
    """Return the description of a server that has a URL."""
    return make(service, Settings(postgres_url=url, redis_url=url))


def test_a_managed_server_has_a_plain_url() -> None:
    """Only letters and digits, so that it can be pasted into any configuration file."""
    assert postgres_url(MANAGED, "shop", "asyncpg") == (
        "postgresql+asyncpg://postgres:0a1b@127.0.0.1:5432/shop"
    )
    assert postgres_url(MANAGED, "shop", None) == "postgresql://postgres:0a1b@127.0.0.1:5432/shop"
    assert redis_url(MANAGED, 3) == "redis://:0a1b@127.0.0.1:5432/3"


@pytest.mark.parametrize("host", ["db.example", "2001:db8::1", "127.0.0.1"])
@pytest.mark.parametrize("password", ["", "secret", ODD])
@pytest.mark.parametrize("user", ["ci", "ci@team", "o'hara"])
def test_a_url_of_a_database_is_read_as_it_was_written(host: str, password: str, user: str) -> None:
    """SQLAlchemy gets back from it what went in, whatever it holds."""
    url = make_url(
        postgres_url(Endpoint(host=host, port=1, password=password, user=user), "shop", "asyncpg")
    )

    assert (url.host, url.port, url.database) == (host, 1, "shop")
    assert (url.username, url.password or "") == (user, password)


@pytest.mark.parametrize("password", ["", "secret", ODD])
@pytest.mark.parametrize("user", ["", "ci", "ci@team"])
def test_a_url_of_redis_is_read_as_it_was_written(password: str, user: str) -> None:
    """redis-py gets back from it what went in."""
    endpoint = Endpoint(host="cache", port=1, password=password, user=user)

    read: Any = parse_url(redis_url(endpoint, 7))  # type: ignore[no-untyped-call]

    assert (read["host"], read["port"], read["db"]) == ("cache", 1, 7)
    assert (read.get("username") or "", read.get("password") or "") == (user, password)


def test_a_url_shows_no_password_in_a_report() -> None:
    """Nor does anything that holds one, as pytest shows local variables."""
    endpoint = Endpoint(host="db", port=1, password="hunter2", query="ssl_password=hunter3")
    url = postgres_url(endpoint, "shop", "asyncpg")
    handle = ServerHandle(
        endpoint=endpoint, id="1", runtime="docker", version="16", service=Service.REDIS
    )
    held = [
        *(url, redis_url(endpoint, 1), handle, endpoint, handle.get_connection_url()),
        *(Clone(DatabaseName(State.IN_USE, "0"), 1, url), Lease(1, (url,))),
        *(BuildContext(Settings(env=("KEY=hunter2",)), Path(), FileState(".")),),
    ]

    assert "hunter" not in repr(held)
    assert url.endswith(":hunter2@db:1/shop?ssl_password=hunter3")


def test_tls_is_asked_for_in_the_words_of_each_driver() -> None:
    """asyncpg, as SQLAlchemy calls it, has another word than the other drivers."""
    endpoint = Endpoint(host="db", port=1, password="x", query="sslmode=require")

    assert postgres_url(endpoint, "shop", "asyncpg").endswith("/shop?ssl=require")
    for driver in ("psycopg", "psycopg2", None):
        assert postgres_url(endpoint, "shop", driver).endswith("/shop?sslmode=require")


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        (
            "postgresql://ci:p%40ss@db/app",
            Endpoint(host="db", port=5432, password="p@ss", user="ci", query="sslmode=prefer"),
        ),
        (
            "postgres://[::1]:5433?sslmode=disable",
            Endpoint(host="::1", port=5433, password="", query="sslmode=disable"),
        ),
    ],
)
def test_the_url_of_a_postgresql_tells_its_address(url: str, endpoint: Endpoint) -> None:
    """The defaults are those of libpq: port 5432, and TLS if the server supports it."""
    assert endpoint_of(url, Service.POSTGRES) == endpoint


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("redis://:x@cache/0", Endpoint(host="cache", port=6379, password="x", scheme="redis")),
        (
            "rediss://ci:x@cache:1?ssl_cert_reqs=none",
            Endpoint(
                host="cache",
                port=1,
                password="x",
                user="ci",
                scheme="rediss",
                query="ssl_cert_reqs=none",
            ),
        ),
    ],
)
def test_the_url_of_a_redis_tells_its_address(url: str, endpoint: Endpoint) -> None:
    """Its options for TLS are kept as they are."""
    assert endpoint_of(url, Service.REDIS) == endpoint
