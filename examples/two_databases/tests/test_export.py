"""Tests of a job that works with both databases."""

from collections.abc import Iterator
from datetime import date

import psycopg
import pytest

from pytest_warmstack import DatabaseFactory
from shop.export import export
from shop.sales import sell

TODAY = date(2026, 1, 1)


@pytest.fixture
def analytics(
    db_factory: DatabaseFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[psycopg.Connection]:
    url = db_factory(alembic="analytics/alembic.ini").dsn
    monkeypatch.setenv("ANALYTICS_URL", url)
    with psycopg.connect(url) as connection:
        yield connection


def revenue(analytics: psycopg.Connection) -> list[tuple[date, int]]:
    return analytics.execute("SELECT day, cents FROM revenue").fetchall()


def test_sales_are_exported(analytics: psycopg.Connection) -> None:
    sell(TODAY, 100)
    sell(TODAY, 250)

    export(TODAY)

    assert revenue(analytics) == [(TODAY, 350)]


def test_an_export_can_be_repeated(analytics: psycopg.Connection) -> None:
    export(TODAY)
    sell(TODAY, 100)

    export(TODAY)

    assert revenue(analytics) == [(TODAY, 100)]
