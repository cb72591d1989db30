"""What a report says about failures with a known cause."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_warmstack import advice
from pytest_warmstack.options import Settings

ITEM: Any = SimpleNamespace(fixturenames=("db_url",), function=lambda: None)
ENVIRONMENT: Any = SimpleNamespace(holders=lambda: ["shop: 90"], no_space=lambda _: "no room")


class MissingGreenlet(Exception):
    """What SQLAlchemy raises when an asynchronous driver is used without a loop."""


class Refused(Exception):
    """A refusal of PostgreSQL."""

    def __init__(self, state: str) -> None:
        super().__init__("no")
        self.sqlstate = state


def titles(error: BaseException, environment: Any = ENVIRONMENT, item: Any = ITEM) -> list[str]:
    """Return the titles of the sections for a test that fails with *error*."""
    return [title for title, _ in advice.sections(item, error, environment)]


def test_a_fixture_of_a_wider_scope_that_asks_for_a_database_of_one_test() -> None:
    """It needs no server for that."""
    error = RuntimeError(
        "ScopeMismatch: You tried to access the function scoped fixture db_url with a module scoped"
        " request object."
    )

    assert titles(error, environment=None) == ["warmstack: how to share a database"]


@pytest.mark.parametrize(
    "error",
    [
        ValueError("invalid DSN: scheme is expected to be ..., got 'postgresql+asyncpg'"),
        ValueError('missing "=" after "postgresql+asyncpg://ada@db/shop" in connection info'),
        MissingGreenlet("greenlet_spawn has not been called"),
    ],
)
def test_a_driver_that_gets_the_url_of_another(error: Exception) -> None:
    """Their own errors don't say what to use."""
    assert titles(error) == ["warmstack: which URL a driver takes"]


def test_an_asynchronous_test_without_a_greenlet_has_another_cause() -> None:
    """It loads an expired attribute, for example."""

    async def function() -> None:
        """Do nothing."""

    item = SimpleNamespace(fixturenames=("db_url",), function=function)

    assert titles(MissingGreenlet(), item=item) == []


@pytest.mark.parametrize(
    ("state", "title"),
    [("53300", "who holds the connections"), ("53100", "no space left"), ("42601", "")],
)
def test_a_server_without_connections_or_space(state: str, title: str) -> None:
    """PostgreSQL's SQLSTATE tells."""
    assert titles(Refused(state)) == ([f"warmstack: {title}"] if title else [])


def test_nothing_is_asked_without_an_environment() -> None:
    """The test used no server."""
    assert titles(Refused("53300"), environment=None) == []


def test_the_variables_that_an_application_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if pytest wraps the error, as it does for a conftest file."""
    monkeypatch.delenv("DATABASE_URL", raising=False)
    wrapper = RuntimeError("ImportError while loading conftest")
    try:
        os.environ["DATABASE_URL"]
    except KeyError as error:
        wrapper.cause = error  # type: ignore[attr-defined]

    text = advice.missing_variables(wrapper, Settings(file="pytest.ini"))

    assert text.startswith("The application reads DATABASE_URL when it is imported. Before that,")
    assert "write in pytest.ini:\nwarmstack_env = DATABASE_URL={db_url}\n" in text
    assert "as in warmstack_autouse = tests/api." in text


def test_another_error_has_no_advice() -> None:
    """It has nothing to do with a database."""
    assert advice.missing_variables(ValueError("no"), Settings()) == ""
