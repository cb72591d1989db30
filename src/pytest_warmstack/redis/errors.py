"""Errors about leases. Only a failure imports this module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pytest_warmstack.errors import WarmstackError

_SHARE: Final = "or let the processes share one server: warmstack_redis = shared"
_SEPARATE: Final = "or give each process its own server: warmstack_redis = per-process"


class LeaseFailed(WarmstackError):
    """No Redis database could be leased, or emptied."""

    @classmethod
    def none_free(
        cls, *, databases: int, count: int, holders: Sequence[str], development: int = 0
    ) -> LeaseFailed:
        """Running processes, the *holders*, have all databases but those for *development*."""
        more = [f"... and {len(holders) - 12} more"] if len(holders) > 12 else []
        return cls(
            "Every database of the Redis server is in use.",
            why=f"{len(holders)} running processes hold the {databases - 1} databases that can be "
            f"leased, and this process needs {count} in a row"
            + (f"; {development} of them are reserved for development" if development else ""),
            looked_at=[*(f"databases {each}" for each in holders[:12]), *more],
            todo=[
                "use fewer workers (-n), or stop other runs on this server",
                _SEPARATE,
                *(["or remove a database for development: warmstack clean"] * bool(development)),
            ],
        )

    @classmethod
    def not_empty(
        cls, *, databases: int, count: int, leased: int, found: Sequence[str]
    ) -> LeaseFailed:
        """The free databases of an external server hold keys; *found* gives examples."""
        return cls(
            "No database of the Redis server can be used: the free ones are not empty.",
            why="pytest-warmstack only empties databases that it has used before; this process "
            f"needs {count} in a row, and other processes use {leased} of the {databases}",
            looked_at=found,
            todo=[
                "if the keys are not needed, empty a database: redis-cli -n NUMBER FLUSHDB",
                "or use a server with empty databases, or remove the URL: pytest-warmstack then "
                "starts a server for you",
            ],
        )

    @classmethod
    def taken(cls, *, index: int) -> LeaseFailed:
        """Another process has leased the database that `warmstack_env`'s variables name."""
        return cls(
            f"Another process has taken Redis database {index}.",
            why="the variables of warmstack_env name that database, and the application may have "
            "read them; another run leased it after this one began",
            todo=["run again: the next run chooses another database"],
        )

    @classmethod
    def not_whole(cls) -> LeaseFailed:
        """The settings ask for a server per process and also name an external server."""
        return cls(
            "Conflicting settings: a Redis URL is set, and warmstack_redis = per-process.",
            why="an external server is always shared by all processes",
            looked_at=["WARMSTACK_REDIS_URL", "WARMSTACK_REDIS"],
            todo=["remove the URL: pytest-warmstack then starts a server per process", _SHARE],
        )

    @classmethod
    def no_server(cls, *, servers: int) -> LeaseFailed:
        """Other processes use all *servers* that a project may have."""
        return cls(
            "Every Redis server of this project is in use.",
            why=f"each process needs its own server, and other processes use all {servers}",
            todo=["use fewer workers (-n), or stop other runs", _SHARE],
        )

    @classmethod
    def too_many_asked(cls, *, databases: int, count: int) -> LeaseFailed:
        """The server has fewer databases than one process asks for."""
        return cls(
            "The Redis server has fewer databases than one process asks for.",
            why=f"{count} are needed; it has {databases}, and the first one holds the leases",
            todo=[f"set warmstack_redis_databases to less than {databases}"],
        )

    @classmethod
    def silent(cls, *, seconds: float, test: str) -> LeaseFailed:
        """Redis didn't answer for *seconds*; *test* was the last test that used it."""
        return cls(
            "Redis does not answer.",
            why=f"its database could not be emptied within {seconds:g} seconds, after "
            f"{test or 'no test'}",
            todo=[
                "check whether a test paused the server (CLIENT PAUSE, DEBUG SLEEP) or left a "
                "script running",
                _SEPARATE,
            ],
        )

    @classmethod
    def refused(cls, *, command: str, answer: str, hints: Sequence[str], test: str) -> LeaseFailed:
        """Redis refused to empty the databases; *test* was the last test that used it."""
        return cls(
            "The Redis database could not be emptied.",
            why=f"Redis refused the command {command}: {answer}",
            looked_at=[f"the server's answer, after {test or 'no test'}"],
            todo=[
                *hints,
                "check whether a test, or another process, changed the whole server (REPLICAOF, "
                "CONFIG SET, ACL)",
                _SEPARATE,
            ],
        )
