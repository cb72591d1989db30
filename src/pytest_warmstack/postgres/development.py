"""The development database of a project: a clone that stays until the user replaces it.

Its name depends only on the project's folder and on the Alembic configuration. Its comment
describes the template that it was made from, so that a change can be reported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.postgres import DatabaseName, sql
from pytest_warmstack.postgres.clones import Clone, CloneFactory
from pytest_warmstack.postgres.databases import Databases
from pytest_warmstack.postgres.template.record import ALEMBIC, BASE, LayerRecord, Record
from pytest_warmstack.servers.identity import fingerprint

LOCK_TIMEOUT: Final = 30.0
"""Seconds to wait while another command makes the same database."""


class DevelopmentFailed(WarmstackError):
    """The development database could not be made."""

    @classmethod
    def locked(cls, *, name: str, seconds: float, holder: str) -> DevelopmentFailed:
        """The process *holder* still makes the database after *seconds*."""
        return cls(
            f"Another command is still making the development database {name}.",
            why=f"it was waited for {seconds:g} seconds",
            looked_at=[holder],
            todo=["run the command again", "or end the other command"],
        )


@dataclass(frozen=True, kw_only=True)
class DevelopmentRequest:
    """The development database called *name*, for the current *template*.

    *project* and *configuration* are shown to users. With *fresh*, replace the one that exists.
    *take* returns a new clone of the template, *say* shows the user what it waits for.
    """

    name: DatabaseName
    template: DatabaseName
    take: Callable[[], Clone]
    project: str = ""
    configuration: str = ""
    fresh: bool = False
    say: Callable[[str], None] = lambda _: None


def ensure(databases: Databases, factory: CloneFactory, request: DevelopmentRequest) -> str:
    """Make the requested database if there is none; else keep it with everything in it.

    Returns a line for the user if the template has changed since the database was made, else "".
    Raises `DevelopmentFailed`, and the errors of clones.
    """
    name = request.name
    record = _record_of(databases, request.template)
    with _lock(databases, name, request.say):
        found = next((each for each in databases.all() if each.name == name), None)
        values = sql.read_development(found.comment) if found else {}
        line = ""
        if found is None or request.fresh:
            values = {"of": request.configuration, **_describe(record)}
        elif _is_current(values, record, lambda query: databases.read(name, query)):
            values |= _describe(record)  # The user may have applied new revisions.
        else:
            line = _outdated(values, record)
        values |= {"project": request.project, "used": databases.now()}
        comment = sql.development(values)
        if found is None or request.fresh:
            factory.promote(request.take(), name, comment)
        else:
            databases.mark(name, comment)
    return line


@contextmanager
def _lock(databases: Databases, name: DatabaseName, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a development database: two commands may make it at the same time."""
    if holder := databases.lock(name, timeout=LOCK_TIMEOUT, say=say):
        raise DevelopmentFailed.locked(name=str(name), seconds=LOCK_TIMEOUT, holder=holder)
    try:
        yield
    finally:
        with suppress(WarmstackError):
            databases.unlock(name)


def _record_of(databases: Databases, template: DatabaseName) -> Record:
    comments = (each.comment for each in databases.templates() if each.name == template)
    return Record.read(next(comments, "")) or Record(0.0, "", ())


# Has the template changed?


def _layers(record: Record) -> list[LayerRecord]:
    return [each for each in record.layers if each.layer != BASE]


def _describe(record: Record) -> dict[str, Any]:
    """Return what the comment says about the template."""
    layers = [
        [each.layer, len(each.steps), _digest(each, len(each.steps))] for each in _layers(record)
    ]
    return {"holds": record.text, "layers": layers}


def _digest(layer: LayerRecord, count: int) -> str:
    """Return a digest of what the first *count* steps of a layer are and have read."""
    steps = [(step.name, sorted(step.needs.values())) for step in layer.steps[:count]]
    return fingerprint(json.dumps([layer.layer, sorted(layer.needs.values()), steps]))


def _is_current(
    values: Mapping[str, Any], record: Record, read: Callable[[str], list[str]]
) -> bool:
    """Return whether a database with these *values* has everything that *record* describes.

    That is so if the template is the same, or has only new revisions that the user has applied.
    *read* returns a column of a query in the database.
    """
    layers = _layers(record)
    described = values.get("layers", [])
    if [each.layer for each in layers] != [name for name, _, _ in described]:
        return False
    for layer, (name, count, digest) in zip(layers, described, strict=True):
        if _digest(layer, count) != digest:
            return False
        if len(layer.steps) > count and (
            name != ALEMBIC or set(read("SELECT version_num FROM alembic_version")) != _heads(layer)
        ):
            return False
    return True


def _heads(layer: LayerRecord) -> set[str]:
    """Return the revisions that no other revision of the layer builds on."""
    followed = {name for step in layer.steps for name in step.after or ()}
    # A step without a list of others comes after the one before it.
    followed |= {before.name for before, step in pairwise(layer.steps) if step.after is None}
    return {*layer.names} - followed


def _outdated(values: Mapping[str, Any], record: Record) -> str:
    before, now = values.get("holds", "another one"), record.text
    what = f"of {before}, now of {now}" if before != now else f"of {now}"
    return (
        f"the template ({what}) has changed since the development database was made, which is kept "
        "with its data; to replace it, add --fresh; "
        "to migrate it: warmstack run -- alembic upgrade head"
    )
