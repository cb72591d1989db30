"""The options: a row of `Settings` declares, converts, checks and documents one of them.

pytest's command line and configuration file, the `WARMSTACK_*` variables and the table in the
README derive from these rows. Only the functions at the end know pytest, and they import nothing of
it before they need it: the lower floors read `Settings` without pytest.
"""

# Without `from __future__ import annotations`: the rows are read from the annotations.

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

from pytest_warmstack.structs import Struct

if TYPE_CHECKING:
    import argparse

    import pytest


class RuntimeName(StrEnum):
    """Where the servers run."""

    AUTO = "auto"
    DOCKER = "docker"
    EMBEDDED = "embedded"
    EXTERNAL = "external"


class Isolation(StrEnum):
    """How a test is isolated from what other tests did to the database."""

    CLONE = "clone"
    FRESH_CLONE = "fresh-clone"
    CLASS = "class"
    MODULE = "module"
    SESSION = "session"
    ROLLBACK = "rollback"


class RedisPlan(StrEnum):
    """How Redis is shared: one database per process, or one server per process."""

    SHARED = "shared"
    PER_PROCESS = "per-process"


class Leaks(StrEnum):
    """What the run says about connections that tests leave open."""

    REPORT = "report"
    IGNORE = "ignore"


# URLs and their passwords


def without_password(url: str) -> str:
    """Return *url* with its password replaced by stars, even if it is malformed.

    >>> without_password("redis://:secret@db:6379"), without_password("ci:p@ss/word#1@db")
    ('redis://:***@db:6379', 'ci:***@db')
    >>> without_password("rediss://db?ssl_password=secret")
    'rediss://db?ssl_password=***'
    """
    url = re.sub(r"([?&]\w*password=)[^&]+", r"\1***", url)
    scheme, border, rest = url.partition("://") if "://" in url else ("", "", url)
    before, at, host = rest.rpartition("@")
    if not at:
        # In the place of a port there may be a password whose host was forgotten.
        return re.sub(r"(://[^:/?#\[]*:)(?!\d+(?:[/?#]|$)).+", r"\1***", url)
    user, colon, _ = before.partition(":")
    if "@" in user:  # The user's name, or the beginning of the password.
        user, colon = "", ""
    secret = f"{colon}***" if colon or "@" in before else ""
    return f"{scheme}{border}{user}{secret}@{host}"


class MaskedUrl(str):
    """A `str` whose `repr` hides the password: reports, tracebacks and logs show the `repr`.

    >>> url = MaskedUrl("redis://:secret@db/1")
    >>> url, str(url)
    ('redis://:***@db/1', 'redis://:secret@db/1')
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(without_password(self))


# Converters: they raise ValueError, TypeError or KeyError for a value that can't be used


class Refused(ValueError):
    """A value can't be used: *error* names the constructor of `SettingsError` that says why.

    *facts* are the arguments of that constructor, except for the name of the option.
    """

    def __init__(self, error: str = "bad_value", **facts: object) -> None:
        super().__init__(error)
        self.error = error
        self.facts = facts


_SWITCHES: Final = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


def _switch(raw: object) -> bool:
    return raw if isinstance(raw, bool) else _SWITCHES[str(raw).strip().lower()]


def _text(raw: object) -> str:
    if not (text := str(raw).strip()):
        raise ValueError
    return text


def _seconds(raw: object) -> float:
    seconds = float(str(raw))
    if not 0 < seconds < NEVER:
        raise ValueError
    return seconds


def _at_least(least: int) -> Callable[[object], int]:
    def convert(raw: object) -> int:
        if (count := int(str(raw))) < least:
            raise ValueError
        return count

    return convert


_UNITS: Final = {"d": 86400.0, "h": 3600.0, "min": 60.0, "m": 60.0, "s": 1.0}
"""Seconds in each unit of an age."""

NEVER: Final = float("inf")
"""The age, in seconds, that nothing reaches."""


def age(raw: object) -> float:
    """Return the seconds that a text such as `7d` stands for.

    Raises ValueError for any other text.

    >>> age("12h"), age("never")
    (43200.0, inf)
    """
    text = str(raw).strip().lower()
    if text == "never":
        return NEVER
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    seconds = float(number) * _UNITS.get(text[len(number) :].strip(), -1)
    if not 0 <= seconds < NEVER:
        raise ValueError(text)
    return seconds


def _shown_age(seconds: float) -> str:
    """Return what `age` reads as *seconds*, in the largest unit that divides them.

    >>> _shown_age(604800.0), _shown_age(5400.0), _shown_age(NEVER)
    ('7d', '90min', 'never')
    """
    if seconds == NEVER:
        return "never"
    unit = next((unit for unit, size in _UNITS.items() if seconds % size == 0), "s")
    return f"{seconds / _UNITS[unit]:g}{unit}"


def _url(raw: object, *schemes: str) -> str:
    from urllib.parse import urlsplit

    text = _text(raw)
    scheme, border, rest = text.partition("://")
    # The name of a driver doesn't matter to the server: `postgresql+asyncpg` is as good.
    if border and scheme.lower().partition("+")[0] not in schemes:
        raise Refused(
            "wrong_scheme", value=without_password(text), scheme=scheme, wanted=schemes[0]
        )
    if _is_ambiguous(rest):
        raise Refused("ambiguous", value=without_password(text))
    parts = urlsplit(text)
    if not border or not parts.hostname or parts.port == 0 or parts.fragment:
        raise ValueError
    return text


def _is_ambiguous(rest: str) -> bool:
    """Return whether *rest*, which follows the scheme of a URL, has a misplaced @ or bracket.

    It is usually a part of a password, or follows one that contains / ? or #: these end the part of
    a URL where a password may be.
    """
    place = re.split("[/?#]", rest, maxsplit=1)[0]
    path, _, query = rest[len(place) :].partition("?")
    if set("[]") & set(place.rpartition("@")[0]):
        return True
    return "@" in path or ("@" in query and not re.fullmatch(r"(\w+=[^&#]*&?)+", query))


def _postgres_url(raw: object) -> str:
    text = _url(raw, "postgresql", "postgres")
    # sslmode is the only parameter that all drivers understand in the same way.
    if not re.fullmatch(r"[^?]*(\?(sslmode=[a-z-]+)?)?", text):
        raise ValueError
    return text


def _redis_url(raw: object) -> str:
    text = _url(raw, "redis", "rediss")
    # Every process has a database of its own, so the URL can't name one.
    if text.partition("://")[2].partition("?")[0].partition("/")[2] not in {"", "0"}:
        raise ValueError
    return text


def _report(raw: object) -> str:
    """Return the place of the report about the cost: "yes" for the terminal, a file, or ""."""
    text = _text(raw)
    if text.lower() in _SWITCHES:
        return YES if _SWITCHES[text.lower()] else ""
    # A path of tests may follow the option, and must not be overwritten.
    if not text.endswith(".json"):
        raise Refused("not_json", value=raw)
    return text


YES: Final = "yes"
"""The value that shows the report about the cost on the terminal."""


def _lines(convert: Callable[[str], str] = str) -> Callable[[object], tuple[str, ...]]:
    """Return the converter of several lines: *convert* makes each; blank ones are left out."""

    def convert_all(raw: object) -> tuple[str, ...]:
        if not isinstance(raw, (list, tuple)):
            raise TypeError
        return tuple(convert(line) for each in raw if (line := str(each).strip()))

    return convert_all


def is_attribute(text: str) -> bool:
    """Return whether *text* names something in a module, as `package.module:attribute`.

    >>> is_attribute("shop.db:make_config"), is_attribute("conf/alembic.ini")
    (True, False)
    """
    module, colon, name = text.partition(":")
    words = (*module.split("."), *name.split("."))
    return bool(colon) and all(word.isidentifier() for word in words)


def _script(line: str) -> str:
    if not (line.endswith(".sql") or is_attribute(line)):
        raise Refused(value=line)
    return line


def _pair(line: str) -> str:
    name, sign, _ = line.partition("=")
    if not (sign and name.strip()):
        raise Refused(value=line)
    return line


def _variable(line: str) -> tuple[str, str]:
    name, sign, value = line.partition("=")
    if not (sign and name.isidentifier()):
        raise Refused(value=f"{name}=..." if sign else line)  # The value may be a secret.
    return name, value


DB_NAMES: Final = (
    *("db_url", "db_dsn", "db_host", "db_port", "db_user", "db_password", "db_name"),
)
"""The placeholders of `warmstack_env` for the test's database; for migrations, the template's."""

REDIS_NAMES: Final = (
    *("redis_url", "redis_host", "redis_port", "redis_user", "redis_password", "redis_db"),
)
"""The placeholders of `warmstack_env` for the process's first Redis database."""

BRACES: Final = r"\{\{\w+\}\}|\{(\w+)\}"
"""Matches a word in braces; the group is empty if they are doubled."""


def _line_of_env(line: str) -> str:
    name, value = _variable(line)
    for written in re.findall(BRACES, value):
        known = (*DB_NAMES, *REDIS_NAMES)
        if written and written not in known and (wanted := _nearest_name(written)):
            raise Refused(
                "no_placeholder",
                value=f"{name}=...",
                written=written,
                wanted=wanted,
                known=known,
            )
    return line


def _nearest_name(written: str) -> str:
    """Return the placeholder that *written* probably misspells; nothing for other names.

    >>> _nearest_name("db_ulr"), _nearest_name("DB_HOST"), _nearest_name("database_url")
    ('db_url', 'db_host', 'db_url')
    >>> _nearest_name("redis_uri"), _nearest_name("name")
    ('redis_url', '')
    """
    import difflib

    is_about_servers = re.match(r"(?i)db|database|pg|postgres|redis", written)
    cutoff = 0.0 if is_about_servers else 0.75
    names = REDIS_NAMES if written.lower().startswith("redis") else DB_NAMES
    return next(iter(difflib.get_close_matches(written.lower(), names, 1, cutoff)), "")


_FILES: Final = "the plugin makes the files of each server, in memory"
_LOGIN: Final = "the plugin connects with its own user, password and first database"

RESERVED: Final[Mapping[str, Mapping[str, str]]] = {
    "postgres_args": {
        "cluster_name": "the plugin recognises a kept server by it",
        "port": "the plugin chooses it",
        "listen_addresses": "the plugin chooses it: only this machine can reach the server",
        "unix_socket_directories": "the plugin connects over loopback, and removes no sockets",
        "ssl": "the plugin connects over loopback without TLS, and the server has no certificate",
        "data_directory": _FILES,
        "config_file": _FILES,
        "hba_file": _FILES,
        "ident_file": _FILES,
        "external_pid_file": _FILES,
        "dynamic_shared_memory_type": "a server that is killed must leave nothing in /dev/shm",
        "idle_session_timeout": "the plugin's connections are idle for long, and keep what a run"
        " uses from being removed; to set it for tests alone, use ALTER DATABASE in a migration",
        "track_activities": "the plugin finds connections that tests leave open by it",
        "track_counts": "the plugin sees by it whether anything connected to a database",
    },
    "postgres_env": {
        "POSTGRES_USER": f"{_LOGIN}; to make a role for the application, use CREATE ROLE in"
        " warmstack_seed or in a migration",
        "POSTGRES_USER_FILE": _LOGIN,
        "POSTGRES_PASSWORD": _LOGIN,
        "POSTGRES_PASSWORD_FILE": _LOGIN,
        "POSTGRES_DB": _LOGIN,
        "POSTGRES_DB_FILE": _LOGIN,
        "POSTGRES_HOST_AUTH_METHOD": "the plugin recognises its server by the password",
        "POSTGRES_INITDB_ARGS_FILE": "set the arguments themselves: POSTGRES_INITDB_ARGS",
        "POSTGRES_INITDB_WALDIR": _FILES,
        "PGDATA": _FILES,
        "PGPORT": "the plugin chooses the port",
        "WARMSTACK_PASSWORD": "the plugin finds the password of a kept server there",
    },
}
"""The names that users can't set in an option's lines, and why the plugin needs them."""

INITDB_ARGS: Final = "POSTGRES_INITDB_ARGS"
"""The variable with arguments for initdb, as the official Docker image takes it."""


def _check_reserved(option: str, name: str) -> None:
    if name in RESERVED[option]:
        raise Refused("reserved", value=name, cause=RESERVED[option][name])


def _address(line: str) -> str:
    if line == "*" or line.startswith("/"):
        return line
    host, _, port = line.rpartition(":")
    is_number = port.isascii() and port.isdigit() and 0 < int(port) < 65536
    name = host[1:-1] if host.startswith("[") and host.endswith("]") else host.replace(":", "/")
    if not (port == "*" or is_number) or not re.fullmatch(r"[\w.:%-]+", name):
        raise Refused(value=without_password(line))
    return line


def _postgres_setting(line: str) -> str:
    name, value = (part.strip() for part in _pair(line).split("=", 1))
    if not all(part.isascii() and part.isidentifier() for part in name.split(".")):
        raise Refused(value=line)
    # PostgreSQL ignores the case; in one case, a setting can't be given twice.
    name = name.lower()
    _check_reserved("postgres_args", name)
    return f"{name}={value}"


def _postgres_variable(line: str) -> str:
    name, value = _variable(line)
    if not name.isascii():
        raise Refused(value=f"{name}=...")
    _check_reserved("postgres_env", name)
    if name == INITDB_ARGS:
        try:
            words(value)
        except ValueError:  # A quote is not closed.
            raise Refused(value=line) from None
    return line


# Kinds of values


class Kind(NamedTuple):
    """A kind of value: what *wanted* calls it in errors, and how it is converted and shown.

    *ini* is pytest's type for it in a configuration file.
    """

    wanted: str
    convert: Callable[[object], Any]
    ini: Any = "string"
    show: Callable[[Any], str] = str


def _one_of(names: type[StrEnum]) -> Kind:
    return Kind(f"one of {', '.join(names)}", lambda raw: names(str(raw).strip().lower()))


def _list_of(
    wanted: str, convert: Callable[[str], str] = str, show: Callable[[Any], str] = ", ".join
) -> Kind:
    return Kind(wanted, _lines(convert), "linelist", show)


def _names_of(lines: Iterable[str]) -> str:
    return ", ".join(line.partition("=")[0] for line in lines)  # The values may be secrets.


SWITCH: Final = Kind("yes or no", _switch, "bool", lambda on: "yes" if on else "no")
FLAG: Final = SWITCH._replace(wanted="no value")
TEXT: Final = Kind("a text", _text)
PATH: Final = Kind("a path", _text)
CONFIG: Final = Kind("a path, package.module:function, or none", _text)
COUNT: Final = Kind("a whole number above 0", _at_least(1), "int")
LIMIT: Final = Kind("a whole number, 0 for none", _at_least(0), "int")
SECONDS: Final = Kind("a number of seconds above 0", _seconds, "float", lambda n: f"{n:g} s")
AGE: Final = Kind("a time such as 7d, 12h or 30min, or never", age, show=_shown_age)
RUNTIME: Final = _one_of(RuntimeName)
ISOLATION: Final = _one_of(Isolation)
REDIS: Final = _one_of(RedisPlan)
LEAKS: Final = _one_of(Leaks)
REPORT: Final = Kind("yes, no, or a path that ends with .json", _report)
POSTGRES_URL: Final = Kind(
    "a URL such as postgresql://role:password@host:5432?sslmode=require",
    _postgres_url,
    show=without_password,
)
REDIS_URL: Final = Kind(
    "a URL such as redis://:password@host:6379, without the number of a database",
    _redis_url,
    show=without_password,
)
PATTERNS: Final = _list_of("paths and patterns, one on a line")
SCRIPTS: Final = _list_of("lines like file.sql or package.module:attribute", _script)
ADDRESSES: Final = _list_of(
    "lines like host:5432, host:*, /path/of/a/socket, or * for everything", _address
)
PAIRS: Final = _list_of("lines like NAME=VALUE", _pair)
POSTGRES_ARGS: Final = _list_of(
    "lines like NAME=VALUE, with a NAME of letters, digits, _ and .", _postgres_setting
)
POSTGRES_ENV: Final = _list_of(
    "lines like NAME=VALUE, with a NAME of letters, digits and _", _postgres_variable, _names_of
)
ENV: Final = _list_of(
    "lines like NAME=VALUE, where a NAME has letters, digits and _, and a VALUE may have"
    f" {', '.join(f'{{{name}}}' for name in (*DB_NAMES, *REDIS_NAMES))}",
    _line_of_env,
    _names_of,
)


# The table


class Option(NamedTuple):
    """A row of the table.

    *flag* and *variable* are None where there is none: lists are for the configuration file only,
    and a FLAG is for the command line only.
    """

    name: str
    kind: Kind
    help: str
    default: Any
    flag: str | None
    variable: str | None

    @property
    def ini(self) -> str:
        """The key in pytest's configuration file, unless the kind is FLAG."""
        return f"warmstack_{self.name}"

    def shown(self, value: Any) -> str:
        """Return *value* for a reader, without secrets; a dash if there is none."""
        return "-" if value in (None, "", ()) else self.kind.show(value)


Lines = tuple[str, ...]


class Settings(Struct, frozen=True, kw_only=True):
    """The value of each option; the annotations are the rows of the table.

    *sources* says where each value that isn't the default was found, and *file* is pytest's
    configuration file, if there is one.
    """

    reuse: Annotated[bool, SWITCH, "Keep the servers after the run, for the next one"] = False
    runtime: Annotated[
        RuntimeName, RUNTIME, "Where the servers run: auto, docker, embedded, or external"
    ] = RuntimeName.AUTO
    postgres_image: Annotated[str, TEXT, "Docker image of PostgreSQL"] = "postgres:16-alpine"
    redis_image: Annotated[str, TEXT, "Docker image of Redis"] = "redis:7-alpine"
    postgres_url: Annotated[
        str, POSTGRES_URL, "URL of an external PostgreSQL server, used instead of starting one"
    ] = ""
    redis_url: Annotated[
        str, REDIS_URL, "URL of an external Redis server, used instead of starting one"
    ] = ""
    postgres_version: Annotated[
        int | None,
        COUNT,
        "Major version of an embedded PostgreSQL (default: that of the programs that you"
        " name, or of the image's tag)",
    ] = None
    postgres_bin: Annotated[str, PATH, "Folder with the programs of an embedded PostgreSQL"] = ""
    redis_bin: Annotated[str, PATH, "Folder with the program of an embedded Redis"] = ""
    embedded_folder: Annotated[
        str,
        PATH,
        "Folder for the files of embedded servers (default: memory, or a disk if memory is small)",
    ] = ""
    postgres_args: Annotated[
        Lines, POSTGRES_ARGS, "Settings of PostgreSQL, lines like max_connections=500"
    ] = ()
    postgres_env: Annotated[
        Lines,
        POSTGRES_ENV,
        "Variables for PostgreSQL, lines like POSTGRES_INITDB_ARGS=--locale-provider=icu",
    ] = ()
    alembic: Annotated[
        str,
        CONFIG,
        "Alembic's configuration: a file, package.module:function, or none for a project without"
        " Alembic (default: the nearest alembic.ini or pyproject.toml, from the tests to the root)",
    ] = ""
    alembic_section: Annotated[str, TEXT, "Section of alembic.ini, as in `alembic -n`"] = "alembic"
    alembic_x: Annotated[
        Lines, PAIRS, "Arguments for env.py, lines like NAME=VALUE, as in `alembic -x`"
    ] = ()
    schema: Annotated[
        Lines,
        SCRIPTS,
        "What runs before the migrations: lines like file.sql or package.module:attribute",
    ] = ()
    seed: Annotated[
        Lines,
        SCRIPTS,
        "What runs after the migrations: lines like file.sql or package.module:function",
    ] = ()
    env: Annotated[
        Lines,
        ENV,
        "Variables for the application and its migrations, lines like DATABASE_URL={db_url}",
    ] = ()
    autouse: Annotated[
        Lines,
        PATTERNS,
        "Tests that use the databases without a fixture: paths or names of markers",
    ] = ()
    depends: Annotated[
        Lines, PATTERNS, "Files that rebuild the template, besides those that the recorder detects"
    ] = ()
    depends_ignore: Annotated[
        Lines, PATTERNS, "Files that don't rebuild the template, although a build reads them"
    ] = ()
    keep_templates: Annotated[
        int, COUNT, "How many templates of a project stay on a kept server: the last used ones"
    ] = 8
    keep_failed: Annotated[
        int, LIMIT, "How many databases of failed tests are saved: the latest ones"
    ] = 3
    max_idle: Annotated[
        float, AGE, "How long a kept server of any project may be unused before a run removes it"
    ] = 7 * 86400.0
    isolation: Annotated[
        Isolation,
        ISOLATION,
        "What isolates tests: a clone for each test, class, module or process, or a rollback;"
        " a fresh-clone is never put back",
    ] = Isolation.CLONE
    clones_ahead: Annotated[int, COUNT, "How many clones are made ahead of the tests"] = 2
    allow: Annotated[
        Lines,
        ADDRESSES,
        "Other databases that tests may connect to, lines like host:5432, host:* or *",
    ] = ()
    leaks: Annotated[
        Leaks,
        LEAKS,
        "What the run says about connections that tests leave open: report, or ignore",
    ] = Leaks.REPORT
    report: Annotated[
        str,
        REPORT,
        "Report what the set-up cost: a table after the tests, or for machines a FILE.json",
    ] = ""
    redis: Annotated[
        RedisPlan,
        REDIS,
        "How Redis is shared: one database per process, or one server per process",
    ] = RedisPlan.SHARED
    redis_databases: Annotated[int, COUNT, "How many consecutive Redis databases a process has"] = 1
    rebuild: Annotated[bool, FLAG, "Build the template, even if there is a current one"] = False
    start_timeout: Annotated[float, SECONDS, "Seconds that a server may take to start"] = 60.0
    migrate_timeout: Annotated[float, SECONDS, "Seconds that the migrations may take"] = 300.0
    sources: Mapping[str, str] = {}
    file: str = ""

    def __repr__(self) -> str:
        """Show what was set, and where, without the values: they may be secrets."""
        return f"Settings({dict(self.sources)})"

    def url(self, service: str) -> str:
        """Return the URL of the external server of *service*, or ""."""
        return self.postgres_url if service == "postgres" else self.redis_url

    def place(self, name: str) -> str:
        """Return what the user has to change to change *name*: a flag, a variable or a key.

        It is the variable if *name* is not set.

        >>> Settings(sources={"redis_url": "pytest.ini"}).place("redis_url")
        "pytest.ini's warmstack_redis_url"
        """
        if name not in self.sources:
            return str(OPTIONS[name].variable)
        typed, file = _typed(OPTIONS[name], self.sources[name])
        return f"{file}'s {typed}" if file else typed


def _option(name: str, kind: Kind, text: str) -> Option:
    is_list = kind.ini == "linelist"
    flag = "--reuse-containers" if kind is SWITCH else f"--warmstack-{name.replace('_', '-')}"
    return Option(
        name=name,
        kind=kind,
        help=text,
        default=getattr(Settings, name),
        flag=None if is_list else flag,
        variable=None if is_list or kind is FLAG else f"WARMSTACK_{name.upper()}",
    )


OPTIONS: Final[Mapping[str, Option]] = {
    name: _option(name, *row.__metadata__)
    for name, row in Settings.__annotations__.items()
    if hasattr(row, "__metadata__")
}
"""The table, by the names of the fields of `Settings`."""


# How a value is found

OPTION: Final = "command line option "
VARIABLE: Final = "environment variable "
"""How a source that is not a file begins."""

Lookup = Callable[[Option], tuple[object, str] | None]
"""A place where values are found, such as the command line.

It returns the raw value of an option and the source, or None if the option isn't given there.
"""


def resolve(*lookups: Lookup) -> Settings:
    """Return the settings: the value of each option comes from the first lookup that has one.

    Raises `SettingsError` if that value can't be used.
    """
    values: dict[str, Any] = {}
    sources = {}
    for name, option in OPTIONS.items():
        found = next((found for lookup in lookups if (found := lookup(option))), None)
        if found is not None:
            values[name] = _converted(option, *found)
            sources[name] = found[1]
    settings = Settings(**values, sources=sources)
    if settings.runtime in {RuntimeName.DOCKER, RuntimeName.EMBEDDED}:
        for name in {"postgres_url", "redis_url"} & values.keys():
            from pytest_warmstack.settings_errors import SettingsError

            raise SettingsError.both(
                variable=settings.place(name),
                runtime=settings.runtime,
                setting=settings.place("runtime"),
            )
    return settings


def _converted(option: Option, raw: object, source: str) -> Any:
    try:
        return option.kind.convert(raw)
    except Refused as error:
        refused = error
    except (ValueError, TypeError, KeyError):
        is_url = option.kind.show is without_password
        refused = Refused(value=without_password(str(raw)) if is_url else raw)
    from pytest_warmstack.settings_errors import SettingsError

    name, file = _typed(option, source)
    facts = {"wanted": option.kind.wanted} if refused.error == "bad_value" else {}
    raise getattr(SettingsError, refused.error)(name=name, source=file, **facts, **refused.facts)


def _typed(option: Option, source: str) -> tuple[str, str]:
    """Return what the user typed to set *option*, and the file of it, if *source* is one."""
    for start in (OPTION, VARIABLE):
        if source.startswith(start):
            return source.removeprefix(start), ""
    return option.ini, source


def environment(environ: Mapping[str, str]) -> Lookup:
    """Return the lookup of the `WARMSTACK_*` variables; an empty one counts as unset."""

    def find(option: Option) -> tuple[object, str] | None:
        value = environ.get(option.variable, "") if option.variable else ""
        return (value, f"{VARIABLE}{option.variable}") if value else None

    return find


def ci(environ: Mapping[str, str]) -> Lookup:
    """Return the lookup that switches `reuse` off if `CI` is set.

    A CI machine is thrown away after the job, and with it the servers that were kept.
    """

    def find(option: Option) -> tuple[object, str] | None:
        is_ci = environ.get("CI", "").lower() not in {"", "0", "false"}
        return (False, f"{VARIABLE}CI") if is_ci and option.name == "reuse" else None

    return find


# pytest

_NO_REUSE: Final = "--no-reuse-containers"

_NO: Final = 0
"""What `--no-reuse-containers` stores: falsy for pytest-docker-tools, which reads the same value,
but not the False that is its default there."""


def add(parser: "pytest.Parser") -> None:
    """Declare every option to pytest, except for `--reuse-containers`: see `add_reuse`."""
    group = _group(parser)
    for option in OPTIONS.values():
        if option.kind is not FLAG:
            parser.addini(option.ini, option.help, type=option.kind.ini, default=None)
        if option.flag and option.kind is not SWITCH:
            action: dict[str, Any] = {"action": "store_true"} if option.kind is FLAG else {}
            if option.kind is REPORT:
                action = {"nargs": "?", "const": YES, "metavar": "FILE.json"}
            dest = f"warmstack_{option.name}"
            group.addoption(option.flag, dest=dest, help=option.help, default=None, **action)
    group.addoption(
        _NO_REUSE,
        dest="reuse_containers",
        action="store_const",
        const=_NO,
        help="Remove the servers after the run, whatever the configuration says",
    )


def add_reuse(parser: "pytest.Parser", pluginmanager: "pytest.PytestPluginManager") -> None:
    """Declare `--reuse-containers`, unless pytest-docker-tools is loaded, which has it too.

    pytest stops if an option is declared twice, so call this when all plugins are loaded.
    """
    # Look for the module: the plugin has another name if it was loaded with -p.
    other = sys.modules.get("pytest_docker_tools.plugin")
    if other is None or not pluginmanager.is_registered(other):
        option = OPTIONS["reuse"]
        _group(parser).addoption(
            str(option.flag),
            dest="reuse_containers",
            action="store_true",
            default=None,
            help=option.help,
        )


def _group(parser: "pytest.Parser") -> "pytest.OptionGroup":
    return parser.getgroup("warmstack", "real PostgreSQL and Redis, kept warm")


def read(config: "pytest.Config", line: "argparse.Namespace | None" = None) -> Settings:
    """Return the settings: the command line wins over the environment, that over the ini file.

    *line* is the parsed command line, if *config* doesn't have it yet. Raises `SettingsError`.
    """
    line = line or config.option
    file = config.inipath.name if config.inipath else ""
    here = config.invocation_params.dir
    beside = [config.inipath.parent] if config.inipath else []
    return resolve(
        _rooted(_command_line(line), here),
        _rooted(environment(os.environ), here),
        ci(os.environ),
        _rooted(_ini(config, line, file or "ini file"), *beside, config.rootpath),
    ).replace(file=file)


def _command_line(line: "argparse.Namespace") -> Lookup:
    def find(option: Option) -> tuple[object, str] | None:
        if option.kind is SWITCH:
            given = getattr(line, "reuse_containers", None)
            if given is None or given is False:
                return None
            return bool(given), f"{OPTION}{option.flag if given else _NO_REUSE}"
        value = getattr(line, f"warmstack_{option.name}", None)
        return None if value is None else (value, f"{OPTION}{option.flag}")

    return find


def _ini(config: "pytest.Config", line: "argparse.Namespace", file: str) -> Lookup:
    overridden = _overridden(line)

    def find(option: Option) -> tuple[object, str] | None:
        if option.kind is FLAG:
            return None
        source = f"{OPTION}-o {option.ini}" if option.ini in overridden else file
        try:
            value = config.getini(option.ini)
        except Exception as error:
            _refuse_ini(option, source, error)
            raise
        return None if value is None else (value, source)

    return find


def _refuse_ini(option: Option, source: str, error: Exception) -> None:
    """Raise `SettingsError` if *error* is pytest's refusal to convert a value."""
    import pytest

    from pytest_warmstack.settings_errors import SettingsError

    if not isinstance(error, (ValueError, TypeError, pytest.UsageError)):
        return
    name, file = _typed(option, source)
    # pytest's message for a value in TOML (`_getini_toml` in config/__init__.py).
    if typed := re.search(r"expects (an? .+), (?:got|but) .*?(?:: |is )(.+)$", str(error)):
        value = re.sub(r"=[^'\"]+", "=...", typed[2])  # The value of a NAME= may be a secret.
        raise SettingsError.bad_type(
            name=name, value=value, source=file, expected=typed[1]
        ) from None
    # Other messages end with the value.
    value = str(error).rpartition(" ")[2].strip("'\"")
    raise SettingsError.bad_value(
        name=name, value=value, source=file, wanted=option.kind.wanted
    ) from None


def _overridden(line: "argparse.Namespace") -> list[str]:
    """Return the keys that `-o` sets."""
    return [each.partition("=")[0] for each in line.override_ini or ()]


NONE: Final = "none"
"""The value that switches off what would be found otherwise."""


def _rooted(lookup: Lookup, *folders: Path) -> Lookup:
    """Return *lookup* with its relative paths made absolute: they begin at the last of *folders*.

    Alembic's configuration may also be in one of the others.
    """

    def find(option: Option) -> tuple[object, str] | None:
        found = lookup(option)
        if not found or not found[0] or option.kind not in (PATH, CONFIG, REPORT):
            return found
        path = str(found[0])
        if option.kind is REPORT and not path.endswith(".json"):
            return found
        if option.kind is CONFIG and (is_attribute(path) or path == NONE):
            return found
        others = folders if option.kind is CONFIG else ()
        folder = next((each for each in others if (each / path).is_file()), folders[-1])
        return os.path.normpath(folder / path), found[1]

    return find


# Misspelt names

_FREE: Final = "WARMSTACK_TEST_"
"""How variables begin that this plugin leaves to others."""


def refuse_unknown(arguments: Iterable[str]) -> None:
    """Raise `pytest.UsageError` for an unknown flag that begins like one of the plugin.

    pytest would refuse it as well, but can't tell which flag was meant.
    """
    known = [*(option.flag for option in OPTIONS.values() if option.flag), _NO_REUSE]
    for argument in arguments:
        name = argument.partition("=")[0]
        if name.startswith(("--warmstack", "--reuse-c", "--no-reuse-c")) and name not in known:
            import pytest

            raise pytest.UsageError(_unknown("option", name, known, "--warmstack-"))


def unknown(config: "pytest.Config") -> list[str]:
    """Return a sentence for each misspelt variable, and for each key of the ini file."""
    # pytest has no public name for the keys of its file; older versions have it without the _.
    keys = getattr(config, "_inicfg", None)
    keys = config.inicfg if keys is None else keys
    known = [option.ini for option in OPTIONS.values() if option.kind is not FLAG]
    told = [
        _unknown("configuration key", name, known, "warmstack_")
        for name in dict.fromkeys([*keys, *_overridden(config.option)])
        if name.startswith("warmstack_") and name not in known
    ]
    variables = [option.variable for option in OPTIONS.values() if option.variable]
    for name in os.environ:
        if not name.startswith("WARMSTACK_") or name.startswith(_FREE) or name in variables:
            continue
        option = OPTIONS.get(name.removeprefix("WARMSTACK_").lower())
        if option is None:
            told.append(_unknown("variable", name, variables, "WARMSTACK_"))
        else:
            right = option.flag or f"{option.ini} in pytest's configuration file"
            told.append(f"the variable {name} is not read; use {right}")
    return told


def _unknown(kind: str, name: str, known: Iterable[str], start: str) -> str:
    from pytest_warmstack.errors import did_you_mean

    return f"unknown {kind} {name}{did_you_mean(name, known, after=start)}"


# Lines and words of values


def words(text: str) -> list[str]:
    """Return the words of *text*, split as a shell does; raise ValueError for an open quote.

    >>> words("--locale-provider=icu --icu-rules='&a < b'")
    ['--locale-provider=icu', '--icu-rules=&a < b']
    """
    import shlex

    return shlex.split(text)


def pairs(lines: Iterable[str]) -> dict[str, str]:
    """Return the values of lines like NAME=VALUE by their names; the last line of a name wins."""
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def table() -> str:
    """Return the table of options in the README."""
    rows = ["| option | command line | ini | environment | default |", "|---|---|---|---|---|"]
    for option in OPTIONS.values():
        flag = f"`{option.flag}`" if option.flag else "-"
        if option.kind is SWITCH:
            flag += f", `{_NO_REUSE}`"
        variable = f"`{option.variable}`" if option.variable else "-"
        ini = "-" if option.kind is FLAG else f"`{option.ini}`"
        default = option.shown(option.default)
        default = default if default == "-" else f"`{default}`"
        rows.append(f"| {option.help} | {flag} | {ini} | {variable} | {default} |")
    return "\n".join(rows)
