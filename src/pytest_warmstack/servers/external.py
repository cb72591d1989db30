"""Servers that somebody else runs: a CI service, one for many machines, a managed one.

They are connected to and used as ours are, and never started, stopped or removed.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from pytest_warmstack import originals
from pytest_warmstack.servers import answers
from pytest_warmstack.servers.errors import ServerFailed
from pytest_warmstack.servers.identity import Label, Service
from pytest_warmstack.servers.lifecycle import POLL_INTERVAL
from pytest_warmstack.servers.model import (
    C,
    Endpoint,
    NotOurs,
    NotReady,
    RunContext,
    Server,
    ServerInfo,
    ServerSpec,
)
from pytest_warmstack.settings import RuntimeName

_FIRST: Final = 1.0
"""Seconds that the first attempt may take before it is looked at who answers there."""

_FOR_GOOD: Final = {
    socket.EAI_NONAME,
    getattr(socket, "EAI_NODATA", socket.EAI_NONAME),  # Not every C library has it.
    socket.EAI_FAIL,
}
"""The faults of a name that no later attempt will mend; a server of names may answer later."""

_POOLERS: Final = ("no such database", "no such user", "authentication failed", "auth failed")
"""What PgBouncer says of what will not pass, with the SQLSTATE of what may."""

_PORTS: Final = {Service.POSTGRES: 5432, Service.REDIS: 6379}


class External:
    """The runtime `external`."""

    name = RuntimeName.EXTERNAL

    def __init__(self, run_context: RunContext, say: Callable[[str], None]) -> None:
        self._seconds = run_context.start_timeout
        # A command works for no run: it only looks.
        self._looks = not run_context.run
        self._say = say

    def ensure(self, spec: ServerSpec[C]) -> Server[C]:
        """Return the server at the URL of *spec*, as soon as it answers: it may be starting."""
        endpoint = replace(endpoint_of(spec), looks=self._looks)
        client = self._connected(spec, endpoint)
        return ServerInfo(
            runtime=self.name,
            id=endpoint.place,
            name=endpoint.place,
            labels={Label.SERVICE: spec.service},
            endpoint=client.endpoint,
            what=f"as {endpoint.user}" if endpoint.user else "",
            state="running",
        ).ready(spec, client, "connected")

    def _connected(self, spec: ServerSpec[C], endpoint: Endpoint) -> C:
        deadline = originals.monotonic() + self._seconds
        first = True
        facts = {"title": spec.title, "place": endpoint.place, "variable": spec.url_variable}
        while True:
            left = max(
                round(deadline - originals.monotonic(), 1), POLL_INTERVAL
            )  # It is in the message.
            try:
                return spec.connect(endpoint, "", min(left, _FIRST) if first else left)
            except UnicodeError as error:  # That of IDNA: no name of a host looks like this.
                raise _unknown(facts, endpoint, error) from error
            except (NotOurs, NotReady) as refusal:
                _see_that_it_may_come(facts, endpoint, refusal)
                left = deadline - originals.monotonic()
                if first:
                    found = answers.who(
                        endpoint.host, endpoint.port, max(min(left, 3.0) / 3, POLL_INTERVAL)
                    )
                    _see_that_it_is_meant(facts, endpoint, found, spec.service)
                if isinstance(refusal, NotOurs):
                    raise ServerFailed.rejected(**facts, cause=str(refusal)) from refusal
                if left <= 0:
                    raise ServerFailed.unreachable(
                        **facts, seconds=self._seconds, cause=str(refusal)
                    ) from refusal
                if first:
                    self._say(f"waiting up to {self._seconds:g} s for {spec.title}: {refusal}")
                    first = False
            originals.sleep(POLL_INTERVAL)


def _see_that_it_may_come(facts: dict[str, str], endpoint: Endpoint, refusal: Exception) -> None:
    """Raise `ServerFailed` if *refusal* comes of something that no later attempt will mend."""
    if any(words in str(refusal) for words in _POOLERS):
        raise ServerFailed.rejected(**facts, cause=str(refusal)) from refusal
    for cause in _causes(refusal):
        if isinstance(cause, ConnectionRefusedError):
            words = os.strerror(errno.ECONNREFUSED)
            raise ServerFailed.not_listening(**facts, cause=words) from refusal
        if isinstance(cause, socket.gaierror) and cause.errno in _FOR_GOOD:
            raise _unknown(facts, endpoint, cause) from refusal
        if isinstance(refusal, NotOurs):
            continue  # It names a file by itself.
        if isinstance(cause, (FileNotFoundError, IsADirectoryError, PermissionError)):
            words = f"a file that the URL names, or the address, can't be used: {cause.strerror}"
            raise ServerFailed.rejected(**facts, cause=words) from refusal


def _see_that_it_is_meant(
    facts: dict[str, str], endpoint: Endpoint, found: str, service: Service
) -> None:
    """Raise `ServerFailed` if what was *found* at *endpoint* is not what the URL says."""
    if service is Service.POSTGRES:
        wanted, other = {answers.POSTGRES}, set()
    else:
        wanted = {answers.REDIS}
        other = {answers.TLS_REDIS, answers.TLS, answers.TLS_BOTH}
        if endpoint.scheme == "rediss":
            wanted, other = other, wanted
    if found == answers.NONE:
        cause = "connections are accepted, and closed without an answer"
        raise ServerFailed.not_listening(**facts, cause=cause)
    if found == answers.TLS_BOTH and found in wanted:
        cause = "it demands a certificate: name it in the URL, ?ssl_certfile=FILE&ssl_keyfile=FILE"
        raise ServerFailed.rejected(**facts, cause=cause)
    if found in other:
        raise ServerFailed.wrong_tls(**facts, scheme=endpoint.scheme)
    if found not in wanted | {answers.UNKNOWN}:
        raise ServerFailed.another(**facts, found=found)


def _unknown(facts: dict[str, str], endpoint: Endpoint, error: Exception) -> ServerFailed:
    title, variable = facts["title"], facts["variable"]
    cause = getattr(error, "strerror", None) or str(error)
    return ServerFailed.unknown_host(
        title=title, host=endpoint.host, variable=variable, cause=cause
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield *error* and what it came of."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def endpoint_of(spec: ServerSpec[Any]) -> Endpoint:
    """Return where the URL of *spec* leads."""
    parts = urlsplit(spec.url)
    is_redis = spec.service is Service.REDIS
    return Endpoint(
        host=parts.hostname or "",
        port=parts.port or _PORTS[spec.service],
        password=unquote(parts.password or ""),
        user=unquote(parts.username or ""),
        scheme=parts.scheme if is_redis else "",
        # What libpq does as well when nothing is said.
        query=parts.query if is_redis else parts.query or "sslmode=prefer",
    )
