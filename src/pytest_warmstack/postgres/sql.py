"""SQL texts. Only this module quotes names and values into SQL. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from pytest_warmstack.postgres import DatabaseName, State

MARK: Final = 0x77726D73
"""The connection limit of each database that this package makes: the letters `wrms`.

It proves who made a database; a name alone doesn't. CREATE DATABASE itself sets it, so no crash can
leave a database without it, and no test has so many connections.
"""

USED: Final = "warmstack "
"""Beginning of a note: when a template was last used, and by which project.

The note is the application_name of a role in the template, which accepts no connections. Besides
the comment, it is the only text that a role without SUPERUSER can attach to a database. The comment
is long, so writing it in each run would take too much time.
"""

_CLOCK: Final = "extract(epoch FROM clock_timestamp())::float8 AS now"
"""The server's time in seconds since the epoch: tests freeze the clock of their process."""

MANAGED_FACTS: Final = (
    f"SELECT current_setting('cluster_name') AS name, current_setting('fsync') AS fsync, {_CLOCK}"
)

EXTERNAL_FACTS: Final = (
    "SELECT current_setting('fsync') AS fsync, r.rolcreatedb OR r.rolsuper AS creates,"
    " r.rolsuper AS super,"
    " pg_is_in_recovery() AS standby, pg_backend_pid() AS pid,"
    " coalesce((SELECT s.ssl FROM pg_stat_ssl s WHERE s.pid = pg_backend_pid()), false) AS tls,"
    f" current_user AS role, {_CLOCK}"
    " FROM pg_roles r WHERE r.rolname = current_user"
)

BACKEND: Final = "SELECT pg_backend_pid()"

SIGNATURE: Final = '{"warmstack":'
"""Beginning of the comments that this package writes on databases."""

LEFT: Final = f'{SIGNATURE}"left"'
"""Beginning of the comment of an intermediate template."""

SEEDED: Final = f'{SIGNATURE}"seed"'
"""Beginning of the comment of a template with a marker's seeds. As long as `LEFT`."""

DRAFT: Final = f'{SIGNATURE}"draft"}}'
RETIRED: Final = f'{SIGNATURE}"retired"}}'
"""Comments of databases that are not yet, or no longer, a template."""

_SEALED: Final = "datistemplate AND NOT datallowconn"
_VISITS: Final = "coalesce((SELECT sessions FROM pg_stat_database s WHERE s.datid = d.oid), 0)"
_COMMENT: Final = "coalesce(shobj_description(d.oid, 'pg_database'), '')"

_NOTE: Final = (
    "coalesce((SELECT max(each) FROM pg_db_role_setting s, unnest(s.setconfig) each"
    f" WHERE s.setdatabase = d.oid AND each LIKE 'application\\_name={USED}%'), '')"
)
"""The note of a template. If several roles wrote one, it is the latest: notes begin with a time."""

_OURS: Final = (
    f"(datconnlimit IN ({MARK}, -2) OR shobj_description(d.oid, 'pg_database') LIKE '{SIGNATURE}%')"
)
"""True if this package made the database. -2 marks an interrupted drop (pg_database.h)."""

_CHANGEABLE: Final = "pg_has_role(d.datdba, 'USAGE')"
"""True if this role owns the database or has its owner's privileges, like a superuser."""

DATABASES: Final = (
    f"SELECT datname, {_SEALED} AS sealed, {_NOTE} AS note, {_VISITS} AS visits, {_CLOCK},"
    rf" CASE WHEN datname ~ '^warmstack_(k|dev)_' THEN {_COMMENT}"
    f" ELSE left({_COMMENT}, {len(LEFT)}) END AS comment"
    rf" FROM pg_database d WHERE datname LIKE 'warmstack\_%' AND {_OURS} AND {_CHANGEABLE}"
)
"""The databases that this role can drop. The query connects to none of them."""

TEMPLATES: Final = (
    f"SELECT datname, {_SEALED} AS sealed, {_NOTE} AS note, {_COMMENT} AS comment"
    rf" FROM pg_database d WHERE datname LIKE 'warmstack\_t\_%'"
    f" AND {_SEALED} AND {_OURS} AND {_CHANGEABLE}"
)
"""The templates that this role can use: the template's owner also owns what a clone contains."""

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
"""Settings that are lists of quoted names (GUC_LIST_QUOTE in PostgreSQL's guc_tables.c)."""

OWN_TABLES: Final = (
    "SELECT string_agg(oid::regclass::text, ', ') FROM pg_class"
    " WHERE relkind = 'r' AND relnamespace = 'pg_catalog'::regnamespace AND NOT relisshared"
)
"""PostgreSQL's own tables in a database, except the tables that all databases share."""

IS_CHANGED: Final = (
    "SELECT EXISTS (SELECT FROM pg_namespace WHERE oid >= 16384 UNION ALL"
    " SELECT FROM pg_class WHERE oid >= 16384 UNION ALL"
    " SELECT FROM pg_type WHERE oid >= 16384 UNION ALL"
    " SELECT FROM pg_proc WHERE oid >= 16384 UNION ALL"
    " SELECT FROM pg_extension WHERE oid >= 16384)"
    " OR (SELECT (encoding, datcollate, datctype) FROM pg_database WHERE datname = 'template0')"
    " <> (SELECT (encoding, datcollate, datctype) FROM pg_database WHERE datname = 'template1')"
)
"""Whether the database contains objects that initdb didn't make, or template1 was replaced.

Oids below 16384 are PostgreSQL's own (FirstNormalObjectId in its access/transam.h).
"""

SESSIONS: Final = (
    "SELECT application_name, coalesce(state, '') AS state, coalesce(query, '') AS query"
    " FROM pg_stat_activity WHERE datid = $1"
    " AND backend_type IN ('client backend', 'walsender') ORDER BY pid"
)
"""The connections to a database, found by oid: a test may have renamed the database."""

BUSY_SESSIONS: Final = SESSIONS.replace(" ORDER", " AND state IS DISTINCT FROM 'idle' ORDER")
"""The same without idle connections, as the application's pools keep them."""

ACTIVITY: Final = (
    "SELECT pid, state, coalesce(wait_event_type || ': ' || wait_event, '') AS waits,"
    " pg_blocking_pids(pid) AS blockers,"
    " extract(epoch FROM now() - query_start)::int AS seconds, query"
    " FROM pg_stat_activity WHERE datname = $1 AND state IS NOT NULL"
)

SINCE: Final = (
    "pg_snapshot_xmax(pg_current_snapshot())::text::int8 AS xid,"
    " pg_stat_get_db_stat_reset_time(d.oid) AS reset,"
    # After a crash PostgreSQL discards all statistics, though its first process lives on.
    " concat(pg_postmaster_start_time(), pg_stat_get_bgwriter_stat_reset_time()) AS started"
)
"""From when on changes to the database *d* count: see `put_back.Mark`."""

MOMENT: Final = f"SELECT oid, {SINCE} FROM pg_database d WHERE datname = $1"

OID: Final = "SELECT oid FROM pg_database WHERE datname = $1"
NAME_OF: Final = "SELECT datname FROM pg_database WHERE oid = $1"
VISITS: Final = "SELECT sessions FROM pg_stat_database WHERE datid = $1"
IS_TEMPLATE: Final = "SELECT datistemplate FROM pg_database WHERE datname = $1"

_KEYS: Final = "FROM unnest($1::text::bigint[]) key"
"""The keys are a text from `array`: for an array, asyncpg would first query the type."""

LOCK: Final = f"SELECT pg_try_advisory_lock(key) {_KEYS}"
LOCK_SHARED: Final = f"SELECT pg_try_advisory_lock_shared(key) {_KEYS}"
UNLOCK: Final = f"SELECT pg_advisory_unlock(key) {_KEYS}"
UNLOCK_SHARED: Final = f"SELECT pg_advisory_unlock_shared(key) {_KEYS}"

LOCKS: Final = (
    "SELECT l.classid::bigint << 32 | l.objid::bigint AS key,"
    " coalesce(a.application_name, '') AS application, a.client_addr, a.backend_start"
    " FROM pg_locks l LEFT JOIN pg_stat_activity a USING (pid)"
    " WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted"
    " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
"""The advisory locks and their holders. pg_locks shows a 64-bit key as two halves."""

USERS: Final = (
    "SELECT count(DISTINCT pid) FROM pg_stat_activity"
    " WHERE (starts_with(application_name, $1)"
    r" OR datname LIKE 'warmstack\_dev\_%' AND backend_type = 'client backend')"
    " AND pid <> pg_backend_pid()"
)
"""How many other connections are to a development database, or have a name that begins so."""

NAMES: Final = (
    f"SELECT datname, {_COMMENT} AS comment, {_NOTE} AS note FROM pg_database d ORDER BY oid"
)
"""All databases, including those that this package did not make."""

OVERVIEW: Final = (
    f"SELECT datname, {_SEALED} AS sealed, {_NOTE} AS note, {_COMMENT} AS comment,"
    " CASE WHEN has_database_privilege(d.oid, 'CONNECT') THEN pg_database_size(d.oid) END AS bytes"
    rf" FROM pg_database d WHERE datname LIKE 'warmstack\_%' AND {_OURS} ORDER BY oid"
)

END_SESSION: Final = (
    "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
    " WHERE pid = $1 AND application_name = current_setting('application_name')"
)
"""Ends an earlier connection of this process, found by pid, and waits for its end.

The name must match too, because another backend may have the pid by now.
"""

END_SESSIONS: Final = (
    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
    " WHERE datid = $1 AND backend_type = 'client backend'"
)
"""Ends all connections to a database, found by oid, and waits for their end."""

TERMINATE: Final = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datid = $1 AND backend_type IN ('client backend', 'walsender')"
)
"""Does the same, but doesn't wait; it returns a row for each connection."""

END_REPLICATION: Final = (
    "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE datoid = $1 AND active"
)
PREPARED_TRANSACTIONS: Final = "SELECT gid FROM pg_prepared_xacts WHERE database = $1"
SUBSCRIPTIONS: Final = "SELECT subname FROM pg_subscription WHERE subdbid = $1"
"""What prevents the drop of a database (PostgreSQL's documentation, "DROP DATABASE")."""

HOLDERS: Final = (
    "SELECT coalesce(datname, '') AS database, application_name AS application,"
    " coalesce(host(client_addr), 'this machine') AS client, count(*) AS connections,"
    " current_setting('max_connections')::int AS most"
    " FROM pg_stat_activity WHERE backend_type = 'client backend'"
    " GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1, 2"
)
"""The holders of the server's connections."""


def saved(test: str, run: str) -> str:
    """Return the comment of the database that *run* saved after *test* failed."""
    return json.dumps({"warmstack": "saved", "test": test, "run": run}, separators=(",", ":"))


def paused(test: str) -> str:
    """Return the comment of the database of *test*, which is paused in a debugger."""
    return json.dumps({"warmstack": "paused", "test": test}, separators=(",", ":"))


def development(values: Mapping[str, Any]) -> str:
    """Return the comment of a development database, with *values* as JSON."""
    return json.dumps({"warmstack": "development", **values}, separators=(",", ":"))


def read_development(comment: str) -> dict[str, Any]:
    """Return the values of a development database's comment; empty if it can't be read."""
    try:
        return dict(json.loads(comment))
    except (ValueError, TypeError):
        return {}


def test_of(comment: str) -> str:
    """Return the test that a database's comment names, or ""."""
    return _value_of(comment, "test")


def run_of(comment: str) -> str:
    """Return the run that the comment of a saved database names, or ""."""
    return _value_of(comment, "run")


def _value_of(comment: str, key: str) -> str:
    try:
        return str(json.loads(comment)[key])
    except (ValueError, TypeError, KeyError):
        return ""


def parse_note(note: str) -> tuple[float, str]:
    """Return the time (seconds since the epoch) and project of a note; (0.0, "") without one."""
    used, _, project = note.partition(USED)[2].partition(" ")
    try:
        return float(used), project
    except ValueError:
        return 0.0, ""


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


def array(numbers: Iterable[int]) -> str:
    """Return *numbers* as the text of an array.

    >>> array([1, -2])
    '{1,-2}'
    """
    return f"{{{','.join(map(str, numbers))}}}"


def settings(values: Mapping[str, str]) -> str:
    """Return the statements that change settings of a connection."""
    return "; ".join(f"SET {_setting(name)} TO {literal(value)}" for name, value in values.items())


def create(name: DatabaseName, template: str) -> str:
    """Return the statement that creates a database from PostgreSQL's own *template*."""
    return f"CREATE DATABASE {quote(str(name))} TEMPLATE {template} CONNECTION LIMIT {MARK}"


def copy(source: DatabaseName, name: DatabaseName, *, by_file: bool) -> str:
    """Return the statement that copies a database; *by_file*, not block by block."""
    strategy = " STRATEGY FILE_COPY" if by_file else ""
    return f"{create(name, quote(str(source)))}{strategy}"


def note(name: DatabaseName, *, used: float, project: str) -> str:
    """Return the statement that notes when a template was last used, and by which project."""
    text = literal(f"{USED}{used:.3f} {project}")
    return f"ALTER ROLE CURRENT_USER IN DATABASE {quote(str(name))} SET application_name TO {text}"


def comment(name: DatabaseName, text: str) -> str:
    """Return the statement that sets the comment of a database."""
    return f"COMMENT ON DATABASE {quote(str(name))} IS {literal(text)}"


def rename(old: DatabaseName, new: DatabaseName) -> str:
    """Return the statement that renames a database."""
    return f"ALTER DATABASE {quote(str(old))} RENAME TO {quote(str(new))}"


def allow_connections(name: DatabaseName, *, allowed: bool) -> str:
    """Return the statement after which clients can, or can't, connect to a database."""
    return f"ALTER DATABASE {quote(str(name))} ALLOW_CONNECTIONS {str(allowed).lower()}"


def seal(name: DatabaseName) -> str:
    """Return the statement that makes a database a template and forbids connections."""
    return f"ALTER DATABASE {quote(str(name))} IS_TEMPLATE true ALLOW_CONNECTIONS false"


def unseal(name: str) -> str:
    """Return the statement after which a template can be dropped."""
    return f"ALTER DATABASE {quote(name)} IS_TEMPLATE false"


def drop(name: str, *, missing_ok: bool = True) -> str:
    """Return the statement that drops a database and ends the connections to it."""
    condition = "IF EXISTS " if missing_ok else ""
    return f"DROP DATABASE {condition}{quote(name)} WITH (FORCE)"


def stock(template: DatabaseName) -> str:
    """Return the query for the ready clones of *template* that never had a connection."""
    beginning = str(DatabaseName(State.READY, template.fingerprint)).replace("_", r"\_")
    return (
        f"SELECT datname, oid, {SINCE} FROM pg_database d"
        f" WHERE datname LIKE {literal(beginning + '%')}"
        f" AND datconnlimit <> -2 AND {_OURS} AND {_CHANGEABLE} AND {_VISITS} = 0 ORDER BY oid"
    )


def properties(name: DatabaseName) -> str:
    """Return the query for the properties of a database that CREATE DATABASE doesn't copy.

    See PostgreSQL's documentation, "CREATE DATABASE".
    """
    return _PROPERTIES.format(name=literal(str(name)))


def apply_properties(properties: Mapping[str, Any], name: DatabaseName, role: str) -> list[str]:
    """Return the statements that give the copy *name*, made by *role*, its source's *properties*.

    *properties* is the row that the query of `properties` returns for the source.
    """
    copy = quote(str(name))
    owner, limit, grants = (properties[key] for key in ("owner", "datconnlimit", "grants"))
    statements = []
    if owner != role:
        statements.append(f"ALTER DATABASE {copy} OWNER TO {quote(owner)}")
    if limit != MARK:
        # The project has set its own limit; a comment replaces the mark.
        statements.append(comment(name, DRAFT))
        statements.append(f"ALTER DATABASE {copy} CONNECTION LIMIT {limit}")
    for user, settings in json.loads(properties["settings"] or "[]"):
        whom = f"ALTER ROLE {quote(user)} IN DATABASE" if user else "ALTER DATABASE"
        for setting in settings:
            key, _, value = setting.partition("=")
            if not setting.startswith(f"application_name={USED}"):
                statements.append(f"{whom} {copy} SET {_setting(key)} TO {_value(key, value)}")
    if grants is not None:
        # PostgreSQL lists grants only after the first change, but then all of them.
        statements.append(f"REVOKE ALL ON DATABASE {copy} FROM PUBLIC, {quote(owner)}")
        for grantee, privilege, grantable in json.loads(grants):
            to = quote(grantee) if grantee else "PUBLIC"
            option = " WITH GRANT OPTION" if grantable and grantee != owner else ""
            statements.append(f"GRANT {privilege} ON DATABASE {copy} TO {to}{option}")
    return statements


def _setting(name: str) -> str:
    """Return the name of a setting, which may be that of an extension, as SQL."""
    return ".".join(quote(part) for part in name.split("."))


def _value(name: str, value: str) -> str:
    """Return the value of a setting, as PostgreSQL stores it, as SQL."""
    if name.lower() in _LISTS:
        return value.replace('""', "''") or "''"
    return literal(value)
