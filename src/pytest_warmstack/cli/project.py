"""The project that a command is about: its root and its settings, as pytest itself finds them."""

from __future__ import annotations

import argparse
import io
import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from pytest_warmstack import options
from pytest_warmstack.cli.errors import CommandFailed, NoProject
from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.options import Settings
from pytest_warmstack.servers.identity import Project
from pytest_warmstack.servers.model import ServerInfo

_ALONE: Final = (
    *("--disable-plugin-autoload", "--noconftest", "-p", "no:warnings", "-p", "no:cacheprovider"),
    *("-s", "-W", "ignore", "-p", "pytest_warmstack.plugin"),
    *(f"-o{name}=" for name in ("required_plugins", "filterwarnings", "minversion")),
)
"""How pytest reads its files with no code of the project, and no other plugin, in between."""

_MARKS: Final = ("alembic.ini", "setup.py", "conftest.py", "tests", "test")
"""What makes a folder without a configuration of pytest's a project; test files do, too."""


@dataclass(frozen=True)
class Place:
    """A project, its settings, and why these are the defaults, if they could not be read.

    *remarks* name settings that are mistyped; *path* is what `pythonpath` adds to where tests find
    modules; *ini* is the configuration file that pytest uses. *is_project* is false for a folder in
    which nothing speaks of tests.
    """

    project: Project
    settings: Settings
    trouble: str = ""
    remarks: Sequence[str] = ()
    path: Sequence[str] = ()
    is_project: bool = True
    ini: Path | None = None


def here(folder: Path) -> Place:
    """Return the project that *folder* belongs to.

    Only its files are read: a command works where a plugin or a conftest file does not, or warns.
    Raises `CommandFailed` when there is no such folder.
    """
    if not folder.is_dir():
        raise CommandFailed.no_folder(folder=str(folder))
    said = io.StringIO()
    with inside(folder), redirect_stdout(said), redirect_stderr(said), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _place(_config())
        except (Exception, SystemExit) as error:
            said.write(str(error) or type(error).__name__)
        project = Project(path=os.path.realpath(Path.cwd()))
    return Place(project, Settings(), said.getvalue().strip())


def _config() -> pytest.Config:
    """Return pytest's configuration, with the options in `addopts` and in PYTEST_ADDOPTS.

    Options of plugins are passed over there, since no plugin is loaded.
    """
    given = shlex.split(os.environ.get("PYTEST_ADDOPTS", ""))
    loaded = os.environ.pop("PYTEST_PLUGINS", None)
    try:
        config = pytest.Config.fromdictargs({}, [*_ALONE, *_files(given)])
    finally:
        if loaded is not None:
            os.environ["PYTEST_PLUGINS"] = loaded
    added = [*config.getini("addopts"), *given]
    options.refuse_unknown(added)
    # pytest has no public name for either.
    config._parser.parse_known_args(added, namespace=config.option)  # noqa: SLF001
    config._ensure_unconfigure()  # noqa: SLF001
    return config


def _files(arguments: Sequence[str]) -> list[str]:
    """Return those of *arguments* that tell which files pytest reads, and what stands in them."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-c", "--config-file", default=[], action="append")
    parser.add_argument("--rootdir", default=[], action="append")
    parser.add_argument("-o", "--override-ini", default=[], action="append")
    known = vars(parser.parse_known_args(arguments)[0])
    return [
        f"--{name.replace('_', '-')}={value}" for name, values in known.items() for value in values
    ]


def _place(config: pytest.Config) -> Place:
    root = Path(os.path.realpath(config.rootpath))
    project = Project(path=str(root))
    is_project = (
        config.inipath is not None
        or any((root / name).exists() for name in _MARKS)
        or any(each for pattern in ("test_*.py", "*_test.py") for each in root.glob(pattern))
    )
    remarks = options.unknown(config)
    try:
        settings, trouble = options.read(config), ""
    except WarmstackError as error:
        settings, trouble = Settings(), str(error)
    path = [str(each) for each in config.getini("pythonpath")]
    return Place(project, settings, trouble, remarks, path, is_project, config.inipath)


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Be in *folder* for as long as this lasts."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def known(place: Place) -> Place:
    """Return *place* after the user was told what is wrong with its settings, if anything is."""
    if place.trouble:
        print(f"the project's settings can't be read:\n{place.trouble}", file=sys.stderr)
    return place


def needed(folder: Path) -> Place:
    """Return the project that *folder* belongs to; raise `NoProject` if it belongs to none."""
    place = here(folder)
    if not place.is_project:
        raise NoProject.here(folder=place.project.path)
    return known(place)


def owned(listed: Sequence[ServerInfo], project: Project) -> list[ServerInfo]:
    """Return those of *listed* that belong to *project*, a kept one before others."""
    own = [found for found in listed if found.path == project.path]
    return sorted(own, key=lambda found: (not found.running, not found.kept, -found.since))
