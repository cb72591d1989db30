"""Alembic's configuration: read in the way of its command, or made by a function of the project."""

from __future__ import annotations

import inspect
import json
import re
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from alembic.config import CommandLine, Config
from sqlalchemy import URL, make_url

from pytest_warmstack.postgres.template.child import arguments, database_url
from pytest_warmstack.postgres.template.child.failures import BuildFailure
from pytest_warmstack.postgres.template.child.recorder import Recorder, real
from pytest_warmstack.postgres.template.dependencies import related_options, sections
from pytest_warmstack.postgres.template.record import CONFIG
from pytest_warmstack.servers.identity import fingerprint


class Configuration:
    """The configuration that the parent's description, *alembic*, leads to.

    `config` is None until it is made, or if the project's function returns none. `database` is the
    database that the setting chooses, if env.py migrates several.
    """

    def __init__(self, alembic: dict[str, Any], url: URL, recorder: Recorder) -> None:
        self.function: str = alembic["callable"]
        self.config: Config | None = None
        self.database = ""
        self._alembic = alembic
        self._url = url
        self._recorder = recorder
        self._digest = ""
        self._function_files: set[str] = set()

    def make(self) -> Config | None:
        """Read the configuration or call the function, and set the template's URL.

        Raises `BuildFailure` if there is no valid configuration.
        """
        self.config = config = self._call() if self.function else self._read()
        if config is not None:
            url = self._url
            if self.function:
                url = database_url.like(database_url.own_url(config), url)
            text = url.render_as_string(hide_password=False)
            # env.py may read the URL in either way. ConfigParser substitutes after a %.
            config.set_main_option("sqlalchemy.url", text.replace("%", "%%"))
            config.attributes["url"] = text
            if self.database:
                config.set_main_option("databases", self.database)
                config.set_section_option(self.database, "sqlalchemy.url", text.replace("%", "%%"))
        return config

    def databases(self) -> list[str]:
        """Return the databases that env.py migrates, as in Alembic's template multidb."""
        if self.config is None or self.function or self.database:
            return []
        return database_url.databases(self.config)

    def needs(self, env: str) -> set[str]:
        """Return the keys of the configuration's dependencies; *env* is the path of env.py."""
        recorder = self._recorder
        if not self.function:
            kinds = [kind for kind in ("ini", "toml") if self._alembic[kind]]
            return {recorder.key(kind, self._alembic[kind]) for kind in kinds}
        if not self._digest:
            # It may depend on everything that the function reads.
            return self.function_needs()
        # Modules that the function shares with env.py may do more than make the configuration.
        modules = recorder.modules_of(self.function)
        own = {recorder.key("file", each) for each in modules & self._function_files}
        return own | recorder.needs(modules & recorder.modules(env))

    def function_needs(self) -> set[str]:
        """Return the keys of everything that the project's function reads."""
        return self._recorder.needs(self._recorder.modules_of(self.function), self.function)

    def digests(self) -> dict[str, str]:
        """Return the digest of the values of a configuration made in code, by its key."""
        return {f"{CONFIG}{self.function}": self._digest} if self._digest else {}

    def _read(self) -> Config:
        section = self._alembic["section"]
        config, self.database = database_url.read(self._alembic)
        if section != "alembic" and not config.file_config.has_section(section):
            found = ", ".join(f"[{each}]" for each in config.file_config.sections())
            raise BuildFailure("config", f"it has no section [{section}], but {found}")
        config.cmd_opts = self._options(config.config_ini_section)
        return config

    def _options(self, section: str) -> Namespace:
        """Return the options of the command line."""
        extra = [argument for each in self._alembic["x"] for argument in ("-x", each)]
        return CommandLine().parser.parse_args(["-n", section, *extra, "upgrade", "heads"])

    def _call(self) -> Config | None:
        url = self._url.render_as_string(hide_password=False)
        with self._recorder.step(self.function):
            function = arguments.resolve(self.function, self._recorder.root)
            modules = {self.function.partition(":")[0], getattr(function, "__module__", "")}
            files = [getattr(sys.modules.get(each), "__file__", None) for each in modules]
            self._function_files = {real(each) for each in files if each}
            config = arguments.wait_for(_call_with_url(function, url))
            if config is None:
                return None
            if not isinstance(config, Config):
                raise BuildFailure(
                    "config",
                    f"{self.function} returned {config!r} instead of an alembic.config.Config or"
                    " None",
                )
            self._digest = digest(config, url)
        if config.cmd_opts is None:
            config.cmd_opts = self._options(self._alembic["section"])
        return config


def _call_with_url(function: Any, url: str) -> Any:
    """Call *function* with *url*, as far as it takes parameters."""
    parameters = inspect.signature(function).parameters.values()
    if any(each.kind in {each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD} for each in parameters):
        return function(url)
    return function(**{each.name: url for each in parameters if each.kind is each.KEYWORD_ONLY})


def digest(config: Config, url: str) -> str:
    """Return the digest of all values in *config*; empty if it has objects besides plain values.

    Placeholders replace the template's *url* and the project's folder, which differ between builds.
    """
    if type(config) is not Config:
        return ""
    values = {
        "file": config.config_file_name,
        "section": config.config_ini_section,
        "ini": sections(config.file_config),
        # Alembic 1.16 and later.
        "toml": related_options(getattr(config, "toml_alembic_config", {})),
        "attributes": config.attributes,
        # Its command is a function, which must not be called.
        "options": {**vars(config.cmd_opts), "cmd": ""} if config.cmd_opts else {},
    }
    parts = make_url(url)
    own = (url, parts.password, parts.database, f"{parts.host}:{parts.port}", Path.cwd())
    replaced = re.compile("|".join(re.escape(str(each)) for each in own if each))
    try:
        return fingerprint(json.dumps(_plain(values, replaced), sort_keys=True))
    except TypeError:
        return ""


def _plain(value: Any, replaced: re.Pattern[str]) -> Any:
    """Return *value* for JSON, distinct for each type; raise TypeError for other objects."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, URL):
        value = value.render_as_string(hide_password=False)
    if isinstance(value, str | PurePath):
        return [type(value).__name__, replaced.sub("\0", str(value))]
    if isinstance(value, Mapping):
        return {str(key): _plain(each, replaced) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, replaced) for each in value]
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(_plain(each, replaced)) for each in value)
    raise TypeError(type(value))
