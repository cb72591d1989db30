"""The guard: the project's code may only connect to the template that is being built."""

from __future__ import annotations

import os
import socket
import sys
import weakref
from contextlib import suppress
from typing import Any, Final

from sqlalchemy import URL, Engine, Pool, event

from pytest_warmstack.postgres.template.child.failures import ForbiddenConnection

_LOG_SOCKETS: Final = ("/dev/log", "/var/run/syslog")
"""Sockets that a logging configuration may open."""

_LIBPQ_PARAMETERS: Final = {"host", "hostaddr", "port", "dbname", "user"}


class Guard:
    """Blocks every connection to other databases before a byte is sent.

    The guard works in three places. Listeners on SQLAlchemy's class `Engine` see every engine,
    whatever its driver; if a function of the project connects (`creator`), they query the database
    of each connection before anything uses it. Wrappers of the drivers check code that doesn't use
    SQLAlchemy. And an audit hook sees the address of every socket that Python opens: a migration
    must not reach the real Redis either.

    `refused` is the database that the code tried to use; then the build fails, even if the code
    suppresses the exception. A blocked address of another server doesn't make the build fail,
    because a library may report errors there in the background. While `closed` is true, the
    template is blocked too.
    """

    def __init__(self, url: URL) -> None:
        self.url = url
        self.refused = ""
        self.closed = False
        self._allowed = _place(url.host, url.port, url.database)
        # A socket gets an address, while the URL may have a name.
        found = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
        self._addresses = {self._allowed[0], *(_host(each[4][0]) for each in found)}
        self._pooled: weakref.WeakSet[Any] = weakref.WeakSet()
        self._wrappers = {
            "asyncpg.connect_utils": self._wrap_asyncpg,
            "psycopg": self._wrap_psycopg,
            "psycopg2": self._wrap_psycopg2,
        }

    def install(self) -> None:
        """Begin to block connections; this can't be undone."""
        event.listen(Engine, "do_connect", self._check_engine)
        event.listen(Pool, "connect", self._check_pooled)
        self.wrap_drivers()
        sys.addaudithook(self._audit_hook)

    def wrap_drivers(self) -> None:
        """Wrap the drivers that the project's code has imported since the last call."""
        for name in list(self._wrappers):
            module: Any = sys.modules.get(name)
            spec = getattr(module, "__spec__", None)
            if spec is not None and not getattr(spec, "_initializing", False):
                self._wrappers.pop(name)(module)

    def release(self) -> None:
        """Close all pooled connections; their pools open new ones if necessary."""
        for record in list(self._pooled):
            with suppress(Exception):
                record.invalidate()

    def _check_engine(
        self, dialect: Any, _record: Any, args: Any, parameters: dict[str, Any]
    ) -> None:
        if "async_creator_fn" in parameters:
            return  # `_check_pooled` checks its connections.
        host = parameters.get("hostaddr") or parameters.get("host")
        port = parameters.get("port")
        database = parameters.get("database") or parameters.get("dbname")
        if dialect.name == "postgresql":
            self._check(host, port, database)
        else:
            # For a database in a file, the path is the driver's only positional argument.
            self._refuse(dialect.name, _place(host, port, database or "".join(map(str, args))))

    def _check_pooled(self, connection: Any, record: Any) -> None:
        self._pooled.add(record)
        cursor = connection.cursor()
        try:
            cursor.execute("SELECT current_database()")
            (database,) = cursor.fetchone()
        finally:
            cursor.close()
            connection.rollback()
        if database != self._allowed[2]:
            self._forbid(f"the database {database}")

    def _check(self, host: object, port: object, database: object) -> None:
        # libpq's variables replace missing values; asyncpg reads them as well.
        tried = _place(
            host or os.environ.get("PGHOST"),
            port or os.environ.get("PGPORT"),
            database or os.environ.get("PGDATABASE"),
        )
        if tried != self._allowed or self.closed:
            self._refuse("postgresql", tried)

    def _check_libpq(self, parameters: dict[str, Any]) -> None:
        address = parameters.get("hostaddr") or os.environ.get("PGHOSTADDR")
        host = address or parameters.get("host")
        self._check(host, parameters.get("port"), parameters.get("dbname"))

    def _refuse(self, kind: str, tried: tuple[str, str, str]) -> None:
        host, port, database = tried
        if kind == "postgresql" and (not host or host.startswith("/")):
            where = f"the Unix socket {host or 'of this machine'}"
            self._forbid(f"{where}{database and f', database {database}'}")
        self._forbid(f"{kind}://{host}{port and f':{port}'}/{database}")

    def _forbid(self, database: str) -> None:
        self.refused = database
        raise ForbiddenConnection(f"{database} is not the template")

    def _audit_hook(self, name: str, args: tuple[Any, ...]) -> None:
        """Check the address of a socket; Python calls the hook before it connects."""
        if name != "socket.connect":
            return
        connecting, address = args
        if connecting.family == socket.AF_UNIX:
            if str(address) not in _LOG_SOCKETS:
                raise ForbiddenConnection(f"the socket {address!r} is not the template's server")
        elif connecting.type & socket.SOCK_STREAM and isinstance(address, tuple):
            host, port = _host(address[0]), str(address[1])
            if host not in self._addresses or port != self._allowed[1]:
                raise ForbiddenConnection(f"{host}:{port} is not the template's server")

    def _wrap_asyncpg(self, module: Any) -> None:
        original = getattr(module, "_connect_addr", None)
        if original is None:
            return  # The audit hook still sees the address.

        async def connect(*args: Any, **kwargs: Any) -> Any:
            address, params = kwargs.get("addr"), kwargs.get("params")
            if address is not None and params is not None:
                host, port = address if isinstance(address, tuple) else (address, "")
                self._check(host, port, params.database)
            return await original(*args, **kwargs)

        # The only function of asyncpg that every connection passes through.
        module._connect_addr = connect  # noqa: SLF001

    def _wrap_psycopg(self, module: Any) -> None:
        def wrapped(original: Any) -> Any:
            def connect(cls: type, /, conninfo: str = "", **kwargs: Any) -> Any:
                known = {key: kwargs[key] for key in _LIBPQ_PARAMETERS & kwargs.keys()}
                self._check_libpq(module.conninfo.conninfo_to_dict(conninfo, **known))
                return original(cls, conninfo, **kwargs)

            return classmethod(connect)

        for owner in (module.Connection, module.AsyncConnection):
            owner.connect = wrapped(owner.connect.__func__)
        module.connect = module.Connection.connect

    def _wrap_psycopg2(self, module: Any) -> None:
        original = module._connect  # noqa: SLF001 - psycopg2.connect() calls it

        def connect(dsn: str, *args: Any, **kwargs: Any) -> Any:
            self._check_libpq(module.extensions.parse_dsn(dsn))
            return original(dsn, *args, **kwargs)

        module._connect = connect  # noqa: SLF001


def _place(host: object, port: object, database: object) -> tuple[str, str, str]:
    """Return an address in a form that can be compared."""
    return _host(host), str(port or ""), str(database or "")


def _host(host: object) -> str:
    name = str(host or "")
    return "127.0.0.1" if name in {"localhost", "::1"} else name
