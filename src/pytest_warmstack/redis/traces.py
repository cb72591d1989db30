"""What tests leave in Redis and no flush undoes: found out from its counters, and put right.

Settings, functions, scripts and a pause are the whole server's. Clients that wait or listen belong
to somebody's databases, and would take from the next test what it is about.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Final

from redis.exceptions import ResponseError

from pytest_warmstack import originals
from pytest_warmstack.redis.admin import BUSY, NAME, Admin, Client

SETTINGS: Final = f"{NAME}:config"
"""The key with the server's settings, as they were before any test."""

KINDS: Final[Mapping[str, Sequence[str]]] = {
    "config": ("config", "config|set"),
    "functions": ("function", "function|load", "function|restore", "function|delete"),
    "scripts": ("script", "script|load"),
    "pause": ("client|pause",),
}
"""What no flush undoes, and the commands that do it; Redis before 7 counts no subcommands."""

GRACE: Final = 0.2
"""Seconds that a client which a test has closed may take to be gone."""

STUBBORN: Final = 5.0
"""Seconds that a script may take to end when it is told to."""

ANEW: Final = 0.02
"""Seconds after which a client that was cut off is looked for once more."""


class ServerWide:
    """What tests do to a server as a whole, and how it was before."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}
        self._settings: dict[str, str] = {}

    def remember(self, admin: Admin, known: str | None) -> None:
        """Remember the settings before any test: as *known* tells them, else as they are now.

        The connection is at the database that holds our keys.
        """
        if self._settings:
            return
        if known is not None:
            self._settings = json.loads(known)
            return
        self._settings = admin.settings()
        self.store(admin)

    def store(self, admin: Admin) -> None:
        """Write the settings down for other processes, if the server has the memory for it."""
        with suppress(ResponseError):
            admin.command("SET", SETTINGS, json.dumps(self._settings))

    def done(self, stats: Mapping[str, int]) -> set[str]:
        """Return the kinds of things that somebody has done since they were put right."""
        return {kind for kind in KINDS if count(stats, kind) != self._seen.get(kind, 0)}

    def undo(self, admin: Admin, done: Collection[str]) -> None:
        """Put right what was *done*; there must be no other process that may want it."""
        if "functions" in done:
            with suppress(ResponseError):
                admin.command("FUNCTION", "FLUSH", "SYNC")
        if "scripts" in done:
            with suppress(ResponseError):  # Before 6.2 it takes no SYNC.
                admin.command("SCRIPT", "FLUSH", "SYNC")
        if "config" in done:
            self._reset(admin)
        stats = admin.stats(admin.command("INFO", "commandstats"))
        self._seen = {kind: count(stats, kind) for kind in KINDS}

    def free(self, admin: Admin) -> None:
        """Undo what keeps a server from being written to: settings, or a master that it follows.

        The connection is at the database that holds our keys.
        """
        with suppress(ResponseError):
            admin.command("REPLICAOF", "NO", "ONE")
        self.remember(admin, admin.command("GET", SETTINGS))
        self._reset(admin)

    def _reset(self, admin: Admin) -> None:
        now = admin.settings()
        for name, value in self._settings.items():
            if now.get(name) != value:
                # Some can't be set while the server runs; those no test has changed.
                with suppress(ResponseError):
                    admin.command("CONFIG", "SET", name, value)


class Untouched(ServerWide):
    """The same for a server that somebody else runs: what is the whole server's is left alone."""

    def remember(self, admin: Admin, known: str | None) -> None:
        """Remember nothing."""

    def store(self, admin: Admin) -> None:
        """Write nothing down."""

    def done(self, stats: Mapping[str, int]) -> set[str]:
        """Return nothing: whoever did it may have been anybody."""
        return set()


def end_script(admin: Admin) -> None:
    """End the script or function that holds the server up, unless it has written something.

    It is only told to end, and goes on until it hears that: for `STUBBORN` seconds at most.
    """
    deadline = originals.monotonic() + STUBBORN
    while originals.monotonic() < deadline:
        for kind in ("SCRIPT", "FUNCTION"):
            with suppress(ResponseError):
                admin.command(kind, "KILL")
        try:
            admin.command("PING")
        except ResponseError as error:
            if str(error).startswith(BUSY):
                originals.sleep(ANEW)
                continue
        return


def end_strays(
    admin: Admin,
    clients: Sequence[Client],
    is_ours: Callable[[Client], bool],
    tell: Callable[[str], None],
) -> None:
    """Disconnect those of *clients* who wait or listen in databases of ours, and *tell* of each.

    Those that a test has closed may take a moment to be gone.
    """
    strays = {each.id for each in clients if _is_stray(each, is_ours)}
    deadline = originals.monotonic() + GRACE
    while strays and originals.monotonic() < deadline:
        originals.sleep(0.005)
        strays &= {each.id for each in admin.clients() if _is_stray(each, is_ours)}
    living = [each for each in clients if each.id in strays]
    for each in living:
        name = f" {each.name!r}" if each.name else ""
        what = "was subscribed" if "P" in each.flags else f"was in {each.command.upper()}"
        tell(f"it left a Redis client{name} that {what}")
    while living and originals.monotonic() < deadline + GRACE:
        for each in living:
            with suppress(ResponseError):  # It has gone by itself.
                admin.command("CLIENT", "KILL", "ID", each.id)
        # One that connects anew at once is met here; one that takes its time, a test later.
        originals.sleep(ANEW)
        living = [each for each in admin.clients() if _is_stray(each, is_ours)]


def described(admin: Admin, index: int, keys: int) -> str:
    """Return what a database of somebody else's holds, for an error's text."""
    _, example, _ = admin.commands(("SELECT", index), ("RANDOMKEY",), ("SELECT", 0))
    plural = "" if keys == 1 else "s"
    return f"database {index}: {keys} key{plural}, such as {example!r}"


def count(stats: Mapping[str, int], kind: str) -> int:
    """Return how often commands of a *kind* were called."""
    return sum(stats.get(command, 0) for command in KINDS[kind])


def _is_stray(client: Client, is_ours: Callable[[Client], bool]) -> bool:
    busy = client.waits or client.listens
    return busy and is_ours(client) and not client.name.startswith(NAME)
