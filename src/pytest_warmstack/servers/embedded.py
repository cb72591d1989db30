"""Servers as native processes, each with a folder for its files and its record.

If there is a `/dev/shm`, the folder is in memory. It contains the data, the log and the record
`server.json`, which only its owner can read. A process that starts, checks or removes a server
holds the lock on the folder (see `folders`).
"""

from __future__ import annotations

import errno
import json
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from pytest_warmstack import originals
from pytest_warmstack.options import RuntimeName
from pytest_warmstack.servers import folders, places
from pytest_warmstack.servers.errors import (
    AddressLost,
    ConnectionLost,
    RuntimeUnavailable,
    ServerFailed,
    raise_if_out_of_resources,
)
from pytest_warmstack.servers.identity import Daemon, Process, random_password, write_private
from pytest_warmstack.servers.lifecycle import (
    LOOPBACK,
    POLL_INTERVAL,
    check_address,
    check_version,
    is_free,
    own_port,
    remove_outdated,
    wait_ready,
)
from pytest_warmstack.servers.model import (
    ANSWER_TIMEOUT,
    C,
    Command,
    Endpoint,
    NotOurs,
    NotReady,
    RunContext,
    Server,
    ServerInfo,
    ServerSpec,
)

_LOG_LINES: Final = 30
_MAX_LOG: Final = 4 * 1024 * 1024
"""Bytes at the end of a log that are read."""

_MAX_PORTS: Final = 5
"""How many free ports to try: another process may take one before the server binds it."""

_FULL: Final = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))

_WAL_SEGMENT: Final = 16 * 1024 * 1024
"""Bytes that PostgreSQL allocates at a time. If it can't, it ends without an error for clients."""

_STOP_TIMEOUT: Final = 10.0
"""Seconds that a server may take to end before it is killed."""


@contextmanager
def _translate_errors() -> Iterator[None]:
    """Turn the operating system's errors into `RuntimeUnavailable`."""
    try:
        yield
    except OSError as error:
        cause = _cause(error)
        number = error.errno or next((n for n in errno.errorcode if f"[Errno {n}]" in cause), 0)
        raise RuntimeUnavailable.by_system(cause=cause, number=number) from error
    except subprocess.TimeoutExpired as error:
        cause = f"{error.cmd[0]} did not end within {error.timeout:g} seconds"
        raise RuntimeUnavailable.by_system(cause=cause, number=0) from error


def _cause(error: BaseException) -> str:
    """Return the text of *error*; if several files could not be copied, that of the first."""
    return str(error.args[0][0][2] if isinstance(error, shutil.Error) else error)


class Embedded:
    """The runtime `embedded`."""

    name = RuntimeName.EMBEDDED
    on_loopback = True

    def __init__(self, run_context: RunContext) -> None:
        self._run_context = run_context

    @_translate_errors()
    def check(self, specs: Sequence[ServerSpec[Any]], say: Callable[[str], None]) -> None:
        """Raise `RuntimeUnavailable` unless there are programs and space for all *specs*."""
        for spec in specs:
            spec.native("").check()
            # An existing server needs no more space.
            if not os.path.lexists(self._folder(spec)):
                _place(spec)

    @_translate_errors()
    def ensure(self, spec: ServerSpec[C]) -> Server[C]:
        """Return the server for *spec* in its folder; start it if necessary."""
        keep, seconds = self._run_context.keep, self._run_context.start_timeout
        outdated, trouble = remove_outdated(self, self._run_context, spec)
        origin, reason = ("replaced", outdated) if outdated else ("started", "")
        client = None
        folder = self._folder(spec)
        with folders.locked(folder, spec.title, seconds, lambda: _place(spec)):
            found = _read(folder)
            if found is not None and found.running:
                try:
                    client = spec.connect(found.endpoint, found.fingerprint, ANSWER_TIMEOUT)
                    check_version(spec, client, self.name)
                    origin, reason = "reused" if keep else "shared", ""
                # After other errors, keep the server: it is full, or this process lacks something.
                except (NotReady, NotOurs, ServerFailed) as failure:
                    client = None
                    origin, reason = "replaced", f"the old one was broken: {failure}"
                    _stop(found)
            elif found is not None:
                origin, reason = "started again", "its process had ended"
            where = _place_reason(spec, folder)
            if found is None or client is None:
                folders.empty(folder)
                found, client = self._start(spec, folder)
            check_address(spec, client)
        what = f"process {found.id.split('/')[1]} of {_short(found.what)}"
        server = found.replace(what=what, state="running")
        return server.ready(spec, client, origin, reason, trouble, found.note, where)

    @_translate_errors()
    def list(self) -> list[ServerInfo]:
        """Return every embedded server of this user on this machine."""
        listed = filter(None, map(_read, folders.existing()))
        return [each.replace(what=_short(each.what) or "not started yet") for each in listed]

    @_translate_errors()
    def remove(self, found: ServerInfo) -> None:
        """Stop the server's process and remove its folder."""
        folder = _folder(found)
        with folders.locked(folder, found.name, _STOP_TIMEOUT):
            current = _read(folder)
            if current is not None:
                if found.kind == "folder":
                    return  # Since it was listed, a server was started in it.
                _stop(current)
            folders.remove(folder)

    def close(self) -> None:
        """Do nothing: there is no engine."""

    @_translate_errors()
    def connect(self, spec: ServerSpec[C], found: ServerInfo) -> C:
        """Return a client of *found* that doesn't count as a user."""
        endpoint = found.endpoint.replace(looks=True)
        return spec.connect(endpoint, found.fingerprint or "none", ANSWER_TIMEOUT)

    @_translate_errors()
    def memory(self, found: ServerInfo) -> int:
        """Return the bytes of a server's folder and of the memory of its processes."""
        process = Process.parse(found.id)
        own = process.family_memory() if process is not None else 0
        return folders.disk_usage(_folder(found)) + own

    def log(self, found: ServerInfo, lines: int, *, follow: bool = False) -> Iterator[str]:
        """Yield the last *lines* of a server's log; with *follow*, also new ones."""
        password = found.endpoint.password
        try:
            with (_folder(found) / "log").open(encoding="utf-8", errors="replace") as log:
                if (size := os.fstat(log.fileno()).st_size) > _MAX_LOG:
                    log.seek(size - _MAX_LOG)
                    log.readline()  # The rest of a line.
                last = log.readlines()[-lines:] if lines else []
                yield from (_without(password, line.rstrip("\n")) for line in last)
                while follow and _process_of(found) is not None:
                    while line := log.readline():
                        yield _without(password, line.rstrip("\n"))
                    originals.sleep(POLL_INTERVAL)
        except OSError as error:
            yield str(error)

    def client(
        self, _spec: ServerSpec[Any], found: ServerInfo, program: str
    ) -> tuple[Sequence[str], Endpoint] | None:
        """Return the path of *program* next to the server's own, and the server's address."""
        current = _read(_folder(found))
        if current is None or not current.what:
            return None
        path = Path(current.what).with_name(program)
        return ([str(path)], current.endpoint) if os.access(path, os.X_OK) else None

    @_translate_errors()
    def leftovers(self) -> Sequence[ServerInfo]:
        """Return the folders without a record, whose purpose is unknown."""
        return [
            ServerInfo(
                runtime=self.name, id=str(folder), name=folder.name, labels={}, kind="folder"
            )
            for folder in folders.existing()
            if _read(folder) is None
        ]

    def _folder(self, spec: ServerSpec[Any]) -> Path:
        return folders.root() / self._run_context.name(spec, self.name)

    def _start(self, spec: ServerSpec[C], folder: Path) -> tuple[ServerInfo, C]:
        """Start the server in the empty *folder*; return its record and its client."""
        password = spec.reserved.password if spec.reserved else random_password()
        record = ServerInfo(
            runtime=self.name,
            id="",
            name=folder.name,
            labels=self._run_context.labels(spec, self.name),
            endpoint=Endpoint(host=LOOPBACK, port=0, password=password),
            since=originals.now(),
        )
        try:
            # Write the record first, so that the folder's owner is known even after a kill.
            _write(folder, record)
            command_for = spec.native(record.fingerprint).prepare(folder.resolve(), password)
            port = own_port(self._run_context, spec) or _free_port()
            attempts = 1
            while True:
                try:
                    return self._attempt(spec, folder, record, command_for, port)
                except ServerFailed as failure:
                    is_last = attempts == _MAX_PORTS or spec.reserved is not None
                    if is_last or not _is_port_taken(failure):
                        raise
                    attempts, port = attempts + 1, _free_port()
        except BaseException as failure:
            full = no_space(failure, spec.title, folder.name)
            with suppress(OSError):  # The first failure is the one to report.
                folders.remove(folder)
            if full is not None:
                raise full from failure
            raise

    def _attempt(
        self,
        spec: ServerSpec[C],
        folder: Path,
        record: ServerInfo,
        command_for: Callable[[int], Command],
        port: int,
    ) -> tuple[ServerInfo, C]:
        """Start the server on *port*, and wait until it answers."""
        if spec.reserved is not None and not is_free(port):
            # Another program may accept connections there, and never answer.
            raise AddressLost.taken(
                title=spec.title, place=spec.reserved.place, cause=os.strerror(errno.EADDRINUSE)
            )
        command = command_for(port)
        daemon = _launch(command, folder)
        record = record.replace(
            id=str(Process.of(daemon.pid)),
            endpoint=record.endpoint.replace(port=port),
            what=command.arguments[0],
            note=command.note,
        )
        # Before it is ready, so that the process can be stopped even after a kill.
        _write(folder, record)
        try:
            client = wait_ready(
                spec,
                record.endpoint,
                record.fingerprint,
                runtime=self.name,
                seconds=self._run_context.start_timeout,
                death=lambda: _death(daemon),
                log=lambda: "\n".join(self.log(record, _LOG_LINES)),
            )
        except NotOurs as failure:
            _stop(record)
            how = f"its port is in use by another process: {failure}"
            raise ServerFailed.died(title=spec.title, how=how, log="") from failure
        except BaseException:
            _stop(record)
            raise
        return record, client


def _folder(found: ServerInfo) -> Path:
    return folders.root() / found.name


def _read(folder: Path) -> ServerInfo | None:
    """Return the record in *folder* with the state of its process; None if it isn't readable."""
    try:
        record = ServerInfo.from_plain(json.loads((folder / "server.json").read_bytes()))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise_if_out_of_resources(error)
        return None
    return record.replace(state="running" if _process_of(record) else "ended")


def _write(folder: Path, record: ServerInfo) -> None:
    write_private(folder / "server.json", json.dumps(record.to_plain()))


def _process_of(record: ServerInfo) -> Process | None:
    """Return the server's first process, if it runs."""
    process = Process.parse(record.id)
    return None if process is None or process.is_gone() else process


def _launch(command: Command, folder: Path) -> Daemon:
    """Start *command*, with its log in *folder*."""
    privileges: dict[str, Any] = {}
    if command.user is not None:
        user = pwd.getpwnam(command.user)
        privileges = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    with (folder / "log").open("ab") as log:
        return Daemon(
            command.arguments,
            log,
            cwd=folder,
            # PostgreSQL and Redis read settings from the environment too.
            env={"PATH": os.defpath, "TZ": "UTC", **command.environment},
            **privileges,
        )


def _death(daemon: Daemon) -> str | None:
    """Return how the process ended, None while it runs."""
    status = daemon.poll()
    return None if status is None else f"its process ended with exit status {status}"


def _stop(record: ServerInfo) -> None:
    """Stop the server's process quickly: its data is no longer needed."""
    process = _process_of(record)
    # After a reboot, or in another container, the same id is another process.
    if process is None or not process.is_near:
        return
    # SIGINT requests PostgreSQL's fast shutdown, which doesn't wait for clients (documentation,
    # "Shutting Down the Server"), and Redis' normal shutdown.
    for number in (signal.SIGINT, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)
            # A process stopped by SIGSTOP or a debugger receives the signal only now.
            os.kill(process.pid, signal.SIGCONT)
        deadline = originals.monotonic() + _STOP_TIMEOUT
        while originals.monotonic() < deadline:
            if process.is_gone():
                return
            with suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)
            originals.sleep(POLL_INTERVAL / 5)
    cause = f"process {process.pid} did not end within {_STOP_TIMEOUT:g} seconds of SIGKILL"
    raise RuntimeUnavailable.by_system(cause=cause, number=0)


def _is_port_taken(failure: ServerFailed) -> bool:
    """Return whether another process answers on the port, or the server's log says it is in use."""
    return isinstance(failure.__cause__, NotOurs) or os.strerror(errno.EADDRINUSE) in str(failure)


def _free_port() -> int:
    with originals.Socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _without(password: str, text: str) -> str:
    return text.replace(password, "***") if password else text


def _short(program: str) -> str:
    """Return the end of a program's path."""
    return "/".join(Path(program).parts[-3:])


def no_space(error: BaseException, title: str, name: str) -> ServerFailed | None:
    """Return the error to report if *error* means that the server *name* has no space left."""
    place = places.look((folders.root() / name).resolve().parent.parent)
    lines = _cause(error).splitlines()
    full = [line.strip() for line in lines if any(words in line for words in _FULL)]
    if not full and isinstance(error, ConnectionLost) and place.free < _WAL_SEGMENT:
        full = [error.why]
    return ServerFailed.no_space(title=title, place=str(place), cause=full[0]) if full else None


def _place(spec: ServerSpec[Any]) -> Path:
    return places.choose(spec.native("").need(), spec.title, spec.folder)


def _place_reason(spec: ServerSpec[Any], folder: Path) -> str:
    """Return why the server's files are in an unusual place, or ""."""
    if spec.folder or not folder.is_symlink():
        return ""
    home = folder.resolve().parent.parent
    return f"its files are in {home}: {places.passed_by(spec.native('').need())}"
