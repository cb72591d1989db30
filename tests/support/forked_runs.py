"""Runs Python modules in processes that are forked from one that has imported the libraries.

A run of pytest spends most of a second on imports before its first test. A fork takes milliseconds
and is a process like any other: it has its own process group, environment, arguments and streams,
and Python ends it as usual. The run imports all plugins itself: pytest has to see that.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import io
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

LIBRARIES: Final = (
    *("_pytest.config", "_pytest.main", "_pytest.python", "_pytest.assertion.rewrite"),
    *("asyncpg", "redis.asyncio", "sqlalchemy.ext.asyncio"),
    "sqlalchemy.dialects.postgresql.asyncpg",
)
"""What nearly every run imports, and no test forbids it to import."""

_MESSAGE_SIZE: Final = 1 << 18


class _Server:
    """The process that forks, as the process of the tests sees it."""

    def __init__(self) -> None:
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        self.statuses: dict[int, int] = {}
        with other:
            # It ends when this process does, which has the only other end of the socket.
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(other.fileno())],
                pass_fds=[other.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def fork(self, request: Mapping[str, Any], out: int, err: int) -> int:
        """Return the id of a new process that does *request*, and writes to *out* and *err*."""
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(request).encode()], [out, err])
            while (pid := self._receive()) is None:
                pass
            return pid

    def wait(self, pid: int, seconds: float) -> int | None:
        """Return the exit status of a process, or None if it still runs after *seconds*."""
        deadline = time.monotonic() + seconds
        while True:
            with self._lock:
                if pid in self.statuses:
                    return self.statuses[pid]
                # In short turns: another thread may wait for another process.
                left = max(deadline - time.monotonic(), 0)
                if select.select([self._socket], [], [], min(left, 0.02))[0]:
                    self._receive()
                elif not left:
                    return None

    def _receive(self) -> int | None:
        """Return the id of a new process, or note the exit status of one that has ended."""
        message = json.loads(self._socket.recv(_MESSAGE_SIZE))
        if "status" not in message:
            self.statuses.pop(message["pid"], None)  # That of an earlier process with this number.
            return int(message["pid"])
        self.statuses[message["pid"]] = message["status"]
        return None


_servers: dict[int, _Server] = {}


class ForkedProcess:
    """A forked process. Its names are those of `subprocess.Popen`."""

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdout: int,
        stderr: int,
    ) -> None:
        if os.getpid() not in _servers:
            _servers[os.getpid()] = _Server()
        self._server = _servers[os.getpid()]
        request = {"module": module, "arguments": [*arguments], "cwd": str(cwd), "env": {**env}}
        self.pid = self._server.fork(request, stdout, stderr)

    def poll(self) -> int | None:
        """Return the exit status, or the signal's negative number; None while it runs."""
        return self._server.wait(self.pid, 0)

    def wait(self, timeout: float) -> int:
        """Return the exit status; raise `subprocess.TimeoutExpired` after *timeout* seconds."""
        status = self._server.wait(self.pid, timeout)
        if status is None:
            raise subprocess.TimeoutExpired(f"the forked process {self.pid}", timeout)
        return status

    def send_signal(self, number: int) -> None:
        """Send the process a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


def _serve(server: socket.socket) -> tuple[dict[str, Any], Sequence[int]] | None:
    """Fork for each request; return None at the end, and in a forked process its request."""
    for name in LIBRARIES:
        importlib.import_module(name)
    # `-p asyncio` names the plugin, and pytest would warn that a module of that name is imported.
    asyncio.__doc__ = f"{asyncio.__doc__} PYTEST_DONT_REWRITE"
    gc.freeze()
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writer.fileno())
    while True:
        ready, _, _ = select.select([server, reader], [], [])
        if reader in ready:
            reader.recv(_MESSAGE_SIZE)
        for pid, status in iter(_ended, None):
            message = {"pid": pid, "status": os.waitstatus_to_exitcode(status)}
            server.send(json.dumps(message).encode())
        if server not in ready:
            continue
        text, handles, _, _ = socket.recv_fds(server, _MESSAGE_SIZE, 2)
        if not text:
            return None
        if not (pid := os.fork()):
            signal.set_wakeup_fd(-1)
            for each in (server, reader, writer):
                each.close()
            return json.loads(text), handles
        for handle in handles:
            os.close(handle)
        server.send(json.dumps({"pid": pid}).encode())


def _ended() -> tuple[int, int] | None:
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, status) if pid else None


def _run(request: Mapping[str, Any], handles: Sequence[int]) -> None:
    """Become what `python -u -m MODULE ARGUMENTS` would be."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    for handle, stream in zip(handles, (1, 2), strict=True):
        os.dup2(handle, stream)
        os.close(handle)
    sys.stdout = sys.__stdout__ = _unbuffered(1)  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _unbuffered(2)  # type: ignore[misc]
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = ["-m", *request["arguments"]]
    sys.path[0] = request["cwd"]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


def _unbuffered(handle: int) -> io.TextIOWrapper:
    errors = "backslashreplace" if handle == 2 else "strict"
    raw = io.FileIO(handle, "w", closefd=False)
    return io.TextIOWrapper(raw, "utf-8", errors, write_through=True)  # type: ignore[arg-type]


if __name__ == "__main__":
    given = _serve(socket.socket(fileno=int(sys.argv[1])))
    if given is not None:
        _run(*given)
