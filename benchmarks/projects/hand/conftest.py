"""Wired by hand to a standing, migrated server: the floor."""

import os

import pytest
from rollback import worker

pytest_plugins = ["rollback"]


@pytest.fixture(scope="session")
def database_url() -> str:
    """Return the URL of the migrated database."""
    return os.environ["BENCH_DATABASE"]


@pytest.fixture(scope="session")
def cache_url() -> str:
    """Return the URL of a Redis database for this process."""
    return f"{os.environ['BENCH_REDIS']}/{200 + worker()}"
