"""The project that a command works on: its root and settings, as pytest finds them; its servers."""

from __future__ import annotations

import argparse
import io
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from pytest_warmstack import cleanup, options
from pytest_warmstack.cli.errors import CommandFailed, NoProject
from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.options import Settings
from pytest_warmstack.servers.identity import Project, Service
from pytest_warmstack.servers.model import OwnRuntime, ServerInfo

Command = Callable[[argparse.Namespace], int]
"""The function that runs a command; it returns the exit status."""

Add = Callable[..., argparse.ArgumentParser]
"""Adds a command, given its name, its function, a summary and details.

It returns the parser to which the command adds its arguments.
"""


def say(text: str) -> None:
    """Write a line to standard error."""
    print(text, file=sys.stderr)


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return *rows* as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


# The project

_ALONE: Final = (
    *("--disable-plugin-autoload", "--noconftest", "-p", "no:warnings", "-p", "no:cacheprovider"),
    *("-s", "-W", "ignore", "-p", "pytest_warmstack.plugin"),
    *(f"-o{name}=" for name in ("required_plugins", "filterwarnings", "minversion")),
)
"""Options with which pytest reads its files, but loads no code of the project or of plugins."""

_MARKS: Final = (
    *("alembic.ini", "setup.py", "conftest.py", "tests", "test"),
    *("test_*.py", "*_test.py"),
)
"""Files that mark a folder as a project if pytest has no configuration there."""


class Place(NamedTuple):
    """A project and its settings.

    If the settings can't be read, these are the defaults, and *failure* is the reason. *remarks*
    name misspelt settings; *path* is the value of `pythonpath`; *ini* is the file with pytest's
    configuration. *is_project* is false if nothing in the folder looks like tests.
    """

    project: Project
    settings: Settings
    failure: str = ""
    remarks: Sequence[str] = ()
    path: Sequence[str] = ()
    is_project: bool = True
    ini: Path | None = None


def look(folder: Path) -> Place:
    """Return the project that *folder* belongs to.

    This reads only files, so that commands work even if a plugin or a conftest.py is broken.
    Raises `CommandFailed` if the folder does not exist.
    """
    if not folder.is_dir():
        raise CommandFailed.no_folder(folder=str(folder))
    said = io.StringIO()
    with chdir(folder), redirect_stdout(said), redirect_stderr(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _place(_config())
        except (Exception, SystemExit) as error:
            said.write(str(error) or type(error).__name__)
        project = Project(path=os.path.realpath(Path.cwd()))
    return Place(project, Settings(), said.getvalue().strip())


def find(folder: Path) -> Place:
    """Do what `look` does, and warn the user if the project's settings can't be read."""
    place = look(folder)
    if place.failure:
        say(f"the project's settings can't be read:\n{place.failure}")
    return place


def require(folder: Path) -> Place:
    """Do what `find` does; raise `NoProject` if *folder* isn't part of a project."""
    place = find(folder)
    if not place.is_project:
        raise NoProject.here(folder=place.project.path)
    return place


def _config() -> pytest.Config:
    """Return pytest's configuration, with the options in `addopts` and in PYTEST_ADDOPTS.

    It ignores the options of plugins, because it loads no plugins.
    """
    given = shlex.split(os.environ.get("PYTEST_ADDOPTS", ""))
    plugins = os.environ.pop("PYTEST_PLUGINS", None)
    try:
        config = pytest.Config.fromdictargs({}, [*_ALONE, *_files(given)])
    finally:
        if plugins is not None:
            os.environ["PYTEST_PLUGINS"] = plugins
    added = [*config.getini("addopts"), *given]
    options.refuse_unknown(added)
    # pytest has no public API for either.
    config._parser.parse_known_args(added, namespace=config.option)  # noqa: SLF001
    config._ensure_unconfigure()  # noqa: SLF001
    return config


def _files(arguments: Sequence[str]) -> list[str]:
    """Return the *arguments* that choose pytest's configuration file, or override its keys."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-c", "--config-file", default=[], action="append")
    parser.add_argument("--rootdir", default=[], action="append")
    parser.add_argument("-o", "--override-ini", default=[], action="append")
    known = vars(parser.parse_known_args(arguments)[0])
    return [f"--{name.replace('_', '-')}={each}" for name, all_ in known.items() for each in all_]


def _place(config: pytest.Config) -> Place:
    root = Path(os.path.realpath(config.rootpath))
    try:
        settings, failure = options.read(config), ""
    except WarmstackError as error:
        settings, failure = Settings(), str(error)
    return Place(
        Project(path=str(root)),
        settings,
        failure,
        remarks=options.unknown(config),
        path=[str(each) for each in config.getini("pythonpath")],
        is_project=config.inipath is not None or any(any(root.glob(each)) for each in _MARKS),
        ini=config.inipath,
    )


# Its servers


def unchecked(runtime: str, error: WarmstackError) -> str:
    """Return the line about a *runtime* that could not be checked because of *error*."""
    why = " ".join(error.why.split())
    return f"could not check the runtime {runtime}: {error.what} ({why})"


def servers_of(project: Project, refused: list[str]) -> Iterator[tuple[OwnRuntime, ServerInfo]]:
    """Yield the servers of *project* with their runtimes; in each runtime, kept ones first.

    A line for each runtime that can't be checked is added to *refused*.
    """
    for runtime, listed in cleanup.reachable(
        lambda name, error: refused.append(f"{name}: {error.line}")
    ):
        own = [found for found in listed if found.path == project.path]
        own.sort(key=lambda found: (not found.running, not found.kept, -found.since))
        yield from ((runtime, found) for found in own)


_TITLES: Final = {Service.POSTGRES: "PostgreSQL", Service.REDIS: "Redis"}


def title(found: ServerInfo) -> str:
    """Return the title of a server's service."""
    return _TITLES[Service(found.service)] if found.service else found.kind


def name(found: ServerInfo) -> str:
    """Return the server's name for the lines that the command prints."""
    return f"{found.service or found.kind} {found.name} ({found.runtime})"
