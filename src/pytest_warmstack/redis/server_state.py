"""The state of a whole Redis server, which a flush doesn't reset, and how to restore it.

Settings, functions, users, scripts and a pause belong to the whole server. There are two states to
restore: the pristine state, from before any run, and the suite's state, which adds what fixtures of
a wider scope than a test have set up.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from pytest_warmstack import originals
from pytest_warmstack.redis.connections import (
    NAME,
    SECRET_SETTINGS,
    Admin,
    parse_counts,
)

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
"""The commands that change each kind of state; Redis before 7 doesn't count subcommands."""

_ALL_CHANGES: Final = tuple(command for commands in KINDS.values() for command in commands)

_SCRIPT_CHANGES: Final = (*KINDS["scripts"], "eval", "eval_ro")
"""The commands that make it possible to call a script by its digest."""

_SCRIPT_END_TIMEOUT: Final = 5.0
"""Seconds that a script may take to end after SCRIPT KILL."""

_POLL_INTERVAL: Final = 0.02
"""Seconds between two checks whether a script has ended."""

State = dict[str, str]
"""The values of `config NAME`, `function LIBRARY` and `user NAME`."""

Counts = dict[str, int]
"""How often each command was called since the server started."""


class Look(NamedTuple):
    """The state of the server at one moment; *alone* if no other process had a lease."""

    counts: Counts
    state: State
    clients: frozenset[int] = frozenset()
    alone: bool = False


class ServerState:
    """The pristine state of a server, the suite's state, and the state that was read last.

    The state of an *external* server is never stored, restored or compared.
    """

    def __init__(self, *, external: bool = False) -> None:
        self._external = external
        self._pristine: State = {}
        self._suite: State = {}
        self._keeps_scripts = False
        # The counts when the server was last in the suite's state.
        self._seen: Counts = {}
        # The state that was read last; it is valid until the counts change.
        self._known = Look({}, {})

    def remember(self, admin: Admin, stored: str | None) -> bool:
        """Read the pristine state from *stored* or the server; return False if it was known.

        The connection has selected the database with the plugin's keys.
        """
        if self._pristine or self._external:
            return False
        if stored is not None:
            self._pristine = json.loads(stored)
        else:
            self._known = _read(admin)
            self._pristine, self._seen = self._known.state, self._known.counts
            self.store(admin)
        self._suite = dict(self._pristine)
        return True

    def store(self, admin: Admin) -> None:
        """Store the pristine state for other processes, if the server has enough memory."""
        if not self._external:
            admin.attempt(("SET", STORED, json.dumps(self._pristine)))

    def changed(self, counts: Counts) -> set[str]:
        """Return the kinds of state that may differ from the suite's state now."""
        if self._external:
            return set()
        return {kind for kind in KINDS if _differ(counts, self._seen, KINDS[kind])}

    def restore(self, admin: Admin) -> None:
        """Restore the suite's state. No other process may use the server."""
        now = _read(admin)
        commands = changes(now.state, self._suite)
        if not self._keeps_scripts and _differ(now.counts, self._seen, KINDS["scripts"]):
            commands.append(("SCRIPT", "FLUSH", "SYNC"))
        # A running server refuses to change some settings, so tests can't have changed them.
        *_, stats = admin.attempt(*commands, ("INFO", "commandstats"))
        self._seen = parse_counts(stats or "")
        self._known = Look(self._seen, dict(self._suite))

    def look(self, admin: Admin, now: Look) -> Look:
        """Return *now*, which has only counts and clients, with the server's state added."""
        if not self._external and _differ(now.counts, self._known.counts, _ALL_CHANGES):
            self._known = _read(admin)
            now = now._replace(counts=self._known.counts)
        return now._replace(state=self._known.state)

    def adopt(self, admin: Admin, before: Look, now: Look) -> bool:
        """Add the changes between two looks to the suite's state; return whether there were any.

        If another process was there, it may have made the same changes first. Then everything that
        differs from the suite's state counts as a change.
        """
        self._keeps_scripts |= _differ(now.counts, before.counts, _SCRIPT_CHANGES)
        if not _differ(now.counts, before.counts, _ALL_CHANGES):
            return False
        was_restored = not self.changed(before.counts)
        self._known = _read(admin)
        counts, state, *_ = self._known
        bases = [before.state] if before.alone and now.alone else [before.state, self._suite]
        for name in state.keys() | before.state.keys() | self._suite.keys():
            if any(base.get(name) != state.get(name) for base in bases):
                self._suite.pop(name, None)
                if name in state:
                    self._suite[name] = state[name]
        if was_restored:
            self._seen = counts
        return True

    def end_suite(self) -> None:
        """At the end of the run, make the pristine state the one to restore."""
        if self._keeps_scripts or self._suite != self._pristine:
            self._suite, self._keeps_scripts, self._seen = dict(self._pristine), False, {}

    def make_writable(self, admin: Admin) -> None:
        """Undo settings, or a replication, that make the server refuse writes.

        The connection has selected the database with the plugin's keys.
        """
        admin.attempt(("REPLICAOF", "NO", "ONE"))
        self.remember(admin, admin.command("GET", STORED))
        self.restore(admin)


def _differ(one: Counts, other: Counts, commands: Sequence[str]) -> bool:
    return any(one.get(each, 0) != other.get(each, 0) for each in commands)


def _read(admin: Admin) -> Look:
    """Read the state of the server, without settings that hold a secret, and its counts."""
    settings, libraries, users, stats = admin.attempt(
        ("CONFIG", "GET", "*"),
        ("FUNCTION", "LIST", "WITHCODE"),
        ("ACL", "LIST"),
        ("INFO", "commandstats"),
    )
    state = {f"config {name}": value for name, value in _pairs(settings or ()).items()}
    for name in SECRET_SETTINGS:
        state.pop(f"config {name}", None)
    for library in map(_pairs, libraries or ()):  # Redis before 7 has none.
        state[f"function {library['library_name']}"] = library["library_code"]
    for line in users or ():
        _, name, rules = line.split(" ", 2)
        state[f"user {name}"] = rules
    return Look(parse_counts(stats or ""), state)


def _pairs(flat: Sequence[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def changes(now: State, wanted: State) -> list[Sequence[str | int]]:
    """Return the commands that change the state *now* into the state *wanted*.

    Removals come first: two libraries can't have a function of the same name. Settings come before
    libraries, which can't be loaded without memory.
    """
    names = [name for name in now.keys() | wanted.keys() if now.get(name) != wanted.get(name)]
    names.sort(key=lambda name: (name in wanted, name))
    return [command for name in names if (command := _change(name, wanted.get(name)))]


def _change(part: str, value: str | None) -> Sequence[str]:
    """Return the command that sets a part of the state or, without a value, removes it."""
    kind, name = part.split(" ", 1)
    if value is None:
        removals = {"function": ("FUNCTION", "DELETE", name), "user": ("ACL", "DELUSER", name)}
        return removals.get(kind, ())
    if kind == "function":
        return ("FUNCTION", "LOAD", "REPLACE", value)
    if kind == "user":
        # A selector, in parentheses, is one argument with spaces.
        return ("ACL", "SETUSER", name, "reset", *re.findall(r"\(.*?\)(?= |$)|\S+", value))
    return ("CONFIG", "SET", name, value)


def end_script(admin: Admin) -> None:
    """End the script or function that blocks the server, unless it has written something.

    Redis only requests the end, so wait up to `_SCRIPT_END_TIMEOUT` for it.
    """
    deadline = originals.monotonic() + _SCRIPT_END_TIMEOUT
    while originals.monotonic() < deadline:
        *_, answer = admin.attempt(("SCRIPT", "KILL"), ("FUNCTION", "KILL"), ("PING",))
        if answer is not None:
            return
        originals.sleep(_POLL_INTERVAL)
