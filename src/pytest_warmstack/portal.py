"""One background thread with one event loop, so that synchronous rooms can use async drivers.

The test's own loop is never touched: nothing made here may be handed to a test.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


class Portal:
    """The door to the background loop; the thread starts with the first call."""

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

        The deadline is *function*'s own: it is the one that can say what it was waiting for.
        When the wait is interrupted, by Ctrl-C say, *function* is cancelled.
        """
        future = self.submit(function, *args, **kwargs)
        try:
            return future.result()
        except BaseException:
            future.cancel()
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
                # Not the policy's, which the user may have set: its own loop is one that writes
                # at once what it is given, which `Maintenance.post` relies on.
                self._loop = asyncio.SelectorEventLoop()
                self._thread = threading.Thread(
                    target=self._run, args=(self._loop,), name="warmstack-portal", daemon=True
                )
                self._thread.start()
            return self._loop

    @staticmethod
    def _run(loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        loop.run_forever()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
