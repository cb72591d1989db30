"""Tests of the main database alone, at the address that `pool` has read at import."""

from datetime import date

import pytest

from shop.sales import pool, sell


@pytest.mark.parametrize("cents", [100, 250])
def test_a_sale_is_stored(cents: int) -> None:
    sell(date(2026, 1, 1), cents)

    with pool.connection() as connection:
        assert connection.execute("SELECT id, cents FROM sales").fetchall() == [(1, cents)]
