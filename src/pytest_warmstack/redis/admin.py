"""The connection of this process to Redis: its commands, and who else is connected."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from typing import Any, Final, NamedTuple, Self

from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection, parse_url
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.retry import Retry

from pytest_warmstack import originals
from pytest_warmstack.redis.errors import CommandRefused
from pytest_warmstack.servers.errors import ServerFailed, raise_if_out_of_resources
from pytest_warmstack.servers.model import (
    LOOKER,
    Endpoint,
    NotOurs,
    NotReady,
    redis_url,
)

TITLE: Final = "Redis"

OLDEST: Final = (6, 2)
"""The oldest version that we work with: FLUSHDB has its SYNC from it on."""

SECRETS: Final = frozenset({"requirepass", "masterauth", "primaryauth", "tls-key-file-pass"})
"""Settings that we neither remember nor restore; `masterauth` is `primaryauth` in Valkey."""

NAME: Final = "pytest-warmstack"
"""What the name of every connection of this package begins with, unless it only looks."""

USED: Final = f"{NAME}:used"
"""The key that tells when a run was done with the server last."""

USER: Final = NAME
"""The user of this package on a managed server, so that a test may change `default` at will.

A server that was started before has it in its configuration; see `server`.
"""

BUSY: Final = "BUSY"
"""What the answers of a server begin with that runs somebody's script for too long."""

ANSWER: Final = 30.0
"""Seconds that one command of ours may take."""

MOST: Final = 1024
"""How many databases are looked for on a server that does not tell."""

_RESERVED: Final = frozenset({"db", "connection_class", "max_connections", "health_check_interval"})
"""What a URL may say and this connection has no use for."""

_CODES: Final = {NoPermissionError: "NOPERM", OutOfMemoryError: "OOM", ReadOnlyError: "READONLY"}
"""The codes that redis-py takes off an answer, since the class tells them (`parse_error`)."""

_LONGEST: Final = 60
"""Characters of one word of a command, and of twice as many for all, that an error shows."""


class Client(NamedTuple):
    """A connection to the server, as CLIENT LIST tells of it."""

    id: int
    name: str
    address: str
    database: int
    command: str
    flags: str

    @property
    def waits(self) -> bool:
        """Whether it is in a command that waits for others, such as BLPOP."""
        return "b" in self.flags

    @property
    def listens(self) -> bool:
        """Whether it is subscribed to a channel, or monitors the server."""
        return "P" in self.flags or "O" in self.flags


class Admin:
    """One connection, never renewed behind our back: a lease hangs on it.

    That is why it is redis-py's bare `Connection` and not its client, which reconnects.
    """

    def __init__(self, endpoint: Endpoint, connection: Any, version: str) -> None:
        self.endpoint = endpoint
        self.version = version
        self.also = ""
        self.id = 0
        self._connection = connection
        self._cause = ""
        self._left = 0

    @classmethod
    def connect(cls, endpoint: Endpoint, fingerprint: str, timeout: float) -> Self:
        """Connect to the server of ours that answers to *fingerprint*, within *timeout* seconds.

        Without a fingerprint it is somebody else's. Raises `NotReady` when nothing answers yet,
        `NotOurs` when another server does, or does not let us in, and `ServerFailed` when
        somebody else's can't be used.
        """
        _knock(endpoint, timeout)
        kind: Any = _OverTls if endpoint.scheme == "rediss" else _Plain
        try:
            # What the URL says about TLS, if anything, redis-py knows to read.
            options: Any = parse_url(redis_url(endpoint, 0))  # type: ignore[no-untyped-call]
            options |= {
                "client_name": LOOKER if endpoint.looks else NAME,
                "decode_responses": True,
                # What a test writes need not be text, and must be sent back as it was.
                "encoding_errors": "surrogateescape",
                "protocol": 2,
                "retry": Retry(NoBackoff(), 0),
                "socket_connect_timeout": timeout,
                "socket_timeout": ANSWER,
            }
            connection = kind(
                **{key: each for key, each in options.items() if key not in _RESERVED}
            )
        except (ValueError, TypeError, RedisError) as error:
            raise NotOurs(f"redis-py can't use what the URL says after the ?: {error}") from error
        admin = cls(endpoint, connection, "")
        # A managed server often refuses CONFIG, and would not know our fingerprint anyway.
        who = [("CONFIG", "GET", "syslog-ident")] if fingerprint else []
        try:
            _log_in(connection, USER if fingerprint else "")
            # redis-py 5.2 to 8 differ in what a name setting does; an answer is what counts.
            # PING is the one that a server refuses which is still reading its data.
            _, facts, admin.id, *idents = admin.commands(
                ("PING",), ("INFO", "server"), ("CLIENT", "ID"), *who
            )
        except AuthenticationError as error:
            connection.disconnect()
            raise NotOurs(f"it does not take the password: {error}") from error
        except (CommandRefused, ResponseError, ValueError) as error:
            connection.disconnect()
            answer = error.answer if isinstance(error, CommandRefused) else _text(error)
            if answer.startswith(BUSY):
                raise NotReady(f"{endpoint.place}: {answer}") from error
            if is_forbidden(answer) and not fingerprint:
                raise admin.forbidden(answer) from error
            raise NotOurs(f"it refuses what it is asked first: {answer}") from error
        except (RedisError, ServerFailed, OSError) as error:
            connection.disconnect()
            if _is_about_tls(error):
                raise NotOurs(str(error)) from error
            raise_if_out_of_resources(error)
            words = error.why if isinstance(error, ServerFailed) else error
            raise NotReady(f"{endpoint.place}: {words}") from error
        if any(ident != f"warmstack-{fingerprint}" for _, ident in idents):
            connection.disconnect()
            raise NotOurs(f"it calls itself {idents[0][1]!r}")
        lines = dict(line.partition(":")[::2] for line in str(facts).splitlines())
        admin.version = lines.get("redis_version", "")
        if not re.match(r"\d+\.\d+", admin.version):
            connection.disconnect()
            raise NotOurs(f"it does not tell the version of a Redis, but: {str(facts)[:60]!r}")
        # Valkey calls it by the other name.
        if "cluster" in {lines.get("redis_mode"), lines.get("server_mode")}:
            connection.disconnect()
            raise ServerFailed.cluster(place=endpoint.place)
        if "valkey_version" in lines:
            admin.also = f"Valkey {lines['valkey_version']}"
        if tuple(map(int, admin.version.split(".")[:2])) < OLDEST:
            connection.disconnect()
            raise ServerFailed.unsupported(
                title=TITLE,
                found=admin.version,
                wanted="Redis 6.2 or newer, which can be told to wait until a flush is done",
            )
        return admin

    def command(self, *words: str | int) -> Any:
        """Return the server's answer to one command.

        Raises `CommandRefused` when the server refuses, and `ServerFailed` when the connection is
        lost.
        """
        (answer,) = self.begin(words)
        return answer

    def commands(self, *commands: Sequence[str | int]) -> list[Any]:
        """Return the answers to several commands, in one round trip; else like `command`."""
        return list(self.begin(*commands))

    def begin(self, *commands: Sequence[str | int]) -> Iterator[Any]:
        """Send several commands at once, and return their answers one by one, as they come.

        All have to be taken before the next command. Raises what `command` does; the answers
        after a refusal are heard, and dropped.
        """
        self._send(commands)
        return self._answers(commands)

    def attempt(self, *commands: Sequence[str | int]) -> list[Any]:
        """Return the answers to several commands, with None for each that the server refuses."""
        self._send(commands)
        answers = []
        for words in commands:
            try:
                answers.append(self._answer(words))
            except CommandRefused:
                answers.append(None)
        return answers

    def _send(self, commands: Sequence[Sequence[str | int]]) -> None:
        connection = self._connection
        if self._left:
            self._lost(RuntimeError("somebody was interrupted before all answers were heard"))
        if self._cause:
            # redis-py would connect anew, without the lease.
            raise ServerFailed.lost(title=TITLE, cause=self._cause)
        try:
            connection.send_packed_command(connection.pack_commands(commands))
        except (RedisError, OSError) as error:
            raise self._lost(error) from error
        self._left = len(commands)

    def _answers(self, commands: Sequence[Sequence[str | int]]) -> Iterator[Any]:
        for words in commands:
            try:
                yield self._answer(words)
            except CommandRefused:
                while self._left:
                    with suppress(CommandRefused):
                        self._answer(words)
                raise

    def _answer(self, words: Sequence[str | int]) -> Any:
        """Return the next answer, which is to the command *words*.

        This is the one place where errors of redis-py become errors of this package.
        """
        try:
            answer = self._connection.read_response()
        except ResponseError as error:
            self._left -= 1
            raise CommandRefused.by_redis(command=shown(words), answer=_text(error)) from error
        except (RedisError, OSError) as error:
            raise self._lost(error) from error
        self._left -= 1
        return answer

    def _lost(self, error: Exception) -> ServerFailed:
        self._cause, self._left = str(error), 0
        self._connection.disconnect()
        return ServerFailed.lost(title=TITLE, cause=self._cause)

    def forbidden(self, answer: str) -> ServerFailed:
        """Return the error that tells of an answer for which `is_forbidden` is true."""
        return ServerFailed.forbidden(
            place=self.endpoint.place, user=self.endpoint.user, cause=answer
        )

    def clients(self) -> list[Client]:
        """Return all connections to the server."""
        return self.clients_of(self.command("CLIENT", "LIST"))

    @staticmethod
    def clients_of(listed: str) -> list[Client]:
        """Return the connections that an answer to CLIENT LIST tells of."""
        facts = (
            dict(pair.partition("=")[::2] for pair in line.split(" "))
            for line in listed.splitlines()
        )
        return [
            Client(
                id=int(each["id"]),
                name=each.get("name", ""),
                address=each.get("addr", ""),
                database=int(each.get("db", 0)),
                command=each.get("cmd", ""),
                flags=each.get("flags", ""),
            )
            for each in facts
        ]

    @staticmethod
    def stats(info: str) -> dict[str, int]:
        """Return how often each command was called, from an answer to INFO commandstats."""
        pairs = (
            line.removeprefix("cmdstat_").partition(":calls=")[::2] for line in info.splitlines()
        )
        return {name: int(rest.partition(",")[0]) for name, rest in pairs if rest}

    def databases(self) -> int:
        """Return how many databases the server has, also one that does not tell its settings."""
        with suppress(CommandRefused, IndexError):
            return int(self.command("CONFIG", "GET", "databases")[1])
        number = 1
        with suppress(CommandRefused):
            while number < MOST and self.command("SELECT", number):
                number += 1
        self.command("SELECT", 0)
        return number

    def filled(self) -> dict[int, int]:
        """Return how many keys there are in each database that has any."""
        lines = self.command("INFO", "keyspace").splitlines()
        found = (re.match(r"db(\d+):keys=(\d+)", line) for line in lines)
        return {int(each[1]): int(each[2]) for each in found if each}

    def users(self) -> int:
        """Return how many other processes of ours are connected to this server."""
        return sum(each.name.startswith(NAME) and each.id != self.id for each in self.clients())

    def used(self) -> float:
        """Return when a run was done with the server last, in epoch seconds; 0 if none was yet."""
        found = []
        for home in sorted({0, self.databases() - 1}):
            _, noted = self.commands(("SELECT", home), ("GET", USED))
            with suppress(TypeError, ValueError):
                found.append(float(noted))
        return max(found, default=0.0)

    def close(self) -> None:
        """End the connection, and with it the lease."""
        self._connection.disconnect()


def is_forbidden(answer: str) -> bool:
    """Tell whether the server refuses to us what it may do for others, or under another name."""
    return answer.startswith(("NOPERM", "unknown command"))


def shown(words: Sequence[str | int]) -> str:
    """Return a command as an error shows it: passwords are hidden, and what is long is cut."""
    name, *rest = (" ".join(str(word).split()) for word in words)
    if name == "AUTH":
        rest = ["***"]
    elif name == "CONFIG" and SECRETS.intersection(rest):
        rest[-1] = "***"
    elif name == "ACL":
        # How a user's password is written: >text, or #digest; with < and ! it is taken away.
        rest = [re.sub(r"^([<>#!]).*", r"\1***", word) for word in rest]
    text = " ".join(_cut(word, _LONGEST) for word in (name, *rest))
    return _cut(text, 2 * _LONGEST)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length].rstrip('. ')}..."


def _text(error: Exception) -> str:
    """Return what the server said, with the code that redis-py took off."""
    codes = (code for kind, code in _CODES.items() if isinstance(error, kind))
    return " ".join([*codes, str(error)])


class _Plain(Connection):
    """A connection over a socket that no test can block, replace or look for."""

    def _connect(self) -> originals.Socket:
        seconds: Any = self.socket_connect_timeout
        connected = originals.create_connection(self.host, int(self.port), seconds)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.settimeout(self.socket_timeout)
        return connected


class _OverTls(SSLConnection, _Plain):
    """The same with TLS, which redis-py puts around the socket."""


def _log_in(connection: Connection, user: str) -> None:
    """Connect as *user*, or as the URL says when a test has removed that one."""
    if user:
        with suppress(AuthenticationError):
            connection.username = user
            connection.connect()  # type: ignore[no-untyped-call]
            return
        connection.username = None
    connection.connect()  # type: ignore[no-untyped-call]


def _is_about_tls(error: BaseException | None) -> bool:
    """Tell whether both sides speak, and do not agree about TLS: that will not change."""
    while error is not None:
        # One that hangs up in the middle may be starting.
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _knock(endpoint: Endpoint, timeout: float) -> None:
    """Raise `NotReady` when nothing there answers at all within *timeout* seconds.

    Raises `NotOurs` when whoever is there speaks another language. redis-py has one deadline for
    the connection's whole life, which has to be a long one.
    """
    try:
        with closing(originals.create_connection(endpoint.host, endpoint.port, timeout)) as probe:
            if endpoint.scheme == "rediss":
                # It would answer to TLS only; whom to trust is for the connection to find out.
                context = ssl.create_default_context()
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                context.wrap_socket(probe).close()
                return
            probe.sendall(b"PING\r\n")
            answer = probe.recv(64)
    except OSError as error:
        raise_if_out_of_resources(error)
        refusal = NotOurs if _is_about_tls(error) else NotReady
        raise refusal(f"{endpoint.place}: {error}") from error
    if not answer:
        raise NotReady(f"{endpoint.place}: it hung up")
    if not answer.startswith((b"+", b"-")):
        raise NotOurs(f"its first answer is not one of Redis: {answer!r}")
