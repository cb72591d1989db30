"""`warmstack psql` and `warmstack redis-cli`: open a client on the project's server.

The password is passed in the environment: every user of the machine can read arguments.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, NoReturn

from pytest_warmstack import cleanup, report, server_specs
from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.cli.errors import CommandFailed
from pytest_warmstack.cli.project import Add, Place, require, say, servers_of
from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.options import RedisPlan, Settings
from pytest_warmstack.placeholders import LIBPQ
from pytest_warmstack.postgres import DatabaseName, State, sql
from pytest_warmstack.redis import overview as redis_overview
from pytest_warmstack.servers.external import External
from pytest_warmstack.servers.identity import Project, Service
from pytest_warmstack.servers.model import (
    MAINTENANCE,
    USER,
    Endpoint,
    NotOurs,
    NotReady,
    OwnRuntime,
    ServerInfo,
    ServerSpec,
)

_SHOWN: Final = (State.SAVED, State.DEVELOPMENT)
"""The databases that `warmstack psql` is for."""

_AFTER: Final = "Arguments after -- are passed on."


def declare(add: Add) -> None:
    """Declare the commands and their arguments."""
    command = add("psql", psql, "open psql on this project's PostgreSQL", _AFTER)
    command.add_argument(
        "database",
        nargs="?",
        default="",
        metavar="NAME",
        help="dev, for the database for development; a test that failed or is in a debugger now "
        "(its node id, its function, or a part of these); or a part of a database's name",
    )
    add("redis-cli", redis_cli, "open redis-cli on this project's Redis", _AFTER)


@dataclass(frozen=True)
class _Access:
    """The command of a client, the address that it connects to, and the password."""

    command: Sequence[str]
    endpoint: Endpoint
    password: str


def psql(options: argparse.Namespace) -> int:
    """Open psql on the database that the user names, or else on the maintenance database."""
    place = require(options.project)
    background = BackgroundLoop()
    try:
        access, database = _find_database(place, options.database, background)
    finally:
        background.close()
    end = access.endpoint
    mode = end.query.removeprefix("sslmode=")
    become(
        [
            *access.command,
            f"--host={end.host}",
            f"--port={end.port}",
            f"--username={end.user or USER}",
            f"--dbname={database}",
            *options.arguments,
        ],
        {
            **{name: value for name, value in os.environ.items() if name not in LIBPQ},
            "PGPASSWORD": access.password,
            **({"PGSSLMODE": mode} if mode else {}),
        },
    )
    return 0


def redis_cli(options: argparse.Namespace) -> int:
    """Open redis-cli on the database that a run of the project uses, or has used last."""
    place = require(options.project)
    access, client = next(_accesses(place, Service.REDIS, "redis-cli", BackgroundLoop()))
    try:
        index = _index(client, place.settings)
    finally:
        client.close()
    end = access.endpoint
    user = ["--user", end.user] if end.user else []
    tls = ["--tls"] if end.scheme == "rediss" else []
    become(
        [
            *access.command,
            *("-h", end.host, "-p", str(end.port)),
            *user,
            *tls,
            *index,
            *options.arguments,
        ],
        {**os.environ, "REDISCLI_AUTH": access.password},
    )
    return 0


class Connected(NamedTuple):
    """A server of the project that answers, and a *client* of the plugin, which the user closes.

    An external server has no *runtime*.
    """

    spec: ServerSpec[Any]
    client: Any
    found: ServerInfo
    runtime: OwnRuntime | None


def connected(place: Place, service: Service, background: BackgroundLoop) -> Iterator[Connected]:
    """Connect to each server of the project in turn; raise `CommandFailed` if there is none.

    A project has several servers if its runs use different runtimes.
    """
    spec = server_specs.make(service, place.settings, background)
    if spec.url:
        server = External(cleanup.RUN_CONTEXT, say).ensure(spec)
        yield Connected(spec, server.client, server, None)
        return
    refused: list[str] = []
    is_found = False
    for runtime, found in servers_of(place.project, refused):
        if found.service != service or not found.running:
            continue
        try:
            client = runtime.connect(spec, found)
        except (NotReady, NotOurs, WarmstackError) as error:
            why = error.line if isinstance(error, WarmstackError) else error
            refused.append(f"{found.name}: {why}")
            continue
        yield Connected(spec, client, found, runtime)
        is_found = True
    if not is_found:
        raise CommandFailed.no_server(
            title=spec.title, project=place.project.path, looked_at=refused
        )


def _accesses(
    place: Place, service: Service, program: str, background: BackgroundLoop
) -> Iterator[tuple[_Access, Any]]:
    """Yield how *program* connects to each of the project's servers, and a client of the plugin.

    An installed program is preferred to one that comes with the server.
    """
    installed = shutil.which(program)
    for spec, client, found, runtime in connected(place, service, background):
        password = client.endpoint.password
        if installed is not None:
            yield _Access([installed], client.endpoint, password), client
        elif runtime and (beside := runtime.client(spec, found, program)) is not None:
            yield _Access(*beside, password), client
        else:
            client.close()
            beside_it = [f"where {found.name} runs"] if runtime else []
            raise CommandFailed.no_client(program=program, looked_at=["the PATH", *beside_it])


def _find_database(place: Place, wanted: str, background: BackgroundLoop) -> tuple[_Access, str]:
    """Return the first server that has the *wanted* database, and the database's full name."""
    refusals = []
    for access, client in _accesses(place, Service.POSTGRES, "psql", background):
        try:
            if wanted == State.DEVELOPMENT:
                return access, _development(client, place.project)
            return access, find_database(client, wanted) if wanted else MAINTENANCE
        except CommandFailed as refusal:
            refusals.append(refusal)
        finally:
            client.close()
    raise refusals[0]


class _TestDatabase(NamedTuple):
    """The database of a *test* that failed or is in a debugger now."""

    name: DatabaseName
    test: str
    saved: float

    @property
    def when(self) -> str:
        """When the test failed."""
        return report.ago(self.saved) if self.name.state is State.SAVED else "running"

    def fit(self, wanted: str) -> int:
        """Return how well *wanted* matches: 3 for the id, 2 for the function, 1 for a part."""
        ids = self.test.split(", ")
        if wanted in ids:
            return 3
        if wanted in (each.rpartition("::")[2].partition("[")[0] for each in ids):
            return 2
        return int(wanted in self.test)


def _development(admin: Any, project: Project) -> str:
    """Return the database for development of *project*; raise `CommandFailed` for several."""
    beginning = DatabaseName.development(project.path).prefix
    found = {
        str(row["datname"]): sql.read_development(row["comment"]).get("of", "")
        for row in admin.ask(sql.NAMES)
        if row["datname"].startswith(beginning)
    }
    if not found:
        raise CommandFailed.no_development()
    if len(found) > 1:
        listed = [f"{name} ({of})" for name, of in found.items()]
        raise CommandFailed.which_database(wanted="dev", matching=[*found], names=listed)
    return next(iter(found))


def find_database(admin: Any, wanted: str, command: str = "psql") -> str:
    """Return the database for *wanted*: a name or number, a test, or a part of one of these.

    If several tests match, the best match counts; if it has several databases, the newest one. The
    others are listed, with the *command* for each.
    """
    rows = admin.ask(sql.NAMES)
    names = [str(row["datname"]) for row in rows]
    parsed = {name: DatabaseName.parse(name) for name in names}
    for name, own in parsed.items():
        if wanted == name or (own and own.state is not State.TEMPLATE and wanted == own.serial):
            matching = [name]
            break
    else:
        if found := _newest_of_test(rows, wanted, command):
            return found
        matching = [name for name in names if wanted in name]
    open_ = [name for name in matching if not (own := parsed[name]) or own.state != State.TEMPLATE]
    if len(open_) != 1:
        tests = {row["datname"]: sql.test_of(row["comment"]) for row in rows}
        shown = matching or [
            name for name in names if (own := parsed[name]) and own.state in _SHOWN
        ]
        listed = [f"{name} ({tests[name]})" if tests[name] else name for name in shown]
        raise CommandFailed.which_database(wanted=wanted, matching=matching, names=listed)
    return open_[0]


def _newest_of_test(rows: Sequence[Any], wanted: str, command: str) -> str:
    """Return the newest database of the test that *wanted* matches best, or "" without a match."""
    found = [
        _TestDatabase(name, sql.test_of(row["comment"]), sql.parse_note(row["note"])[0])
        for row in rows
        if (name := DatabaseName.parse(row["datname"])) is not None
        and name.state in {State.SAVED, State.IN_USE}
    ]
    best = max((each.fit(wanted) for each in found), default=0)
    if not best:
        return ""
    newest, *others = sorted(
        (each for each in found if each.fit(wanted) == best),
        key=lambda each: (each.name.state is State.IN_USE, each.saved),
        reverse=True,
    )
    if others:
        say(f"{newest.test} ({newest.when}); also:")
    for each in others:
        say(f"  warmstack {command} {each.name.serial}: {each.test} ({each.when})")
    return str(newest.name)


def _index(admin: Any, settings: Settings) -> list[str]:
    """Return the arguments with which redis-cli selects the database of a run.

    A run in progress comes first, then the last run, as far as the keys show. On an external
    server, the keys may belong to another project.
    """
    leases = redis_overview.look(admin).leases
    if leases:
        held = sorted({int(each.databases.partition("-")[0]) for each in leases})
        if len(held) > 1:
            say(f"database {held[0]}; runs also use {', '.join(map(str, held[1:]))}: -- -n NUMBER")
        return ["-n", str(held[0])]
    if settings.redis_url:
        return []
    if settings.redis is RedisPlan.PER_PROCESS:
        return ["-n", "0"]
    # Database 0 holds the plugin's own keys; a run takes the first free database after it.
    return ["-n", str(min((index for index in admin.filled() if index), default=1))]


def become(command: Sequence[str], environ: Mapping[str, str]) -> NoReturn:
    """Replace this process with *command*, so that it has the terminal and sets the status."""
    sys.stdout.flush()
    # Python ignores this signal, and the command would inherit that.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.execvpe(command[0], [*command], environ)  # noqa: S606 - as meant
