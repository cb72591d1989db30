"""Alembic as one layer: its fingerprint from files alone, its upgrade in a child process."""

from __future__ import annotations

import configparser
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Self

from pytest_warmstack.errors import TemplateFailed
from pytest_warmstack.identity import fingerprint
from pytest_warmstack.postgres.admin import USER, quote
from pytest_warmstack.postgres.template import Layer, Target
from pytest_warmstack.settings import Settings

_CHILD: Final = "pytest_warmstack.postgres.migrate"
_OUTPUT_LINES: Final = 30
_BUILDERS: Final = ("alembic", "sqlalchemy")
"""Distributions whose version may change what the same scripts build."""


@dataclass(kw_only=True)
class Migrations:
    """The Alembic project of the tests.

    *ini* is its alembic.ini and *toml* its pyproject.toml, of which one may be missing; *env*
    are lines like `DATABASE_URL={db_url}`; *timeout* is in seconds.
    """

    ini: Path | None
    toml: Path | None
    root: Path
    env: Sequence[str]
    timeout: float
    _child: subprocess.Popen[str] | None = field(default=None, init=False)
    _working: bool = field(default=False, init=False)

    name = "alembic"

    @classmethod
    def find(cls, settings: Settings, root: Path) -> Self | None:
        """Return the project that *settings* name, else the one in *root*, else None.

        Raises `TemplateFailed` when the one that was named is not there.
        """
        ini, toml = root / "alembic.ini", root / "pyproject.toml"
        if settings.alembic:
            named = root / settings.alembic
            is_toml = named.suffix == ".toml"
            ini, toml = (named.with_name("alembic.ini"), named) if is_toml else (named, toml)
            if not named.is_file():
                raise TemplateFailed.no_alembic(
                    named=str(named), source=settings.sources["alembic"]
                )
        has_ini = ini.is_file()
        has_toml = toml.is_file() and "alembic" in _read_toml(toml).get("tool", {})
        if settings.alembic and toml == root / settings.alembic and not has_toml:
            raise TemplateFailed.bad_alembic(
                config=str(toml), cause="it has no table [tool.alembic]"
            )
        if not (has_ini or has_toml):
            return None
        return cls(
            ini=ini if has_ini else None,
            toml=toml if has_toml else None,
            root=root,
            env=settings.env,
            timeout=settings.migrate_timeout,
        )

    @property
    def config(self) -> str:
        """The configuration file, for an error's text."""
        return str(self.ini or self.toml)

    def fingerprint(self) -> str:
        """Return the fingerprint of the scripts, env.py, the configuration and the builders.

        Raises `TemplateFailed` when the configuration names no folder of scripts.
        """
        parts: list[str | bytes] = [*self.env]
        for builder in _BUILDERS:
            try:
                parts.append(version(builder))
            except PackageNotFoundError:
                parts.append("")
        if self.ini is not None:
            parts.append(self.ini.read_bytes())
        if self.toml is not None:
            parts.append(json.dumps(_read_toml(self.toml)["tool"]["alembic"], sort_keys=True))
        for folder in self._folders():
            for path in _files(str(folder)):
                parts.append(os.path.relpath(path, folder))
                with open(path, "rb") as file:  # noqa: PTH123 - a thousand of them, see below
                    parts.append(file.read())
        return fingerprint(*parts)

    def prepare(self) -> None:
        """Start the child process: it imports Alembic while the server starts, and then waits."""
        self._started()

    def _started(self) -> subprocess.Popen[str]:
        """Return the child process, started if it was not yet."""
        # -P: like the command `alembic`, and unlike `python -m` otherwise, the child does not put
        # the current folder first on its path.
        self._child = self._child or subprocess.Popen(
            [sys.executable, "-P", "-m", _CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.root,
            text=True,
            errors="replace",
        )
        return self._child

    def discard(self) -> None:
        """End the child process, if it was not needed, or if its work is no longer."""
        if (child := self._child) is None:
            return
        child.kill()
        if not self._working:
            child.communicate()

    def apply(self, target: Target) -> str:
        """Run what `alembic upgrade heads` runs, and see that the database is at the heads."""
        report = self._run(target)
        if report["refused"]:
            raise TemplateFailed.foreign_database(
                tried=report["refused"],
                allowed=f"{target.endpoint.host}:{target.endpoint.port}/{target.database}",
                config=self.config,
            )
        if report["error"]:
            raise TemplateFailed.migration_failed(
                where=report["where"],
                cause=report["error"],
                config=self.config,
                output=report["output"],
            )
        tables = report["tables"] or [["", "alembic_version"]]
        found = set()
        for schema, table in tables:
            name = ".".join(quote(part) for part in (schema, table) if part)
            found |= set(target.read(f"SELECT version_num FROM {name}"))
        if found != set(report["heads"]):
            raise TemplateFailed.not_at_head(
                found=found,
                heads=report["heads"],
                table=", ".join(table for _, table in tables),
            )
        warned = "".join(f" (Alembic warns: {each})" for each in report["warnings"])
        return f"{report['revisions']} revisions{warned}"

    def _run(self, target: Target) -> dict[str, Any]:
        """Run the child process and return its report, with what it wrote as `output`."""
        password = target.endpoint.password
        request = {
            "ini": self.ini and str(self.ini),
            "toml": self.toml and str(self.toml),
            "env": list(self.env),
            "path": sys.path,
            "url": {
                "username": USER,
                "password": password,
                "host": target.endpoint.host,
                "port": target.endpoint.port,
                "database": target.database,
            },
        }
        child = self._started()
        self._working = True
        try:
            # The password goes over standard input: arguments can be read by everybody.
            answer, output = child.communicate(json.dumps(request), timeout=self.timeout)
        except subprocess.TimeoutExpired:
            child.kill()
            _, output = child.communicate()
            raise TemplateFailed.too_slow(
                seconds=self.timeout, config=self.config, output=_tail(output, password)
            ) from None
        except BaseException:
            child.kill()
            child.wait()
            raise
        finally:
            self._child, self._working = None, False
        try:
            report: dict[str, Any] = json.loads(answer)
        except ValueError:
            report = {
                "error": f"the process ended with exit status {child.returncode} before its end",
                "where": "",
                "refused": "",
            }
        report["output"] = _tail(output, password)
        for key in ("error", "where", "refused"):
            report[key] = report[key].replace(password, "***")
        return report

    def _folders(self) -> list[Path]:
        """Return the folders that hold the scripts, as the configuration names them."""
        options: dict[str, Any] = {}
        for path, own in (
            (self.toml, self.toml and _read_toml(self.toml)["tool"]["alembic"]),
            (self.ini, self.ini and self._read_ini(self.ini)),
        ):
            # As in Alembic, what stands in the ini file wins, and %(here)s is the file's folder.
            if path is not None and own:
                here = str(path.parent)
                options |= {key: _placed(value, here) for key, value in own.items()}
        location = options.get("script_location")
        if not location:
            raise TemplateFailed.bad_alembic(
                config=self.config, cause="it does not say script_location"
            )
        named = [("script_location", location)]
        named += [("version_locations", each) for each in _listed(options, "version_locations")]
        packages = [str(self.root / each) for each in _listed(options, "prepend_sys_path")]
        folders = []
        for key, each in named:
            folder = self._folder(each, packages)
            if not folder.is_dir():
                raise TemplateFailed.bad_alembic(
                    config=self.config, cause=f"{key} names {folder}, which is no folder"
                )
            folders.append(folder)
        return folders

    def _folder(self, location: str, packages: list[str]) -> Path:
        """Return the folder of a location: a path, or `package:folder`, found without importing."""
        package, colon, rest = location.partition(":")
        if not colon or not re.fullmatch(r"[\w.]{2,}", package):
            return self.root / location
        top, *below = package.split(".")
        found = PathFinder.find_spec(top, packages) or importlib.util.find_spec(top)
        homes = list(found.submodule_search_locations or []) if found is not None else []
        home = Path(homes[0], *below) if homes else None
        if home is None or not home.is_dir():
            raise TemplateFailed.bad_alembic(
                config=self.config, cause=f"there is no package {package}"
            )
        return home / rest

    def _read_ini(self, path: Path) -> dict[str, str]:
        """Return the section `alembic` of an ini file, uninterpolated."""
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError) as error:
            raise TemplateFailed.bad_alembic(config=str(path), cause=str(error)) from error
        return dict(parser["alembic"]) if parser.has_section("alembic") else {}


def layers(settings: Settings, root: Path) -> list[Layer]:
    """Return the layers of the template of the project in *root*; none when it has no Alembic."""
    migrations = Migrations.find(settings, root)
    return [] if migrations is None else [migrations]


def _placed(value: Any, here: str) -> Any:
    """Return an option's value, a text or a list of texts, with `%(here)s` filled in."""
    if isinstance(value, list):
        return [_placed(each, here) for each in value]
    return value.replace("%(here)s", here) if isinstance(value, str) else value


def _listed(options: Mapping[str, Any], key: str) -> list[str]:
    """Return the single paths of an option that holds several, split as Alembic does."""
    value = options.get(key) or []
    if isinstance(value, list):
        return value
    separator = options.get("path_separator") or options.get("version_path_separator")
    signs = {"os": os.pathsep, "space": " ", "newline": "\n"}
    pattern = re.escape(signs.get(separator, separator)) if separator else r", *|(?: +)"
    return [part.strip() for part in re.split(pattern, value) if part.strip()]


def _files(folder: str) -> Iterator[str]:
    """Yield the files below *folder* in a stable order.

    Compiled ones are left out, and those with a dot in front: editors put their own there.
    os.scandir and plain strings: this runs for a thousand revisions on every warm run.
    """
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if entry.name.startswith(".") or entry.name == "__pycache__":
            continue
        if entry.is_dir():
            yield from _files(entry.path)
        elif not entry.name.endswith(".pyc"):
            yield entry.path


def _read_toml(path: Path) -> dict[str, Any]:
    """Return what a TOML file holds; raise `TemplateFailed` when it can't be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TemplateFailed.bad_alembic(config=str(path), cause=str(error)) from error


def _tail(output: str, password: str) -> str:
    """Return the last lines of what the child wrote, without the password."""
    return "\n".join(output.strip().splitlines()[-_OUTPUT_LINES:]).replace(password, "***")
