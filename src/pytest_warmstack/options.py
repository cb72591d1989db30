"""The table of `Settings` as pytest options, and a pytest config back as `Settings`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import pytest

from pytest_warmstack.settings import (
    CHOICES,
    NONE,
    OPTION,
    Choice,
    Kind,
    Lookup,
    Settings,
    ci,
    environment,
    is_attribute,
    resolve,
    shortest,
    unknown_keys,
    unknown_variables,
)

_INI_TYPES: Final[dict[Kind, Any]] = {
    Kind.SWITCH: "bool",
    Kind.SECONDS: "float",
    Kind.COUNT: "int",
    Kind.LIMIT: "int",
    Kind.WORDS: "linelist",
    Kind.OPTIONS: "linelist",
    Kind.VARIABLES: "linelist",
    Kind.PATTERNS: "linelist",
    Kind.SCRIPTS: "linelist",
    Kind.LINES: "linelist",
}

_NO_REUSE: Final = "--no-reuse-containers"

_NO: Final = 0
"""What `--no-reuse-containers` stores.

Falsy for pytest-docker-tools, which reads the same destination; and still not the False that it
has there as its default.
"""


def add(parser: pytest.Parser) -> None:
    """Declare every choice to pytest, but for the option that another plugin may have."""
    group = _group(parser)
    for choice in CHOICES.values():
        if choice.kind is Kind.FLAG:
            group.addoption(
                str(choice.flag),
                dest=f"warmstack_{choice.name}",
                action="store_true",
                default=None,
                help=choice.help,
            )
            continue
        parser.addini(
            choice.ini,
            choice.help,
            type=_INI_TYPES.get(choice.kind, "string"),
            default=None,
        )
        if choice.kind is not Kind.SWITCH and choice.flag is not None:
            group.addoption(choice.flag, dest=f"warmstack_{choice.name}", help=choice.help)
    group.addoption(
        _NO_REUSE,
        dest="reuse_containers",
        action="store_const",
        const=_NO,
        help="Remove the servers after the run, whatever the configuration says",
    )


def add_reuse(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Declare `--reuse-containers`, unless pytest-docker-tools is loaded, which has it too.

    A second registration stops pytest, so this has to come when all plugins are loaded.
    """
    # By its module: it has another name when it was loaded with -p.
    other = sys.modules.get("pytest_docker_tools.plugin")
    if other is None or not pluginmanager.is_registered(other):
        choice = CHOICES["reuse"]
        _group(parser).addoption(
            str(choice.flag),
            dest="reuse_containers",
            action="store_true",
            default=None,
            help=choice.help,
        )


def _group(parser: pytest.Parser) -> pytest.OptionGroup:
    return parser.getgroup("warmstack", "real PostgreSQL and Redis, kept warm")


def settings(config: pytest.Config) -> Settings:
    """Return what the user chose: the command line wins over the environment, that over the ini.

    Raises `SettingsError`.
    """

    def command_line(choice: Choice) -> tuple[object, str] | None:
        if choice.kind is Kind.SWITCH:
            given = config.getoption("reuse_containers", default=None)
            if given is None or given is False:
                return None
            return bool(given), f"{OPTION}{choice.flag if given else _NO_REUSE}"
        value = config.getoption(f"warmstack_{choice.name}", default=None)
        return None if value is None else (value, f"{OPTION}{choice.flag}")

    def ini(choice: Choice) -> tuple[object, str] | None:
        if choice.kind is Kind.FLAG:
            return None
        source = config.inipath.name if config.inipath else "ini file"
        if any(each.partition("=")[0] == choice.ini for each in config.option.override_ini or ()):
            source = f"{OPTION}-o {choice.ini}"
        try:
            value = config.getini(choice.ini)
        except (ValueError, TypeError, pytest.UsageError) as error:
            from pytest_warmstack.settings_errors import SettingsError

            # As pytest's `_getini_toml` says it (config/__init__.py).
            if typed := re.search(r"expects (an? .+), (?:got|but) .*?(?:: |is )(.+)$", str(error)):
                # What follows a NAME= may be a secret.
                value = re.sub(r"=[^'\"]+", "=...", typed[2])
                raise SettingsError.bad_type(
                    name=choice.ini, value=value, source=source, expected=typed[1]
                ) from None
            raise SettingsError.bad_value(
                name=choice.ini, value=_quoted(error), source=source, wanted=choice.kind
            ) from None
        return None if value is None else (value, source)

    here = config.invocation_params.dir
    found = resolve(
        _rooted(command_line, here),
        _rooted(environment(os.environ), here),
        ci(os.environ),
        _rooted(ini, config.rootpath),
    )
    return found._replace(file=config.inipath.name if config.inipath else "")


def refuse_unknown(arguments: Iterable[str]) -> None:
    """Raise `pytest.UsageError` for an unknown option that begins like one of the plugin.

    pytest would refuse it as well, but can't tell which one was meant.
    """
    for argument in arguments:
        name = argument.partition("=")[0]
        if name.startswith(("--warmstack", "--reuse-c", "--no-reuse-c")):
            known = [*filter(None, (each.flag for each in CHOICES.values())), _NO_REUSE]
            if name not in known:
                from pytest_warmstack.errors import did_you_mean

                near = did_you_mean(name, known, after="--warmstack-")
                raise pytest.UsageError(f"unknown option {name}{near}")


def unknown(config: pytest.Config) -> list[str]:
    """Return a sentence for each variable and each key of the configuration that is mistyped."""
    # pytest has no other name for the keys of its file; older versions have it without the _.
    keys = getattr(config, "_inicfg", None)
    keys = config.inicfg if keys is None else keys
    overrides = (each.partition("=")[0] for each in config.option.override_ini or ())
    return [*unknown_variables(os.environ), *unknown_keys(dict.fromkeys([*keys, *overrides]))]


def _rooted(lookup: Lookup, folder: Path) -> Lookup:
    """Return *lookup* with its relative paths begun at *folder*."""

    def find(choice: Choice) -> tuple[object, str] | None:
        found = lookup(choice)
        if found is None or choice.kind not in {Kind.PATH, Kind.CONFIG} or not found[0]:
            return found
        if choice.kind is Kind.CONFIG and (is_attribute(str(found[0])) or found[0] == NONE):
            return found
        return os.path.normpath(folder / str(found[0])), found[1]

    return find


def _quoted(error: Exception) -> str:
    """Return the value that pytest could not convert, which its message ends with, in quotes."""
    return str(error).rpartition(" ")[2].strip("'\"")


def table() -> str:
    """Return the README's table of choices."""
    rows = ["| choice | command line | ini | environment | default |", "|---|---|---|---|---|"]
    for choice in CHOICES.values():
        flag = f"`{choice.flag}`" if choice.flag else "-"
        if choice.kind is Kind.SWITCH:
            flag += f", `--no-{str(choice.flag).lstrip('-')}`"
        variable = f"`{choice.variable}`" if choice.variable else "-"
        ini = "-" if choice.kind is Kind.FLAG else f"`{choice.ini}`"
        rows.append(f"| {choice.help} | {flag} | {ini} | {variable} | {_default(choice)} |")
    return "\n".join(rows)


def _default(choice: Choice) -> str:
    """Return the words for the default of a choice."""
    if choice.kind in {Kind.SWITCH, Kind.FLAG}:
        return "yes" if choice.default else "no"
    if choice.kind is Kind.SECONDS:
        return f"{choice.default:g}"
    if choice.kind is Kind.AGE:
        return f"`{shortest(choice.default)}`"
    return f"`{choice.default}`" if choice.default else "-"
