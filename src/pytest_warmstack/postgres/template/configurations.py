"""Which Alembic configuration a test gets: the one that is named, else the nearest one."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from pytest_warmstack.postgres.template.errors import TemplateFailed
from pytest_warmstack.settings import NONE, Settings, is_attribute

ENTRIES: Final = 20_000
"""How many files and folders are looked at below the root, where no test's path leads to one."""

_SKIPPED: Final = {"node_modules", "site-packages", "__pycache__"}
"""Folders with many files, none of which is the project's own."""

_INI: Final = "alembic.ini"
_TOML: Final = "pyproject.toml"


_OTHERWISE: Final = re.compile(r"(?!alembic\.ini$).*alembic.*\.ini")
"""Names of configurations that `alembic` takes with `-c`."""


class Configuration(NamedTuple):
    """An alembic.ini, a pyproject.toml, or both; else a function, as `package.module:function`.

    *name* is what a reader calls it: its path from the root. *folder* is the current folder for
    which it is written.
    """

    name: str
    folder: Path
    ini: Path | None = None
    toml: Path | None = None
    function: str = ""


class Configurations:
    """The Alembic configurations of a project; each folder is looked at once.

    *root* is pytest's rootdir, *ini* the configuration file that pytest uses, if there is one.
    """

    def __init__(self, settings: Settings, root: Path, ini: Path | None = None) -> None:
        self._settings = settings
        self._root = root
        folders = [] if ini is None else [Path(os.path.realpath(ini.parent))]
        self._last = list(dict.fromkeys([*folders, root]))
        self._in: dict[Path, Configuration | None] = {}

    def of(self, folder: Path) -> Configuration | None:
        """Return the configuration for the tests in *folder*; None if there is none, or `none`.

        Raises `TemplateFailed` if the one that the settings name is not there, and if a
        pyproject.toml can't be read.
        """
        if self._settings.alembic == NONE:
            return None
        return self._named() if self._settings.alembic else self._search(folder)

    def all(self) -> list[Configuration]:
        """Return the one for the root, else those below it. Raises what `of` does."""
        found = self.of(self._root)
        if found is not None or self._settings.alembic == NONE:
            return [found] if found else []
        return self.below()

    def below(self) -> list[Configuration]:
        """Return those below the root, the nearest ones first, as far as `ENTRIES` reach."""
        folders = (folder for folder, _ in _folders(self._root, {_INI, _TOML}.__contains__))
        found = (self._at(folder) for folder in folders if folder != self._root)
        return [each for each in found if each is not None]

    def named_otherwise(self) -> list[str]:
        """Return the files such as alembic_prod.ini, by their paths from the root."""
        return [
            os.path.relpath(folder / name, self._root)
            for folder, names in _folders(self._root, _OTHERWISE.fullmatch)
            for name in names
        ]

    def _search(self, folder: Path) -> Configuration | None:
        """Return the nearest one from *folder* up to the root, else that of the last places."""
        if not folder.is_relative_to(self._root):
            folder = Path(os.path.realpath(folder))
        # Tests outside of the root: no further up than to what both have in common.
        top = Path(os.path.commonpath([folder, self._root]))
        above = [each for each in (folder, *folder.parents) if each.is_relative_to(top)]
        return next(filter(None, map(self._at, [*above, *self._last])), None)

    def _at(self, folder: Path) -> Configuration | None:
        """Return the one that lies in *folder*."""
        if folder not in self._in:
            self._in[folder] = self._made(folder, folder / _INI, folder / _TOML)
        return self._in[folder]

    def _named(self) -> Configuration | None:
        """Return the one that the settings name."""
        named = self._settings.alembic
        if is_attribute(named):
            return Configuration(named, self._root, function=named)
        base = next((each for each in self._last if (each / named).is_file()), None)
        if base is None:
            raise TemplateFailed.no_alembic(
                named=str(self._last[0] / named), source=self._settings.sources["alembic"]
            )
        path = base / named
        is_toml = path.suffix == ".toml"
        if is_toml and not _has_table(path):
            raise TemplateFailed.bad_alembic(
                config=str(path), cause="it has no table [tool.alembic]", output=""
            )
        ini, toml = (path.with_name(_INI), path) if is_toml else (path, base / _TOML)
        return self._made(base, ini, toml)

    def _made(self, folder: Path, ini: Path, toml: Path) -> Configuration | None:
        own = ini if ini.is_file() else None, toml if _has_table(toml) else None
        name = next((os.path.relpath(each, self._root) for each in own if each), None)
        return Configuration(name, folder, *own) if name else None


def _has_table(toml: Path) -> bool:
    """Tell whether *toml* has a table for Alembic; raise `TemplateFailed` if it can't be read."""
    if not toml.is_file():
        return False
    try:
        tables: dict[str, Any] = tomllib.loads(toml.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TemplateFailed.bad_alembic(config=str(toml), cause=str(error), output="") from error
    return "alembic" in tables.get("tool", {})


def _folders(root: Path, wanted: Callable[[str], object]) -> Iterator[tuple[Path, list[str]]]:
    """Yield *root* and the folders below that hold *wanted* files, with those, level by level."""
    level, left = [root], ENTRIES
    while level:
        deeper: list[Path] = []
        for folder in level:
            try:
                names = sorted(os.scandir(folder), key=lambda each: each.name)
            except OSError:
                continue
            left -= len(names)
            if left < 0:
                return
            files = [each.name for each in names]
            if "pyvenv.cfg" in files:
                continue
            if found := [each for each in files if wanted(each)]:
                yield folder, found
            deeper += [
                folder / each.name
                for each in names
                if each.name not in _SKIPPED
                and not each.name.startswith(".")
                and each.is_dir(follow_symlinks=False)
            ]
        level = deeper
