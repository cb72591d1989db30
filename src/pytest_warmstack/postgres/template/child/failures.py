"""Reports failures of the project's code: the message, the place, and PostgreSQL's SQLSTATE."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from pytest_warmstack.postgres.template.dependencies import stdlib

_MESSAGE_LINES: Final = 20
"""How many lines of an exception's message are reported."""

_NOT_PROJECT: Final = ("<", str(Path(os.__file__).parent), str(Path(__file__).parent))
"""How file names begin if the code is not the project's."""


class BuildFailure(Exception):
    """A failure that the child itself detects.

    *kind* decides which error the parent raises. *state* is the SQLSTATE if PostgreSQL reported the
    failure. *unseen* are patterns of revision files that Alembic does not load.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        where: str = "",
        *,
        state: str = "",
        unseen: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.where = where
        self.state = state
        self.unseen = unseen


class ForbiddenConnection(Exception):
    """The project's code tried to connect to a server or database other than the template."""

    sqlstate = "refused"


def report(error: BaseException, revisions: Any) -> dict[str, Any]:
    """Return the fields for the parent's error; *revisions* may be None."""
    if isinstance(error, BuildFailure):
        return {"error": str(error), **vars(error)}
    warned = revisions.alembic_warnings if revisions else []
    return {
        "error": "\n".join(
            [message(error), *(f"Before that, a warning: {each}" for each in warned)]
        ),
        "kind": revisions.stage if revisions else "",
        "where": where(error, revisions),
        "state": sqlstate(error),
        "first": bool(revisions) and revisions.is_first,
    }


def print_traceback(error: BaseException) -> None:
    """Print the traceback of *error* without the many frames of libraries."""
    if isinstance(error, BuildFailure):
        return
    whole = traceback.TracebackException.from_exception(error)
    for each in _chain(whole):
        each.stack = traceback.StackSummary.from_list(
            [frame for frame in each.stack if is_project_file(frame.filename)]
        )
    sys.stderr.write("".join(whole.format()))


def message(error: BaseException) -> str:
    """Return the exception's message, which begins with the name of its class."""
    lines = str(error).splitlines()[:_MESSAGE_LINES] or [""]
    if not isinstance(error, ForbiddenConnection):
        lines[0] = f"{type(error).__name__}: {lines[0]}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        lines.append(_looked_in(error.name))
    return "\n".join(lines)


def _looked_in(module: str) -> str:
    """Return where Python looked for a module that it did not find."""
    package = module.rpartition(".")[0]
    if (found := sys.modules.get(package)) is not None:
        return (
            f"Looked for it in {package}: {', '.join(getattr(found, '__path__', [found.__file__]))}"
        )
    folders = [
        each
        for each in sys.path
        if each.removesuffix("/lib-dynload") not in stdlib() and Path(each).is_dir()
    ]
    return f"Looked for it in: {', '.join(folders)}"


def where(error: BaseException, revisions: Any) -> str:
    """Return the revision that was running, or the project's file, with the line; or ""."""
    places = list(_places(error))
    ids = revisions.by_path() if revisions else {}
    for path, line in places:
        if path in ids:
            return f"in revision {ids[path]} ({path.name}, line {line})"
    home = revisions.home if revisions else None
    for path, line in places:
        if home is not None and path.is_relative_to(home):
            return f"in {path.relative_to(home)}, line {line}"
    for path, line in places:
        if is_project_file(str(path)):
            return f"in {path.name}, line {line}"
    return ""


def listen_to_warnings(note: Callable[[str, type[Warning], str, int], None]) -> None:
    """Call *note* with the text, class, file and line of each warning before it is shown."""
    show = warnings.showwarning

    def noted(message: Any, category: type[Warning], filename: str, line: int, *rest: Any) -> None:
        note(str(message), category, filename, line)
        show(message, category, filename, line, *rest)

    warnings.showwarning = noted  # type: ignore[assignment]


def sqlstate(error: BaseException) -> str:
    """Return the SQLSTATE of the error, for the exceptions of every driver."""
    for each in _chain(error):
        for raised in (each, getattr(each, "orig", None)):
            if code := getattr(raised, "sqlstate", None) or getattr(raised, "pgcode", None):
                return str(code)
    return ""


def _places(error: BaseException) -> Iterator[tuple[Path, int]]:
    """Yield the files and lines of the error, the innermost first, then those of its causes."""
    for each in _chain(error):
        if isinstance(each, SyntaxError) and each.filename:
            yield Path(each.filename).resolve(), each.lineno or 0
        for frame, line in reversed(list(traceback.walk_tb(each.__traceback__))):
            file = Path(frame.f_code.co_filename)
            # A compiled module may refer to a file on the machine that compiled it.
            if file.is_file():
                yield file.resolve(), line


def _chain(error: Any) -> Iterator[Any]:
    """Yield an exception (or its `TracebackException`) and then what caused it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_project_file(filename: str) -> bool:
    """Return whether code is the project's: not a library's, Python's or the child's."""
    return not filename.startswith(_NOT_PROJECT) and "site-packages" not in Path(filename).parts
