"""Connects to an engine over ssh in the way of the `docker` command: with the user's own ssh.

docker-py's own implementation is not usable. It requires paramiko even if it doesn't use it, uses
port 22 even if the user's configuration names another, and leaves processes and sockets behind,
which fails runs that turn warnings into errors.
"""

from __future__ import annotations

import shlex
import shutil
import socket
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pytest_warmstack import originals

_SSH_TIMEOUT: Final = 5.0
"""Seconds that ssh may take to notice a closed connection, or to read its configuration."""


class NoSsh(OSError):
    """The program `ssh` is not installed."""


class Tunnel:
    """A private socket whose connections lead to the engine at an `ssh://` address.

    Each connection runs `docker system dial-stdio` on the engine's machine. ssh itself has the
    socket, so no byte passes through this process.
    """

    def __init__(self, address: str) -> None:
        if shutil.which("ssh") is None:
            raise NoSsh("the program `ssh` is not installed")
        self._command = command(address)
        # Only this user may enter the folder.
        self._folder = tempfile.TemporaryDirectory(prefix="warmstack-ssh-")
        self._log = Path(self._folder.name) / "log"
        path = str(Path(self._folder.name) / "engine.sock")
        self._listener = originals.Socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._children: list[subprocess.Popen[bytes]] = []
        self._thread = originals.Thread(target=self._serve, name="warmstack-ssh", daemon=True)
        self._thread.start()
        self.address = f"unix://{path}"

    def _serve(self) -> None:
        """Start an ssh process for each connection, until the socket is closed."""
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, self._log.open("ab") as log, suppress(OSError):
                self._children.append(
                    subprocess.Popen(
                        self._command,
                        stdin=connection.fileno(),
                        stdout=connection.fileno(),
                        stderr=log,
                        # Ctrl-C must not end it: the run still needs it to remove containers.
                        start_new_session=True,
                    )
                )

    def words(self) -> str:
        """Return what ssh wrote, or ""."""
        with suppress(OSError):
            return self._log.read_text(errors="replace").strip()
        return ""

    def close(self) -> None:
        """Close every connection, and wait for the end of every ssh process."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(_SSH_TIMEOUT)
        for child in self._children:
            try:
                child.wait(_SSH_TIMEOUT)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self._folder.cleanup()


def command(address: str) -> list[str]:
    """Return the command that connects to the engine at *address*, as the `docker` command does.

    >>> command("ssh://me@build:2222/run/podman.sock")[-4:]
    ['-p2222', '--', 'build', 'docker --host unix:///run/podman.sock system dial-stdio']
    """
    path = urlsplit(address).path
    host = ["--host", f"unix://{path}"] if path.strip("/") else []
    # One argument, because the login shell on the other machine parses it.
    remote = shlex.join(["docker", *host, "system", "dial-stdio"])
    return [*_ssh(address, "-T", "-o", "ConnectTimeout=30"), remote]


def host_of(address: str) -> str:
    """Return the host that ssh connects to for *address*, which may have an alias."""
    with suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(
            _ssh(address, "-G"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            timeout=_SSH_TIMEOUT,
        ).stdout
        for line in answer.splitlines():
            if line.startswith("hostname "):
                return line.split()[1]
    return _name(address)


def _ssh(address: str, *options: str) -> list[str]:
    """Return the ssh command for *address*, with its user and port if it has them."""
    url = urlsplit(address)
    user = [f"-l{url.username}"] if url.username else []
    port = [f"-p{url.port}"] if url.port else []
    return ["ssh", *options, *user, *port, "--", _name(address)]


def _name(address: str) -> str:
    """Return the host in *address* as it is written, because ssh distinguishes case."""
    name = urlsplit(address).netloc.rpartition("@")[2]
    return name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
