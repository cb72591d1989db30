"""An engine behind ssh, as the `docker` command reaches it: by the user's own ssh, keys and all.

docker-py has a way of its own. It wants paramiko where it does not use it, insists on port 22
where the user's configuration names another, and leaves processes and sockets behind, which fails
runs that turn warnings into errors.
"""

from __future__ import annotations

import shlex
import socket
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pytest_warmstack import originals

_PATIENCE: Final = 5.0
"""Seconds that ssh may take to notice that its connection is closed, and to read its files."""


class Tunnel:
    """A socket of our own; whoever connects to it talks to the engine at an `ssh://` address.

    Each connection is `docker system dial-stdio` on the engine's machine, and ssh itself holds
    the socket: not a byte passes through this process.
    """

    def __init__(self, address: str) -> None:
        self._command = command(address)
        # The folder is nobody else's, and so is the socket in it.
        self._folder = tempfile.TemporaryDirectory(prefix="warmstack-ssh-")
        self._log = Path(self._folder.name) / "log"
        path = str(Path(self._folder.name) / "engine.sock")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._children: list[subprocess.Popen[bytes]] = []
        self._thread = originals.Thread(target=self._serve, name="warmstack-ssh", daemon=True)
        self._thread.start()
        self.address = f"unix://{path}"

    def _serve(self) -> None:
        """Give each connection an ssh of its own, until the socket is shut."""
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
                        # Ctrl-C is the run's, which still has containers to remove.
                        start_new_session=True,
                    )
                )

    def words(self) -> str:
        """Return what ssh had to say, if anything."""
        with suppress(OSError):
            return self._log.read_text(errors="replace").strip()
        return ""

    def close(self) -> None:
        """End every connection, and see every ssh out."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(_PATIENCE)
        for child in self._children:
            try:
                child.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                child.kill()
                with suppress(subprocess.TimeoutExpired):
                    child.wait(_PATIENCE)
        self._folder.cleanup()


def command(address: str) -> list[str]:
    """Return the command that connects to the engine at *address*, as the `docker` command's.

    >>> command("ssh://me@build:2222/run/podman.sock")[-4:]
    ['-p2222', '--', 'build', 'docker --host unix:///run/podman.sock system dial-stdio']
    """
    url = urlsplit(address)
    there = ["--host", f"unix://{url.path}"] if url.path.strip("/") else []
    # The one argument that a shell reads: the login shell on the other machine.
    remote = shlex.join(["docker", *there, "system", "dial-stdio"])
    return [*_ssh(address, "-T", "-o", "ConnectTimeout=30"), remote]


def host(address: str) -> str:
    """Return the host that ssh connects to for *address*: its name may be an alias of ssh's own."""
    name = _name(address)
    with suppress(OSError, subprocess.TimeoutExpired):
        answer = subprocess.run(
            _ssh(address, "-G"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_PATIENCE,
        ).stdout
        words = (line.split() for line in answer.splitlines())
        return next((each[1] for each in words if each[:1] == ["hostname"] and each[1:]), name)
    return name


def _ssh(address: str, *options: str) -> list[str]:
    """Return the call of ssh for *address*, with user and port as far as it names them."""
    url = urlsplit(address)
    user = [f"-l{url.username}"] if url.username else []
    port = [f"-p{url.port}"] if url.port else []
    return ["ssh", *options, *user, *port, "--", _name(address)]


def _name(address: str) -> str:
    """Return the host that *address* names, in the user's own letters: ssh tells them apart."""
    name = urlsplit(address).netloc.rpartition("@")[2]
    return name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
