"""Docker engines at other addresses than the default socket: proxies, an ssh server, other engines.

Each context manager makes and removes one, and changes nothing else on the machine.
"""

from __future__ import annotations

import asyncio
import getpass
import os
import resource
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from projects import Images, engine, lacking, until
from pytest_warmstack.background import BackgroundLoop

DEFAULT: Final = "unix:///var/run/docker.sock"
_BUFFER: Final = 65536
_SYSTEM: Final = "/usr/local/sbin:/usr/sbin:/sbin:/usr/share/docker.io/contrib"
"""Where programs lie that not every user has in the path."""


def program(name: str, package: str) -> str:
    """Return the path of a program; where it is missing, so is the test."""
    path = shutil.which(name, path=f"{os.environ['PATH']}:{_SYSTEM}")
    if path is None:
        lacking(f"there is no {name} here, which Debian has in {package}")
    return path


def root(what: str) -> None:
    """Do nothing for root; whoever else runs the tests lacks *what*."""
    if os.geteuid() != 0:
        lacking(f"only root can make {what}")


class Forwarder:
    """A socket, of any family, that leads to the engine's own; it counts who came."""

    def __init__(self, listener: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        host = os.environ.get("DOCKER_HOST", DEFAULT)
        if not host.startswith("unix://"):
            lacking(f"the engine here has no socket that could be forwarded: {host}")
        self.count = 0
        self.address = listener.getsockname()
        self._engine = host.removeprefix("unix://")
        self._serving: set[asyncio.Task[None]] = set()
        self._background = BackgroundLoop()
        self._server = self._background.call(self._open, listener, tls)

    async def _open(
        self, listener: socket.socket, tls: ssl.SSLContext | None
    ) -> asyncio.AbstractServer:
        return await asyncio.start_server(self._serve, sock=listener, ssl=tls)

    async def _serve(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        """Connect whoever comes."""
        self.count += 1
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        async with _ended(back):
            far, on = await asyncio.open_unix_connection(self._engine)
            async with _ended(on):
                await asyncio.gather(_pump(near, on), _pump(far, back))

    async def _shut(self) -> None:
        self._server.close()
        # What is not waited for is found unclosed by the next garbage collection, in some test.
        # That includes those who came just now, for whom `_serve` has not begun yet.
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for each in self._serving:
                each.cancel()
            await asyncio.wait(others, timeout=0.05)

    def close(self) -> None:
        """Cut all connections. Closing twice is fine."""
        if self._server.is_serving():
            self._background.call(self._shut)
            self._background.close()


@asynccontextmanager
async def _ended(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Close *writer* at the end, and wait until its socket is closed; after an error, abort it."""
    try:
        yield
        writer.close()
    except BaseException:
        writer.transport.abort()
        raise
    finally:
        with suppress(OSError):
            await writer.wait_closed()


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Copy what comes, up to its end, and hand the end on."""
    with suppress(OSError):
        while part := await source.read(_BUFFER):
            target.write(part)
            await target.drain()
        if target.can_write_eof():
            target.write_eof()
        else:
            # TLS has no half of an end.
            target.close()


@contextmanager
def forwarded(listener: socket.socket, tls: ssl.SSLContext | None = None) -> Iterator[Forwarder]:
    """Yield a forwarder from *listener* to the engine, for whom *tls* lets in."""
    forwarder = Forwarder(listener, tls)
    try:
        yield forwarder
    finally:
        forwarder.close()


@contextmanager
def running(command: list[str], log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Yield a process that writes to *log*; it is asked to end, and waited for."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, **options
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def short_folder() -> Iterator[Path]:
    """Yield a folder whose path is short enough for sockets in it, closed to others."""
    with tempfile.TemporaryDirectory(prefix="ws-") as name:
        yield Path(os.path.realpath(name))


@dataclass(frozen=True)
class Sshd:
    """An ssh server of our own, and a folder with an `ssh` whose user knows its key."""

    port: int
    user: str
    programs: Path
    log: Path

    @property
    def path(self) -> str:
        """The search path with that `ssh` in front."""
        return f"{self.programs}:{os.environ['PATH']}"

    def logins(self) -> int:
        """Return how many connections it has let in."""
        return self.log.read_text().count("Accepted publickey")


@contextmanager
def ssh_server(address: str) -> Iterator[Sshd]:
    """Yield an ssh server on *address*, which lets this user in; its alias is `engine`."""
    sshd, ssh, keygen = (
        program(name, f"openssh-{package}")
        for name, package in (("sshd", "server"), ("ssh", "client"), ("ssh-keygen", "client"))
    )
    program("docker", "docker.io")
    with short_folder() as folder, ExitStack() as stack:
        for key in ("host", "id"):
            options = ["-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
            subprocess.run([keygen, *options], check=True)
        shutil.copy(folder / "id.pub", folder / "authorized")
        with socket.create_server((address, 0)) as free:
            port = free.getsockname()[1]
        user = getpass.getuser()
        public = " ".join((folder / "host.pub").read_text().split()[:2])
        (folder / "known").write_text(f"[{address}]:{port} {public}\n")
        (folder / "client").write_text(
            f"Host engine\n HostName {address}\n Port {port}\n User {user}\n"
            f"Host *\n IdentityFile {folder}/id\n IdentitiesOnly yes\n BatchMode yes\n"
            f" UserKnownHostsFile {folder}/known\n GlobalKnownHostsFile /dev/null\n"
        )
        (folder / "server").write_text(
            f"ListenAddress {address}:{port}\nHostKey {folder}/host\n"
            f"AuthorizedKeysFile {folder}/authorized\nStrictModes no\nUsePAM no\nPidFile none\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nMaxStartups 100\n"
        )
        programs = folder / "programs"
        programs.mkdir()
        # The user's own configuration stays out of it: ssh looks for it in the real home.
        (programs / "ssh").write_text(
            f"#!{sys.executable}\nimport os, sys\n"
            f"os.execv({ssh!r}, [{ssh!r}, '-F', '{folder}/client', *sys.argv[1:]])\n"
        )
        (programs / "ssh").chmod(0o700)
        if os.geteuid() == 0 and not (home := Path("/run/sshd")).exists():
            home.mkdir(mode=0o755)
            stack.callback(home.rmdir)
        log = folder / "log"
        process = stack.enter_context(
            running([sshd, "-D", "-e", "-f", str(folder / "server")], log)
        )
        until(lambda: b"Server listening" in log.read_bytes() or process.poll(), "sshd listens")
        assert process.poll() is None, log.read_text()
        yield Sshd(port, user, programs, log)


@dataclass(frozen=True)
class Network:
    """A network of its own on this machine, as another machine would have it."""

    name: str
    here: str
    there: str

    def command(self, *words: str) -> list[str]:
        """Return the command that runs *words* in it."""
        return [program("ip", "iproute2"), "netns", "exec", self.name, *words]


@contextmanager
def network() -> Iterator[Network]:
    """Yield a network whose only neighbour is this machine; its loopback is another one."""
    root("networks")
    ip = program("ip", "iproute2")

    def do(*words: str) -> None:
        subprocess.run([ip, *words], check=True)

    # Addresses that are kept for tests of networks (RFC 2544), a pair of them for each process.
    number = os.getpid() % 16384 * 4
    here, there = (f"198.18.{(number + n) // 256}.{(number + n) % 256}" for n in (1, 2))
    name = f"ws{os.getpid()}"
    do("netns", "add", name)
    try:
        do("link", "add", f"{name}h", "type", "veth", "peer", "name", "eth0", "netns", name)
        do("addr", "add", f"{here}/30", "dev", f"{name}h")
        do("link", "set", f"{name}h", "up")
        do("-n", name, "addr", "add", f"{there}/30", "dev", "eth0")
        do("-n", name, "link", "set", "eth0", "up")
        do("-n", name, "link", "set", "lo", "up")
        yield Network(name, here, there)
    finally:
        # By itself it would go some time after the network has.
        subprocess.run([ip, "link", "delete", f"{name}h"], check=False)
        do("netns", "delete", name)


def copy_images(images: Images, command: list[str], environment: dict[str, str]) -> None:
    """Give the images of the engine here to *command*, which reads an archive of them."""
    for image in (images.postgres, images.redis):
        with (
            engine() as client,
            subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            ) as load,
        ):
            assert load.stdin is not None
            assert load.stderr is not None
            for part in client.images.get(image).save(named=True):
                load.stdin.write(part)
            load.stdin.close()
            assert load.wait() == 0, load.stderr.read().decode()


@contextmanager
def podman(images: Images) -> Iterator[str]:
    """Yield the address of a Podman that has the images, and nothing of the machine's own."""
    root("this Podman")
    name = program("podman", "podman")
    bridges = {Path("/sys/class/net", each) for each in ("cni-podman0", "podman0")}
    before = {bridge for bridge in bridges if bridge.exists()}
    with short_folder() as folder:
        (folder / "storage.conf").write_text(
            f'[storage]\ndriver = "vfs"\ngraphroot = "{folder}/graph"\nrunroot = "{folder}/run"\n'
        )
        files, processes = (
            resource.getrlimit(each)[1] for each in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC)
        )
        processes = 4096 if processes == resource.RLIM_INFINITY else min(processes, 4096)
        (folder / "containers.conf").write_text(
            "[containers]\n"
            # Its own default is more than some machines grant.
            f'default_ulimits = ["nofile={files}:{files}", "nproc={processes}:{processes}"]\n'
            "[engine]\n"
            'cgroup_manager = "cgroupfs"\n'
            f'tmp_dir = "{folder}/tmp"\n'
        )
        environment = {
            **os.environ,
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
            "CONTAINERS_CONF": str(folder / "containers.conf"),
        }
        copy_images(images, [name, "load", "--quiet"], environment)
        path = folder / "podman.sock"
        address = f"unix://{path}"
        command = [name, "system", "service", "--time=0", address]
        with running(command, folder / "log", env=environment) as process:
            until(lambda: path.exists() or process.poll(), "Podman listens")
            assert process.poll() is None, (folder / "log").read_text()
            yield address
    for bridge in bridges - before:
        if bridge.exists():
            subprocess.run([program("ip", "iproute2"), "link", "delete", bridge.name], check=True)


@contextmanager
def rootless(images: Images) -> Iterator[str]:
    """Yield the address of a Docker engine that runs as nobody, and has the images."""
    root("a user for this engine")
    for name, package in (
        ("rootlesskit", "rootlesskit"),
        ("slirp4netns", "slirp4netns"),
        ("newuidmap", "uidmap"),
    ):
        program(name, package)
    script = program("dockerd-rootless.sh", "docker.io")
    with short_folder() as folder:
        path = folder / "run" / "docker.sock"
        address = f"unix://{path}"
        environment = {**os.environ, "PATH": f"{os.environ['PATH']}:{_SYSTEM}"}
        command = [
            *(program("unshare", "util-linux"), "--mount", sys.executable),
            *(str(Path(__file__).with_name("rootless.py")), script, str(folder)),
        ]
        with running(command, folder / "log", env=environment) as process:
            until(
                lambda: b"API listen" in (folder / "log").read_bytes() or process.poll(),
                "the engine listens",
            )
            assert process.poll() is None, (folder / "log").read_text()
            load = [program("docker", "docker.io"), "--host", address, "load", "--quiet"]
            copy_images(images, load, environment)
            yield address
