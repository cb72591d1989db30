"""Reads the marker `warmstack_seed`: the scripts that fill the databases of some tests."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest

from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.options import is_attribute
from pytest_warmstack.session import session_of

_EXAMPLE: Final = '@pytest.mark.warmstack_seed("tests.seeds:catalogue", "big.sql")'

_SHARING: Final[dict[str, Any]] = {
    "class": pytest.Class,
    "module": pytest.Module,
    "session": pytest.Session,
}
"""For each isolation in which several tests share a database: the node that they have in common."""


class SeedError(WarmstackError):
    """The marker `warmstack_seed` can't be used. *node* is the id of what has the marker."""

    @classmethod
    def empty(cls, *, node: str) -> SeedError:
        """The marker has no arguments."""
        return cls(
            f"The marker warmstack_seed of {node} names no script.",
            why="it has no arguments",
            todo=[f"name what fills the database: {_EXAMPLE}", "or remove the marker"],
        )

    @classmethod
    def unknown_keyword(cls, *, node: str, name: str) -> SeedError:
        """The marker has a keyword argument."""
        return cls(
            f"Unknown keyword {name} in the marker warmstack_seed of {node}.",
            why="it takes only scripts, without keywords",
            todo=["remove the keyword", f"or write its value as a script: {_EXAMPLE}"],
        )

    @classmethod
    def bad_script(cls, *, node: str, value: object) -> SeedError:
        """An argument of the marker is neither the path of an SQL file nor the name of something.

        It may be the function itself, or a list.
        """
        todo = [f"write texts like these: {_EXAMPLE}"]
        if isinstance(value, (list, tuple)):
            todo = [f"write each script as an argument of its own: {_EXAMPLE}"]
        elif hasattr(value, "__qualname__"):
            todo = [f'write the name of the function: "{value.__module__}:{value.__qualname__}"']
        return cls(
            f"Invalid script {value!r} in the marker warmstack_seed of {node}.",
            why="it takes the paths of SQL files, such as sql/big.sql, and names like "
            "package.module:function, as texts",
            todo=todo,
        )

    @classmethod
    def no_file(cls, *, node: str, value: str, looked_at: Sequence[str]) -> SeedError:
        """None of the files *looked_at* exists."""
        return cls(
            f"The seed file {value} does not exist.",
            why=f"the marker warmstack_seed of {node} names it",
            looked_at=looked_at,
            todo=[
                "write a path from the folder of the test's file, or from pytest's root; or "
                "package.module:function"
            ],
        )

    @classmethod
    def ambiguous(
        cls, *, node: str, value: str, looked_at: Sequence[str], others: Sequence[str]
    ) -> SeedError:
        """There are two such files; *others* are paths that name only one of them each."""
        return cls(
            f"The seed file {value} can be two files.",
            why=f"the marker warmstack_seed of {node} names it, and both the folder of the test's "
            "file and pytest's root have one",
            looked_at=looked_at,
            todo=[
                f'write "{other}" for {path}' for other, path in zip(others, looked_at, strict=True)
            ],
        )

    @classmethod
    def shared(cls, *, node: str, isolation: str, wider: str) -> SeedError:
        """Other tests, without the marker, use the same database: that of *wider*."""
        move = f"move the marker to {wider}, whose tests share the database"
        if isolation == "session":
            move = "for all tests, name the script in pytest's configuration: warmstack_seed"
        return cls(
            f"The marker warmstack_seed of {node} can't fill a database that other tests share.",
            why=f"with the isolation {isolation}, the database is made for all tests that share it",
            todo=[move, 'or give this one its own: @pytest.mark.warmstack_isolation("clone")'],
        )


def of(node: pytest.Item | pytest.Collector) -> tuple[str, ...]:
    """Return the scripts of the markers of a test, class or module: the wider ones come first.

    A script runs once, so it is listed once, and not at all if the setting `warmstack_seed` has it.
    A path is returned as one from the root, so that all tests that name the same scripts have the
    same template. Raises `SeedError`, also if tests without the marker share the database.
    """
    scripts = _scripts(node)
    if isinstance(node, pytest.Item):
        isolation = _isolation(node)
        wider = node.getparent(_SHARING[isolation]) if isolation in _SHARING else None
        if wider is not None and scripts != _scripts(wider):
            marked = [_id(each) for each, _ in _marks(node) if each not in wider.listchain()]
            raise SeedError.shared(node=marked[0], isolation=isolation, wider=wider.nodeid)
    return scripts


def _isolation(item: pytest.Item) -> str:
    """Return the isolation of a test; whether the word is known is checked elsewhere."""
    marker = item.get_closest_marker("warmstack_isolation")
    if marker is None:
        return session_of(item.config).settings.isolation
    return "".join(map(str, marker.args))


def _marks(node: pytest.Item | pytest.Collector) -> Iterator[tuple[Any, pytest.Mark]]:
    """Yield the markers of *node* and of the nodes around it, which come first, with their nodes.

    Several markers of one function come in the order in which Python applies decorators.
    """
    for each in node.listchain():
        yield from ((each, mark) for mark in each.own_markers if mark.name == "warmstack_seed")


def _id(node: Any) -> str:
    """Return the id of *node* without its parameters: an error is shown once for all of them."""
    spec = getattr(node, "callspec", None)
    full: str = node.nodeid
    return full if spec is None else full.removesuffix(f"[{spec.id}]")


def _scripts(node: pytest.Item | pytest.Collector) -> tuple[str, ...]:
    folders = _real(node.path.parent), _real(node.config.rootpath)
    scripts = [
        script for owner, mark in _marks(node) for script in _read(mark, _id(owner), folders)
    ]
    everywhere = {os.path.normpath(each) for each in session_of(node.config).settings.seed}
    return tuple(each for each in dict.fromkeys(scripts) if each not in everywhere)


@cache
def _real(folder: Path) -> Path:
    return Path(os.path.realpath(folder))


def _read(mark: pytest.Mark, node: str, folders: tuple[Path, ...]) -> Iterator[str]:
    """Yield the scripts of one marker. The paths may begin at each of *folders*."""
    for name in mark.kwargs:
        raise SeedError.unknown_keyword(node=node, name=name)
    if not mark.args:
        raise SeedError.empty(node=node)
    for value in mark.args:
        if not isinstance(value, str) or not (value.endswith(".sql") or is_attribute(value)):
            raise SeedError.bad_script(node=node, value=value)
        yield value if is_attribute(value) else _path(value, node, folders)


@cache
def _path(value: str, node: str, folders: tuple[Path, ...]) -> str:
    """Return the path, from the root, of the file that *value* names. Thousands of tests ask."""
    root = folders[-1]
    paths = dict.fromkeys(os.path.normpath(folder / value) for folder in folders)
    files = [path for path in paths if Path(path).is_file()]
    if not files:
        raise SeedError.no_file(node=node, value=value, looked_at=[*paths])
    if len(files) > 1:
        others = [
            os.path.relpath(path, start)
            for path, start in zip(files, reversed(folders), strict=True)
        ]
        raise SeedError.ambiguous(node=node, value=value, looked_at=files, others=others)
    return os.path.relpath(files[0], root)
