"""What goes wrong inside a running Redis."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.servers.errors import ServerFailed


class CommandRefused(ServerFailed):
    """A server that is ready refused a *command* of this package; *answer* is what it said."""

    command = answer = ""

    @classmethod
    def by_redis(cls, *, command: str, answer: str) -> CommandRefused:
        """Tell which *command* it was, passwords hidden, and what Redis answered."""
        error = cls(
            f"Redis refused the command {command}.",
            why=answer,
            todo=[
                *_redis_hints(answer),
                "see whether a test changed what the whole server does (CONFIG SET, ACL)",
            ],
        )
        error.command, error.answer = command, answer
        return error


class LeaseFailed(WarmstackError):
    """No Redis database could be leased, or emptied."""

    @classmethod
    def none_free(cls, *, databases: int, count: int, holders: Sequence[str]) -> LeaseFailed:
        """Every database of the server is leased by a living process; *holders* tells by whom."""
        shown = [f"databases {each}" for each in holders[:12]]
        more = [f"... and {len(holders) - 12} more"] if len(holders) > 12 else []
        return cls(
            "Every database of the Redis server is in use.",
            why=f"{len(holders)} living processes hold the {databases - 1} that can be leased, and"
            f" this one needs {count} in a row",
            looked_at=["the leases in database 0, and the server's list of clients", *shown, *more],
            todo=[
                "use fewer workers, or end the other runs on this server",
                "or give each process a server of its own: warmstack_redis = per-process",
            ],
        )

    @classmethod
    def not_ours(
        cls, *, databases: int, count: int, leased: int, found: Sequence[str]
    ) -> LeaseFailed:
        """The databases of an external server that no process holds are not empty.

        *found* tells what is in them.
        """
        return cls(
            "No database of the Redis server can be used: those that are free hold keys.",
            why="a database with keys is only emptied if it has our mark, which these have not,"
            f" and this process needs {count} in a row (of {databases}, processes of ours"
            f" hold {leased})",
            looked_at=[*found],
            todo=[
                "empty one by hand, if that is rubbish: redis-cli -n NUMBER FLUSHDB",
                "or name a server with empty databases, or leave the URL out: then a server is "
                "started for you",
            ],
        )

    @classmethod
    def not_whole(cls) -> LeaseFailed:
        """Each process is to have a server of its own, and the server is external."""
        return cls(
            "A Redis server that somebody else runs can't be had for one process alone.",
            why="a URL was given, and warmstack_redis = per-process",
            looked_at=["WARMSTACK_REDIS_URL", "WARMSTACK_REDIS"],
            todo=[
                "leave the URL out: then a server is started for each process",
                "or let the processes share it: warmstack_redis = shared",
            ],
        )

    @classmethod
    def no_server(cls, *, servers: int) -> LeaseFailed:
        """Every server that a process could have for itself is another's."""
        return cls(
            "There is no Redis server left for this process.",
            why=f"each process has one of its own, and {servers} others have them all",
            looked_at=["the server of each number, for a living holder"],
            todo=[
                "use fewer workers, or end other runs",
                "or let them share one: warmstack_redis = shared",
            ],
        )

    @classmethod
    def too_many_asked(cls, *, databases: int, count: int) -> LeaseFailed:
        """More databases are asked for than the server has."""
        return cls(
            "The Redis server has fewer databases than one process asks for.",
            why=f"{count} are asked for; it has {databases}, and the first one holds the leases",
            looked_at=["its setting databases"],
            todo=[f"choose warmstack_redis_databases below {databases}"],
        )

    @classmethod
    def silent(cls, *, seconds: float, test: str) -> LeaseFailed:
        """Redis has not answered for *seconds*; *test* is the one that was done last."""
        return cls(
            "Redis does not answer.",
            why=f"its database could not be emptied within {seconds:g} seconds",
            looked_at=[
                f"the connection that the plugin keeps open to it, after {test or 'no test'}"
            ],
            todo=[
                "see whether a test paused it (CLIENT PAUSE, DEBUG SLEEP) or left a script running",
                "or give each process a server of its own: warmstack_redis = per-process",
            ],
        )

    @classmethod
    def refused(cls, *, command: str, answer: str, test: str) -> LeaseFailed:
        """Redis refuses a command that empties the databases; *test* is the last that was done."""
        return cls(
            "The Redis database could not be emptied.",
            why=f"Redis refused the command {command}: {answer}",
            looked_at=[f"the server's answer, after {test or 'no test'}"],
            todo=[
                *_redis_hints(answer),
                "see whether a test changed what the whole server does (REPLICAOF, CONFIG SET, "
                "ACL), or another process that uses this server",
                "or give each process a server of its own: warmstack_redis = per-process",
            ],
        )


def _redis_hints(answer: str) -> list[str]:
    """Return what helps against an answer of Redis', known by the code that it begins with."""
    hints = {
        "OOM": "give it more memory: CONFIG SET maxmemory 0 lifts the limit",
        "NOPERM": "give the user the right: ACL SETUSER NAME ~* &* +@all",
        "READONLY": "it follows another server: REPLICAOF NO ONE ends that",
        "MISCONF": 'it can\'t write its data to a disk: CONFIG SET save "" ends the attempts',
    }
    code = answer.partition(" ")[0]
    return [hints[code]] if code in hints else []
