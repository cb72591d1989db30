"""Redis databases of its own for every process, held by a living connection.

The lease is a key in database 0 for each database leased (in the last one, for a whole server),
that holds the id of the holder's connection; when that connection is gone, the lease is free. The
connection also bears the databases' numbers in its name, so that a test's FLUSHALL, which removes
the keys, gives nothing away.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from redis.exceptions import ResponseError

from pytest_warmstack.errors import LeaseFailed, ServerFailed
from pytest_warmstack.redis.admin import ANSWER, NAME, Admin, Client
from pytest_warmstack.runtime.base import NotOurs, NotReady, Server

_CLAIM: Final = """
for i, key in ipairs(KEYS) do
    if (redis.call('GET', key) or '') ~= ARGV[i + 1] then return 0 end
end
for i, key in ipairs(KEYS) do redis.call('SET', key, ARGV[1]) end
return 1
"""
"""Take databases if the holder of each is still the one that was found to be gone (or none)."""

_CONFIG: Final = f"{NAME}:config"
"""The key with the server's settings, as they were before any test."""

_GRACE: Final = 0.2
"""Seconds that a client which a test has closed may take to be gone."""

_LEAVE: Final = 2.0
"""Seconds that putting things right may take at the end of a run; the next one does it again."""

_SERVER_WIDE: Final[Mapping[str, Sequence[str]]] = {
    "config": ("config", "config|set"),
    "functions": ("function", "function|load", "function|restore", "function|delete"),
    "scripts": ("script", "script|load"),
    "pause": ("client|pause",),
}
"""What no flush undoes, and the commands that do it; Redis before 7 counts no subcommands."""


@dataclass(frozen=True)
class Lease:
    """The *urls* of the databases that a process has, the first of which has the number *index*."""

    index: int
    urls: tuple[str, ...]


class Leases:
    """What this process has of a Redis *server*.

    That is *count* consecutive databases, or the *whole* of it.

    *connect* makes a new connection when the first one was lost: a test may kill every client.
    *found* is told of clients that a test left behind: its name, and what is to be said.
    """

    def __init__(
        self,
        server: Server[Admin],
        connect: Callable[[], Admin],
        *,
        count: int = 1,
        whole: bool = False,
        found: Callable[[str, str], None],
    ) -> None:
        self.server = server
        self._admin = server.client
        self._connect = connect
        self._count = count
        self._whole = whole
        self._found = found
        self._lease: Lease | None = None
        self._test = ""
        self._seen: dict[str, int] = {}
        self._config: dict[str, str] | None = None
        # Where our own keys are. Who has the whole server uses the first of its databases.
        self._home = 0

    def take(self) -> Lease:
        """Take the lease, for as long as the process lives.

        Raises `LeaseFailed` when every database is leased by a living process.
        """
        if self._lease is None:
            self._lease = self._taken(first=0 if self._whole else 1)
        return self._lease

    def acquire(self, test: str) -> Lease:
        """Return the lease for *test*, with its databases empty.

        Raises `LeaseFailed`, or `ServerFailed` when the server is gone.
        """
        begin = time.monotonic()
        try:
            lease = self.take()
            try:
                self._flush(lease)
            except ServerFailed as error:
                if time.monotonic() - begin > ANSWER / 2:
                    raise LeaseFailed.silent(seconds=ANSWER, test=self._test) from error
                # The connection is gone, and the lease with it. Once more, on a new one.
                lease = self._renewed(lease)
                self._flush(lease)
        except ResponseError as error:
            raise LeaseFailed.refused(cause=str(error), test=self._test) from error
        self._test = test
        return lease

    def _renewed(self, lease: Lease) -> Lease:
        """Return a lease on a new connection, of the same databases if they are free."""
        try:
            self._admin = self._connect()
        except (NotReady, NotOurs) as error:
            raise ServerFailed.lost(title="Redis", cause=str(error)) from error
        self._lease = self._taken(first=lease.index)
        return self._lease

    def close(self) -> None:
        """Leave the server as it was found, and end the connection, and with it the lease."""
        if self._lease is not None:
            # Not waited for when a test has paused the server for long.
            leaving = threading.Thread(target=self._leave, args=(self._lease,), daemon=True)
            leaving.start()
            leaving.join(_LEAVE)
        self._admin.close()

    def _leave(self, lease: Lease) -> None:
        with suppress(ServerFailed, ResponseError):
            self._flush(lease)
            # Some test's FLUSHALL may have taken it.
            kept = ("SET", _CONFIG, json.dumps(self._config))
            self._admin.commands(("SELECT", self._home), kept)

    def _indexes(self, first: int) -> range:
        return range(first, first + self._count)

    def _flush(self, lease: Lease) -> None:
        """Empty the databases, and put right what a flush leaves, in one round trip if nothing."""
        admin, last = self._admin, self._indexes(lease.index)[-1]
        # SYNC: an asynchronous flush could remove what the test has begun to write.
        flushes: list[Sequence[str | int]] = []
        if self._whole:
            kept = json.dumps(self._config)
            flushes += [("FLUSHALL", "SYNC"), ("SELECT", self._home), ("SET", _CONFIG, kept)]
        for index in self._indexes(lease.index):
            flushes += [("SELECT", index), ("FLUSHDB", "SYNC")]
        answers = admin.begin(("INFO", "commandstats"), ("CLIENT", "LIST"), *flushes)
        stats, clients = admin.stats(next(answers)), admin.clients_of(next(answers))
        done = {kind for kind in _SERVER_WIDE if _count(stats, kind) != self._seen.get(kind, 0)}
        alone = self._whole or not self._others(clients)
        if "pause" in done and alone:
            # The flush itself waits for the end of a pause of all that writes.
            with suppress(ServerFailed):
                second = self._connect()
                second.command("CLIENT", "UNPAUSE")
                second.close()
        for _ in answers:
            pass
        self._end_strays(clients, range(lease.index, last + 1))
        if alone and done:
            self._restore(done)
            stats = admin.stats(admin.command("INFO", "commandstats"))
            self._seen = {kind: _count(stats, kind) for kind in _SERVER_WIDE}

    def _restore(self, done: Iterable[str]) -> None:
        """Undo what tests did to the server as a whole; there is no other lease that it harms."""
        admin = self._admin
        if "functions" in done:
            with suppress(ResponseError):
                admin.command("FUNCTION", "FLUSH", "SYNC")
        if "scripts" in done:
            with suppress(ResponseError):  # Before 6.2 it takes no SYNC.
                admin.command("SCRIPT", "FLUSH", "SYNC")
        if "config" in done and self._config is not None:
            now = admin.settings()
            for name, value in self._config.items():
                if now.get(name) != value:
                    # Some can't be set while the server runs; those no test has changed.
                    with suppress(ResponseError):
                        admin.command("CONFIG", "SET", name, value)

    def _end_strays(self, clients: Sequence[Client], indexes: range) -> None:
        """Disconnect those who listen or wait in our databases: they would steal from a test."""
        strays = {each.id: each for each in clients if self._is_stray(each, indexes)}
        deadline = time.monotonic() + _GRACE
        while strays and time.monotonic() < deadline:
            time.sleep(0.005)
            living = {each.id for each in self._admin.clients() if self._is_stray(each, indexes)}
            strays = {number: each for number, each in strays.items() if number in living}
        for number, each in strays.items():
            with suppress(ResponseError):  # It has gone by itself.
                self._admin.command("CLIENT", "KILL", "ID", number)
            name = f" {each.name!r}" if each.name else ""
            what = "was subscribed" if "P" in each.flags else f"was in {each.command.upper()}"
            self._found(self._test, f"it left a Redis client{name} that {what}")

    def _is_stray(self, client: Client, indexes: range) -> bool:
        mine = self._whole or client.database in indexes
        return mine and (client.waits or client.listens) and not client.name.startswith(NAME)

    def _others(self, clients: Iterable[Client]) -> list[Client]:
        """Return the connections of other processes that hold a lease."""
        own = self._admin.id
        return [each for each in clients if each.id != own and _leased(each.name) is not None]

    def _taken(self, first: int) -> Lease:
        """Take free databases, those from *first* on if they are."""
        admin = self._admin
        databases, clients = admin.commands(("CONFIG", "GET", "databases"), ("CLIENT", "LIST"))
        total = int(databases[1])
        self._home = total - 1 if self._whole else 0
        living = admin.clients_of(clients)
        ids = {str(each.id) for each in living}
        taken = [leased for each in living if (leased := _leased(each.name)) is not None]
        starts = [0] if self._whole else range(1, total - self._count + 1, self._count)
        keys = {
            start: self._keys(start) for start in sorted(starts, key=lambda each: each != first)
        }
        if not keys:
            raise LeaseFailed.too_many_asked(databases=total, count=self._count)
        _, config, found = admin.commands(
            ("SELECT", self._home),
            ("GET", _CONFIG),
            ("MGET", *(key for each in keys.values() for key in each)),
        )
        holders = iter(found)
        for start, own in keys.items():
            held = [next(holders) or "" for _ in own]
            if any(each in ids for each in held):
                continue
            if any(_overlap(self._indexes(start), each) for each in taken):
                continue
            # The name first: from now on nobody else takes these for free.
            admin.command("CLIENT", "SETNAME", self._name(start))
            if admin.command("EVAL", _CLAIM, len(own), *own, admin.id, *held):
                self._keep_config(config)
                admin.command("SELECT", start)
                place = f"{admin.endpoint.host}:{admin.endpoint.port}"
                address = f"redis://:{admin.endpoint.password}@{place}"
                return Lease(start, tuple(f"{address}/{each}" for each in self._indexes(start)))
        admin.command("CLIENT", "SETNAME", NAME)
        raise LeaseFailed.none_free(
            databases=total,
            count=self._count,
            holders=[
                f"{each.name.removeprefix(_LEASE)}, {each.address}"
                for each in living
                if _leased(each.name) is not None
            ],
        )

    def _keep_config(self, config: str | None) -> None:
        """Remember the server's settings as they were before any test: as *config* tells them."""
        if self._config is not None:
            return
        if config is not None:
            self._config = json.loads(config)
            return
        self._config = self._admin.settings()
        self._admin.command("SET", _CONFIG, json.dumps(self._config))

    def _keys(self, first: int) -> list[str]:
        return [f"{NAME}:lease:{index}" for index in self._indexes(first)]

    def _name(self, first: int) -> str:
        """Return the name of the connection that holds the lease; it may hold no space."""
        indexes = self._indexes(first)
        host = re.sub(r"[^!-~]", "?", socket.gethostname())
        return f"{_LEASE}{indexes[0]}-{indexes[-1]}:process-{os.getpid()}@{host}"


_LEASE: Final = f"{NAME}:lease:"


def _leased(name: str) -> range | None:
    """Return the databases that the connection called *name* holds; None when it holds none."""
    match = re.match(rf"{_LEASE}(\d+)-(\d+)", name)
    return range(int(match[1]), int(match[2]) + 1) if match else None


def _overlap(one: range, other: range) -> bool:
    return one.start < other.stop and other.start < one.stop


def _count(stats: Mapping[str, int], kind: str) -> int:
    """Return how often commands of a *kind* were called."""
    return sum(stats.get(command, 0) for command in _SERVER_WIDE[kind])
