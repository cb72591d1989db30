"""What goes wrong when a template is built."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from pytest_warmstack.errors import WarmstackError, line_of, listed

_SHOWN: Final = 10
"""How many of the configurations that were found are listed."""


class TemplateFailed(WarmstackError):
    """The template could not be built; nothing half-built is left."""

    @classmethod
    def no_alembic(cls, *, named: str, source: str) -> TemplateFailed:
        """Tell that the Alembic configuration that the user named is not there."""
        return cls(
            f"There is no Alembic configuration at {named}.",
            why="no such file",
            looked_at=[f"warmstack_alembic, from the {source}"],
            todo=[
                "name the alembic.ini or pyproject.toml of the project, relative to pytest's own "
                "configuration file or its root",
                "or leave it out: then the nearest one from the tests upwards is taken",
            ],
        )

    @classmethod
    def elsewhere(cls, *, found: Sequence[str], root: str, file: str) -> TemplateFailed:
        """Tests would get an empty database, and there are configurations, *found* below *root*."""
        shown = [*found[:_SHOWN], *([f"and {len(found) - _SHOWN} more"] * (len(found) > _SHOWN))]
        move = ["move these tests into the folder of the service that they belong to"]
        move *= len(found) > 1
        return cls(
            "No Alembic configuration was found for the tests that ask for a database.",
            why="neither alembic.ini nor a pyproject.toml with [tool.alembic] lies in a folder of "
            f"these tests, or above it up to {root}; but there is {', '.join(shown)}",
            todo=[
                *move,
                f"{'or, ' if move else ''}in {file or 'a new pytest.ini'}, name "
                f"{'the one that all tests are to have' if move else 'it'}: "
                + line_of("warmstack_alembic", found[0], file),
                "or, if the tests make their tables themselves: "
                + line_of("warmstack_alembic", "none", file),
            ],
        )

    @classmethod
    def bad_alembic(cls, *, config: str, cause: str, output: str) -> TemplateFailed:
        """Tell that the Alembic configuration can't be used as one."""
        return cls(
            f"The Alembic configuration {config} can't be used.",
            why=cause,
            looked_at=[config, *_wrote(output)],
            todo=[
                "name a section that is there"
                if "warmstack_alembic_section" in cause
                else "mend it until `alembic heads` answers in the project's root"
            ],
        )

    @classmethod
    def bad_function(
        cls,
        *,
        function: str,
        where: str,
        cause: str,
        source: str,
        output: str,
        hints: Iterable[str],
    ) -> TemplateFailed:
        """Tell that the function that is to give Alembic's configuration can't be used."""
        return cls(
            f"The function {function} gave no Alembic configuration.",
            why=f"{cause}{where and f' ({where})'}",
            looked_at=[f"warmstack_alembic, from the {source}", *_wrote(output)],
            todo=_loop_hints(cause)
            or [
                *hints,
                "name a function as package.module:function that can be imported in the tests; it "
                "gets the URL, if it takes a parameter, and returns an alembic.config.Config, or "
                "migrates by itself",
                "if the project has no migrations: " + line_of("warmstack_alembic", "none", source),
            ],
        )

    @classmethod
    def bad_revisions(
        cls, *, config: str, cause: str, unseen: Sequence[str], output: str
    ) -> TemplateFailed:
        """Tell that the revisions do not fit together, so that not all of them would run.

        *unseen* are patterns of those that Alembic does not see, if that is what is wrong.
        """
        declare = (
            "if you leave them out on purpose, name them in the pytest configuration (in "
            "pyproject.toml as a list):\n" + "\n    ".join(["warmstack_depends_ignore =", *unseen])
        )
        return cls(
            "The revisions of Alembic do not fit together.",
            why=cause,
            looked_at=[config, "the revision files in all its version locations", *_wrote(output)],
            todo=[
                "mend them until `alembic history` lists each of them once, without a warning",
                *([declare] if unseen else []),
            ],
        )

    @classmethod
    def migration_failed(
        cls,
        *,
        where: str,
        cause: str,
        config: str,
        output: str,
        state: str,
        first: bool,
        hints: Iterable[str],
    ) -> TemplateFailed:
        """`alembic upgrade heads` raised; *where* names the revision, when one was running.

        *state* is PostgreSQL's SQLSTATE, if it was PostgreSQL that refused; *first* tells whether
        it was the first revision of all; *hints* are lines for variables that are missing.
        """
        hints = [*_hints(state, cause), *hints]
        if state == "42P01" and first:
            hints = [
                "if the tables were there before Alembic, name the schema to begin with: "
                "warmstack_schema = schema.sql, in the pytest configuration"
            ]
        return cls(
            f"The migrations failed{where and f' {where}'}.",
            why=cause,
            looked_at=[config, *_wrote(output)],
            todo=[
                *(
                    _loop_hints(cause)
                    or [
                        *hints,
                        "mend the migration and run again: the template is then rebuilt",
                    ]
                ),
            ],
        )

    @classmethod
    def foreign_database(
        cls,
        *,
        who: str,
        tried: str,
        allowed: str,
        place: str,
        output: str,
        hints: Iterable[str],
        usual: str,
    ) -> TemplateFailed:
        """The project's code was about to connect to something else than the template.

        *hints* are the lines for the variables that it reads, *usual* is one if none are known.
        """
        hints = [*hints]
        return cls(
            f"{who} tried to connect to {tried}, and {_was(who)} stopped before that.",
            why=f"the template under construction is all that may be connected to ({allowed})",
            looked_at=[
                f"where it happened: {place or 'before env.py ran'}",
                *_wrote(output),
            ],
            todo=[
                *hints,
                f"{'or ' if hints else ''}in env.py: url = "
                'config.get_main_option("sqlalchemy.url"), as Alembic\'s own templates do',
                'or in env.py: url = config.attributes.get("url") or YOUR_OWN_URL',
                *([] if hints else [f"or, if env.py reads an environment variable, {usual}"]),
            ],
        )

    @classmethod
    def several_databases(
        cls, *, names: Sequence[str], how: str, config: str, output: str
    ) -> TemplateFailed:
        """Tell that env.py migrates each of *names* by a URL of its own, as Alembic's multidb.

        *how* tells what it did.
        """
        return cls(
            f"The migrations are for several databases ({', '.join(names)}), and one is served.",
            why=f"each test gets one database; env.py {how}",
            looked_at=[f"the line databases in {config}", *_wrote(output)],
            todo=[
                "choose the database that the tests need: warmstack_alembic = "
                "tests.migrations:alembic_config, in the pytest configuration, and in that file:\n"
                "from alembic.config import Config\n"
                "def alembic_config(url):\n"
                f'    config = Config("{config}")\n'
                f'    config.set_main_option("databases", "{names[0]}")\n'
                f'    config.set_section_option("{names[0]}", "sqlalchemy.url", '
                'url.replace("%", "%%"))\n'
                "    return config",
                "a second database of the tests is not served: let its tests make it themselves, "
                "on postgres_container",
            ],
        )

    @classmethod
    def not_at_head(
        cls, *, found: Iterable[str], heads: Iterable[str], table: str, output: str
    ) -> TemplateFailed:
        """env.py ended without an error, and the database is not at the heads."""
        return cls(
            "The migrations ended without an error, but the database is not at the heads.",
            why=f"{table} holds {listed(found)}, the heads are {listed(heads)}",
            looked_at=[
                f"the table {table} of the template",
                "the revision files",
                *_wrote(output),
            ],
            todo=[
                "see that env.py calls context.run_migrations() within a transaction, and commits",
                "run `alembic upgrade heads` on an empty database by hand and compare",
            ],
        )

    @classmethod
    def too_slow(
        cls, *, who: str, seconds: float, place: str, doing: Sequence[str], output: str
    ) -> TemplateFailed:
        """Tell that the project's code did not end within *seconds*, and what it was doing."""
        return cls(
            f"{who} did not end within {seconds:g} seconds, and {_was(who)} stopped.",
            why=f"the deadline found the process still at work{place and f' {place}'}",
            looked_at=[
                "\n".join(["what it was doing:", *(doing or ["(it did not say)"])]),
                *_wrote(output),
            ],
            todo=[
                "see above what it waits for",
                "or give it longer: WARMSTACK_MIGRATE_TIMEOUT=SECONDS",
            ],
        )

    @classmethod
    def no_script(cls, *, layer: str, file: str, source: str) -> TemplateFailed:
        """Tell that an SQL file that the user named is not there."""
        return cls(
            f"There is no file {file} to be run as {layer}.",
            why="no such file",
            looked_at=[f"warmstack_{layer}, from the {source}"],
            todo=["name a file relative to pytest's root, or a package.module:attribute"],
        )

    @classmethod
    def script_failed(
        cls,
        *,
        layer: str,
        line: str,
        where: str,
        cause: str,
        source: str,
        output: str,
        state: str,
        dump: str,
    ) -> TemplateFailed:
        """Tell that a script of the schema or of the seed failed; *state* is its SQLSTATE.

        *dump* is the version of the pg_dump that wrote it, if one did.
        """
        return cls(
            f"The {layer} {line} failed{where and f' {where}'}.",
            why=cause,
            looked_at=[f"warmstack_{layer}, from the {source}", *_wrote(output)],
            todo=[
                *_hints(state, cause, dump),
                f"mend the {layer} and run again",
            ],
        )

    @classmethod
    def bad_signature(
        cls, *, layer: str, line: str, cause: str, source: str, understood: Sequence[str]
    ) -> TemplateFailed:
        """The function *line* has a parameter that is not among those which are *understood*."""
        known = "\n".join(understood)
        return cls(
            f"The function {line} of the {layer} can't be called.",
            why=cause,
            looked_at=[f"warmstack_{layer}, from the {source}"],
            todo=[
                f"give the parameter one of these names, or annotate it:\n{known}",
                "or give it a default value, which it keeps",
            ],
        )

    @classmethod
    def bad_layer(cls, *, kind: str, cause: str) -> TemplateFailed:
        """Tell that something which a hook returned is no layer."""
        return cls(
            f"A layer of the template, {kind}, can't be used.",
            why=cause,
            looked_at=["what pytest_warmstack_template_layers returned"],
            todo=["give it a name, a method fingerprint() that returns a text, and apply(url)"],
        )

    @classmethod
    def layer_failed(cls, *, layer: str, cause: str, kind: str) -> TemplateFailed:
        """Tell that a custom layer raised an exception."""
        return cls(
            f"The template's layer {layer} failed.",
            why=cause,
            looked_at=[f"the layer, a {kind} that pytest_warmstack_template_layers returned"],
            todo=["mend it and run again: what comes before it is not rebuilt"],
        )

    @classmethod
    def locked(cls, *, seconds: float, holder: str) -> TemplateFailed:
        """Another process has been building the same template for *seconds*."""
        return cls(
            "The template is being built by another process, which did not finish.",
            why=f"its lock was not free within {seconds:g} seconds",
            looked_at=[f"the holder of the lock: {holder}"],
            todo=["end the other run; what it left is swept by the next one"],
        )


def _wrote(output: str) -> list[str]:
    """Return the entry that shows what the project's code wrote, if it wrote anything."""
    return [f"the last lines that the project's code wrote:\n{output}"] if output else []


_DRIVERS = ("psycopg", "psycopg2", "asyncpg", "pg8000")


_BUILT_WITHOUT = (
    "ICU is not supported in this build",
    "unsupported XML feature",
    "compression method lz4 not supported",
)
"""What PostgreSQL says of the libraries that it was built without, as that of the extra is."""


_SINCE: Final = {
    "idle_session_timeout": 14,
    "default_toast_compression": 14,
    "createrole_self_grant": 16,
    "transaction_timeout": 17,
    "event_triggers": 17,
    "pg_c_utf8": 17,
    "pg_unicode_fast": 18,
}
"""Settings and collations in dumps, and the version that brought them (its release notes)."""


def _role_hints(role: str, dump: str) -> list[str]:
    """Return what makes *role*, which SQL of the project needs and the server does not have."""
    text, name = role.replace("'", "''"), role.replace('"', '""')
    make = (
        f"make the role first, by an SQL file in warmstack_schema: DO $$ BEGIN IF NOT EXISTS "
        f"(SELECT FROM pg_roles WHERE rolname = '{text}') THEN CREATE ROLE \"{name}\"; "
        f"END IF; END $$;"
    )
    if not dump:
        return [make]
    return ["dump without roles: pg_dump --no-owner --no-privileges", f"or {make}"]


def _dump_hints(cause: str, dump: str) -> list[str]:
    """Return what helps against SQL of a newer version than the server's."""
    if "commands of psql" in cause:
        return ["take the command out; pg_dump writes \\connect only with --create"]
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
    out = ", or take that line out" if setting else ""
    image = f"WARMSTACK_POSTGRES_IMAGE=postgres:{since}-alpine"
    run = (
        f"run PostgreSQL {since}: {image}, or WARMSTACK_POSTGRES_VERSION={since} for an embedded "
        "server"
    )
    return [f"{what}{by}{out}", f"or {run}"] if dump else [f"{what}{out}", f"or {run}"]


def _was(who: str) -> str:
    return "were" if who.endswith("migrations") else "was"


def _loop_hints(cause: str) -> list[str]:
    """Return what to write where the code that runs migrations misses an event loop, or meets one.

    The words are those of asyncio's and AnyIO's errors.
    """
    if any(each in cause for each in ("cannot be called from a running", "is already running")):
        return [
            "env.py begins an event loop, and an asynchronous function runs Alembic in one: let it "
            "return the Config and leave the rest to pytest-warmstack, or give Alembic a thread: "
            'await asyncio.to_thread(command.upgrade, config, "heads")',
        ]
    if "NoEventLoopError" in cause or "no running event loop" in cause or "no current" in cause:
        return [
            "env.py runs without an event loop around it, as with `alembic upgrade heads`: let it "
            "begin one, with asyncio.run(run_async_migrations()) or "
            "anyio.run(run_async_migrations)",
            "or run the migrations in a loop of yours: warmstack_alembic = package.module:function "
            "may name an async def",
        ]
    return []


def _hints(state: str, cause: str, dump: str = "") -> list[str]:
    """Return what helps against an error of PostgreSQL, known by its SQLSTATE, or of SQLAlchemy.

    The codes are those of PostgreSQL's documentation, appendix "PostgreSQL Error Codes".
    """
    if state == "42710" and "role " in cause:
        return [
            "roles belong to the whole server, and an earlier template has made this one: write "
            "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'NAME') "
            "THEN CREATE ROLE NAME; END IF; END $$",
            "or begin with a new server: warmstack clean",
        ]
    if state == "0A000" and any(each in cause for each in _BUILT_WITHOUT):
        return [
            "run PostgreSQL in Docker, whose official images have it: --warmstack-runtime=docker",
            "or name another installation for embedded servers: WARMSTACK_POSTGRES_BIN=FOLDER",
        ]
    if state in {"0A000", "58P01"} and "extension" in cause:
        return [
            "choose a server that has the extension: WARMSTACK_POSTGRES_IMAGE=IMAGE, or, for "
            "embedded servers, WARMSTACK_POSTGRES_BIN=FOLDER of another installation",
        ]
    if state == "42704" and (role := re.search(r'role "(.+)" does not exist', cause)):
        return _role_hints(role[1], dump)
    if state in {"42601", "42704"}:
        return _dump_hints(cause, dump)
    if cause.startswith("ModuleNotFoundError") and any(f"'{each}'" in cause for each in _DRIVERS):
        return ["sqlalchemy.url names that driver: install it, or name another one there"]
    if state == "refused":
        return [
            "the migrations may connect to the template and to nothing else: keep other servers "
            "out of them, and out of what they import",
        ]
    if "MissingGreenlet" in cause:
        return [
            "env.py makes a synchronous engine, and the driver is asyncpg: "
            "pip install 'psycopg[binary]', or make it an asynchronous one",
        ]
    return []
