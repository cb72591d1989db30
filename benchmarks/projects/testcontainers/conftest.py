"""The plain recipe of testcontainers: a container for the session, migrated in it."""

from collections.abc import Iterator

import pytest
from containers import COMMAND, LABELS, MOUNTS, POSTGRES_IMAGE, REDIS_IMAGE
from migrated import migrate
from testcontainers.community.postgres import PostgresContainer
from testcontainers.community.redis import RedisContainer

pytest_plugins = ["rollback"]


@pytest.fixture(scope="session")
def database_url() -> Iterator[str]:
    """Yield the URL of a migrated database."""
    with PostgresContainer(
        POSTGRES_IMAGE, driver="asyncpg", command=COMMAND, labels=LABELS, mounts=MOUNTS
    ) as postgres:
        url = postgres.get_connection_url()
        migrate(url)
        yield url


@pytest.fixture(scope="session")
def cache_url() -> Iterator[str]:
    """Yield the URL of an empty Redis."""
    with RedisContainer(REDIS_IMAGE, labels=LABELS) as redis:
        yield f"redis://{redis.get_container_host_ip()}:{redis.get_exposed_port(6379)}/0"
