"""One background thread with one event loop, so that synchronous code can use async drivers.

The test's own loop is never touched: nothing made here may be handed to a test. And nothing that a
test does to its own world reaches this loop: it has a clock and sockets of its own.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from socket import AI_NUMERICHOST, SOCK_STREAM, gaierror
from typing import Any, Final, ParamSpec, TypeVar

from pytest_warmstack import originals
from pytest_warmstack.errors import WarmstackError

T = TypeVar("T")
P = ParamSpec("P")

CALL_TIMEOUT: Final = 900.0
"""Seconds after which a call that has not ended is given up.

Whatever is called has a deadline of its own, which is shorter and can say what it waited for.
"""


async def sleep(seconds: float) -> None:
    """Sleep on the running loop, also where a test has replaced `asyncio.sleep`."""
    loop = asyncio.get_running_loop()
    wake = asyncio.Event()
    timer = loop.call_later(seconds, wake.set)
    try:
        await wake.wait()
    finally:
        timer.cancel()


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that no test can freeze, block or replace.

    It is not the one of the event loop policy: a loop of asyncio's own writes at once what it is
    given, which `Maintenance.post` relies on.
    """

    def time(self) -> float:
        """Return the time by which timers run."""
        return originals.monotonic()

    async def create_connection(  # type: ignore[override]
        self, protocol_factory: Any, host: str, port: int, **options: Any
    ) -> Any:
        """Connect like any loop, with a socket that a test can't block."""
        failure = OSError(f"{host} has no address")
        for family, kind, protocol, _, address in await self._addresses(host, port):
            sock = originals.Socket(family, kind, protocol)
            try:
                sock.settimeout(0)  # As an event loop wants it.
                await self.sock_connect(sock, address)
            except OSError as error:
                sock.close()
                failure = error
            except BaseException:
                sock.close()
                raise
            else:
                return await super().create_connection(protocol_factory, sock=sock, **options)
        raise failure

    async def _addresses(self, host: str, port: int) -> Any:
        resolve = partial(originals.getaddrinfo, host, port, type=SOCK_STREAM)
        with suppress(gaierror):
            return resolve(flags=AI_NUMERICHOST)
        # It is a name; only now a thread is worth while.
        return await self.run_in_executor(None, resolve)


class BackgroundLoop:
    """The way to the background loop; its thread starts with the first call."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._opening = threading.Lock()

    def submit(
        self,
        function: Callable[P, Coroutine[Any, Any, T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Future[T]:
        """Start *function* on the background loop and return its future at once."""
        return asyncio.run_coroutine_threadsafe(function(*args, **kwargs), self._opened())

    def call(
        self,
        function: Callable[P, Coroutine[Any, Any, T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run *function* on the background loop and return its result.

        *function* has a deadline of its own. When the wait is interrupted, by Ctrl-C for example,
        *function* is cancelled. Raises `BackgroundFailed` after `CALL_TIMEOUT`.
        """
        future = self.submit(function, *args, **kwargs)
        try:
            return future.result(CALL_TIMEOUT)
        except BaseException as error:
            is_stuck = isinstance(error, TimeoutError) and not future.done()
            future.cancel()
            if is_stuck:
                name = getattr(function, "__qualname__", repr(function))
                raise BackgroundFailed.stuck(function=name, seconds=CALL_TIMEOUT) from error
            raise

    def close(self) -> None:
        """End the thread; what still runs on its loop is cancelled. Closing twice is fine."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None or loop.is_closed():
            return
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=5)

    def _opened(self) -> asyncio.AbstractEventLoop:
        with self._opening:
            if self._loop is None:
                self._loop = _Loop()
                self._thread = originals.Thread(
                    target=self._run, args=(self._loop,), name="warmstack-background", daemon=True
                )
                self._thread.start()
            return self._loop

    @staticmethod
    def _run(loop: asyncio.AbstractEventLoop) -> None:
        loop.run_forever()
        loop.run_until_complete(_cancel_all())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _cancel_all() -> None:
    """Cancel every other task of the running loop, and wait until they have ended."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class BackgroundFailed(WarmstackError):
    """Work in the background did not end."""

    @classmethod
    def stuck(cls, *, function: str, seconds: float) -> BackgroundFailed:
        """*function*, which this package runs in the background, did not end in *seconds*."""
        return cls(
            f"The background work of pytest-warmstack did not end within {seconds:g} seconds.",
            why=f"{function} was still running",
            todo=[
                "run again; if it happens again, report it with this message",
                "if a test forks, or stops threads, run it in a subprocess",
            ],
        )
