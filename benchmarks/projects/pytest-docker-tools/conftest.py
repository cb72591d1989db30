"""pytest-docker-tools: its containers kept with `--reuse-containers`, rollbacks by hand."""

import os

import pytest
from containers import COMMAND, LABELS, MOUNTS, POSTGRES_IMAGE, REDIS_IMAGE
from migrated import migrate
from pytest_docker_tools import container
from pytest_docker_tools.wrappers import Container
from rollback import worker

pytest_plugins = ["rollback"]

postgres = container(
    scope="session",
    name=f"{os.environ['BENCH_LABEL']}-{os.environ['BENCH_NAME']}-postgres",
    image=POSTGRES_IMAGE,
    command=COMMAND,
    environment={"POSTGRES_PASSWORD": "test"},
    labels=LABELS,
    mounts=MOUNTS,
    ports={"5432/tcp": None},
)
redis = container(
    scope="session",
    name=f"{os.environ['BENCH_LABEL']}-{os.environ['BENCH_NAME']}-redis",
    image=REDIS_IMAGE,
    labels=LABELS,
    ports={"6379/tcp": None},
)


@pytest.fixture(scope="session")
def database_url(postgres: Container) -> str:
    """Return the URL of a database that is at the head of the revisions."""
    host, port = postgres.get_addr("5432/tcp")
    url = f"postgresql+asyncpg://postgres:test@{host}:{port}/postgres"
    migrate(url)
    return url


@pytest.fixture(scope="session")
def cache_url(redis: Container) -> str:
    """Return the URL of a Redis database for this process."""
    host, port = redis.get_addr("6379/tcp")
    return f"redis://{host}:{port}/{worker()}"
