"""What the project's code reads while it builds: modules, files, folders, packages.

Three sources. `__import__` and `importlib.import_module` are wrapped, since a module that was
imported before is imported again without a trace, and is needed all the same. Python's audit
hooks tell of every file that is opened and every folder that is listed. `os.stat` is wrapped for
those who only look whether there is one.
"""

from __future__ import annotations

import builtins
import fnmatch
import importlib
import importlib.util
import os
import sys
import tempfile
import time
from collections import defaultdict
from functools import cache, lru_cache
from importlib.machinery import SourceFileLoader
from types import FrameType, ModuleType
from typing import Any

from pytest_warmstack.postgres.template.dependencies import (
    SITE,
    STDLIB,
    FileState,
    distribution,
    place,
)

_OURS = os.path.abspath(os.path.join(__file__, *[os.pardir] * 4))  # noqa: PTH100, PTH118
"""The folder of this package, whose modules are no part of a project."""

_SYSTEM = ("/dev/", "/proc/", "/sys/", "/etc/", "/usr/", "/run/", "/var/run/", "/System/")
"""Where files lie that are the machine's, and no part of a project."""

_READERS = ("linecache", "tokenize", "importlib.metadata")
"""Parts of Python that read code to show it, or look for what is installed."""


_IMPORTS = "<importlib._bootstrap, recorded>"
"""The name of the code that imports and records it."""

_stat = os.stat
"""Ours, which is not noted."""


class Recorder:
    """Writes down who read what.

    A module's needs are those of all that it imports, however deep. What is read while a link of
    the chain runs is that link's. `env` is the path of env.py, which reads for nobody.
    """

    def __init__(self, root: str, ignore: list[str], guard: Any) -> None:
        self._root = real(root)
        self._ignore = ignore
        self._guard = guard
        self._file_state = FileState(self._root)
        # Linux dates files by a clock that ticks every few milliseconds.
        self._began = time.time() - 0.01
        self._imports: defaultdict[str, set[str]] = defaultdict(set)
        self._packages: defaultdict[str, set[str]] = defaultdict(set)
        self._reads: defaultdict[str, set[str]] = defaultdict(set)
        self._written: set[str] = set()
        self._sources: set[str] = set()
        self._link = ""
        self.env = ""
        self._is_project = lru_cache(maxsize=None)(self._find_whether_project)
        self._key = lru_cache(maxsize=None)(self._make_key)

    def install(self) -> None:
        """Begin to write down."""
        original, by_name = builtins.__import__, importlib.import_module

        def import_(
            name: str,
            globals: Any = None,
            locals: Any = None,
            fromlist: Any = (),
            level: int = 0,
        ) -> ModuleType:
            importer = globals.get("__file__") if globals else None
            whole = _absolute(name, globals, level) if level and globals else name
            try:
                module = original(name, globals, locals, fromlist, level)
            except ImportError:
                self._note_missing(importer, whole, fromlist or ())
                raise
            self._note_import(importer, whole, fromlist or ())
            return module

        def import_module(name: str, package: str | None = None) -> ModuleType:
            module = by_name(name, package)
            self._note_import(None, module.__name__, ())
            return module

        def look(path: Any, *args: Any, **kwargs: Any) -> os.stat_result:
            self._note_look(path)
            return _stat(path, *args, **kwargs)

        path_stats = SourceFileLoader.path_stats

        def dates(loader: SourceFileLoader, path: str) -> Any:
            if self._is_project(path) and _is_edited(path):
                raise OSError(f"the compiled {path} may be of another text")
            return path_stats(loader, path)

        SourceFileLoader.path_stats = dates  # type: ignore[method-assign,assignment]
        # A warning is shown at the line that imports: `warnings.warn` leaves out what it takes for
        # the import system (its `_is_internal_frame`).
        import_.__code__ = import_.__code__.replace(co_filename=_IMPORTS)
        builtins.__import__ = import_
        importlib.import_module = import_module
        os.stat = look
        for able in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
            able |= {look} if _stat in able else set()
        sys.addaudithook(self._audit_hook)

    def take_sources(self, paths: list[str]) -> dict[str, str]:
        """Return the keys of revision files by their paths, looked at before they are loaded."""
        self._sources |= {real(path) for path in paths}
        keys = {path: self.key("file", path) for path in paths}
        for key in keys.values():
            self._file_state.digest(key)
        return keys

    def key(self, kind: str, path: str) -> str:
        """Return the key of a file or folder."""
        return self._key(kind, path)

    def _make_key(self, kind: str, path: str) -> str:
        # By the name that was used, where that is in the project: a link may lead elsewhere later.
        name = os.path.abspath(path)  # noqa: PTH100
        inside = name.startswith(self._root + os.sep)
        return f"{kind}:{place(name if inside else real(path), self._root)}"

    def is_ignored(self, name: str) -> bool:
        """Tell whether the file called *name* is left out; `data/` names all that is below it."""
        patterns = (f"{each}*" if each.endswith("/") else each for each in self._ignore)
        return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)

    def digests(self, keys: set[str], *, own: str = "") -> dict[str, str]:
        """Return the digests of *keys*, without those that are to be left out; *own* never is."""
        left = {key for key in keys if not self.is_ignored(key.partition(":")[2])} | (
            {own} if own else set()
        )
        return {key: self._stable(key) for key in sorted(left)}

    def link(self, name: str) -> None:
        """Tell which link of the chain runs from now on; none when *name* is empty."""
        self._link = name

    def needs(self, path: str, link: str = "") -> set[str]:
        """Return the keys of what the module at *path* needed, and what *link* read as it ran."""
        return self.needs_of(self.modules(path), link)

    def needs_of(self, modules: set[str], link: str = "") -> set[str]:
        """Return the keys of *modules* and of what they, and *link*, read."""
        keys = {self.key("file", each) for each in modules}
        for each in modules:
            keys |= self._reads[each]
            keys |= {f"package:{name}" for name in _distributions(frozenset(self._packages[each]))}
        return keys | self._reads[f"link:{link}"]

    def modules(self, path: str) -> set[str]:
        """Return the files of the module at *path* and of all project modules that it imported."""
        found: set[str] = set()
        ahead = [real(path)]
        while ahead:
            each = ahead.pop()
            if each not in found and (
                not found or not self.is_ignored(self.key("file", each).partition(":")[2])
            ):
                found.add(each)
                ahead += self._imports[each]
        return found

    def modules_of(self, name: str) -> set[str]:
        """Return the files of the module called *name*, its packages', and of what they import."""
        found: set[str] = set()
        while name:
            file = getattr(sys.modules.get(name), "__file__", None)
            found |= self.modules(file) if file else set()
            name = name.rpartition(".")[0]
        return found

    def version(self, path: str) -> set[str]:
        """Return the key of the installed distribution that *path* lies in, if there is one."""
        for site in SITE:
            if path.startswith(site + os.sep):
                top = os.path.relpath(path, site).partition(os.sep)[0]
                return {f"package:{name}" for name in _distributions(frozenset({top}))}
        return set()

    def _stable(self, key: str) -> str:
        """Return the digest of *key*; one that never fits for a file that changed meanwhile."""
        kind, _, name = key.partition(":")
        if kind == "file":
            try:
                changed = _stat(self._file_state.path(name)).st_mtime
                # A date in the future is a clock that goes wrong, and no change.
                if self._began < changed <= time.time():
                    return "changed while it was read"
            except OSError:
                pass
        return self._file_state.digest(key)

    def _find_whether_project(self, path: str) -> bool:
        """Tell whether the code at *path* is the project's: not a library's, Python's or ours."""
        if path.startswith("<") or not path:
            return False
        foreign = (*SITE, *STDLIB, real(_OURS))
        return not any(real(path).startswith(each + os.sep) for each in foreign)

    def _note_import(self, importer: str | None, name: str, fromlist: Any) -> None:
        if name.startswith(("asyncpg", "psycopg")):
            self._guard.watch()
        names = [name, *(f"{name}.{each}" for each in fromlist)]
        parent = name.rpartition(".")[0]
        while parent:
            names.append(parent)
            parent = parent.rpartition(".")[0]
        own: list[str] = []
        others: set[str] = set()
        for each in names:
            file = getattr(sys.modules.get(each), "__file__", None)
            if isinstance(file, str):
                if self._is_project(file):
                    own.append(real(file))
                else:
                    others.add(each.partition(".")[0])
        if importer is None or not self._is_project(importer):
            if not own:
                return
            importer = self._nearest(sys._getframe(2))  # noqa: SLF001 - the import statement's
        if importer is None:
            return
        importer = real(importer)
        self._imports[importer].update(each for each in own if each != importer)
        self._packages[importer] |= others - sys.stdlib_module_names

    def _note_missing(self, importer: str | None, name: str, fromlist: Any) -> None:
        """Note where a module would be that was looked for in vain: it may appear."""
        if importer is None or not self._is_project(importer):
            return
        for each in (name, *(f"{name}.{part}" for part in fromlist)):
            package, _, last = each.rpartition(".")
            folders = getattr(sys.modules.get(package), "__path__", ()) if package else sys.path
            for folder in folders:
                stem = os.path.abspath(os.path.join(folder, last))  # noqa: PTH100, PTH118
                for path in (f"{stem}.py", f"{stem}/__init__.py"):
                    if each not in sys.modules and self._is_data(path, "file"):
                        self._reads[real(importer)].add(self.key("there", path))

    def _note_look(self, path: Any) -> None:
        """Note that somebody looks whether there is a file, which opens none."""
        if not isinstance(path, (str, os.PathLike)):
            return
        frame = sys._getframe(2)  # noqa: SLF001 - whoever looks
        if _is_reader(frame) or (reader := self._reader(frame)) is None:
            return
        name = os.path.abspath(os.fsdecode(path))  # noqa: PTH100
        if name not in self._written and self._is_data(name, "file"):
            self._reads[reader].add(self.key("there", name))

    def _nearest(self, frame: FrameType | None) -> str | None:
        """Return the file of the innermost frame that is the project's."""
        while frame is not None:
            if self._is_project(frame.f_code.co_filename):
                return frame.f_code.co_filename
            frame = frame.f_back
        return None

    def _audit_hook(self, event: str, args: tuple[Any, ...]) -> None:
        """Note a file that is opened, or a folder that is listed; Python tells before it does."""
        if event == "exec":
            self._note_execution(getattr(args[0], "co_filename", ""))
            return
        if event == "open":
            path, mode, flags = args
            kind = "file"
            writes = flags & (os.O_WRONLY | os.O_RDWR) if mode is None else set(mode) & set("wax+")
        elif event in {"os.listdir", "os.scandir"}:
            path, kind, writes = args[0], "folder", False
        else:
            return
        if not isinstance(path, (str, bytes, os.PathLike)):
            if path is not None or kind == "file":
                return  # A descriptor: it was opened by its name before.
            path = "."
        frame = sys._getframe(1)  # noqa: SLF001 - whoever opens it
        if _is_reader(frame) or (_is_import(frame) and _is_code(path, kind)):
            return
        if (reader := self._reader(frame)) is None:
            return
        name = os.path.abspath(os.fsdecode(path))  # noqa: PTH100
        if writes:
            self._written.add(name)
        elif name not in self._written and self._is_data(name, kind):
            self._reads[reader].add(self.key(kind, name))

    def _note_execution(self, file: str) -> None:
        """Note a file of code that is loaded, also by those who do without an import."""
        if self._is_project(file):
            importer = self._nearest(sys._getframe(2))  # noqa: SLF001 - whoever loads it
            if importer is not None and real(importer) != real(file):
                self._imports[real(importer)].add(real(file))

    def _reader(self, frame: FrameType | None) -> str | None:
        """Return who reads: a module that is being imported, a revision, the link that runs.

        Nobody when it is env.py or what it called: those are no dependencies.
        """
        while frame is not None:
            file = frame.f_code.co_filename
            if self._is_project(file):
                path = real(file)
                if frame.f_code.co_name == "<module>":
                    # env.py is at work all the time: what runs below it decides.
                    return path if path != self.env else self._running()
                if path in self._sources:
                    return self._running() or path
            frame = frame.f_back
        return self._running()

    def _running(self) -> str | None:
        return f"link:{self._link}" if self._link else None

    def _is_data(self, name: str, kind: str) -> bool:
        """Tell whether a file that was read is the project's: none of Python's or the machine's."""
        path = f"{real(name)}/"
        if any(path.startswith(each + os.sep) for each in (*SITE, *STDLIB)):
            return False
        if path.startswith(self._root + os.sep):
            # Git's, pytest's and Python's own folders change all the time.
            folders = path[len(self._root) + 1 :].split("/")[: -2 if kind == "file" else -1]
            return not any(each.startswith(".") or each == "__pycache__" for each in folders)
        home = os.path.expanduser("~")  # noqa: PTH111
        elsewhere = (*_SYSTEM, os.path.realpath(tempfile.gettempdir()) + os.sep, f"{home}/.")
        return not path.startswith(elsewhere)


@cache
def real(path: str) -> str:
    """Return the path of a file without links; asked for the same ones thousands of times."""
    return os.path.realpath(path)


def _is_edited(path: str) -> bool:
    """Tell whether a file was written after it was compiled.

    Python compares whole seconds and sizes only, and would run what stood there before.
    """
    try:
        compiled = _stat(importlib.util.cache_from_source(path))
        return _stat(path).st_mtime_ns >= compiled.st_mtime_ns
    except (OSError, NotImplementedError):
        return False


def _is_import(frame: FrameType) -> bool:
    """Tell whether a frame belongs to the import system, which reads data files as well."""
    return frame.f_code.co_filename.startswith("<frozen importlib")


def _is_code(path: Any, kind: str) -> bool:
    """Tell whether the import system looks for code: that is known as a module."""
    return kind == "folder" or os.fsdecode(path).endswith((".py", ".pyc", ".so", ".zip", ".egg"))


def _is_reader(frame: FrameType) -> bool:
    """Tell whether a frame belongs to a part of Python that reads code."""
    return str(frame.f_globals.get("__name__", "")).startswith(_READERS)


def _absolute(name: str, importing: dict[str, Any], level: int) -> str:
    """Return the whole name of a module that is imported relatively."""
    package = importing.get("__package__") or importing.get("__name__", "").rpartition(".")[0]
    try:
        return importlib.util.resolve_name("." * level + name, package)
    except ImportError:
        return name


@cache
def _by_module() -> dict[str, list[str]]:
    from importlib.metadata import packages_distributions

    return dict(packages_distributions())


def _distributions(modules: frozenset[str]) -> set[str]:
    """Return the distributions that brought *modules*.

    Alembic and SQLAlchemy always count; then the list of all that is installed, which takes long,
    is not needed.
    """
    plain = {"alembic", "sqlalchemy"}
    found = set(modules & plain)
    if others := modules - plain:
        for module in others:
            found |= {distribution(each) for each in _by_module().get(module, ())}
    return found
