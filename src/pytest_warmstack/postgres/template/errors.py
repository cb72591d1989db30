"""Errors about templates."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Self

from pytest_warmstack.errors import WarmstackError, line_of, listed

_MAX_LISTED: Final = 10
"""How many configurations an error lists."""


class Failure(NamedTuple):
    """An error of the project's own code, as the child process reports it.

    *where* is the revision or the line, *output* has the last lines that the code wrote. *state* is
    PostgreSQL's SQLSTATE, or `refused` for a connection that the child blocked. *first* is true for
    the first of all revisions. *hints* are lines that would set missing variables.
    """

    cause: str
    where: str = ""
    output: str = ""
    state: str = ""
    first: bool = False
    hints: Sequence[str] = ()

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> Self:
        """Return the failure in the *report* of the child process."""
        facts = {name: report[name] for name in cls._fields if name in report}
        return cls(report.get("error", ""), **facts)

    @property
    def is_in_env_py(self) -> bool:
        """Whether Alembic's env.py failed, and no revision."""
        return self.where.startswith("in env.py")

    @property
    def place(self) -> str:
        """The place of the failure, to append to a sentence."""
        return f" {self.where}" if self.where else ""


class TemplateFailed(WarmstackError):
    """The template could not be built. No incomplete database is left."""

    @classmethod
    def no_file(cls, *, layer: str, file: str, source: str) -> TemplateFailed:
        """A file that warmstack_alembic, warmstack_schema or warmstack_seed names is missing.

        Without a *source*, db_factory names an Alembic configuration.
        """
        what = f"{layer} file"
        todo = ["write a path relative to pytest's root, or package.module:attribute"]
        if layer == "alembic":
            what = "Alembic configuration"
            todo = [
                "correct the path; it is relative to pytest's configuration file, or to pytest's "
                "root",
                "or remove the setting: tests then use the nearest one in or above their folder",
            ][: 2 if source else 1]
        return cls(
            f"The {what} {file} does not exist.",
            why="no such file",
            looked_at=_setting(layer, source) if source else ["the arguments of db_factory"],
            todo=todo,
        )

    @classmethod
    def elsewhere(cls, *, found: Sequence[str], root: str, file: str) -> TemplateFailed:
        """Tests would get an empty database although there are configurations below *root*."""
        shown = [*found[:_MAX_LISTED]]
        if len(found) > _MAX_LISTED:
            shown.append(f"and {len(found) - _MAX_LISTED} more")
        several = len(found) > 1
        move = ["move these tests into the folder of their service"]
        return cls(
            "Could not find an Alembic configuration for the tests that use a database.",
            why="the folders of these tests, and those above them up to "
            f"{root}, have neither an alembic.ini nor a pyproject.toml with [tool.alembic]; "
            f"elsewhere there is {', '.join(shown)}",
            todo=[
                *(move if several else []),
                f"{'or, ' if several else ''}in {file or 'a new pytest.ini'}, choose "
                f"{'one for all tests' if several else 'it'}: "
                + line_of("warmstack_alembic", found[0], file),
                "or, if the tests create their tables themselves: "
                + line_of("warmstack_alembic", "none", file),
            ],
        )

    @classmethod
    def bad_alembic(cls, failure: Failure, *, config: str) -> TemplateFailed:
        """Alembic can't read its configuration."""
        return cls(
            f"The Alembic configuration {config} can't be used.",
            why=failure.cause,
            looked_at=_output(failure),
            todo=[
                "choose a section of that file"
                if failure.cause.startswith("it has no section")
                else "fix it until `alembic heads` works in the project's root"
            ],
        )

    @classmethod
    def bad_function(cls, failure: Failure, *, function: str, source: str) -> TemplateFailed:
        """The function that `warmstack_alembic` names does not return a configuration."""
        return cls(
            f"The function {function} did not return an Alembic configuration.",
            why=f"{failure.cause}{failure.where and f' ({failure.where})'}",
            looked_at=[*_setting("alembic", source), *_output(failure)],
            todo=_loop_hints(failure.cause)
            or [
                *failure.hints,
                "write package.module:function, for a function that the tests can import; it gets "
                "the URL if it takes a parameter, and either returns an alembic.config.Config or "
                "runs the migrations itself",
                "if the project has no migrations: " + line_of("warmstack_alembic", "none", source),
            ],
        )

    @classmethod
    def no_config(cls, *, function: str) -> TemplateFailed:
        """pytest-alembic needs a configuration, but the project's *function* returns none."""
        return cls(
            f"The function {function} returned no Alembic configuration for pytest-alembic.",
            why="it runs the migrations itself",
            looked_at=[],
            todo=[
                "let it return the alembic.config.Config, and not call alembic.command.upgrade",
                "or write the fixture alembic_config yourself, in conftest.py",
            ],
        )

    @classmethod
    def bad_revisions(
        cls, failure: Failure, *, config: str, unseen: Sequence[str]
    ) -> TemplateFailed:
        """The revisions are inconsistent; *unseen* are patterns of those that Alembic ignores."""
        ignore = (
            "if you leave them out on purpose, list them in the pytest configuration (in "
            "pyproject.toml as a list):\n" + "\n    ".join(["warmstack_depends_ignore =", *unseen])
        )
        return cls(
            "The Alembic revisions are inconsistent.",
            why=failure.cause,
            looked_at=[f"the version locations of {config}", *_output(failure)],
            todo=[
                "fix the revisions until `alembic history` lists each one once, without a warning",
                *([ignore] if unseen else []),
            ],
        )

    @classmethod
    def migration_failed(cls, failure: Failure, *, config: str) -> TemplateFailed:
        """`alembic upgrade heads` raised an error."""
        hints = [*_hints(failure), *failure.hints]
        if failure.state == "42P01" and failure.first:
            hints = [
                "if these tables existed before Alembic, set the schema to start from in the "
                "pytest configuration: warmstack_schema = schema.sql"
            ]
        return cls(
            f"The migrations failed{failure.place}.",
            why=failure.cause,
            looked_at=[config, *_output(failure)],
            todo=_loop_hints(failure.cause)
            or [*hints, "fix the migration and run again: the template is then rebuilt"],
        )

    @classmethod
    def other_database(
        cls, failure: Failure, *, who: str, tried: str, allowed: str, usual: str
    ) -> TemplateFailed:
        """The project's code tried to connect to another database than the template.

        *usual* is the advice about the variable that most applications read.
        """
        hints = [*failure.hints]
        return cls(
            f"{who} tried to connect to {tried}; the connection was blocked.",
            why=f"while a template is built, the code may only connect to it ({allowed})",
            looked_at=[
                f"where it happened: {failure.where or 'before env.py ran'}",
                *_output(failure),
            ],
            todo=[
                *hints,
                f"{'or ' if hints else ''}in env.py: url = "
                'config.get_main_option("sqlalchemy.url"), as in Alembic\'s own templates',
                'or in env.py: url = config.attributes.get("url") or YOUR_OWN_URL',
                *([] if hints else [f"or, if env.py reads an environment variable, {usual}"]),
            ],
        )

    @classmethod
    def several_databases(
        cls, failure: Failure, *, names: Sequence[str], tried: str, config: str
    ) -> TemplateFailed:
        """env.py migrates several databases, *names*, as Alembic's template multidb does."""
        how = f"tried to connect to {tried}, which was blocked"
        if not tried:
            how = f"can't use the URL of one of them: {failure.cause}"
        return cls(
            f"The migrations are for several databases ({', '.join(names)}), and tests get one.",
            why=f"env.py {how}",
            looked_at=[f"the line databases in {config}", *_output(failure)],
            todo=[
                "choose the database that db_url leads to, in the pytest configuration: "
                f"warmstack_alembic_section = {names[0]}",
                "give a test another one with the fixture db_factory: "
                f'db_factory(section="{names[-1]}")',
            ],
        )

    @classmethod
    def not_at_head(
        cls, *, found: Iterable[str], heads: Iterable[str], table: str, output: str
    ) -> TemplateFailed:
        """env.py ended without an error, but did not apply all revisions."""
        return cls(
            "The migrations ended without an error, but the database is not at the heads.",
            why=f"{table} holds {listed(found)}, the heads are {listed(heads)}",
            looked_at=_output(Failure("", output=output)),
            todo=[
                "check that env.py calls context.run_migrations() in a transaction, and commits",
                "run `alembic upgrade heads` on an empty database yourself, then `alembic current`",
            ],
        )

    @classmethod
    def too_slow(
        cls, *, who: str, seconds: float, place: str, doing: Sequence[str], output: str
    ) -> TemplateFailed:
        """The project's code did not finish within *seconds*."""
        return cls(
            f"{who} did not finish within {seconds:g} seconds.",
            why=f"it was still running{place and f' {place}'}, and was stopped",
            looked_at=[
                "\n".join(["what it was doing:", *(doing or ["(unknown: it did not answer)"])]),
                *_output(Failure("", output=output)),
            ],
            todo=[
                "check above what it waits for",
                "or give it more time: WARMSTACK_MIGRATE_TIMEOUT=SECONDS",
            ],
        )

    @classmethod
    def script_failed(
        cls, failure: Failure, *, layer: str, line: str, source: str, dump: str
    ) -> TemplateFailed:
        """A script failed; *dump* is the version of the pg_dump that wrote it, if one did."""
        return cls(
            f"The {layer} {line} failed{failure.place}.",
            why=failure.cause,
            looked_at=[*_setting(layer, source), *_output(failure)],
            todo=[*_hints(failure, dump), f"fix the {layer} and run again"],
        )

    @classmethod
    def bad_signature(
        cls, failure: Failure, *, layer: str, line: str, source: str, understood: Sequence[str]
    ) -> TemplateFailed:
        """The function *line* has a parameter that is not *understood*."""
        known = "\n".join(understood)
        return cls(
            f"The {layer} function {line} can't be called.",
            why=failure.cause,
            looked_at=[*_setting(layer, source), *_output(failure)],
            todo=[
                f"give the parameter one of these names, or annotate it:\n{known}",
                "or give it a default value, which it keeps",
            ],
        )

    @classmethod
    def bad_layer(cls, *, kind: str, cause: str) -> TemplateFailed:
        """An object that the hook returned is not a layer."""
        return cls(
            f"The template layer {kind} can't be used.",
            why=cause,
            looked_at=["the result of pytest_warmstack_template_layers"],
            todo=["give it a name, a method fingerprint() that returns a str, and apply(url)"],
        )

    @classmethod
    def layer_failed(cls, *, layer: str, cause: str, kind: str) -> TemplateFailed:
        """A custom layer raised an error."""
        return cls(
            f"The template layer {layer} failed.",
            why=cause,
            looked_at=[f"the layer, a {kind} that pytest_warmstack_template_layers returned"],
            todo=["fix it and run again: the layers before it are kept"],
        )

    @classmethod
    def locked(cls, *, seconds: float, holder: str) -> TemplateFailed:
        """Another process did not finish the same template within *seconds*."""
        return cls(
            "Another process has not finished building the template in time.",
            why=f"its lock was not free within {seconds:g} seconds",
            looked_at=[f"the holder of the lock: {holder}"],
            todo=[
                "wait until it has finished, then run again",
                "or, if it hangs, stop that run; the next one removes what it leaves behind",
            ],
        )


def _setting(layer: str, source: str) -> list[str]:
    return [f"warmstack_{layer}, from the {source}"]


def _output(failure: Failure) -> list[str]:
    """Return the entry with the last lines that the project's code wrote, if it wrote any."""
    if not failure.output:
        return []
    return [f"the last lines that the project's code wrote:\n{failure.output}"]


_DRIVERS: Final = r"^ModuleNotFoundError.*'(psycopg|psycopg2|asyncpg|pg8000)'"

_MISSING_LIBRARIES: Final = (
    "ICU is not supported in this build"
    "|unsupported XML feature"
    "|compression method lz4 not supported"
)
"""Matches errors of a PostgreSQL built without a library, as in the extra `embedded`."""

_SINCE: Final = {
    "idle_session_timeout": 14,
    "default_toast_compression": 14,
    "createrole_self_grant": 16,
    "transaction_timeout": 17,
    "event_triggers": 17,
    "pg_c_utf8": 17,
    "pg_unicode_fast": 18,
}
"""The version that introduced settings and collations of dumps (PostgreSQL's release notes)."""

_LOOP_HINTS: Final = (
    (
        r"cannot be called from a running|is already running",
        [
            "env.py starts an event loop, but an async function already runs Alembic in one: let "
            "that function only return the Config, or run Alembic in a thread: "
            'await asyncio.to_thread(command.upgrade, config, "heads")',
        ],
    ),
    (
        r"NoEventLoopError|no running event loop|no current",
        [
            "env.py runs without an event loop, as in `alembic upgrade heads`: start one there, "
            "with asyncio.run(run_async_migrations()) or anyio.run(run_async_migrations)",
            "or run the migrations in your own loop: warmstack_alembic = package.module:function "
            "may name an async def",
        ],
    ),
)
"""Patterns of errors of asyncio and AnyIO, and the cures."""

_HINTS: Final = (
    (
        "42710",
        "role ",
        [
            "roles belong to the whole server, and an earlier build has created this role: write "
            "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'NAME') "
            "THEN CREATE ROLE NAME; END IF; END $$",
            "or start with a new server: warmstack clean",
        ],
    ),
    (
        "0A000",
        _MISSING_LIBRARIES,
        [
            "run PostgreSQL in Docker, whose official images have it: --warmstack-runtime=docker",
            "or use another installation for embedded servers: WARMSTACK_POSTGRES_BIN=FOLDER",
        ],
    ),
    (
        "0A000|58P01",
        "extension",
        [
            "choose a server that has the extension: WARMSTACK_POSTGRES_IMAGE=IMAGE or, for "
            "embedded servers, WARMSTACK_POSTGRES_BIN=FOLDER of another installation",
        ],
    ),
    (
        "",
        _DRIVERS,
        ["install the driver that sqlalchemy.url names, or name another driver there"],
    ),
    (
        "refused",
        "",
        [
            "migrations may connect to the template and to nothing else: don't connect to other "
            "servers in migrations, nor in the modules that they import",
        ],
    ),
    (
        "",
        "MissingGreenlet",
        [
            "env.py makes a synchronous engine, but the driver is asyncpg: "
            "pip install 'psycopg[binary]', or make an asynchronous engine",
        ],
    ),
)
"""A pattern of the SQLSTATE, a pattern of the cause, and the cures.

The codes are in PostgreSQL's documentation, appendix "PostgreSQL Error Codes".
"""


def _loop_hints(cause: str) -> list[str]:
    """Return the advice if an event loop is missing, or runs already."""
    return next((hints for pattern, hints in _LOOP_HINTS if re.search(pattern, cause)), [])


def _hints(failure: Failure, dump: str = "") -> list[str]:
    """Return the advice about an error of PostgreSQL or SQLAlchemy, if there is any."""
    state, cause = failure.state, failure.cause
    if state == "42704" and (role := re.search(r'role "(.+)" does not exist', cause)):
        return _role_hints(role[1], dump)
    if state in {"42601", "42704"}:
        return _dump_hints(cause, dump)
    for states, pattern, hints in _HINTS:
        if (not states or re.fullmatch(states, state)) and re.search(pattern, cause):
            return hints
    return []


def _role_hints(role: str, dump: str) -> list[str]:
    """Return how to create *role*, which the server lacks, or how to avoid needing it."""
    text, name = role.replace("'", "''"), role.replace('"', '""')
    create = (
        "create the role first, in an SQL file of warmstack_schema: DO $$ BEGIN IF NOT EXISTS "
        f"(SELECT FROM pg_roles WHERE rolname = '{text}') THEN CREATE ROLE \"{name}\"; "
        "END IF; END $$;"
    )
    without = "dump without roles: pg_dump --no-owner --no-privileges"
    return [without, f"or {create}"] if dump else [create]


def _dump_hints(cause: str, dump: str) -> list[str]:
    """Return the advice about SQL for a newer PostgreSQL than the server."""
    if "commands of psql" in cause:
        return ["remove the command; pg_dump writes \\connect only with --create"]
    setting = re.search(r'unrecognized configuration parameter "(\w+)"', cause)
    collation = re.search(r'collation "(?:[^"]*\.)?([^".]+)"', cause)
    if collation and collation[1] not in _SINCE:
        return [
            f"choose a server that has the collation {collation[1]}: the official images have "
            "those of ICU, such as de-x-icu, and postgres:16, on Debian, has en_US.utf8"
        ]
    found = setting or collation
    name = found[1] if found else ""
    since = str(_SINCE.get(name) or dump.partition(".")[0])
    if not since:
        return []
    what = f"PostgreSQL {since} and later know {name}" if name else "the server may be older"
    by = f"; pg_dump {dump} wrote the file: dump with the pg_dump of the server's own version"
    return [
        f"{what}{by if dump else ''}{', or remove that line' if setting else ''}",
        f"or run PostgreSQL {since}: WARMSTACK_POSTGRES_IMAGE=postgres:{since}-alpine, or "
        f"WARMSTACK_POSTGRES_VERSION={since} for an embedded server",
    ]
