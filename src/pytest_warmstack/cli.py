"""The command `warmstack`: removes what our labels say is this project's."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from pytest_warmstack import runtime as runtimes
from pytest_warmstack.errors import RuntimeUnavailable, WarmstackError
from pytest_warmstack.identity import Label, Project, Service
from pytest_warmstack.processes import Process
from pytest_warmstack.runtime.base import Found, Household, Runtime, ServerSpec
from pytest_warmstack.settings import RuntimeName, Settings

_ROOT_FILES: Final = (
    "pytest.toml",
    ".pytest.toml",
    "pytest.ini",
    ".pytest.ini",
    "pyproject.toml",
    "tox.ini",
    "setup.cfg",
    "setup.py",
)
"""Files that mark a root (pytest's documentation, "Initialization: determining rootdir")."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0 done, 1 something could not be removed."""
    parser = argparse.ArgumentParser(
        prog="warmstack", description="Servers that pytest-warmstack keeps between runs."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    clean = commands.add_parser(
        "clean",
        help="remove this project's servers",
        description="Remove the servers of one project, in Docker and embedded, with their data. "
        "Servers of other projects, and containers of anybody else, are never touched. "
        "A server that belongs to a run in progress is spared.",
    )
    clean.add_argument(
        "--project",
        type=Path,
        metavar="FOLDER",
        help="the project's root (default: found from here)",
    )
    clean.add_argument(
        "--force", action="store_true", help="remove also what a run in progress uses"
    )
    clean.set_defaults(command=_clean)
    options = parser.parse_args(arguments)
    try:
        return int(options.command(options))
    except WarmstackError as error:
        print(f"warmstack: {error}", file=sys.stderr)
        return 1


def _clean(options: argparse.Namespace) -> int:
    project = Project(path=os.path.realpath(options.project or _root(Path.cwd())))
    removed, spared, elsewhere = 0, 0, set()
    for runtime in _reachable(project):
        for found in runtime.list():
            if found.labels.get(Label.PROJECT) != project.id:
                elsewhere.add(found.labels.get(Label.PATH, "?"))
            elif not options.force and _is_live(runtime, found):
                spared += 1
                print(f"spared {_words(found)}: a run in progress uses it")
            else:
                runtime.remove(found)
                removed += 1
                print(f"removed {_words(found)}")
        runtime.close()
    if not removed and not spared:
        print(f"nothing to remove for {project.path}")
        for path in sorted(elsewhere):
            print(f"there are servers of another project: warmstack clean --project {path}")
    return 1 if spared else 0


def _reachable(project: Project) -> Iterator[Runtime]:
    """Yield each runtime that can be asked here."""
    own = Process.current()
    household = Household(project=project, run="", owner=own, keep=False, start_timeout=60)
    for name in (RuntimeName.DOCKER, RuntimeName.EMBEDDED):
        try:
            yield runtimes.make(name, household)
        except RuntimeUnavailable as refusal:
            # Without an engine there are no containers; that is no failure of a clean-up.
            print(f"not looked at: {name} ({refusal.why})", file=sys.stderr)


def _is_live(runtime: Runtime, found: Found) -> bool:
    """Tell whether a run that may still be in progress owns the server, or uses it."""
    if not found.kept:
        return not found.orphaned
    return found.running and runtime.in_use(_spec(found.labels[Label.SERVICE]), found)


def _spec(service: str) -> ServerSpec[Any]:
    """Return a description of a server, to connect to one of its kind."""
    if service == Service.POSTGRES:
        from pytest_warmstack.portal import Portal
        from pytest_warmstack.postgres import server as postgres

        return postgres.spec(Settings(), Portal())
    from pytest_warmstack.redis import server as redis

    return redis.spec(Settings())


def _words(found: Found) -> str:
    """Return a server's name for the user."""
    return f"{found.labels.get(Label.SERVICE, 'server')} {found.name} ({found.runtime})"


def _root(start: Path) -> Path:
    """Return the nearest folder, from *start* upwards, that looks like a project's root."""
    for folder in (start, *start.parents):
        if any((folder / name).is_file() for name in _ROOT_FILES):
            return folder
    return start


if __name__ == "__main__":
    sys.exit(main())
