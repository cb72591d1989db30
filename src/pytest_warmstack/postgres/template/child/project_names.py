"""Finds what a line such as `package.module:attribute` names in the project."""

from __future__ import annotations

import difflib
import importlib
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any

from pytest_warmstack.postgres.template.child.failures import BuildFailure


def prefer_project(line: str, root: str) -> None:
    """Make Python import the module of *line* from *root*, if its folder has no `__init__.py`.

    Python prefers any package with one, wherever on the path it lies (PEP 420): the folder `tests`
    of an installed package would hide the project's `tests/seed.py`.
    """
    module = line.partition(":")[0]
    top, file = module.partition(".")[0], Path(root, *module.split("."))
    if top not in sys.modules and (file.with_suffix(".py").is_file() or file.is_dir()):
        spec = PathFinder.find_spec(top, [root])
        if spec is not None and spec.loader is None:
            sys.modules[top] = module_from_spec(spec)


def resolve(line: str) -> Any:
    """Return what *line* names; raise `BuildFailure` if the module has no such attribute."""
    module, _, path = line.partition(":")
    found: Any = importlib.import_module(module)
    for name in path.split("."):
        if not hasattr(found, name):
            close = difflib.get_close_matches(name, dir(found), 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise BuildFailure("config", f"{module} has no attribute {path}{hint}")
        found = getattr(found, name)
    return found
