"""Tests of a synchronous service."""

import pytest

from billing.invoices import charge, total


@pytest.mark.parametrize("cents", [100, 250])
def test_an_invoice_counts(cents: int) -> None:
    assert total(user_id=7) == 0

    assert charge(user_id=7, cents=cents) == 1

    assert total(user_id=7) == cents


def test_invoices_add_up() -> None:
    charge(user_id=7, cents=100)
    charge(user_id=7, cents=250)
    charge(user_id=8, cents=1)

    assert total(user_id=7) == 350
