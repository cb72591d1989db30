"""The suite in `benchmarks/bookings` does what `benchmarks/bookings.py` says of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import pytest

from projects import Library

SUITE: Final = Path(__file__).parents[2] / "benchmarks/bookings"

KINDS: Final = 12
"""How many kinds of tests it has."""

COMPARISON: Final = """
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from bookings.models import Base

async def test_migrations_and_models_agree(db_engine):
    assert len(Base.metadata.tables) == 32
    async with db_engine.connect() as connection:
        differences = await connection.run_sync(
            lambda each: compare_metadata(MigrationContext.configure(each), Base.metadata)
        )
    assert differences == []
"""


@pytest.fixture
def suite(embedded_project: Library) -> Library:
    """A copy of the suite, in which to run it."""
    folder = embedded_project.folder
    shutil.rmtree(folder)
    made = shutil.ignore_patterns("__pycache__", ".pytest_cache")
    shutil.copytree(SUITE, folder, ignore=made)
    embedded_project.configure("warmstack_runtime = embedded", "warmstack_max_idle = 9999d")
    return embedded_project


def test_one_of_each_kind_passes(suite: Library) -> None:
    """In a database of its own, and its migrations make the tables of its models."""
    suite.write("tests/test_comparison.py", COMPARISON)

    suite.run().assert_outcomes(passed=KINDS + 1)


def test_there_are_as_many_tests_as_are_asked_for(suite: Library) -> None:
    """Of all kinds."""
    result = suite.run("--collect-only", "-q", BENCH_TESTS="553")

    names = [line for line in result.outlines if "::test_" in line]
    assert len(names) == 553
    assert len({line.partition("[")[0] for line in names}) == KINDS
