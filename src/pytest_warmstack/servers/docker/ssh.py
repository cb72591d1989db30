"""An engine behind ssh, reached as the `docker` command does: by the user's own ssh, keys and all.

docker-py's own way is not usable. It requires paramiko even where it does not use it, insists on
port 22 where the user's configuration names another, and leaves processes and sockets behind, which
fails runs that turn warnings into errors.
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
"""Seconds that ssh may take to notice that its connection is closed, and to read its files."""


class NoSsh(OSError):
    """There is no ssh program."""


class Tunnel:
    """A private socket; each connection to it talks to the engine at an `ssh://` address.

    Each connection is a `docker system dial-stdio` on the engine's machine. ssh itself holds the
    socket, so that no byte passes through this process.
    """

    def __init__(self, address: str) -> None:
        if shutil.which("ssh") is None:
            raise NoSsh("there is no program `ssh` here, such as OpenSSH's client")
        self._command = command(address)
        # Only this user can enter the folder.
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
        """Start an ssh for each connection, until the socket is shut."""
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
                        # Ctrl-C must not end it: the run still has containers to remove.
                        start_new_session=True,
                    )
                )

    def words(self) -> str:
        """Return what ssh wrote, if anything."""
        with suppress(OSError):
            return self._log.read_text(errors="replace").strip()
        return ""

    def close(self) -> None:
        """Close every connection, and wait for every ssh to end."""
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
    """Return the command that connects to the engine at *address*, like the `docker` command's.

    >>> command("ssh://me@build:2222/run/podman.sock")[-4:]
    ['-p2222', '--', 'build', 'docker --host unix:///run/podman.sock system dial-stdio']
    """
    path = urlsplit(address).path
    host = ["--host", f"unix://{path}"] if path.strip("/") else []
    # One argument, since the login shell on the other machine parses it.
    remote = shlex.join(["docker", *host, "system", "dial-stdio"])
    return [*_ssh(address, "-T", "-o", "ConnectTimeout=30"), remote]


def host_of(address: str) -> str:
    """Return the host that ssh connects to for *address*, whose name may be an alias."""
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
    """Return the call of ssh for *address*, with user and port if it names them."""
    url = urlsplit(address)
    user = [f"-l{url.username}"] if url.username else []
    port = [f"-p{url.port}"] if url.port else []
    return ["ssh", *options, *user, *port, "--", _name(address)]


def _name(address: str) -> str:
    """Return the host in *address* as it is written: for ssh, upper and lower case differ."""
    name = urlsplit(address).netloc.rpartition("@")[2]
    return name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
