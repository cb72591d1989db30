"""Lists all servers that are visible from here, and what each reports. Changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from pytest_warmstack import cleanup, server_specs
from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.options import RuntimeName, Settings
from pytest_warmstack.servers.errors import ServerFull
from pytest_warmstack.servers.external import External
from pytest_warmstack.servers.identity import Label, Service
from pytest_warmstack.servers.model import NotOurs, NotReady, OwnRuntime, ServerInfo

_MAX_THREADS: Final = 8
"""How many servers are queried at the same time."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A server and what it reports; if it doesn't answer, *trouble* is the reason.

    For an external server, *todo* is the likeliest cure then. *used* is the last use, in seconds
    since the epoch, and *memory* is in bytes; 0 means unknown. *users* is the number of connected
    processes with this plugin. *inside* is the `Overview` of PostgreSQL or Redis.
    """

    found: ServerInfo
    version: str = ""
    used: float = 0.0
    users: int = 0
    memory: int = 0
    inside: Any = None
    trouble: str = ""
    todo: str = ""


def entries(
    background: BackgroundLoop, refused: cleanup.Refused, only: str = ""
) -> Iterator[Entry]:
    """Yield every managed server, or those of the project in the folder *only*.

    Calls *refused* for each runtime that doesn't answer.
    """
    for runtime, listed in cleanup.reachable(refused):
        # An engine takes up to a second to report the memory of a container.
        with ThreadPoolExecutor(_MAX_THREADS) as pool:
            meant = [found for found in listed if only in {"", found.path}]
            yield from pool.map(partial(_entry, runtime, background), meant)


def _entry(runtime: OwnRuntime, background: BackgroundLoop, found: ServerInfo) -> Entry:
    if not found.running:
        return Entry(found=found)
    memory = 0
    try:
        memory = runtime.memory(found)
        spec = server_specs.make(found.service, Settings(), background)
        return _inspect(found, runtime.connect(spec, found), memory)
    except (NotReady, NotOurs, WarmstackError) as error:
        return Entry(found=found, memory=memory, trouble=_reason(error))


def _reason(error: Exception) -> str:
    if isinstance(error, ServerFull):
        return error.what
    return error.line if isinstance(error, WarmstackError) else str(error)


def _inspect(found: ServerInfo, client: Any, memory: int = 0) -> Entry:
    """Return what the server of *client* reports, and close the client."""
    try:
        return Entry(
            found=found,
            version=client.version,
            used=client.used(),
            users=client.users(),
            memory=memory,
            inside=server_specs.look(found.service, client),
        )
    finally:
        client.close()


def external(
    settings: Settings, background: BackgroundLoop, say: Callable[[str], None]
) -> Iterator[Entry]:
    """Yield the external servers that *settings* name."""
    for service in Service:
        spec = server_specs.make(service, settings, background)
        if not spec.url:
            continue
        found = ServerInfo(
            runtime=RuntimeName.EXTERNAL,
            id="",
            name="",
            labels={Label.SERVICE: service},
            state="running",
        )
        try:
            found = server = External(cleanup.RUN_CONTEXT, say).ensure(spec)
            yield _inspect(server, server.client)
        except WarmstackError as error:
            yield Entry(found=found, trouble=error.line, todo=error.todo[0])
