"""How a server that is on its way out is told, where only the driver can make the fault."""

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
        """Return what the server said of itself."""
        return SimpleNamespace(server_version="18.0")

    def get_server_pid(self) -> int:
        """Return the number of its backend."""
        return 1

    def get_server_version(self) -> Any:
        """Return the newest one."""
        return asyncpg.types.ServerVersion(18, 0, 0, "final", 0)

    async def fetch(self, *_: object, **__: object) -> None:
        """Fail as the driver does."""
        raise self.error

    def add_termination_listener(self, _: object) -> None:
        """Ignore it: the end is not announced."""

    def is_closed(self) -> bool:
        """Return False: the driver does not know yet."""
        return False

    def terminate(self) -> None:
        """End it."""


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
        # Met when `warmstack status` looked at a server that another run was just removing.
        asyncpg.InternalClientError("cannot switch to state 12; another operation (2)"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_server_that_ends_as_it_is_greeted_is_not_ready(
    background: BackgroundLoop, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """So whoever looks at many servers goes on with the next one."""

    async def connect(*_: object) -> Leaving:
        return Leaving(error)

    monkeypatch.setattr(connections, "connect_raw", connect)
    place = Endpoint(host="127.0.0.1", port=1, password="")

    with pytest.raises(NotReady, match=r"^127\.0\.0\.1:1: "):
        Databases.connect(place, "0123456789abcdef", background=background, timeout=1)
