"""A proxy to Redis that replaces the answers to chosen commands, or cuts them off in the middle."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import BinaryIO, Final

Fault = Callable[[list[bytes]], bytes | None]
"""What is answered in place of the server's own answer to a command; None for its own."""

RESET: Final = b""
"""The fault that cuts the connection off when half of the server's answer was sent."""


def _line(stream: BinaryIO) -> bytes:
    line = stream.readline()
    if not line.endswith(b"\r\n"):
        raise EOFError
    return line


def _read(stream: BinaryIO) -> bytes:
    """Return one value of the protocol as it stands (redis.io, "Redis serialization protocol")."""
    line = _line(stream)
    size = int(line[1:]) if line[:1] in b"$*" else 0
    if line[:1] == b"$":
        return line + (stream.read(size + 2) if size >= 0 else b"")
    return line + b"".join(_read(stream) for _ in range(size))


def _words(stream: BinaryIO) -> tuple[list[bytes], bytes]:
    """Return the words of one command, and the command as it was sent."""
    raw = _read(stream)
    if not raw.startswith(b"*"):  # Typed in, as the plugin knocks.
        return raw.split(), raw
    return raw.split(b"\r\n")[2::2], raw


@contextmanager
def way_to(host: str, port: int, fault: Fault) -> Iterator[int]:
    """Yield the port of a way to the server at *host* and *port*, with the *fault* on it."""
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_serve, args=(listener, (host, port), fault), daemon=True).start()
    with listener:
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def _serve(listener: socket.socket, address: tuple[str, int], fault: Fault) -> None:
    with suppress(OSError):
        while True:
            client, _ = listener.accept()
            threading.Thread(target=_relay, args=(client, address, fault), daemon=True).start()


def _relay(client: socket.socket, address: tuple[str, int], fault: Fault) -> None:
    with (
        closing(client),
        closing(socket.create_connection(address)) as server,
        client.makefile("rb") as asked,
        server.makefile("rb") as answers,
        suppress(OSError, EOFError, ValueError),
    ):
        for each in (client, server):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            words, raw = _words(asked)
            server.sendall(raw)
            own = _read(answers)
            answer = fault(words)
            if answer == RESET:
                client.sendall(own[: len(own) // 2])
                # Closed with a reset, as by a server that is killed.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return
            client.sendall(own if answer is None else answer)
