"""The texts of our SQL, and the only room where names and values are quoted into it. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from pytest_warmstack.identity import DatabaseName, State

USER: Final = "postgres"
"""Who we are on a server of ours: its superuser."""

USED: Final = "warmstack.used"
"""The setting of a template that tells when it was used last, in epoch seconds.

A setting, and not part of its comment, since that is long and this is written on every run.
"""

_SEALED: Final = "datistemplate AND NOT datallowconn"
_VISITS: Final = "coalesce((SELECT sessions FROM pg_stat_database s WHERE s.datid = d.oid), 0)"
"""How many connections there have been to a database."""

_COMMENT: Final = "coalesce(shobj_description(d.oid, 'pg_database'), '')"
_SETTINGS: Final = (
    "(SELECT array_agg(each) FROM pg_db_role_setting s, unnest(s.setconfig) each"
    " WHERE s.setdatabase = d.oid AND s.setrole = 0)"
)

DATABASES: Final = (
    f"SELECT datname, {_SEALED} AS sealed, {_SETTINGS} AS settings, {_VISITS} AS visits"
    r" FROM pg_database d WHERE datname LIKE 'warmstack\_%'"
)
"""Asked of the server as a whole: nothing of ours ever connects to a template."""

TEMPLATES: Final = (
    f"SELECT datname, {_SEALED} AS sealed, {_SETTINGS} AS settings, {_COMMENT} AS comment"
    rf" FROM pg_database d WHERE datname LIKE 'warmstack\_t\_%' AND {_SEALED}"
)

_PROPERTIES: Final = (
    f"SELECT {_SEALED} AS sealed, pg_get_userbyid(d.datdba) AS owner, datconnlimit,"
    " (SELECT json_agg(json_build_array(coalesce(pg_get_userbyid(nullif(a.grantee, 0)), ''),"
    " a.privilege_type, a.is_grantable)) FROM aclexplode(d.datacl) a) AS grants,"
    " (SELECT json_agg(json_build_array(coalesce(r.rolname, ''), s.setconfig))"
    " FROM pg_db_role_setting s LEFT JOIN pg_roles r ON r.oid = s.setrole"
    " WHERE s.setdatabase = d.oid) AS settings"
    " FROM pg_database d WHERE datname = {name}"
)

_LISTS: Final = {
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
}
"""Settings whose value is a list of quoted names (GUC_LIST_QUOTE in PostgreSQL's guc_tables.c)."""

OWN_TABLES: Final = (
    "SELECT string_agg(oid::regclass::text, ', ') FROM pg_class"
    " WHERE relkind = 'r' AND relnamespace = 'pg_catalog'::regnamespace AND NOT relisshared"
)
"""PostgreSQL's own tables in a database, but for those that all databases share."""

SESSIONS: Final = (
    "SELECT application_name, coalesce(state, '') AS state, coalesce(query, '') AS query"
    " FROM pg_stat_activity WHERE datid = $1"
    " AND backend_type IN ('client backend', 'walsender') ORDER BY pid"
)
"""Who is connected to a database, by its oid: a test may have given it another name."""

OID: Final = "SELECT oid FROM pg_database WHERE datname = $1"

IS_TEMPLATE: Final = "SELECT datistemplate FROM pg_database WHERE datname = $1"

_KEYS: Final = "FROM unnest($1::text::bigint[]) key"
"""A list of numbers as a text: an array would have asyncpg ask for its type first."""

LOCK: Final = f"SELECT pg_try_advisory_lock(key) {_KEYS}"
LOCK_SHARED: Final = f"SELECT pg_try_advisory_lock_shared(key) {_KEYS}"
UNLOCK: Final = f"SELECT pg_advisory_unlock(key) {_KEYS}"
UNLOCK_SHARED: Final = f"SELECT pg_advisory_unlock_shared(key) {_KEYS}"
"""Take advisory locks that are free, and let go of them. The parameter is made by `numbers`."""

HELD: Final = (
    "SELECT classid::bigint << 32 | objid::bigint AS key FROM pg_locks"
    " WHERE locktype = 'advisory' AND objsubid = 1 AND granted AND database ="
    " (SELECT oid FROM pg_database WHERE datname = current_database())"
)
"""The advisory locks that somebody holds; a 64-bit key is shown as its two halves."""

END: Final = (
    "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
    " WHERE pid = $1 AND application_name = current_setting('application_name')"
)
"""End a connection like the one that asks, by its backend's number, and wait until it has ended.

The name as well, since the number may be another backend's by now.
"""

HOLDERS: Final = (
    "SELECT coalesce(datname, '') AS database, application_name AS application,"
    " coalesce(host(client_addr), 'this machine') AS client, count(*) AS connections,"
    " current_setting('max_connections')::int AS most"
    " FROM pg_stat_activity WHERE backend_type = 'client backend'"
    " GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1, 2"
)
"""Who holds the connections of the server."""


def quote(name: str) -> str:
    """Return *name* as a quoted SQL identifier.

    >>> quote('a"b')
    '"a""b"'
    """
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


def literal(text: str) -> str:
    """Return *text* as a quoted SQL string."""
    escaped = text.replace("'", "''")
    return f"'{escaped}'"


def numbers(keys: Iterable[int]) -> str:
    """Return *keys* as the text of an array.

    >>> numbers([1, -2])
    '{1,-2}'
    """
    return f"{{{','.join(map(str, keys))}}}"


def create(name: DatabaseName) -> str:
    """Return the statement that makes an empty database."""
    return f"CREATE DATABASE {quote(str(name))}"


def copy(source: DatabaseName, name: DatabaseName, major: int) -> str:
    """Return the statement that copies a database, on a server of the version *major*."""
    # FILE_COPY is the faster one where durability is off, and brings the template's relation
    # cache along. Before PostgreSQL 15 it is the only way there is.
    strategy = " STRATEGY FILE_COPY" if major >= 15 else ""
    return f"CREATE DATABASE {quote(str(name))} TEMPLATE {quote(str(source))}{strategy}"


def rename(old: DatabaseName, new: DatabaseName) -> str:
    """Return the statement that gives a database another name."""
    return f"ALTER DATABASE {quote(str(old))} RENAME TO {quote(str(new))}"


def drop(name: str, *, missing_ok: bool = True) -> str:
    """Return the statement that drops a database, whoever is connected to it."""
    condition = "IF EXISTS " if missing_ok else ""
    return f"DROP DATABASE {condition}{quote(name)} WITH (FORCE)"


def unseal(name: str) -> str:
    """Return the statement that makes a template one that can be dropped."""
    return f"ALTER DATABASE {quote(name)} IS_TEMPLATE false"


def stock(template: DatabaseName) -> str:
    """Return the query for the clones of *template* that stand ready and nobody has looked into.

    A limit of -2 marks one whose drop was interrupted (PostgreSQL's pg_database.h).
    """
    beginning = str(DatabaseName(State.READY, template.fingerprint)).replace("_", r"\_")
    return (
        f"SELECT datname FROM pg_database d WHERE datname LIKE {literal(beginning + '%')}"
        f" AND datconnlimit <> -2 AND {_VISITS} = 0 ORDER BY oid"
    )


def properties(name: DatabaseName) -> str:
    """Return the query for what belongs to a database and is not copied with it.

    (PostgreSQL's documentation, "CREATE DATABASE".)
    """
    return _PROPERTIES.format(name=literal(str(name)))


def dress(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what makes a copy like its source, from the source's row of `properties`.

    Each statement is the text before the copy's name, and the one after it.
    """
    statements = []
    if row["owner"] != USER:
        statements.append(("ALTER DATABASE ", f" OWNER TO {quote(row['owner'])}"))
    if row["datconnlimit"] >= 0:
        statements.append(("ALTER DATABASE ", f" CONNECTION LIMIT {row['datconnlimit']}"))
    for role, settings in json.loads(row["settings"] or "[]"):
        for setting in settings:
            name, _, value = setting.partition("=")
            if name != USED:
                to = f" SET {_setting(name)} TO {_value(name, value)}"
                whom = f"ALTER ROLE {quote(role)} IN DATABASE " if role else "ALTER DATABASE "
                statements.append((whom, to))
    if row["grants"] is not None:
        # Grants that were never touched are no grants here; with the first, all are listed.
        statements += [("REVOKE ALL ON DATABASE ", f" FROM PUBLIC, {quote(row['owner'])}")]
        for grantee, privilege, grantable in json.loads(row["grants"]):
            option = " WITH GRANT OPTION" if grantable and grantee != row["owner"] else ""
            to = f" TO {quote(grantee) if grantee else 'PUBLIC'}{option}"
            statements.append((f"GRANT {privilege} ON DATABASE ", to))
    return statements


def dressing(pairs: Sequence[tuple[str, str]], name: DatabaseName) -> str:
    """Return the statements of `dress` for the copy *name*."""
    return "; ".join(f"{before}{quote(str(name))}{after}" for before, after in pairs)


def _setting(name: str) -> str:
    """Return the name of a setting, which may be that of an extension, as SQL."""
    return ".".join(quote(part) for part in name.split("."))


def _value(name: str, value: str) -> str:
    """Return the value of a setting, as PostgreSQL stores it, as SQL."""
    if name.lower() in _LISTS:
        return value.replace('""', "''") or "''"
    return literal(value)
