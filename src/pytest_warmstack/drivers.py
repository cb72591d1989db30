"""Sees every connection that this process opens through a driver of PostgreSQL or Redis.

Each driver has one function that all of its connections pass through. `install` wraps it as soon as
the driver is imported, so this module imports no driver itself, and code that has already imported
a driver's `connect` is seen as well.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import os
import sys
import threading
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from socket import SHUT_RDWR
from types import ModuleType
from typing import Any, Final, NamedTuple

from pytest_warmstack import originals
from pytest_warmstack.background import end_transport, is_background, is_running_here

POSTGRES: Final = "postgres"
REDIS: Final = "redis"

_POSTGRES_PORT: Final = 5432

OWN: Final = "warmstack_own"
"""The attribute of classes of connections that the plugin itself uses: observers don't see them."""


class Target(NamedTuple):
    """Where a connection leads to.

    *service* is `postgres` or `redis`. *host* is a name, an address, the folder of PostgreSQL's
    Unix sockets, or the path of the socket of Redis; it is empty for libpq's default folder. A
    socket of Redis has the *port* 0. *database* is the number of a Redis database.
    """

    driver: str
    service: str
    host: str
    port: int
    database: str


class OpenConnection:
    """A connection that a driver has opened. It doesn't keep the driver's object alive.

    `is_cut` is true once `cut` was called.
    """

    __slots__ = ("_connection", "_end", "_loop", "is_cut", "target")

    def __init__(
        self,
        target: Target,
        connection: Any,
        end: Callable[[Any, asyncio.AbstractEventLoop | None], None],
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.target = target
        self.is_cut = False
        self._connection = weakref.ref(connection)
        self._end = end
        self._loop = weakref.ref(loop) if loop is not None else None

    @property
    def connection(self) -> Any:
        """The driver's object, None if it is gone."""
        return self._connection()

    def is_elsewhere(self) -> bool:
        """Return whether an event loop opened it that isn't the running one."""
        return self._loop is not None and not is_running_here(self._loop())

    def cut(self) -> None:
        """End it on this side, in whatever thread or loop it was opened; don't wait for the server.

        A thread that uses it gets the driver's error for a lost connection.
        """
        self.is_cut = True
        if (connection := self._connection()) is not None:
            self._end(connection, self._loop() if self._loop is not None else None)


class Observer:
    """What `install` takes: a class that overrides some of these methods.

    Any thread may call them, and only `opening` may raise.
    """

    def opening(self, target: Target) -> None:
        """Note that a driver is about to connect; an exception reaches the code that connects.

        Nothing was sent yet. If several hosts are given, libpq's drivers announce all of them, and
        asyncpg each one before it tries it.
        """

    def opened(self, connection: OpenConnection) -> None:
        """Note that a driver has connected."""

    def reused(self, connection: OpenConnection) -> None:
        """Note that a pool of redis-py gives out a connection of another event loop.

        If this cuts it, redis-py opens it again in the current loop.
        """


_observers: tuple[Observer, ...] = ()
_lock = threading.RLock()


def install(observer: Observer) -> None:
    """Call *observer* for each connection from now on. There can be several at the same time."""
    global _observers
    with _lock:
        _observers = (*_observers, observer)
    for name, patch in _PATCHES.items():
        when_imported(name, patch)


def uninstall(observer: Observer) -> None:
    """Stop calling *observer*; after the last one, put everything back as it was."""
    global _observers
    with _lock:
        _observers = tuple(each for each in _observers if each is not observer)
        if _observers:
            return
        for owner, name, original, wrapper in reversed(_replaced):
            # Somebody else may have wrapped the wrapper; without observers it does nothing.
            if vars(owner).get(name) is wrapper:
                setattr(owner, name, original)
        _replaced.clear()
        _FINDER.hooks.clear()
        with suppress(ValueError):
            sys.meta_path.remove(_FINDER)


# What is done when a module is imported.

Hook = Callable[[Any], object]


def when_imported(name: str, hook: Hook) -> None:
    """Call *hook* with the module *name*: now if it is imported, else when it will be.

    The last `uninstall` forgets it.
    """
    with _lock:
        hooks = _FINDER.hooks.setdefault(name, [])
        if hook not in hooks:
            hooks.append(hook)
        # Code that runs pytest inside pytest restores `sys.meta_path`.
        if _FINDER not in sys.meta_path:
            sys.meta_path.insert(0, _FINDER)
    module = sys.modules.get(name)
    if module is not None and getattr(getattr(module, "__spec__", None), "_initializing", False):
        # Another thread is importing it, perhaps from before the hook: wait for that thread.
        module = importlib.import_module(name)
    if module is not None:
        hook(module)


class _Finder(MetaPathFinder):
    """Finds the modules with hooks as the other finders do, and wraps their loaders."""

    def __init__(self) -> None:
        self.hooks: dict[str, list[Hook]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.hooks:
            return None
        for finder in list(sys.meta_path):
            find = getattr(finder, "find_spec", None)
            if finder is self or find is None:
                continue
            spec: ModuleSpec | None = find(fullname, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader, self.hooks[fullname])
                return spec
        return None


class _Loader(Loader):
    """Loads a module with its own loader, and calls the hooks."""

    def __init__(self, loader: Any, hooks: list[Hook]) -> None:
        self._loader = loader
        self._hooks = hooks

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The module and its spec keep no trace of this class.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        for hook in self._hooks:
            hook(module)


_FINDER: Final = _Finder()

_replaced: list[tuple[Any, str, Any, Any]] = []
"""Each attribute that was replaced: its owner, its name, the original and the wrapper."""


def _replace(owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
    """Replace a function of a module, or a method of a class, unless that was done before."""
    with _lock:
        original = vars(owner)[name]
        is_class_method = isinstance(original, classmethod)
        function = original.__func__ if isinstance(original, classmethod) else original
        if hasattr(function, "_warmstack_wraps"):
            return
        wrapper: Any = functools.wraps(function)(wrap(function))
        wrapper._warmstack_wraps = True  # noqa: SLF001 - our own mark
        if is_class_method:
            wrapper = classmethod(wrapper)
        setattr(owner, name, wrapper)
        _replaced.append((owner, name, original, wrapper))


# What the wrappers tell.


def _tell_opening(target: Target) -> None:
    __tracebackhide__ = True
    for observer in _observers:
        observer.opening(target)


def _tell_opened(opened: OpenConnection) -> None:
    for observer in _observers:
        observer.opened(opened)


# asyncpg


def _wrap_connect_addr(original: Any) -> Any:
    async def connect(*args: Any, **kwargs: Any) -> Any:
        address, params, loop = (kwargs.get(name) for name in ("addr", "params", "loop"))
        if not _observers or address is None or is_background(loop):
            return await original(*args, **kwargs)
        # The address of a Unix socket is a path like /tmp/.s.PGSQL.5432.
        host, port = address if isinstance(address, tuple) else address.rsplit("/.s.PGSQL.", 1)
        database = str(getattr(params, "database", ""))
        target = Target("asyncpg", POSTGRES, str(host), int(port), database)
        _tell_opening(target)
        connection = await original(*args, **kwargs)
        _tell_opened(OpenConnection(target, connection, _cut_asyncpg, loop))
        return connection

    return connect


def loop_of(connection: Any) -> asyncio.AbstractEventLoop:
    """Return the event loop that opened a connection of asyncpg; there is no public API for it."""
    loop: asyncio.AbstractEventLoop = connection._loop  # noqa: SLF001
    return loop


def target_of(connection: Any) -> Target | None:
    """Return where an open connection of asyncpg, psycopg or psycopg2 leads to; else None."""
    if (params := getattr(connection, "_params", None)) is not None:
        address = connection._addr  # noqa: SLF001 - asyncpg has no public API for it
        host, port = address if isinstance(address, tuple) else address.rsplit("/.s.PGSQL.", 1)
        return Target("asyncpg", POSTGRES, str(host), int(port), str(params.database))
    if (info := getattr(connection, "info", None)) is not None:
        driver = type(connection).__module__.partition(".")[0]
        return Target(driver, POSTGRES, info.host or "", info.port, info.dbname)
    return None


def cut_asyncpg(connection: Any) -> None:
    """End a connection of asyncpg, in whatever event loop it was opened."""
    if not connection.is_closed():
        loop = loop_of(connection)
        # The pool of a newer asyncpg would begin to replace it, in that loop.
        if loop.is_closed() and hasattr(connection, "_pool_holder"):
            connection._pool_holder = None  # noqa: SLF001 - as above
        end_transport(loop, connection._transport, connection.terminate)  # noqa: SLF001 - as above
        if loop.is_closed():  # In a closed loop, the first call doesn't finish.
            connection.terminate()


def _cut_asyncpg(connection: Any, _loop: object) -> None:
    cut_asyncpg(connection)


# psycopg and psycopg2

_LIBPQ: Final = {
    "service": "PGSERVICE",
    "host": "PGHOST",
    "hostaddr": "PGHOSTADDR",
    "port": "PGPORT",
    "dbname": "PGDATABASE",
    "user": "PGUSER",
}
"""The parameters of libpq that say where a connection leads to, and their variables."""


def libpq_targets(driver: str, parameters: Mapping[str, Any]) -> list[Target]:
    """Return where libpq connects to with *parameters*, one target for each host.

    What they don't say comes from the service file, the variables and the defaults, in this order
    (PostgreSQL's documentation, "libpq: Database Connection Control Functions").
    """
    given = {name: str(parameters[name]) for name in _LIBPQ if parameters.get(name) is not None}
    service = given.get("service") or os.environ.get("PGSERVICE", "")
    section = _service(service) if service else {}

    def value(name: str) -> str:
        if name in given:  # An empty value means the default, whatever the variable says.
            return given[name]
        return section.get(name) or os.environ.get(_LIBPQ[name], "")

    hosts = (value("hostaddr") or value("host")).split(",")
    ports = (value("port") or str(_POSTGRES_PORT)).split(",")
    if len(ports) != len(hosts):
        ports = ports[:1] * len(hosts)
    database = value("dbname") or value("user") or _login()
    return [
        Target(driver, POSTGRES, host.strip(), _port(port), database)
        for host, port in zip(hosts, ports, strict=True)
    ]


def _port(text: str) -> int:
    return int(text) if text.strip().isdigit() else _POSTGRES_PORT


def _login() -> str:
    import pwd

    with suppress(KeyError):
        return pwd.getpwuid(os.geteuid()).pw_name
    return ""


def _service(name: str) -> dict[str, str]:
    """Return the parameters of the service *name* in libpq's files."""
    from configparser import Error, RawConfigParser

    environ = os.environ
    user = environ.get("PGSERVICEFILE") or os.path.expanduser("~/.pg_service.conf")  # noqa: PTH111
    folder = environ.get("PGSYSCONFDIR") or "/etc/postgresql-common"  # Debian's default.
    for path in (user, f"{folder}/pg_service.conf"):
        parser = RawConfigParser(delimiters="=", comment_prefixes="#", strict=False)
        with suppress(Error, OSError, UnicodeError):
            parser.read(path)
        if parser.has_section(name):
            return dict(parser.items(name))
    return {}


def _wrap_parameters(original: Any) -> Any:
    """Wrap the method of psycopg's connections that collects their parameters, before DNS."""

    def tell(parameters: Any) -> Any:
        for target in libpq_targets("psycopg", parameters) if _observers else ():
            _tell_opening(target)
        return parameters

    if inspect.iscoroutinefunction(original):

        async def collect_async(*args: Any, **kwargs: Any) -> Any:
            return tell(await original(*args, **kwargs))

        return collect_async

    def collect(*args: Any, **kwargs: Any) -> Any:
        return tell(original(*args, **kwargs))

    return collect


def _wrap_connect_gen(original: Any) -> Any:
    def connect(cls: Any, *args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        connection = yield from original(cls, *args, **kwargs)
        if _observers:
            pgconn = connection.pgconn
            host, port, database = pgconn.host.decode(), pgconn.port.decode(), pgconn.db.decode()
            target = Target("psycopg", POSTGRES, host, _port(port), database)
            loop = asyncio.get_running_loop() if hasattr(cls, "__aenter__") else None
            _tell_opened(OpenConnection(target, connection, _cut_psycopg, loop))
        return connection

    return connect


def _cut_psycopg(connection: Any, loop: asyncio.AbstractEventLoop | None) -> None:
    if connection.closed:
        return
    _shut_down(connection.pgconn.socket)
    is_abandoned = loop is not None and not loop.is_running()
    if is_abandoned or not connection.lock.locked():
        # Nothing waits for an answer: close it, or else its deletion would warn.
        connection.pgconn.finish()


def _wrap_psycopg2(original: Any) -> Any:
    def connect(dsn: str, *args: Any, **kwargs: Any) -> Any:
        if not _observers:
            return original(dsn, *args, **kwargs)
        driver: Any = sys.modules["psycopg2"]
        targets = libpq_targets("psycopg2", driver.extensions.parse_dsn(dsn))
        for target in targets:
            _tell_opening(target)
        connection = original(dsn, *args, **kwargs)
        reached = targets[0]
        if len(targets) > 1:
            info = connection.info
            reached = reached._replace(host=info.host, port=info.port)
        _tell_opened(OpenConnection(reached, connection, _cut_psycopg2))
        return connection

    return connect


def _cut_psycopg2(connection: Any, _loop: object) -> None:
    # Its own `close` would wait for a thread that uses it.
    if not connection.closed:
        _shut_down(connection.fileno())


def _shut_down(descriptor: int) -> None:
    """End the connection of a socket, whose owner then closes it."""
    with suppress(OSError), originals.Socket(fileno=os.dup(descriptor)) as copy:
        copy.shutdown(SHUT_RDWR)


# redis-py

_OPENED: Final = "_warmstack_opened"

_REDIS_CONNECT: Final = "connect_check_health|connect"
"""In redis-py 5.2, `connect` does everything itself; newer ones have a function that it calls."""

REDIS_HANDSHAKE: Final = "on_connect_check_health|on_connect"
"""The function that logs in and selects the database; it differs in the same way."""


def _redis_target(connection: Any) -> Target:
    host = getattr(connection, "host", None) or getattr(connection, "path", "")
    port = getattr(connection, "port", None) or 0
    return Target("redis-py", REDIS, str(host), int(port), str(connection.db or 0))


def _has_redis_socket(connection: Any) -> bool:
    return getattr(connection, "_sock", None) is not None


def _wrap_redis(original: Any) -> Any:
    def connect(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not _observers or _has_redis_socket(self) or hasattr(self, OWN):
            return original(self, *args, **kwargs)
        target = _redis_target(self)
        _tell_opening(target)
        result = original(self, *args, **kwargs)
        _tell_opened(OpenConnection(target, self, _cut_redis))
        return result

    return connect


def _cut_redis(connection: Any, _loop: object) -> None:
    # redis-py connects again when it finds out; a thread may be reading from the socket.
    if _has_redis_socket(connection):
        with suppress(OSError):
            connection._sock.shutdown(SHUT_RDWR)  # noqa: SLF001 - there is no public name


def _wrap_redis_asyncio(original: Any) -> Any:
    async def connect(self: Any, *args: Any, **kwargs: Any) -> Any:
        _leave_other_loop(self)
        if not _observers or self.is_connected:
            return await original(self, *args, **kwargs)
        target = _redis_target(self)
        _tell_opening(target)
        result = await original(self, *args, **kwargs)
        opened = OpenConnection(target, self, end_redis, asyncio.get_running_loop())
        vars(self)[_OPENED] = opened
        _tell_opened(opened)
        return result

    return connect


def _wrap_redis_disconnect(original: Any) -> Any:
    async def disconnect(self: Any, *args: Any, **kwargs: Any) -> Any:
        _leave_other_loop(self)
        return await original(self, *args, **kwargs)

    return disconnect


def _leave_other_loop(connection: Any) -> None:
    opened: OpenConnection | None = vars(connection).get(_OPENED)
    if opened is not None and connection.is_connected and opened.is_elsewhere():
        for observer in _observers:
            observer.reused(opened)


def end_redis(connection: Any, loop: asyncio.AbstractEventLoop | None) -> None:
    """End an asynchronous connection of redis-py that *loop* opened; it can be opened again."""
    writer = getattr(connection, "_writer", None)
    if writer is not None and loop is not None:
        # The state after its own `disconnect` (redis-py's asyncio/connection.py).
        connection._reader = connection._writer = None  # noqa: SLF001
        # The lambda keeps the writer until then: collecting it earlier would warn.
        end_transport(loop, writer.transport, lambda: writer.transport.abort())


# Where the wrappers go.

_POINTS: Final[Sequence[tuple[str, str, str, Callable[[Any], Any]]]] = (
    ("asyncpg.connect_utils", "", "_connect_addr", _wrap_connect_addr),
    ("psycopg.connection", "Connection", "_get_connection_params", _wrap_parameters),
    ("psycopg.connection_async", "AsyncConnection", "_get_connection_params", _wrap_parameters),
    ("psycopg._connection_base", "BaseConnection", "_connect_gen", _wrap_connect_gen),
    ("psycopg2", "", "_connect", _wrap_psycopg2),
    ("redis.connection", "AbstractConnection", _REDIS_CONNECT, _wrap_redis),
    ("redis.asyncio.connection", "AbstractConnection", _REDIS_CONNECT, _wrap_redis_asyncio),
    ("redis.asyncio.connection", "AbstractConnection", "disconnect", _wrap_redis_disconnect),
)
"""The functions that all connections of a driver pass through: module, class, name, wrapper."""


def _patch(name: str, module: Any) -> None:
    """Wrap the functions of the module *name*; leave out what this version doesn't have."""
    for module_name, owner_name, functions, wrap in _POINTS:
        if module_name == name:
            owner = vars(module).get(owner_name) if owner_name else module
            known = [each for each in functions.split("|") if owner and each in vars(owner)]
            for function in known[:1]:
                _replace(owner, function, wrap)


_PATCHES: Final[Mapping[str, Hook]] = {
    name: functools.partial(_patch, name) for name, *_ in _POINTS
}
