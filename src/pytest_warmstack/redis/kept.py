"""The socket of a test's connection to Redis, which stays open for the next test.

Opening a connection costs a test three to five round trips, and more of its own processor time
than its commands. A socket belongs to no event loop, so it can go on in the loop of the next test,
in a new connection of redis-py. Where tests share a loop, asyncio's streams go on with it. It stays
only if the server describes it as it describes a new connection.
"""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Mapping
from contextlib import suppress
from socket import MSG_DONTWAIT, MSG_PEEK
from typing import Any, Final

from pytest_warmstack import originals
from pytest_warmstack.background import end_transport

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


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class KeptSocket:
    """The socket of the last test's connection, if it is still like that of a new connection.

    One object is for all tests of a process, whatever their event loops are.
    """

    def __init__(self) -> None:
        self._socket: originals.Socket | None = None
        self._streams: Streams | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._url = ""
        self._parser: type[Any] | None = None
        self._pid = originals.getpid()

    async def keep(self, url: str, connection: Any, *, lasts: bool) -> None:
        """Keep the socket of *connection*, an idle one to *url*, when redis-py closes it.

        It must belong to the running event loop; *lasts* says whether that outlives the test. What
        the test left in the session of the server and no command undoes prevents it:
        subscriptions, a name, another database.
        """
        self.close()
        streams: Streams = connection._reader, connection._writer  # noqa: SLF001 - no public names
        # The state of TLS is not in the socket.
        plain = streams[1].get_extra_info("ssl_object") is None
        with suppress(Exception):
            if plain and await _is_like_new(connection):
                self._url, self._parser = url, type(connection._parser)  # noqa: SLF001
                if lasts:
                    self._streams, self._loop = streams, asyncio.get_running_loop()
                    connection._reader = connection._writer = None  # noqa: SLF001
                else:
                    self._socket = _copy(streams[1])

    async def open(self, url: str) -> tuple[Streams, type[Any]] | None:
        """Return streams and the class of a parser for a new connection to *url*, or None."""
        parser = self._parser
        if self._pid != originals.getpid() or originals.are_sockets_replaced() or parser is None:
            return None
        if self._streams is not None and self._loop is not asyncio.get_running_loop():
            self.leave_loop()
        streams, self._streams = self._streams, None
        sock, self._socket = self._socket, None
        if streams is not None:
            if self._url == url and _are_silent(*streams):
                return streams, parser
            streams[1].transport.abort()
        if sock is not None:
            if self._url == url and _is_silent(sock):
                try:
                    return await asyncio.open_connection(sock=sock), parser
                except BaseException:
                    sock.close()
                    raise
            sock.close()
        return None

    def leave_loop(self) -> None:
        """Keep only the socket: its event loop is about to end, or another one needs it."""
        streams, loop, self._streams, self._loop = self._streams, self._loop, None, None
        if streams is not None and loop is not None:
            with suppress(OSError):
                self._socket = _copy(streams[1])
            end_transport(loop, streams[1].transport, streams[1].transport.abort)

    def close(self) -> None:
        """Close the socket, if there is one."""
        self.leave_loop()
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _copy(writer: asyncio.StreamWriter) -> originals.Socket:
    return originals.Socket(fileno=os.dup(writer.get_extra_info("socket").fileno()))


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


def _are_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Return what `_is_silent` does, if the event loop may have read from the socket."""
    poll = select.poll()
    poll.register(writer.get_extra_info("socket"), select.POLLIN)
    read = reader._buffer or reader.at_eof() or reader.exception()  # type: ignore[attr-defined]  # noqa: SLF001
    return not (read or writer.is_closing() or poll.poll(0))


def _is_silent(sock: originals.Socket) -> bool:
    """Return whether the server has sent nothing: neither an answer nor the end."""
    try:
        sock.recv(1, MSG_PEEK | MSG_DONTWAIT)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
