"""Event loops: the plugin's own in a background thread, and those of the tests.

Synchronous code uses async drivers on the background loop. That loop never touches the loops of
tests, and tests can't affect it, even if they freeze the clock or block sockets.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import AsyncExitStack, suppress
from socket import AI_NUMERICHOST, gaierror
from typing import Any, Final, ParamSpec, TypeVar

from pytest_warmstack import originals
from pytest_warmstack.errors import WarmstackError

T = TypeVar("T")
P = ParamSpec("P")

CALL_TIMEOUT: Final = 900.0
"""Seconds after which `BackgroundLoop.call` gives up.

Every function that it runs has a shorter timeout, with an error that says what it waited for.
"""

OTHER_LOOP_TIMEOUT: Final = 0.25
"""Seconds that the loop of another thread may take to end a connection."""

_JOIN_TIMEOUT: Final = 5.0
"""Seconds that the thread may take to end."""


async def sleep(seconds: float) -> None:
    """Sleep on the running loop, even if a test has replaced `asyncio.sleep`."""
    loop = asyncio.get_running_loop()
    wake = asyncio.Event()
    timer = loop.call_later(seconds, wake.set)
    try:
        await wake.wait()
    finally:
        timer.cancel()


class BackgroundLoop:
    """An event loop in a thread. The thread starts with the first call."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._opening = threading.Lock()

    def submit(
        self, function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]:
        """Start *function* on the loop and return its future immediately."""
        with self._opening:
            if self._loop is None:
                self._loop = _Loop()
                self._thread = originals.Thread(
                    target=self._run, args=(self._loop,), name="warmstack-background", daemon=True
                )
                self._thread.start()
        return asyncio.run_coroutine_threadsafe(function(*args, **kwargs), self._loop)

    def call(
        self, function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run *function* on the loop and return its result.

        If Ctrl-C or another exception interrupts the wait, *function* is cancelled. Raises
        `BackgroundFailed` after `CALL_TIMEOUT`.
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

    def cancel(self) -> None:
        """Cancel what runs on the loop now; threads that wait for it get a `CancelledError`."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(lambda: [each.cancel() for each in asyncio.all_tasks(loop)])

    def close(self) -> None:
        """Cancel what still runs on the loop, and end the thread. You can close twice."""
        if self._loop is None or self._thread is None or self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_JOIN_TIMEOUT)

    @staticmethod
    def _run(loop: asyncio.AbstractEventLoop) -> None:
        loop.run_forever()
        if tasks := asyncio.all_tasks(loop):
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that no test can freeze, block or replace.

    It ignores the event loop policy: asyncio's own loop writes data immediately, and
    `Connection.post` relies on that.
    """

    def time(self) -> float:
        """Return the time that timers use."""
        return originals.monotonic()

    async def create_connection(  # type: ignore[override]
        self, protocol_factory: Any, host: str, port: int, **options: Any
    ) -> Any:
        """Connect like any loop, with a socket that a test can't block."""
        failure = OSError(f"{host} has no address")
        for family, kind, protocol, _, address in await self._addresses(host, port):
            sock = originals.Socket(family, kind, protocol)
            try:
                sock.settimeout(0)  # `sock_connect` requires it.
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
        with suppress(gaierror):
            return originals.addresses(host, port, AI_NUMERICHOST)
        # Only a name needs a thread to look it up.
        return await self.run_in_executor(None, originals.addresses, host, port)


def is_background(loop: object) -> bool:
    """Return whether *loop* is the plugin's own."""
    return isinstance(loop, _Loop)


class BackgroundFailed(WarmstackError):
    """Work in the background did not finish."""

    @classmethod
    def stuck(cls, *, function: str, seconds: float) -> BackgroundFailed:
        """*function* did not finish within *seconds*."""
        return cls(
            f"The background work of pytest-warmstack did not finish within {seconds:g} seconds.",
            why=f"{function} was still running",
            todo=[
                "run again; if it happens again, report a bug with this message",
                "if a test forks, or stops threads, run it in a subprocess",
            ],
        )


# The event loops of tests: a test may use its client in several loops, and only the loop that
# opened a connection can close it.


def is_running_here(loop: asyncio.AbstractEventLoop | None) -> bool:
    """Return whether *loop* runs the calling code."""
    try:
        return loop is asyncio.get_running_loop()
    except RuntimeError:
        return False


def end_transport(
    loop: asyncio.AbstractEventLoop, transport: Any, terminate: Callable[[], object]
) -> None:
    """Call *terminate*, which ends *transport*, in a way that suits the state of its *loop*.

    A web framework's test client, a thread or `asyncio.run` opens connections in a loop that may be
    closed, or run in another thread, when the test ends.
    """
    if loop.is_running() and not is_running_here(loop):
        ended = threading.Event()

        def end() -> None:
            terminate()
            ended.set()

        with suppress(RuntimeError):  # The loop has just been closed.
            loop.call_soon_threadsafe(end)
            # Otherwise SQLAlchemy closes the connection first, in the wrong loop.
            if ended.wait(OTHER_LOOP_TIMEOUT):
                return
    if loop.is_closed():
        with suppress(RuntimeError):  # "Event loop is closed": it can't schedule the last step.
            terminate()
        _close_socket(transport)
    elif not loop.is_running() or is_running_here(loop):
        terminate()


def _close_socket(transport: Any) -> None:
    """Close the socket of *transport* and inform its protocol, which its closed loop can't do.

    asyncio schedules this as the last step of the transport's end (its selector_events.py). uvloop
    closes all transports together with the loop.
    """
    # With TLS, the transport of the socket is below it.
    inner = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None) or transport
    step = getattr(inner, "_call_connection_lost", None)
    if step is not None and getattr(inner, "_sock", None) is not None:
        with suppress(RuntimeError):  # Code that waits for an answer belongs to the closed loop.
            step(None)


class LoopOfTests:
    """An event loop of tests, for fixtures that are not coroutines, and what stays in it.

    *lasts* says whether tests share it. A coroutine as a fixture takes four times as long as a
    function, and a run of the loop before and after the test. So fixtures use `run` where they have
    to, and `at_end` where nothing between them can tell the difference. `kept` and `rollback` are
    the connections that stay; `closers` end what stays, in the loop. `has_later_end` says whether a
    fixture of this test, which is torn down later, calls `end_test`.
    """

    def __init__(self, *, lasts: bool) -> None:
        self.loop = asyncio.get_running_loop()
        self.kept: Any = None
        self.rollback: Any = None
        self.has_later_end = False
        self.closers: dict[str, Callable[[], object]] = {}
        self.lasts = lasts
        self._ends = AsyncExitStack()
        self._has_ends = False

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run *coroutine* in the loop, which must not be running, and return its result."""
        return self.loop.run_until_complete(coroutine)

    def at_end(self, end: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Call *end* in the loop before the next test; the last one is called first."""
        self._ends.push_async_callback(end)
        self._has_ends = True

    def end_test(self) -> None:
        """Do what `at_end` was told: now, or as late as possible."""
        if self.lasts and self._has_ends and not self.has_later_end:
            self.run(self.end())

    async def end(self) -> None:
        """Do what `at_end` was told. Raises the last error, after all was done."""
        self._has_ends = False
        await self._ends.aclose()

    async def close(self) -> None:
        """End the last test, and what stays."""
        try:
            await self.end()
        finally:
            for close in self.closers.values():
                close()


# Coroutines that a test made and never awaited: the test passes, although nothing happened.


class Begun:
    """Coroutines of a test's clients that have not started to run."""

    def __init__(self) -> None:
        self._all: list[tuple[str, Coroutine[Any, Any, Any]]] = []

    def add(self, name: str, coroutine: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        """Return *coroutine*, which a call of *name* has made."""
        self._all = [each for each in self._all if _is_new(each[1])]
        self._all.append((name, coroutine))
        return coroutine

    def forgotten(self) -> list[str]:
        """Close the coroutines that were never awaited, and return their names."""
        names = []
        for name, coroutine in self._all:
            if _is_new(coroutine) and not _has_task(coroutine):
                names.append(name)
                coroutine.close()
        self._all.clear()
        return names


def watch(client: T, name: str, begun: Begun) -> T:
    """Make *client*, called *name* in the test, add each coroutine that it makes to *begun*."""
    # A subclass: functions in the client's own attributes would make a reference cycle.
    cls: type[Any] = type(client)
    client.__class__ = _watching_class(cls)  # type: ignore[arg-type] # a class has a hash
    vars(client)["_warmstack_begun"] = name, begun
    return client


@functools.cache
def _watching_class(cls: type[Any]) -> type[Any]:
    methods = {
        name: _wrap_method(name, method)
        for name in dir(cls)
        if not name.startswith("_") and inspect.iscoroutinefunction(method := getattr(cls, name))
    }
    own = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls.__name__, (cls,), own | methods)


def _wrap_method(method: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """Return the method *original*, which also adds its coroutine to the client's `Begun`."""

    @functools.wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        name, begun = self._warmstack_begun
        text = f"{method}()"
        if method == "execute_command" and args:  # redis-py calls it for every command.
            command = str(args[0]).lower()
            text = f"{command}()" if hasattr(self, command) else f"{method}({args[0]!r})"
        return begun.add(f"{name}.{text}", original(self, *args, **kwargs))

    # Mocks check which methods of the client are asynchronous.
    if sys.version_info >= (3, 12):
        inspect.markcoroutinefunction(call)
    else:
        call._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]  # noqa: SLF001
    return call


def _is_new(coroutine: Coroutine[Any, Any, Any]) -> bool:
    return inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED


def _has_task(coroutine: Coroutine[Any, Any, Any]) -> bool:
    """Return whether a task has *coroutine*, but its loop stopped before the task began."""
    return any(isinstance(each, asyncio.Task) for each in gc.get_referrers(coroutine))
