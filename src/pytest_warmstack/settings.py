"""The choices a user has, in one table, and how a value for each is found.

Command line, ini file, environment and the README's table all derive from the rows of `Settings`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any, Final, NamedTuple

from pytest_warmstack.errors import SettingsError


class RuntimeName(StrEnum):
    """Where the servers may run."""

    AUTO = "auto"
    DOCKER = "docker"
    EMBEDDED = "embedded"


class Kind(StrEnum):
    """What a choice takes; the value is how an error message says so."""

    SWITCH = "yes or no"
    RUNTIME = "one of auto, docker, embedded"
    TEXT = "a text"
    PATH = "a path"
    SECONDS = "a number of seconds above 0"
    LINES = "lines like NAME=VALUE"


class Choice(NamedTuple):
    """One row of the table: what the user may set, and where."""

    name: str
    kind: Kind
    default: Any
    help: str
    flag: str | None
    variable: str | None

    @property
    def ini(self) -> str:
        """The key in pytest's configuration file."""
        return f"warmstack_{self.name}"


def _row(default: Any, kind: Kind, text: str, *, flag: str = "", ini_only: bool = False) -> Any:
    """Declare a field of `Settings` as a row of the table.

    The option's name is derived from the field's, except where *flag* gives one.
    """
    return field(
        default=default, metadata={"kind": kind, "help": text, "flag": flag, "ini_only": ini_only}
    )


# Loaded in every pytest run: the methods that dataclass would write for it and nobody calls
# are half of what this module costs.
@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Settings:
    """What the user chose; `sources` tells where each value that is no default came from."""

    reuse: bool = _row(
        default=False,
        kind=Kind.SWITCH,
        text="Keep the servers after the run, for the next one to find",
        flag="--reuse-containers",
    )
    runtime: RuntimeName = _row(
        RuntimeName.AUTO, Kind.RUNTIME, "Where the servers run: auto, docker or embedded"
    )
    postgres_image: str = _row("postgres:16-alpine", Kind.TEXT, "Docker image of PostgreSQL")
    redis_image: str = _row("redis:7-alpine", Kind.TEXT, "Docker image of Redis")
    postgres_bin: str = _row(
        "", Kind.PATH, "Folder of PostgreSQL's programs, for the runtime embedded"
    )
    redis_bin: str = _row("", Kind.PATH, "Folder of Redis' program, for the runtime embedded")
    alembic: str = _row(
        "", Kind.PATH, "Alembic's configuration; else alembic.ini, then pyproject.toml, at the root"
    )
    env: tuple[str, ...] = _row(
        (),
        Kind.LINES,
        "Environment of the migrations, lines like DATABASE_URL={db_url}",
        ini_only=True,
    )
    start_timeout: float = _row(60.0, Kind.SECONDS, "Deadline for a server to be ready, in seconds")
    migrate_timeout: float = _row(
        300.0, Kind.SECONDS, "Deadline for the migrations to end, in seconds"
    )
    sources: Mapping[str, str] = field(default_factory=dict)


def _choices() -> dict[str, Choice]:
    """Read the table off the fields of `Settings`."""
    rows = {}
    for row in fields(Settings):
        if not row.metadata:
            continue
        own = not row.metadata["ini_only"]
        flag = row.metadata["flag"] or f"--warmstack-{row.name.replace('_', '-')}"
        rows[row.name] = Choice(
            name=row.name,
            kind=row.metadata["kind"],
            default=row.default,
            help=row.metadata["help"],
            flag=flag if own else None,
            variable=f"WARMSTACK_{row.name.upper()}" if own else None,
        )
    return rows


CHOICES: Final[Mapping[str, Choice]] = _choices()
"""The table, by the names of the fields of `Settings`."""

Lookup = Callable[[Choice], tuple[object, str] | None]
"""A place where values are found, such as the command line.

It takes a choice and returns the raw value with the words for where it stood, or None when
nothing was given there.
"""


def resolve(*lookups: Lookup) -> Settings:
    """Return the settings: for each choice the value of the first lookup that has one.

    Raises `SettingsError` when that value can't be used, naming where it stood.
    """
    values: dict[str, Any] = {}
    sources = {}
    for name, choice in CHOICES.items():
        for lookup in lookups:
            if (found := lookup(choice)) is not None:
                raw, source = found
                values[name] = _converted(choice, raw, source)
                sources[name] = source
                break
    return Settings(**values, sources=sources)


def environment(environ: Mapping[str, str]) -> Lookup:
    """Return the lookup of the `WARMSTACK_*` variables; an empty one counts as unset."""

    def find(choice: Choice) -> tuple[object, str] | None:
        value = environ.get(choice.variable, "") if choice.variable else ""
        return (value, f"environment variable {choice.variable}") if value else None

    return find


def ci(environ: Mapping[str, str]) -> Lookup:
    """Return the lookup that switches a project's reuse off where `CI` is set.

    A CI machine is thrown away: servers kept there serve nobody.
    """

    def find(choice: Choice) -> tuple[object, str] | None:
        if choice.name == "reuse" and environ.get("CI", "").lower() not in {"", "0", "false"}:
            return False, "environment variable CI"
        return None

    return find


def _converted(choice: Choice, raw: object, source: str) -> Any:
    """Return *raw* as the type that the choice has in `Settings`."""
    try:
        return _CONVERT[choice.kind](raw)
    except (ValueError, TypeError, KeyError):
        raise SettingsError.bad_value(
            name=choice.ini, value=raw, source=source, wanted=choice.kind.value
        ) from None


def _switch(raw: object) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True}
    words |= {"0": False, "false": False, "no": False, "off": False}
    return raw if isinstance(raw, bool) else words[str(raw).strip().lower()]


def _text(raw: object) -> str:
    if not (text := str(raw).strip()):
        raise ValueError
    return text


def _seconds(raw: object) -> float:
    seconds = float(str(raw))
    if not 0 < seconds < float("inf"):
        raise ValueError
    return seconds


def _lines(raw: object) -> tuple[str, ...]:
    if not isinstance(raw, (list, tuple)):
        raise TypeError
    lines = tuple(str(line).strip() for line in raw if str(line).strip())
    if not all(line.partition("=")[1] and line.partition("=")[0].isidentifier() for line in lines):
        raise ValueError
    return lines


_CONVERT: Final[Mapping[Kind, Callable[[object], Any]]] = {
    Kind.SWITCH: _switch,
    Kind.RUNTIME: lambda raw: RuntimeName(str(raw).strip().lower()),
    Kind.TEXT: _text,
    Kind.PATH: _text,
    Kind.SECONDS: _seconds,
    Kind.LINES: _lines,
}
