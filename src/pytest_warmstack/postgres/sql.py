"""The texts of our SQL, and the only room where names and values are quoted into it. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from pytest_warmstack.postgres import DatabaseName, State

MARK: Final = 0x77726D73
"""The limit of connections that every database of ours is made with: `wrms`, read as letters.

A name alone is no proof that a database is ours, and a mark that is set afterwards is missing if
we are killed in between. This one comes with CREATE DATABASE itself, and is never reached.
"""

USED: Final = "warmstack "
"""How the note begins that tells when a template was used last, by whom, and for what.

It is the application_name of a role in the template, which nobody can connect to: the one text
beside its comment that a role without SUPERUSER may leave with a database. The comment is long,
and would be written anew on every run.
"""

_CLOCK: Final = "extract(epoch FROM clock_timestamp())::float8 AS now"
"""The server's time of day, in seconds since the epoch: tests freeze their own."""

NAME: Final = (
    f"SELECT current_setting('cluster_name') AS name, current_setting('fsync') AS fsync, {_CLOCK}"
)

GREETING: Final = (
    "SELECT current_setting('fsync') AS fsync, r.rolcreatedb OR r.rolsuper AS creates,"
    " pg_is_in_recovery() AS standby, pg_backend_pid() AS pid,"
    " coalesce((SELECT s.ssl FROM pg_stat_ssl s WHERE s.pid = pg_backend_pid()), false) AS tls,"
    f" current_user AS role, {_CLOCK}"
    " FROM pg_roles r WHERE r.rolname = current_user"
)
"""What has to be known of a server that is not ours."""

BACKEND: Final = "SELECT pg_backend_pid()"

SIGNATURE: Final = '{"warmstack":'
"""How the comments of our databases begin, those that have one."""

LEFT: Final = f'{SIGNATURE}"left"'
"""How the comment of a template begins that was made on the way to another."""

DRAFT: Final = f'{SIGNATURE}"draft"}}'
RETIRED: Final = f'{SIGNATURE}"retired"}}'
"""What the comments of such databases of ours say that are no template, or no longer."""

_SEALED: Final = "datistemplate AND NOT datallowconn"
_VISITS: Final = "coalesce((SELECT sessions FROM pg_stat_database s WHERE s.datid = d.oid), 0)"
"""How many connections there have been to a database."""

_COMMENT: Final = "coalesce(shobj_description(d.oid, 'pg_database'), '')"
_NOTE: Final = (
    "coalesce((SELECT max(each) FROM pg_db_role_setting s, unnest(s.setconfig) each"
    f" WHERE s.setdatabase = d.oid AND each LIKE 'application\\_name={USED}%'), '')"
)
"""The note of a template; of several roles' the latest, since it begins with the time."""

_OURS: Final = (
    f"(datconnlimit IN ({MARK}, -2) OR shobj_description(d.oid, 'pg_database') LIKE '{SIGNATURE}%')"
)
"""A limit of -2 marks a database whose drop was interrupted (PostgreSQL's pg_database.h)."""

_CHANGEABLE: Final = "pg_has_role(d.datdba, 'USAGE')"
"""We own it, or have the rights of the role that does, as a superuser has."""

DATABASES: Final = (
    f"SELECT datname, {_SEALED} AS sealed, {_NOTE} AS note, {_VISITS} AS visits, {_CLOCK},"
    rf" CASE WHEN datname LIKE 'warmstack\_k\_%' THEN {_COMMENT}"
    f" ELSE left({_COMMENT}, {len(LEFT)}) END AS comment"
    rf" FROM pg_database d WHERE datname LIKE 'warmstack\_%' AND {_OURS} AND {_CHANGEABLE}"
)
"""Asked of the server as a whole: nothing of ours ever connects to a template.

What belongs to another role is that one's to drop.
"""

TEMPLATES: Final = (
    f"SELECT datname, {_SEALED} AS sealed, {_NOTE} AS note, {_COMMENT} AS comment"
    rf" FROM pg_database d WHERE datname LIKE 'warmstack\_t\_%'"
    f" AND {_SEALED} AND {_OURS} AND {_CHANGEABLE}"
)
"""Those that we can use: what is in a clone of another role's belongs to that role."""

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

IS_CHANGED: Final = (
    "SELECT EXISTS (SELECT FROM pg_namespace WHERE oid >= 16384 UNION ALL"
    " SELECT FROM pg_class WHERE oid >= 16384 UNION ALL"
    " SELECT FROM pg_type WHERE oid >= 16384 UNION ALL"
    " SELECT FROM pg_proc WHERE oid >= 16384 UNION ALL"
    " SELECT FROM pg_extension WHERE oid >= 16384)"
    " OR (SELECT (encoding, datcollate, datctype) FROM pg_database WHERE datname = 'template0')"
    " <> (SELECT (encoding, datcollate, datctype) FROM pg_database WHERE datname = 'template1')"
)
"""Whether the database that is connected to holds what initdb did not make.

Or whether template1 was replaced, with another encoding or locale. Smaller numbers are PostgreSQL's
own (FirstNormalObjectId in its access/transam.h).
"""

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

NAMES: Final = (
    f"SELECT datname, {_COMMENT} AS comment, {_NOTE} AS note FROM pg_database d ORDER BY oid"
)
"""All databases, whoever has made them, with their comments and notes."""

OVERVIEW: Final = (
    f"SELECT datname, {_SEALED} AS sealed, {_NOTE} AS note, {_COMMENT} AS comment,"
    " CASE WHEN has_database_privilege(d.oid, 'CONNECT') THEN pg_database_size(d.oid) END AS bytes"
    rf" FROM pg_database d WHERE datname LIKE 'warmstack\_%' AND {_OURS} ORDER BY oid"
)
"""All that there is of ours, with the bytes that each takes."""

HELD_BY: Final = (
    "SELECT l.classid::bigint << 32 | l.objid::bigint AS key, a.application_name AS application"
    " FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
    " WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted"
)
"""Who holds which of our locks."""

END: Final = (
    "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
    " WHERE pid = $1 AND application_name = current_setting('application_name')"
)
"""End a connection like the one that asks, by its backend's number, and wait until it has ended.

The name as well, since the number may be another backend's by now.
"""

END_ALL: Final = (
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
    " WHERE datid = $1 AND backend_type = 'client backend'"
)
"""End all connections to a database, by its oid, and wait until they have ended."""

HOLDERS: Final = (
    "SELECT coalesce(datname, '') AS database, application_name AS application,"
    " coalesce(host(client_addr), 'this machine') AS client, count(*) AS connections,"
    " current_setting('max_connections')::int AS most"
    " FROM pg_stat_activity WHERE backend_type = 'client backend'"
    " GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1, 2"
)
"""Who holds the connections of the server."""


def kept(test: str, run: str) -> str:
    """Return the comment of a database that is kept: whose it is, and which run tells of it."""
    return json.dumps({"warmstack": "kept", "test": test, "run": run}, separators=(",", ":"))


def paused(test: str) -> str:
    """Return the comment of a database in use by *test*, which is in a debugger."""
    return json.dumps({"warmstack": "paused", "test": test}, separators=(",", ":"))


def test_of(comment: str) -> str:
    """Return the test that a database's comment names; nothing when it names none."""
    return _named(comment, "test")


def run_of(comment: str) -> str:
    """Return the run that a kept database's comment names; nothing when it names none."""
    return _named(comment, "run")


def _named(comment: str, what: str) -> str:
    try:
        return str(json.loads(comment)[what])
    except (ValueError, TypeError, KeyError):
        return ""


def noted(note: str) -> dict[str, Any]:
    """Return what the note of a template tells: `used`, `project`; nothing if it is none."""
    used, _, project = note.partition(USED)[2].partition(" ")
    try:
        return {"used": float(used), "project": project}
    except ValueError:
        return {}


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


def settings(values: Mapping[str, str]) -> str:
    """Return the statements that give a connection settings of its own."""
    return "; ".join(f"SET {_setting(name)} TO {literal(value)}" for name, value in values.items())


def create(name: DatabaseName, template: str) -> str:
    """Return the statement that makes a database like PostgreSQL's own *template*."""
    return f"CREATE DATABASE {quote(str(name))} TEMPLATE {template} CONNECTION LIMIT {MARK}"


def copy(source: DatabaseName, name: DatabaseName, *, by_file: bool) -> str:
    """Return the statement that copies a database, *by_file* instead of block by block."""
    strategy = " STRATEGY FILE_COPY" if by_file else ""
    return (
        f"CREATE DATABASE {quote(str(name))} TEMPLATE {quote(str(source))}"
        f" CONNECTION LIMIT {MARK}{strategy}"
    )


def note(name: DatabaseName, *, used: float, project: str) -> str:
    """Return the statement that notes on a template when it was used last, and for what."""
    text = literal(f"{USED}{used:.3f} {project}")
    return f"ALTER ROLE CURRENT_USER IN DATABASE {quote(str(name))} SET application_name TO {text}"


def comment(name: DatabaseName, text: str) -> str:
    """Return the statement that gives a database a comment."""
    return f"COMMENT ON DATABASE {quote(str(name))} IS {literal(text)}"


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
        f" AND datconnlimit <> -2 AND {_OURS} AND {_CHANGEABLE} AND {_VISITS} = 0 ORDER BY oid"
    )


def properties(name: DatabaseName) -> str:
    """Return the query for what belongs to a database and is not copied with it.

    (PostgreSQL's documentation, "CREATE DATABASE".)
    """
    return _PROPERTIES.format(name=literal(str(name)))


def dress(row: Mapping[str, Any], us: str) -> list[tuple[str, str]]:
    """Return what makes a copy like its source, from the source's row of `properties`.

    Each statement is the text before the copy's name, and the one after it. *us* is the role that
    makes the copy.
    """
    statements = []
    if row["owner"] != us:
        statements.append(("ALTER DATABASE ", f" OWNER TO {quote(row['owner'])}"))
    if row["datconnlimit"] != MARK:
        # With a limit of the project's own, a comment takes the place of our mark.
        statements.append(("COMMENT ON DATABASE ", f" IS {literal(DRAFT)}"))
        statements.append(("ALTER DATABASE ", f" CONNECTION LIMIT {row['datconnlimit']}"))
    for role, settings in json.loads(row["settings"] or "[]"):
        for setting in settings:
            name, _, value = setting.partition("=")
            if not setting.startswith(f"application_name={USED}"):
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
