"""Fills in the lines of `warmstack_env`, and suggests the lines that a project needs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from pytest_warmstack.options import BRACES, DB_NAMES, REDIS_NAMES

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
"""The variables that libpq reads, and some of which asyncpg reads: they describe other servers.

See PostgreSQL's documentation, "libpq: Environment Variables".
"""

CERTIFICATES: Final = ("PGSSLCERT", "PGSSLKEY", "PGSSLROOTCERT", "PGSSLCRL", "PGSSLCRLDIR")
"""The variables for certificates, which apply if the URL of an external server asks for TLS."""


SERVER_PARAMETERS: Final = re.compile(
    r"ssl|gss|krbsrvname|host|port$|user|password|passfile|dbname|database|service|require"
    r"|channel_binding|target_session_attrs|load_balance_hosts|direct_tls"
)
"""How the parameters of a URL begin that describe its own server and user."""

NO_REDIS: Final[Mapping[str, object]] = {
    "redis_url": "redis://localhost:1/0",
    "redis_host": "localhost",
    "redis_port": 1,
    "redis_user": "",
    "redis_password": "",
    "redis_db": 0,
}
"""What migrations get: nothing listens on port 1."""


def services(lines: Iterable[str]) -> set[str]:
    """Return the services whose placeholders *lines* of `warmstack_env` have.

    >>> sorted(services(["DATABASE_URL={db_url}", "CACHE={redis_host}:{redis_port}"]))
    ['postgres', 'redis']
    >>> services(["DEBUG=1", "JSON={{db_url}}"])
    set()
    """
    found = {name for line in lines for name in re.findall(BRACES, line)}
    named = {"postgres": found.intersection(DB_NAMES), "redis": found.intersection(REDIS_NAMES)}
    return {service for service, names in named.items() if names}


def url_like(own: str, url: str) -> str:
    """Return the PostgreSQL *url* with the driver and the options of *own*, if *own* is one too.

    Options that describe the server of *own* are left out.

    >>> url_like("postgresql+psycopg://me@prod/shop?application_name=x", "postgresql+asyncpg://db/a")
    'postgresql+psycopg://db/a?application_name=x'
    >>> url_like("", "postgresql+asyncpg://db/a?ssl=require")
    'postgresql+asyncpg://db/a?ssl=require'
    """
    scheme = re.match(r"postgres(ql)?(\+\w+)?://", own)
    if scheme is None:
        return url
    address, _, query = url.partition("://")[2].partition("?")
    tls = "ssl" if scheme[2] == "+asyncpg" else "sslmode"
    options = [re.sub(r"^ssl(mode)?=", f"{tls}=", each) for each in query.split("&") if each]
    kept = own.partition("?")[2].split("&")
    options += [each for each in kept if each and not SERVER_PARAMETERS.match(each)]
    return f"{scheme[0]}{address}{'?' if options else ''}{'&'.join(options)}"


def filled(text: str, values: Mapping[str, Any]) -> str:
    """Return *text* with *values* in place of their names in braces; keep other braces.

    Doubled braces mean single ones if the whole text is a valid format string.

    >>> filled('{"beta": "{db_host}"}', {"db_host": "::1"}), filled("{{db_host}}", {"db_host": ""})
    ('{"beta": "::1"}', '{db_host}')
    """
    try:
        return text.format_map(values)
    except (ValueError, KeyError, IndexError, AttributeError):  # JSON, for example.
        return re.sub(BRACES, lambda found: str(values.get(found[1], found[0])), text)


_ROLES: Final = (
    (r"(URL|URI|DSN|CONN(ECTION)?_?STR(ING)?)(_A?SYNC)?", "{db_url}"),
    (r"(HOST|HOST_?NAME|SERVER|ADDR|ADDRESS)", "{db_host}"),
    (r"PORT", "{db_port}"),
    (r"(USER|USER_?NAME|LOGIN|ROLE)", "{db_user}"),
    (r"(PASSWORD|PASSWD|PASS|PWD)", "{db_password}"),
    (r"(DATABASE|DB|NAME)", "{db_name}"),
)
"""The placeholder for each ending of a variable's name."""

_FOR_REDIS: Final = {
    **{f"{{db_{part}}}": f"{{redis_{part}}}" for part in ("url", "host", "port", "user")},
    "{db_password}": "{redis_password}",
    "{db_name}": "{redis_db}",
}
"""The placeholder for a variable that is about Redis."""


def placeholder_of(variable: str) -> str:
    """Return the value that a line for *variable* needs, judged by its name.

    >>> placeholder_of("POSTGRES_SERVER"), placeholder_of("PGPASSWORD"), placeholder_of("HOME")
    ('{db_host}', '{db_password}', '')
    >>> placeholder_of("CELERY_BROKER_URL"), placeholder_of("REDIS_HOST"), placeholder_of("DB_ECHO")
    ('{redis_url}', '{redis_host}', '')
    >>> placeholder_of("RDS_HOSTNAME"), placeholder_of("POSTGRES_CONNECTION_STRING")
    ('{db_host}', '{db_url}')
    """
    name = variable.upper()
    role = next((value for end, value in _ROLES if re.search(f"{end}$", name)), "")
    if re.search(r"REDIS|CELERY|BROKER", name):
        return _FOR_REDIS.get(role, "")
    if re.search(r"MONGO|MYSQL|PGADMIN|SQLITE|INFLUX", name):
        return ""
    is_postgres = r"(^|_)(DB|PG|SQL|PSQL|RDS|AURORA)|DATABASE|POSTGRES|ALEMBIC"
    return role if re.search(is_postgres, name) else ""


_SECTIONS: Final = {
    "pyproject.toml": ", in the table of pytest",
    "setup.cfg": ", in the section of pytest",
    "tox.ini": ", in the section of pytest",
}
"""Where pytest's configuration is in files that other tools share."""


def lines_for(variables: Mapping[str, str], *, file: str, more: bool) -> str:
    """Return the advice to set *variables*, in the syntax of the configuration *file*.

    *more* means that `warmstack_env` has lines already. Without a file, suggest a new pytest.ini.

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
    return entries_for("warmstack_env", lines, file=file, more=more)


def entries_for(key: str, lines: Sequence[str], *, file: str, more: bool = False) -> str:
    r"""Return the advice to add *lines* to the list *key*, in the syntax of *file*.

    >>> entries_for("warmstack_allow", ["db:5432"], file="pyproject.toml")
    'write in pyproject.toml, in the table of pytest:\nwarmstack_allow = ["db:5432"]'
    """
    is_toml = file.endswith(".toml")
    entries = [f"    {json.dumps(line)}," if is_toml else f"    {line}" for line in lines]
    if more:
        return "\n".join([f"add to {key} in {file or 'pytest.ini'}:", *entries])
    head = f"write in {file}{_SECTIONS.get(file, '')}:"
    if not file:
        head = "write in a new file pytest.ini:\n[pytest]"
    if len(lines) == 1:
        value = f"[{json.dumps(lines[0])}]" if is_toml else lines[0]
        return f"{head}\n{key} = {value}"
    if is_toml:
        return "\n".join([head, f"{key} = [", *entries, "]"])
    return "\n".join([head, f"{key} =", *entries])
