"""Inspecting a server doesn't count as a use: it can still be replaced or removed."""

from __future__ import annotations

from typing import Any

import pytest

from projects import Bench, Library, until, with_options
from pytest_warmstack.servers.external import External
from pytest_warmstack.servers.model import OwnRuntime, Server, ServerSpec

REUSE = "--reuse-containers"

HELD = """
import os, signal, sys
from pathlib import Path
from pytest_warmstack import server_specs
from pytest_warmstack.cli import main

def held(service, client):
    if client.endpoint.port == int(sys.argv[2]):
        Path("looking").touch()
        os.kill(os.getpid(), signal.SIGSTOP)

server_specs.look = held
main([sys.argv[1]])
"""
"""A command of `warmstack` that is stopped while it is connected to the server at a port."""


@pytest.fixture(params=["postgres", "redis"])
def spec(
    request: pytest.FixtureRequest, postgres_spec: ServerSpec[Any], redis_spec: ServerSpec[Any]
) -> ServerSpec[Any]:
    """What the server of each service looks like."""
    return postgres_spec if request.param == "postgres" else redis_spec


def look(bench: Bench, spec: ServerSpec[Any], server: Server[Any]) -> Any:
    """Return a client that looks at *server*, as the commands and the readiness look do."""
    runtime: OwnRuntime = bench.runtime()  # type: ignore[assignment]
    (found,) = (each for each in runtime.list() if each.id == server.id)
    return runtime.connect(spec, found)


def test_a_server_that_somebody_looks_at_is_replaced(bench: Bench, spec: ServerSpec[Any]) -> None:
    """Two runs that find it outdated look at the same time, and neither keeps it for the other."""
    old = bench.ensure(spec)
    old.client.close()
    looker = look(bench, spec, old)
    try:
        new = bench.ensure(with_options(spec, another="configuration"))
    finally:
        looker.close()

    assert new.origin == "replaced"
    runtime: OwnRuntime = bench.runtime()  # type: ignore[assignment]
    assert old.id not in [each.id for each in runtime.list()]


def test_a_run_counts_as_a_user_and_a_look_does_not(bench: Bench, spec: ServerSpec[Any]) -> None:
    """Whoever asks, a run or a look, is told of the other runs alone."""
    server = bench.ensure(spec)
    looker, another = (look(bench, spec, server) for _ in range(2))
    try:
        assert (server.client.users(), looker.users()) == (0, 1)
        bench.ensure(spec)
        assert (server.client.users(), looker.users()) == (1, 2)
    finally:
        looker.close()
        another.close()


def test_a_command_only_looks_at_an_external_server(bench: Bench, spec: ServerSpec[Any]) -> None:
    """It has no run that it would use the server for; a run has."""
    from pytest_warmstack import cleanup
    from pytest_warmstack.servers.model import postgres_url, redis_url

    server = bench.ensure(spec)
    is_redis = spec.service == "redis"
    url = redis_url(server.endpoint, 0) if is_redis else postgres_url(server.endpoint, "x", None)
    there = ServerSpec(**{**vars(spec), "url": url, "url_variable": "WARMSTACK_URL"})
    for run_context, users in ((cleanup.RUN_CONTEXT, 0), (bench.run_context(), 1)):
        client = External(run_context, print).ensure(there).client
        assert server.client.users() == users
        client.close()
        until(lambda: server.client.users() == 0, "the connection has ended")


@pytest.mark.parametrize("command", ["status", "doctor"])
def test_a_server_is_replaced_while_a_command_is_connected_to_it(
    embedded_project: Library, command: str
) -> None:
    """The command is stopped in the middle of its look, for as long as the run takes."""
    project = embedded_project
    project.run(REUSE, "-k", "book").assert_outcomes(passed=1, deselected=4)
    (old,) = project.servers()
    project.write("held.py", HELD)
    place = project.kept("postgres")
    variables = {}
    if command == "doctor":  # It looks at external servers only.
        variables["WARMSTACK_POSTGRES_URL"] = f"postgresql://{place.authority('postgres')}"
        project.edit("pytest.ini", "warmstack_runtime = embedded", "")
    project.start(command, str(place.port), command=("held",), **variables)
    until((project.folder / "looking").exists, "the command looks")

    project.configure("warmstack_postgres_args = max_connections=77")
    result = project.run(REUSE, "--warmstack-runtime=embedded", "-k", "book")

    result.assert_outcomes(passed=1, deselected=4)
    result.stdout.fnmatch_lines(["warmstack: PostgreSQL *: replaced in *max_connections*"])
    assert old not in project.servers()
