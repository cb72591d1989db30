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
from typing import Any

from pytest_warmstack import specs, upkeep
from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.cli.project import Place, here, known, owned
from pytest_warmstack.errors import CommandFailed, WarmstackError
from pytest_warmstack.identity import DatabaseName, Service, State
from pytest_warmstack.postgres import sql
from pytest_warmstack.runtime.base import MAINTENANCE, USER, Endpoint, NotOurs, NotReady
from pytest_warmstack.runtime.external import External
from pytest_warmstack.settings import LIBPQ


@dataclass(frozen=True)
class _Way:
    """How to call a client, where the server is, seen from it, and what the password is."""

    command: Sequence[str]
    endpoint: Endpoint
    password: str


def psql(options: argparse.Namespace) -> int:
    """Open psql on the maintenance database, or on the one that is named."""
    background = BackgroundLoop()
    try:
        way, database = _database_on(known(here(options.project)), options.database, background)
    finally:
        background.close()
    place = way.endpoint
    mode = place.query.removeprefix("sslmode=")
    _become(
        [
            *way.command,
            f"--host={place.host}",
            f"--port={place.port}",
            f"--username={place.user or USER}",
            f"--dbname={database}",
            *options.arguments,
        ],
        {"PGPASSWORD": way.password, **({"PGSSLMODE": mode} if mode else {})},
    )
    return 0


def redis_cli(options: argparse.Namespace) -> int:
    """Open redis-cli."""
    place = known(here(options.project))
    way, client = next(_ways(place, Service.REDIS, "redis-cli", BackgroundLoop()))
    client.close()
    end = way.endpoint
    user = ["--user", end.user] if end.user else []
    tls = ["--tls"] if end.scheme == "rediss" else []
    _become(
        [*way.command, "-h", end.host, "-p", str(end.port), *user, *tls, *options.arguments],
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
    spec = specs.make(service, place.settings, background)
    installed = shutil.which(program)
    if spec.url:
        client = External(upkeep.HOUSEHOLD, _say).ensure(spec).client
        if installed is None:
            client.close()
            raise CommandFailed.no_client(program=program, looked_at=["the PATH"])
        yield _Way([installed], client.endpoint, client.endpoint.password), client
        return
    refused: list[str] = []
    is_found = False
    for runtime, listed in upkeep.reachable(
        lambda name, error: refused.append(f"{name}: {error.why}")
    ):
        for found in owned(listed, place.project):
            if found.service != service or not found.running:
                continue
            try:
                client = runtime.connect(spec, found)
            except (NotReady, NotOurs, WarmstackError) as error:
                words = error.line if isinstance(error, WarmstackError) else error
                refused.append(f"{found.name}: {words}")
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


def _database(admin: Any, wanted: str) -> str:
    """Return the one database whose name, or the test it is kept of, has in it what is *wanted*."""
    rows = admin.ask(sql.NAMES)
    names = [str(row["datname"]) for row in rows]
    whose = {row["datname"]: sql.test_of(row["comment"]) for row in rows}
    matching = [name for name in names if wanted in name or wanted in whose[name]]
    matching = [wanted] if wanted in names else matching
    own = {name: DatabaseName.parse(name) for name in matching}
    open_ = [name for name, each in own.items() if not each or each.state is not State.TEMPLATE]
    if len(open_) != 1:
        raise CommandFailed.which_database(wanted=wanted, matching=matching, names=names)
    return open_[0]


def _become(command: Sequence[str], variables: dict[str, str]) -> None:
    """Let the client take the place of this process: it has the terminal, and its exit status."""
    sys.stdout.flush()
    own = {name: value for name, value in os.environ.items() if name not in LIBPQ}
    os.execvpe(command[0], [*command], {**own, **variables})  # noqa: S606 - as meant


def _say(text: str) -> None:
    print(text, file=sys.stderr)
