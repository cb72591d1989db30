"""A server that ends while this process connects to it."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import asyncpg
import pytest

from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.postgres import connections
from pytest_warmstack.postgres.databases import Databases
from pytest_warmstack.servers.model import Endpoint, NotReady


class Leaving:
    """A connection to a server that ends between the greeting and the first statement."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def get_settings(self) -> Any:
        """Return the version as text."""
        return SimpleNamespace(server_version="18.0")

    def get_server_pid(self) -> int:
        """Return a pid."""
        return 1

    def get_server_version(self) -> Any:
        """Return the version."""
        return asyncpg.types.ServerVersion(18, 0, 0, "final", 0)

    async def fetch(self, *_: object, **__: object) -> None:
        """Fail like asyncpg."""
        raise self.error

    def add_termination_listener(self, _: object) -> None:
        """Do nothing."""

    def is_closed(self) -> bool:
        """Return False: asyncpg does not know yet."""
        return False

    def terminate(self) -> None:
        """Do nothing."""


@pytest.fixture
def background() -> Iterator[BackgroundLoop]:
    """The background loop."""
    background = BackgroundLoop()
    yield background
    background.close()


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError("reset"),
        TimeoutError(),
        asyncpg.ConnectionDoesNotExistError("closed in the middle"),
        asyncpg.InterfaceError("connection is closed"),
        # As when another run removes the server that `warmstack status` connects to.
        asyncpg.InternalClientError("cannot switch to state 12; another operation (2)"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_server_that_ends_as_it_is_greeted_is_not_ready(
    background: BackgroundLoop, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """`warmstack status` then goes on with the next server."""

    async def connect(*_: object) -> Leaving:
        return Leaving(error)

    monkeypatch.setattr(connections, "connect_raw", connect)
    place = Endpoint(host="127.0.0.1", port=1, password="")

    with pytest.raises(NotReady, match=r"^127\.0\.0\.1:1: "):
        Databases.connect(place, "0123456789abcdef", background=background, timeout=1)
