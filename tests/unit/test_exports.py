"""The variables of `warmstack_env`, and the addresses that are chosen for them."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pytest_warmstack import addresses
from pytest_warmstack.addresses import Addresses
from pytest_warmstack.options import RuntimeName, Settings
from pytest_warmstack.servers import RememberedServers
from pytest_warmstack.servers.identity import Project, Service
from pytest_warmstack.servers.model import REDIS_DATABASES, Endpoint

SHOP = Project("/srv/shop")

ADDRESSES = Addresses(
    Endpoint(host="::1", port=5432, password="p@ss", user="ci"),
    "warmstack_dev_1",
    Endpoint(host="cache", port=6379, password="secret"),
    255,
)


@pytest.mark.parametrize(
    ("value", "filled"),
    [
        ("{db_url}", "postgresql+asyncpg://ci:p%40ss@[::1]:5432/warmstack_dev_1"),
        ("{db_dsn}", "postgresql://ci:p%40ss@[::1]:5432/warmstack_dev_1"),
        (
            "{db_host} {db_port} {db_user} {db_password} {db_name}",
            "::1 5432 ci p@ss warmstack_dev_1",
        ),
        ("{redis_url}", "redis://:secret@cache:6379/255"),
        ("{redis_host} {redis_port} {redis_password} {redis_db}", "cache 6379 secret 255"),
        ('{"json": "{db_name}"}', '{"json": "warmstack_dev_1"}'),
        ("test", "test"),
    ],
)
def test_a_variable_gets_what_its_line_says(value: str, filled: str) -> None:
    """Each placeholder has its value; other braces stay."""
    assert ADDRESSES.variables([f"X={value}"], {}) == {"X": filled}


@pytest.mark.parametrize(
    ("own", "scheme"),
    [
        ({}, "postgresql+asyncpg"),
        ({"X": "postgresql+psycopg://me@prod/shop"}, "postgresql+psycopg"),
        ({"X": "postgresql://me@prod/shop"}, "postgresql"),
        ({"X": "postgres://me@prod/shop"}, "postgres"),
        ({"X": "sqlite://"}, "postgresql+asyncpg"),
    ],
)
def test_a_variable_keeps_its_own_driver(own: Mapping[str, Any], scheme: str) -> None:
    """The application reads that one."""
    found = ADDRESSES.variables(["X={db_url}"], own)
    assert found["X"].partition("://")[0] == scheme


def test_options_of_a_line_follow_those_of_an_external_server() -> None:
    """A URL has one question mark."""
    own = Endpoint(host="db", port=5432, password="x", query="sslmode=require")
    found = Addresses(own, "shop", None, 0).variables(["X={db_url}?application_name=a"], {})
    assert found["X"].endswith("/shop?ssl=require&application_name=a")


def test_a_kept_server_has_the_port_of_its_project() -> None:
    """Other projects, and the project's other server, have others."""
    first, again = (addresses.reserve(SHOP, Service.REDIS, kept=True, taken=()) for _ in range(2))
    assert first.port == again.port
    assert first.password != again.password
    other = addresses.reserve(SHOP, Service.REDIS, kept=True, taken=[first.port])
    assert other.port == first.port + 1


def test_a_port_in_use_is_not_reserved() -> None:
    """The next one is."""
    first = addresses.reserve(SHOP, Service.POSTGRES, kept=True, taken=())
    with socket.create_server((first.host, first.port)):
        assert addresses.answers(first)
        assert addresses.reserve(SHOP, Service.POSTGRES, kept=True, taken=()).port != first.port


def test_a_reserved_address_is_found_by_the_next_run(tmp_path: Path) -> None:
    """Another project, as in a copied checkout, doesn't find it."""
    remembered = RememberedServers(tmp_path, "asked")
    own = addresses.reserve(SHOP, Service.REDIS, kept=True, taken=())
    remembered.reserve(Service.REDIS, own, SHOP)

    assert addresses.find(Service.REDIS, Settings(), SHOP, remembered) == own
    assert addresses.find(Service.REDIS, Settings(), Project("/srv/copy"), remembered) is None
    assert addresses.find(Service.POSTGRES, Settings(), SHOP, remembered) is None
    remembered.forget(Service.REDIS)
    assert addresses.find(Service.REDIS, Settings(), SHOP, remembered) is None


@pytest.mark.parametrize("count", [1, 3, 16, 200, 400])
def test_workers_reserve_databases_of_their_own(count: int) -> None:
    """They are there, and none is database 0, where the leases are."""
    blocks = [addresses.reserve_databases(count, base=65535, worker=each) for each in range(4)]
    assert all(len(block) == count and block.start > 0 for block in blocks)
    if count < 32:
        assert len({index for block in blocks for index in block}) == 4 * count
        assert max(index for block in blocks for index in block) < REDIS_DATABASES


def test_no_engine_is_asked_about_embedded_servers() -> None:
    """They are on this machine, whatever DOCKER_HOST says."""
    context: Any = None
    settings = Settings(runtime=RuntimeName.EMBEDDED)
    assert addresses.is_on_loopback(settings, context, {"DOCKER_HOST": "tcp://engine:2375"})
