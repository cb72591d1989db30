"""Parts of the standard library, and variables, as they were before something replaced them.

Tests freeze the clock, block sockets, and replace `time.sleep`, `os.urandom` or
`threading.Thread`. Code that runs beside tests uses the names of this module, which is imported
with the plugin.

freezegun replaces each attribute of each module that is a function of `time` (freezegun's api.py,
`start`), so the clock is wrapped in a `partial`. time-machine changes the functions of `time` in
place, but `clock_gettime` only for the time of day (time-machine's _time_machine.c).
"""

from __future__ import annotations

import os
import socket
import threading
import time
from functools import partial
from typing import Any

monotonic = partial(time.clock_gettime, time.CLOCK_MONOTONIC)
"""Return seconds that never go back, counted from an arbitrary moment."""

sleep = partial(time.sleep)
urandom = os.urandom
getpid = os.getpid
Thread = threading.Thread
getaddrinfo = socket.getaddrinfo

variables: dict[str, str | None] = {}
"""The variables that `warmstack_env` has set in this process, with their values before."""

_EPOCH = time.time() - monotonic()


def now() -> float:
    """Return the real time of day in seconds since the epoch."""
    return _EPOCH + monotonic()


class Socket(socket.socket):
    """A socket that can connect and send even if a test blocks all other sockets."""

    connect = socket.socket.connect
    connect_ex = socket.socket.connect_ex
    send = socket.socket.send
    sendall = socket.socket.sendall
    recv = socket.socket.recv
    recv_into = socket.socket.recv_into


def are_sockets_replaced() -> bool:
    """Return whether something replaces sockets now, as a plugin that blocks them does."""
    return socket.socket not in Socket.__bases__ or socket.socket.connect is not Socket.connect


def addresses(host: str, port: int, flags: int = 0) -> list[Any]:
    """Return the addresses of *host* as `socket.getaddrinfo` does."""
    # For a text, Python imports its codec for international names.
    name = host.encode() if host.isascii() else host
    return getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=flags)


def create_connection(host: str, port: int, seconds: float) -> Socket:
    """Return a socket connected to *host*; each operation may take *seconds*.

    It tries all addresses of the host, and raises the OSError of the last one.
    """
    failure = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in addresses(host, port):
        connection = Socket(family, kind, protocol)
        try:
            connection.settimeout(seconds)
            connection.connect(address)
        except OSError as error:
            connection.close()
            failure = error
        else:
            return connection
    raise failure
