"""SQL files, functions and `MetaData` of the project: its schema without Alembic, its seed."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
from sqlalchemy import MetaData, NullPool, create_mock_engine
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from pytest_warmstack.postgres.template.child import arguments, database_url, failures
from pytest_warmstack.postgres.template.child.failures import Trouble
from pytest_warmstack.postgres.template.child.guard import Guard
from pytest_warmstack.postgres.template.child.recorder import Recorder
from pytest_warmstack.servers.identity import fingerprint

_PSQL = re.compile(r"^\\(un)?restrict\b.*$", re.MULTILINE)
"""Commands of psql that pg_dump writes, and that nobody but psql needs."""

_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)

_NAME = r'(?:"(?:[^"]|"")+"|\w+)'
_COPY = re.compile(
    rf"^COPY\s+(?:(?P<schema>{_NAME})\.)?(?P<table>{_NAME})\s*"
    rf"(?:\((?P<columns>\s*{_NAME}(?:\s*,\s*{_NAME})*\s*)\)\s*)?FROM\s+stdin"
    r"(?:\s+(?:WITH\s*)?\(\s*FORMAT\s+(?P<format>text|csv)\s*\))?\s*;[ \t]*\n"
    r"(?P<rows>(?:.*\n)*?)\\\.$",
    re.MULTILINE | re.IGNORECASE,
)
"""Rows as pg_dump writes them (PostgreSQL's documentation, "COPY")."""


def apply(line: str, root: str, guard: Guard, recorder: Recorder) -> dict[str, Any]:
    """Apply the script that *line* names, `file.sql` or `package.module:attribute`.

    The report has what it needed.
    """
    modules: set[str] = set()
    if line.endswith(".sql"):
        path = Path(root, line)
        keys = {recorder.key("file", str(path))}
        text = path.read_text(encoding="utf-8")
        asyncio.run(_connected(guard, lambda connection: _run(connection, path, text)))
    else:
        keys = set()
        found = _found(line)
        recorder.link(line)
        try:
            if isinstance(found, MetaData):
                asyncio.run(_connected(guard, lambda connection: _create(connection, found, line)))
            else:
                arguments.run(found, lambda driver: database_url.for_code(guard.url, driver))
        finally:
            recorder.link("")
        # Now, since a function may import something when it is called.
        modules = recorder.modules_of(line.partition(":")[0])
    return {"needs": recorder.digests(keys | recorder.needs_of(modules, line))}


def describe(line: str, recorder: Recorder) -> dict[str, Any]:
    """Return the digest of what the `MetaData` that *line* names does, and what that was read from.

    A digest is missing when it names a function, which tells what it does only when it is called.
    """
    found = _found(line)
    ddl = _ddl(found) if isinstance(found, MetaData) else ""
    modules = recorder.modules_of(line.partition(":")[0])
    return {"ddl": ddl, "needs": recorder.digests(recorder.needs_of(modules, line))}


def _ddl(metadata: MetaData) -> str:
    """Return the digest of all statements by which `create_all` would make the tables."""
    told: list[str] = []

    def note(statement: Any, *_: object, **__: object) -> None:
        compiled = statement.compile(dialect=engine.dialect)
        told.append(f"{compiled} {compiled.params or ''}")

    engine = create_mock_engine("postgresql+asyncpg://", note)
    try:
        metadata.create_all(engine, checkfirst=False)
    except Exception:  # A listener of the project's wants a real connection: its files decide.
        return ""
    return fingerprint(*told)


async def _connected(guard: Guard, work: Any) -> None:
    """Do *work* with a connection to the template, and commit what it left open."""
    url = guard.url.set(drivername="postgresql+asyncpg")
    engine = create_async_engine(url, poolclass=NullPool)
    async with engine.connect() as connection:
        await work(connection)
        await connection.commit()
    await engine.dispose()


def _found(line: str) -> MetaData | arguments.Call:
    """Return what `package.module:attribute` names: a `MetaData`, or how a function is called."""
    found = failures.attribute(line)
    # A declarative base is what one thinks of first; a model is something else.
    metadata = getattr(found, "metadata", None)
    if isinstance(metadata, MetaData) and not hasattr(found, "__table__"):
        return metadata
    if isinstance(found, MetaData):
        return found
    if inspect.isgeneratorfunction(found) or inspect.isasyncgenfunction(found):
        raise Trouble("script", f"{line} is a generator, and calling it runs nothing of it")
    if not callable(found) or isinstance(found, type):
        raise Trouble(
            "script",
            f"{line} is {found!r}, a {type(found).__name__}, and neither a MetaData nor a function",
        )
    return arguments.call(found)


async def _create(connection: AsyncConnection, metadata: MetaData, line: str) -> None:
    """Make the tables of *metadata*."""
    if not metadata.tables:
        raise Trouble(
            "script",
            f"{line} has no table: name the module that imports all the models",
        )
    await connection.run_sync(metadata.create_all)


async def _run(connection: AsyncConnection, path: Path, text: str) -> None:
    """Run an SQL file as psql would, as far as it is SQL or rows that pg_dump wrote."""
    raw: Any = (await connection.get_raw_connection()).driver_connection
    # Blanks in their place: PostgreSQL tells where an error is by counting.
    text = _PSQL.sub(lambda match: " " * len(match[0]), text)
    for begin, part in _parts(text):
        try:
            if not isinstance(part, str):
                await raw.copy_to_table(
                    _plain(part["table"]),
                    source=_bytes(part["rows"]),
                    schema_name=_plain(part["schema"]) if part["schema"] else None,
                    columns=[_plain(each) for each in re.findall(_NAME, part["columns"] or "")]
                    or None,
                    format=(part["format"] or "text").lower(),
                )
            elif _COMMENT.sub("", part).strip("; \t\n\r"):
                await raw.execute(part)
        except asyncpg.PostgresError as error:
            # PostgreSQL tells the place of a mistake in the text, and not that of a broken rule.
            position = getattr(error, "position", None)
            spot = text[: begin + int(position) - 1] if position else ""
            words = f"{type(error).__name__}: {error}"
            if text[len(spot) :].startswith("\\"):
                words += " (commands of psql are not run: only SQL is)"
            line = f", line {spot.count(chr(10)) + 1}" if position else ""
            raise Trouble("script", words, f"in {path.name}{line}", error.sqlstate) from error
    if raw.is_in_transaction():
        raise Trouble("script", "it begins a transaction and does not commit it", f"in {path.name}")


def _parts(text: str) -> Iterator[tuple[int, Any]]:
    """Yield the statements and the rows of a script, each with where it begins."""
    end = 0
    for match in _COPY.finditer(text):
        yield end, text[end : match.start()]
        yield match.start(), match
        end = match.end()
    yield end, text[end:]


async def _bytes(text: str) -> Any:
    yield text.encode()


def _plain(name: str) -> str:
    """Return a name of a statement without its quotes."""
    return name[1:-1].replace('""', '"') if name.startswith('"') else name
