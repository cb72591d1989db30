"""Revision files as texts: what each says of itself, also those that Alembic does not load."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytest_warmstack.postgres.template.child.recorder import real
from pytest_warmstack.postgres.template.dependencies import python_files

_BROKEN = re.compile(r"Revision .* (is present more than once|is not present)")
"""What Alembic only warns of, and what gives a database that depends on chance."""


def broken(told: Iterable[str], paths: Iterable[str]) -> str:
    """Return those of Alembic's warnings that tell of revisions which do not fit together.

    With the names of the files among *paths* that have the same id.
    """
    found = []
    for each in told:
        if _BROKEN.match(each):
            name = each.split()[1]
            files = [Path(path).name for path in paths if declared(_read(path))[0] == name]
            after = [Path(path).name for path in paths if name in declared(_read(path))[1]]
            named = files if len(files) > 1 else after
            found.append(f"{each} ({', '.join(named)})" if named else each)
    return "\n".join(found)


def unseen(folders: Iterable[str], seen: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return the revision files below *folders* that are not among *seen*, ids by paths.

    First those that follow one which is seen: they are missing. Then the others, which may have
    been put aside.
    """
    paths = {real(path) for each in folders for path in python_files(each)}
    missing: list[str] = []
    aside: list[str] = []
    for path in sorted(paths - seen.keys()):
        revision, before = declared(_read(path))
        if revision:
            (missing if before & set(seen.values()) else aside).append(path)
    return missing, aside


def apart(paths: Iterable[str], seen: Iterable[str]) -> list[str]:
    """Return the patterns of *paths* that match no file of *seen*: of whole folders, if possible.

    >>> apart(["/a/v/mysql/1.py", "/a/v/mysql/old/0.py", "/a/v/2.py"], ["/a/v/1.py"])
    ['/a/v/2.py', '/a/v/mysql/*']
    """
    inhabited = {str(folder) for each in seen for folder in Path(each).parents}
    found = set()
    for each in paths:
        folders = [folder for folder in Path(each).parents if str(folder) not in inhabited]
        found.add(f"{folders[-1]}/*" if folders else each)
    return sorted(found)


def declared(text: str) -> tuple[str, set[str]]:
    """Return the id that the text of a revision file gives, and the ids that it comes after.

    Both are empty for a file that is no revision.
    """
    found: dict[str, Any] = {}
    if "down_revision" not in text:
        return "", set()
    try:
        body = ast.parse(text).body
    except SyntaxError:
        return "", set()
    for each in body:
        targets = each.targets if isinstance(each, ast.Assign) else []
        targets = [each.target] if isinstance(each, ast.AnnAssign) else targets
        value = getattr(each, "value", None)
        for target in targets:
            names = target.elts if isinstance(target, ast.Tuple) else [target]
            values = value.elts if isinstance(value, ast.Tuple) and len(names) > 1 else [value]
            for name, one in zip(names, values, strict=False):
                if isinstance(name, ast.Name) and one is not None:
                    with suppress(ValueError):
                        found[name.id] = ast.literal_eval(one)
    if "down_revision" not in found or not isinstance(found.get("revision"), str):
        return "", set()
    down = found["down_revision"]
    return found["revision"], {down} if isinstance(down, str) else set(down or ())


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8", errors="replace")
