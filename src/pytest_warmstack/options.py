"""The table of `Settings` as pytest options, and a pytest config back as `Settings`."""

from __future__ import annotations

import importlib.util
import os
from typing import Any, Final

import pytest

from pytest_warmstack.settings import (
    CHOICES,
    Choice,
    Kind,
    Settings,
    ci,
    environment,
    resolve,
)

_INI_TYPES: Final[dict[Kind, Any]] = {Kind.SWITCH: "bool", Kind.LINES: "linelist"}

_NO: Final = 0
"""What `--no-reuse-containers` stores.

Falsy for pytest-docker-tools, which reads the same destination; and still not the False that it
has there as its default.
"""


def add(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Declare every choice to pytest."""
    group = parser.getgroup("warmstack", "real PostgreSQL and Redis, kept warm")
    for choice in CHOICES.values():
        parser.addini(
            choice.ini,
            choice.help,
            type=_INI_TYPES.get(choice.kind, "string"),
            default=None,
        )
        if choice.kind is Kind.SWITCH:
            _add_reuse(group, choice, shared=_is_shared(pluginmanager))
        elif choice.flag is not None:
            group.addoption(choice.flag, dest=f"warmstack_{choice.name}", help=choice.help)


def _is_shared(pluginmanager: pytest.PytestPluginManager) -> bool:
    """Tell whether pytest-docker-tools registers `--reuse-containers`.

    A second registration, in whatever order, stops pytest at its start.
    """
    found = importlib.util.find_spec("pytest_docker_tools") is not None
    return found and not pluginmanager.is_blocked("docker_tools")


def _add_reuse(group: pytest.OptionGroup, choice: Choice, *, shared: bool) -> None:
    if not shared:
        group.addoption(
            str(choice.flag),
            dest="reuse_containers",
            action="store_true",
            default=None,
            help=choice.help,
        )
    group.addoption(
        f"--no-{str(choice.flag).lstrip('-')}",
        dest="reuse_containers",
        action="store_const",
        const=_NO,
        help="Remove the servers after the run, whatever the configuration says",
    )


def settings(config: pytest.Config) -> Settings:
    """Return what the user chose: the command line wins over the environment, that over the ini.

    Raises `SettingsError`.
    """

    def command_line(choice: Choice) -> tuple[object, str] | None:
        if choice.kind is Kind.SWITCH:
            given = config.getoption("reuse_containers", default=None)
            if given is None or given is False:
                return None
            return bool(given), f"command line option {choice.flag}"
        value = config.getoption(f"warmstack_{choice.name}", default=None)
        if value is None:
            return None
        if choice.kind is Kind.PATH and value:
            value = str(config.invocation_params.dir / value)
        return value, f"command line option {choice.flag}"

    def ini(choice: Choice) -> tuple[object, str] | None:
        source = config.inipath.name if config.inipath else "ini file"
        try:
            value = config.getini(choice.ini)
        except (ValueError, TypeError):
            # pytest's own conversion refused it; ours then says so with the source's name.
            value = config.inicfg.get(choice.ini)
            value = getattr(value, "value", value)
        if value is None:
            return None
        if choice.kind is Kind.PATH and value:
            value = str(config.rootpath / value)
        return value, source

    return resolve(command_line, environment(os.environ), ci(os.environ), ini)


def table() -> str:
    """Return the README's table of choices."""
    rows = ["| choice | command line | ini | environment | default |", "|---|---|---|---|---|"]
    for choice in CHOICES.values():
        flag = f"`{choice.flag}`" if choice.flag else "-"
        if choice.kind is Kind.SWITCH:
            flag += f", `--no-{str(choice.flag).lstrip('-')}`"
        variable = f"`{choice.variable}`" if choice.variable else "-"
        rows.append(
            f"| {choice.help} | {flag} | `{choice.ini}` | {variable} | {_default(choice)} |"
        )
    return "\n".join(rows)


def _default(choice: Choice) -> str:
    """Return the words for the default of a choice."""
    if choice.kind is Kind.SWITCH:
        return "yes" if choice.default else "no"
    if choice.kind is Kind.SECONDS:
        return f"{choice.default:g}"
    return f"`{choice.default}`" if choice.default else "-"
