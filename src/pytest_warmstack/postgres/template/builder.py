"""The child process in which the project's own code builds, and the conversation with it.

A process of its own: the project's code may configure logging, run an event loop, cache settings
and import the application, and none of that may leak into the tests.
"""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from pytest_warmstack import masking, originals
from pytest_warmstack.postgres.template.dependencies import SITE
from pytest_warmstack.postgres.template.errors import TemplateFailed
from pytest_warmstack.postgres.template.templates import Target
from pytest_warmstack.servers.model import USER, Endpoint

DATABASE_URL: Final = {"DATABASE_URL": "{db_url}"}
"""What most applications read."""

_CHILD: Final = "pytest_warmstack.postgres.template.child"
_ALEMBIC: Final = "alembic.command"
_ASYNC: Final = ("sqlalchemy.ext.asyncio", "asyncpg")
_OUTPUT_LINES: Final = 30
"""How many of the last lines that the child wrote an error shows."""

_STACK: Final = 1.0
"""Seconds that a child which is late may take to tell where it is."""

_LEAVE: Final = 5.0
"""Seconds that a child may take to end when nothing is asked of it any more."""

_NO_ENGINE: Final = re.compile(
    r"NoSuchModuleError|ArgumentError|KeyError: 'url'"
    r"|ModuleNotFoundError: No module named '(MySQLdb|pymysql|aiomysql|asyncmy|pyodbc|oracledb"
    r"|cx_Oracle|aiosqlite|psycopg2?|asyncpg)'"
)
"""How an error begins of SQLAlchemy, which can't make an engine of a URL."""

_FRAME: Final = re.compile(r'\s*File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<name>.*)')
"""A line of a traceback that Python's faulthandler wrote."""


@dataclass(kw_only=True)
class Builder:
    """The child of one build. It is started when it is first needed.

    *root* is the project's folder, *folder* the current one of the child, if that is another. *env*
    are lines like `DATABASE_URL={db_url}`, *ignore* patterns of files that are no dependencies,
    *file* is pytest's configuration file, for advice, *alembic* what is known of the project's
    configuration; *timeout*, in seconds, is for each thing that is asked of it.
    """

    root: Path
    folder: Path | None = None
    env: Sequence[str] = field(default=(), repr=False)
    ignore: Sequence[str] = ()
    file: str = ""
    alembic: Mapping[str, Any] | None = None
    timeout: float
    _child: subprocess.Popen[str] | None = field(default=None, init=False)
    _begun: bool = field(default=False, init=False)
    _at: str = field(default="", init=False)
    _answers: queue.SimpleQueue[str | None] = field(init=False, repr=False)
    _output: deque[str] = field(init=False, repr=False)
    _readers: list[threading.Thread] = field(default_factory=list, init=False)
    _caught_up: threading.Event = field(default_factory=threading.Event, init=False)

    def prepare(self) -> None:
        """Start the process ahead of time: it imports all that it may need, and then waits."""
        self._start(*([_ALEMBIC] if self.alembic else []), *_ASYNC)

    def _start(self, *modules: str) -> None:
        """Start the process, if it was not yet; it imports *modules* and waits to be asked."""
        if self._child is not None:
            return
        # -P: like the command `alembic`, and unlike `python -m` otherwise, the child does not put
        # the current folder first on its path.
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", _CHILD, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.folder or self.root,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        self._begun, self._at = False, ""
        self._answers = queue.SimpleQueue()
        self._output = deque(maxlen=10_000)
        self._readers = [
            originals.Thread(target=target, args=args, name="warmstack-builder", daemon=True)
            for target, args in (
                (_read_answers, (self._child.stdout, self._answers)),
                (_read_output, (self._child.stderr, self._output, self._caught_up)),
            )
        ]
        for reader in self._readers:
            reader.start()

    def ask(
        self, target: Target, do: str, *, who: str = "The migrations", **request: Any
    ) -> dict[str, Any]:
        """Have the child do what *do* names, and return what it reports; *who* is for errors.

        The report has `output`, the last lines that the project's code wrote, and `hints`, if lines
        of warmstack_env would lead it to its database. Raises `TemplateFailed` when it tried to
        connect elsewhere, or did not end in time.
        """
        self._start(*([_ALEMBIC] if do in {"plan", "upgrade"} else []))
        if not self._begun:
            # The password goes over standard input: arguments can be read by everybody.
            self._tell(
                root=str(self.root),
                path=_search_path(str(self.root), (self.alembic or {}).get("home")),
                env=list(self.env),
                ignore=list(self.ignore),
                alembic=self.alembic,
                url={
                    "username": target.endpoint.user or USER,
                    "password": target.endpoint.password,
                    "host": target.endpoint.host,
                    "port": target.endpoint.port,
                    "database": target.database,
                    "query": _tls(target.endpoint),
                },
            )
            self._begun = True
        self._at = ""
        self._caught_up.clear()
        self._tell(do=do, **request)
        report: dict[str, Any] = self._answer(target, who)
        self._caught_up.wait(_STACK)
        report["output"] = "\n".join(self._lines()[-_OUTPUT_LINES:])
        report = masking.all_masked(report, self._secrets(target), urls=True)
        if variables := report.get("variables"):
            report["hints"] = self.hints(variables)
        refused = report.get("refused")
        unusable = report.get("where", "").startswith("in env.py") and _NO_ENGINE.match(
            report.get("error", "")
        )
        if report.get("databases") and (refused or unusable):
            raise TemplateFailed.several_databases(
                names=report["databases"],
                how=f"tried to connect to {refused}, and was stopped before that"
                if refused
                else f"can't use the URL that one of them has: {report['error']}",
                config=os.path.relpath((self.alembic or {})["ini"], self.root),
                output=report["output"],
            )
        if refused:
            raise TemplateFailed.foreign_database(
                who=who,
                tried=refused,
                allowed=f"{target.endpoint.host}:{target.endpoint.port}/{target.database}",
                place=report.get("where") or self._at,
                output=report["output"],
                hints=report.get("hints", ()),
                usual=self.hints(DATABASE_URL)[0],
            )
        return report

    def hints(self, variables: Mapping[str, str]) -> list[str]:
        """Return the advice to set *variables*, as lines for the configuration file in use."""
        from pytest_warmstack.placeholders import lines_for

        return [lines_for(variables, file=self.file, more=bool(self.env))]

    def discard(self) -> None:
        """End the process; whoever waits for its answer gets none."""
        if (child := self._child) is not None:
            child.kill()
            self._child = None
            child.wait(_LEAVE)
            _close(child.stdin)
            for reader, pipe in zip(self._readers, (child.stdout, child.stderr), strict=True):
                reader.join(_LEAVE)
                # A process that the project's code started may hold it open for longer.
                if not reader.is_alive():
                    _close(pipe)

    def _tell(self, **message: Any) -> None:
        try:
            if self._child is not None and self._child.stdin is not None:
                self._child.stdin.write(json.dumps(message) + "\n")
                self._child.stdin.flush()
        except (OSError, ValueError):
            return  # It has ended; its answer, which is none, tells so.

    def _answer(self, target: Target, who: str) -> dict[str, Any]:
        """Return the child's report; meanwhile it may tell where it is."""
        child = self._child
        deadline = originals.monotonic() + self.timeout
        while True:
            try:
                line = self._answers.get(timeout=max(deadline - originals.monotonic(), 0))
            except queue.Empty:
                raise self._too_slow(target, who) from None
            if line is None:
                how = "" if child is None else _ended(child.wait(_LEAVE))
                self._readers[1].join(_LEAVE)
                return {"error": f"the process ended{how} before its end", "where": self._at}
            message: dict[str, Any] = json.loads(line)
            if "at" not in message:
                return message
            self._at = message["at"]

    def _too_slow(self, target: Target, who: str) -> TemplateFailed:
        """Return the error that tells what the child, whose time is over, was doing."""
        before = len(self._output)
        doing = [f"PostgreSQL: {each}" for each in target.activity()]
        if (child := self._child) is not None:
            child.send_signal(signal.SIGUSR1)
            until, seen = originals.monotonic() + _STACK, -1
            # Until something came and nothing more does: it is written line by line.
            while originals.monotonic() < until and not before < len(self._output) == seen:
                seen = len(self._output)
                originals.sleep(0.02)
            child.kill()
            child.wait(_LEAVE)
            self._readers[1].join(_LEAVE)
        written = list(self._output)
        frames = [
            f"Python: {match['file']}, line {match['line']}, in {match['name']}"
            for line in written[before:]
            if (match := _FRAME.match(line)) and self._is_own(match["file"])
        ]
        output = "".join(written[:before][-_OUTPUT_LINES:]).strip()
        self.discard()
        told = {"doing": [*doing, *frames[:3]], "output": output}
        told = masking.all_masked(told, self._secrets(target), urls=True)
        return TemplateFailed.too_slow(who=who, seconds=self.timeout, place=self._at, **told)

    def _secrets(self, target: Target) -> list[str]:
        """Return what nothing that the child wrote may show."""
        return [target.endpoint.password, *masking.secrets_of(self.env)]

    def _is_own(self, file: str) -> bool:
        """Tell whether a file is the project's, as far as its path tells."""
        own = Path(file).is_relative_to(self.root)
        return own and "site-packages" not in Path(file).parts

    def _lines(self) -> list[str]:
        return "".join(self._output).strip().splitlines()


def _search_path(root: str, home: str | None) -> list[str]:
    """Return where the tests find modules now, in that order.

    Before installed packages come *root* and *home*, the folder of Alembic's configuration. pytest
    has put there what `pythonpath` and the import mode ask for, and `python -m pytest` the current
    folder; in a run that collects nothing, as `warmstack up`, there is less.
    """
    path = [os.path.abspath(entry) for entry in sys.path]  # noqa: PTH100 - of names, and '' too
    packages = next((place for place, each in enumerate(path) if each in SITE), len(path))
    own = [each for each in (home, root) if each and each not in path[:packages]]
    return list(dict.fromkeys([*path[:packages], *own, *path[packages:]]))


def _tls(endpoint: Endpoint) -> dict[str, str]:
    """Return what a URL says about TLS; nothing if every driver does that anyway."""
    name, _, mode = endpoint.query.partition("=")
    return {name: mode} if mode not in {"", "prefer"} else {}


def _read_answers(pipe: IO[str], answers: queue.SimpleQueue[str | None]) -> None:
    for line in pipe:
        answers.put(line)
    answers.put(None)


def _read_output(pipe: IO[str], output: deque[str], caught_up: threading.Event) -> None:
    for line in pipe:
        if line.endswith("\0\n"):
            output.append(line[:-2])
            caught_up.set()
        else:
            output.append(line)
    caught_up.set()


def _ended(status: int) -> str:
    """Return the words for an exit status, which is negative for a signal."""
    if status >= 0:
        return f" with exit status {status}"
    return f" by {signal.Signals(-status).name}"


def _close(pipe: IO[str] | None) -> None:
    try:
        if pipe is not None:
            pipe.close()
    except OSError:
        pass
