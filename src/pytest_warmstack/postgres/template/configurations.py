"""Finds the Alembic configuration of a test: the one in the settings, or else the nearest one."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from pytest_warmstack.options import NONE, Settings, is_attribute

MAX_ENTRIES: Final = 20_000
"""How many files and folders below the root are searched if no test is near a configuration."""

_SKIPPED: Final = {"node_modules", "site-packages", "__pycache__"}
"""Folders with many files, but without files of the project."""

_INI: Final = "alembic.ini"
_TOML: Final = "pyproject.toml"

_OTHER_INI: Final = r"(?!alembic\.ini$).*alembic.*\.ini"
"""Matches the names of files that users pass to `alembic -c`."""


class Configuration(NamedTuple):
    """An alembic.ini, a pyproject.toml, or both; or a function, as `package.module:function`.

    *name* is the path from the root, for users. *folder* is the folder in which Alembic must run.
    *section* and *x* replace the settings `alembic_section` and `alembic_x`. *alone* leaves out the
    schema, the seed and custom layers, which are for the databases of `db_url`.
    """

    name: str
    folder: Path
    ini: Path | None = None
    toml: Path | None = None
    function: str = ""
    section: str = ""
    x: tuple[str, ...] = ()
    alone: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether it stands for a database without migrations."""
        return not (self.ini or self.toml or self.function)

    @property
    def is_further(self) -> bool:
        """Whether it is for further databases only."""
        return self.alone or self.is_empty


EMPTY: Final = Configuration("an empty database", Path(), alone=True)


class Configurations:
    """The Alembic configurations of a project. Each folder is searched once.

    *root* is pytest's rootdir, *ini* is pytest's configuration file, if there is one.
    """

    def __init__(self, settings: Settings, root: Path, ini: Path | None = None) -> None:
        self._settings = settings
        self._root = root
        folders = [] if ini is None else [Path(os.path.realpath(ini.parent))]
        self._last_folders = list(dict.fromkeys([*folders, root]))
        self._by_folder: dict[Path, Configuration | None] = {}

    def of(self, folder: Path) -> Configuration | None:
        """Return the configuration for the tests in *folder*; None without one, or for `none`.

        Raises `TemplateFailed` if a file in the settings does not exist, or a pyproject.toml can't
        be read.
        """
        if self._settings.alembic == NONE:
            return None
        if named := self._settings.alembic:
            return self._named(named, self._settings.sources.get("alembic", "settings"))
        return self._nearest(folder)

    def named(self, name: str) -> Configuration:
        """Return the configuration for `db_factory`: a file, a function, or that of a folder.

        Raises `TemplateFailed` if it does not exist, or can't be read.
        """
        folders = [each / name for each in self._last_folders if (each / name).is_dir()]
        return next(filter(None, map(self._in, folders)), None) or self._named(name, "")

    def all(self) -> list[Configuration]:
        """Return the root's configuration, or else those below it. Raises the errors of `of`."""
        found = self.of(self._root)
        if found is not None or self._settings.alembic == NONE:
            return [found] if found else []
        return self.below()

    def below(self) -> list[Configuration]:
        """Return the configurations below the root, level by level, within `MAX_ENTRIES`."""
        folders = (folder for folder, _ in _folders(self._root, {_INI, _TOML}.__contains__))
        found = (self._in(folder) for folder in folders if folder != self._root)
        return [each for each in found if each is not None]

    def named_otherwise(self) -> list[str]:
        """Return the files such as alembic_prod.ini, as paths from the root."""
        return [
            os.path.relpath(folder / name, self._root)
            for folder, names in _folders(self._root, partial(re.fullmatch, _OTHER_INI))
            for name in names
        ]

    def _nearest(self, folder: Path) -> Configuration | None:
        """Return the nearest one from *folder* up to the root, else that of the last folders."""
        if not folder.is_relative_to(self._root):
            folder = Path(os.path.realpath(folder))
        # For tests outside the root, stop at the folder that contains both.
        top = Path(os.path.commonpath([folder, self._root]))
        above = [each for each in (folder, *folder.parents) if each.is_relative_to(top)]
        return next(filter(None, map(self._in, [*above, *self._last_folders])), None)

    def _named(self, named: str, source: str) -> Configuration:
        """Return the configuration that *named*, a file or a function, leads to.

        *source* says where the setting was found; it is empty for an argument of `db_factory`.
        """
        if is_attribute(named):
            return Configuration(named, self._root, function=named)
        base = next((each for each in self._last_folders if (each / named).is_file()), None)
        if base is None:
            from pytest_warmstack.postgres.template.errors import TemplateFailed

            path = self._last_folders[0] / named
            raise TemplateFailed.no_file(layer="alembic", file=str(path), source=source)
        path = base / named
        ini, toml = path, base / _TOML
        if path.suffix == ".toml":
            ini, toml = path.with_name(_INI), path
        if path == toml and not _has_table(path):
            raise _bad_alembic(path, "it has no table [tool.alembic]")
        found = self._read(base, ini, toml)
        assert found is not None  # noqa: S101 - the file exists
        return found

    def _in(self, folder: Path) -> Configuration | None:
        if folder not in self._by_folder:
            self._by_folder[folder] = self._read(folder, folder / _INI, folder / _TOML)
        return self._by_folder[folder]

    def _read(self, folder: Path, ini: Path, toml: Path) -> Configuration | None:
        files = ini if ini.is_file() else None, toml if _has_table(toml) else None
        name = next((os.path.relpath(each, self._root) for each in files if each), None)
        return Configuration(name, folder, *files) if name else None


def _has_table(toml: Path) -> bool:
    """Return whether *toml* has a table for Alembic; raise `TemplateFailed` if it can't be read."""
    if not toml.is_file():
        return False
    import tomllib  # Most projects have such a file, but not all.

    try:
        tables: dict[str, Any] = tomllib.loads(toml.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _bad_alembic(toml, str(error)) from error
    return "alembic" in tables.get("tool", {})


def _bad_alembic(path: Path, cause: str) -> Exception:
    from pytest_warmstack.postgres.template.errors import Failure, TemplateFailed

    return TemplateFailed.bad_alembic(Failure(cause), config=str(path))


def _folders(root: Path, is_wanted: Callable[[str], object]) -> Iterator[tuple[Path, list[str]]]:
    """Yield *root* and the folders below it, level by level, if they have wanted files."""
    level, left = [root], MAX_ENTRIES
    while level:
        deeper: list[Path] = []
        for folder in level:
            try:
                entries = sorted(os.scandir(folder), key=lambda each: each.name)
            except OSError:
                continue
            left -= len(entries)
            if left < 0:
                return
            names = [each.name for each in entries]
            if "pyvenv.cfg" in names:
                continue
            if found := [*filter(is_wanted, names)]:
                yield folder, found
            deeper += [
                folder / each.name
                for each in entries
                if each.name not in _SKIPPED
                and not each.name.startswith(".")
                and each.is_dir(follow_symlinks=False)
            ]
        level = deeper
