"""Records what the project's code reads during a build: modules, files, folders, packages.

Python's audit hooks report each file that code opens and each folder that it lists. They don't
report the import of a module that is loaded already, although the importer depends on it, so
`__import__` and `importlib.import_module` are wrapped. `os.stat` is wrapped for code that only
checks whether a file exists.
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
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from functools import cache, lru_cache
from importlib.machinery import SourceFileLoader
from importlib.metadata import packages_distributions
from types import FrameType, ModuleType
from typing import Any, Final

from pytest_warmstack.postgres.template.dependencies import (
    FileState,
    distribution,
    place,
    site,
    stdlib,
)

_LIBRARIES: Final = tuple(f"{each}{os.sep}" for each in (*site(), *stdlib()))
_PACKAGE: Final = os.path.realpath(f"{os.path.dirname(__file__)}/../../..")  # noqa: PTH120
_SYSTEM: Final = ("/dev/", "/proc/", "/sys/", "/etc/", "/usr/", "/run/", "/var/run/", "/System/")
"""Folders whose files belong to the machine, not to a project."""

_CODE_READERS: Final = ("linecache", "tokenize", "importlib.metadata")
"""Modules of Python that read code to show it, or search for installed packages."""

_CODE_FILES: Final = (".py", ".pyc", ".so", ".zip", ".egg")

_IMPORT_CODE: Final = "<importlib._bootstrap, recorded>"
"""The file name of the wrapper of `__import__`."""

_stat = os.stat
"""The original, which records nothing."""


class Recorder:
    """Records which code reads what.

    A module depends on everything that its imports depend on, at any depth. What is read while a
    build step runs belongs to that step. `root` is the project's folder. `env` is the path of
    env.py; what env.py reads belongs to no step.
    """

    def __init__(self, root: str, ignore: list[str], guard: Any) -> None:
        self.root = real(root)
        self._ignore = [f"{each}*" if each.endswith("/") else each for each in ignore]
        self._guard = guard
        self._file_state = FileState(self.root)
        # The timestamps of files on Linux have a resolution of a few milliseconds.
        self._began = time.time() - 0.01
        self._imports: defaultdict[str, set[str]] = defaultdict(set)
        self._packages: defaultdict[str, set[str]] = defaultdict(set)
        self._reads: defaultdict[str, set[str]] = defaultdict(set)
        self._written: set[str] = set()
        self._revision_files: set[str] = set()
        self._step = ""
        self.env = ""
        # A build needs the same ones thousands of times.
        self._is_project = lru_cache(maxsize=None)(self._find_whether_project)
        self.key = lru_cache(maxsize=None)(self._make_key)

    def install(self) -> None:
        """Begin to record; this can't be undone."""
        self._wrap_imports()
        self._wrap_stat()
        self._refuse_stale_bytecode()
        sys.addaudithook(self._audit_hook)

    def _wrap_imports(self) -> None:
        import_original, by_name_original = builtins.__import__, importlib.import_module

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
                module = import_original(name, globals, locals, fromlist, level)
            except ImportError:
                self._note_missing(importer, whole, fromlist or ())
                raise
            self._note_import(importer, whole, fromlist or ())
            return module

        def import_module(name: str, package: str | None = None) -> ModuleType:
            module = by_name_original(name, package)
            self._note_import(None, module.__name__, ())
            return module

        # `warnings.warn` recognizes frames of the import system by this name and skips them (its
        # `_is_internal_frame`), so a warning still names the line that imports.
        import_.__code__ = import_.__code__.replace(co_filename=_IMPORT_CODE)
        builtins.__import__ = import_
        importlib.import_module = import_module

    def _wrap_stat(self) -> None:
        def stat(path: Any, *args: Any, **kwargs: Any) -> os.stat_result:
            self._note_file(sys._getframe(1), "there", path)  # noqa: SLF001 - the caller
            return _stat(path, *args, **kwargs)

        os.stat = stat
        for able in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
            able |= {stat} if _stat in able else set()

    def _refuse_stale_bytecode(self) -> None:
        """Make Python compile a project file again if it was written after it was compiled.

        Python only compares whole seconds and sizes, so it may run the previous version.
        """
        original = SourceFileLoader.path_stats

        def path_stats(loader: SourceFileLoader, path: str) -> Any:
            if self._is_project(path) and _is_edited(path):
                raise OSError(f"{path} was written after it was compiled")
            return original(loader, path)

        SourceFileLoader.path_stats = path_stats  # type: ignore[method-assign,assignment]

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Assign what is read in the `with` block to the build step *name*."""
        self._step = f"step:{name}"
        try:
            yield
        finally:
            self._step = ""

    def profile(self) -> list[dict[str, Any]]:
        """Return what was measured of each step: nothing here."""
        return []

    def add_revision_files(self, paths: list[str]) -> dict[str, str]:
        """Return the keys of revision files by their paths; call this before they are loaded."""
        self._revision_files |= {real(path) for path in paths}
        keys = {path: self.key("file", path) for path in paths}
        for key in keys.values():
            self._file_state.digest(key)
        return keys

    def _make_key(self, kind: str, path: str) -> str:
        return f"{kind}:{self.name(path)}"

    def name(self, path: str) -> str:
        """Return the name of a file or folder in keys and patterns."""
        # Use the given name if it is in the project: a link may later lead elsewhere.
        used = os.path.abspath(path)  # noqa: PTH100
        return place(used if used.startswith(self.root + os.sep) else real(path), self.root)

    def is_ignored(self, name: str) -> bool:
        """Return whether a pattern excludes the file called *name*."""
        return any(fnmatch.fnmatch(name, pattern) for pattern in self._ignore)

    def digests(self, keys: AbstractSet[str], *, own: str = "") -> dict[str, str]:
        """Return the digests of the *keys* that no pattern excludes, and always that of *own*."""
        kept = {key for key in keys if not self.is_ignored(key.partition(":")[2])} | {own} - {""}
        return {key: self._stable_digest(key) for key in sorted(kept)}

    def needs(self, modules: set[str], step: str = "") -> set[str]:
        """Return the keys of the files *modules*, and of what they and the build *step* read."""
        keys = {self.key("file", each) for each in modules} | self._reads[f"step:{step}"]
        for each in modules:
            keys |= self._reads[each].union(*map(_distributions, self._packages[each]))
        return keys

    def modules(self, path: str) -> set[str]:
        """Return the files of the module at *path* and of all project modules that it imported."""
        found: set[str] = set()
        ahead = [real(path)]
        while ahead:
            each = ahead.pop()
            if each not in found and (not found or not self.is_ignored(self.name(each))):
                found.add(each)
                ahead += self._imports[each]
        return found

    def modules_of(self, line: str) -> set[str]:
        """Return the same for the module and the packages in `package.module:attribute`."""
        found: set[str] = set()
        for name in _with_parents(line.partition(":")[0]):
            file = getattr(sys.modules.get(name), "__file__", None)
            found |= self.modules(file) if file else set()
        return found

    def package_of(self, path: str) -> set[str]:
        """Return the key of the installed distribution that *path* belongs to, if any."""
        for folder in site():
            if path.startswith(folder + os.sep):
                return _distributions(os.path.relpath(path, folder).partition(os.sep)[0])
        return set()

    def _stable_digest(self, key: str) -> str:
        """Return the digest of *key*; one that never matches if the file changed in the build."""
        kind, _, name = key.partition(":")
        if kind == "file":
            try:
                changed = _stat(self._file_state.path(name)).st_mtime
                # A timestamp in the future comes from a wrong clock, not from a change.
                if self._began < changed <= time.time():
                    return "changed while it was read"
            except OSError:
                pass
        return self._file_state.digest(key)

    def _find_whether_project(self, path: str) -> bool:
        """Return whether *path* is the project's code, not a library's or Python's."""
        is_file = path and not path.startswith("<")
        return bool(is_file) and not real(path).startswith((*_LIBRARIES, f"{_PACKAGE}{os.sep}"))

    def _note_import(self, importer: str | None, name: str, fromlist: Any) -> None:
        if name.startswith(("asyncpg", "psycopg")):
            self._guard.wrap_drivers()
        own: set[str] = set()
        others: set[str] = set()
        for each in (*_with_parents(name), *(f"{name}.{each}" for each in fromlist)):
            file = getattr(sys.modules.get(each), "__file__", None)
            if isinstance(file, str) and self._is_project(file):
                own.add(real(file))
            elif isinstance(file, str):
                others.add(each.partition(".")[0])
        if importer is None or not self._is_project(importer):
            # A library may import on behalf of the project's code.
            importer = self._nearest(sys._getframe(2)) if own else None  # noqa: SLF001
        if importer is not None:
            self._imports[real(importer)] |= own - {real(importer)}
            self._packages[real(importer)] |= others - sys.stdlib_module_names

    def _note_missing(self, importer: str | None, name: str, fromlist: Any) -> None:
        """Record where a missing module would be: it may appear later."""
        if importer is None or not self._is_project(importer):
            return
        for each in (name, *(f"{name}.{part}" for part in fromlist)):
            package, _, last = each.rpartition(".")
            folders = getattr(sys.modules.get(package), "__path__", ()) if package else sys.path
            for folder in folders if each not in sys.modules else ():
                stem = os.path.abspath(os.path.join(folder, last))  # noqa: PTH100, PTH118
                for path in (f"{stem}.py", f"{stem}/__init__.py"):
                    self._note_read(real(importer), "there", path)

    def _note_read(self, reader: str, kind: str, path: str) -> None:
        name = os.path.abspath(path)  # noqa: PTH100
        if name not in self._written and self._is_data(name, kind):
            self._reads[reader].add(self.key(kind, name))

    def _audit_hook(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in {"open", "os.listdir", "os.scandir", "exec"}:
            return  # `sys._getframe` is an event too.
        frame = sys._getframe(1)  # noqa: SLF001 - the code that opens, lists or executes
        if event == "open":
            path, mode, flags = args
            writes = flags & (os.O_WRONLY | os.O_RDWR) if mode is None else set(mode) & set("wax+")
            self._note_file(frame, "file", path, writes=bool(writes))
        elif event == "exec":
            # This includes code that is loaded without an import.
            file = getattr(args[0], "co_filename", "")
            importer = self._nearest(frame) if self._is_project(file) else None
            if importer is not None and importer != real(file):
                self._imports[importer].add(real(file))
        else:
            self._note_file(frame, "folder", "." if args[0] is None else args[0])

    def _note_file(self, frame: FrameType, kind: str, path: Any, *, writes: bool = False) -> None:
        """Record that the code of *frame* opens a file, lists a folder, or checks for a file."""
        if not isinstance(path, (str, bytes, os.PathLike)):
            return  # A descriptor: the file was opened by name before.
        if _reads_code(frame, path, kind) or (reader := self._reader(frame)) is None:
            return
        if writes:
            self._written.add(os.path.abspath(os.fsdecode(path)))  # noqa: PTH100
        else:
            self._note_read(reader, kind, os.fsdecode(path))

    def _project_frames(self, frame: FrameType | None) -> Iterator[FrameType]:
        """Yield the frames of the project's code, innermost first."""
        while frame is not None:
            if self._is_project(frame.f_code.co_filename):
                yield frame
            frame = frame.f_back

    def _nearest(self, frame: FrameType | None) -> str | None:
        return next((real(each.f_code.co_filename) for each in self._project_frames(frame)), None)

    def _reader(self, frame: FrameType | None) -> str | None:
        """Return what a read belongs to: a module being imported, a revision, the running step.

        None for env.py and the code that it calls: what they read is not a dependency.
        """
        for each in self._project_frames(frame):
            path = real(each.f_code.co_filename)
            if each.f_code.co_name == "<module>":
                # env.py is always running: the code that it calls decides.
                return path if path != self.env else self._step or None
            if path in self._revision_files:
                return self._step or path
        return self._step or None

    def _is_data(self, name: str, kind: str) -> bool:
        """Return whether a file or folder belongs to the project, not to Python or the machine."""
        path = f"{real(name)}/"
        if path.startswith(_LIBRARIES):
            return False
        if path.startswith(self.root + os.sep):
            # The folders of Git, pytest and Python change in every run.
            folders = path[len(self.root) + 1 :].split("/")[: -1 if kind == "folder" else -2]
            return not any(each.startswith(".") or each == "__pycache__" for each in folders)
        home = os.path.expanduser("~")  # noqa: PTH111
        elsewhere = (*_SYSTEM, os.path.realpath(tempfile.gettempdir()) + os.sep, f"{home}/.")
        return not path.startswith(elsewhere)


@cache
def real(path: str) -> str:
    """Return the path of a file without links; cached, since a build needs it many times."""
    return os.path.realpath(path)


def _with_parents(module: str) -> Iterator[str]:
    """Yield the name of a module, and the names of its packages."""
    while module:
        yield module
        module = module.rpartition(".")[0]


def _is_edited(path: str) -> bool:
    """Return whether a file was written after it was compiled."""
    try:
        compiled = _stat(importlib.util.cache_from_source(path))
        return _stat(path).st_mtime_ns >= compiled.st_mtime_ns
    except (OSError, NotImplementedError):
        return False


def _reads_code(frame: FrameType, path: Any, kind: str) -> bool:
    """Return whether Python reads a file to import it, or to show its code."""
    if frame.f_code.co_filename.startswith("<frozen importlib"):
        # The import system reads data files too.
        return kind == "folder" or os.fsdecode(path).endswith(_CODE_FILES)
    return str(frame.f_globals.get("__name__", "")).startswith(_CODE_READERS)


def _absolute(name: str, importing: dict[str, Any], level: int) -> str:
    """Return the whole name of a module that is imported relatively."""
    package = importing.get("__package__") or importing.get("__name__", "").rpartition(".")[0]
    try:
        return importlib.util.resolve_name("." * level + name, package)
    except ImportError:
        return name


_modules_installed = cache(packages_distributions)


@cache
def _distributions(module: str) -> set[str]:
    """Return the keys of the distributions that contain the top-level *module*."""
    if module in {"alembic", "sqlalchemy"}:
        return {f"package:{module}"}  # Avoids the list of all installed packages, which is slow.
    return {f"package:{distribution(each)}" for each in _modules_installed().get(module, ())}
