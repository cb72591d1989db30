"""Tests of an asynchronous service."""

import pytest
from sqlalchemy.exc import IntegrityError

from users.accounts import find, register


@pytest.mark.parametrize("email", ["ada@example.org", "grace@example.org"])
async def test_a_user_is_found(email: str) -> None:
    assert await find(email) is None

    assert await register(email) == 1

    user = await find(email)
    assert user is not None
    assert user.email == email


async def test_an_address_is_registered_once() -> None:
    await register("ada@example.org")

    with pytest.raises(IntegrityError):
        await register("ada@example.org")
