"""Tests that freeze the clock, block sockets and so on don't disturb the plugin's work in Redis.

Each case runs the whole life of a process in a changed world. If you add something that the plugin
does between, behind or beside tests, add it to `live`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, NoReturn

import freezegun
import pytest
import pytest_socket
import redis.exceptions
import time_machine
from redis import Redis

from projects import Bench, Library, until
from pytest_warmstack import originals
from pytest_warmstack.options import RuntimeName
from pytest_warmstack.redis.connections import USED
from pytest_warmstack.redis.leases import Leases

LIBRARY = "#!lua name=mine\nredis.register_function('f', function() return 1 end)"

World = Callable[[], AbstractContextManager[Any]]


def fail(*_: object, **__: object) -> NoReturn:
    """Take the place of something that the plugin must not use."""
    raise AssertionError("the plugin uses what a test has replaced")


def replaced(*names: str, by: Callable[..., Any] = fail) -> World:
    """Return the world in which each of *names*, such as `time.sleep`, is replaced."""

    @contextmanager
    def world() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name in names:
                patch.setattr(name, by)
            yield

    return world


@contextmanager
def blocked() -> Iterator[None]:
    """No socket can be made, as with `--disable-socket`."""
    pytest_socket.disable_socket()
    try:
        yield
    finally:
        pytest_socket.enable_socket()


@contextmanager
def elsewhere() -> Iterator[None]:
    """Only another host can be connected to, as with `--allow-hosts`."""
    pytest_socket.socket_allow_hosts(["192.0.2.1"])
    try:
        yield
    finally:
        pytest_socket._remove_restrictions()


WORLDS: dict[str, World] = {
    "freezegun": lambda: freezegun.freeze_time("2001-02-03"),
    "time-machine": lambda: time_machine.travel(981158400.0, tick=False),
    "no sockets": blocked,
    "other hosts": elsewhere,
    "socket": replaced("socket.socket", "socket.create_connection", "socket.getaddrinfo"),
    "clocks": replaced("time.time", "time.monotonic", "time.perf_counter", by=lambda: 0.0),
    "sleep": replaced("time.sleep"),
    "threads": replaced("threading.Thread"),
    "randomness": replaced("os.urandom", "random.random", "random.randbytes"),
}


class Stray:
    """A client that waits in a database from now on, until it is cut off."""

    def __init__(self, url: str) -> None:
        self._client = Redis.from_url(url)
        self.ended = threading.Event()
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        with suppress(redis.exceptions.ConnectionError):
            self._client.blpop("queue")
        self._client.close()
        self.ended.set()


def live(leases: Leases, world: World, told: list[str]) -> None:
    """Live the life of a process: all that it does in Redis is done in the changed *world*."""
    with world():
        url = leases.take().urls[0]
    stray = Stray(url)
    with Redis.from_url(url) as client:
        until(lambda: any("b" in each["flags"] for each in client.client_list()), "one waits")
        with world():
            before = client.config_get("*")
            client.config_set("maxmemory-samples", 9)
            client.function_load(LIBRARY)
            client.acl_setuser("ada")
            client.client_pause(60_000, all=False)
            # It flushes, ends the pause, cuts the stray client off and puts the rest back.
            leases.acquire("one")
            client.set("key", "value")
            assert client.config_get("*") == before
            assert client.acl_users() == ["default", "pytest-warmstack"]
            assert client.function_list() == []
            assert stray.ended.wait(5)
            assert told == ["it left a Redis client that was in BLPOP"]
            # It looks at what a fixture of a wider scope does.
            look = leases.look(in_test=False)
            client.config_set("maxmemory-samples", 8)
            assert look
            assert leases.adopt(look)
            # It connects again.
            client.client_kill_filter(_id=leases._admin.id)
            leases.acquire("two")
            assert client.dbsize() == 0
            assert client.config_get("maxmemory-samples") == {"maxmemory-samples": "8"}
            # It ends, and leaves the time.
            leases.close()
            assert client.config_get("*") == before
            client.select(0)
            noted = float(client.get(USED))
        assert abs(noted - originals.now()) < 60


@pytest.mark.parametrize("runtime", [RuntimeName.EMBEDDED], indirect=True)
@pytest.mark.parametrize("which", ["as it is", *WORLDS])
def test_a_life_in_a_changed_world(standing: Bench, runtime: str, which: str) -> None:
    """Nothing of it is used, seen or waited for."""
    server = standing.ensure(standing.redis)
    told: list[str] = []
    leases = Leases(
        server,
        lambda: standing.redis.connect(server.endpoint, server.fingerprint, 5),
        found=lambda _, trouble: told.append(trouble),
    )

    live(leases, WORLDS.get(which, nullcontext), told)
    standing.leave()


@pytest.mark.parametrize("runtime", [RuntimeName.EMBEDDED], indirect=True)
@pytest.mark.parametrize("which", WORLDS)
def test_a_first_connection_in_a_changed_world(standing: Bench, runtime: str, which: str) -> None:
    """As when a test asks for Redis that no other test needs, in the middle of what it does."""
    server = standing.ensure(standing.redis)

    with WORLDS[which]():
        admin = standing.redis.connect(server.endpoint, server.fingerprint, 5)
        assert admin.command("ECHO", "a") == "a"
        admin.close()

    standing.leave()


RUN = """
import pytest
import redis

@pytest.fixture
def url(redis_container):
    return redis_container.get_connection_url()

def test_before(redis_url):
    pass

def test_cuts_all_off(socket_enabled, url):
    with redis.Redis.from_url(url) as client:
        client.set("left", "behind")
        client.client_kill_filter(skipme=True, _type="normal")

def test_connects_again(redis_url, freezer):
    freezer.move_to("2001-02-03")

def test_finds_it_empty(redis_url, socket_enabled):
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
"""


def test_a_run_with_plugins_that_change_the_world(embedded_project: Library) -> None:
    """pytest-socket and pytest-freezer, as people use them."""
    embedded_project.write("test_world.py", RUN)

    result = embedded_project.run(
        "-p", "pytest_socket", "-p", "pytest_freezer", "--disable-socket", "test_world.py"
    )

    result.assert_outcomes(passed=4)
