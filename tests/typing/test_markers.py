"""Uses each marker, and each fixture whose scope it changes."""

from __future__ import annotations

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

pytestmark = pytest.mark.warmstack_isolation("module")


@pytest.fixture(scope="module")
def catalogue(db_url: str, db_dsn: str, db_engine: AsyncEngine) -> str:
    """Ask for a database with the scope of the module."""
    return db_dsn


@pytest.mark.warmstack_isolation("class")
class TestShared:
    """Tests that share a database."""

    def test_one(self, catalogue: str) -> None:
        """Use a fixture of the module."""
        assert catalogue


@pytest.mark.warmstack_isolation("rollback")
def test_rollback(db_engine: AsyncEngine) -> None:
    """Use a marker on one test."""
    assert db_engine


@pytest.mark.warmstack
def test_through_the_application() -> None:
    """Use the databases without a fixture."""


@pytest.mark.warmstack_seed("tests.seeds:catalogue", "big.sql")
def test_with_rows(db_url: str) -> None:
    """Use a marker with several words."""
    assert db_url
