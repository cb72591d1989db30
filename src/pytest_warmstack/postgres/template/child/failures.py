"""What went wrong in the project's code, in its own words, with its place."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from pytest_warmstack.postgres.template.dependencies import STDLIB

_LINES = 20
"""How many lines of an exception's message are told."""


class Trouble(Exception):
    """A state that we found ourselves; *kind* tells the parent which error it is.

    *state* is PostgreSQL's SQLSTATE, if it was PostgreSQL that refused; *unseen* are patterns of
    the revision files that Alembic does not see.
    """

    def __init__(
        self,
        kind: str,
        cause: str,
        where: str = "",
        state: str = "",
        unseen: Sequence[str] = (),
    ) -> None:
        super().__init__(cause)
        self.kind = kind
        self.where = where
        self.state = state
        self.unseen = unseen


class Refused(Exception):
    """The project's code was about to connect to something else than the template."""

    sqlstate = "refused"


def attribute(text: str) -> Any:
    """Return what `package.module:attribute` names; raise `Trouble` when it is not there."""
    module, _, path = text.partition(":")
    found: Any = importlib.import_module(module)
    for name in path.split("."):
        if not hasattr(found, name):
            close = difflib.get_close_matches(name, dir(found), 1)
            hint = f"; is {close[0]} meant?" if close else ""
            raise Trouble("config", f"{module} has no {path}{hint}")
        found = getattr(found, name)
    return found


def report(error: BaseException, revisions: Any) -> dict[str, Any]:
    """Return what the parent makes its error of."""
    if isinstance(error, Trouble):
        return {
            "error": str(error),
            "kind": error.kind,
            "where": error.where,
            "state": error.state,
            "unseen": error.unseen,
        }
    told = revisions.told if revisions is not None else []
    words = [message(error), *(f"Before that, a warning: {each}" for each in told)]
    return {
        "error": "\n".join(words),
        "kind": revisions.stage if revisions is not None else "",
        "where": where(error, revisions),
        "state": _state(error),
        "first": revisions is not None and revisions.is_first,
    }


def show(error: BaseException) -> None:
    """Print the traceback of *error*, without the frames of libraries: they are many, and well."""
    if isinstance(error, Trouble):
        return
    whole = traceback.TracebackException.from_exception(error)
    link: traceback.TracebackException | None = whole
    while link is not None:
        link.stack = traceback.StackSummary.from_list(
            [frame for frame in link.stack if is_own(frame.filename)]
        )
        link = link.__cause__ or link.__context__
    sys.stderr.write("".join(whole.format()))


def message(error: BaseException) -> str:
    """Return the exception in its own words."""
    lines = str(error).splitlines()[:_LINES] or [""]
    if not isinstance(error, Refused):
        lines[0] = f"{type(error).__name__}: {lines[0]}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        lines.append(_looked_in(error.name))
    return "\n".join(lines)


def _looked_in(module: str) -> str:
    """Return where Python looked for a module that it did not find, without its own folders."""
    package = module.rpartition(".")[0]
    if (found := sys.modules.get(package)) is not None:
        inside = ", ".join(getattr(found, "__path__", ()))
        where = f": {inside}" if inside else f", {found.__file__}, which is no package"
        return f"Looked for it in {package}{where}"
    own = (*STDLIB, *(f"{each}/lib-dynload" for each in STDLIB))
    folders = [each for each in sys.path if each not in own and Path(each).is_dir()]
    return f"Looked for it in: {', '.join(folders)}"


def where(error: BaseException, revisions: Any) -> str:
    """Return the words for the revision that was running, or the project's file, if one was."""
    spots = list(_spots(error))
    if revisions is not None:
        for path, line in reversed(spots):
            if (revision := revisions.by_path().get(path)) is not None:
                return f"in revision {revision} ({path.name}, line {line})"
        for path, line in reversed(spots):
            if revisions.home is not None and path.is_relative_to(revisions.home):
                return f"in {path.relative_to(revisions.home)}, line {line}"
    for path, line in reversed(spots):
        if is_own(str(path)):
            return f"in {path.name}, line {line}"
    return ""


def _state(error: BaseException) -> str:
    """Return PostgreSQL's code for the error, SQLSTATE, whichever driver raised it."""
    link: BaseException | None = error
    while link is not None:
        for each in (link, getattr(link, "orig", None)):
            if code := getattr(each, "sqlstate", None) or getattr(each, "pgcode", None):
                return str(code)
        link = link.__cause__ or link.__context__
    return ""


def _spots(error: BaseException) -> Iterator[tuple[Path, int]]:
    """Yield the files and lines that the exception, or what caused it, passed through."""
    if (before := error.__cause__ or error.__context__) is not None:
        yield from _spots(before)
    entry: TracebackType | None = error.__traceback__
    while entry is not None:
        file = Path(entry.tb_frame.f_code.co_filename)
        # A compiled module names a file that only its author has.
        if file.is_file():
            yield file.resolve(), entry.tb_lineno
        entry = entry.tb_next
    if isinstance(error, SyntaxError) and error.filename:
        yield Path(error.filename).resolve(), error.lineno or 0


def is_own(filename: str) -> bool:
    """Tell whether a file is the project's: no library's, not Python's, not ours."""
    foreign = ("<", str(Path(os.__file__).parent), str(Path(__file__).parent))
    return not filename.startswith(foreign) and "site-packages" not in Path(filename).parts
