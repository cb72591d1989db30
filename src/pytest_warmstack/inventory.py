"""Every server of ours that can be seen from here, with what it tells of itself. Read only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from pytest_warmstack import cleanup, server_specs
from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.servers.errors import ServerFull
from pytest_warmstack.servers.external import External
from pytest_warmstack.servers.identity import Label, Service
from pytest_warmstack.servers.model import NotOurs, NotReady, OwnRuntime, ServerInfo
from pytest_warmstack.settings import RuntimeName, Settings

_AT_ONCE: Final = 8
"""Servers that are asked at once."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A server: as its labels describe it, and as it describes itself, if it answers.

    *trouble* is why it does not. *used* is in epoch seconds, 0 if it can't tell; *users* counts
    the processes of ours that are connected; *memory* is in bytes, 0 when not known; *inside* is
    an `Overview` of PostgreSQL or of Redis.
    """

    found: ServerInfo
    version: str = ""
    used: float = 0.0
    users: int = 0
    memory: int = 0
    inside: Any = None
    trouble: str = ""


Refused = Callable[[str, WarmstackError], None]


def entries(background: BackgroundLoop, refused: Refused, only: str = "") -> Iterator[Entry]:
    """Yield every managed server, or those of the project in the folder *only*.

    Tell *refused* of runtimes that don't answer.
    """
    for runtime, listed in cleanup.reachable(refused):
        # An engine takes up to a second to tell what memory a container has.
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            meant = [found for found in listed if only in {"", found.path}]
            yield from pool.map(partial(_entry, runtime, background), meant)


def _entry(runtime: OwnRuntime, background: BackgroundLoop, found: ServerInfo) -> Entry:
    if not found.running:
        return Entry(found=found)
    memory = 0
    try:
        memory = runtime.memory(found)
        client = runtime.connect(server_specs.make(found.service, Settings(), background), found)
    except (NotReady, NotOurs) as error:
        return Entry(found=found, memory=memory, trouble=str(error))
    except ServerFull as error:
        return Entry(found=found, memory=memory, trouble=error.what)
    except WarmstackError as error:
        return Entry(found=found, memory=memory, trouble=error.line)
    return looked_into(found, client, memory)


def looked_into(found: ServerInfo, client: Any, memory: int = 0) -> Entry:
    """Return what the server behind *client* tells of itself; the client is then closed."""
    try:
        return Entry(
            found=found,
            version=client.version,
            used=client.used(),
            users=client.users(),
            memory=memory,
            inside=server_specs.look(found.service, client),
        )
    except WarmstackError as error:
        return Entry(found=found, memory=memory, trouble=error.line)
    finally:
        client.close()


def external(
    settings: Settings, background: BackgroundLoop, say: Callable[[str], None]
) -> Iterator[Entry]:
    """Yield the servers that somebody else runs, as *settings* name them."""
    for service in Service:
        spec = server_specs.make(service, settings, background)
        if not spec.url:
            continue
        found = ServerInfo(
            runtime=RuntimeName.EXTERNAL,
            id="",
            name="",
            running=True,
            labels={Label.SERVICE: service},
            state="running",
        )
        try:
            server = External(cleanup.RUN_CONTEXT, say).ensure(spec)
        except WarmstackError as error:
            yield Entry(found=found, trouble=error.line)
        else:
            found = found._replace(name=server.endpoint.place, what=server.what)
            yield looked_into(found, server.client)
