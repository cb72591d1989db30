"""The child process that runs the project's own code, and the protocol between the processes.

That code runs in a separate process because it may configure logging, run an event loop, cache
settings and import the application, and none of that may leak into the tests.
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
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final

from pytest_warmstack import masking, originals
from pytest_warmstack.options import Settings, is_attribute
from pytest_warmstack.postgres.template.configurations import Configuration
from pytest_warmstack.postgres.template.dependencies import site
from pytest_warmstack.postgres.template.errors import Failure, TemplateFailed
from pytest_warmstack.postgres.template.layers import BuildContext, Target
from pytest_warmstack.servers.model import USER, Endpoint

DATABASE_URL: Final = {"DATABASE_URL": "{db_url}"}
"""The variable that most applications read."""

_CHILD: Final = "pytest_warmstack.postgres.template.child"
_ALEMBIC: Final = "alembic.command"
_ASYNC: Final = ("sqlalchemy.ext.asyncio", "sqlalchemy.dialects.postgresql.asyncpg", "asyncpg")
_REVISIONS: Final = f"{_CHILD}.revisions"

_OUTPUT_LINES: Final = 30
"""How many of the last lines of the child's output an error shows."""

_STACK_TIMEOUT: Final = 1.0
"""Seconds that a late child may take to print its stack."""

_EXIT_TIMEOUT: Final = 5.0
"""Seconds that a killed child may take to end."""

_NO_ENGINE: Final = re.compile(
    r"NoSuchModuleError|ArgumentError|KeyError: 'url'"
    r"|ModuleNotFoundError: No module named '(MySQLdb|pymysql|aiomysql|asyncmy|pyodbc|oracledb"
    r"|cx_Oracle|aiosqlite|psycopg2?|asyncpg)'"
)
"""Matches the beginning of an error if SQLAlchemy can't make an engine from a URL."""

_NO_URL: Final = ("KeyError", "ArgumentError", "ValidationError", "NoSuchModuleError")
"""Matches the beginning of an error if code expects a URL in the environment and finds none."""

_FRAME: Final = re.compile(r'\s*File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<name>.*)')
"""Matches a line of a traceback that Python's faulthandler writes."""

_DUMP: Final = re.compile(r"^-- Dumped by pg_dump version (\d[\w.]*)", re.MULTILINE)
"""Matches a line at the beginning of a file that pg_dump writes."""


_AT_START: Final = ("PYTHON", "LD_", "DYLD_")
"""Beginnings of the variables that matter when Python starts; the child gets the others later."""


class Builder:
    """The child process of one build. It starts when it is first needed.

    `is_ahead` is true if it has begun to plan the migrations before a build needs the plan.
    """

    def __init__(self, context: BuildContext) -> None:
        self._root = str(context.root)
        self._settings = context.settings
        self.configuration = context.configuration
        self._folder = context.configuration.folder if context.configuration else context.root
        self._process: subprocess.Popen[str] | None = None
        self._environ: Mapping[str, str] = {}
        self._introduction: dict[str, Any] | None = None
        self.is_ahead = False
        self._position = ""
        self._readers: list[threading.Thread] = []
        self._has_all_output = threading.Event()

    def prepare(self) -> None:
        """Start the process early: it imports the modules that it may need, and then waits."""
        self._start(*([_ALEMBIC, _REVISIONS] if self.configuration else []), *_ASYNC)

    def plan_ahead(self, endpoint: Endpoint, database: str, path: Sequence[str]) -> None:
        """Start the process early; it also plans the migrations, before `ask` asks for the plan.

        *path* is what `sys.path` is expected to be by then. If that or the environment turns out to
        differ, `ask` starts another process.
        """
        self.prepare()
        self._introduce(self._facts(endpoint, database, path))
        self._send(do="plan")
        self.is_ahead = True

    def ask(
        self, target: Target, do: str, *, who: str = "The migrations", **request: Any
    ) -> dict[str, Any]:
        """Make the child do the task *do*, and return its report; *who* is for errors.

        The report contains `output`, the last lines that the project's code wrote. It contains
        `hints` if lines in `warmstack_env` would lead the code to its database. Raises
        `TemplateFailed` if the code tried to connect to another database, or did not finish within
        `migrate_timeout` seconds.
        """
        is_ahead, self.is_ahead = self.is_ahead, False
        facts = None
        if is_ahead or self._introduction is None:
            facts = self._facts(target.endpoint, target.database, sys.path)
        if facts is not None and self._is_outdated(facts, do if is_ahead else ""):
            is_ahead = False
            self.discard()
        self._start(*([_ALEMBIC] if do in {"plan", "upgrade"} else []))
        if facts is not None and not is_ahead:
            self._introduce(facts)
        if not is_ahead:
            self._position = ""
            self._has_all_output.clear()
            self._send(do=do, **request)
        report = self._receive(target, who)
        self._has_all_output.wait(_STACK_TIMEOUT)
        report["output"] = "\n".join("".join(self._output).strip().splitlines()[-_OUTPUT_LINES:])
        report = self._mask(report, target)
        if variables := report.get("variables"):
            report["hints"] = self._hints(variables)
        self._check_database(report, target, who)
        failure = Failure.of(report)
        if failure.is_in_env_py and not failure.hints and failure.cause.startswith(_NO_URL):
            report["hints"] = self._hints(DATABASE_URL)
        return report

    def discard(self) -> None:
        """Kill the process. A thread that waits for its answer gets an error instead."""
        if (process := self._process) is not None:
            self._process, self._introduction, self.is_ahead = None, None, False
            process.kill()
            process.wait(_EXIT_TIMEOUT)
            pipes = [process.stdin]
            for reader, pipe in zip(self._readers, (process.stdout, process.stderr), strict=True):
                reader.join(_EXIT_TIMEOUT)
                # A process that the project's code started may keep the pipe open.
                if not reader.is_alive():
                    pipes.append(pipe)
            for pipe in filter(None, pipes):
                with suppress(OSError):
                    pipe.close()

    def _start(self, *modules: str) -> None:
        """Start the process if there is none; it imports *modules* and waits for requests."""
        if self._process is not None:
            return
        # -P: the child does not put the current folder on its path; neither does `alembic`.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", _CHILD, *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self._folder,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        self._environ = dict(os.environ)
        self._introduction, self._position = None, ""
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._output: deque[str] = deque(maxlen=10_000)
        self._readers = [
            originals.Thread(target=target, args=args, name="warmstack-builder", daemon=True)
            for target, args in (
                (_read_answers, (self._process.stdout, self._answers)),
                (_read_output, (self._process.stderr, self._output, self._has_all_output)),
            )
        ]
        for reader in self._readers:
            reader.start()

    def _facts(self, endpoint: Endpoint, database: str, path: Sequence[str]) -> dict[str, Any]:
        """Return what the child must know about the project, its database and this process now."""
        found = self.configuration
        alembic = describe(found, self._settings) if found else None
        return {
            "root": self._root,
            "path": search_path(self._root, alembic["home"] if alembic else None, path),
            "environ": dict(os.environ),
            "env": [*self._settings.env],
            "before": dict(originals.variables),
            "ignore": [*self._settings.depends_ignore],
            "alembic": alembic,
            "url": url_parts(endpoint, database),
        }

    def _introduce(self, facts: dict[str, Any]) -> None:
        """Send the child *facts*.

        They contain the password, so they go to standard input: any user can read arguments.
        """
        self._introduction = facts
        self._send(**facts)

    def _is_outdated(self, facts: Mapping[str, Any], ahead: str) -> bool:
        """Return whether a process that was started early can't do what it has to do now.

        If it has planned *ahead*, the plan must be what is asked for, and *facts* what it knows.
        """
        if self._process is None:
            return False
        if self._introduction is not None:
            return ahead != "plan" or facts != self._introduction
        return _at_start(facts["environ"]) != _at_start(self._environ)

    def _send(self, **message: Any) -> None:
        # If the process has ended, `_receive` notices it.
        with suppress(OSError, ValueError):
            if self._process is not None and self._process.stdin is not None:
                self._process.stdin.write(json.dumps(message) + "\n")
                self._process.stdin.flush()

    def _receive(self, target: Target, who: str) -> dict[str, Any]:
        """Return the child's report; until it comes, record the position that the child sends."""
        process = self._process
        deadline = originals.monotonic() + self._settings.migrate_timeout
        while True:
            try:
                line = self._answers.get(timeout=max(deadline - originals.monotonic(), 0))
            except queue.Empty:
                raise self._stop(target, who) from None
            if line is None:
                how = "" if process is None else _exit_words(process.wait(_EXIT_TIMEOUT))
                self._readers[1].join(_EXIT_TIMEOUT)
                return {"error": f"the process ended early{how}", "where": self._position}
            message: dict[str, Any] = json.loads(line)
            if "at" not in message:
                return message
            self._position = message["at"]
            if text := message.get("now"):
                target.say(text)

    def _stop(self, target: Target, who: str) -> TemplateFailed:
        """Kill a child that is late; return an error that shows what it was doing."""
        before = len(self._output)
        doing = [f"PostgreSQL: {each}" for each in target.activity()]
        if (process := self._process) is not None:
            process.send_signal(signal.SIGUSR1)
            until, seen = originals.monotonic() + _STACK_TIMEOUT, -1
            # The stack comes line by line: wait for the first lines, and until no more follow.
            while originals.monotonic() < until and not before < len(self._output) == seen:
                seen = len(self._output)
                originals.sleep(0.02)
            process.kill()
            process.wait(_EXIT_TIMEOUT)
            self._readers[1].join(_EXIT_TIMEOUT)
        written = list(self._output)
        self.discard()
        frames = [
            f"Python: {match['file']}, line {match['line']}, in {match['name']}"
            for match in map(_FRAME.match, written[before:])
            if match and self._is_own(Path(match["file"]))
        ]
        output = "".join(written[:before][-_OUTPUT_LINES:]).strip()
        facts = self._mask({"doing": [*doing, *frames[:3]], "output": output}, target)
        seconds = self._settings.migrate_timeout
        return TemplateFailed.too_slow(who=who, seconds=seconds, place=self._position, **facts)

    def _check_database(self, report: dict[str, Any], target: Target, who: str) -> None:
        """Raise `TemplateFailed` if the code tried to use another database than the template."""
        refused, failure = report.get("refused"), Failure.of(report)
        has_no_engine = failure.is_in_env_py and _NO_ENGINE.match(failure.cause)
        if report.get("databases") and (refused or has_no_engine):
            config = self.configuration
            raise TemplateFailed.several_databases(
                failure,
                names=report["databases"],
                tried=refused or "",
                config=os.path.relpath(config.ini, self._root) if config and config.ini else "",
            )
        if refused:
            endpoint = target.endpoint
            raise TemplateFailed.other_database(
                failure._replace(where=failure.where or self._position),
                who=who,
                tried=refused,
                allowed=f"{endpoint.host}:{endpoint.port}/{target.database}",
                usual=self._hints(DATABASE_URL)[0],
            )

    def _hints(self, variables: Mapping[str, str]) -> list[str]:
        """Return the advice to set *variables*, as lines for the project's configuration file."""
        from pytest_warmstack.placeholders import lines_for

        return [lines_for(variables, file=self._settings.file, more=bool(self._settings.env))]

    def _mask(self, value: dict[str, Any], target: Target) -> dict[str, Any]:
        """Return *value* with the secrets masked that the child may have written."""
        secrets = [target.endpoint.password, *masking.secrets_of(self._settings.env)]
        masked: dict[str, Any] = masking.all_masked(value, secrets, urls=True)
        return masked

    def _is_own(self, file: Path) -> bool:
        return file.is_relative_to(self._root) and "site-packages" not in file.parts


def describe(configuration: Configuration, settings: Settings) -> dict[str, Any]:
    """Return what the child needs to know about Alembic's configuration."""
    file = configuration.ini or configuration.toml
    return {
        "home": file and str(file.parent),
        "ini": configuration.ini and str(configuration.ini),
        "toml": configuration.toml and str(configuration.toml),
        "section": settings.alembic_section,
        "x": [*settings.alembic_x],
        "callable": configuration.function,
    }


def url_parts(endpoint: Endpoint, database: str) -> dict[str, Any]:
    """Return the parts of a database's URL."""
    return {
        "username": endpoint.user or USER,
        "password": endpoint.password,
        "host": endpoint.host,
        "port": endpoint.port,
        "database": database,
        "query": _tls(endpoint),
    }


def migration_error(
    report: dict[str, Any], function: str, config: str, source: str
) -> TemplateFailed:
    """Return the error for the *report* of a child that could not plan or run the migrations."""
    failure, kind = Failure.of(report), report.get("kind")
    if kind == "config" and function:
        return TemplateFailed.bad_function(failure, function=function, source=source)
    if kind == "config":
        return TemplateFailed.bad_alembic(failure, config=config)
    if kind == "revisions" and not failure.where and not failure.hints:
        return TemplateFailed.bad_revisions(failure, config=config, unseen=report.get("unseen", ()))
    return TemplateFailed.migration_failed(failure, config=config)


def script_error(
    report: dict[str, Any], layer: str, line: str, source: str, root: Path
) -> TemplateFailed:
    """Return the error for the *report* of a child that could not run a *line* of *layer*."""
    failure = Failure.of(report)
    if report.get("kind") == "signature":
        from pytest_warmstack.postgres.template.child.arguments import understood

        return TemplateFailed.bad_signature(
            failure, layer=layer, line=line, source=source, understood=understood()
        )
    dump = "" if is_attribute(line) else _pg_dump_version(root / line)
    return TemplateFailed.script_failed(failure, layer=layer, line=line, source=source, dump=dump)


def _pg_dump_version(path: Path) -> str:
    """Return the version of the pg_dump that wrote a file, or "" if pg_dump didn't."""
    with path.open(encoding="utf-8", errors="replace") as file:
        match = _DUMP.search(file.read(2000))
    return match[1] if match else ""


def _at_start(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name.startswith(_AT_START)}


def search_path(root: str, home: str | None, path: Sequence[str] = ()) -> list[str]:
    """Return the folders in which the tests, and the migrations, find modules, in order.

    *root*, and *home*, the folder of Alembic's configuration, come before installed packages.
    The default of *path* is the current `sys.path`:
    pytest has added the folders of `pythonpath` and of the import mode, and `python -m pytest` the
    current folder. A run that collects nothing, such as `warmstack up`, has fewer.
    """
    path = [os.path.abspath(entry) for entry in path or sys.path]  # noqa: PTH100 - '' too
    packages = next((place for place, each in enumerate(path) if each in site()), len(path))
    own = [each for each in (home, root) if each and each not in path[:packages]]
    return list(dict.fromkeys([*path[:packages], *own, *path[packages:]]))


def _tls(endpoint: Endpoint) -> dict[str, str]:
    """Return the TLS options of a URL; none if they are the default of every driver."""
    name, _, mode = endpoint.query.partition("=")
    return {name: mode} if mode not in {"", "prefer"} else {}


def _read_answers(pipe: IO[str], answers: queue.SimpleQueue[str | None]) -> None:
    for line in pipe:
        answers.put(line)
    answers.put(None)


def _read_output(pipe: IO[str], output: deque[str], has_all_output: threading.Event) -> None:
    for line in pipe:
        # The child marks the end of the output for each request.
        if line.endswith("\0\n"):
            output.append(line[:-2])
            has_all_output.set()
        else:
            output.append(line)
    has_all_output.set()


def _exit_words(status: int) -> str:
    """Return the text about an exit status, which is negative for a signal."""
    if status >= 0:
        return f" with exit status {status}"
    return f" by {signal.Signals(-status).name}"
