"""What all runtimes do with managed servers: wait until they are ready, and replace them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from socket import SO_REUSEADDR, SOL_SOCKET
from typing import Any, Final

from pytest_warmstack import originals
from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.servers.errors import AddressLost, ServerFailed, ServerFull
from pytest_warmstack.servers.identity import changes, fingerprint
from pytest_warmstack.servers.model import (
    C,
    Client,
    Endpoint,
    NotOurs,
    NotReady,
    OwnRuntime,
    RunContext,
    ServerInfo,
    ServerSpec,
    version_of,
)

LOOPBACK: Final = "127.0.0.1"

_PORTS: Final = range(20000, 30000)
"""Ports that systems don't give to outgoing connections: Linux begins at 32768."""

POLL_INTERVAL: Final = 0.05
"""Seconds between two attempts to query a server that is starting."""


def wait_ready(
    spec: ServerSpec[C],
    endpoint: Endpoint,
    fingerprint: str,
    *,
    runtime: str,
    seconds: float,
    death: Callable[[], str | None],
    log: Callable[[], str],
) -> C:
    """Return the client of a server as soon as it answers a query.

    *death* returns how the server ended, or None while it runs; *log* returns its last lines.
    Raises `ServerFailed` if the server ends, or doesn't answer within *seconds*.
    """
    deadline = originals.monotonic() + seconds
    while True:
        left = deadline - originals.monotonic()
        try:
            client = spec.connect(endpoint, fingerprint, max(left, POLL_INTERVAL))
        except NotReady as refusal:
            cause = refusal
        else:
            check_version(spec, client, runtime)
            return client
        if (how := death()) is not None:
            raise ServerFailed.died(title=spec.title, how=how, log=log()) from cause
        if originals.monotonic() >= deadline:
            raise ServerFailed.too_slow(
                title=spec.title, seconds=seconds, cause=str(cause), log=log()
            ) from cause
        originals.sleep(POLL_INTERVAL)


def check_version(spec: ServerSpec[Any], client: Client, runtime: str) -> None:
    """If the server doesn't have the wanted version, close *client* and raise `ServerFailed`."""
    versions = (client.version, client.also.rpartition(" ")[2])
    wanted = spec.wanted_major(runtime)
    if wanted is not None and str(wanted) not in {each.partition(".")[0] for each in versions}:
        client.close()
        raise ServerFailed.wrong_version(
            title=spec.title, found=version_of(client), wanted=f"version {wanted}"
        )


def free_port(seed: str | bytes, taken: Collection[int] = ()) -> int:
    """Return a port of `LOOPBACK` that is free and not *taken*: for the same *seed* the same."""
    first = int(fingerprint(seed), 16)
    ports = (_PORTS[(first + step) % len(_PORTS)] for step in range(len(_PORTS)))
    return next(port for port in ports if port not in taken and is_free(port))


def own_port(run_context: RunContext, spec: ServerSpec[Any]) -> int | None:
    """Return the port that the project's kept server has each time, if it is free; else None."""
    if spec.reserved is not None:
        return spec.reserved.port
    return free_port(f"{run_context.project.path} {spec.key}") if run_context.keep else None


def is_free(port: int) -> bool:
    """Return whether a server can listen on *port* of `LOOPBACK`."""
    try:
        with originals.Socket() as probe:
            # As servers do: a port whose last connections are just closed is free.
            probe.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
            probe.bind((LOOPBACK, port))
    except OSError:
        return False
    return True


def check_address(spec: ServerSpec[Any], client: Client) -> None:
    """If the server isn't at the address of *spec*, close *client* and raise `AddressLost`."""
    found, reserved = client.endpoint, spec.reserved
    if reserved is None or (found.port, found.password) == (reserved.port, reserved.password):
        return
    client.close()
    raise AddressLost.moved(title=spec.title, found=found.place, reserved=reserved.place)


def in_use(runtime: OwnRuntime, spec: ServerSpec[Any], found: ServerInfo) -> bool:
    """Return whether a process with this plugin is connected to the server."""
    if not found.running:
        return False
    try:
        client = runtime.connect(spec, found)
    except ServerFull:
        return True
    except (NotReady, NotOurs, ServerFailed):
        return False
    try:
        return bool(client.users())
    finally:
        client.close()


def remove_outdated(
    runtime: OwnRuntime, run_context: RunContext, spec: ServerSpec[Any]
) -> tuple[str, str]:
    """Remove unused servers of an earlier configuration.

    Returns what differs, and a line if a server could not be removed: that doesn't stop the run.
    """
    reason = trouble = ""
    current = run_context.name(spec, runtime.name)
    for found in runtime.list():
        if found.name == current or not run_context.owns(found, spec):
            continue
        try:
            if in_use(runtime, spec, found):
                continue
            runtime.remove(found)
        except WarmstackError as error:
            trouble = f"could not remove {found.name}: {error.line}"
        else:
            reason = ", ".join(changes(found.config, spec.config(runtime.name)))
    return reason, trouble
