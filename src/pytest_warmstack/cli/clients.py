"""`warmstack psql` and `warmstack redis-cli`: a client on the right address, with the password.

The password goes through the environment: arguments can be read by everybody on the machine.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pytest_warmstack import cleanup, server_specs
from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.cli import words
from pytest_warmstack.cli.errors import CommandFailed
from pytest_warmstack.cli.project import Place, needed, owned
from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.options import RedisPlan, Settings
from pytest_warmstack.placeholders import LIBPQ
from pytest_warmstack.postgres import DatabaseName, State, sql
from pytest_warmstack.redis import overview as redis_overview
from pytest_warmstack.servers.external import External
from pytest_warmstack.servers.identity import Service
from pytest_warmstack.servers.model import MAINTENANCE, USER, Endpoint, NotOurs, NotReady


@dataclass(frozen=True)
class _Way:
    """How to call a client, where the server is, seen from it, and what the password is."""

    command: Sequence[str]
    endpoint: Endpoint
    password: str


def psql(options: argparse.Namespace) -> int:
    """Open psql on the maintenance database, or on the one that is named."""
    place = needed(options.project)
    background = BackgroundLoop()
    try:
        way, database = _database_on(place, options.database, background)
    finally:
        background.close()
    end = way.endpoint
    mode = end.query.removeprefix("sslmode=")
    _become(
        [
            *way.command,
            f"--host={end.host}",
            f"--port={end.port}",
            f"--username={end.user or USER}",
            f"--dbname={database}",
            *options.arguments,
        ],
        {"PGPASSWORD": way.password, **({"PGSSLMODE": mode} if mode else {})},
    )
    return 0


def redis_cli(options: argparse.Namespace) -> int:
    """Open redis-cli on the database that a run of the project has now, or had last."""
    place = needed(options.project)
    way, client = next(_ways(place, Service.REDIS, "redis-cli", BackgroundLoop()))
    try:
        index = _index(client, place.settings)
    finally:
        client.close()
    end = way.endpoint
    user = ["--user", end.user] if end.user else []
    tls = ["--tls"] if end.scheme == "rediss" else []
    _become(
        [
            *way.command,
            "-h",
            end.host,
            "-p",
            str(end.port),
            *user,
            *tls,
            *index,
            *options.arguments,
        ],
        {"REDISCLI_AUTH": way.password},
    )
    return 0


def _ways(
    place: Place, service: Service, program: str, background: BackgroundLoop
) -> Iterator[tuple[_Way, Any]]:
    """Yield how to reach each of the project's servers with *program*, and a client on it.

    An installed program is taken before one that lies where the server does. A project has
    several servers where its runs name different runtimes.
    """
    spec = server_specs.make(service, place.settings, background)
    installed = shutil.which(program)
    if spec.url:
        client = External(cleanup.RUN_CONTEXT, _say).ensure(spec).client
        if installed is None:
            client.close()
            raise CommandFailed.no_client(program=program, looked_at=["the PATH"])
        yield _Way([installed], client.endpoint, client.endpoint.password), client
        return
    refused: list[str] = []
    is_found = False
    for runtime, listed in cleanup.reachable(
        lambda name, error: refused.append(f"{name}: {error.why}")
    ):
        for found in owned(listed, place.project):
            if found.service != service or not found.running:
                continue
            try:
                client = runtime.connect(spec, found)
            except (NotReady, NotOurs, WarmstackError) as error:
                why = error.line if isinstance(error, WarmstackError) else error
                refused.append(f"{found.name}: {why}")
                continue
            password = client.endpoint.password
            if installed is not None:
                yield _Way([installed], client.endpoint, password), client
            elif (there := runtime.client(spec, found, program)) is not None:
                yield _Way(*there, password), client
            else:
                client.close()
                raise CommandFailed.no_client(
                    program=program, looked_at=["the PATH", f"where {found.name} runs"]
                )
            is_found = True
    if not is_found:
        raise CommandFailed.no_server(
            title=spec.title, project=place.project.path, looked_at=refused
        )


def _database_on(place: Place, wanted: str, background: BackgroundLoop) -> tuple[_Way, str]:
    """Return how to reach the first server that has the *wanted* database, and its whole name."""
    refusals = []
    for way, client in _ways(place, Service.POSTGRES, "psql", background):
        try:
            return way, _database(client, wanted) if wanted else MAINTENANCE
        except CommandFailed as refusal:
            refusals.append(refusal)
        finally:
            client.close()
    raise refusals[0]


class _OfTest(NamedTuple):
    """A database of a test: of one that failed, or that is in a debugger now."""

    name: DatabaseName
    test: str
    saved: float

    @property
    def when(self) -> str:
        """When the test failed, in words."""
        return words.ago(self.saved) if self.name.state is State.SAVED else "running"

    def fit(self, wanted: str) -> int:
        """Return how well *wanted* names the test: 3 by its id, 2 by its function, 1 by a part."""
        ids = self.test.split(", ")
        if wanted in ids:
            return 3
        if wanted in (each.rpartition("::")[2].partition("[")[0] for each in ids):
            return 2
        return int(wanted in self.test)


def _database(admin: Any, wanted: str) -> str:
    """Return the database that *wanted* names: by its name or number, by its test, or by a part.

    Of several tests the one that fits best, and of several databases the newest; the others are
    listed.
    """
    rows = admin.ask(sql.NAMES)
    names = [str(row["datname"]) for row in rows]
    parsed = {name: DatabaseName.parse(name) for name in names}
    for name, own in parsed.items():
        if wanted == name or (own and own.state is not State.TEMPLATE and wanted == own.serial):
            matching = [name]
            break
    else:
        if of_test := _of_test(rows, wanted):
            return of_test
        matching = [name for name in names if wanted in name]
    open_ = [name for name in matching if not (own := parsed[name]) or own.state != State.TEMPLATE]
    if len(open_) != 1:
        tests = {row["datname"]: sql.test_of(row["comment"]) for row in rows}
        listed = [f"{name} ({tests[name]})" if tests[name] else name for name in names]
        raise CommandFailed.which_database(wanted=wanted, matching=matching, names=listed)
    return open_[0]


def _of_test(rows: Sequence[Any], wanted: str) -> str:
    """Return the newest database of the test that *wanted* fits best; nothing if it fits none."""
    found = [
        _OfTest(name, sql.test_of(row["comment"]), sql.parse_note(row["note"])[0])
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
        _say(f"{newest.test} ({newest.when}); also:")
    for each in others:
        _say(f"  warmstack psql {each.name.serial}: {each.test} ({each.when})")
    return str(newest.name)


def _index(admin: Any, settings: Settings) -> list[str]:
    """Return the arguments for redis-cli that choose the database of a run.

    It is the one that a run has now. If none has, it is that of the last run, as far as keys tell;
    on a server of somebody else they may be another project's.
    """
    leases = redis_overview.look(admin).leases
    if leases:
        held = sorted({int(each.databases.partition("-")[0]) for each in leases})
        if len(held) > 1:
            _say(f"database {held[0]}; runs also use {', '.join(map(str, held[1:]))}: -- -n NUMBER")
        return ["-n", str(held[0])]
    if settings.redis_url:
        return []
    if settings.redis is RedisPlan.PER_PROCESS:
        return ["-n", "0"]
    # 0 holds marks of the plugin; a run takes the first one that is free.
    return ["-n", str(min((index for index in admin.filled() if index), default=1))]


def _become(command: Sequence[str], variables: dict[str, str]) -> None:
    """Let the client take the place of this process: it has the terminal, and its exit status."""
    sys.stdout.flush()
    own = {name: value for name, value in os.environ.items() if name not in LIBPQ}
    os.execvpe(command[0], [*command], {**own, **variables})  # noqa: S606 - as meant


def _say(text: str) -> None:
    print(text, file=sys.stderr)
