"""The socket of a test's connection to Redis, which stays open for the next test.

Opening a connection costs a test three to five round trips, and more of its own processor time
than its commands. A socket belongs to no event loop, so it can go on in the loop of the next test,
in a new connection of redis-py. It stays only if the server describes it as it describes a new
connection.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress
from socket import MSG_DONTWAIT, MSG_PEEK
from typing import Any, Final

from pytest_warmstack import originals

ANSWER_TIMEOUT: Final = 1.0
"""Seconds that the server may take to describe a connection; afterwards it is closed."""

_NEW: Final[Mapping[str, str]] = {
    "flags": "N",
    "sub": "0",
    "psub": "0",
    "ssub": "0",
    "watch": "0",
    "redir": "-1",
}
"""What CLIENT INFO shows of a new connection; older versions show less."""

_ALWAYS: Final = frozenset({"flags", "sub", "psub", "redir", "name", "db", "user"})
"""What every supported version shows."""


class KeptSocket:
    """The socket of the last test's connection, if it is still like that of a new connection.

    One object is for all tests of a process, whatever their event loops are.
    """

    def __init__(self) -> None:
        self._socket: originals.Socket | None = None
        self._url = ""
        self._parser: type[Any] | None = None
        self._pid = originals.getpid()

    async def keep(self, url: str, connection: Any) -> None:
        """Keep the socket of *connection*, an idle one to *url*, when redis-py closes it.

        It must belong to the running event loop. What the test left in the session of the server
        and no command undoes prevents it: subscriptions, a name, another database.
        """
        self.close()
        # The state of TLS is not in the socket.
        plain = connection._writer.get_extra_info("ssl_object") is None  # noqa: SLF001 - no public name
        with suppress(Exception):
            if plain and await _is_like_new(connection):
                original = connection._writer.get_extra_info("socket")  # noqa: SLF001
                self._socket = originals.Socket(fileno=os.dup(original.fileno()))
                self._url, self._parser = url, type(connection._parser)  # noqa: SLF001

    def take(self, url: str) -> tuple[originals.Socket, type[Any]] | None:
        """Return the socket and the class of its parser for a new connection to *url*, or None."""
        if self._pid != originals.getpid() or originals.are_sockets_replaced():
            return None
        sock, parser, self._socket = self._socket, self._parser, None
        if sock is None or parser is None:
            return None
        if self._url == url and _is_silent(sock):
            return sock, parser
        sock.close()
        return None

    def close(self) -> None:
        """Close the socket, if there is one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


async def _is_like_new(connection: Any) -> bool:
    """Return whether the server describes *connection* as it describes a new one."""
    commands = connection.pack_commands([("UNWATCH",), ("CLIENT", "INFO")])
    async with asyncio.timeout(ANSWER_TIMEOUT):
        await connection.send_packed_command(commands)
        await connection.read_response()
        answer = await connection.read_response()
    text = answer.decode() if isinstance(answer, bytes) else str(answer)
    found = dict(each.partition("=")[::2] for each in text.split())
    # The objects of redis-py 5 have the name of the library itself.
    driver = getattr(connection, "driver_info", connection)
    name = getattr(driver, "formatted_name", None) or getattr(driver, "lib_name", None)
    wanted = {
        **_NEW,
        "name": connection.client_name or "",
        "db": str(connection.db or 0),
        "user": connection.username or "default",
        "resp": str(connection.protocol or 2),
        "lib-name": name or "",
        "lib-ver": getattr(driver, "lib_version", None) or "",
    }
    # In a transaction, the answer is QUEUED.
    return found.keys() >= _ALWAYS and all(
        found.get(key, value) == value for key, value in wanted.items()
    )


def _is_silent(sock: originals.Socket) -> bool:
    """Return whether the server has sent nothing: neither an answer nor the end."""
    try:
        sock.recv(1, MSG_PEEK | MSG_DONTWAIT)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
