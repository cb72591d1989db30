"""What passes through the drivers is seen, and refused before a byte is sent."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import asyncpg
import psycopg
import psycopg2
import pytest
import redis
import redis.asyncio
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from pytest_warmstack import drivers
from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.drivers import Observer, Target, libpq_targets


class Stop(Exception):
    """Raised by `Refusal`."""


class Refusal(Observer):
    """Refuses every connection, and remembers where it was to lead."""

    def __init__(self) -> None:
        self.targets: list[Target] = []

    def opening(self, target: Target) -> None:
        """Refuse it."""
        self.targets.append(target)
        raise Stop


@pytest.fixture
def refusal() -> Iterator[Refusal]:
    """A `Refusal` that is installed."""
    refusal = Refusal()
    drivers.install(refusal)
    yield refusal
    drivers.uninstall(refusal)


@pytest.fixture
def port() -> Iterator[int]:
    """The port of a socket that listens; no one has connected to it at the end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()


def run(awaitable: Any) -> Any:
    """Await something in an event loop of its own."""

    async def wait() -> Any:
        return await awaitable

    return asyncio.run(wait())


async def make_pool(url: str) -> None:
    """Make a pool, which has to be done in a running loop."""
    await asyncpg.create_pool(url)


def engine(driver: str, port: int) -> str:
    """Return a URL for SQLAlchemy."""
    return f"postgresql+{driver}://u@127.0.0.1:{port}/shop"


POSTGRES: Final[dict[str, Callable[[int], Any]]] = {
    "asyncpg": lambda port: run(asyncpg.connect(f"postgresql://u@127.0.0.1:{port}/shop")),
    "asyncpg pool": lambda port: run(make_pool(f"postgresql://u@127.0.0.1:{port}/shop")),
    "async psycopg": lambda port: run(
        psycopg.AsyncConnection.connect(f"host=127.0.0.1 port={port} dbname=shop")
    ),
    "psycopg": lambda port: psycopg.connect(f"host=127.0.0.1 port={port} dbname=shop"),
    "psycopg2": lambda port: psycopg2.connect(host="127.0.0.1", port=port, dbname="shop"),
    "SQLAlchemy, psycopg2": lambda port: create_engine(engine("psycopg2", port)).connect(),
    "SQLAlchemy, psycopg": lambda port: create_engine(engine("psycopg", port)).connect(),
    "SQLAlchemy, asyncpg": lambda port: run(create_async_engine(engine("asyncpg", port)).connect()),
    "SQLAlchemy, async psycopg": lambda port: run(
        create_async_engine(engine("psycopg_async", port)).connect()
    ),
}
REDIS: Final[dict[str, Callable[[int], Any]]] = {
    "redis": lambda port: redis.Redis(port=port, db=3, host="127.0.0.1").ping(),
    "redis over TLS": lambda port: redis.Redis.from_url(f"rediss://127.0.0.1:{port}/3").ping(),
    "redis.asyncio": lambda port: run(
        redis.asyncio.Redis(port=port, db=3, host="127.0.0.1").ping()
    ),
    "redis.asyncio, publish and subscribe": lambda port: run(
        redis.asyncio.Redis(port=port, db=3, host="127.0.0.1").pubsub().subscribe("news")
    ),
}
ALL: Final = {**POSTGRES, **REDIS}


@pytest.mark.parametrize("name", ALL)
def test_a_refused_connection_sends_nothing(name: str, port: int, refusal: Refusal) -> None:
    """Each driver raises the refusal itself, and does not even open a socket."""
    with pytest.raises(Stop):
        ALL[name](port)

    (target,) = refusal.targets
    service, database = ("postgres", "shop") if name in POSTGRES else ("redis", "3")
    assert target[1:] == (service, "127.0.0.1", port, database)
    assert target.driver in {"asyncpg", "psycopg", "psycopg2", "redis-py"}


@pytest.mark.parametrize("name", ALL)
def test_a_thread_is_seen_as_well(name: str, port: int, refusal: Refusal) -> None:
    """A worker of the application runs in a thread, and may swallow every exception."""

    def work() -> None:
        with suppress(Stop):
            ALL[name](port)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

    assert len(refusal.targets) == 1


@pytest.mark.parametrize("client", [redis.Redis, redis.asyncio.Redis])
def test_a_unix_socket_of_redis_is_its_path(client: Any, refusal: Refusal) -> None:
    """A socket has no port."""

    async def ping() -> None:
        if (answer := client(unix_socket_path="/nowhere/redis.sock").ping()) is not None:
            await answer

    with pytest.raises(Stop):
        asyncio.run(ping())

    assert refusal.targets == [Target("redis-py", "redis", "/nowhere/redis.sock", 0, "0")]


def test_a_unix_socket_of_asyncpg_is_its_folder(refusal: Refusal) -> None:
    """It makes a path of the folder and the port."""
    with pytest.raises(Stop):
        asyncio.run(asyncpg.connect(host="/run/nowhere", port=5433, user="u", database="shop"))

    assert refusal.targets == [Target("asyncpg", "postgres", "/run/nowhere", 5433, "shop")]


@pytest.mark.parametrize(
    "connect",
    [
        psycopg.connect,
        lambda url: run(psycopg.AsyncConnection.connect(url)),
        lambda url: run(asyncpg.connect(url)),
    ],
    ids=["psycopg", "async psycopg", "asyncpg"],
)
def test_a_name_is_refused_before_it_is_looked_up(
    connect: Callable[[str], Any], refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`db` of a compose file has no address here; the refusal is what helps."""
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_args, **_options: pytest.fail("it was looked up")
    )
    with pytest.raises(Stop):
        connect("postgresql://u@db.invalid/shop")

    (target,) = refusal.targets
    assert target[2:] == ("db.invalid", 5432, "shop")


def hosts(parameters: dict[str, Any]) -> list[tuple[str, int, str]]:
    """Return the addresses that libpq would try."""
    return [each[2:] for each in libpq_targets("psycopg", parameters)]


class TestLibpq:
    """Where libpq leads to: what it gets, the service file, the variables, the defaults."""

    @pytest.fixture(autouse=True)
    def clean(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Only the variables of the test."""
        for name in ("HOST", "HOSTADDR", "PORT", "DATABASE", "USER", "SERVICE", "SYSCONFDIR"):
            monkeypatch.delenv(f"PG{name}", raising=False)
        (tmp_path / "services").write_text(
            "# ours\n[shop]\nhost=db.example\nport=6432\ndbname=shop%s\n[other]\nhost=x\n"
        )
        monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))

    def test_its_parameters(self) -> None:
        """Each host has its port, or all share one."""
        both = {"host": "a,b", "dbname": "d"}
        assert hosts({**both, "port": "1,2"}) == [("a", 1, "d"), ("b", 2, "d")]
        assert hosts({**both, "port": 7}) == [("a", 7, "d"), ("b", 7, "d")]
        assert hosts({**both, "hostaddr": "10.0.0.1"}) == [("10.0.0.1", 5432, "d")]
        assert hosts({"host": "/run/pg", "user": "me"}) == [("/run/pg", 5432, "me")]

    def test_the_variables(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """They fill in what is missing, but an empty parameter is not missing."""
        monkeypatch.setenv("PGHOST", "db")
        monkeypatch.setenv("PGPORT", "5433")
        monkeypatch.setenv("PGDATABASE", "dev")
        assert hosts({}) == [("db", 5433, "dev")]
        assert hosts({"host": "", "dbname": "d"}) == [("", 5433, "d")]

    def test_the_service(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is above the variables, and a service that isn't there changes nothing."""
        monkeypatch.setenv("PGHOST", "db")
        assert hosts({"service": "shop"}) == [("db.example", 6432, "shop%s")]
        assert hosts({"service": "none", "dbname": "d"}) == [("db", 5432, "d")]
        monkeypatch.setenv("PGSERVICE", "shop")
        assert hosts({"port": 1}) == [("db.example", 1, "shop%s")]

    def test_the_defaults(self) -> None:
        """The folder of the sockets is libpq's secret; the database is that of the login."""
        ((host, port, database),) = hosts({})
        assert (host, port) == ("", 5432)
        assert database


def test_each_function_is_there() -> None:
    """A new version of a driver that renames one of them would not be seen any more."""
    for name, owner, functions, _ in drivers._POINTS:
        module = importlib.import_module(name)
        place = vars(module)[owner] if owner else module
        assert [each for each in functions.split("|") if each in vars(place)], (name, functions)


def wrapped() -> list[str]:
    """Return the functions that are wrapped now."""
    return [
        f"{name} {function}"
        for name, owner, functions, _ in drivers._POINTS
        if (module := sys.modules.get(name)) is not None
        for function in functions.split("|")
        if hasattr(getattr(getattr(module, owner) if owner else module, function, None), MARK)
    ]


MARK: Final = "_warmstack_wraps"


@pytest.fixture
def alone() -> Iterator[None]:
    """No other observer: the run of these tests has a guard if it has used a server already."""
    outer = drivers._observers
    for each in outer:
        drivers.uninstall(each)
    yield
    for each in outer:
        drivers.install(each)


@pytest.mark.usefixtures("alone")
def test_everything_is_put_back_after_the_last_one() -> None:
    """Two sessions in one process may overlap in any order."""
    before = list(sys.meta_path)
    first, second = Refusal(), Refusal()
    drivers.install(first)
    drivers.install(second)
    assert len(wrapped()) == len(drivers._POINTS)
    drivers.uninstall(first)
    with pytest.raises(Stop):
        POSTGRES["psycopg2"](1)
    assert not first.targets
    assert len(second.targets) == 1
    drivers.uninstall(second)

    assert wrapped() == []
    assert sys.meta_path == before
    with pytest.raises(psycopg2.OperationalError):
        POSTGRES["psycopg2"](1)


def test_a_function_that_someone_else_wrapped_meanwhile_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A tracer wraps our wrapper: it stays, and without observers ours does nothing."""
    refusal = Refusal()
    original = psycopg2._connect
    drivers.install(refusal)
    ours = psycopg2._connect

    def traced(*args: Any, **kwargs: Any) -> Any:
        return ours(*args, **kwargs)

    psycopg2._connect = traced
    drivers.uninstall(refusal)
    monkeypatch.setattr(psycopg2, "_connect", original)
    with pytest.raises(psycopg2.OperationalError):
        traced("host=127.0.0.1 port=1 connect_timeout=1")
    assert refusal.targets == []


def test_the_background_loop_is_not_seen(refusal: Refusal) -> None:
    """The plugin's own connections are never refused."""
    background = BackgroundLoop()
    with pytest.raises(ConnectionRefusedError):
        background.call(asyncpg.connect, "postgresql://u@127.0.0.1:1/shop")
    background.close()

    assert refusal.targets == []


LATER: Final = """
import importlib, sys, threading
from pytest_warmstack import drivers

before = set(sys.modules)
seen = []

class Refusal(drivers.Observer):
    def opening(self, target):
        seen.append(target.driver)
        raise SystemExit

refusal = Refusal()
drivers.install(refusal)
assert not {"asyncpg", "psycopg", "psycopg2", "redis"} & set(sys.modules)

def load():
    import asyncpg, psycopg, psycopg2, redis.asyncio, redis

thread = threading.Thread(target=load)
thread.start()
thread.join()
import asyncio, asyncpg, psycopg, psycopg2, redis

def attempt(function):
    try:
        function()
    except SystemExit:
        return
    raise AssertionError(function)

def attempt_all():
    attempt(lambda: psycopg2.connect("host=127.0.0.1 port=1"))
    attempt(lambda: psycopg.connect("host=127.0.0.1 port=1"))
    attempt(lambda: redis.Redis(port=1).ping())
    attempt(lambda: asyncio.run(asyncpg.connect("postgresql://u@127.0.0.1:1/x")))
    assert seen == ["psycopg2", "psycopg", "redis-py", "asyncpg"], seen
    seen.clear()

attempt_all()
for name in ("asyncpg.connect_utils", "psycopg2", "redis.connection"):
    module = sys.modules[name]
    assert type(module.__loader__).__module__ != drivers.__name__
    assert module.__spec__.loader is module.__loader__
    assert importlib.resources.files(module.__spec__.parent).is_dir()
importlib.reload(psycopg2)
attempt_all()
try:
    importlib.import_module("psycopg.nothing")
except ModuleNotFoundError:
    pass
drivers.uninstall(refusal)
assert not any(type(each).__module__ == drivers.__name__ for each in sys.meta_path)
print("all is well")
"""


def test_drivers_that_are_imported_later_are_seen(tmp_path: Path) -> None:
    """In a thread, and reloaded; the modules keep their own loaders."""
    script = tmp_path / "later.py"
    script.write_text(LATER)
    done = subprocess.run(
        [sys.executable, "-W", "error", script], capture_output=True, text=True, check=False
    )

    assert done.stdout == "all is well\n", done.stderr


HALF: Final = """
import sys, threading, time
sys.path.insert(0, sys.argv[1])
from pytest_warmstack import drivers

thread = threading.Thread(target=lambda: __import__("psycopg2"))
thread.start()
while "psycopg2" not in sys.modules or not hasattr(sys.modules["psycopg2"], "begun"):
    time.sleep(0.001)

class Refusal(drivers.Observer):
    def opening(self, target):
        print(target.host)
        raise SystemExit

threading.Timer(0.2, sys.modules["psycopg2"].go.set).start()
drivers.install(Refusal())
sys.modules["psycopg2"].connect("x")
"""

DRIVER: Final = """
import threading
go = threading.Event()
begun = True
assert go.wait(10)

class extensions:
    parse_dsn = staticmethod(lambda dsn: {"host": dsn})

def _connect(dsn):
    raise AssertionError("it was not refused")

def connect(dsn):
    return _connect(dsn)
"""


def test_a_driver_that_another_thread_is_importing_is_waited_for(tmp_path: Path) -> None:
    """The import began before there was a hook."""
    (tmp_path / "psycopg2.py").write_text(DRIVER)
    script = tmp_path / "half.py"
    script.write_text(HALF)
    done = subprocess.run(
        [sys.executable, script, tmp_path], capture_output=True, text=True, check=False, timeout=30
    )

    assert done.stdout == "x\n", done.stderr


@pytest.mark.parametrize("name", ["asyncpg.connect_utils", "psycopg2", "redis.connection"])
def test_a_stand_in_for_a_driver_is_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some suites put mocks, or packages of the same name, into `sys.modules`."""
    from types import SimpleNamespace
    from unittest.mock import MagicMock

    refusal = Refusal()
    for stand_in in (MagicMock(), SimpleNamespace(__name__=name)):
        monkeypatch.setitem(sys.modules, name, stand_in)
        drivers.install(refusal)
        drivers.uninstall(refusal)


def test_a_connection_costs_microseconds() -> None:
    """What a test with many connections pays is far below a connection's own cost."""

    class Connection:
        pass

    connect = drivers._wrap_psycopg2(lambda *_: Connection())
    observer = Observer()
    drivers.install(observer)
    dsn = "host=127.0.0.1 port=1 dbname=shop user=u password=p"
    begin = time.perf_counter()
    for _ in range(1000):
        connect(dsn)
    each = (time.perf_counter() - begin) / 1000
    drivers.uninstall(observer)

    assert each < 500e-6, f"{each * 1e6:.1f} µs"  # Ten times the budget: other processes run too.


def test_private_names_of_kept_connections_are_there() -> None:
    """Without them, each test connects and looks types up again, with the same results."""
    from asyncpg.connection import Connection
    from redis.asyncio.connection import AbstractConnection, ConnectionPool
    from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_connection

    from pytest_warmstack.postgres import driver_connections, kept

    lookup = getattr(Connection, driver_connections.LOOKUP)
    assert list(inspect.signature(lookup).parameters) == ["self", "typeoids", "timeout"]
    for name in (*driver_connections._LISTENING, *driver_connections._EXECUTING):
        assert hasattr(Connection, name)
    assert set(kept._CACHE) <= set(AsyncAdapt_asyncpg_connection.__slots__)
    assert any(hasattr(AbstractConnection, each) for each in drivers.REDIS_HANDSHAKE.split("|"))
    assert hasattr(AbstractConnection, "_connect")
    assert hasattr(AbstractConnection, "set_parser")
    assert hasattr(ConnectionPool, "get_available_connection")
