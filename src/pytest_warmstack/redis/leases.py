"""How processes share a Redis server: each leases databases, or the whole server.

A lease is a key for each leased database, in database 0 (for a whole server, in the last one). The
value is the id of the process's connection; when the connection ends, the databases are free. The
name of the connection also has the numbers of the databases, so that they are still leased if a
test's FLUSHALL removes the keys.

The databases of a project for development have such keys too, with the project in place of a
connection. They end only with `release`.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final, TypeVar

from pytest_warmstack import originals
from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.redis.connections import (
    BUSY,
    COMMAND_TIMEOUT,
    NAME,
    TITLE,
    USED,
    Admin,
    Client,
    CommandRefused,
    is_forbidden,
    parse_clients,
    parse_counts,
)
from pytest_warmstack.redis.server_state import STORED, Counts, Look, ServerState, end_script
from pytest_warmstack.servers.errors import ServerFailed
from pytest_warmstack.servers.model import NotOurs, NotReady, Server, redis_url
from pytest_warmstack.structs import Struct

T = TypeVar("T")

CLOSE_TIMEOUT: Final = 2.0
"""Seconds that restoring the server may take at the end; otherwise the next run does it."""

LEAK_GRACE: Final = 0.2
"""Seconds that a client may take to disconnect after a test has closed it."""

_POLL_INTERVAL: Final = 0.005
"""Seconds between two checks whether a client has disconnected."""

_RECONNECT_INTERVAL: Final = 0.02
"""Seconds after which a disconnected client may have reconnected."""

_LEASE: Final = f"{NAME}:lease:"
"""The beginning of the keys of leases, and of the names of their connections."""

_DEVELOPMENT: Final = "development:"
"""The beginning of the values of the keys of databases for development; a project follows."""

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
"""Leases databases if their keys still have the values that this process has read.

On an external server, a database that was never leased must be empty: there the last argument is
the number of the first database. Otherwise it is empty.
"""


class Lease(Struct, frozen=True):
    """The *urls* of a process's databases; *index* is the number of the first one."""

    index: int
    urls: tuple[str, ...]

    @property
    def indexes(self) -> range:
        """The numbers of the databases."""
        return range(self.index, self.index + len(self.urls))


class _Survey(Struct, frozen=True):
    """The state of a server before a lease is taken.

    *others* are the connections of other processes with a lease. *blocks* are the ranges of
    databases that a lease may have. *holders* has the value of each database's key, *filled* the
    number of keys in each database of an external server.
    """

    total: int
    clients: Sequence[Client]
    others: Sequence[Client]
    counts: Counts
    stored: str | None
    blocks: Sequence[range]
    holders: Mapping[int, str]
    filled: Mapping[int, int]

    @property
    def leased(self) -> set[int]:
        """The databases of other processes."""
        return {index for each in self.others for index in leased(each.name) or ()}

    def unmarked(self, block: range) -> set[int]:
        """Return the databases with keys that pytest-warmstack has never leased.

        If a process is killed, the key of its lease remains.
        """
        return {each for each in block if self.filled.get(each) and not self.holders[each]}


class Leases:
    """The *count* consecutive databases of a Redis *server* that this process has.

    With *whole*, no other process uses the server. *at* are the databases that the process must
    have, if code has read their numbers already. *connect* opens a connection to replace a lost
    one: a test may kill all clients. *found* is called with a test and a sentence about a client
    that the test left connected.
    """

    def __init__(
        self,
        server: Server[Admin],
        connect: Callable[[], Admin],
        *,
        count: int = 1,
        whole: bool = False,
        at: range | None = None,
        found: Callable[[str, str], None],
    ) -> None:
        self.server = server
        self._admin = server.client
        self._connect = connect
        self._count = count
        self._whole = whole
        self._at = at
        self._found = found
        self._external = server.external
        self._state = ServerState(external=self._external)
        self._lease: Lease | None = None
        self._last_index: int | None = None
        # The ids of all connections of this process: the server may not know yet that one is lost.
        self._ids = {self._admin.id}
        self._suite_clients: set[int] = set()
        self._last_test = ""
        self._was_alone = False
        # The database with the plugin's keys; the first is part of the lease of a whole server.
        self._home = 0

    @property
    def indexes(self) -> Sequence[int]:
        """The numbers of this process's databases; empty before the lease is taken."""
        return self._lease.indexes if self._lease is not None else ()

    @property
    def last_test(self) -> str:
        """The last test that got the databases, empty at first."""
        return self._last_test

    def take(self) -> Lease:
        """Take the lease for the rest of the process; don't empty its databases yet.

        Also undo what a killed run changed in the whole server. Raises `LeaseFailed` if other
        processes have all databases, and `ServerFailed` if an external server forbids a command.
        """
        return self._run_unblocked(lambda lease: lease)

    def acquire(self, test: str) -> Lease:
        """Return the lease for *test*, with empty databases.

        Raises `LeaseFailed`, and `ServerFailed` if the server is gone.
        """
        lease = self._run_unblocked(self._flush)
        self._last_test = test
        return lease

    def look(self, *, in_test: bool) -> Look | None:
        """Read the server's state before a fixture of a wider scope than a test begins or ends.

        Unless a test is running (*in_test*), first undo the changes of earlier tests. Returns None
        after an error: the next test that needs the server raises it.
        """
        if self._lease is not None:
            with suppress(WarmstackError):
                return self._run(lambda _: self._look(restore=not in_test))
        return None

    def adopt(self, before: Look) -> bool:
        """Keep the changes since *before* until the run ends; return whether there were any."""

        def adopt(_: Lease) -> bool:
            now = self._activity()
            self._suite_clients |= now.clients - before.clients
            return self._state.adopt(self._admin, before, now)

        with suppress(WarmstackError):
            return self._run(adopt)
        return False

    def close(self) -> None:
        """Restore the server, and close the connection, which ends the lease."""
        if self._lease is not None:
            # A test may have paused the server for a long time.
            restoring = originals.Thread(target=self._end, args=(self._lease,), daemon=True)
            restoring.start()
            restoring.join(CLOSE_TIMEOUT)
        self._admin.close()

    def _end(self, lease: Lease) -> None:
        with suppress(WarmstackError):
            self._state.end_suite()
            self._flush(lease)
            # So the next run prefers them to databases whose process only lost its connection.
            self._note_use(("DEL", *map(_key, lease.indexes)))

    def _note_use(self, *commands: Sequence[str | int]) -> None:
        """Send *commands* to the database with the plugin's keys, and note when it was last used.

        An external server gets no note.
        """
        *_, (seconds, _) = self._admin.commands(("SELECT", self._home), *commands, ("TIME",))
        if not self._external:
            self._admin.command("SET", USED, seconds)

    def reserve(self, project: str, *, fresh: bool) -> Lease:
        """Return the databases of *project* for development; with *fresh*, empty them.

        The first call reserves the last free ones, because tests lease the first ones. No process
        leases them until `release`. Raises `LeaseFailed` if none is free.
        """
        admin, survey, mark = self._admin, self._survey(None), f"{_DEVELOPMENT}{project}"
        own = [
            block for block in survey.blocks if {survey.holders[each] for each in block} == {mark}
        ]
        free = sorted(self._free_blocks(survey), key=lambda block: block.start, reverse=True)
        for block in own or free:
            if own or self._claim(survey, block, mark):
                break
        else:
            raise self._none_free(survey)
        admin.command("CLIENT", "SETNAME", NAME)
        if fresh or not own:  # A killed run may have left keys.
            admin.commands(*_flushes(block))
        self._note_use()
        return self._lease_of(block)

    # The connection: its errors, and what can be done about them.

    def _run_unblocked(self, action: Callable[[Lease], Lease]) -> Lease:
        """Do what `_run` does; if the server refuses, undo what makes it refuse, and retry."""
        try:
            try:
                return self._run(action)
            except CommandRefused as error:
                self._unblock(error)
                return self._run(action)
        except CommandRefused as error:
            if self._external and is_forbidden(error.answer):
                raise self._admin.forbidden(error.answer) from error
            from pytest_warmstack.redis.errors import LeaseFailed

            raise LeaseFailed.refused(
                command=error.command,
                answer=error.answer,
                hints=error.hints,
                test=self._last_test,
            ) from error

    def _run(self, action: Callable[[Lease], T]) -> T:
        """Run *action* with the lease; if the connection is lost, retry once on a new one."""
        begin = originals.monotonic()
        try:
            return action(self._lease_or_take())
        except CommandRefused:
            raise
        except ServerFailed as error:
            if originals.monotonic() - begin > COMMAND_TIMEOUT / 2:
                from pytest_warmstack.redis.errors import LeaseFailed

                raise LeaseFailed.silent(seconds=COMMAND_TIMEOUT, test=self._last_test) from error
            self._reconnect()
            return action(self._lease_or_take())

    def _lease_or_take(self) -> Lease:
        if self._lease is None:
            self._lease = self._take_lease()
            self._last_index = self._lease.index
        return self._lease

    def _reconnect(self) -> None:
        self._lease = None  # It ended with the connection.
        try:
            self._admin = self._connect()
        except (NotReady, NotOurs) as error:
            raise ServerFailed.lost(title=TITLE, cause=str(error)) from error
        self._ids.add(self._admin.id)

    def _unblock(self, error: CommandRefused) -> None:
        """Undo what a test of this process did to make the server refuse to empty a database.

        Raises *error* if another process may be the cause.
        """
        admin = self._admin
        if error.answer.startswith(BUSY) and self._was_alone:
            end_script(admin)
        if not self._is_alone(admin.clients()):
            raise error
        admin.command("SELECT", self._home)
        self._state.make_writable(admin)

    def _is_alone(self, clients: Iterable[Client]) -> bool:
        """Return whether this process may change the whole server."""
        return self._whole or not (self._external or self._others(clients))

    def _others(self, clients: Iterable[Client]) -> list[Client]:
        """Return the connections of other processes that hold a lease."""
        return [
            each for each in clients if each.id not in self._ids and leased(each.name) is not None
        ]

    # Before each test, and around fixtures of a wider scope.

    def _flush(self, lease: Lease) -> Lease:
        """Empty the databases, and undo what a flush can't; often in a single round trip."""
        admin = self._admin
        # SYNC: an asynchronous flush could remove what the test begins to write.
        flushes: list[Sequence[str | int]] = [("FLUSHALL", "SYNC")] if self._whole else []
        flushes += _flushes(lease.indexes)
        answers = admin.stream(
            *(("INFO", "commandstats"), ("CLIENT", "LIST"), *flushes),
            *(("SELECT", self._home), ("EXISTS", STORED)),
        )
        changed = self._state.changed(parse_counts(next(answers)))
        clients = parse_clients(next(answers))
        self._was_alone = self._is_alone(clients)
        if "pause" in changed and self._was_alone:
            self._end_pause()
        *_, is_stored = answers
        # Another process may have begun meanwhile.
        if changed and self._was_alone and self._is_alone(admin.clients()):
            self._state.restore(admin)
        if not is_stored:  # A FLUSHALL, by the test or above, removed it.
            self._state.store(admin)
        self._disconnect_strays(clients, lease)
        return lease

    def _end_pause(self) -> None:
        """End a CLIENT PAUSE with a second connection, because the flush waits for its end."""
        with suppress(WarmstackError, NotReady, NotOurs):
            second = self._connect()
            second.attempt(("CLIENT", "UNPAUSE"))
            second.close()

    def _disconnect_strays(self, clients: Sequence[Client], lease: Lease) -> None:
        """Disconnect and report clients that wait or listen in the databases of the lease.

        They would receive what the next test sends. A client that the test has closed may take a
        moment to disconnect.
        """

        def strays(clients: Iterable[Client]) -> dict[int, Client]:
            return {
                each.id: each
                for each in clients
                if each.is_waiting
                and (self._whole or each.database in lease.indexes)
                and each.id not in self._suite_clients
                and not each.name.startswith(NAME)
            }

        admin, found = self._admin, strays(clients)
        deadline = originals.monotonic() + LEAK_GRACE
        while found and originals.monotonic() < deadline:
            originals.sleep(_POLL_INTERVAL)
            now = strays(admin.clients())
            found = {each: client for each, client in now.items() if each in found}
        for each in found.values():
            name = f" {each.name!r}" if each.name else ""
            what = "was subscribed" if "P" in each.flags else f"was in {each.command.upper()}"
            test = self._last_test or "before the first test"
            self._found(test, f"it left a Redis client{name} that {what}")
        while found and originals.monotonic() < deadline + LEAK_GRACE:
            # If the server refuses, the client has disconnected.
            admin.attempt(*(("CLIENT", "KILL", "ID", each) for each in found))
            # A client that reconnects at once is killed too; a slower one, after the next test.
            originals.sleep(_RECONNECT_INTERVAL)
            found = strays(admin.clients())

    def _look(self, *, restore: bool) -> Look:
        now = self._state.look(self._admin, self._activity())
        if not (restore and now.alone and self._state.changed(now.counts)):
            return now
        self._state.restore(self._admin)
        return self._state.look(self._admin, self._activity())

    def _activity(self) -> Look:
        """Return only the counts and the clients; an external server may hide its counts."""
        counted = [] if self._external else [("INFO", "commandstats")]
        listing, *stats = self._admin.commands(("CLIENT", "LIST"), *counted)
        clients = parse_clients(listing)
        ids = frozenset(each.id for each in clients)
        return Look(parse_counts("".join(stats)), {}, ids, self._is_alone(clients))

    # Taking a lease.

    def _take_lease(self) -> Lease:
        """Take free databases; if possible, those that this process had before."""
        admin, survey = self._admin, self._survey(self._at)
        if "pause" in self._state.changed(survey.counts) and self._is_alone(survey.clients):
            admin.attempt(("CLIENT", "UNPAUSE"))  # The claim would wait for the pause to end.
        for block in self._free_blocks(survey):
            if self._claim(survey, block, str(admin.id)):
                self._restore_after_kill(survey)
                admin.command("SELECT", block.start)
                return self._lease_of(block)
        admin.command("CLIENT", "SETNAME", NAME)
        raise self._none_free(survey)

    def _lease_of(self, block: range) -> Lease:
        urls = (redis_url(self._admin.endpoint, each) for each in block)
        return Lease(block.start, tuple(urls))

    def _survey(self, at: range | None) -> _Survey:
        """Read which databases are leased, and select the one with the plugin's keys.

        If the lease must have the databases *at*, it reads only those.
        """
        admin = self._admin
        settings, listing, stats = admin.attempt(
            ("CONFIG", "GET", "databases"), ("CLIENT", "LIST"), ("INFO", "commandstats")
        )
        # A managed service may refuse some commands. Necessary ones are sent again, to raise that.
        total = int(settings[1]) if settings else admin.databases()
        clients = admin.clients() if listing is None else parse_clients(listing)
        self._home = total - 1 if self._whole else 0
        starts = [0] if self._whole else range(1, total - self._count + 1, self._count)
        blocks = [at] if at else [range(each, each + self._count) for each in starts]
        if not blocks:
            from pytest_warmstack.redis.errors import LeaseFailed

            raise LeaseFailed.too_many_asked(databases=total, count=self._count)
        indexes = [index for block in blocks for index in block]
        _, stored, holders = admin.commands(
            ("SELECT", self._home), ("GET", STORED), ("MGET", *map(_key, indexes))
        )
        return _Survey(
            total=total,
            clients=clients,
            others=self._others(clients),
            counts=parse_counts(stats or ""),
            stored=stored,
            blocks=blocks,
            holders={index: each or "" for index, each in zip(indexes, holders, strict=True)},
            filled=admin.filled() if self._external else {},
        )

    def _free_blocks(self, survey: _Survey) -> Iterable[range]:
        """Return the databases that can be leased, the best first.

        Databases whose process is gone come last: it may only have lost its connection.
        """
        ids = {str(each.id) for each in survey.clients if each.id not in self._ids}

        def is_free(block: range) -> bool:
            taken = survey.leased.intersection(block) or survey.unmarked(block)
            holders = [survey.holders[each] for each in block]
            return not (
                taken
                or not ids.isdisjoint(holders)
                or any(each.startswith(_DEVELOPMENT) for each in holders)
            )

        def rank(block: range) -> tuple[bool, bool]:
            return block.start != self._last_index, any(survey.holders[each] for each in block)

        return sorted(filter(is_free, survey.blocks), key=rank)

    def _claim(self, survey: _Survey, block: range, holder: str) -> bool:
        """Lease the databases of *block* to *holder*; return False if a process was faster."""
        # Set the name first: from now on, other processes see that these are taken.
        host = re.sub(r"[^!-~]", "?", socket.gethostname())  # A name can't contain spaces.
        name = f"{_LEASE}{block[0]}-{block[-1]}:process-{originals.getpid()}@{host}"
        must_be_empty = block.start if self._external else ""
        keys, holders = map(_key, block), (survey.holders[each] for each in block)
        words = (len(block), *keys, holder, *holders, must_be_empty)
        _, is_claimed = self._admin.commands(("CLIENT", "SETNAME", name), ("EVAL", _CLAIM, *words))
        return bool(is_claimed)

    def _restore_after_kill(self, survey: _Survey) -> None:
        """Remember the server's pristine state; restore it if a killed run changed it.

        After a reconnection a test is running, so this does nothing then.
        """
        if (
            self._state.remember(self._admin, survey.stored)
            and self._state.changed(survey.counts)
            and self._is_alone(self._admin.clients())
        ):
            self._state.restore(self._admin)

    def _none_free(self, survey: _Survey) -> WarmstackError:
        from pytest_warmstack.redis.errors import LeaseFailed

        if self._at is not None:
            return LeaseFailed.taken(index=self._at.start)
        unmarked = set().union(*map(survey.unmarked, survey.blocks)) - survey.leased
        if not unmarked:
            return LeaseFailed.none_free(
                databases=survey.total,
                count=self._count,
                holders=[
                    # For example `5-9: process-7@host, 127.0.0.1:50123`.
                    f"{each.name.removeprefix(_LEASE).replace(':', ': ', 1)}, {each.address}"
                    for each in survey.others
                ],
                development=sum(each.startswith(_DEVELOPMENT) for each in survey.holders.values()),
            )
        examples = []
        for index in sorted(unmarked)[:12]:
            _, key, _ = self._admin.commands(("SELECT", index), ("RANDOMKEY",), ("SELECT", 0))
            keys = survey.filled[index]
            plural = "" if keys == 1 else "s"
            examples.append(f"database {index}: {keys} key{plural}, such as {key!r}")
        return LeaseFailed.not_empty(
            databases=survey.total, count=self._count, leased=len(survey.leased), found=examples
        )


def _key(index: int) -> str:
    return f"{_LEASE}{index}"


def _flushes(indexes: range) -> list[Sequence[str | int]]:
    commands = [(("SELECT", index), ("FLUSHDB", "SYNC")) for index in indexes]
    return [command for pair in commands for command in pair]


def reserved(admin: Admin) -> dict[int, str]:
    """Return the databases for development, each with its project; see `Leases.reserve`."""
    indexes = range(1, admin.databases())
    _, holders = admin.commands(("SELECT", 0), ("MGET", _key(0), *map(_key, indexes)))
    return {
        index: holder.removeprefix(_DEVELOPMENT)
        for index, holder in enumerate(holders)
        if (holder or "").startswith(_DEVELOPMENT)
    }


def release(admin: Admin, index: int) -> None:
    """Empty a database for development, and let processes lease it again."""
    admin.commands(("SELECT", index), ("FLUSHDB", "SYNC"), ("SELECT", 0), ("DEL", _key(index)))


def leased(name: str) -> range | None:
    """Return the databases that the connection called *name* has leased, or None."""
    match = re.match(rf"{_LEASE}(\d+)-(\d+)", name)
    return range(int(match[1]), int(match[2]) + 1) if match else None
