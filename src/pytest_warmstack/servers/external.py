"""External servers: a CI service, a managed service, or one server for many machines.

The plugin uses them like its own servers, but never starts, stops or removes them.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from typing import Final, Self
from urllib.parse import unquote, urlsplit

from pytest_warmstack import originals
from pytest_warmstack.options import RuntimeName
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

_FIRST_TIMEOUT: Final = 1.0
"""Seconds for the first attempt to connect; then `answers` finds out what is there."""

_ANSWERS_TIMEOUT: Final = 3.0
"""Seconds that `answers` may take in all."""

_PERMANENT_DNS_ERRORS: Final = {
    socket.EAI_NONAME,
    getattr(socket, "EAI_NODATA", socket.EAI_NONAME),  # Not every C library has it.
    socket.EAI_FAIL,
}

_PERMANENT_POOLER_ERRORS: Final = (
    *("no such database", "no such user", "authentication failed", "auth failed"),
)
"""PgBouncer gives these answers the SQLSTATE of a failure that may pass."""

_PORTS: Final = {Service.POSTGRES: 5432, Service.REDIS: 6379}


class ExternalFailed(ServerFailed):
    """An external server can't be used. *variable* is the setting with its URL."""

    @classmethod
    def unreachable(
        cls, *, title: str, place: str, variable: str, seconds: float, cause: str
    ) -> Self:
        """The server does not answer within *seconds*."""
        return cls(
            f"{title} at {place} did not answer within {seconds:g} seconds.",
            why=cause,
            todo=[
                "check that the server runs, that this machine can reach it, and that it speaks "
                "TLS if and only if the URL says so (rediss:// for Redis)",
                _correct(variable),
                "or wait longer: WARMSTACK_START_TIMEOUT=SECONDS",
            ],
        )

    @classmethod
    def not_listening(cls, *, title: str, place: str, variable: str, cause: str) -> Self:
        """The host answers, but no server listens on the port."""
        return cls(
            f"Could not connect to {title} at {place}.",
            why=cause,
            todo=[
                "start the server; if it is still starting, wait for it before pytest: with a "
                "health check (docker compose up --wait), or with pg_isready or redis-cli ping",
                _correct(variable),
            ],
        )

    @classmethod
    def unknown_host(cls, *, title: str, place: str, variable: str, cause: str) -> Self:
        """The host has no address."""
        return cls(
            f"Could not resolve the host of {title} at {place}.",
            why=cause,
            todo=[
                "if the host is the name of a Compose service, use localhost: such a name works "
                "only in the service's own network",
                _correct(variable),
            ],
        )

    @classmethod
    def another(cls, *, title: str, place: str, variable: str, found: str) -> Self:
        """A server of another kind answers: *found*."""
        return cls(
            f"Expected {title} at {place}, but found {found}.",
            why=f"{variable} should be the URL of {title}",
            todo=[_correct(variable)],
        )

    @classmethod
    def wrong_tls(cls, *, title: str, place: str, variable: str, scheme: str) -> Self:
        """Redis uses TLS and the *scheme* of the URL does not, or the other way round."""
        is_tls, other = (True, "redis") if scheme == "rediss" else (False, "rediss")
        return cls(
            f"{title} at {place} {'does not speak' if is_tls else 'demands'} TLS.",
            why=f"the URL begins with {scheme}://, which means "
            f"{'with' if is_tls else 'without'} TLS",
            todo=[f"begin {variable} with {other}://", "or correct its port"],
        )

    @classmethod
    def rejected(cls, *, title: str, place: str, variable: str, cause: str) -> Self:
        """The server, or the client library, refuses the user, the password or the TLS options."""
        return cls(
            f"{title} at {place} rejected the connection.",
            why=cause,
            todo=[
                f"correct the user and the password in {variable}; write characters such as @ : / "
                "as %40 %3A %2F",
                "or correct its TLS options: ?sslmode=require or ?sslmode=disable for PostgreSQL, "
                "rediss:// for Redis",
            ],
        )


def _correct(variable: str) -> str:
    return f"correct {variable}, or remove it: pytest-warmstack then starts a server for you"


class External:
    """The runtime `external`."""

    name = RuntimeName.EXTERNAL

    def __init__(self, run_context: RunContext, say: Callable[[str], None]) -> None:
        self._seconds = run_context.start_timeout
        # A command is not a run: it only looks at the server.
        self._looks = not run_context.run
        self._say = say

    def ensure(self, spec: ServerSpec[C]) -> Server[C]:
        """Return the server at the URL of *spec*; wait if it is still starting."""
        endpoint = endpoint_of(spec.url, spec.service).replace(looks=self._looks)
        client = self._connect(spec, endpoint)
        return ServerInfo(
            runtime=self.name,
            id=endpoint.place,
            name=endpoint.place,
            labels={Label.SERVICE: spec.service},
            endpoint=client.endpoint,
            what=f"as {endpoint.user}" if endpoint.user else "",
            state="running",
        ).ready(spec, client, "connected")

    def _connect(self, spec: ServerSpec[C], endpoint: Endpoint) -> C:
        facts = {"title": spec.title, "place": endpoint.place, "variable": spec.url_variable}
        deadline = originals.monotonic() + self._seconds
        is_first = True
        while True:
            # Rounded, because it can be part of the message.
            left = max(round(deadline - originals.monotonic(), 1), POLL_INTERVAL)
            try:
                return spec.connect(endpoint, "", min(left, _FIRST_TIMEOUT) if is_first else left)
            except UnicodeError as error:  # The name of the host is not valid (IDNA).
                raise ExternalFailed.unknown_host(**facts, cause=str(error)) from error
            except (NotOurs, NotReady) as refusal:
                _check_permanent(facts, refusal)
                left = deadline - originals.monotonic()
                if is_first:
                    timeout = max(min(left, _ANSWERS_TIMEOUT) / 3, POLL_INTERVAL)
                    found = answers.who(endpoint.host, endpoint.port, timeout)
                    _check_found(facts, endpoint, found, spec.service)
                if isinstance(refusal, NotOurs):
                    raise ExternalFailed.rejected(**facts, cause=str(refusal)) from refusal
                if left <= 0:
                    raise ExternalFailed.unreachable(
                        **facts, seconds=self._seconds, cause=str(refusal)
                    ) from refusal
                if is_first:
                    self._say(f"waiting up to {self._seconds:g} s for {spec.title}: {refusal}")
                    is_first = False
            originals.sleep(POLL_INTERVAL)


def _check_permanent(facts: dict[str, str], refusal: Exception) -> None:
    """Raise `ExternalFailed` if the causes of *refusal* show that no later attempt can succeed."""
    if any(words in str(refusal) for words in _PERMANENT_POOLER_ERRORS):
        raise ExternalFailed.rejected(**facts, cause=str(refusal)) from refusal
    for cause in _causes(refusal):
        if isinstance(cause, ConnectionRefusedError):
            words = os.strerror(errno.ECONNREFUSED)
            raise ExternalFailed.not_listening(**facts, cause=words) from refusal
        if isinstance(cause, socket.gaierror) and cause.errno in _PERMANENT_DNS_ERRORS:
            words = cause.strerror or str(cause)
            raise ExternalFailed.unknown_host(**facts, cause=words) from refusal
        if isinstance(refusal, NotOurs):
            continue  # Its message names the file already.
        if isinstance(cause, (FileNotFoundError, IsADirectoryError, PermissionError)):
            words = (
                f"could not use the address, or open a file that the URL names: {cause.strerror}"
            )
            raise ExternalFailed.rejected(**facts, cause=words) from refusal


def _check_found(facts: dict[str, str], endpoint: Endpoint, found: str, service: Service) -> None:
    """Raise `ExternalFailed` if what was *found* at *endpoint* is not what the URL says."""
    wanted, other = {answers.POSTGRES}, set()
    if service is Service.REDIS:
        wanted, other = {answers.REDIS}, {answers.TLS_REDIS, answers.TLS, answers.TLS_BOTH}
    if endpoint.scheme == "rediss":
        wanted, other = other, wanted
    if found == answers.NONE:
        cause = "it accepts connections, and closes them without an answer"
        raise ExternalFailed.not_listening(**facts, cause=cause)
    if found == answers.TLS_BOTH and found in wanted:
        cause = (
            "it requires a client certificate: add ?ssl_certfile=FILE&ssl_keyfile=FILE to the URL"
        )
        raise ExternalFailed.rejected(**facts, cause=cause)
    if found in other:
        raise ExternalFailed.wrong_tls(**facts, scheme=endpoint.scheme)
    if found not in wanted | {answers.UNKNOWN}:
        raise ExternalFailed.another(**facts, found=found)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield *error* and every error that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def endpoint_of(url: str, service: Service) -> Endpoint:
    """Return where the *url* of an external server leads."""
    parts = urlsplit(url)
    is_redis = service is Service.REDIS
    return Endpoint(
        host=parts.hostname or "",
        port=parts.port or _PORTS[service],
        password=unquote(parts.password or ""),
        user=unquote(parts.username or ""),
        scheme=parts.scheme if is_redis else "",
        # libpq's default, too.
        query=parts.query if is_redis else parts.query or "sslmode=prefer",
    )
