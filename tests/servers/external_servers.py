"""External servers: with TLS, behind a pooler, as a standby, or half broken."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest
from redis import Redis
from redis.exceptions import RedisError

from projects import query, until
from pytest_warmstack.postgres import sql
from pytest_warmstack.postgres.native import NativePostgres, Programs, _unprivileged
from pytest_warmstack.redis.native import NativeRedis
from pytest_warmstack.servers.model import Command, Endpoint

LOOPBACK: Final = "127.0.0.1"


def missing(reason: str) -> None:
    """Skip the test for *reason*; fail where everything is demanded."""
    if os.environ.get("WARMSTACK_TEST_DOCKER") == "demanded":
        pytest.fail(f"it is demanded here: {reason}", pytrace=False)
    pytest.skip(reason)


def program(name: str) -> str:
    """Return where a program is; without it the test can't run."""
    # Programs of an administrator are not on everybody's path.
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    found = shutil.which(name, path=path)
    if found is None:
        missing(f"there is no {name} on this machine")
    return str(found)


def free_port(most: int = 65_535) -> int:
    """Return a port of this machine that nobody listens at, not above *most*."""
    while True:
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
            port = int(probe.getsockname()[1])
        if port <= most:
            return port


@contextmanager
def open_folder() -> Iterator[Path]:
    """Yield a folder that a server's own user can enter and write to; it is removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="warmstack-stranger-"))
    if (user := _unprivileged()) is not None:
        shutil.chown(folder, user)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def write(path: Path, text: str) -> Path:
    """Write a file that a server reads, and nobody else."""
    path.write_text(text)
    path.chmod(0o600)
    if (user := _unprivileged()) is not None:
        shutil.chown(path, user)
    return path


@dataclass
class Stranger:
    """A server program, which runs as an unprivileged user from `start` to `stop`."""

    folder: Path
    command: Command
    answers: Callable[[], bool]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the program, and wait until it answers."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command.arguments,
                cwd=self.folder,
                user=self.command.user,
                env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until(self._is_up, "the server answers", seconds=30)

    def _is_up(self) -> bool:
        assert self.process is not None
        log = (self.folder / "log").read_text(errors="replace")
        assert self.process.poll() is None, log
        return self.answers()

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        """Send it a signal, and wait for its end; SIGINT is PostgreSQL's fast shutdown."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(30)
                raise


@contextmanager
def running(stranger: Stranger) -> Iterator[Stranger]:
    """Run a server as long as the block lasts."""
    try:
        stranger.start()
        yield stranger
    finally:
        stranger.stop()


# PostgreSQL


def postgres_programs(*, tls: bool = False) -> NativePostgres:
    """Return the programs to run, those of the embedded server unless it must speak *tls*."""
    native = NativePostgres(major=None, named="", arguments=[])
    if not tls:
        return native
    for _, programs in native._candidates():
        if programs is not None and _speaks_tls(programs):
            return NativePostgres(major=None, named=str(programs.folder), arguments=[])
    missing("there is no PostgreSQL on this machine that was built with TLS")
    raise AssertionError


def _speaks_tls(programs: Programs) -> bool:
    told = subprocess.run(
        [programs.folder / "pg_config", "--configure"], capture_output=True, text=True, check=False
    )
    return "--with-openssl" in told.stdout or "--with-ssl=openssl" in told.stdout


@dataclass
class Cluster(Stranger):
    """A PostgreSQL with a superuser, and roles that its tests make."""

    endpoint: Endpoint = field(default_factory=lambda: Endpoint(host="", port=0, password=""))

    def sql(self, *statements: str, database: str = "postgres") -> list[Any]:
        """Return the rows that the last statement gives the superuser."""
        return asyncio.run(query(self.endpoint, *statements, database=database))

    def databases(self, state: str = "") -> list[str]:
        """Return the plugin's databases, all or those of one *state*."""
        rows = self.sql("SELECT datname FROM pg_database ORDER BY oid")
        return [row[0] for row in rows if row[0].startswith(f"warmstack_{state}")]

    def clear(self) -> None:
        """Drop the plugin's databases."""
        for name, is_template in self.sql("SELECT datname, datistemplate FROM pg_database"):
            if name.startswith("warmstack_"):
                # One whose drop was interrupted can't be changed.
                unseal = [sql.unseal(name)] if is_template else []
                self.sql(*unseal, sql.drop(name), "SELECT 1")

    def url(self, role: str = "ci", query: str = "") -> str:
        """Return the URL for a role, whose password is its name."""
        return f"postgresql://{role}:{role}@{self.endpoint.place}{query and f'?{query}'}"


@contextmanager
def cluster(
    *settings: str, native: NativePostgres | None = None, roles: Sequence[str] = ("ci",)
) -> Iterator[Cluster]:
    """Run a new PostgreSQL with *settings* like `ssl=on`, and *roles* that may create databases."""
    native = native or postgres_programs()
    try:
        native.check()
    except Exception as refusal:
        missing(str(refusal))
    with open_folder() as folder:
        endpoint = Endpoint(host=LOOPBACK, port=free_port(), password="secret")
        command = native.prepare(folder, endpoint.password)(endpoint.port)
        more = ("fsync=off", *settings)
        options = [part for each in more for part in ("-c", each)]
        server = Cluster(
            folder,
            Command(arguments=[*command.arguments, *options], user=command.user),
            lambda: asyncio.run(_answers(endpoint)),
            endpoint=endpoint,
        )
        with running(server):
            for role in roles:
                server.sql(f"CREATE ROLE {role} LOGIN CREATEDB PASSWORD '{role}'", "SELECT 1")
            yield server


async def _answers(endpoint: Endpoint) -> bool:
    try:
        await query(endpoint, "SELECT 1")
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return False
    return True


def certificate(folder: Path) -> Path:
    """Make a certificate for this machine that nobody else has signed; its key lies beside it."""
    openssl = program("openssl")
    path = folder / "server.crt"
    arguments = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    names = ["-subj", f"/CN={LOOPBACK}", "-addext", f"subjectAltName=IP:{LOOPBACK}"]
    files = ["-keyout", str(folder / "server.key"), "-out", str(path)]
    subprocess.run([openssl, *arguments, *names, *files], check=True, capture_output=True)
    for each in (path, folder / "server.key"):
        each.chmod(0o600)
        if (user := _unprivileged()) is not None:
            shutil.chown(each, user)
    return path


# PgBouncer


@contextmanager
def bouncer(server: Cluster, mode: str, *lines: str, database: str = "*") -> Iterator[str]:
    """Run a PgBouncer before *server*, in the pool mode *mode*; yield where it answers.

    It serves one *database*, or all.
    """
    path = program("pgbouncer")
    with open_folder() as folder:
        port = free_port()
        users = write(folder / "users.txt", '"ci" "ci"\n')
        configuration = [
            "[databases]",
            f"{database} = host={server.endpoint.host} port={server.endpoint.port}",
            "[pgbouncer]",
            f"listen_addr = {LOOPBACK}",
            f"listen_port = {port}",
            "unix_socket_dir =",
            "auth_type = plain",
            f"auth_file = {users}",
            f"pool_mode = {mode}",
            *lines,
            "",
        ]
        ini = write(folder / "pgbouncer.ini", "\n".join(configuration))
        command = Command(arguments=[path, str(ini)], user=_unprivileged())
        with running(Stranger(folder, command, lambda: listens(port))):
            yield f"{LOOPBACK}:{port}"


def listens(port: int) -> bool:
    """Tell whether somebody takes connections at a port."""
    try:
        socket.create_connection((LOOPBACK, port), 1).close()
    except OSError:
        return False
    return True


# Redis


@contextmanager
def redis_server(
    *lines: str,
    path: str = "",
    connect: Mapping[str, Any] | None = None,
    loading: bool = False,
) -> Iterator[Redis]:
    """Run a Redis with *lines* in its configuration; yield the administrator's client.

    One that is *loading* counts as running as soon as it listens.
    """
    path = path or str(NativeRedis("", "")._find())
    with open_folder() as folder:
        # A node of a cluster listens 10,000 ports above as well.
        port = free_port(most=55_535)
        usual = [f"port {port}", f"bind {LOOPBACK}", f"dir {folder}", 'save ""', *lines]
        conf = write(folder / "redis.conf", "\n".join([*usual, ""]))
        own = {"port": port, "decode_responses": True, **(connect or {})}
        client = Redis(host=LOOPBACK, **own)

        def answers() -> bool:
            try:
                return listens(int(own["port"])) if loading else bool(client.ping())
            except RedisError:
                return False

        command = Command(arguments=_reached(path, folder, conf), user=_unprivileged())
        try:
            with running(Stranger(folder, command, answers)):
                yield client
        finally:
            client.close()


def _reached(path: str, folder: Path, conf: Path) -> list[str]:
    """Return the command of a Redis; its program as a copy, since a home may hide it."""
    copy = folder / Path(path).name
    shutil.copy(path, copy)
    return [str(copy), str(conf)]


# Those that are something else


@contextmanager
def talker(words: bytes = b"", *, stays: bool = True) -> Iterator[str]:
    """Yield where something takes connections, says *words*, and hangs up unless it *stays*."""
    kept: list[socket.socket] = []
    with socket.create_server((LOOPBACK, 0)) as listening:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    connection = listening.accept()[0]
                    with suppress(OSError):
                        connection.sendall(words)
                    kept.append(connection)
                    if not stays:
                        kept.pop().close()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield f"{LOOPBACK}:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join(10)
            for each in kept:
                each.close()
