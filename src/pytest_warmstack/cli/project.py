"""The project that a command is about: its root and its settings, as pytest itself finds them."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from pytest_warmstack import options
from pytest_warmstack.errors import CommandFailed, WarmstackError
from pytest_warmstack.identity import Project
from pytest_warmstack.runtime.base import Found
from pytest_warmstack.settings import Settings

QUIET: Final = ("-W", "ignore::pytest.PytestAssertRewriteWarning")
"""What a run of pytest in this process needs: our own modules are imported already."""


@dataclass(frozen=True)
class Place:
    """A project, its settings, and why these are the defaults, if they could not be read."""

    project: Project
    settings: Settings
    trouble: str = ""


class _Reader:
    """A pytest plugin that takes the configuration, and ends the run before it begins."""

    def __init__(self) -> None:
        self.config: pytest.Config | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_cmdline_main(self, config: pytest.Config) -> int:
        """Take the configuration, as `pytest --version` and the like do."""
        self.config = config
        return int(pytest.ExitCode.OK)


def here(folder: Path) -> Place:
    """Return the project that *folder* belongs to.

    Its conftest files are only loaded where its own options need them: a command that is to help
    with a broken project may not break with it. Raises `CommandFailed` when there is no such
    folder.
    """
    if not folder.is_dir():
        raise CommandFailed.no_folder(folder=str(folder))
    with inside(folder):
        trouble = ""
        for arguments in (["--noconftest"], []):
            reader = _Reader()
            said = io.StringIO()
            with redirect_stdout(said), redirect_stderr(said):
                try:
                    pytest.main([*QUIET, *arguments], plugins=[reader])
                except Exception as error:
                    # A warning that the project turns into an error, or a plugin that fails.
                    said.write(f"{type(error).__name__}: {error}")
            if reader.config is not None:
                return _place(reader.config)
            trouble = trouble or said.getvalue().strip()
        return Place(Project(path=os.path.realpath(Path.cwd())), Settings(), trouble)


def _place(config: pytest.Config) -> Place:
    project = Project(path=os.path.realpath(config.rootpath))
    try:
        return Place(project, options.settings(config))
    except WarmstackError as error:
        return Place(project, Settings(), str(error))


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


def owned(listed: Sequence[Found], project: Project) -> list[Found]:
    """Return those of *listed* that belong to *project*, a kept one before others."""
    own = [found for found in listed if found.path == project.path]
    return sorted(own, key=lambda found: (not found.running, not found.kept, -found.since))
