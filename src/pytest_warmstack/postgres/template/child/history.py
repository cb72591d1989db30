"""The revisions in a script location: order, files, and whether Alembic loads them all."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from alembic.script import Script, ScriptDirectory
from alembic.util import to_tuple
from alembic.util.pyfiles import coerce_resource_to_filename

from pytest_warmstack.postgres.template.child.failures import BuildFailure
from pytest_warmstack.postgres.template.child.recorder import Recorder, real
from pytest_warmstack.postgres.template.dependencies import python_files

_MISFIT: Final = re.compile(r"Revision .* (is present more than once|is not present)")
"""Matches warnings of Alembic about revisions whose order then depends on chance."""

_NAMED_FILES: Final = 10
"""How many revision files an error names."""


class History:
    """The revisions that Alembic loads from one script location."""

    def __init__(self, script: ScriptDirectory) -> None:
        self.script = script
        self.home = Path(script.dir).resolve()
        named = [coerce_resource_to_filename(str(each)) for each in script.version_locations or ()]
        # A folder that does not exist counts too: it may appear.
        self.locations = [each.resolve() for each in named or [self.home / "versions"]]

    @cached_property
    def order(self) -> list[Script]:
        """The revisions in the order in which Alembic applies them to an empty database."""
        found = self.script.iterate_revisions("heads", (), implicit_base=True)
        return [*found][::-1]

    @property
    def heads(self) -> list[str]:
        """The heads that Alembic writes into the database: no revision depends on them."""
        needed = {name for each in self.order for name in self._dependencies(each)}
        return [each for each in self.script.get_heads() if each not in needed]

    def after(self, script: Script) -> list[str]:
        """Return the revisions that must be applied before *script*."""
        return [*to_tuple(script.down_revision, ()), *self._dependencies(script)]

    def _dependencies(self, script: Script) -> list[str]:
        found = self.script.get_revisions(script.dependencies) if script.dependencies else ()
        return [each.revision for each in found]

    def files(self) -> list[str]:
        """Return the Python files in the locations of the revisions."""
        return [path for folder in self.locations for path in python_files(str(folder))]

    def check_complete(self, recorder: Recorder) -> str:
        """Raise `BuildFailure` if a revision file follows a loaded one but is not loaded itself.

        Returns a remark about other revision files, which you may have put aside.
        """
        loaded = {real(str(each.path)): each.revision for each in self.order}
        ids = set(loaded.values())
        # If the script location is the whole project, it contains more than scripts.
        is_above = Path.cwd().resolve().is_relative_to(self.home)
        folders = [self.home / "versions" if is_above else self.home, *self.locations]
        paths = {real(path) for each in folders for path in python_files(str(each))}
        unseen: list[str] = []
        missing: list[str] = []
        for path in sorted(paths - loaded.keys()):
            revision, before = declared(_read(path))
            if revision and not recorder.is_ignored(recorder.name(path)):
                unseen.append(path)
                missing += [recorder.name(path)] if before & ids else []
        if missing:
            more = " ..." if len(missing) > _NAMED_FILES else ""
            raise BuildFailure(
                "revisions",
                f"Alembic loads {len(loaded)} of {len(loaded) + len(unseen)} revision files, and"
                f" not: {', '.join(missing[:_NAMED_FILES])}{more}\n"
                "(version_locations and recursive_version_locations set where Alembic looks)",
                unseen=[recorder.name(each) for each in patterns(unseen, loaded)],
            )
        files = "file" if len(unseen) == 1 else "files"
        return f" ({len(unseen)} revision {files} that Alembic does not load)" if unseen else ""


def misfits(warned: Iterable[str], paths: Iterable[str]) -> str:
    """Return Alembic's warnings about revisions that do not fit together.

    Each has the names of the files among *paths* that have the same id, or that come after it.
    """
    found = []
    for each in filter(_MISFIT.match, warned):
        name = each.split()[1]
        files = [(Path(path).name, *declared(_read(path))) for path in paths]
        same = [file for file, revision, _ in files if revision == name]
        after = [file for file, _, before in files if name in before]
        named = same if len(same) > 1 else after
        found.append(f"{each} ({', '.join(named)})" if named else each)
    return "\n".join(found)


def patterns(paths: Iterable[str], loaded: Iterable[str]) -> list[str]:
    """Return patterns that match *paths* but no file of *loaded*, whole folders if possible.

    >>> patterns(["/a/v/mysql/1.py", "/a/v/mysql/old/0.py", "/a/v/2.py"], ["/a/v/1.py"])
    ['/a/v/2.py', '/a/v/mysql/*']
    """
    inhabited = {folder for each in loaded for folder in Path(each).parents}
    found = set()
    for each in paths:
        folders = [folder for folder in Path(each).parents if folder not in inhabited]
        found.add(f"{folders[-1]}/*" if folders else each)
    return sorted(found)


def declared(text: str) -> tuple[str, set[str]]:
    """Return the id in the text of a revision file, and the ids of the revisions before it.

    Both are empty for a file that is not a revision.
    """
    try:
        body = ast.parse(text).body if "down_revision" in text else []
    except SyntaxError:
        body = []
    found = {name: value for each in body for name, value in _assigned(each)}
    revision, down = found.get("revision"), found.get("down_revision")
    if "down_revision" not in found or not isinstance(revision, str):
        return "", set()
    return revision, {down} if isinstance(down, str) else set(down or ())


def _assigned(statement: Any) -> Iterator[tuple[str, Any]]:
    """Yield each name to which *statement* assigns a literal, with the literal."""
    targets = getattr(statement, "targets", [getattr(statement, "target", None)])
    value: Any = getattr(statement, "value", None)
    for target in targets:
        pairs = [(target, value)]
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            pairs = [*zip(target.elts, value.elts, strict=False)]
        for name, literal in pairs:
            if isinstance(name, ast.Name):
                with suppress(ValueError):
                    yield name.id, ast.literal_eval(literal)


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8", errors="replace")
