"""The template: found by its fingerprint, or built layer by layer, once, and then sealed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple, Protocol, Self

from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.identity import BUILD_FORMAT, DatabaseName, State, fingerprint
from pytest_warmstack.postgres.admin import Admin, Database
from pytest_warmstack.runtime.base import Endpoint

_EMPTY: Final = "an empty database (there is no alembic.ini, and no [tool.alembic], at the root)"

KEEP: Final = 4
"""How many templates stay in a kept server: its data lies in memory."""


class Target(NamedTuple):
    """The database that a layer is to change, and a way to ask it what it holds.

    `read` takes a query with one text column and returns its values; none when there is no such
    table.
    """

    endpoint: Endpoint
    database: str
    read: Callable[[str], list[str]]


class Layer(Protocol):
    """A step of the build. Whoever changes the content also names it."""

    @property
    def name(self) -> str:
        """The word for it in the header."""

    def fingerprint(self) -> str:
        """Return the fingerprint of all that decides what `apply` does, from files alone."""

    def prepare(self) -> None:
        """Begin what takes long and needs no database: a server is being started, so it is empty.

        Then `apply` follows, or else `discard`.
        """

    def discard(self) -> None:
        """Undo `prepare`, if `apply` did not come; make it end soon, if it is at work."""

    def apply(self, target: Target) -> str:
        """Change the database; return what was done, such as `7 revisions`.

        Raises `TemplateFailed`; the database is then dropped.
        """


class Template(NamedTuple):
    """A sealed template: clones of it can be made, and nobody can connect to it.

    *origin* is `found` or `built`, *text* tells what its layers hold.
    """

    name: DatabaseName
    origin: str
    text: str


class _Mark(NamedTuple):
    """What a template's comment says: when it was *built*, in epoch seconds, and of what."""

    built: float
    layers: str

    def write(self) -> str:
        """Return the comment."""
        return json.dumps({"built": self.built, "layers": self.layers})

    @classmethod
    def read(cls, comment: str) -> Self:
        """Return what *comment* says; one that can't be understood is very old."""
        try:
            mark = cls(**json.loads(comment))
            return cls(float(mark.built), str(mark.layers))
        except (ValueError, TypeError):
            return cls(0.0, "")


def ensure(
    admin: Admin, layers: Sequence[Layer], *, timeout: float, say: Callable[[str], None]
) -> Template:
    """Return the template of *layers*, building it if nobody has.

    Only one process builds; the others wait up to *timeout* seconds and then find it. What a
    build left that died is not a template: it has no seal.
    """
    chain = fingerprint(BUILD_FORMAT, admin.version, *(layer.fingerprint() for layer in layers))
    name = DatabaseName(State.TEMPLATE, chain)
    if (comment := admin.find_template(name)) is not None:
        return Template(name=name, origin="found", text=_Mark.read(comment).layers)
    # Held by the one who builds, and for no longer. The template's own lock can't serve for that:
    # everybody who uses it shares that one, to the end of the run.
    gate = DatabaseName(State.BUILDING, chain, "gate")
    admin.lock(gate, timeout=timeout, say=say)
    try:
        if (comment := admin.find_template(name)) is not None:
            return Template(name=name, origin="found", text=_Mark.read(comment).layers)
        text = _build(admin, name, layers)
        admin.share(name)
        return Template(name=name, origin="built", text=text)
    finally:
        admin.unlock(gate)


def _build(admin: Admin, name: DatabaseName, layers: Sequence[Layer]) -> str:
    """Build the template under a private name, and return what its layers say of it."""
    draft = DatabaseName.new(State.BUILDING, name.fingerprint)
    admin.try_lock(draft)
    try:
        admin.create(draft)
        target = Target(admin.endpoint, str(draft), lambda query: admin.read(draft, query))
        text = ", ".join([layer.apply(target) for layer in layers]) or _EMPTY
        admin.settle(draft)
        # Last on purpose: the seal is what makes the build count. A database of this name
        # without it is rubbish, or we would not be here.
        admin.drop(name)
        admin.seal(draft, name, _Mark(time.time(), text).write())
    except BaseException:
        # The build's own error is the one to tell, also when the server is lost.
        with suppress(WarmstackError):
            admin.drop(draft)
        raise
    finally:
        with suppress(WarmstackError):
            admin.unlock(draft)
    return text


def doomed(databases: list[Database]) -> list[DatabaseName]:
    """Return what a sweep may drop if no process holds its lock.

    All but the newest templates: builds and clones without an owner are rubbish.
    """
    templates = sorted(
        (each for each in databases if each.name.state is State.TEMPLATE and each.sealed),
        key=lambda each: _Mark.read(each.comment).built,
        reverse=True,
    )
    kept = {each.name for each in templates[:KEEP]}
    return [each.name for each in databases if each.name not in kept]
