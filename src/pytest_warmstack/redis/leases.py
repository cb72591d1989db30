"""Redis databases of its own for every process, held by a living connection.

The lease is a key in database 0 for each database leased (in the last one, for a whole server),
that holds the id of the holder's connection; when that connection is gone, the lease is free. The
connection also bears the databases' numbers in its name, so that a test's FLUSHALL, which removes
the keys, gives nothing away.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from redis.exceptions import ResponseError

from pytest_warmstack import originals
from pytest_warmstack.errors import LeaseFailed, ServerFailed
from pytest_warmstack.redis import traces
from pytest_warmstack.redis.admin import ANSWER, BUSY, NAME, USED, Admin, Client, is_forbidden
from pytest_warmstack.redis.traces import ServerWide, Untouched
from pytest_warmstack.runtime.base import NotOurs, NotReady, Server, redis_url

_CLAIM: Final = """
for i, key in ipairs(KEYS) do
    local held = redis.call('GET', key) or ''
    if held ~= ARGV[i + 1] then return 0 end
    if ARGV[#KEYS + 2] ~= '' and held == '' then
        redis.call('SELECT', ARGV[#KEYS + 2] + i - 1)
        local size = redis.call('DBSIZE')
        redis.call('SELECT', 0)
        if size > 0 then return 0 end
    end
end
for i, key in ipairs(KEYS) do redis.call('SET', key, ARGV[1]) end
return 1
"""
"""Take databases if the holder of each is still the one that was found to be gone (or none).

The last argument is the first database, where one that was never ours has to be empty.
"""

_LEAVE: Final = 2.0
"""Seconds that putting things right may take at the end of a run; the next one does it again."""


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
        self._wide = Untouched() if server.foreign else ServerWide()
        self._alone = False
        # Where our own keys are. Who has the whole server uses the first of its databases.
        self._home = 0

    def take(self) -> Lease:
        """Take the lease, for as long as the process lives.

        Raises `LeaseFailed` when every database is leased by a living process, and `ServerFailed`
        when somebody else's server forbids what is needed.
        """
        return self._willingly(self._had)

    def acquire(self, test: str) -> Lease:
        """Return the lease for *test*, with its databases empty.

        Raises `LeaseFailed`, or `ServerFailed` when the server is gone.
        """
        lease = self._willingly(self._emptied)
        self._test = test
        return lease

    def _willingly(self, do: Callable[[], Lease]) -> Lease:
        """Return what *do* gives; if the server refuses, undo what makes it, and try again."""
        try:
            try:
                return do()
            except ResponseError as error:
                self._make_willing(error)
                return do()
        except ResponseError as error:
            if self.server.foreign and is_forbidden(error):
                raise self._admin.forbidden(error) from error
            raise LeaseFailed.refused(cause=str(error), test=self._test) from error

    def _had(self) -> Lease:
        if self._lease is None:
            self._lease = self._taken()
        return self._lease

    def _emptied(self) -> Lease:
        """Return the lease, its databases empty; on a new connection if the old one is lost."""
        begin = originals.monotonic()
        lease = self._had()
        try:
            self._flush(lease)
        except ServerFailed as error:
            if originals.monotonic() - begin > ANSWER / 2:
                raise LeaseFailed.silent(seconds=ANSWER, test=self._test) from error
            # The lease is gone with the connection.
            try:
                self._admin = self._connect()
            except (NotReady, NotOurs) as failure:
                raise ServerFailed.lost(title="Redis", cause=str(failure)) from failure
            lease = self._lease = self._taken(first=lease.index)
            self._flush(lease)
        return lease

    def _make_willing(self, error: ResponseError) -> None:
        """Undo what makes the server refuse to empty a database, if a test of ours has done it.

        Raises *error* again when it may be what another process wants.
        """
        admin = self._admin
        if str(error).startswith(BUSY) and self._alone:
            traces.end_script(admin)
        if not self._is_alone(admin.clients()):
            raise error
        admin.command("SELECT", self._home)
        self._wide.free(admin)

    def close(self) -> None:
        """Leave the server as it was found, and end the connection, and with it the lease."""
        if self._lease is not None:
            # Not waited for when a test has paused the server for long.
            leaving = originals.Thread(target=self._leave, args=(self._lease,), daemon=True)
            leaving.start()
            leaving.join(_LEAVE)
        self._admin.close()

    def _leave(self, lease: Lease) -> None:
        with suppress(ServerFailed, ResponseError):
            self._flush(lease)
            # The next run then takes the same ones, and none that a living process has lost.
            commands: list[Sequence[str | int]] = [
                ("SELECT", self._home),
                ("DEL", *self._keys(lease.index)),
            ]
            if not self.server.foreign:
                commands.append(("SET", USED, f"{originals.now():.3f}"))
            self._admin.commands(*commands)

    def _indexes(self, first: int) -> range:
        return range(first, first + self._count)

    def _flush(self, lease: Lease) -> None:
        """Empty the databases, and put right what a flush leaves, in one round trip if nothing."""
        admin = self._admin
        # SYNC: an asynchronous flush could remove what the test has begun to write.
        flushes: list[Sequence[str | int]] = [("FLUSHALL", "SYNC")] if self._whole else []
        for index in self._indexes(lease.index):
            flushes += [("SELECT", index), ("FLUSHDB", "SYNC")]
        kept = ("SELECT", self._home), ("EXISTS", traces.SETTINGS)
        answers = admin.begin(("INFO", "commandstats"), ("CLIENT", "LIST"), *flushes, *kept)
        done = self._wide.done(admin.stats(next(answers)))
        clients = admin.clients_of(next(answers))
        self._alone = self._is_alone(clients)
        if "pause" in done and self._alone:
            # The flush itself waits for the end of a pause of all that writes.
            with suppress(ServerFailed, NotReady, NotOurs):
                second = self._connect()
                second.command("CLIENT", "UNPAUSE")
                second.close()
        *_, known = answers
        # Asked again: another process may have come meanwhile.
        if done and self._alone and self._is_alone(admin.clients()):
            self._wide.undo(admin, done)
        if not known:
            self._wide.store(admin)  # A FLUSHALL took it, the test's or our own.
        traces.end_strays(
            admin,
            clients,
            lambda each: self._whole or each.database in self._indexes(lease.index),
            lambda trouble: self._found(self._test, trouble),
        )

    def _is_alone(self, clients: Iterable[Client]) -> bool:
        return self._whole or not (self.server.foreign or self._others(clients))

    def _others(self, clients: Iterable[Client]) -> list[Client]:
        """Return the connections of other processes that hold a lease."""
        own = self._admin.id
        return [each for each in clients if each.id != own and leased(each.name) is not None]

    def _taken(self, first: int | None = None) -> Lease:
        """Take free databases, those from *first* on if they are.

        Those that a process had which is gone come last: it may have lost its connection only.
        """
        admin = self._admin
        try:
            databases, clients = admin.commands(("CONFIG", "GET", "databases"), ("CLIENT", "LIST"))
            total = int(databases[1])
        except (ResponseError, IndexError):  # As a managed server answers, which tells nothing.
            total, clients = admin.databases(), admin.command("CLIENT", "LIST")
        self._home = total - 1 if self._whole else 0
        living = admin.clients_of(clients)
        ids = {str(each.id) for each in living}
        others = self._others(living)
        taken = [indexes for each in others if (indexes := leased(each.name)) is not None]
        starts = [0] if self._whole else range(1, total - self._count + 1, self._count)
        keys = {start: self._keys(start) for start in starts}
        if not keys:
            raise LeaseFailed.too_many_asked(databases=total, count=self._count)
        _, settings, found = admin.commands(
            ("SELECT", self._home),
            ("GET", traces.SETTINGS),
            ("MGET", *(key for each in keys.values() for key in each)),
        )
        holders = iter(found)
        held_by = {start: [next(holders) or "" for _ in own] for start, own in keys.items()}
        # On somebody else's server a database may hold what is theirs; the key of a lease is our
        # mark, which stays when its holder is killed.
        filled = admin.filled() if self.server.foreign else {}
        theirs: list[int] = []
        for start in sorted(keys, key=lambda each: (each != first, any(held_by[each]))):
            own, held = keys[start], held_by[start]
            if any(each in ids for each in held):
                continue
            if any(_overlap(self._indexes(start), each) for each in taken):
                continue
            marked = zip(self._indexes(start), held, strict=True)
            if found := [index for index, mark in marked if filled.get(index) and not mark]:
                theirs += found
                continue
            # The name first: from now on nobody else takes these for free.
            admin.command("CLIENT", "SETNAME", self._name(start))
            first_of_all = start if self.server.foreign else ""
            if admin.command("EVAL", _CLAIM, len(own), *own, admin.id, *held, first_of_all):
                self._wide.remember(admin, settings)
                admin.command("SELECT", start)
                urls = (redis_url(admin.endpoint, each) for each in self._indexes(start))
                return Lease(start, tuple(urls))
        admin.command("CLIENT", "SETNAME", NAME)
        if theirs:
            raise LeaseFailed.not_ours(
                databases=total,
                count=self._count,
                leased=sum(len(each) for each in taken),
                found=[traces.described(admin, each, filled[each]) for each in theirs[:12]],
            )
        raise LeaseFailed.none_free(
            databases=total,
            count=self._count,
            holders=[f"{each.name.removeprefix(_LEASE)}, {each.address}" for each in others],
        )

    def _keys(self, first: int) -> list[str]:
        return [f"{NAME}:lease:{index}" for index in self._indexes(first)]

    def _name(self, first: int) -> str:
        """Return the name of the connection that holds the lease; it may hold no space."""
        indexes = self._indexes(first)
        host = re.sub(r"[^!-~]", "?", socket.gethostname())
        return f"{_LEASE}{indexes[0]}-{indexes[-1]}:process-{os.getpid()}@{host}"


_LEASE: Final = f"{NAME}:lease:"


def leased(name: str) -> range | None:
    """Return the databases that the connection called *name* holds; None when it holds none."""
    match = re.match(rf"{_LEASE}(\d+)-(\d+)", name)
    return range(int(match[1]), int(match[2]) + 1) if match else None


def _overlap(one: range, other: range) -> bool:
    return one.start < other.stop and other.start < one.stop
