"""What belongs to a whole Redis and no flush undoes: who has changed it, and how it is put back.

Settings, functions, users, scripts and a pause are the whole server's. There are two states to put
back: the pristine one, from before any run, and the suite's, which is the pristine one with what
fixtures of a wider scope than a test have set up. Clients that wait or listen belong to somebody's
databases, and would take from the next test what it is about.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from pytest_warmstack import originals
from pytest_warmstack.redis.admin import BUSY, NAME, SECRETS, Admin, Client
from pytest_warmstack.redis.errors import CommandRefused

STORED: Final = f"{NAME}:state"
"""The key with the server's pristine state."""

KINDS: Final[Mapping[str, Sequence[str]]] = {
    "config": ("config", "config|set"),
    "functions": (
        *("function", "function|load", "function|restore"),
        *("function|delete", "function|flush"),
    ),
    "users": ("acl", "acl|setuser", "acl|deluser", "acl|load"),
    "scripts": ("script", "script|load"),
    "pause": ("client|pause",),
}
"""What no flush undoes, and the commands that do it; Redis before 7 counts no subcommands."""

KEEPING: Final = (*KINDS["scripts"], "eval", "eval_ro")
"""The commands after which a script is there to be called by its digest."""

LEAK_GRACE: Final = 0.2
"""Seconds that a client which a test has closed may take to be gone."""

STUBBORN: Final = 5.0
"""Seconds that a script may take to end after SCRIPT KILL."""

ANEW: Final = 0.02
"""Seconds after which a client that was cut off is looked for once more."""

State = dict[str, str]
"""What can be put back: the value of each `config NAME`, `function LIBRARY` and `user NAME`."""

Counts = dict[str, int]
"""How often each command was called since the server was started."""

_STATS: Final = ("INFO", "commandstats")
_CLIENTS: Final = ("CLIENT", "LIST")
_READ: Final = (("CONFIG", "GET", "*"), ("FUNCTION", "LIST", "WITHCODE"), ("ACL", "LIST"))


IsAlone = Callable[[Sequence[Client]], bool]
"""Whether no other process has a lease, by the server's clients."""


class Look(NamedTuple):
    """The server as it was before a fixture of a wider scope ran: its counters and its state."""

    counts: Counts
    state: State
    clients: frozenset[int] = frozenset()
    alone: bool = False


class ServerState:
    """The state of a server as a whole: before any run, as the suite wants it, and as it is."""

    def __init__(self) -> None:
        self._pristine: State = {}
        self._suite: State = {}
        self._keeps_scripts = False
        # The counters when the server was last in the suite's state.
        self._seen: Counts = {}
        # The last look: while the counters stand there, the state is known without reading it.
        self._known = Look({}, {})
        # The ids of clients that connected while a fixture of the suite's was set up.
        self.clients: set[int] = set()

    def remember(self, admin: Admin, stored: str | None) -> bool:
        """Remember the pristine state: as *stored* tells it, else as the server is now.

        Return whether that is news. The connection is at the database that holds our keys.
        """
        if self._pristine:
            return False
        if stored is not None:
            self._pristine = json.loads(stored)
        else:
            self._known = read(admin)
            self._pristine, self._seen = self._known.state, self._known.counts
            self.store(admin)
        self._suite = dict(self._pristine)
        return True

    def store(self, admin: Admin) -> None:
        """Write the pristine state down for other processes, if the server has room for it."""
        admin.attempt(("SET", STORED, json.dumps(self._pristine)))

    def done(self, counts: Counts) -> set[str]:
        """Return the kinds of things that were done since the server was in the suite's state."""
        return {kind for kind in KINDS if _differ(counts, self._seen, KINDS[kind])}

    def put_back(self, admin: Admin) -> None:
        """Bring the server to the suite's state; there must be no other process that uses it."""
        now = read(admin)
        commands = changes(now.state, self._suite)
        if not self._keeps_scripts and _differ(now.counts, self._seen, KINDS["scripts"]):
            commands.append(("SCRIPT", "FLUSH", "SYNC"))
        # Some settings can't be set while the server runs; those no test has changed.
        *_, stats = admin.attempt(*commands, _STATS)
        self._seen = Admin.stats(stats or "")
        self._known = Look(self._seen, dict(self._suite))

    def look(self, admin: Admin, is_alone: IsAlone) -> Look:
        """Return how the server is before a fixture that may set it up for the suite."""
        stats, listed = admin.commands(_STATS, _CLIENTS)
        clients = Admin.clients_of(listed)
        counts = Admin.stats(stats)
        if any(_differ(counts, self._known.counts, KINDS[kind]) for kind in KINDS):
            self._known = read(admin)
            counts = self._known.counts
        return Look(counts, self._known.state, _ids(clients), is_alone(clients))

    def adopt(self, admin: Admin, before: Look, is_alone: IsAlone) -> bool:
        """Take what has changed since the look *before* for the suite's; return whether any has.

        Where another process may have done the same before, so that nothing has changed, all
        that differs from the suite's state is taken. One that was there at the look counts, also
        if it has ended since.
        """
        stats, listed = admin.commands(_STATS, _CLIENTS)
        clients = Admin.clients_of(listed)
        self.clients |= _ids(clients) - before.clients
        counts = Admin.stats(stats)
        self._keeps_scripts |= _differ(counts, before.counts, KEEPING)
        if not any(_differ(counts, before.counts, KINDS[kind]) for kind in KINDS):
            return False
        was_clean = not self.done(before.counts)
        self._known = now = read(admin)
        was_alone = before.alone and is_alone(clients)
        bases = [before.state] if was_alone else [before.state, self._suite]
        for name in now.state.keys() | before.state.keys() | self._suite.keys():
            value = now.state.get(name)
            if any(base.get(name) != value for base in bases):
                self._suite.pop(name, None)
                if value is not None:
                    self._suite[name] = value
        if was_clean:
            self._seen = now.counts
        return True

    def end_suite(self) -> None:
        """Make the pristine state the one to put back, at the end of the run."""
        if self._keeps_scripts or self._suite != self._pristine:
            self._suite, self._keeps_scripts, self._seen = dict(self._pristine), False, {}

    def free(self, admin: Admin) -> None:
        """Undo what keeps a server from being written to: settings, or a master that it follows.

        The connection is at the database that holds our keys.
        """
        admin.attempt(("REPLICAOF", "NO", "ONE"))
        self.remember(admin, admin.command("GET", STORED))
        self.put_back(admin)


class Untouched(ServerState):
    """The same for an external server: what belongs to the whole server is left alone."""

    def remember(self, admin: Admin, stored: str | None) -> bool:
        """Remember nothing."""
        return False

    def store(self, admin: Admin) -> None:
        """Write nothing down."""

    def done(self, counts: Counts) -> set[str]:
        """Return nothing: whoever did it may have been anybody."""
        return set()

    def look(self, admin: Admin, is_alone: IsAlone) -> Look:
        """Return who is connected."""
        return Look({}, {}, _ids(admin.clients()))

    def adopt(self, admin: Admin, before: Look, is_alone: IsAlone) -> bool:
        """Take the clients that have connected since the look *before* for the suite's."""
        self.clients |= _ids(admin.clients()) - before.clients
        return False


def _ids(clients: Sequence[Client]) -> frozenset[int]:
    return frozenset(each.id for each in clients)


def read(admin: Admin) -> Look:
    """Return the state of the server, but for settings that hold a secret, and its counters."""
    settings, libraries, users, stats = admin.attempt(*_READ, _STATS)
    state = {f"config {name}": value for name, value in _pairs(settings) if name not in SECRETS}
    for each in libraries or ():  # Redis before 7 has none.
        library = dict(_pairs(each))
        state[f"function {library['library_name']}"] = library["library_code"]
    for line in users or ():
        _, name, rules = line.split(" ", 2)
        state[f"user {name}"] = rules
    return Look(Admin.stats(stats or ""), state)


def changes(now: State, wanted: State) -> list[Sequence[str | int]]:
    """Return the commands that lead from one state to another.

    What is to go comes first: no two libraries may have a function of the same name. Settings
    come before libraries: without memory none is loaded.
    """
    names = [name for name in now.keys() | wanted.keys() if now.get(name) != wanted.get(name)]
    return [
        command
        for key in sorted(names, key=lambda name: (name in wanted, name))
        if (command := _change(key, wanted.get(key)))
    ]


def _change(key: str, value: str | None) -> Sequence[str | int]:
    """Return the command that gives a part of the state its *value*, or that removes it."""
    kind, name = key.split(" ", 1)
    if kind == "function":
        if value is None:
            return ("FUNCTION", "DELETE", name)
        return ("FUNCTION", "LOAD", "REPLACE", value)
    if kind == "user":
        if value is None:
            return ("ACL", "DELUSER", name)
        # A selector is one argument, with the spaces in it.
        return ("ACL", "SETUSER", name, "reset", *re.findall(r"\(.*?\)(?= |$)|\S+", value))
    return () if value is None else ("CONFIG", "SET", name, value)


def _pairs(flat: Sequence[str] | None) -> zip[tuple[str, str]]:
    items = iter(flat or ())
    return zip(items, items, strict=True)


def end_script(admin: Admin) -> None:
    """End the script or function that holds the server up, unless it has written something.

    It is only told to end, and goes on until it hears that: for `STUBBORN` seconds at most.
    """
    deadline = originals.monotonic() + STUBBORN
    while originals.monotonic() < deadline:
        admin.attempt(("SCRIPT", "KILL"), ("FUNCTION", "KILL"))
        try:
            admin.command("PING")
        except CommandRefused as error:
            if error.answer.startswith(BUSY):
                originals.sleep(ANEW)
                continue
        return


def end_strays(
    admin: Admin,
    clients: Sequence[Client],
    is_ours: Callable[[Client], bool],
    tell: Callable[[str], None],
) -> None:
    """Disconnect those of *clients* that wait or listen in leased databases, and *tell* of each.

    Those that a test has closed may take a moment to be gone.
    """
    strays = {each.id for each in clients if _is_stray(each, is_ours)}
    deadline = originals.monotonic() + LEAK_GRACE
    while strays and originals.monotonic() < deadline:
        originals.sleep(0.005)
        strays &= {each.id for each in admin.clients() if _is_stray(each, is_ours)}
    living = [each for each in clients if each.id in strays]
    for each in living:
        name = f" {each.name!r}" if each.name else ""
        what = "was subscribed" if "P" in each.flags else f"was in {each.command.upper()}"
        tell(f"it left a Redis client{name} that {what}")
    while living and originals.monotonic() < deadline + LEAK_GRACE:
        # One that is refused has gone by itself.
        admin.attempt(*(("CLIENT", "KILL", "ID", each.id) for each in living))
        # One that connects again at once is met here; one that takes its time, a test later.
        originals.sleep(ANEW)
        living = [each for each in admin.clients() if _is_stray(each, is_ours)]


def described(admin: Admin, index: int, keys: int) -> str:
    """Return what a database of an external server holds, for the text of an error."""
    _, example, _ = admin.commands(("SELECT", index), ("RANDOMKEY",), ("SELECT", 0))
    plural = "" if keys == 1 else "s"
    return f"database {index}: {keys} key{plural}, such as {example!r}"


def _differ(one: Counts, other: Counts, commands: Sequence[str]) -> bool:
    """Tell whether any of *commands* was called more often in one of the two."""
    return any(one.get(each, 0) != other.get(each, 0) for each in commands)


def _is_stray(client: Client, is_ours: Callable[[Client], bool]) -> bool:
    busy = client.waits or client.listens
    return busy and is_ours(client) and not client.name.startswith(NAME)
