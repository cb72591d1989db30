"""Ends connections that were opened in another event loop, without a task in that loop.

A test client of a web framework, a thread or `asyncio.run` opens a connection in a loop of its own,
and that loop may be closed, or run in another thread, when the test ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any


def is_here(loop: asyncio.AbstractEventLoop | None) -> bool:
    """Tell whether *loop* is the one that runs the calling code."""
    try:
        return loop is asyncio.get_running_loop()
    except RuntimeError:
        return False


def end(loop: asyncio.AbstractEventLoop, transport: Any, terminate: Callable[[], object]) -> None:
    """Call *terminate*, which ends *transport*, as the state of its *loop* allows."""
    if loop.is_running() and not is_here(loop):
        with suppress(RuntimeError):  # It has been closed at this moment, and the server sees it.
            loop.call_soon_threadsafe(terminate)
    elif loop.is_closed():
        with suppress(RuntimeError):  # "Event loop is closed": the last step is scheduled there.
            terminate()
        _close(transport)
    else:
        terminate()


def _close(transport: Any) -> None:
    """Do the last step of a transport's end, which its closed loop can't do any more.

    That closes the socket, and tells the protocol (asyncio's selector_events.py). uvloop closes all
    its transports with the loop.
    """
    # Below TLS there is the transport of the socket.
    inner = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None) or transport
    step = getattr(inner, "_call_connection_lost", None)
    if step is not None and getattr(inner, "_sock", None) is not None:
        with suppress(RuntimeError):  # Whoever waits for an answer waits in the closed loop.
            step(None)
