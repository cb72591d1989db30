"""The choices a user has, in one table, and how a value for each is found.

Command line, ini file, environment and the README's table all derive from the rows of `CHOICES`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple


class RuntimeName(StrEnum):
    """Where the servers may run."""

    AUTO = "auto"
    DOCKER = "docker"
    EMBEDDED = "embedded"
    EXTERNAL = "external"


class Isolation(StrEnum):
    """How a test is kept from what others did to the database."""

    CLONE = "clone"
    CLASS = "class"
    MODULE = "module"
    ROLLBACK = "rollback"


class RedisPlan(StrEnum):
    """What of Redis a process has to itself."""

    SHARED = "shared"
    PER_PROCESS = "per-process"


class Leaks(StrEnum):
    """What is said of the connections that tests leave open."""

    REPORT = "report"
    IGNORE = "ignore"


class Kind(StrEnum):
    """What a choice takes; the value is how an error message says so."""

    SWITCH = "yes or no"
    RUNTIME = "one of auto, docker, embedded, external"
    ISOLATION = "one of clone, class, module, rollback"
    REDIS = "one of shared, per-process"
    LEAKS = "one of report, ignore"
    TEXT = "a text"
    PATH = "a path"
    SECONDS = "a number of seconds above 0"
    AGE = "a time such as 7d, 12h or 30min, or never"
    POSTGRES_URL = "a URL such as postgresql://role:password@host:5432?sslmode=require"
    REDIS_URL = "a URL such as redis://:password@host:6379, without a database's number"
    COUNT = "a whole number above 0"
    LIMIT = "a whole number, 0 for none"
    CONFIG = "a path, package.module:function, or none"
    FLAG = "nothing: it is given, or not"
    WORDS = "lines like NAME=VALUE"
    OPTIONS = "lines like NAME=VALUE, with a NAME of letters, digits, _ and ."
    VARIABLES = "lines like NAME=VALUE, with a NAME of letters, digits and _"
    PATTERNS = "paths and patterns, one on a line"
    SCRIPTS = "lines like file.sql or package.module:attribute"
    LINES = (
        "lines like NAME=VALUE, where {db_url}, {db_host}, {db_port}, {db_user}, {db_password} and"
        " {db_name} stand for the template's; a NAME has letters, digits and _"
    )


DB_NAMES: Final = ("db_url", "db_host", "db_port", "db_user", "db_password", "db_name")
"""What may stand in braces in a line of `env`."""

_SERVERS_FILES: Final = "the files of a server are made anew for each, in memory"
_WAY_IN: Final = "the user, the password and the first database are the plugin's way in"

RESERVED: Final[Mapping[Kind, Mapping[str, str]]] = {
    Kind.OPTIONS: {
        "cluster_name": "a kept server is recognised by it",
        "port": "the plugin chooses it",
        "listen_addresses": "the plugin chooses it: nobody but this machine can reach the server",
        "unix_socket_directories": "the plugin connects over loopback, and cleans no socket up",
        "ssl": "the plugin connects over loopback without TLS, and the server has no certificate",
        "data_directory": _SERVERS_FILES,
        "config_file": _SERVERS_FILES,
        "hba_file": _SERVERS_FILES,
        "ident_file": _SERVERS_FILES,
        "external_pid_file": _SERVERS_FILES,
        "dynamic_shared_memory_type": "a server that is killed must leave nothing in /dev/shm",
        "idle_session_timeout": "the plugin's connections wait for long, and what is in use by a"
        " run hangs on them; ALTER DATABASE in a migration sets it for the tests alone",
        "track_activities": "a connection that a test left open is found by it",
        "track_counts": "that somebody was connected to a database is seen by it",
    },
    Kind.VARIABLES: {
        "POSTGRES_USER": f"{_WAY_IN}; a role of the application's is made by CREATE ROLE in"
        " warmstack_seed or in a migration",
        "POSTGRES_USER_FILE": _WAY_IN,
        "POSTGRES_PASSWORD": _WAY_IN,
        "POSTGRES_PASSWORD_FILE": _WAY_IN,
        "POSTGRES_DB": _WAY_IN,
        "POSTGRES_DB_FILE": _WAY_IN,
        "POSTGRES_HOST_AUTH_METHOD": "a server of ours is told from others by its password",
        "POSTGRES_INITDB_ARGS_FILE": "the arguments themselves belong here: POSTGRES_INITDB_ARGS",
        "POSTGRES_INITDB_WALDIR": _SERVERS_FILES,
        "PGDATA": _SERVERS_FILES,
        "PGPORT": "the plugin chooses the port",
        "WARMSTACK_PASSWORD": "the plugin finds the password of a kept server there",
    },
}
"""The names that a user can't set, since the plugin needs them, and what for."""


LIBPQ: Final = (
    *("PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGUSER", "PGPASSWORD", "PGPASSFILE"),
    *("PGREQUIREAUTH", "PGCHANNELBINDING", "PGSERVICE", "PGSERVICEFILE", "PGSYSCONFDIR"),
    *("PGOPTIONS", "PGAPPNAME", "PGCLIENTENCODING", "PGDATESTYLE", "PGTZ", "PGGEQO"),
    *("PGSSLMODE", "PGREQUIRESSL", "PGSSLNEGOTIATION", "PGSSLCOMPRESSION", "PGSSLCERTMODE"),
    *("PGSSLSNI", "PGREQUIREPEER", "PGSSLMINPROTOCOLVERSION", "PGSSLMAXPROTOCOLVERSION"),
    *("PGGSSENCMODE", "PGKRBSRVNAME", "PGGSSLIB", "PGGSSDELEGATION", "PGCONNECT_TIMEOUT"),
    *("PGTARGETSESSIONATTRS", "PGLOADBALANCEHOSTS", "PGLOCALEDIR", "PGOAUTHDEBUG"),
    *("PGMINPROTOCOLVERSION", "PGMAXPROTOCOLVERSION"),
)
"""The variables that libpq reads, and asyncpg in part: what they say is about other servers.

(PostgreSQL's documentation, "libpq: Environment Variables".)
"""

CERTIFICATES: Final = ("PGSSLCERT", "PGSSLKEY", "PGSSLROOTCERT", "PGSSLCRL", "PGSSLCRLDIR")
"""The same for certificates: they count where an external server's URL asks for TLS."""


INITDB_ARGS: Final = "POSTGRES_INITDB_ARGS"
"""The variable with arguments for initdb, as the official image takes it."""


OPTION: Final = "command line option "
VARIABLE: Final = "environment variable "
"""How the sources begin that are no files."""


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
        """The key in pytest's configuration file; a FLAG has none."""
        return f"warmstack_{self.name}"


class Settings(NamedTuple):
    """What the user chose; `sources` tells where each value that is no default came from.

    `file` is the configuration file in use, if there is one.

    A NamedTuple, as `Choice` is: a dataclass takes longer to define, in every pytest run.
    """

    reuse: bool = False
    runtime: RuntimeName = RuntimeName.AUTO
    postgres_image: str = "postgres:16-alpine"
    redis_image: str = "redis:7-alpine"
    postgres_url: str = ""
    redis_url: str = ""
    postgres_version: int | None = None
    postgres_bin: str = ""
    redis_bin: str = ""
    embedded_folder: str = ""
    postgres_args: tuple[str, ...] = ()
    postgres_env: tuple[str, ...] = ()
    alembic: str = ""
    alembic_section: str = "alembic"
    alembic_x: tuple[str, ...] = ()
    schema: tuple[str, ...] = ()
    seed: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    depends: tuple[str, ...] = ()
    depends_ignore: tuple[str, ...] = ()
    keep_templates: int = 8
    keep_failed: int = 3
    max_idle: float = 7 * 86400.0
    isolation: Isolation = Isolation.CLONE
    clones_ahead: int = 2
    leaks: Leaks = Leaks.REPORT
    redis: RedisPlan = RedisPlan.SHARED
    redis_databases: int = 1
    rebuild: bool = False
    start_timeout: float = 60.0
    migrate_timeout: float = 300.0
    sources: Mapping[str, str] = {}
    file: str = ""

    def __repr__(self) -> str:
        """Name what was set, and where: the values may hold secrets."""
        return f"Settings({dict(self.sources)})"

    def place(self, name: str) -> str:
        """Return what the user has to change for another *name*: an option, a variable, a key.

        Of what is not set, the variable.

        >>> Settings(sources={"redis_url": "pytest.ini"}).place("redis_url")
        "pytest.ini's warmstack_redis_url"
        """
        source = self.sources.get(name, "")
        for kind in (OPTION, VARIABLE):
            if source.startswith(kind):
                return source.removeprefix(kind)
        choice = CHOICES[name]
        return f"{source}'s {choice.ini}" if source else str(choice.variable)


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
        variable=None if ini_only or kind is Kind.FLAG else f"WARMSTACK_{name.upper()}",
    )


CHOICES: Final[Mapping[str, Choice]] = dict(
    [
        _choice(
            "reuse",
            Kind.SWITCH,
            "Keep the servers after the run, for the next one to find",
            flag="--reuse-containers",
        ),
        _choice(
            "runtime",
            Kind.RUNTIME,
            "Where the servers run: auto, docker, embedded, or external ones of somebody else",
        ),
        _choice("postgres_image", Kind.TEXT, "Docker image of PostgreSQL"),
        _choice("redis_image", Kind.TEXT, "Docker image of Redis"),
        _choice(
            "postgres_url",
            Kind.POSTGRES_URL,
            "URL of a PostgreSQL server that somebody else runs, to be used instead of one of ours",
        ),
        _choice("redis_url", Kind.REDIS_URL, "URL of a Redis server that somebody else runs"),
        _choice(
            "postgres_version",
            Kind.COUNT,
            "Major version of PostgreSQL for the runtime embedded; else that of the folder below,"
            " or of the image's tag",
        ),
        _choice(
            "postgres_bin", Kind.PATH, "Folder of PostgreSQL's programs, for the runtime embedded"
        ),
        _choice("redis_bin", Kind.PATH, "Folder of Redis' program, for the runtime embedded"),
        _choice(
            "embedded_folder",
            Kind.PATH,
            "Folder for the files of embedded servers; else memory, or a disk where it is small",
        ),
        _choice(
            "postgres_args",
            Kind.OPTIONS,
            "PostgreSQL's own settings, lines like max_connections=500",
            ini_only=True,
        ),
        _choice(
            "postgres_env",
            Kind.VARIABLES,
            "Environment of PostgreSQL, lines like POSTGRES_INITDB_ARGS=--locale-provider=icu",
            ini_only=True,
        ),
        _choice(
            "alembic",
            Kind.CONFIG,
            "Alembic's configuration, or package.module:function that gives it, or none for a"
            " project without; else the nearest alembic.ini or pyproject.toml, from the tests to"
            " the root",
        ),
        _choice("alembic_section", Kind.TEXT, "Section of the ini file, as `alembic -n` takes it"),
        _choice(
            "alembic_x",
            Kind.WORDS,
            "Arguments for env.py, lines like NAME=VALUE, as `alembic -x` takes them",
            ini_only=True,
        ),
        _choice(
            "schema",
            Kind.SCRIPTS,
            "What the database begins with, lines of file.sql or package.module:attribute",
            ini_only=True,
        ),
        _choice(
            "seed",
            Kind.SCRIPTS,
            "What follows the migrations, lines of file.sql or package.module:function",
            ini_only=True,
        ),
        _choice(
            "env",
            Kind.LINES,
            "Environment of the migrations, lines like DATABASE_URL={db_url}",
            ini_only=True,
        ),
        _choice(
            "depends",
            Kind.PATTERNS,
            "Files whose change rebuilds the template, beyond those that a build is seen to read",
            ini_only=True,
        ),
        _choice(
            "depends_ignore",
            Kind.PATTERNS,
            "Files whose change does not, although a build reads them",
            ini_only=True,
        ),
        _choice(
            "keep_templates",
            Kind.COUNT,
            "How many templates stay in a kept server, the last used ones",
        ),
        _choice(
            "keep_failed",
            Kind.LIMIT,
            "How many databases of failed tests stay in a kept server, the last ones",
        ),
        _choice(
            "max_idle",
            Kind.AGE,
            "How long kept servers may be unused, of any project, before a run removes them",
        ),
        _choice(
            "isolation",
            Kind.ISOLATION,
            "What keeps tests apart: a clone for each test, class or module, or a rollback",
        ),
        _choice("clones_ahead", Kind.COUNT, "How many clones are made ahead of the tests"),
        _choice(
            "leaks",
            Kind.LEAKS,
            "What the run says of connections that tests leave open: report, or ignore",
        ),
        _choice(
            "redis",
            Kind.REDIS,
            "What of Redis a process has: a database of a shared server, or a server per process",
        ),
        _choice("redis_databases", Kind.COUNT, "How many Redis databases a process has, in a row"),
        _choice("rebuild", Kind.FLAG, "Build the template anew, whatever there is"),
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
    settings = Settings(**values, sources=sources)
    if settings.runtime in {RuntimeName.DOCKER, RuntimeName.EMBEDDED}:
        for name in ("postgres_url", "redis_url"):
            if name in values:
                from pytest_warmstack.settings_errors import SettingsError

                raise SettingsError.both(
                    variable=settings.place(name),
                    runtime=settings.runtime,
                    setting=settings.place("runtime"),
                )
    return settings


_FREE: Final = "WARMSTACK_TEST_"
"""How variables begin that are left to others: this plugin reads none of them."""


def unknown_variables(environ: Iterable[str]) -> Iterator[str]:
    """Yield a sentence for each variable that begins as those of the plugin, and is none."""
    for name in environ:
        if name.startswith("WARMSTACK_") and not name.startswith(_FREE):
            choice = CHOICES.get(name[len("WARMSTACK_") :].lower())
            if choice is None:
                known = [str(each.variable) for each in CHOICES.values() if each.variable]
                yield _unknown("variable", name, known, "WARMSTACK_")
            elif choice.variable is None:
                right = choice.flag or f"{choice.ini} in pytest's configuration file"
                yield f"the variable {name} is not read; use {right}"


def unknown_keys(names: Iterable[str]) -> Iterator[str]:
    """Yield a sentence for each key that begins as those of the plugin, and is none."""
    known = [choice.ini for choice in CHOICES.values() if choice.kind is not Kind.FLAG]
    for name in names:
        if name.startswith("warmstack_") and name not in known:
            yield _unknown("configuration key", name, known, "warmstack_")


def _unknown(kind: str, name: str, known: Sequence[str], start: str) -> str:
    from pytest_warmstack.errors import did_you_mean

    return f"unknown {kind} {name}{did_you_mean(name, known, after=start)}"


def environment(environ: Mapping[str, str]) -> Lookup:
    """Return the lookup of the `WARMSTACK_*` variables; an empty one counts as unset."""

    def find(choice: Choice) -> tuple[object, str] | None:
        value = environ.get(choice.variable, "") if choice.variable else ""
        return (value, f"{VARIABLE}{choice.variable}") if value else None

    return find


def ci(environ: Mapping[str, str]) -> Lookup:
    """Return the lookup that switches a project's reuse off where `CI` is set.

    A CI machine is thrown away: servers kept there serve nobody.
    """

    def find(choice: Choice) -> tuple[object, str] | None:
        if choice.name == "reuse" and environ.get("CI", "").lower() not in {"", "0", "false"}:
            return False, f"{VARIABLE}CI"
        return None

    return find


def _converted(choice: Choice, raw: object, source: str) -> Any:
    """Return *raw* as the type that the choice has in `Settings`."""
    try:
        return _CONVERT[choice.kind](raw)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        from pytest_warmstack.settings_errors import SettingsError

        if isinstance(error, _Reserved):
            raise SettingsError.reserved(
                name=choice.ini, value=error.name, source=source, cause=error.why
            ) from None
        # Of several lines the one that is wrong; and nobody's password.
        value = error.line if isinstance(error, _BadLine) else raw
        if choice.kind in {Kind.POSTGRES_URL, Kind.REDIS_URL}:
            value = without_password(str(raw))
        if isinstance(error, _NoPlaceholder):
            raise SettingsError.no_placeholder(
                name=choice.ini,
                value=value,
                source=source,
                written=error.found,
                wanted=error.nearest,
            ) from None
        if isinstance(error, _Ambiguous):
            raise SettingsError.ambiguous(name=choice.ini, value=value, source=source) from None
        if isinstance(error, _WrongScheme):
            raise SettingsError.wrong_scheme(
                name=choice.ini,
                value=value,
                source=source,
                scheme=error.scheme,
                wanted=error.wanted,
            ) from None
        raise SettingsError.bad_value(
            name=choice.ini, value=value, source=source, wanted=choice.kind.value
        ) from None


def _switch(raw: object) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True}
    words |= {"0": False, "false": False, "no": False, "off": False}
    return raw if isinstance(raw, bool) else words[str(raw).strip().lower()]


NONE: Final = "none"
"""What says that a thing which would be found is not to be used."""


def is_attribute(text: str) -> bool:
    """Tell whether *text* names something in a module, as `package.module:attribute`.

    >>> is_attribute("shop.db:make_config"), is_attribute("conf/alembic.ini")
    (True, False)
    """
    module, colon, name = text.partition(":")
    words = (*module.split("."), *name.split("."))
    return bool(colon) and all(word.isidentifier() for word in words)


def words(text: str) -> list[str]:
    """Return the words of *text*, with quotes obeyed, as a shell would read it.

    >>> words("--locale-provider=icu --icu-rules='&a < b'")
    ['--locale-provider=icu', '--icu-rules=&a < b']
    """
    import shlex

    return shlex.split(text)


def pairs(lines: Iterable[str]) -> dict[str, str]:
    """Return lines like NAME=VALUE by their names; of two for one name the later counts."""
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def _text(raw: object) -> str:
    if not (text := str(raw).strip()):
        raise ValueError
    return text


def _seconds(raw: object) -> float:
    seconds = float(str(raw))
    if not 0 < seconds < float("inf"):
        raise ValueError
    return seconds


def _count(raw: object) -> int:
    if (count := int(str(raw))) < 1:
        raise ValueError
    return count


_UNITS: Final = {"d": 86400.0, "h": 3600.0, "min": 60.0, "m": 60.0, "s": 1.0}

NEVER: Final = float("inf")
"""The age that nothing reaches."""


def age(raw: object) -> float:
    """Return the seconds that a text such as `7d` stands for; raise ValueError for another one.

    >>> age("12h"), age("never")
    (43200.0, inf)
    """
    text = str(raw).strip().lower()
    if text == "never":
        return NEVER
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz")
    seconds = float(number) * _UNITS[text[len(number) :].strip()]
    if not 0 <= seconds < NEVER:
        raise ValueError(text)
    return seconds


def shortest(seconds: float) -> str:
    """Return a time as `age` takes it, in the largest unit that divides it.

    >>> shortest(604800.0), shortest(5400.0)
    ('7d', '90min')
    """
    unit = next((unit for unit, size in _UNITS.items() if seconds % size == 0), "s")
    return f"{seconds / _UNITS[unit]:g}{unit}"


def without_password(url: str) -> str:
    """Return *url* with stars in the place of its password, also where it is no proper URL.

    >>> without_password("redis://:secret@db:6379"), without_password("ci:p@ss/word#1@db")
    ('redis://:***@db:6379', 'ci:***@db')
    >>> without_password("rediss://db?ssl_password=secret")
    'rediss://db?ssl_password=***'
    """
    url = re.sub(r"([?&]\w*password=)[^&]+", r"\1***", url)
    scheme, border, rest = url.partition("://") if "://" in url else ("", "", url)
    before, at, host = rest.rpartition("@")
    if not at:
        # What stands where a port should may be a password whose host was forgotten.
        return re.sub(r"(://[^:/?#\[]*:)(?!\d+(?:[/?#]|$)).+", r"\1***", url)
    user, colon, _ = before.partition(":")
    if "@" in user:  # The user's name, or the beginning of the password.
        user, colon = "", ""
    secret = f"{colon}***" if colon or "@" in before else ""
    return f"{scheme}{border}{user}{secret}@{host}"


class MaskedUrl(str):
    """A URL whose `repr` has no password, as reports, tracebacks and logs show it; else a `str`.

    >>> url = MaskedUrl("redis://:secret@db/1")
    >>> url, str(url)
    ('redis://:***@db/1', 'redis://:secret@db/1')
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(without_password(self))


def _url(raw: object, schemes: tuple[str, ...]) -> str:
    from urllib.parse import urlsplit

    text = _text(raw)
    scheme, border, rest = text.partition("://")
    # The driver is none of the server's business: `postgresql+asyncpg` is as good.
    if border and scheme.lower().partition("+")[0] not in schemes:
        raise _WrongScheme(scheme, schemes[0])
    if _is_ambiguous(rest):
        raise _Ambiguous
    parts = urlsplit(text)
    if not border or not parts.hostname or parts.port == 0 or parts.fragment:
        raise ValueError
    # Of what a query may say the drivers understand each something else, but for this.
    if schemes[0] == "postgresql" and not re.fullmatch(r"(sslmode=[a-z-]+)?", parts.query):
        raise ValueError
    return text


def _is_ambiguous(rest: str) -> bool:
    """Tell whether *rest*, what follows the scheme of a URL, has an @ or a bracket out of place.

    As a rule it is part of a password, or follows one that has a / ? or # in it: these end the
    part of a URL where a password may be.
    """
    place = re.split("[/?#]", rest, maxsplit=1)[0]
    path, _, query = rest[len(place) :].partition("?")
    if set("[]") & set(place.rpartition("@")[0]):
        return True
    return "@" in path or ("@" in query and not re.fullmatch(r"(\w+=[^&#]*&?)+", query))


def _redis_url(raw: object) -> str:
    text = _url(raw, ("redis", "rediss"))
    path = text.partition("://")[2].partition("?")[0].partition("/")[2]
    if path not in {"", "0"}:
        raise ValueError  # Every process has a database of its own; one number can't say which.
    return text


def _limit(raw: object) -> int:
    if (count := int(str(raw))) < 0:
        raise ValueError
    return count


class _BadLine(ValueError):
    """One line of several can't be used."""

    def __init__(self, line: str) -> None:
        super().__init__(line)
        self.line = line


class _NoPlaceholder(_BadLine):
    """What stands in braces in a line is no placeholder, and meant to be one."""

    def __init__(self, line: str, found: str, nearest: str) -> None:
        super().__init__(line)
        self.found = found
        self.nearest = nearest


class _Ambiguous(ValueError):
    """The password in a URL has characters that mean something else there."""


class _WrongScheme(ValueError):
    """A URL begins as that of something else."""

    def __init__(self, scheme: str, wanted: str) -> None:
        super().__init__(scheme)
        self.scheme = scheme
        self.wanted = wanted


class _Reserved(ValueError):
    """A line sets what the plugin needs for itself."""

    def __init__(self, kind: Kind, name: str) -> None:
        super().__init__(name)
        self.name = name
        self.why = RESERVED[kind][name]


def _patterns(raw: object) -> tuple[str, ...]:
    if not isinstance(raw, (list, tuple)):
        raise TypeError
    return tuple(str(line).strip() for line in raw if str(line).strip())


def _words(raw: object) -> tuple[str, ...]:
    lines = _patterns(raw)
    for line in lines:
        if not (line.partition("=")[1] and line.partition("=")[0].strip()):
            raise _BadLine(line)
    return lines


def _scripts(raw: object) -> tuple[str, ...]:
    lines = _patterns(raw)
    for line in lines:
        if not (line.endswith(".sql") or is_attribute(line)):
            raise _BadLine(line)
    return lines


def _lines(raw: object) -> tuple[str, ...]:
    lines = _words(raw)
    for line in lines:
        name, _, value = line.partition("=")
        shown = f"{name}=..."  # What follows may be a secret.
        if not name.isidentifier():
            raise _BadLine(shown)
        for found in _BRACES.findall(value):
            if found not in DB_NAMES and (nearest := _meant(found)):
                raise _NoPlaceholder(shown, found, nearest)
    return lines


_BRACES: Final = re.compile(r"\{\{\w+\}\}|\{(\w+)\}")
"""A word in braces; it is no group where they are doubled."""


def filled(text: str, values: Mapping[str, Any]) -> str:
    """Return *text* with *values* in the place of their names in braces; other braces stay.

    Doubled braces stand for braces where the whole text can be read like that.

    >>> filled('{"beta": "{db_host}"}', {"db_host": "::1"}), filled("{{db_host}}", {"db_host": ""})
    ('{"beta": "::1"}', '{db_host}')
    """
    try:
        return text.format_map(values)
    except (ValueError, KeyError, IndexError, AttributeError):  # JSON, for example.
        return _BRACES.sub(lambda found: str(values.get(found[1], found[0])), text)


_SECTION: Final = {
    "pyproject.toml": ", in the table of pytest",
    "setup.cfg": ", in the section of pytest",
    "tox.ini": ", in the section of pytest",
}
"""Where in a file that other tools use as well."""

_ROLES: Final = (
    (r"(URL|URI|DSN|CONN(ECTION)?_?STR(ING)?)(_A?SYNC)?", "{db_url}"),
    (r"(HOST|HOST_?NAME|SERVER|ADDR|ADDRESS)", "{db_host}"),
    (r"PORT", "{db_port}"),
    (r"(USER|USER_?NAME|LOGIN|ROLE)", "{db_user}"),
    (r"(PASSWORD|PASSWD|PASS|PWD)", "{db_password}"),
    (r"(DATABASE|DB|NAME)", "{db_name}"),
)
"""What the ends of variables' names stand for."""


def placeholder_of(variable: str) -> str:
    """Return the value that a line for *variable* needs, as far as its name tells.

    >>> placeholder_of("POSTGRES_SERVER"), placeholder_of("PGPASSWORD"), placeholder_of("HOME")
    ('{db_host}', '{db_password}', '')
    >>> placeholder_of("CELERY_BROKER_URL"), placeholder_of("REDIS_HOST"), placeholder_of("DB_ECHO")
    ('redis://localhost:1', 'localhost', '')
    >>> placeholder_of("RDS_HOSTNAME"), placeholder_of("POSTGRES_CONNECTION_STRING")
    ('{db_host}', '{db_url}')
    """
    name = variable.upper()
    role = next((value for end, value in _ROLES if re.search(f"{end}$", name)), "")
    if re.search(r"REDIS|CELERY|BROKER", name):
        # On port 1 nothing listens: migrations have no Redis.
        others = {"{db_url}": "redis://localhost:1", "{db_host}": "localhost", "{db_port}": "1"}
        return others.get(role, "")
    unlike = r"MONGO|MYSQL|PGADMIN|SQLITE|INFLUX"
    is_ours = re.search(r"(^|_)(DB|PG|SQL|PSQL|RDS|AURORA)|DATABASE|POSTGRES|ALEMBIC", name)
    return role if is_ours and not re.search(unlike, name) else ""


def lines_for(variables: Mapping[str, str], *, file: str, more: bool) -> str:
    """Return the advice to set *variables*, in the syntax of the configuration *file*.

    *more* says that there are other lines already. A file that is not there yet is pytest.ini.

    >>> print(lines_for({"PGHOST": "{db_host}", "PGPORT": "1"}, file="tox.ini", more=False))
    write in tox.ini, in the section of pytest:
    warmstack_env =
        PGHOST={db_host}
        PGPORT=1
    >>> print(lines_for({"DATABASE_URL": "{db_url}"}, file="pyproject.toml", more=True))
    add to warmstack_env in pyproject.toml:
        "DATABASE_URL={db_url}",
    """
    lines = [f"{name}={value}" for name, value in variables.items()]
    is_toml = file.endswith(".toml")
    entries = [f"    {json.dumps(line)}," if is_toml else f"    {line}" for line in lines]
    if more:
        return "\n".join([f"add to warmstack_env in {file or 'pytest.ini'}:", *entries])
    head = f"write in {file}{_SECTION.get(file, '')}:"
    if not file:
        head = "write in a new file pytest.ini:\n[pytest]"
    if len(lines) == 1:
        value = f"[{json.dumps(lines[0])}]" if is_toml else lines[0]
        return f"{head}\nwarmstack_env = {value}"
    if is_toml:
        return "\n".join([head, "warmstack_env = [", *entries, "]"])
    return "\n".join([head, "warmstack_env =", *entries])


def _meant(name: str) -> str:
    """Return the placeholder that *name* is probably meant to be; nothing if none is.

    >>> _meant("db_ulr"), _meant("DB_HOST"), _meant("database_url"), _meant("name")
    ('db_url', 'db_host', 'db_url', '')
    """
    import difflib

    is_about_servers = re.match(r"(?i)db|database|pg|postgres|redis", name)
    cutoff = 0.0 if is_about_servers else 0.75
    return next(iter(difflib.get_close_matches(name.lower(), DB_NAMES, 1, cutoff)), "")


def _options(raw: object) -> tuple[str, ...]:
    return tuple(f"{name}={value}" for name, value in _options_of(_words(raw)))


def _options_of(lines: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for line in lines:
        name, _, value = (part.strip() for part in line.partition("="))
        if not all(part.isascii() and part.isidentifier() for part in name.split(".")):
            raise _BadLine(line)
        # PostgreSQL takes them in any case; ours are in this one, and must not be given twice.
        if (name := name.lower()) in RESERVED[Kind.OPTIONS]:
            raise _Reserved(Kind.OPTIONS, name)
        yield name, value


def _variables(raw: object) -> tuple[str, ...]:
    lines = _patterns(raw)
    for line in lines:
        name, sign, value = line.partition("=")
        if not (sign and name.isascii() and name.isidentifier()):
            # What follows may be a secret.
            raise _BadLine(f"{name}=..." if sign else line)
        if name in RESERVED[Kind.VARIABLES]:
            raise _Reserved(Kind.VARIABLES, name)
        if name == INITDB_ARGS:
            try:
                words(value)
            except ValueError:  # A quote that is not closed.
                raise _BadLine(line) from None
    return lines


_CONVERT: Final[Mapping[Kind, Callable[[object], Any]]] = {
    Kind.SWITCH: _switch,
    Kind.RUNTIME: lambda raw: RuntimeName(str(raw).strip().lower()),
    Kind.ISOLATION: lambda raw: Isolation(str(raw).strip().lower()),
    Kind.REDIS: lambda raw: RedisPlan(str(raw).strip().lower()),
    Kind.LEAKS: lambda raw: Leaks(str(raw).strip().lower()),
    Kind.TEXT: _text,
    Kind.PATH: _text,
    Kind.SECONDS: _seconds,
    Kind.AGE: age,
    Kind.POSTGRES_URL: lambda raw: _url(raw, ("postgresql", "postgres")),
    Kind.REDIS_URL: _redis_url,
    Kind.COUNT: _count,
    Kind.LIMIT: _limit,
    Kind.CONFIG: _text,
    Kind.FLAG: _switch,
    Kind.WORDS: _words,
    Kind.OPTIONS: _options,
    Kind.VARIABLES: _variables,
    Kind.PATTERNS: _patterns,
    Kind.SCRIPTS: _scripts,
    Kind.LINES: _lines,
}
