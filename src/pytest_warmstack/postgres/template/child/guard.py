"""The guard: the project's code may connect to the template under construction, and no further."""

from __future__ import annotations

import os
import socket
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from sqlalchemy import URL, Engine, Pool, event

from pytest_warmstack.postgres.template.child.failures import Refused

_LOGS = ("/dev/log", "/var/run/syslog")
"""Sockets that a logging configuration may open."""


class Guard:
    """Refuses every connection but those to one database, before a byte is sent.

    It looks in three places. SQLAlchemy's class `Engine` tells of every engine with every driver;
    one that was given a function to connect with (`creator`) is asked where it got to before
    anybody can use it. The drivers are looked at for code that does without SQLAlchemy. And every
    socket that Python opens tells its address: a migration must not reach the real Redis either.

    `refused` names the database that was tried: then the build fails, whatever the project's code
    made of the refusal. Other addresses are refused without that, for those who report somewhere
    in the background.
    """

    def __init__(self, url: URL) -> None:
        self.url = url
        self.refused = ""
        self.closed = False
        self._allowed = _place(url.host, url.port, url.database)
        # A socket is told an address where the URL may have a name.
        found = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
        self._addresses = {self._allowed[0], *(_host(each[4][0]) for each in found)}
        self._records: weakref.WeakSet[Any] = weakref.WeakSet()
        self._watched: set[str] = set()

    def install(self) -> None:
        """Begin to refuse."""
        event.listen(Engine, "do_connect", self._look)
        event.listen(Pool, "connect", self._ask)
        self.watch()
        sys.addaudithook(self._audit_hook)

    def watch(self) -> None:
        """Look at the drivers that have been imported meanwhile."""
        for name, patch in (
            ("asyncpg.connect_utils", self._watch_asyncpg),
            ("psycopg", self._watch_psycopg),
            ("psycopg2", self._watch_psycopg2),
        ):
            module: Any = sys.modules.get(name)
            spec = getattr(module, "__spec__", None)
            if spec is None or getattr(spec, "_initializing", False) or name in self._watched:
                continue
            self._watched.add(name)
            patch(module)

    def release(self) -> None:
        """Have every pool connect anew when it is used again: its connections are ended now."""
        for record in list(self._records):
            with suppress(Exception):
                record.invalidate()

    def _look(self, dialect: Any, _record: Any, args: Any, parameters: dict[str, Any]) -> None:
        if "async_creator_fn" in parameters:
            return  # Where that leads, `_ask` sees.
        host = parameters.get("hostaddr") or parameters.get("host")
        port = parameters.get("port")
        database = parameters.get("database") or parameters.get("dbname")
        if dialect.name == "postgresql":
            self._check(host, port, database)
        else:
            # A database in a file is given as the driver's one argument.
            self._refuse(dialect.name, _place(host, port, database or "".join(map(str, args))))

    def _ask(self, connection: Any, record: Any) -> None:
        self._records.add(record)
        cursor = connection.cursor()
        try:
            cursor.execute("SELECT current_database()")
            (database,) = cursor.fetchone()
        finally:
            cursor.close()
            connection.rollback()
        if database != self._allowed[2]:
            self.refused = f"the database {database}"
            raise Refused(f"{self.refused} is not the template")

    def _refuse(self, kind: str, tried: tuple[str, str, str]) -> None:
        host, port, database = tried
        self.refused = f"{kind}://{host}{port and f':{port}'}/{database}"
        if kind == "postgresql" and (not host or host.startswith("/")):
            socket_ = f"the Unix socket {host}" if host else "the Unix socket of this machine"
            self.refused = f"{socket_}{database and f', database {database}'}"
        raise Refused(f"{self.refused} is not the template")

    def _check(self, host: object, port: object, database: object) -> None:
        # What is not given comes from libpq's variables, which asyncpg reads as well.
        variables = map(os.environ.get, ("PGHOST", "PGPORT", "PGDATABASE"))
        given = zip((host, port, database), variables, strict=True)
        tried = _place(*(one or other for one, other in given))
        if tried != self._allowed or self.closed:
            self._refuse("postgresql", tried)

    def _audit_hook(self, name: str, args: tuple[Any, ...]) -> None:
        """Look at the address of a socket: Python tells before it connects."""
        if name != "socket.connect":
            return
        connecting, address = args
        if connecting.family == socket.AF_UNIX:
            if str(address) not in _LOGS:
                raise Refused(f"the socket {address!r} is not the template's server")
        elif connecting.type & socket.SOCK_STREAM and isinstance(address, tuple):
            host, port = _host(address[0]), str(address[1])
            if host not in self._addresses or port != self._allowed[1]:
                raise Refused(f"{host}:{port} is not the template's server")

    def _watch_asyncpg(self, module: Any) -> None:
        original = getattr(module, "_connect_addr", None)
        if original is None:
            return  # The socket's address is seen all the same.

        async def connect(*args: Any, **kwargs: Any) -> Any:
            address, params = kwargs.get("addr"), kwargs.get("params")
            if address is not None and params is not None:
                host, port = address if isinstance(address, tuple) else (address, "")
                self._check(host, port, params.database)
            return await original(*args, **kwargs)

        module._connect_addr = connect  # noqa: SLF001 - asyncpg has no other place that all pass

    def _watch_psycopg(self, module: Any) -> None:
        def check(conninfo: str, kwargs: dict[str, Any]) -> None:
            known = {key: value for key, value in kwargs.items() if key in _LIBPQ}
            found = module.conninfo.conninfo_to_dict(conninfo, **known)
            host = found.get("hostaddr") or os.environ.get("PGHOSTADDR") or found.get("host")
            self._check(host, found.get("port"), found.get("dbname"))

        for owner in (module.Connection, module.AsyncConnection):
            owner.connect = _checked_class_method(owner.connect, check)
        module.connect = module.Connection.connect

    def _watch_psycopg2(self, module: Any) -> None:
        original = module._connect  # noqa: SLF001 - what psycopg2's own connect() ends in

        def connect(dsn: str, *args: Any, **kwargs: Any) -> Any:
            found = module.extensions.parse_dsn(dsn)
            host = found.get("hostaddr") or os.environ.get("PGHOSTADDR") or found.get("host")
            self._check(host, found.get("port"), found.get("dbname"))
            return original(dsn, *args, **kwargs)

        module._connect = connect  # noqa: SLF001


_LIBPQ = {"host", "hostaddr", "port", "dbname", "user"}


def _checked_class_method(method: Any, check: Callable[[str, dict[str, Any]], None]) -> Any:
    """Return the class method *method* of psycopg, with *check* before it."""
    original = method.__func__

    def connect(cls: type, /, conninfo: str = "", **kwargs: Any) -> Any:
        check(conninfo, kwargs)
        return original(cls, conninfo, **kwargs)

    return classmethod(connect)


def _place(host: object, port: object, database: object) -> tuple[str, str, str]:
    """Return an address in the form in which two of them can be compared."""
    return _host(host), str(port or ""), str(database or "")


def _host(host: object) -> str:
    name = str(host or "")
    return "127.0.0.1" if name in {"localhost", "::1"} else name
