"""Whatever Redis answers to a command of the plugin, the user gets an error of the plugin."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from projects import Bench, Library
from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.options import RuntimeName
from pytest_warmstack.redis import overview
from pytest_warmstack.redis.errors import LeaseFailed
from pytest_warmstack.redis.leases import Leases, leased
from pytest_warmstack.servers.errors import ServerFailed
from pytest_warmstack.servers.model import NotOurs, NotReady, Server, redis_url
from refusing import RESET, way_to

ANSWERS = {
    "OOM": b"-OOM command not allowed when used memory > 'maxmemory'.\r\n",
    "NOPERM": b"-NOPERM User default has no permissions to run this command\r\n",
    "READONLY": b"-READONLY You can't write against a read only replica.\r\n",
    "MISCONF": b"-MISCONF Redis is configured to save RDB snapshots, but it can't\r\n",
    "LOADING": b"-LOADING Redis is loading the dataset in memory\r\n",
    "ERR": b"-ERR unknown subcommand\r\n",
    "NOAUTH": b"-NOAUTH Authentication required.\r\n",
    "reset": RESET,
}

DIFFERENT = ("ERR", "LOADING", "reset")
"""Those that redis-py takes in different ways: a refusal, its own end, and the end of the way."""


@dataclass
class Faults:
    """What goes wrong on the way: the answer to each command that *wanted* chooses."""

    answer: bytes = b""
    wanted: Callable[[int, bytes], bool] = lambda number, name: False
    heard: list[bytes] = field(default_factory=list)

    def __call__(self, words: list[bytes]) -> bytes | None:
        """Return the answer in the server's place."""
        self.heard.append(words[0])
        return self.answer if self.wanted(len(self.heard) - 1, words[0]) else None

    def begin(self, which: str, wanted: Callable[[int, bytes], bool]) -> None:
        """Let the answers called *which* be given from now on."""
        self.heard.clear()
        self.answer, self.wanted = ANSWERS[which], wanted


@pytest.fixture
def faults() -> Faults:
    """What goes wrong: nothing yet."""
    return Faults()


@pytest.fixture
def way(standing: Bench, faults: Faults) -> Iterator[Server[Any]]:
    """A Redis of ours, over a way that can have faults."""
    server = standing.ensure(standing.redis)
    with way_to(server.endpoint.host, server.endpoint.port, faults) as port:
        endpoint = server.endpoint.replace(port=port)
        client = standing.redis.connect(endpoint, server.fingerprint, 5)
        yield server.replace(endpoint=endpoint, client=client)
    standing.leave()


def leases(standing: Bench, server: Server[Any]) -> Leases:
    """Return the leases of a process on *server*."""
    return Leases(
        server,
        lambda: standing.redis.connect(server.endpoint, server.fingerprint, 5),
        found=lambda test, trouble: None,
    )


def take(mine: Leases) -> None:
    """Take the lease."""
    mine.take()


def acquire(mine: Leases) -> None:
    """Empty the databases, with something to put back."""
    mine.acquire("a test")


def look_and_adopt(mine: Leases) -> None:
    """Look at what a fixture does."""
    if (look := mine.look(in_test=False)) is not None:
        mine.adopt(look)


def close(mine: Leases) -> None:
    """End the run."""
    mine.close()


def show(mine: Leases) -> None:
    """Do what `warmstack status` does."""
    overview.look(mine._admin)
    mine._admin.used()
    mine._admin.users()


ACTIONS = (take, acquire, look_and_adopt, close, show)


@pytest.mark.parametrize("runtime", [RuntimeName.EMBEDDED], indirect=True)
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("which", ANSWERS)
def test_each_command_may_be_refused(
    standing: Bench, way: Server[Any], faults: Faults, which: str, action: Callable[[Leases], None]
) -> None:
    """All commands at once, and one after the other; afterwards the server is used as before."""
    number = -1  # Of the command that is refused; -1 for all of them.
    while True:
        admin = standing.redis.connect(way.endpoint, way.fingerprint, 5)
        mine = leases(standing, way.replace(client=admin))
        if action is not take:
            mine.acquire("before")
            mine._admin.command("CONFIG", "SET", "maxmemory-samples", 9)
        chosen = number
        faults.begin(which, lambda each, _, chosen=chosen: chosen in {-1, each})  # type: ignore[misc]
        with suppress(WarmstackError):
            action(mine)
        last = len(faults.heard)
        faults.wanted = lambda each, name: False
        if action is not close:
            with suppress(WarmstackError):
                mine.acquire("after")
            mine.acquire("and at last")
            mine.close()
        number += 1
        if number >= last or which not in DIFFERENT:
            break


@pytest.mark.parametrize("runtime", [RuntimeName.EMBEDDED], indirect=True)
@pytest.mark.parametrize("which", ANSWERS)
def test_a_first_connection_may_be_refused(
    standing: Bench, way: Server[Any], faults: Faults, which: str
) -> None:
    """Each of its commands: the server is not ready, or not the one that was meant."""
    for number in range(8):
        faults.begin(which, lambda each, _, number=number: each == number)  # type: ignore[misc]
        with suppress(NotReady, NotOurs):
            standing.redis.connect(way.endpoint, way.fingerprint, 5).close()


@pytest.mark.parametrize("runtime", [RuntimeName.EMBEDDED], indirect=True)
@pytest.mark.parametrize(
    ("which", "hint"),
    [
        ("OOM", "CONFIG SET maxmemory 0"),
        ("NOPERM", "ACL SETUSER"),
        ("READONLY", "REPLICAOF NO ONE"),
        ("MISCONF", "CONFIG SET save"),
    ],
)
def test_a_refusal_names_the_command_the_answer_and_the_cure(
    standing: Bench, way: Server[Any], faults: Faults, which: str, hint: str
) -> None:
    """Also the test after which it happened."""
    mine = leases(standing, way)
    mine.acquire("test_orders.py::test_refund")
    faults.begin(which, lambda _, name: name == b"FLUSHDB")

    with pytest.raises(LeaseFailed, match=r"^The Redis database could not be emptied\.") as caught:
        mine.acquire("the next one")

    assert f"Redis refused the command FLUSHDB SYNC: {which} " in caught.value.why
    assert "after test_orders.py::test_refund" in caught.value.looked_at[0]
    assert hint in caught.value.todo[0]
    mine.close()


@pytest.mark.parametrize("runtime", [RuntimeName.EMBEDDED], indirect=True)
@pytest.mark.parametrize("which", ["LOADING", "reset"])
def test_a_server_that_can_not_be_reached_again_is_lost(
    standing: Bench, way: Server[Any], faults: Faults, which: str
) -> None:
    """With the reason; and the next test finds it when it is there again."""
    mine = leases(standing, way)
    index = mine.acquire("one").index
    faults.begin(which, lambda _, name: True)

    with pytest.raises(ServerFailed, match=r"^Redis stopped answering during the run\."):
        mine.acquire("two")
    faults.wanted = lambda _, name: False

    assert mine.acquire("three").index == index
    mine.close()


@pytest.mark.parametrize("runtime", [RuntimeName.EMBEDDED], indirect=True)
def test_a_connection_that_is_lost_as_the_lease_is_taken_is_made_again(
    standing: Bench, way: Server[Any], faults: Faults
) -> None:
    """Once; it is what every test of the run needs."""
    mine = leases(standing, way)
    faults.begin("reset", lambda number, _: number == 0)

    assert mine.take().index > 0
    mine.close()


@pytest.mark.parametrize("runtime", [RuntimeName.EMBEDDED], indirect=True)
def test_a_database_is_not_used_after_its_lease_was_lost(
    standing: Bench, way: Server[Any], faults: Faults
) -> None:
    """The new connection is there, but it was refused the lease: the next test asks again."""
    mine = leases(standing, way)
    index = mine.acquire("one").index
    mine._admin._connection.disconnect()
    mine._admin._cause = "it was cut off"
    faults.begin("ERR", lambda _, name: name == b"EVAL")
    with pytest.raises(LeaseFailed):
        mine.acquire("two")
    faults.wanted = lambda _, name: False

    assert mine.acquire("three").index == index

    (own,) = [each for each in mine._admin.clients() if each.id == mine._admin.id]
    assert leased(own.name) == range(index, index + 1)
    mine._admin.command("SELECT", 0)
    assert mine._admin.command("GET", f"pytest-warmstack:lease:{index}") == str(own.id)
    mine.close()


@pytest.mark.parametrize("runtime", [RuntimeName.EMBEDDED], indirect=True)
@pytest.mark.parametrize("which", DIFFERENT)
def test_status_shows_a_server_that_refuses(
    embedded_project: Library, way: Server[Any], faults: Faults, which: str
) -> None:
    """One that another team runs: its trouble stands in its row, and the command goes on."""
    wanted = {b"SELECT", b"GET", b"CLIENT", b"INFO"}
    faults.begin(which, lambda number, name: number > 8 and name in wanted)

    url = redis_url(way.endpoint, 0)
    result = embedded_project.warmstack("status", WARMSTACK_REDIS_URL=url, WARMSTACK_RUNTIME="auto")

    text = "\n".join([*result.outlines, *result.errlines])
    assert result.ret == 0
    assert "Traceback" not in text
    assert re.search(r"it does not answer: Redis (refused the command|stopped answering)", text)
