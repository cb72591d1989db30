"""pytest-testcontainers: its containers kept with `--testcontainers-reuse`, rollbacks by hand."""

from collections.abc import Iterator

import pytest
from containers import COMMAND, LABELS, MOUNTS, POSTGRES_IMAGE, REDIS_IMAGE
from migrated import migrate
from pytest_testcontainers import make_postgres, make_redis

pytest_plugins = ["rollback"]


@pytest.fixture(scope="session")
def database_url() -> Iterator[str]:
    """Yield the URL of a database that is at the head of the revisions."""
    with make_postgres(POSTGRES_IMAGE, command=COMMAND, labels=LABELS, mounts=MOUNTS) as postgres:
        url = postgres.get_connection_url(driver="asyncpg")
        migrate(url)
        yield url


@pytest.fixture(scope="session")
def cache_url() -> Iterator[str]:
    """Yield the URL of Redis."""
    with make_redis(REDIS_IMAGE, labels=LABELS) as redis:
        yield f"redis://{redis.get_container_host_ip()}:{redis.get_exposed_port(6379)}/0"
