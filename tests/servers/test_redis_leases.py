"""How Redis is shared: each process leases clean databases of its own, or a whole server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis.exceptions
from redis import Redis

from projects import Bench, Library, until, with_command, with_options
from pytest_warmstack.options import RuntimeName
from pytest_warmstack.redis.connections import USER, Admin
from pytest_warmstack.redis.errors import LeaseFailed
from pytest_warmstack.redis.leases import Lease, Leases
from pytest_warmstack.servers.errors import ServerFailed
from pytest_warmstack.servers.model import NotReady, Server, redis_url

REUSE = "--reuse-containers"
LIBRARY = "#!lua name=mine\nredis.register_function('f', function() return 1 end)"

SERVERS = """
import asyncio
import os
import time
from pathlib import Path
import pytest

@pytest.mark.parametrize("number", range(6))
async def test_alone(redis_client, redis_url, redis_container, number):
    with Path("alone.log").open("a") as log:
        log.write(f"{redis_container.id} {os.getpid()} {redis_url.rpartition('/')[2]}\\n")
    # All of them at once.
    deadline = time.monotonic() + 30
    path = Path("alone.log")
    while len({line.split()[1] for line in path.read_text().splitlines()}) < int(os.environ["ALL"]):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    assert await redis_client.dbsize() == 0
    assert not await redis_client.function_list()
    assert (await redis_client.config_get("maxmemory"))["maxmemory"] == "0"
    await redis_client.set("key", number)
    await redis_client.flushall()
    await redis_client.set("key", number)
    await redis_client.config_set("maxmemory", "77mb")
    await redis_client.function_load(
        "#!lua name=mine\\nredis.register_function('f', function() return 1 end)"
    )
    assert await redis_client.get("key") == str(number).encode()
"""

URLS = """
from redis import Redis

def test_fills_them(redis_urls, redis_url):
    assert redis_urls[0] == redis_url
    numbers = [int(url.rpartition("/")[2]) for url in redis_urls]
    assert numbers == list(range(numbers[0], numbers[0] + 5))
    for url in redis_urls:
        with Redis.from_url(url) as client:
            assert client.dbsize() == 0
            client.set("key", "value")

def test_finds_them_empty(redis_urls):
    for url in redis_urls:
        with Redis.from_url(url) as client:
            assert client.dbsize() == 0
            client.set("key", "value")

def test_finds_one_empty(redis_url):
    with Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
"""


@dataclass
class Desk:
    """One Redis server, and whoever leases of it; `told` is what was said of clients left over."""

    bench: Bench
    spec: Any
    told: list[tuple[str, str]] = field(default_factory=list)

    def server(self) -> Server[Any]:
        """Return the server, as one more process reaches it."""
        return self.bench.ensure(self.spec)

    def leases(self, server: Server[Any] | None = None, **options: Any) -> Leases:
        """Return the leases of one more process."""
        server = server or self.server()
        return Leases(
            server,
            lambda: self.spec.connect(server.endpoint, server.fingerprint, 5),
            found=lambda test, trouble: self.told.append((test, trouble)),
            **options,
        )


@pytest.fixture
def desk(standing: Bench) -> Iterator[Desk]:
    """A Redis server in the runtime under test."""
    yield Desk(standing, standing.redis)
    standing.leave()


@pytest.fixture
def small(bench: Bench) -> Desk:
    """A server with seven databases, six of which can be leased."""
    options = with_options(bench.redis, databases="7")
    return Desk(bench, with_command(options, lambda words: [*words, "--databases", "7"]))


def client(lease: Lease, place: int = 0) -> Redis:
    """Return a client of a database that was leased."""
    return Redis.from_url(lease.urls[place])


def count_sent(leases: Leases, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the list of what is sent from now on, in one go each."""
    sent: list[Any] = []
    connection = leases._admin._connection
    send = connection.send_packed_command
    monkeypatch.setattr(
        connection, "send_packed_command", lambda packed: (sent.append(packed), send(packed))
    )
    return sent


embedded_only = pytest.mark.parametrize("runtime", [RuntimeName.EMBEDDED], indirect=True)


# Whose a database is


@embedded_only
def test_at_the_same_moment_each_process_gets_another_database(desk: Desk, runtime: str) -> None:
    """Sixteen at once, and again when half of them have gone."""
    everybody = [desk.leases() for _ in range(16)]
    with ThreadPoolExecutor(16) as pool:
        first = [lease.index for lease in pool.map(lambda each: each.take(), everybody)]
    assert sorted(first) == list(range(1, 17))

    for each in everybody[:8]:
        each.close()
    newer = [desk.leases() for _ in range(8)]
    one = newer[0]
    until(lambda: len(one._others(one._admin.clients())) == 8, "half of them are gone")
    with ThreadPoolExecutor(8) as pool:
        second = [lease.index for lease in pool.map(lambda each: each.take(), newer)]
    assert sorted([*first[8:], *second]) == list(range(1, 17))


@embedded_only
def test_more_processes_than_databases_are_told_who_has_them(small: Desk, runtime: str) -> None:
    """No database is ever shared; when one is free again, it is taken."""
    holders = [small.leases() for _ in range(6)]
    assert [each.take().index for each in holders] == [1, 2, 3, 4, 5, 6]

    late = small.leases()
    with pytest.raises(LeaseFailed, match="Every database of the Redis server is in use") as caught:
        late.take()
    text = str(caught.value)
    assert "6 running processes hold the 6 databases" in text
    assert text.count("process-") == 6

    holders[3].close()
    until(lambda: len(late._others(late._admin.clients())) == 5, "the fourth one is gone")
    assert late.take().index == 4


@embedded_only
def test_blocks_of_databases_never_overlap(small: Desk, runtime: str) -> None:
    """Also when processes ask for different numbers, and when the keys were flushed away."""
    two = small.leases(count=2)
    assert [url[-1] for url in two.take().urls] == ["1", "2"]
    one = small.leases()
    assert one.take().index == 3
    with client(one.take()) as each:
        each.flushall()

    again = small.leases(count=2)
    assert again.take().index == 5
    with pytest.raises(LeaseFailed, match="Every database"):
        small.leases(count=2).take()
    assert small.leases().take().index == 4


@embedded_only
def test_more_databases_than_there_are_can_not_be_asked_for(small: Desk, runtime: str) -> None:
    """The error says how many there are, and what to choose."""
    with pytest.raises(LeaseFailed, match="7 are needed; it has") as caught:
        small.leases(count=7).take()
    assert "warmstack_redis_databases" in str(caught.value)


@embedded_only
def test_a_connection_that_was_lost_takes_no_database_without_a_lease(
    desk: Desk, runtime: str
) -> None:
    """Also when the server can't be reached again at once: the test fails, and not the next one."""
    answers = [NotReady("it starts again"), None]

    def connect() -> Admin:
        if (answer := answers.pop(0)) is not None:
            raise answer
        connected: Admin = desk.spec.connect(server.endpoint, server.fingerprint, 5)
        return connected

    server = desk.server()
    mine = Leases(server, connect, found=lambda test, trouble: pytest.fail(f"{test}: {trouble}"))
    index = mine.acquire("one").index
    desk.server().client.command("CLIENT", "KILL", "ID", server.client.id)

    with pytest.raises(ServerFailed, match="Redis stopped answering"):
        mine.acquire("two")
    lease = mine.acquire("three")

    assert lease.index == index
    assert desk.leases().acquire("other").index != index
    mine.close()


@embedded_only
def test_a_server_that_will_not_flush_is_told_in_its_own_words(desk: Desk, runtime: str) -> None:
    """It is the replica of another one, which may be what another process wants."""
    mine, theirs = desk.leases(), desk.leases()
    index = mine.acquire("one").index
    other = theirs.acquire("one").index
    theirs._admin.command("REPLICAOF", "127.0.0.1", "1")

    with pytest.raises(LeaseFailed, match="could not be emptied") as caught:
        mine.acquire("two")
    with pytest.raises(LeaseFailed, match="could not be emptied"):
        desk.leases().acquire("of a third process")

    theirs._admin.command("REPLICAOF", "NO", "ONE")
    assert "read only replica" in str(caught.value)
    assert "after one" in str(caught.value)
    assert mine.acquire("three").index == index
    assert theirs.acquire("three").index == other


@embedded_only
def test_all_databases_are_emptied_before_each_test(desk: Desk, runtime: str) -> None:
    """All of this process, and none of another's."""
    mine, theirs = desk.leases(count=3), desk.leases(count=3)
    lease, other = mine.acquire("one"), theirs.acquire("one")
    for each in (lease, other):
        for place in range(3):
            with client(each, place) as each_client:
                each_client.set("key", "value")

    mine.acquire("two")

    for place in range(3):
        with client(lease, place) as empty, client(other, place) as full:
            assert (empty.dbsize(), full.dbsize()) == (0, 1)


# What a flush leaves


def test_what_a_flush_leaves_is_put_right_by_one_alone(desk: Desk) -> None:
    """Settings, functions and scripts are as they were before any test."""
    leases = desk.leases()
    with client(leases.acquire("one")) as each:
        before = each.config_get("*")
        each.config_set("maxmemory", "77mb")
        each.config_set("maxmemory-policy", "allkeys-lru")
        each.config_set("notify-keyspace-events", "KEA")
        each.function_load(LIBRARY)
        sha = each.script_load("return 1")

        leases.acquire("two")

        assert each.config_get("*") == before
        assert each.function_list() == []
        assert each.script_exists(sha) == [False]
    assert desk.told == []


UNWILLING = {
    "memory": ("CONFIG", "SET", "maxmemory", "1"),
    "replicas": ("CONFIG", "SET", "min-replicas-to-write", "1"),
    "replica": ("REPLICAOF", "127.0.0.1", "1"),
}
"""What makes a server refuse to empty a database, or to write at all."""


@pytest.mark.parametrize("whole", [False, True], ids=["shared", "whole"])
@pytest.mark.parametrize("killed", [False, True], ids=["same", "next"])
@pytest.mark.parametrize("which", UNWILLING)
def test_a_server_is_made_to_write_again(desk: Desk, which: str, killed: bool, whole: bool) -> None:
    """By the process whose test did it, or by the next one when that was killed."""
    leases = desk.leases(whole=whole)
    with client(leases.acquire("one")) as each:
        before = each.config_get("*")
        each.execute_command(*UNWILLING[which])
        if killed:
            leases._admin.close()
            leases = desk.leases(whole=whole)
            until(lambda: not leases._others(leases._admin.clients()), "the dead one is gone")

        with client(leases.acquire("two")) as again:
            again.set("key", "value")

        after = each.config_get("*")
        assert {name: after[name] for name in before} == before


def test_a_script_that_never_ends_is_ended(desk: Desk) -> None:
    """The test gave up waiting for it; nobody else uses the server."""
    leases = desk.leases()
    with client(leases.acquire("one")) as each:
        each.config_set("busy-reply-threshold", "50")
        each.connection_pool.connection_kwargs["socket_timeout"] = 0.3
        with pytest.raises(redis.exceptions.TimeoutError):
            each.eval("while true do end", 0)

    leases.acquire("two")

    with client(leases.acquire("three")) as each:
        each.set("key", "value")
        assert each.config_get("busy-reply-threshold") == {"busy-reply-threshold": "5000"}


def test_what_a_test_flushed_away_is_known_to_the_next_process(desk: Desk) -> None:
    """The settings of the server's beginning, although a FLUSHALL took them, and then a kill."""
    dead = desk.leases()
    with client(dead.acquire("one")) as each:
        before = each.config_get("*")
        each.flushall()
        dead.acquire("two")
        each.config_set("maxmemory", "44mb")
        dead._admin.close()
        living = desk.leases()
        until(lambda: not living._others(living._admin.clients()), "the dead one is gone")

        living.acquire("three")

        assert each.config_get("*") == before


def test_what_a_dead_process_changed_is_put_right_by_the_next(desk: Desk) -> None:
    """It finds the settings of the server's beginning, not those that it meets."""
    dead = desk.leases()
    with client(dead.acquire("one")) as each:
        before = each.config_get("*")
        each.config_set("maxmemory", "55mb")
        each.function_load(LIBRARY)
        # As when it is killed: nobody puts anything right.
        dead._admin.close()
        living = desk.leases()
        until(lambda: not living._others(living._admin.clients()), "the dead one is gone")

        living.acquire("two")

        assert each.config_get("*") == before
        assert each.function_list() == []


def test_nothing_is_put_right_that_could_be_anothers(desk: Desk) -> None:
    """While another process has a lease, only what is ours is touched."""
    mine, theirs = desk.leases(), desk.leases()
    lease, other = mine.acquire("one"), theirs.acquire("one")
    with client(lease) as each, client(other) as theirs_client:
        each.config_set("maxmemory", "33mb")
        each.function_load(LIBRARY)
        listener = theirs_client.pubsub()
        listener.subscribe("news")
        assert listener.get_message(timeout=5)

        mine.acquire("two")

        assert each.config_get("maxmemory")["maxmemory"] == str(33 * 1024**2)
        assert len(each.function_list()) == 1
        each.publish("news", "still here")
        assert listener.get_message(timeout=5)["data"] == b"still here"
        listener.close()
        theirs.close()

        # The server may hear of the end of their connection a moment later.
        until(lambda: len(mine._others(mine._admin.clients())) == 0, "the other one is gone")
        mine.acquire("three")

        assert each.config_get("maxmemory")["maxmemory"] == "0"
        assert each.function_list() == []
    assert desk.told == []


USERS = {
    "made": (("ACL", "SETUSER", "new", "on", "nopass", "~*", "+@all"),),
    "changed": (("ACL", "SETUSER", "ada", "resetkeys", "-@all"),),
    "deleted": (("ACL", "DELUSER", "ada"),),
    "default open": (
        # Without a password it would let in connections from its own machine only.
        ("CONFIG", "SET", "protected-mode", "no"),
        ("ACL", "SETUSER", "default", "nopass"),
    ),
    "default without rights": (("ACL", "SETUSER", "default", "resetkeys", "-@all"),),
    "default off": (("ACL", "SETUSER", "default", "off", "resetpass"),),
    "requirepass": (("CONFIG", "SET", "requirepass", "other"),),
    "ours": (("ACL", "DELUSER", USER),),
}
"""What a test does to the users of a server that has one called ada."""


@pytest.mark.parametrize("lost", [False, True], ids=["connected", "cut off"])
@pytest.mark.parametrize("which", USERS)
def test_users_are_as_they_were(desk: Desk, which: str, lost: bool) -> None:
    """Those that a test made, changed and deleted, the first one, and ours, which we connect as."""
    leases = desk.leases()
    lease = leases.acquire("one")
    with client(lease) as each:
        rules = ("on", ">secret", "~a:*", "-@all", "+get", "(~b:* +set)")
        look = leases.look(in_test=False)
        each.execute_command("ACL", "SETUSER", "ada", *rules)
        assert look
        assert leases.adopt(look)
        before = users(each)
        each.connection_pool.disconnect()
        each.ping()  # Logged in before anything is changed.
        for command in USERS[which]:
            each.execute_command(*command)
        if lost:
            leases._admin._connection.disconnect()

        leases.acquire("two")

    with client(lease) as again:
        assert users(again) == before
        again.set("key", "value")
        assert again.acl_whoami() == "default"
    with client(lease) as ada:
        assert ada.execute_command("AUTH", "ada", "secret")
    leases.close()
    assert "ada" not in users_of(desk)


def users(each: Redis) -> dict[str, str]:
    """Return the rules of each user; a default that some versions tell is left out."""
    lines = (line.split(" ", 2) for line in each.acl_list())
    return {name: rules.replace(" sanitize-payload", "") for _, name, rules in lines}


def users_of(desk: Desk) -> dict[str, str]:
    """Return the same, asked by another process that takes no lease."""
    with Redis.from_url(redis_url(desk.server().endpoint, 0), decode_responses=True) as each:
        return users(each)


def test_libraries_of_the_suite_are_put_back(desk: Desk) -> None:
    """Those that a test deleted, replaced, or gave another name; others go."""
    leases = desk.leases()
    other = LIBRARY.replace("return 1", "return 2")
    with client(leases.acquire("one")) as each:
        look = leases.look(in_test=False)
        each.function_load(LIBRARY)
        assert look
        assert leases.adopt(look)
        for code in (None, other, LIBRARY.replace("name=mine", "name=renamed")):
            each.function_flush()
            if code is not None:
                each.function_load(code)

            leases.acquire("next")

            assert [library[1] for library in each.function_list()] == [b"mine"]
            assert each.fcall("f", 0) == 1
        leases.close()
        assert each.function_list() == []


def test_scripts_of_the_suite_are_not_flushed(desk: Desk) -> None:
    """Redis can't list them; those of tests then stay as well, until the run ends."""
    leases = desk.leases()
    with client(leases.acquire("one")) as each:
        of_a_test = each.script_load("return 1")
        leases.acquire("two")
        assert each.script_exists(of_a_test) == [False]
        look = leases.look(in_test=False)
        loaded = each.script_load("return 2")
        assert each.eval("return 3", 0) == 3
        assert look
        assert leases.adopt(look)

        each.script_load("return 1")
        leases.acquire("three")

        assert each.script_exists(loaded) == [True]
        leases.close()
        assert each.script_exists(loaded) == [False]


@embedded_only
def test_what_another_process_has_set_up_as_well_stays_when_that_ends(
    desk: Desk, runtime: str
) -> None:
    """Two workers with the same fixture: for the second one nothing seems to change."""
    mine, theirs = desk.leases(), desk.leases()
    with client(mine.acquire("one")) as each, client(theirs.acquire("one")) as their_client:
        for leases, setter in ((theirs, their_client), (mine, each)):
            look = leases.look(in_test=False)
            setter.config_set("maxmemory-samples", 9)
            assert look
            assert leases.adopt(look)
        theirs.close()
        until(lambda: not mine._others(mine._admin.clients()), "the other one has gone")
        each.config_set("maxmemory-samples", 7)

        mine.acquire("two")

        assert each.config_get("maxmemory-samples") == {"maxmemory-samples": "9"}
        mine.close()
        assert each.config_get("maxmemory-samples") == {"maxmemory-samples": "5"}


@embedded_only
def test_a_look_at_a_server_that_is_as_it_was_is_one_round_trip(
    desk: Desk, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a fixture that does nothing, and after it; so is the flush after one that did."""
    leases = desk.leases()
    with client(leases.acquire("one")) as each:
        sent = count_sent(leases, monkeypatch)
        look = leases.look(in_test=False)
        assert look
        assert not leases.adopt(look)
        assert len(sent) == 2

        each.config_set("maxmemory-samples", 9)
        assert leases.adopt(look)
        sent.clear()
        leases.acquire("two")

        assert len(sent) == 1
        assert each.config_get("maxmemory-samples") == {"maxmemory-samples": "9"}


@embedded_only
def test_a_key_that_is_not_text_is_shown_all_the_same(small: Desk, runtime: str) -> None:
    """In the error that names what somebody else's server holds."""
    server = small.server().replace(runtime=RuntimeName.EXTERNAL)
    for index in range(1, 7):
        with Redis.from_url(redis_url(server.endpoint, index)) as each:
            each.set(b"\xff\xfe", "value")

    with pytest.raises(LeaseFailed, match="not empty") as caught:
        small.leases(server).take()

    assert "database 1: 1 key, such as '\\udcff\\udcfe'" in str(caught.value)


@embedded_only
def test_a_pause_of_a_run_that_was_killed_is_ended_by_the_next(desk: Desk, runtime: str) -> None:
    """It would wait for the pause before it could take a database."""
    dead = desk.leases()
    with client(dead.acquire("one")) as each:
        each.client_pause(60_000, all=False)
    dead._admin.close()
    living = desk.leases()
    until(lambda: not living._others(living._admin.clients()), "the dead one is gone")

    with client(living.take()) as each:
        each.set("key", "value")


@embedded_only
def test_a_server_is_put_right_before_the_first_test_asks_for_it(desk: Desk, runtime: str) -> None:
    """By `take`, so that no fixture of the session meets what a killed run has left."""
    dead = desk.leases()
    with client(dead.acquire("one")) as each:
        each.config_set("maxmemory-samples", 8)
        dead._admin.close()
        living = desk.leases()
        until(lambda: not living._others(living._admin.clients()), "the dead one is gone")

        living.take()

        assert each.config_get("maxmemory-samples") == {"maxmemory-samples": "5"}


@pytest.mark.parametrize("every", [False, True], ids=["writes", "all"])
def test_a_paused_server_is_not_waited_for_longer_than_it_must(desk: Desk, every: bool) -> None:
    """A pause of writes is ended at once; one of all commands ends by itself."""
    leases = desk.leases()
    with client(leases.acquire("one")) as each:
        each.client_pause(400 if every else 60_000, all=every)

        leases.acquire("two")

        each.set("key", "value")
    assert desk.told == []


def test_clients_that_wait_or_listen_are_disconnected_and_told(desk: Desk) -> None:
    """They would take what the next test is about; those that only stand there may stay."""
    leases = desk.leases()
    lease = leases.acquire("one")
    waiting, listening, monitoring, idle = (client(lease) for _ in range(4))
    ended = threading.Event()

    def wait() -> None:
        with suppress(redis.exceptions.ConnectionError):
            waiting.blpop("queue")
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    subscription = listening.pubsub()
    subscription.psubscribe("news.*")
    assert subscription.get_message(timeout=5)
    monitor = monitoring.monitor().__enter__()
    idle.set("key", "value")
    number = idle.client_id()
    until(lambda: any("b" in each["flags"] for each in idle.client_list()), "one waits")

    leases.acquire("two")

    assert ended.wait(5)
    assert idle.client_id() == number
    assert [test for test, _ in desk.told] == ["one"] * 3
    assert sorted(what.rpartition(" that ")[2] for _, what in desk.told) == [
        "was in BLPOP",
        "was in MONITOR",
        "was subscribed",
    ]
    idle.lpush("queue", "mine")
    assert idle.llen("queue") == 1
    monitor.connection.disconnect()
    for each in (waiting, listening, monitoring, idle):
        each.close()


@embedded_only
def test_a_client_that_connects_again_at_once_is_met_again(desk: Desk, runtime: str) -> None:
    """As consumers do that go on whatever happens."""
    leases = desk.leases()
    lease = leases.acquire("one")
    end = threading.Event()

    def consume() -> None:
        while not end.is_set():
            with suppress(redis.exceptions.ConnectionError), client(lease) as each:
                each.blpop("queue")
                return

    consumer = threading.Thread(target=consume, daemon=True)
    consumer.start()
    admin = desk.server().client
    until(lambda: any(each.is_waiting for each in admin.clients()), "it waits")
    begin = admin.id

    leases.acquire("two")

    assert desk.told == [("one", "it left a Redis client that was in BLPOP")]
    waiting = [each for each in admin.clients() if each.is_waiting]
    # Whatever it does: it was cut off again and again, for a bounded time.
    assert all(each.id > begin + 3 for each in waiting)
    end.set()

    def gone() -> bool:
        leases.acquire("three")
        return not consumer.is_alive()

    until(gone, "it has ended")


@embedded_only
def test_what_a_process_has_set_that_ended_meanwhile_is_the_suites_too(
    desk: Desk, runtime: str
) -> None:
    """It was there at the look before a fixture, which then sets the same: nothing changes."""
    mine, theirs = desk.leases(), desk.leases()
    lease = mine.acquire("one")
    with client(theirs.acquire("one")) as other:
        other.config_set("maxmemory", "66mb")
    before = mine.look(in_test=False)
    assert before is not None
    theirs.close()
    until(lambda: not mine._others(mine._admin.clients()), "the other one has gone")
    with client(lease) as each:
        each.config_set("maxmemory", "66mb")

        assert mine.adopt(before)

        each.config_set("maxmemory", "77mb")
        mine.acquire("two")
        assert each.config_get("maxmemory") == {"maxmemory": str(66 * 1024 * 1024)}


@embedded_only
def test_nothing_is_put_right_when_another_process_comes_meanwhile(
    desk: Desk, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first look at who is connected, and before anything is undone."""
    mine = desk.leases()
    lease = mine.acquire("one")
    theirs = desk.leases()
    looks = []

    def others(clients: Any) -> list[Any]:
        looks.append(clients)
        if len(looks) == 1:
            with client(theirs.acquire("one")) as their_client:
                their_client.function_load(LIBRARY)
            return []
        found: list[Any] = Leases._others(mine, clients)
        return found

    with client(lease) as each:
        each.config_set("maxmemory", "66mb")
        monkeypatch.setattr(mine, "_others", others)

        mine.acquire("two")

        assert len(each.function_list()) == 1
        monkeypatch.undo()
        theirs.close()
        until(lambda: not mine._others(mine._admin.clients()), "the other one has gone")
        mine.acquire("three")
        assert each.function_list() == []


@embedded_only
def test_one_who_is_interrupted_while_answers_come_loses_the_connection(
    desk: Desk, runtime: str
) -> None:
    """And not its place among the answers: the next test has the same databases, on a new one."""
    leases = desk.leases()
    index = leases.acquire("one").index
    answers = leases._admin.stream(("PING",), ("ECHO", "a"), ("ECHO", "b"))
    assert next(answers) == "PONG"

    assert leases.acquire("two").index == index
    assert leases._admin.command("ECHO", "c") == "c"
    leases.close()


def test_clients_that_were_closed_are_not_told(desk: Desk) -> None:
    """Right after they waited or listened."""
    leases = desk.leases()
    for turn in range(20):
        with client(leases.acquire(f"{turn}")) as each:
            subscription = each.pubsub()
            subscription.subscribe("news")
            assert subscription.get_message(timeout=5)
            subscription.close()
            assert each.blpop("queue", timeout=0.01) is None

    assert desk.told == []


def test_where_nothing_is_to_be_put_right_a_flush_is_one_round_trip(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is sent before a test goes at once."""
    leases = desk.leases()
    leases.acquire("one")
    sent = count_sent(leases, monkeypatch)

    for turn in range(5):
        leases.acquire(f"{turn}")

    assert len(sent) == 5


# In runs


def test_all_urls_lead_to_empty_databases(embedded_project: Library) -> None:
    """A real application uses five; no client of ours is needed for the flush."""
    embedded_project.configure("warmstack_redis_databases = 5")
    embedded_project.write("test_urls.py", URLS)

    embedded_project.run("test_urls.py").assert_outcomes(passed=3)


def test_each_process_has_a_server_of_its_own(project: Library) -> None:
    """In which it may do what it likes: two workers and another run, all at once.

    The servers stay, are found again, and go when they are cleaned.
    """
    project.configure("warmstack_redis = per-process")
    project.write("test_alone.py", SERVERS)

    runs = [
        project.start(REUSE, "-n", "2", "test_alone.py", ALL="3"),
        project.start(REUSE, "test_alone.py", ALL="3"),
    ]
    for running in runs:
        running.wait().assert_outcomes(passed=6)

    lines = [line.split() for line in project.lines("alone.log")]
    pairs = {(server, process) for server, process, _ in lines}
    assert len(pairs) == len({server for server, _ in pairs}) == 3
    assert {index for *_, index in lines} == {"0"}
    kept = project.servers()
    assert len(kept) == 3

    result = project.run(REUSE, "test_alone.py", ALL="3")
    result.assert_outcomes(passed=6)
    assert project.servers() == kept
    result.stdout.fnmatch_lines(["*Redis * reused*"])


def test_servers_of_processes_end_with_their_run(embedded_project: Library) -> None:
    """Without reuse nothing of them stays."""
    embedded_project.configure("warmstack_redis = per-process")
    embedded_project.write("test_alone.py", SERVERS)

    embedded_project.run("-n", "2", "test_alone.py", ALL="2").assert_outcomes(passed=6)

    assert embedded_project.folders() == []
