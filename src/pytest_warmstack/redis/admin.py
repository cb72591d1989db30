"""The connection of this process to Redis: its commands, and who else is connected."""

from __future__ import annotations

import socket
from typing import Any, Final, Self

from redis import Connection
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.retry import Retry

from pytest_warmstack.errors import ServerFailed
from pytest_warmstack.runtime.base import Endpoint, NotOurs, NotReady

NAME: Final = "pytest-warmstack"
"""Every connection of ours has a name that begins with this."""

_ANSWER: Final = 30.0
"""Seconds that one command of ours may take."""


class Admin:
    """One connection, never renewed behind our back: a lease hangs on it.

    That is why it is redis-py's bare `Connection` and not its client, which reconnects.
    """

    def __init__(self, endpoint: Endpoint, connection: Any, version: str) -> None:
        self.endpoint = endpoint
        self.version = version
        self._connection = connection

    @classmethod
    def connect(cls, endpoint: Endpoint, fingerprint: str, timeout: float) -> Self:
        """Connect to the server of ours that answers to *fingerprint*, within *timeout* seconds.

        Raises `NotReady` when nothing answers yet, `NotOurs` when another server does.
        """
        _knock(endpoint, timeout)
        connection: Any = Connection(  # type: ignore[no-untyped-call]
            host=endpoint.host,
            port=endpoint.port,
            password=endpoint.password,
            client_name=NAME,
            decode_responses=True,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=timeout,
            socket_timeout=_ANSWER,
        )
        admin = cls(endpoint, connection, "")
        try:
            connection.connect()
            # redis-py 5.2 to 8 differ in what a name setting does; an answer is what counts.
            facts = admin.command("INFO", "server")
            _, ident = admin.command("CONFIG", "GET", "syslog-ident")
        except (AuthenticationError, ResponseError, ValueError) as error:
            connection.disconnect()
            raise NotOurs(f"it does not take the password: {error}") from error
        except (RedisError, ServerFailed, OSError) as error:
            connection.disconnect()
            raise NotReady(f"{endpoint.host}:{endpoint.port}: {error}") from error
        if ident != f"warmstack-{fingerprint}":
            connection.disconnect()
            raise NotOurs(f"it calls itself {ident!r}")
        lines = dict(line.partition(":")[::2] for line in facts.splitlines())
        admin.version = lines["redis_version"]
        return admin

    def command(self, *words: str | int) -> Any:
        """Return the server's answer to one command.

        Raises `ServerFailed` when the connection is lost, and redis-py's `ResponseError` when the
        server refuses.
        """
        try:
            self._connection.send_command(*words)
            return self._connection.read_response()
        except ResponseError:
            raise
        except (RedisError, OSError) as error:
            self._connection.disconnect()
            raise ServerFailed.lost(title="Redis", cause=str(error)) from error

    def clients(self) -> dict[str, str]:
        """Return the names of all connections to the server, by their ids."""
        lines = self.command("CLIENT", "LIST").splitlines()
        facts = [dict(pair.partition("=")[::2] for pair in line.split(" ")) for line in lines]
        return {each["id"]: each.get("name", "") for each in facts}

    def users(self) -> int:
        """Return how many other processes of ours are connected to this server."""
        own = str(self.command("CLIENT", "ID"))
        return sum(
            name.startswith(NAME) for number, name in self.clients().items() if number != own
        )

    def close(self) -> None:
        """End the connection, and with it the lease."""
        self._connection.disconnect()


def _knock(endpoint: Endpoint, timeout: float) -> None:
    """Raise `NotReady` when nothing there answers at all within *timeout* seconds.

    redis-py has one deadline for the connection's whole life, which has to be a long one.
    """
    place = f"{endpoint.host}:{endpoint.port}"
    try:
        with socket.create_connection((endpoint.host, endpoint.port), timeout) as probe:
            probe.sendall(b"PING\r\n")
            answer = probe.recv(64)
    except OSError as error:
        raise NotReady(f"{place}: {error}") from error
    if not answer:
        raise NotReady(f"{place}: it hung up")
