"""The child process that runs the migrations: `python -m pytest_warmstack.postgres.migrate`.

A process of its own, since env.py may configure logging, run an event loop, cache settings and
import the application, and none of that may leak into the tests. It does what
`alembic upgrade heads` does, may connect to the template only, and reports as JSON on standard
output; whatever the project's code prints goes to standard error.

Imported by nobody.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Engine, Pool, event, make_url
from sqlalchemy.exc import ArgumentError

_LINES = 20
"""How many lines of an exception's message are told."""


class Refused(Exception):
    """The project's code was about to connect to another database than the template."""


class Guard:
    """Refuses every connection but those to one database, before a byte is sent.

    It listens on SQLAlchemy's class `Engine`, so it holds for every engine with every driver. An
    engine that was given a function to connect with (`creator`) is asked where it has got to
    before anybody can use it; that is why the template's name is like no other.
    """

    def __init__(self, url: URL) -> None:
        self._allowed = _place(url.host, url.port, url.database)
        self.refused = ""

    def stand(self) -> None:
        """Begin to refuse."""
        event.listen(Engine, "do_connect", self._look)
        event.listen(Pool, "connect", self._ask)

    def _look(self, dialect: Any, _record: Any, _args: Any, parameters: dict[str, Any]) -> None:
        if "async_creator_fn" in parameters:
            return  # Where that leads, `_ask` sees.
        database = parameters.get("database") or parameters.get("dbname")
        tried = _place(parameters.get("host"), parameters.get("port"), database)
        if dialect.name != "postgresql" or tried != self._allowed:
            host, port, name = tried
            self.refused = f"{dialect.name}://{host}:{port}/{name}"
            raise Refused(f"{self.refused} is not the template")

    def _ask(self, connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        try:
            cursor.execute("SELECT current_database()")
            (database,) = cursor.fetchone()
        finally:
            cursor.close()
            connection.rollback()
        if database != self._allowed[2]:
            self.refused = f"the database {database}"
            raise Refused(f"{self.refused} is not the template")


def main() -> None:
    """Read the request from standard input, migrate, write the report to standard output."""
    request = json.load(sys.stdin)
    # From here on standard output is the report's alone; what the project prints goes elsewhere.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # What the tests can import, the migrations can: after all that the command `alembic` has.
    sys.path += [entry for entry in request["path"] if entry not in sys.path]
    with channel:
        json.dump(migrate(request), channel)


def migrate(request: dict[str, Any]) -> dict[str, Any]:
    """Return the report: what went wrong and where, or the heads and where they are recorded."""
    report: dict[str, Any] = {"error": "", "where": "", "refused": ""}
    config = Config(request["ini"], toml_file=request["toml"])
    try:
        url = _url(config, request["url"])
        _wire(config, url, request["env"])
        guard = Guard(url)
        guard.stand()
        contexts = _watch_contexts()
    except Exception as error:
        return report | {"error": _message(error)}
    told = _watch_warnings()
    try:
        # Alembic's own command, whole. `heads`: a project may have several.
        command.upgrade(config, "heads")
        script = ScriptDirectory.from_config(config)
        report |= {
            "heads": script.get_heads(),
            "revisions": len(list(script.walk_revisions())),
            "warnings": told,
            "tables": [[each.version_table_schema, each.version_table] for each in contexts],
        }
    except BaseException as error:
        _print_own_frames(error)
        words = [_message(error), *(f"Before that, a warning: {each}" for each in told)]
        report |= {"error": "\n".join(words), "where": _where(error, config)}
    # Also when env.py swallowed the refusal and went on.
    return report | {"refused": guard.refused}


def _url(config: Config, parts: dict[str, Any]) -> URL:
    """Return the template's URL with the driver that the project's own URL names.

    The stock templates have a placeholder there; then env.py tells whether it is asynchronous.
    """
    try:
        own = make_url(config.get_main_option("sqlalchemy.url") or "").drivername
    except (ArgumentError, ValueError):
        own = ""
    return URL.create(own if own.startswith("postgresql") else _driver(config), **parts)


def _driver(config: Config) -> str:
    """Return a driver that env.py can use: an asynchronous one if it makes such an engine."""
    location = config.get_alembic_option("script_location") or ""
    env = Path(location) / "env.py"
    if env.is_file() and "async_engine" in env.read_text(encoding="utf-8", errors="replace"):
        return "postgresql+asyncpg"
    for driver in ("psycopg", "psycopg2"):
        try:
            __import__(driver)
        except ImportError:
            continue
        return f"postgresql+{driver}"
    return "postgresql+asyncpg"


def _wire(config: Config, url: URL, env: list[str]) -> None:
    """Tell the project the URL, in the three ways it may ask for it."""
    text = url.render_as_string(hide_password=False)
    # ConfigParser takes % for the start of a substitution.
    config.set_main_option("sqlalchemy.url", text.replace("%", "%%"))
    config.attributes["url"] = text
    values = {
        "db_url": text,
        "db_host": url.host,
        "db_port": url.port,
        "db_user": url.username,
        "db_password": url.password,
        "db_name": url.database,
    }
    for line in env:
        name, _, value = line.partition("=")
        os.environ[name] = value.format_map(values)


def _watch_contexts() -> list[MigrationContext]:
    """Return a list that fills with the contexts that env.py configures.

    They know the name of the version table, which env.py may choose.
    """
    contexts: list[MigrationContext] = []
    original = MigrationContext.configure.__func__  # type: ignore[attr-defined]

    def configure(cls: type[MigrationContext], *args: Any, **kwargs: Any) -> MigrationContext:
        context: MigrationContext = original(cls, *args, **kwargs)
        contexts.append(context)
        return context

    MigrationContext.configure = classmethod(configure)  # type: ignore[method-assign,assignment]
    return contexts


def _watch_warnings() -> list[str]:
    """Return a list that fills with what Alembic warns of; it names files that it can't place."""
    told: list[str] = []
    show = warnings.showwarning

    def keep(message: Warning | str, category: type[Warning], filename: str, *rest: Any) -> None:
        if "alembic" in Path(filename).parts and str(message) not in told:
            told.append(str(message))
        show(message, category, filename, *rest)

    warnings.showwarning = keep  # type: ignore[assignment]
    return told


def _print_own_frames(error: BaseException) -> None:
    """Print the traceback of *error*, without the frames of libraries: they are many, and well."""
    whole = traceback.TracebackException.from_exception(error)
    link: traceback.TracebackException | None = whole
    while link is not None:
        link.stack = traceback.StackSummary.from_list(
            [frame for frame in link.stack if _is_own(frame.filename)]
        )
        link = link.__cause__ or link.__context__
    sys.stderr.write("".join(whole.format()))


def _is_own(filename: str) -> bool:
    """Tell whether a file is the project's: no library's, not Python's, not ours."""
    foreign = ("<", str(Path(os.__file__).parent), str(Path(__file__).parent))
    return not filename.startswith(foreign) and "site-packages" not in Path(filename).parts


def _message(error: BaseException) -> str:
    """Return the exception in its own words."""
    name = type(error).__name__
    lines = str(error).splitlines()[:_LINES]
    return "\n".join([f"{name}: {lines[0] if lines else ''}", *lines[1:]])


def _where(error: BaseException, config: Config) -> str:
    """Return the words for the revision that was running, or the project's file, if one was."""
    try:
        script = ScriptDirectory.from_config(config)
        home = Path(script.dir).resolve()
        revisions = {Path(each.path).resolve(): each.revision for each in script.walk_revisions()}
    except Exception:
        home = Path(config.get_alembic_option("script_location") or ".").resolve()
        revisions = {}
    spots = _spots(error)
    for path, line in reversed(spots):
        if path in revisions:
            return f" in revision {revisions[path]} ({path.name}, line {line})"
    for path, line in reversed(spots):
        if path.is_relative_to(home):
            return f" in {path.relative_to(home)}, line {line}"
    return ""


def _spots(error: BaseException) -> list[tuple[Path, int]]:
    """Return the files and lines that the exception, or what caused it, passed through."""
    spots: list[tuple[Path, int]] = []
    if (before := error.__cause__ or error.__context__) is not None:
        spots += _spots(before)
    entry: TracebackType | None = error.__traceback__
    while entry is not None:
        spots.append((Path(entry.tb_frame.f_code.co_filename).resolve(), entry.tb_lineno))
        entry = entry.tb_next
    if isinstance(error, SyntaxError) and error.filename:
        spots.append((Path(error.filename).resolve(), error.lineno or 0))
    return spots


def _place(host: object, port: object, database: object) -> tuple[str, str, str]:
    """Return an address in the form in which two of them can be compared."""
    name = str(host or "")
    return "127.0.0.1" if name == "localhost" else name, str(port or ""), str(database or "")


if __name__ == "__main__":
    main()
