"""The choices a user has, in one table, and how a value for each is found.

Command line, ini file, environment and the README's table all derive from the rows of `CHOICES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Final, NamedTuple


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
    LINES = (
        "lines like NAME=VALUE, where {db_url}, {db_host}, {db_port}, {db_user}, {db_password} and"
        " {db_name} stand for the template's"
    )


DB_NAMES: Final = ("db_url", "db_host", "db_port", "db_user", "db_password", "db_name")
"""What may stand in braces in a line of `env`."""


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


class Settings(NamedTuple):
    """What the user chose; `sources` tells where each value that is no default came from.

    A NamedTuple, as `Choice` is: a dataclass takes longer to define, in every pytest run.
    """

    reuse: bool = False
    runtime: RuntimeName = RuntimeName.AUTO
    postgres_image: str = "postgres:16-alpine"
    redis_image: str = "redis:7-alpine"
    postgres_bin: str = ""
    redis_bin: str = ""
    alembic: str = ""
    env: tuple[str, ...] = ()
    start_timeout: float = 60.0
    migrate_timeout: float = 300.0
    sources: Mapping[str, str] = {}


def _choice(
    name: str, kind: Kind, text: str, *, flag: str = "", ini_only: bool = False
) -> tuple[str, Choice]:
    """Return a row of the table; the option's name is the field's, except where *flag* gives one.

    The default is the field's own.
    """
    return name, Choice(
        name=name,
        kind=kind,
        default=Settings._field_defaults[name],
        help=text,
        flag=None if ini_only else flag or f"--warmstack-{name.replace('_', '-')}",
        variable=None if ini_only else f"WARMSTACK_{name.upper()}",
    )


CHOICES: Final[Mapping[str, Choice]] = dict(
    [
        _choice(
            "reuse",
            Kind.SWITCH,
            "Keep the servers after the run, for the next one to find",
            flag="--reuse-containers",
        ),
        _choice("runtime", Kind.RUNTIME, "Where the servers run: auto, docker or embedded"),
        _choice("postgres_image", Kind.TEXT, "Docker image of PostgreSQL"),
        _choice("redis_image", Kind.TEXT, "Docker image of Redis"),
        _choice(
            "postgres_bin", Kind.PATH, "Folder of PostgreSQL's programs, for the runtime embedded"
        ),
        _choice("redis_bin", Kind.PATH, "Folder of Redis' program, for the runtime embedded"),
        _choice(
            "alembic",
            Kind.PATH,
            "Alembic's configuration; else alembic.ini, then pyproject.toml, at the root",
        ),
        _choice(
            "env",
            Kind.LINES,
            "Environment of the migrations, lines like DATABASE_URL={db_url}",
            ini_only=True,
        ),
        _choice("start_timeout", Kind.SECONDS, "Deadline for a server to be ready, in seconds"),
        _choice("migrate_timeout", Kind.SECONDS, "Deadline for the migrations to end, in seconds"),
    ]
)
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
    except (ValueError, TypeError, KeyError, IndexError):
        from pytest_warmstack.errors import SettingsError

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
    for line in lines:
        line.format_map(dict.fromkeys(DB_NAMES, ""))  # Unknown names, and stray braces, raise.
    return lines


_CONVERT: Final[Mapping[Kind, Callable[[object], Any]]] = {
    Kind.SWITCH: _switch,
    Kind.RUNTIME: lambda raw: RuntimeName(str(raw).strip().lower()),
    Kind.TEXT: _text,
    Kind.PATH: _text,
    Kind.SECONDS: _seconds,
    Kind.LINES: _lines,
}
