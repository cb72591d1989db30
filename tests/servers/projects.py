"""A small project in which to run pytest, and ways to count what its runs use and leave behind."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import asyncpg
import docker
import pytest
from docker.errors import DockerException

from forked_runs import ForkedProcess
from pytest_warmstack.options import RuntimeName
from pytest_warmstack.postgres import DatabaseName
from pytest_warmstack.postgres.clones import CloneFactory
from pytest_warmstack.servers import embedded, identity
from pytest_warmstack.servers.folders import existing
from pytest_warmstack.servers.identity import Process
from pytest_warmstack.servers.model import (
    USER,
    Command,
    Container,
    Endpoint,
    Need,
    RunContext,
    Runtime,
    Server,
    ServerSpec,
)

T = TypeVar("T")

EXAMPLE: Final = Path(__file__).parents[1] / "examples" / "library"
PATH: Final = identity.Label.PATH.value

_DEADLINE: Final = 60.0
_LISTEN: Final = "0A"
_FOREIGN: Final = ("WARMSTACK_", "PYTEST_", "POSTGRES_", "REDIS_", "PG")
"""Beginnings of the variables that would reach into a run from the outside."""

_PLUGINS: Final = ("--disable-plugin-autoload", "-p", "asyncio", "-p", "warmstack")
"""The plugins of a run here; a test that is about others names them."""


WAITING: Final = """
import time
from pathlib import Path

def test_that_waits(db_url, redis_url):
    Path("running").write_text(f"{db_url} {redis_url}")
    deadline = time.monotonic() + 60
    while not Path("go").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
"""
"""A test that tells its addresses in the file `running`, and waits for the file `go`."""


_CLIENT: Final = """#!/bin/sh
echo "arguments: $*"
echo "service: $PGSERVICE"
echo "password: ${PGPASSWORD:-$REDISCLI_AUTH}"
"""
"""A client that tells how it was called."""


@dataclass(frozen=True)
class Images:
    """The Docker images that the tests use."""

    postgres: str
    redis: str


def until(ask: Callable[[], T], what: str, *, seconds: float = _DEADLINE) -> T:
    """Return the first true answer of *ask*; fail when there is none within *seconds*."""
    deadline = time.monotonic() + seconds
    while not (answer := ask()):
        assert time.monotonic() < deadline, f"not within {seconds:g} seconds: {what}"
        time.sleep(0.02)
    return answer


@contextmanager
def keeping(admin: Any, template: DatabaseName) -> Iterator[CloneFactory]:
    """Yield what makes and drops clones of *template*, without a run around it."""
    clone_factory = CloneFactory(admin, template)
    try:
        yield clone_factory
    finally:
        clone_factory.leave([], stock=0).result(_DEADLINE)


@contextmanager
def engine(timeout: float = 60) -> Iterator[docker.DockerClient]:
    """Yield a client of the Docker engine, asked without the plugin; raises DockerException."""
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if host.startswith("unix://"):
        # docker-py leaves a socket unclosed when nobody listens, and here warnings are errors.
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(host.removeprefix("unix://"))
            except OSError as error:
                raise DockerException(f"{host}: {error.strerror}") from error
    client = docker.from_env(timeout=timeout)
    try:
        client.ping()
        yield client
    finally:
        client.close()


def containers(path: Path) -> list[Any]:
    """Return the containers of the project in *path*; none where there is no engine."""
    try:
        with engine() as client:
            found = client.api.containers(all=True, filters={"label": f"{PATH}={path}"})
            return [client.api.inspect_container(each["Id"]) for each in found]
    except DockerException:
        return []


def lacking(reason: str) -> NoReturn:
    """Skip the test for what this machine lacks, or fail it where that is demanded."""
    if os.environ.get("WARMSTACK_TEST_DOCKER") == "demanded":
        pytest.fail(f"Docker is demanded here: {reason}", pytrace=False)
    pytest.skip(reason)


@dataclass(frozen=True)
class Listener:
    """A row of the kernel's table: a socket that listens."""

    address: IPv4Address | IPv6Address
    port: int
    inode: str


def listeners() -> list[Listener]:
    """Return what the kernel says of all sockets that listen, over IPv4 and IPv6."""
    rows = []
    for name in ("tcp", "tcp6"):
        for line in Path("/proc/net", name).read_text().splitlines()[1:]:
            _, place, _, state, *more = line.split()
            address, _, port = place.partition(":")
            if state == _LISTEN:
                # Words of 32 bits, each as this machine has them in memory.
                words = struct.iter_unpack(">I", bytes.fromhex(address))
                packed = b"".join(struct.pack("=I", word) for (word,) in words)
                rows.append(Listener(ip_address(packed), int(port, 16), more[5]))
    return rows


def folders(path: Path) -> list[Path]:
    """Return the folders of the embedded servers of the project in *path*."""
    project = identity.Project(path=str(path))
    return [folder for folder in existing() if project.id in folder.name]


def processes(path: Path) -> list[str]:
    """Return the living processes that work for the project in *path*, by place or by arguments.

    One that has ended and was not collected by its parent does not count.
    """
    found = []
    marks = (str(path), identity.Project(path=str(path)).id)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            place = str((entry / "cwd").readlink())
            arguments = (entry / "cmdline").read_bytes().decode(errors="replace")
            state = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state not in "ZX" and any(mark in place or mark in arguments for mark in marks):
            found.append(f"{entry.name}: {arguments.replace(chr(0), ' ')}")
    return found


def left(path: Path) -> list[str]:
    """Return what there is of the project in *path*: containers, folders, living processes."""
    return [
        *(f"container {each['Name']}" for each in containers(path)),
        *(f"folder {each.name}" for each in folders(path)),
        *(f"process {each}" for each in processes(path)),
    ]


def assert_nothing_left(path: Path) -> None:
    """Fail when there is anything of the project in *path*.

    At once for containers and folders. A child of a server that was killed may need a moment
    to notice it.
    """
    assert [each["Name"] for each in containers(path)] == []
    assert folders(path) == []
    until(lambda: not processes(path), "all processes gone", seconds=10)


@dataclass
class Running:
    """A run in progress; what it writes goes to files, so that no child of it holds a pipe."""

    process: subprocess.Popen[bytes] | ForkedProcess
    stem: Path
    begun: float = field(default_factory=time.monotonic)

    def wait(self, seconds: float = _DEADLINE) -> pytest.RunResult:
        """Return the result when the run has ended, within *seconds*."""
        ret = self.process.wait(seconds)
        lines = [
            self.stem.with_suffix(suffix).read_text(errors="replace").splitlines()
            for suffix in (".out", ".err")
        ]
        result = pytest.RunResult(ret, lines[0], lines[1], time.monotonic() - self.begun)
        # pytest shows what was captured of a test that failed.
        print("\n".join([*lines[0], *lines[1]]))
        return result

    def interrupt(self) -> pytest.RunResult:
        """Send the run SIGINT, it alone, and return its result."""
        self.process.send_signal(signal.SIGINT)
        return self.wait()

    def kill(self) -> None:
        """Kill the run with all its workers and children, so that it can clean nothing up."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(_DEADLINE)


def pytest_with(*arguments: str) -> list[str]:
    """Return the module pytest with the plugins that a run with *arguments* needs."""
    xdist = ("-p", "xdist") if any(each.startswith("-n") for each in arguments) else ()
    return ["pytest", *_PLUGINS, *xdist]


def _mounted(mounts: str) -> list[str]:
    """Return the beginning of a command that runs the rest after *mounts*, seen by it alone."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        lacking("only root, with unshare of util-linux, can mount something")
    return ["unshare", "--mount", "sh", "-e", "-c", f'{mounts}\nexec "$@"', "sh"]


def _hear_signals() -> None:
    """Have a run obey the signals that its parent may ignore: by nohup, or in the background."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@dataclass
class Library:
    """A copy of `tests/examples/library`, whose pytest runs are real processes."""

    folder: Path
    runtime: str
    images: Images | None = None
    runs: list[Running] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Bring every file back to what the example has; caches stay."""
        for name in ("migrations", "more"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for path in self.folder.iterdir():
            if path.is_file():
                path.unlink()
        shutil.copytree(
            EXAMPLE,
            self.folder,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("__pycache__", ".pytest_cache"),
        )
        lines = [
            f"warmstack_runtime = {self.runtime}",
            # Runs of other tests, in other processes, don't remove what `test_cleanup` has aged.
            "warmstack_max_idle = 9999d",
        ]
        if self.images is not None:
            lines.append(f"warmstack_postgres_image = {self.images.postgres}")
            lines.append(f"warmstack_redis_image = {self.images.redis}")
        self.configure(*lines)

    def configure(self, *lines: str) -> None:
        """Add lines to the project's pytest.ini."""
        with (self.folder / "pytest.ini").open("a") as file:
            file.writelines(f"{line}\n" for line in lines)

    def write(self, name: str, text: str) -> Path:
        """Write a file of the project, with its folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace *old*, which is there once, in a file of the project."""
        path = self.folder / name
        text = path.read_text()
        assert text.count(old) == 1
        path.write_text(text.replace(old, new))

    def start(
        self,
        *arguments: str,
        command: Sequence[str] = (),
        below: str = "",
        mounts: str = "",
        **variables: str,
    ) -> Running:
        """Start pytest, or another module, in the project, in a process group of its own.

        With *mounts*, commands of a shell, it has its own view of the file system, as root can
        give it one.
        """
        own = {
            name: value
            for name, value in os.environ.items()
            if name != "CI" and not name.startswith(_FOREIGN)
        }
        stem = self.folder.with_name(f"{self.folder.name}-{len(self.runs)}")
        module, *given = (*(command or pytest_with(*arguments)), *arguments)
        place = self.folder / below
        # Its lines are read from a file while it goes on.
        environ = {**own, "PYTHONUNBUFFERED": "1", **variables}
        process: subprocess.Popen[bytes] | ForkedProcess
        with stem.with_suffix(".out").open("wb") as out, stem.with_suffix(".err").open("wb") as err:
            if mounts or any(name.startswith(("PYTHON", "LC_", "LANG")) for name in variables):
                # They have to be there before Python begins.
                process = subprocess.Popen(
                    [
                        *(_mounted(mounts) if mounts else ()),
                        *(sys.executable, "-m", module, *given),
                    ],
                    cwd=place,
                    env=environ,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    start_new_session=True,
                    preexec_fn=_hear_signals,
                )
            else:
                process = ForkedProcess(
                    module,
                    given,
                    cwd=place,
                    env=environ,
                    stdout=out.fileno(),
                    stderr=err.fileno(),
                )
        running = Running(process, stem)
        self.runs.append(running)
        return running

    def run(self, *arguments: str, **variables: str) -> pytest.RunResult:
        """Return the result of a run of pytest in the project."""
        return self.start(*arguments, **variables).wait()

    def warmstack(self, *arguments: str, **variables: str) -> pytest.RunResult:
        """Return the result of the command `warmstack`, called in the project."""
        return self.start(*arguments, command=("pytest_warmstack.cli",), **variables).wait()

    def executions(self) -> int:
        """Return how often env.py was executed."""
        return len(self.lines("executions.log"))

    def lines(self, name: str) -> list[str]:
        """Return the lines of a file of the project; none when it is not there."""
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def servers(self) -> list[str]:
        """Return the ids of the project's servers that are there now, in order."""
        records = [json.loads((each / "server.json").read_text()) for each in self.folders()]
        own = [each["id"] for each in records]
        return sorted([*(each["Id"] for each in self.containers()), *own])

    def containers(self) -> list[Any]:
        """Return the project's containers."""
        return containers(self.folder)

    def folders(self) -> list[Path]:
        """Return the folders of the project's embedded servers."""
        return folders(self.folder)

    def hint_file(self, service: str) -> Path:
        """Return the file that tells the next run where the kept server is."""
        return self.folder / ".pytest_cache" / "d" / "warmstack" / f"{service}.json"

    def kept(self, service: str) -> Endpoint:
        """Return where the project's kept server answers."""
        hint = json.loads(self.hint_file(service).read_text())
        return Endpoint(**hint["server"]["endpoint"])

    def sql(self, *statements: str, database: str = "postgres") -> list[Any]:
        """Return the rows that the last statement gives on the kept PostgreSQL."""
        return asyncio.run(query(self.kept("postgres"), *statements, database=database))

    def databases(self, state: str = "") -> list[str]:
        """Return the plugin's databases in the kept PostgreSQL, all or those of one *state*."""
        rows = self.sql("SELECT datname FROM pg_database ORDER BY datname")
        return [row[0] for row in rows if row[0].startswith(f"warmstack_{state}")]

    def stop(self, service: str, number: signal.Signals) -> None:
        """Send the project's kept server a signal, and wait until it has ended."""
        for each in self.containers():
            if each["Config"]["Labels"][identity.Label.SERVICE] == service:
                with engine() as client:
                    client.api.kill(each["Id"], number.value)
                    client.api.wait(each["Id"])
        for folder in self.folders():
            record = json.loads((folder / "server.json").read_text())
            if record["labels"][identity.Label.SERVICE] == service:
                process = Process.parse(record["id"])
                assert process is not None
                os.kill(process.pid, number)
                until(process.is_gone, "the server has ended")

    def quit(self) -> None:
        """End the runs that still go on, as those of a test that failed do."""
        for running in self.runs:
            if running.process.poll() is None:
                running.kill()

    def end(self) -> None:
        """End the runs that still go on, remove what is left, and see that nothing is."""
        self.quit()
        if left(self.folder):
            result = self.warmstack("clean", "--project", str(self.folder), "--force")
            assert result.ret == 0
        try:
            # An engine may still be busy with a removal that another process asked for.
            until(lambda: not self.containers(), "all containers gone", seconds=10)
            assert_nothing_left(self.folder)
        finally:
            # The test has failed; the machine is cleaned all the same.
            for each in processes(self.folder):
                os.kill(int(each.partition(":")[0]), signal.SIGKILL)


def script(folder: Path, name: str) -> str:
    """Write a client that tells how it was called; return the PATH on which it is found."""
    folder.mkdir()
    path = folder / name
    path.write_text(_CLIENT)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return f"{folder}:{os.environ['PATH']}"


async def query(endpoint: Endpoint, *statements: str, database: str = "postgres") -> list[Any]:
    """Return the rows that the last statement gives on a PostgreSQL of ours."""
    connection = await asyncpg.connect(
        host=endpoint.host,
        port=endpoint.port,
        user=USER,
        password=endpoint.password,
        database=database,
        ssl=False,
    )
    try:
        for statement in statements[:-1]:
            await connection.execute(statement)
        return list(await connection.fetch(statements[-1]))
    finally:
        await connection.close()


@dataclass
class Bench:
    """A runtime at work for one project, without pytest in between."""

    name: str
    folder: Path
    postgres: ServerSpec[Any]
    redis: ServerSpec[Any]
    opened: list[tuple[Runtime, list[Server[Any]]]] = field(default_factory=list)

    def run_context(self, *, keep: bool = True, timeout: float = 60.0) -> RunContext:
        """Return for whom the runtime works: this project, and the process of the tests."""
        return RunContext(
            project=identity.Project(path=str(self.folder)),
            run=os.urandom(5).hex(),
            owner=Process.current(),
            keep=keep,
            start_timeout=timeout,
        )

    def runtime(self, *, keep: bool = True, timeout: float = 60.0) -> Runtime:
        """Return a runtime of its own, as another run of the project would have it."""
        run_context = self.run_context(keep=keep, timeout=timeout)
        runtime: Runtime
        if self.name == RuntimeName.DOCKER:
            from pytest_warmstack.servers.docker import Docker

            runtime = Docker(run_context)
        else:
            runtime = embedded.Embedded(run_context)
        self.opened.append((runtime, []))
        return runtime

    def ensure(
        self, spec: ServerSpec[Any], *, keep: bool = True, timeout: float = 60.0
    ) -> Server[Any]:
        """Return the server of *spec* as another run of the project gets it; it stays in use."""
        runtime = self.runtime(keep=keep, timeout=timeout)
        server = runtime.ensure(spec)
        self.opened[-1][1].append(server)
        return server

    def leave(self) -> None:
        """Close everything that is open, as all those runs do at their ends."""
        for runtime, servers in self.opened:
            for server in servers:
                server.client.close()
            runtime.close()
        self.opened.clear()

    def signal(self, server: Server[Any], number: signal.Signals) -> None:
        """Send a server's first process a signal."""
        if self.name == RuntimeName.DOCKER:
            with engine() as client:
                client.api.kill(server.id, number.value)
        else:
            os.kill(pid(server), number)

    def ended(self, server: Server[Any]) -> None:
        """Wait until the server's process has ended."""
        if self.name == RuntimeName.DOCKER:
            with engine() as client:
                client.api.wait(server.id)
        else:
            process = Process.parse(server.id)
            assert process is not None
            until(process.is_gone, "the server has ended")

    def end(self) -> None:
        """Remove what is left of the project, and see that nothing is."""
        self.leave()
        runtime = self.runtime()
        for found in runtime.list():
            if found.labels[PATH] == str(self.folder):
                runtime.remove(found)
        self.leave()
        assert_nothing_left(self.folder)


def pid(server: Server[Any]) -> int:
    """Return the process id of an embedded server."""
    process = Process.parse(server.id)
    assert process is not None
    return process.pid


def with_options(spec: ServerSpec[Any], **options: str) -> ServerSpec[Any]:
    """Return *spec* with other options among what its fingerprint covers."""
    return spec.replace(options={**spec.options, **options})


@dataclass(frozen=True)
class Changed:
    """A native server whose command is made into another one."""

    native: Any
    change: Callable[[list[str]], Sequence[str]]

    def need(self) -> Need:
        """Return what the server needs of a place, as it is."""
        need: Need = self.native.need()
        return need

    def check(self) -> None:
        """Find the program."""
        self.native.check()

    def prepare(self, folder: Path, password: str) -> Callable[[int], Command]:
        """Do what the native server does, and give the changed command."""
        command = self.native.prepare(folder, password)

        def changed(port: int) -> Command:
            original = command(port)
            return original.replace(arguments=self.change(list(original.arguments)))

        return changed


def with_command(
    spec: ServerSpec[Any], change: Callable[[list[str]], Sequence[str]]
) -> ServerSpec[Any]:
    """Return *spec* with a changed command, in both runtimes."""

    def container(password: str, fingerprint: str) -> Container:
        original = spec.container(password, fingerprint)
        return original.replace(arguments=change(list(original.arguments)))

    return spec.replace(container=container, native=lambda mark: Changed(spec.native(mark), change))
