"""The dependencies of a build, as keys with digests, and whether they have changed.

A key is a kind and a name, such as `file:migrations/versions/0001_users.py`. Names of files are
relative to the project's root or to the folder of installed packages, so another checkout of the
same files has the same keys. This module only looks at files: it runs no code of the project.
"""

from __future__ import annotations

import functools
import glob
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from pytest_warmstack import originals
from pytest_warmstack.postgres.template.record import CONFIG, DDL
from pytest_warmstack.servers.identity import fingerprint

if TYPE_CHECKING:
    from configparser import RawConfigParser

ABSENT: Final = ""
"""The digest of a file or another item that does not exist."""


def _python_folders(*names: str) -> tuple[str, ...]:
    """Return the folders that sysconfig calls *names*, and their real paths."""
    import sysconfig  # It takes 2 ms, and most warm runs have no use for it.

    found = [sysconfig.get_path(name) for name in names]
    return tuple(dict.fromkeys([*found, *map(os.path.realpath, found)]))


@functools.cache
def site() -> tuple[str, ...]:
    """Return the folders of installed packages."""
    return _python_folders("purelib", "platlib")


@functools.cache
def stdlib() -> tuple[str, ...]:
    """Return the folders of Python's standard library."""
    return _python_folders("stdlib", "platstdlib")


_SITE_PREFIX: Final = "<site>/"

_SETTLE_TIME: Final = 2.0
"""Seconds after which a file's next change has another time, on every file system."""

_UNRELATED_SECTIONS: Final = (
    r"loggers|handlers|formatters|(logger|handler|formatter)_.*|post_write_hooks"
)
_UNRELATED_OPTIONS: Final = {
    # The URL is always replaced; the others only affect `alembic revision`.
    "sqlalchemy.url",
    "file_template",
    "timezone",
    "truncate_slug_length",
    "revision_environment",
    "output_encoding",
    "post_write_hooks",
}


def place(path: str, root: str) -> str:
    """Return the name of a file or folder in a key: relative to *root* or to installed packages.

    >>> place("/srv/shop/sql/a.sql", "/srv/shop")
    'sql/a.sql'
    """
    for folder in site():
        if path.startswith(folder + os.sep):
            return _SITE_PREFIX + os.path.relpath(path, folder)
    return os.path.relpath(path, root)


class FileState:
    """The current state of everything that builds may have read. Each item is read once.

    With *is_early*, `seen` has what another state needs as *earlier*, so that it reads only those
    files again that may have changed since, by the kernel's time of their last change.
    """

    def __init__(
        self, root: str, *, is_early: bool = False, earlier: FileState | None = None
    ) -> None:
        self._root = root
        self._digests: dict[str, str] = {}
        self._versions: dict[str, str] | None = None
        self._is_early = is_early
        self._earlier = earlier.seen if earlier else {}
        self._settled = int((originals.now() - _SETTLE_TIME) * 1e9)
        self.seen: dict[str, tuple[tuple[int, ...], str]] = {}

    def digest(self, key: str) -> str:
        """Return the digest of what *key* names, or `ABSENT` if that does not exist."""
        if (digest := self._digests.get(key)) is None:
            kind, _, name = key.partition(":")
            compute: Callable[[str], str] = getattr(self, f"_{kind}_digest")
            digest = self._digests[key] = compute(name)
        return digest

    def same(self, key: str, digest: str) -> bool:
        """Return whether what *key* names still has *digest*.

        This is always true for a `MetaData` or a `Config`: checking them would require an import,
        and the files that they are made from have their own keys.
        """
        kind, _, name = key.partition(":")
        if key.startswith((DDL, CONFIG)):
            return True
        if digest and kind in {"ini", "toml"}:
            # Compare the whole file first, so that most runs don't parse it.
            whole, _, related = digest.partition("/")
            data = _read(self.path(name))
            if data is not None and fingerprint(data) == whole:
                return True
            return self.digest(key).partition("/")[2] == related
        return self.digest(key) == digest

    def holds(self, needs: Mapping[str, str]) -> bool:
        """Return whether everything in *needs* still has its digest."""
        return all(self.same(key, digest) for key, digest in needs.items())

    def path(self, name: str) -> str:
        """Return the path for the *name* in a key."""
        if name.startswith(_SITE_PREFIX):
            paths = [f"{folder}/{name[len(_SITE_PREFIX) :]}" for folder in site()]
            return next((path for path in paths if os.path.lexists(path)), paths[0])
        return os.path.join(self._root, name)  # noqa: PTH118 - a thousand times on a warm run

    def _file_digest(self, name: str) -> str:
        path, stamp = self.path(name), None
        if self._is_early or name in self._earlier:
            stamp = _stamp(path)
            if name in self._earlier and self._earlier[name][0] == stamp:
                return self._earlier[name][1]
        data = _read(path)
        digest = ABSENT if data is None else fingerprint(data)
        if stamp and 0 < stamp[0] < self._settled:
            self.seen[name] = stamp, digest
        return digest

    def _there_digest(self, name: str) -> str:
        path = self.path(name)
        if os.path.isdir(path):  # noqa: PTH112
            return "a folder"
        return "a file" if os.path.exists(path) else ABSENT  # noqa: PTH110

    def _folder_digest(self, name: str) -> str:
        try:
            names = sorted(os.listdir(self.path(name)))  # noqa: PTH208 - names, not objects
        except OSError:
            return ABSENT
        return fingerprint(*(each for each in names if not _is_ignored(each)))

    def _scripts_digest(self, name: str) -> str:
        folder = self.path(name)
        return fingerprint(*(path[len(folder) :] for path in python_files(folder)))

    def _glob_digest(self, pattern: str) -> str:
        parts: list[str | bytes] = []
        for name in matching(pattern, self._root):
            data = _read(os.path.join(self._root, name))  # noqa: PTH118
            parts += [name, data or b""]
        return fingerprint(*parts) if parts else ABSENT

    def _ini_digest(self, name: str) -> str:
        import configparser  # Most runs need not parse the file.

        def parse(text: str) -> object:
            parser = configparser.RawConfigParser()
            parser.read_string(text)
            return sections(parser)

        return self._parsed_digest(name, parse, configparser.Error)

    def _toml_digest(self, name: str) -> str:
        import tomllib  # Most runs need not parse the file.

        def parse(text: str) -> object:
            return related_options(tomllib.loads(text).get("tool", {}).get("alembic", {}))

        return self._parsed_digest(name, parse, tomllib.TOMLDecodeError)

    def _parsed_digest(
        self, name: str, parse: Callable[[str], object], failure: type[Exception]
    ) -> str:
        """Return the digests of a whole file and of what *parse* returns, separated by a slash."""
        data = _read(self.path(name))
        if data is None:
            return ABSENT
        try:
            related = json.dumps(parse(data.decode()), sort_keys=True, default=str)
        except (UnicodeDecodeError, failure):
            return f"{fingerprint(data)}/"
        return f"{fingerprint(data)}/{fingerprint(related)}"

    def _package_digest(self, name: str) -> str:
        if self._versions is None:
            self._versions = _installed()
        return self._versions.get(name, ABSENT)


def matching(pattern: str, root: str) -> list[str]:
    """Return the files for a line of `warmstack_depends`: a path, a folder or a pattern."""
    found: set[str] = set()
    names = [pattern] if os.path.lexists(os.path.join(root, pattern)) else []  # noqa: PTH118
    for name in names or glob.glob(pattern, root_dir=root, recursive=True):  # noqa: PTH207
        path = os.path.join(root, name)  # noqa: PTH118
        if os.path.isdir(path):  # noqa: PTH112
            found.update(os.path.relpath(each, root) for each in _files(path))
        else:
            found.add(os.path.normpath(name))
    return sorted(each for each in found if "__pycache__" not in each and ".pyc" not in each)


def python_files(folder: str) -> Iterator[str]:
    """Yield the Python files below *folder* in a stable order."""
    return (path for path in _files(folder) if path.endswith(".py"))


def sections(parser: RawConfigParser) -> dict[str, dict[str, Any]]:
    """Return the raw sections of an alembic.ini that may affect a build."""
    return {
        section: related_options(dict(parser.items(section, raw=True)))
        for section in (*parser.sections(), parser.default_section)
        if not re.fullmatch(_UNRELATED_SECTIONS, section)
    }


def related_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that may affect a build."""
    return {key: value for key, value in options.items() if key not in _UNRELATED_OPTIONS}


def distribution(name: str) -> str:
    """Return the *name* of a distribution in normalized form, to compare it with others."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _files(folder: str) -> Iterator[str]:
    """Yield the files below *folder* in a stable order, except compiled and hidden ones."""
    try:
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return
    for entry in ordered:
        if not _is_ignored(entry.name):
            yield from _files(entry.path) if entry.is_dir() else [entry.path]


def _is_ignored(name: str) -> bool:
    """Return whether Python or an editor puts files of this *name* into folders."""
    return name.startswith(".") or name == "__pycache__" or name.endswith(".pyc")


def _stamp(path: str) -> tuple[int, int, int, int]:
    """Return when a file was last changed, in nanoseconds, and what another file has different."""
    try:
        found = os.stat(path)  # noqa: PTH116 - a thousand times on a warm run
    except OSError:
        return 0, 0, 0, 0
    return found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev


def _read(path: str) -> bytes | None:
    """Return the contents of a file, or None if it can't be read."""
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - a thousand times on a warm run
            return file.read()
    except OSError:
        return None


def _installed() -> dict[str, str]:
    """Return the version of every installed distribution.

    The versions come from the names of folders (PyPA, "Recording installed projects"): reading the
    files in them would cost a warm run milliseconds.
    """
    found: dict[str, str] = {}
    for entry in sys.path:
        try:
            names = os.listdir(entry or ".")  # noqa: PTH208 - names, not objects
        except OSError:
            continue
        for name in names:
            if name.endswith((".dist-info", ".egg-info")):
                project, _, version = name.rpartition(".")[0].partition("-")
                # As in an import, the first one on the path counts.
                found.setdefault(distribution(project), version.partition("-py")[0])
    return found
