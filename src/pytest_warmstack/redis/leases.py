"""Redis databases of its own for every process, held by a living connection.

The lease is a key in database 0 for each database leased (in the last one, for a whole server),
that holds the id of the holder's connection; when that connection is gone, the lease is free. The
connection also bears the databases' numbers in its name, so that a test's FLUSHALL, which removes
the keys, gives nothing away.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, TypeVar

from pytest_warmstack import originals
from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.redis import server_state
from pytest_warmstack.redis.admin import (
    ANSWER,
    BUSY,
    NAME,
    TITLE,
    USED,
    Admin,
    Client,
    is_forbidden,
)
from pytest_warmstack.redis.errors import CommandRefused, LeaseFailed
from pytest_warmstack.redis.server_state import Counts, Look, ServerState, Untouched
from pytest_warmstack.servers.errors import ServerFailed
from pytest_warmstack.servers.model import NotOurs, NotReady, Server, redis_url

T = TypeVar("T")

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


@dataclass
class _Survey:
    """What is leased on a server of *total* databases, and by whom.

    *holders* are the connections of other processes with a lease, *held_by* the holder of each
    database that a lease may begin at, by its key: the id of a connection, or nothing. *filled*
    counts the keys in the databases of an external server.
    """

    total: int
    living: Sequence[Client]
    holders: Sequence[Client]
    counts: Counts
    stored: str | None = None
    held_by: dict[int, list[str]] = field(default_factory=dict)
    filled: Mapping[int, int] = field(default_factory=dict)


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
        self._first: int | None = None
        # Of our connections, also those that the server may not know to be lost.
        self._ids = {self._admin.id}
        self._test = ""
        self._state = Untouched() if server.external else ServerState()
        self._alone = False
        # Where our own keys are. Who has the whole server uses the first of its databases.
        self._home = 0

    def take(self) -> Lease:
        """Take the lease, for as long as the process lives, and leave its databases as they are.

        If a run that was killed changed the server as a whole, that is undone. Raises `LeaseFailed`
        when every database is leased by a living process, and `ServerFailed` when an external
        server forbids what is needed.
        """
        return self._willingly(lambda: self._connected(lambda lease: lease))

    def acquire(self, test: str) -> Lease:
        """Return the lease for *test*, with its databases empty.

        Raises `LeaseFailed`, or `ServerFailed` when the server is gone.
        """
        lease = self._willingly(lambda: self._connected(self._flush))
        self._test = test
        return lease

    def look(self, *, in_test: bool) -> Look | None:
        """Look at the server before a fixture of a wider scope than a test is set up, or ends.

        What tests before it have left is put right first, if none is in progress (*in_test*).
        Nothing is raised: the next test that needs the server meets the same trouble.
        """
        if self._lease is not None:
            with suppress(WarmstackError):
                return self._connected(lambda _: self._look(in_test=in_test))
        return None

    def adopt(self, before: Look) -> bool:
        """Take what has changed since the look *before* for the suite's; return whether any has.

        Such a change stays until the run ends.
        """
        with suppress(WarmstackError):
            return self._connected(lambda _: self._state.adopt(self._admin, before, self._is_alone))
        return False

    def _look(self, *, in_test: bool) -> Look:
        before = self._state.look(self._admin, self._is_alone)
        if in_test or not self._state.done(before.counts):
            return before
        if not self._is_alone(self._admin.clients()):
            return before
        self._state.put_back(self._admin)
        return self._state.look(self._admin, self._is_alone)

    def _willingly(self, do: Callable[[], Lease]) -> Lease:
        """Return what *do* gives; if the server refuses, undo what makes it, and try again."""
        try:
            try:
                return do()
            except CommandRefused as error:
                self._make_willing(error)
                return do()
        except CommandRefused as error:
            if self.server.external and is_forbidden(error.answer):
                raise self._admin.forbidden(error.answer) from error
            raise LeaseFailed.refused(
                command=error.command, answer=error.answer, test=self._test
            ) from error

    def _lease_or_take(self) -> Lease:
        if self._lease is None:
            self._lease = self._take_lease()
            self._first = self._lease.index
        return self._lease

    def _connected(self, do: Callable[[Lease], T]) -> T:
        """Return what *do* gives for the lease; on a new connection if the old one is lost."""
        begin = originals.monotonic()
        try:
            return do(self._lease_or_take())
        except CommandRefused:
            raise
        except ServerFailed as error:
            if originals.monotonic() - begin > ANSWER / 2:
                raise LeaseFailed.silent(seconds=ANSWER, test=self._test) from error
            # The lease is gone with the connection.
            self._lease = None
            try:
                self._admin = self._connect()
            except (NotReady, NotOurs) as failure:
                raise ServerFailed.lost(title=TITLE, cause=str(failure)) from failure
            self._ids.add(self._admin.id)
            return do(self._lease_or_take())

    def _make_willing(self, error: CommandRefused) -> None:
        """Undo what makes the server refuse to empty a database, if a test of ours has done it.

        Raises *error* again when it may be what another process wants.
        """
        admin = self._admin
        if error.answer.startswith(BUSY) and self._alone:
            server_state.end_script(admin)
        if not self._is_alone(admin.clients()):
            raise error
        admin.command("SELECT", self._home)
        self._state.free(admin)

    def close(self) -> None:
        """Leave the server as it was found, and end the connection, and with it the lease."""
        if self._lease is not None:
            # Not waited for when a test has paused the server for long.
            leaving = originals.Thread(target=self._leave, args=(self._lease,), daemon=True)
            leaving.start()
            leaving.join(_LEAVE)
        self._admin.close()

    def _leave(self, lease: Lease) -> None:
        with suppress(WarmstackError):
            self._state.end_suite()
            self._flush(lease)
            # The next run then takes the same ones, and none that a living process has lost.
            commands: list[Sequence[str | int]] = [
                ("SELECT", self._home),
                ("DEL", *self._keys(lease.index)),
            ]
            if not self.server.external:
                seconds, _ = self._admin.command("TIME")
                commands.append(("SET", USED, seconds))
            self._admin.commands(*commands)

    def _indexes(self, first: int) -> range:
        return range(first, first + self._count)

    def _flush(self, lease: Lease) -> Lease:
        """Empty the databases, and put right what a flush leaves, in one round trip if nothing."""
        admin = self._admin
        # SYNC: an asynchronous flush could remove what the test has begun to write.
        flushes: list[Sequence[str | int]] = [("FLUSHALL", "SYNC")] if self._whole else []
        for index in self._indexes(lease.index):
            flushes += [("SELECT", index), ("FLUSHDB", "SYNC")]
        kept = ("SELECT", self._home), ("EXISTS", server_state.STORED)
        answers = admin.begin(("INFO", "commandstats"), ("CLIENT", "LIST"), *flushes, *kept)
        done = self._state.done(admin.stats(next(answers)))
        clients = admin.clients_of(next(answers))
        self._alone = self._is_alone(clients)
        if "pause" in done and self._alone:
            self._end_pause()
        *_, is_stored = answers
        # Asked again: another process may have come meanwhile.
        if done and self._alone and self._is_alone(admin.clients()):
            self._state.put_back(admin)
        if not is_stored:
            self._state.store(admin)  # A FLUSHALL took it, the test's or our own.
        server_state.end_strays(
            admin,
            clients,
            lambda each: (
                (self._whole or each.database in self._indexes(lease.index))
                and each.id not in self._state.clients
            ),
            lambda trouble: self._found(self._test or "before the first test", trouble),
        )
        return lease

    def _end_pause(self) -> None:
        """End a pause of all that writes, over a second connection: the flush waits for that."""
        with suppress(WarmstackError, NotReady, NotOurs):
            second = self._connect()
            second.attempt(("CLIENT", "UNPAUSE"))
            second.close()

    def _is_alone(self, clients: Iterable[Client]) -> bool:
        return self._whole or not (self.server.external or self._others(clients))

    def _others(self, clients: Iterable[Client]) -> list[Client]:
        """Return the connections of other processes that hold a lease."""
        return [
            each for each in clients if each.id not in self._ids and leased(each.name) is not None
        ]

    def _take_lease(self) -> Lease:
        """Take free databases, those that this process has had before if they are."""
        survey = self._survey()
        if "pause" in self._state.done(survey.counts) and self._is_alone(survey.living):
            self._admin.attempt(("CLIENT", "UNPAUSE"))  # The claim would wait for its end.
        for start in self._free(survey):
            if self._claim(survey, start):
                self._remember(survey)
                self._admin.command("SELECT", start)
                urls = (redis_url(self._admin.endpoint, each) for each in self._indexes(start))
                return Lease(start, tuple(urls))
        self._admin.command("CLIENT", "SETNAME", NAME)
        raise self._none_free(survey)

    def _survey(self) -> _Survey:
        """Ask the server what is leased; the connection is then at the database of our keys."""
        admin = self._admin
        settings, clients, stats = admin.attempt(
            ("CONFIG", "GET", "databases"), ("CLIENT", "LIST"), ("INFO", "commandstats")
        )
        # A managed server may tell nothing. What it must tell is asked again, for its refusal.
        total = int(settings[1]) if settings else admin.databases()
        living = admin.clients_of(clients) if clients is not None else admin.clients()
        survey = _Survey(total, living, self._others(living), admin.stats(stats or ""))
        self._home = total - 1 if self._whole else 0
        starts = [0] if self._whole else range(1, total - self._count + 1, self._count)
        keys = {start: self._keys(start) for start in starts}
        if not keys:
            raise LeaseFailed.too_many_asked(databases=total, count=self._count)
        _, survey.stored, found = admin.commands(
            ("SELECT", self._home),
            ("GET", server_state.STORED),
            ("MGET", *(key for each in keys.values() for key in each)),
        )
        answers = iter(found)
        survey.held_by = {start: [next(answers) or "" for _ in own] for start, own in keys.items()}
        if self.server.external:
            survey.filled = admin.filled()
        return survey

    def _free(self, survey: _Survey) -> Iterable[int]:
        """Return where a lease may begin, the best first.

        Databases that a process had which is gone come last: it may have lost its connection only.
        """
        ids = {str(each.id) for each in survey.living if each.id not in self._ids}
        taken = [indexes for each in survey.holders if (indexes := leased(each.name)) is not None]
        return [
            start
            for start in sorted(
                survey.held_by, key=lambda each: (each != self._first, any(survey.held_by[each]))
            )
            if ids.isdisjoint(survey.held_by[start])
            and not any(_overlap(self._indexes(start), each) for each in taken)
            and not self._foreign_keys(survey, start)
        ]

    def _foreign_keys(self, survey: _Survey, start: int) -> list[int]:
        """Return the databases from *start* on that hold keys and have never been leased.

        The key of a lease is our mark, which stays when its holder is killed.
        """
        marked = zip(self._indexes(start), survey.held_by[start], strict=True)
        return [index for index, mark in marked if survey.filled.get(index) and not mark]

    def _claim(self, survey: _Survey, start: int) -> bool:
        """Take the databases from *start* on; return whether no other process was faster."""
        admin, own = self._admin, self._keys(start)
        # The name first: from now on no other process takes these for free.
        admin.command("CLIENT", "SETNAME", self._name(start))
        look_into = start if self.server.external else ""
        held = survey.held_by[start]
        return bool(admin.command("EVAL", _CLAIM, len(own), *own, admin.id, *held, look_into))

    def _remember(self, survey: _Survey) -> None:
        """Remember the server as it was before any run; put right what a killed one has left.

        A process that only connects again does neither: its test is in progress.
        """
        if not self._state.remember(self._admin, survey.stored):
            return
        if self._state.done(survey.counts) and self._is_alone(self._admin.clients()):
            self._state.put_back(self._admin)

    def _none_free(self, survey: _Survey) -> LeaseFailed:
        """Return the error that tells why there was nothing to take."""
        held = {index for each in survey.holders for index in leased(each.name) or ()}
        found = {each for start in survey.held_by for each in self._foreign_keys(survey, start)}
        theirs = sorted(found - held)
        if theirs:
            return LeaseFailed.not_ours(
                databases=survey.total,
                count=self._count,
                leased=len(held),
                found=[
                    server_state.described(self._admin, each, survey.filled[each])
                    for each in theirs[:12]
                ],
            )
        return LeaseFailed.none_free(
            databases=survey.total,
            count=self._count,
            holders=[
                f"{each.name.removeprefix(_LEASE)}, {each.address}" for each in survey.holders
            ],
        )

    def _keys(self, first: int) -> list[str]:
        return [f"{_LEASE}{index}" for index in self._indexes(first)]

    def _name(self, first: int) -> str:
        """Return the name of the connection that holds the lease; it may hold no space."""
        indexes = self._indexes(first)
        host = re.sub(r"[^!-~]", "?", socket.gethostname())
        return f"{_LEASE}{indexes[0]}-{indexes[-1]}:process-{originals.getpid()}@{host}"


_LEASE: Final = f"{NAME}:lease:"


def leased(name: str) -> range | None:
    """Return the databases that the connection called *name* holds; None when it holds none."""
    match = re.match(rf"{_LEASE}(\d+)-(\d+)", name)
    return range(int(match[1]), int(match[2]) + 1) if match else None


def _overlap(one: range, other: range) -> bool:
    return one.start < other.stop and other.start < one.stop
