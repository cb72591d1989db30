"""A relay to a server that counts the round trips of its clients."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pytest_warmstack.servers.model import Endpoint


class Counter:
    """A relay's *port*, how many `connections` it had, and their `round_trips`.

    A round trip is what a client sends until the server answers, so statements that are sent
    together count once.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.connections = 0
        self.round_trips = 0


@contextmanager
def counted(server: Endpoint) -> Iterator[Counter]:
    """Yield the counter of a relay to *server*."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        counter = Counter(listener.getsockname()[1])
        threading.Thread(target=_accept, args=(listener, server, counter), daemon=True).start()
        yield counter
        listener.shutdown(socket.SHUT_RDWR)


def _accept(listener: socket.socket, server: Endpoint, counter: Counter) -> None:
    with suppress(OSError):  # The end of the relay.
        while True:
            client, _ = listener.accept()
            counter.connections += 1
            threading.Thread(target=_relay, args=(client, server, counter), daemon=True).start()


def _relay(client: socket.socket, address: Endpoint, counter: Counter) -> None:
    with (
        suppress(OSError),
        client,
        socket.create_connection((address.host, address.port)) as server,
    ):
        is_answered = True
        while True:
            ready, _, _ = select.select([client, server], [], [])
            for source in ready:
                data = source.recv(65536)
                if not data:
                    return
                if source is client:
                    counter.round_trips += is_answered
                    server.sendall(data)
                else:
                    client.sendall(data)
                is_answered = source is server
