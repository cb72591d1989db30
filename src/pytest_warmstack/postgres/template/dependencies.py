"""What a build read, as keys with digests, and whether it is still the same: from files alone.

A key is a kind and a name, such as `file:migrations/versions/0001_users.py`. Names of files begin
at the project's root, or at the folder of installed packages, so that another checkout of the same
files has the same keys.
"""

from __future__ import annotations

import glob
import json
import os
import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from pytest_warmstack.postgres.template.record import CONFIG, DDL
from pytest_warmstack.servers.identity import fingerprint

if TYPE_CHECKING:
    from configparser import RawConfigParser

ABSENT: Final = ""
"""The digest of what is not there."""


def _folders(*names: str) -> tuple[str, ...]:
    """Return folders of Python's, by the names that they have, and where links lead to."""
    found = [sysconfig.get_path(name) for name in names]
    return tuple(dict.fromkeys([*found, *map(os.path.realpath, found)]))


SITE: Final = _folders("purelib", "platlib")
"""The folders of installed packages."""

STDLIB: Final = _folders("stdlib", "platstdlib")
"""The folders of Python's own library."""

_SITE_MARK: Final = "<site>/"

_LOGGING: Final = re.compile(r"loggers|handlers|formatters|(logger|handler|formatter)_.*")
_UNRELATED_SECTIONS: Final = {"post_write_hooks"}
_UNRELATED: Final = {
    # The URL is always replaced; the rest matters to `alembic revision` only.
    "sqlalchemy.url",
    "file_template",
    "timezone",
    "truncate_slug_length",
    "revision_environment",
    "output_encoding",
    "post_write_hooks",
}


def place(path: str, root: str) -> str:
    """Return the name of a file or folder, for a key: from *root*, or from the packages' folder.

    >>> place("/srv/shop/sql/a.sql", "/srv/shop")
    'sql/a.sql'
    """
    for site in SITE:
        if path.startswith(site + os.sep):
            return _SITE_MARK + os.path.relpath(path, site)
    return os.path.relpath(path, root)


class FileState:
    """The present state of what builds may have read; everything is looked at once."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._digests: dict[str, str] = {}
        self._versions: dict[str, str] | None = None

    def digest(self, key: str) -> str:
        """Return the digest of what *key* names, `ABSENT` when it is not there."""
        if (digest := self._digests.get(key)) is None:
            kind, _, name = key.partition(":")
            digest = self._digests[key] = _DIGESTS[kind](self, name)
        return digest

    def same(self, key: str, digest: str) -> bool:
        """Tell whether what *key* names still has *digest*.

        Of a `MetaData` or a `Config` that is not known without its import: the files that it was
        made from tell.
        """
        if key.startswith((DDL, CONFIG)):
            return True
        if digest and key.startswith(("ini:", "toml:")):
            # The whole file is looked at first: on most runs it need not be parsed.
            whole, _, relevant = digest.partition("/")
            data = _read(self.path(key.partition(":")[2]))
            if data is not None and fingerprint(data) == whole:
                return True
            return self.digest(key).partition("/")[2] == relevant
        return self.digest(key) == digest

    def path(self, name: str) -> str:
        """Return the path that the name in a key stands for."""
        if name.startswith(_SITE_MARK):
            paths = [f"{site}/{name[len(_SITE_MARK) :]}" for site in SITE]
            return next((path for path in paths if os.path.lexists(path)), paths[0])
        return os.path.join(self._root, name)  # noqa: PTH118 - a thousand of them on a warm run

    def _file(self, name: str) -> str:
        data = _read(self.path(name))
        return ABSENT if data is None else fingerprint(data)

    def _there(self, name: str) -> str:
        path = self.path(name)
        if os.path.isdir(path):  # noqa: PTH112
            return "a folder"
        return "a file" if os.path.exists(path) else ABSENT  # noqa: PTH110

    def _folder(self, name: str) -> str:
        try:
            names = sorted(os.listdir(self.path(name)))  # noqa: PTH208 - names, and no objects
        except OSError:
            return ABSENT
        return fingerprint(*(each for each in names if not _is_passing(each)))

    def _scripts(self, name: str) -> str:
        folder = self.path(name)
        return fingerprint(*(path[len(folder) :] for path in python_files(folder)))

    def _glob(self, pattern: str) -> str:
        parts: list[str | bytes] = []
        for name in matching(pattern, self._root):
            data = _read(os.path.join(self._root, name))  # noqa: PTH118
            parts += [name, data or b""]
        return fingerprint(*parts) if parts else ABSENT

    def _ini(self, name: str) -> str:
        import configparser  # On most runs the file need not be parsed.

        data = _read(self.path(name))
        if data is None:
            return ABSENT
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(data.decode("utf-8"))
        except (configparser.Error, UnicodeDecodeError):
            return f"{fingerprint(data)}/"
        related = json.dumps(sections(parser), sort_keys=True)
        return f"{fingerprint(data)}/{fingerprint(related)}"

    def _toml(self, name: str) -> str:
        import tomllib  # On most runs the file need not be parsed.

        data = _read(self.path(name))
        if data is None:
            return ABSENT
        try:
            table = tomllib.loads(data.decode("utf-8")).get("tool", {}).get("alembic", {})
        except ValueError:
            return f"{fingerprint(data)}/"
        related = json.dumps(related_options(table), sort_keys=True, default=str)
        return f"{fingerprint(data)}/{fingerprint(related)}"

    def _package(self, name: str) -> str:
        if self._versions is None:
            self._versions = _installed()
        return self._versions.get(name, ABSENT)


_DIGESTS: Final = {
    "file": FileState._file,  # noqa: SLF001 - the table of its own methods
    "there": FileState._there,  # noqa: SLF001
    "folder": FileState._folder,  # noqa: SLF001
    "scripts": FileState._scripts,  # noqa: SLF001
    "glob": FileState._glob,  # noqa: SLF001
    "ini": FileState._ini,  # noqa: SLF001
    "toml": FileState._toml,  # noqa: SLF001
    "package": FileState._package,  # noqa: SLF001
}
"""How the digest of each kind of key is taken."""


def matching(pattern: str, root: str) -> list[str]:
    """Return the files that a line of `warmstack_depends` names: a path, a folder or a pattern."""
    found: set[str] = set()
    names = [pattern] if os.path.lexists(os.path.join(root, pattern)) else []  # noqa: PTH118
    for name in names or glob.glob(pattern, root_dir=root, recursive=True):  # noqa: PTH207
        path = os.path.join(root, name)  # noqa: PTH118
        if os.path.isdir(path):  # noqa: PTH112
            found.update(os.path.relpath(each, root) for each in _files(path))
        else:
            found.add(os.path.normpath(name))
    compiled = ("__pycache__", ".pyc")
    return sorted(each for each in found if not any(part in each for part in compiled))


def python_files(folder: str) -> Iterator[str]:
    """Yield the Python files below *folder*, in a stable order."""
    return (path for path in _files(folder) if path.endswith(".py"))


def sections(parser: RawConfigParser) -> dict[str, dict[str, Any]]:
    """Return the sections of an alembic.ini that may decide what a build gives, as they stand."""
    return {
        section: related_options(dict(parser.items(section, raw=True)))
        for section in (*parser.sections(), parser.default_section)
        if not _LOGGING.fullmatch(section) and section not in _UNRELATED_SECTIONS
    }


def related_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that may decide what a build gives."""
    return {key: value for key, value in options.items() if key not in _UNRELATED}


def distribution(name: str) -> str:
    """Return the name of a distribution in the form in which two of them can be compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _files(folder: str) -> Iterator[str]:
    """Yield the files below *folder* in a stable order, without compiled and hidden ones."""
    try:
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return
    for entry in ordered:
        if _is_passing(entry.name):
            continue
        if entry.is_dir():
            yield from _files(entry.path)
        else:
            yield entry.path


def _is_passing(name: str) -> bool:
    """Tell whether a name in a folder means nothing: Python and editors put their own there."""
    return name.startswith(".") or name == "__pycache__" or name.endswith(".pyc")


def _read(path: str) -> bytes | None:
    """Return what a file holds; None when it can't be read."""
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - a thousand on a warm run
            return file.read()
    except OSError:
        return None


def _installed() -> dict[str, str]:
    """Return the version of every distribution that is installed.

    Read off the names of their folders (PyPA, "Recording installed projects"): a look into each
    of them takes milliseconds that a warm run would pay.
    """
    found: dict[str, str] = {}
    for entry in sys.path:
        try:
            names = os.listdir(entry or ".")  # noqa: PTH208 - names, and no objects
        except OSError:
            continue
        for name in names:
            if name.endswith((".dist-info", ".egg-info")):
                project, _, version = name.rpartition(".")[0].partition("-")
                # As in an import, what comes first on the path counts.
                found.setdefault(distribution(project), version.partition("-py")[0])
    return found
