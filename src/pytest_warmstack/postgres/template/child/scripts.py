"""SQL files, functions and `MetaData` of the project: a schema without Alembic, and the seed."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import asyncpg
from sqlalchemy import URL, MetaData, NullPool, create_mock_engine
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from pytest_warmstack.postgres.template.child import arguments, database_url
from pytest_warmstack.postgres.template.child.failures import BuildFailure
from pytest_warmstack.postgres.template.child.guard import Guard
from pytest_warmstack.postgres.template.child.recorder import Recorder
from pytest_warmstack.servers.identity import fingerprint

_PSQL: Final = re.compile(r"^\\(un)?restrict\b.*$", re.MULTILINE)
"""Matches commands that pg_dump writes and that only psql needs."""

_COMMENT: Final = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)

_NAME: Final = r'(?:"(?:[^"]|"")+"|\w+)'
_COPY: Final = re.compile(
    rf"^COPY\s+(?:(?P<schema>{_NAME})\.)?(?P<table>{_NAME})\s*"
    rf"(?:\((?P<columns>\s*{_NAME}(?:\s*,\s*{_NAME})*\s*)\)\s*)?FROM\s+stdin"
    r"(?:\s+(?:WITH\s*)?\(\s*FORMAT\s+(?P<format>text|csv)\s*\))?\s*;[ \t]*\n"
    r"(?P<rows>(?:.*\n)*?)\\\.$",
    re.MULTILINE | re.IGNORECASE,
)
"""Matches rows as pg_dump writes them (PostgreSQL's documentation, "COPY")."""


def apply(line: str, guard: Guard, recorder: Recorder) -> dict[str, Any]:
    """Apply the script that *line* names, `file.sql` or `package.module:attribute`.

    The report contains what it needed.
    """
    if line.endswith(".sql"):
        path = Path(recorder.root, line)
        key = recorder.key("file", str(path))
        text = path.read_text(encoding="utf-8")
        _with_connection(guard.url, lambda connection: run_sql(connection, path.name, text))
        return {"needs": recorder.digests({key})}
    found = find(line, recorder.root)
    with recorder.step(line):
        if isinstance(found, MetaData):
            if not found.tables:
                raise BuildFailure(
                    "script", f"{line} has no table: name the module that imports all the models"
                )
            _with_connection(guard.url, lambda each: each.run_sync(found.create_all))
        else:
            arguments.run(found, lambda driver: database_url.for_code(guard.url, driver))
    return {"needs": _needs(line, recorder)}


def describe(line: str, recorder: Recorder) -> dict[str, Any]:
    """Return the digest of the `MetaData` that *line* names, and the keys of its files.

    The digest is empty for a function, because what it does is only known when it runs.
    """
    found = find(line, recorder.root)
    ddl = _ddl_digest(found) if isinstance(found, MetaData) else ""
    return {"ddl": ddl, "needs": _needs(line, recorder)}


def _needs(line: str, recorder: Recorder) -> dict[str, str]:
    return recorder.digests(recorder.needs(recorder.modules_of(line), line))


def _ddl_digest(metadata: MetaData) -> str:
    """Return the digest of all statements by which `create_all` would create the tables."""
    statements: list[str] = []

    def note(statement: Any, *_: object, **__: object) -> None:
        compiled = statement.compile(dialect=engine.dialect)
        statements.append(f"{compiled} {compiled.params or ''}")

    engine = create_mock_engine("postgresql+asyncpg://", note)
    try:
        metadata.create_all(engine, checkfirst=False)
    except Exception:  # A listener of the project needs a real connection: compare its files.
        return ""
    return fingerprint(*statements)


def _with_connection(url: URL, work: Callable[[AsyncConnection], Awaitable[None]]) -> None:
    """Do *work* with a connection to the template, and commit."""

    async def connect() -> None:
        engine = create_async_engine(url.set(drivername=database_url.ASYNCPG), poolclass=NullPool)
        async with engine.connect() as connection:
            await work(connection)
            await connection.commit()
        await engine.dispose()

    asyncio.run(connect())


def find(line: str, root: str) -> MetaData | arguments.Call:
    """Return what `package.module:attribute` names: a `MetaData`, or the call of a function."""
    found = arguments.resolve(line, root)
    # A declarative base has the metadata of all models. A model has it too, but is itself a table.
    metadata = getattr(found, "metadata", None)
    if isinstance(metadata, MetaData) and not hasattr(found, "__table__"):
        return metadata
    if isinstance(found, MetaData):
        return found
    if inspect.isgeneratorfunction(found) or inspect.isasyncgenfunction(found):
        raise BuildFailure("script", f"{line} is a generator: calling it would run nothing")
    if not callable(found) or isinstance(found, type):
        kind = type(found).__name__
        raise BuildFailure(
            "script", f"{line} is {found!r}, a {kind}; it must be a MetaData or a function"
        )
    return arguments.call(found)


async def run_sql(connection: AsyncConnection, file: str, text: str) -> None:
    """Run the text of an SQL file as psql would, if it is SQL, or rows that pg_dump wrote."""
    raw: Any = (await connection.get_raw_connection()).driver_connection
    # Replace them by blanks, so that the positions in PostgreSQL's errors remain correct.
    text = _PSQL.sub(lambda match: " " * len(match[0]), text)
    for begin, part in _parts(text):
        try:
            if not isinstance(part, str):
                await _copy_rows(raw, part)
            elif _COMMENT.sub("", part).strip("; \t\n\r"):
                await raw.execute(part)
        except asyncpg.PostgresError as error:
            raise _sql_failure(error, file, text, begin) from error
    if raw.is_in_transaction():
        raise BuildFailure("script", "it begins a transaction and does not commit it", f"in {file}")


async def _copy_rows(raw: Any, match: re.Match[str]) -> None:
    async def rows() -> AsyncIterator[bytes]:
        yield match["rows"].encode()

    await raw.copy_to_table(
        _unquoted(match["table"]),
        source=rows(),
        schema_name=_unquoted(match["schema"]) if match["schema"] else None,
        columns=[_unquoted(each) for each in re.findall(_NAME, match["columns"] or "")] or None,
        format=(match["format"] or "text").lower(),
    )


def _sql_failure(error: Any, file: str, text: str, begin: int) -> BuildFailure:
    """Return the failure of the part of *text* that begins at *begin*."""
    message, where = f"{type(error).__name__}: {error}", f"in {file}"
    # PostgreSQL reports the position of a syntax error, but not of a violated constraint.
    if position := getattr(error, "position", None):
        at = begin + int(position) - 1
        where += f", line {text.count(chr(10), 0, at) + 1}"
        if text.startswith("\\", at):
            message += " (commands of psql are not run, only SQL)"
    return BuildFailure("script", message, where, state=error.sqlstate)


def _parts(text: str) -> Iterator[tuple[int, Any]]:
    """Yield the statements and the rows of a script, each with its position."""
    end = 0
    for match in _COPY.finditer(text):
        yield end, text[end : match.start()]
        yield match.start(), match
        end = match.end()
    yield end, text[end:]


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name
