"""Servers as native processes: the same life as a container's, with a folder that bears the labels.

A server's folder lies in memory where there is a `/dev/shm`, and holds its data, its log and its
record: the labels, the process, the port and the password, readable by its owner only. Whoever
starts, judges or removes a server holds the lock on its folder. Where another place has to serve,
a link leads there, so that all processes find it under the one name.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any, Final, ParamSpec, Self, TypeVar

from pytest_warmstack import originals
from pytest_warmstack.servers import places
from pytest_warmstack.servers.errors import ConnectionLost, RuntimeUnavailable, ServerFailed
from pytest_warmstack.servers.identity import Label, random_password
from pytest_warmstack.servers.model import (
    ANSWER_TIMEOUT,
    POLL_INTERVAL,
    C,
    Command,
    Endpoint,
    NotOurs,
    NotReady,
    RunContext,
    Server,
    ServerInfo,
    ServerSpec,
    remove_outdated,
    see_that_it_is_the_server,
    wait_ready,
)
from pytest_warmstack.servers.processes import Process
from pytest_warmstack.settings import RuntimeName

P = ParamSpec("P")
T = TypeVar("T")

_LOG_LINES: Final = 30
_HOST: Final = "127.0.0.1"
_PORTS: Final = 5
"""How many free ports are tried: between our look and the server's bind another may take one."""

_FULL: Final = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))

_WAL_SEGMENT: Final = 16 * 1024 * 1024
"""Bytes that PostgreSQL needs at a time; without them it ends, and tells its clients nothing."""

_STOP: Final = 10.0
"""Seconds that a server has to end before it is killed."""


@dataclass(frozen=True, kw_only=True)
class _Record:
    """What a server's folder says about it."""

    labels: dict[str, str]
    process: str
    port: int
    password: str
    since: float
    program: str
    note: str = ""

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Return the record in *folder*, or None when there is none that can be understood."""
        try:
            return cls(**json.loads((folder / "server.json").read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            see_that_it_is_the_server(error)
            return None

    def write(self, folder: Path) -> None:
        """Put the record into *folder*; it can be read by its owner only."""
        draft = folder / "server.json.new"
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(asdict(self), file)
        draft.replace(folder / "server.json")

    @property
    def runs(self) -> bool:
        """Whether the server's process still lives."""
        process = Process.parse(self.process)
        return process is not None and not process.is_gone()

    @property
    def endpoint(self) -> Endpoint:
        """Where the server answers."""
        return Endpoint(host=_HOST, port=self.port, password=self.password)


class _Daemon(subprocess.Popen[bytes]):
    """A process that is meant to outlive this object, and perhaps this interpreter."""

    def __del__(self) -> None:
        """Say nothing: the usual warning about a process that still runs is not for a server."""


def _explained(method: Callable[P, T]) -> Callable[P, T]:
    """Have *method*, one of `Embedded`, raise errors of this package only."""

    @wraps(method)
    def explained(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except OSError as error:
            cause = _cause(error)
            number = error.errno or next((n for n in errno.errorcode if f"[Errno {n}]" in cause), 0)
            raise RuntimeUnavailable.by_system(cause=cause, number=number) from error
        except subprocess.TimeoutExpired as error:
            cause = f"{error.cmd[0]} did not end within {error.timeout:g} seconds"
            raise RuntimeUnavailable.by_system(cause=cause, number=0) from error

    return explained


def _cause(error: BaseException) -> str:
    """Return the words of *error*, which mostly is one of the operating system's."""
    # Of several files that could not be copied, the first one tells.
    return str(error.args[0][0][2] if isinstance(error, shutil.Error) else error)


class Embedded:
    """The runtime `embedded`."""

    name = RuntimeName.EMBEDDED

    def __init__(self, run_context: RunContext) -> None:
        self._run_context = run_context

    @_explained
    def check(self, specs: Sequence[ServerSpec[Any]], say: Callable[[str], None]) -> None:
        """Raise `RuntimeUnavailable` unless here are the programs and the room for all *specs*."""
        for spec in specs:
            native = spec.native(spec.fingerprint(self.name))
            native.check()
            # One that is there needs no place any more.
            if not os.path.lexists(_root() / self._run_context.name(spec, self.name)):
                places.choose(native.need(), spec.title, spec.folder)

    @_explained
    def ensure(self, spec: ServerSpec[C]) -> Server[C]:
        """Return the server of *spec* in the run's one folder for it."""
        run_context = self._run_context
        name = run_context.name(spec, self.name)
        fingerprint = spec.fingerprint(self.name)
        outdated, trouble = remove_outdated(self, run_context, spec)

        def place() -> Path:
            return places.choose(spec.native(fingerprint).need(), spec.title, spec.folder)

        with _locked(_root() / name, spec.title, run_context.start_timeout, place) as folder:
            record = _Record.read(folder)
            client = None
            origin, reason = ("replaced", outdated) if outdated else ("started", "")
            if record is not None and record.runs:
                try:
                    client = spec.connect(record.endpoint, fingerprint, ANSWER_TIMEOUT)
                    spec.check_version(client, self.name)
                    origin, reason = "reused" if run_context.keep else "shared", ""
                # Not when it is full: others use it. Nor when this process lacks something.
                except (NotReady, NotOurs, ServerFailed) as failure:
                    origin, reason = "replaced", f"the old one was broken: {failure}"
                    _stop(record)
            elif record is not None:
                origin, reason = "started again", "its process had ended"
            home = folder.resolve().parent.parent
            elsewhere = folder.is_symlink() and not spec.folder
            why = places.passed_by(spec.native(fingerprint).need()) if elsewhere else ""
            where = f"its files are in {home}: {why}" if elsewhere else ""
            if record is None or client is None:
                _empty(folder)
                record, client = self._start(spec, folder)
        return Server(
            service=spec.service,
            title=spec.title,
            runtime=self.name,
            id=record.process,
            fingerprint=fingerprint,
            endpoint=record.endpoint,
            client=client,
            what=f"process {record.process.split('/')[1]} of {_short(record.program)}",
            origin=origin,
            reason="; ".join(filter(None, (reason, trouble, record.note, where))),
            since=record.since,
        )

    @_explained
    def list(self) -> list[ServerInfo]:
        """Return every embedded server of this user on this machine."""
        found = []
        for folder in _folders():
            record = _Record.read(folder)
            if record is not None:
                found.append(
                    ServerInfo(
                        runtime=self.name,
                        id=record.process,
                        name=folder.name,
                        running=record.runs,
                        labels=record.labels,
                        what=_short(record.program) if record.program else "not started yet",
                        state="running" if record.runs else "ended",
                        since=record.since,
                    )
                )
        return found

    @_explained
    def remove(self, found: ServerInfo) -> None:
        """Stop the server's process and remove its folder."""
        with _locked(_root() / found.name, found.name, _STOP) as folder:
            record = _Record.read(folder)
            if record is not None and found.kind == "folder":
                return  # A server has been started in it since it was looked at.
            if record is not None and record.runs:
                _stop(record)
            _remove(folder)
        # The root goes with its last server; it is in use by another one otherwise.
        with suppress(OSError):
            _root().rmdir()

    def close(self) -> None:
        """Do nothing: there is no engine to let go of."""

    @_explained
    def connect(self, spec: ServerSpec[C], found: ServerInfo) -> C:
        """Return a client that looks at the server that was found."""
        record = _Record.read(_root() / found.name)
        if record is None:
            raise NotReady(f"the folder {found.name} is gone")
        endpoint = replace(record.endpoint, looks=True)
        return spec.connect(endpoint, found.labels.get(Label.FINGERPRINT, "none"), ANSWER_TIMEOUT)

    @_explained
    def memory(self, found: ServerInfo) -> int:
        """Return how many bytes a server takes: its folder, and what its processes have alone."""
        process = Process.parse(found.id)
        own = process.family_memory() if process is not None else 0
        return _taken(_root() / found.name) + own

    def log(self, found: ServerInfo, lines: int, *, follow: bool = False) -> Iterator[str]:
        """Yield the last *lines* that a server wrote, and with *follow* what comes then."""
        folder = _root() / found.name
        record = _Record.read(folder)
        password = record.password if record is not None else ""
        try:
            with (folder / "log").open(encoding="utf-8", errors="replace") as log:
                last = log.readlines()[-lines:] if lines else []
                yield from (_without(password, line.rstrip("\n")) for line in last)
                while follow and record is not None and record.runs:
                    while line := log.readline():
                        yield _without(password, line.rstrip("\n"))
                    originals.sleep(POLL_INTERVAL)
        except OSError as error:
            yield str(error)

    def client(
        self, _spec: ServerSpec[Any], found: ServerInfo, program: str
    ) -> tuple[Sequence[str], Endpoint] | None:
        """Return how to call a client that lies beside the server's own program."""
        record = _Record.read(_root() / found.name)
        path = Path(record.program).with_name(program) if record is not None else None
        if record is None or path is None or not os.access(path, os.X_OK):
            return None
        return [str(path)], record.endpoint

    @_explained
    def leftovers(self) -> Sequence[ServerInfo]:
        """Return the folders that have no record: nobody knows any more what they were for."""
        return [
            ServerInfo(
                runtime=self.name,
                id=str(folder),
                name=folder.name,
                running=False,
                labels={},
                kind="folder",
            )
            for folder in _folders()
            if _Record.read(folder) is None
        ]

    def _start(self, spec: ServerSpec[C], folder: Path) -> tuple[_Record, C]:
        """Start the server in the empty *folder* and wait until it answers."""
        run_context = self._run_context
        fingerprint = spec.fingerprint(self.name)
        password = random_password()
        record = _Record(
            labels=run_context.labels(spec, self.name),
            process="",
            port=0,
            password=password,
            since=originals.now(),
            program="",
        )
        try:
            # Before anything is done: whoever finds the folder after a kill knows whose it was.
            record.write(folder)
            command_for = spec.native(fingerprint).prepare(folder.resolve(), password)
            attempts = _PORTS
            while True:
                attempts -= 1
                try:
                    return self._attempt(spec, folder, record, command_for)
                except ServerFailed as failure:
                    # Between our look and its bind, another process took the port.
                    if attempts == 0 or "in use" not in str(failure):
                        raise
        except BaseException as failure:
            full = no_space(failure, spec.title, folder)
            with suppress(OSError):  # What went wrong at first is what counts.
                _remove(folder)
                _root().rmdir()
            if full is not None:
                raise full from failure
            raise

    def _attempt(
        self,
        spec: ServerSpec[C],
        folder: Path,
        record: _Record,
        command_for: Callable[[int], Command],
    ) -> tuple[_Record, C]:
        """Start the server on a port that is free now, and wait until it answers."""
        port = _free_port()
        command = command_for(port)
        daemon = _launch(command, folder)
        process = str(Process.of(daemon.pid))
        record = replace(
            record, process=process, port=port, program=command.arguments[0], note=command.note
        )
        # Before it is ready, so that whoever finds the folder after a kill can stop it.
        record.write(folder)
        try:
            client = wait_ready(
                spec,
                record.endpoint,
                spec.fingerprint(self.name),
                runtime=self.name,
                seconds=self._run_context.start_timeout,
                death=lambda: _death(daemon),
                log=lambda: _log(folder, record.password),
            )
        except NotOurs as failure:
            _stop(record)
            how = f"its port is in use by something else: {failure}"
            raise ServerFailed.died(title=spec.title, how=how, log="") from failure
        except BaseException:
            _stop(record)
            raise
        return record, client


def _launch(command: Command, folder: Path) -> _Daemon:
    """Start *command* in a session of its own, so that the terminal's Ctrl-C passes it by."""
    privileges: dict[str, Any] = {}
    if command.user is not None:
        user = pwd.getpwnam(command.user)
        privileges = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    with (folder / "log").open("ab") as log:
        return _Daemon(
            list(command.arguments),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            # Nothing of ours: PostgreSQL's and Redis' programs read settings from there too.
            env={"PATH": os.defpath, "TZ": "UTC", **command.environment},
            start_new_session=True,
            **privileges,
        )


def _death(daemon: _Daemon) -> str | None:
    """Return how the process ended, or None while it runs."""
    status = daemon.poll()
    if status is None:
        return None
    return f"its process ended with exit status {status}"


def _stop(record: _Record) -> None:
    """End the server's process: at once, since its data is thrown away."""
    process = Process.parse(record.process)
    if process is None or process.is_gone():
        return
    # SIGINT is PostgreSQL's fast shutdown, which waits for no client (documentation, "Shutting
    # Down the Server"), and Redis' ordinary one.
    for number in (signal.SIGINT, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)
            # One that was stopped (SIGSTOP, a debugger) hears it only now.
            os.kill(process.pid, signal.SIGCONT)
        deadline = originals.monotonic() + _STOP
        while originals.monotonic() < deadline:
            if process.is_gone():
                return
            with suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)
            originals.sleep(POLL_INTERVAL / 5)
    cause = f"process {process.pid} did not end within {_STOP:g} seconds of SIGKILL"
    raise RuntimeUnavailable.by_system(cause=cause, number=0)


def _log(folder: Path, password: str) -> str:
    """Return the last lines of the server's log, without its password."""
    try:
        text = (folder / "log").read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return str(error)
    return _without(password, "\n".join(text.splitlines()[-_LOG_LINES:]))


def _without(password: str, text: str) -> str:
    return text.replace(password, "***") if password else text


def _short(program: str) -> str:
    """Return the end of a path, enough to know the program by."""
    return "/".join(Path(program).parts[-3:])


def _free_port() -> int:
    """Return a port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def place_of(process: str) -> Path | None:
    """Return the folder of the server whose first process is *process*."""
    for folder in _folders():
        record = _Record.read(folder)
        if record is not None and record.process == process:
            return folder
    return None


def no_space(error: BaseException, title: str, folder: Path) -> ServerFailed | None:
    """Return what to tell of *error*, if the files of the server in *folder* found no room."""
    place = places.look(folder.resolve().parent.parent)
    told = _cause(error).splitlines()
    full = [line.strip() for line in told if any(words in line for words in _FULL)]
    if not full and isinstance(error, ConnectionLost) and place.free < _WAL_SEGMENT:
        full = [error.why]
    return ServerFailed.no_space(title=title, place=str(place), cause=full[0]) if full else None


def _root() -> Path:
    """Return the folder in which every embedded server of this user is found; it may not exist."""
    return places.within(places.usual())


def _folders() -> list[Path]:
    """Return the folders of this user's embedded servers."""
    try:
        return sorted(path for path in _root().iterdir() if path.is_dir() or path.is_symlink())
    except FileNotFoundError:
        return []


def _made(root: Path) -> None:
    """Make the *root* if need be; raise `RuntimeUnavailable` when it belongs to another user.

    It lies where everybody may write, under a name that everybody can guess.
    """
    # Others may pass through, to a folder whose name they know: PostgreSQL does, as nobody.
    root.mkdir(mode=0o711, exist_ok=True)
    found = root.lstat()
    if (
        found.st_uid != os.getuid()
        or found.st_mode & 0o022
        or not root.is_dir()
        or root.is_symlink()
    ):
        raise RuntimeUnavailable.unsafe_folder(
            folder=str(root),
            cause=f"it belongs to user {found.st_uid}, with mode {found.st_mode & 0o7777:o}",
        )


def _make(folder: Path, place: Callable[[], Path]) -> None:
    """Make *folder* where there is none: itself, or a link to one in another *place*."""
    if not os.path.lexists(folder):
        elsewhere = places.within(place())
        _made(folder.parent)
        if elsewhere == folder.parent:
            folder.mkdir(mode=0o711)
        else:
            # Before what it leads to: of several processes one makes it, and all follow it.
            folder.symlink_to(elsewhere / folder.name)
    if folder.is_symlink():
        elsewhere = folder.readlink()
        _made(elsewhere.parent)
        elsewhere.mkdir(mode=0o711, exist_ok=True)


@contextmanager
def _locked(
    folder: Path, title: str, seconds: float, place: Callable[[], Path] = places.usual
) -> Iterator[Path]:
    """Hold the lock on *folder*, making it in *place* if need be; it ends with the process.

    Raises `ServerFailed` when another process holds it for longer than *seconds*.
    """
    deadline = originals.monotonic() + seconds
    while True:
        with suppress(FileExistsError, FileNotFoundError):
            _make(folder, place)
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            # Another process removed it, as the last one.
            if originals.monotonic() > deadline:
                raise
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The one who held it before may have removed the folder, and another made it anew.
            if folder.is_dir() and os.path.samestat(os.fstat(handle), folder.stat()):
                break
        except BlockingIOError:
            if originals.monotonic() > deadline:
                os.close(handle)
                raise ServerFailed.locked(title=title, seconds=seconds, place=str(folder)) from None
            originals.sleep(POLL_INTERVAL)
        os.close(handle)
    try:
        yield folder
    finally:
        os.close(handle)


def _remove(folder: Path) -> None:
    """Remove *folder* with all that is in it, also while others do, such as children of a server.

    Raises OSError when that does not succeed within `_STOP` seconds.
    """
    deadline = originals.monotonic() + _STOP
    home = folder.resolve()
    while True:
        try:
            _empty(home)
            # Before the folder that it leads to: what remains after a kill is empty.
            if folder.is_symlink():
                folder.unlink()
            home.rmdir()
        except OSError as error:
            if not home.exists():
                break
            passing = error.errno in {errno.ENOENT, errno.ENOTEMPTY}
            if not passing or originals.monotonic() > deadline:
                raise
        else:
            break
    if home.parent != folder.parent:
        with suppress(OSError):  # Other servers are there.
            home.parent.rmdir()


def _empty(folder: Path) -> None:
    """Remove all that is in *folder*."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _taken(folder: Path) -> int:
    """Return how many bytes the files below *folder* take; a server at work removes some."""
    taken = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                # st_blocks counts in 512 bytes, whatever the file system's own (stat(2)).
                taken += Path(path, name).lstat().st_blocks * 512
    return taken
