"""Errors of asyncpg become errors of this package."""

from __future__ import annotations

import ssl

import asyncpg
import pytest

from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.postgres.connections import (
    StatementRefused,
    TlsRefused,
    explained,
    masked,
    rejection,
)
from pytest_warmstack.servers.errors import ConnectionLost

GONE = [
    ConnectionResetError("reset"),
    TimeoutError(),
    OSError("no route"),
    asyncpg.ConnectionDoesNotExistError("closed in the middle"),
    asyncpg.AdminShutdownError("terminating"),
    asyncpg.CannotConnectNowError("starting up"),
    asyncpg.InterfaceError("connection is closed"),
    asyncpg.InternalClientError("another operation (2)"),
]


@pytest.mark.parametrize("cause", GONE, ids=lambda error: type(error).__name__)
def test_a_connection_that_is_gone(cause: Exception) -> None:
    """The error names the statement and the cause; an error without a text is a timeout."""
    with pytest.raises(ConnectionLost) as caught, explained("DROP DATABASE shop", 7):
        raise cause

    assert caught.value.__cause__ is cause
    assert caught.value.looked_at == ("DROP DATABASE shop",)
    assert caught.value.why == (str(cause) or "no answer within 7 seconds")


@pytest.mark.parametrize(
    "kind", [asyncpg.InsufficientPrivilegeError, asyncpg.DiskFullError, asyncpg.ObjectInUseError]
)
def test_a_statement_that_is_refused(kind: type[asyncpg.PostgresError]) -> None:
    """The error has PostgreSQL's words, the SQLSTATE and a hint for it."""
    with pytest.raises(StatementRefused) as caught, explained("CREATE DATABASE shop"):
        raise kind("not for you")

    assert caught.value.why == "not for you"
    assert caught.value.state == kind.sqlstate
    assert kind.sqlstate in str(caught.value)
    assert len(caught.value.todo) == 3


def test_other_errors_pass_through() -> None:
    """A mistake in this package does not look like one of the server."""
    with pytest.raises(ZeroDivisionError), explained("SELECT 1"):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (asyncpg.InvalidPasswordError("wrong"), "it does not accept the password: wrong"),
        (asyncpg.InvalidCatalogNameError("no such database"), "no such database"),
        (ssl.SSLError(1, "handshake"), str(ssl.SSLError(1, "handshake"))),
        (TlsRefused("no TLS"), "no TLS"),
        (ConnectionResetError("reset"), ""),
        (asyncpg.CannotConnectNowError("starting up"), ""),
    ],
)
def test_a_rejection_is_told_from_what_may_pass(cause: Exception, expected: str) -> None:
    """A password stays wrong; a starting server will answer."""
    error = WarmstackError("It failed.", why="so", todo=["mend it"])
    error.__cause__ = cause

    assert rejection(error) == expected


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SELECT 1", "SELECT 1"),
        ("ALTER DATABASE a SET app.key TO 'it''s'", "ALTER DATABASE a SET app.key TO '***'"),
        ("CREATE ROLE a PASSWORD 'secret' LOGIN", "CREATE ROLE a PASSWORD '***' LOGIN"),
        (
            "COMMENT ON DATABASE a IS '" + "x" * 400,
            "COMMENT ON DATABASE a IS '" + "x" * 274 + " ...",
        ),
    ],
)
def test_a_statement_shows_no_secret_and_is_short(statement: str, expected: str) -> None:
    """The values of a project's settings may be secret."""
    assert masked(statement) == expected
