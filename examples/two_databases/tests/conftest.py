from collections.abc import Iterator

import pytest

from shop.sales import pool


@pytest.fixture(scope="session", autouse=True)
def open_pool() -> Iterator[None]:
    """Do what the application does when it starts and ends."""
    pool.open()
    yield
    pool.close()
