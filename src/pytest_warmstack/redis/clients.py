"""Redis clients for tests: each of their connections belongs to the loop that it was opened in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from pytest_warmstack import loops
from pytest_warmstack.unawaited import Begun, watch


@asynccontextmanager
async def client(url: str, begun: Begun) -> AsyncIterator[Redis]:
    """Give a client, and close it with all its connections at the end, whoever opened them.

    *begun* is told what it begins.
    """
    client: Redis = watch(_Client.from_url(url), "redis_client", begun)
    pool = client.connection_pool
    pool.connection_class = _loop_bound(pool.connection_class)
    yield client
    await client.aclose()


class _Client(Redis):
    """A client whose pipelines are watched as it is."""

    def pipeline(self, *args: Any, **kwargs: Any) -> Pipeline:
        _, begun = vars(self)["_warmstack_begun"]
        return watch(super().pipeline(*args, **kwargs), "redis_client.pipeline()", begun)


def _loop_bound(base: Any) -> Any:
    """Return a class of connections like *base* that come to no harm in another event loop.

    There the connection is ended without its loop, and opened again if it is needed.
    """

    class LoopBound(base):  # type: ignore[misc]
        _warmstack_loop: asyncio.AbstractEventLoop | None = None

        async def connect(self) -> None:
            self._leave_other_loop()
            await super().connect()
            self._warmstack_loop = asyncio.get_running_loop()

        async def disconnect(self, *args: Any, **kwargs: Any) -> None:
            self._leave_other_loop()
            await super().disconnect(*args, **kwargs)

        def _leave_other_loop(self) -> None:
            loop, writer = self._warmstack_loop, getattr(self, "_writer", None)
            if writer is not None and loop is not None and not loops.is_here(loop):
                # As its own `disconnect` leaves it (redis-py's asyncio/connection.py).
                self._reader = self._writer = None
                # The writer has to be there until then: one that is collected first warns.
                loops.end(loop, writer.transport, lambda: writer.transport.abort())

    return LoopBound
