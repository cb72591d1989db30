"""Parts of the standard library as they were before a test could replace them.

Tests freeze the clock, block sockets, and replace `time.sleep`, `os.urandom` or
`threading.Thread`. What the plugin does between, behind or beside tests uses the names of this
module, which is imported with the plugin.

The clock is wrapped in a `partial`: freezegun replaces every attribute of every module that is one
of the functions of `time` itself (freezegun's api.py, `start`). It is `clock_gettime`, since
time-machine changes the functions of `time` in place, but leaves this one alone unless it is asked
for the time of day (time-machine's _time_machine.c).
"""

from __future__ import annotations

import os
import socket
import threading
import time
from functools import partial

monotonic = partial(time.clock_gettime, time.CLOCK_MONOTONIC)
"""Return the seconds since some moment in the past; the number never goes back."""

sleep = partial(time.sleep)
urandom = os.urandom
getpid = os.getpid
Thread = threading.Thread
getaddrinfo = socket.getaddrinfo

_EPOCH = time.time() - monotonic()


def now() -> float:
    """Return the time of day in seconds since the epoch, also in a test that has frozen it."""
    return _EPOCH + monotonic()


class Socket(socket.socket):
    """A socket that connects and sends also where a test has blocked that for all others."""

    connect = socket.socket.connect
    connect_ex = socket.socket.connect_ex
    send = socket.socket.send
    sendall = socket.socket.sendall
    recv = socket.socket.recv
    recv_into = socket.socket.recv_into


def create_connection(host: str, port: int, seconds: float) -> Socket:
    """Return a socket that is connected to *host*, whose operations take *seconds* at most.

    Tries all addresses of the host in turn. Raises OSError: that of the last address.
    """
    failure = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in getaddrinfo(host, port, type=socket.SOCK_STREAM):
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
