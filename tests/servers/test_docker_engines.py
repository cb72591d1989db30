"""Engines at other addresses than the default socket, all of them real.

If loopback leads to the engine's machine, the servers listen there and nowhere else.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from docker_endpoints import (
    DEFAULT,
    Network,
    Sshd,
    forwarded,
    network,
    podman,
    program,
    rootless,
    short_folder,
    ssh_server,
)
from external_servers import certificate
from projects import Bench, Images, Library, Listener, containers, engine, listeners, pytest_with
from pytest_warmstack.options import RuntimeName
from pytest_warmstack.servers.docker import Docker
from pytest_warmstack.servers.docker.engine import Route, _gateway

pytestmark = pytest.mark.docker

REACH = str(Path(__file__).with_name("start_redis.py"))
SOCKET = os.environ.get("DOCKER_HOST", DEFAULT).removeprefix("unix://")
PLACES = sorted({sys.prefix, sys.base_prefix, str(Path(__file__).parents[2])})
"""Where Python, what is installed for it, and this project are."""

EVERY = ("0.0.0.0", "::")  # noqa: S104 - that no port is open there without need is what is tested
"""All addresses, over IPv4 and over IPv6."""

RUN = ("--reuse-containers", "-W", "error")
"""What leaves a process, a socket or a file behind fails these runs."""


def ports(attributes: dict[str, Any]) -> list[tuple[str, int]]:
    """Return the addresses and ports that a container is published on."""
    published = attributes["NetworkSettings"]["Ports"].values()
    return [(each["HostIp"], int(each["HostPort"])) for entry in published for each in entry or []]


def assert_opened(opened: set[tuple[str, int]], before: list[Listener]) -> None:
    """Fail unless these are all the addresses at which their ports were opened since *before*.

    So says the kernel. Whatever listened before is not ours: an engine gives the same number to
    several containers, each on another address.
    """
    numbers = {port for _, port in opened}
    new = [each for each in listeners() if each.port in numbers and each not in before]
    assert {(str(each.address), each.port) for each in new} == opened


def assert_used_twice(project: Library, **variables: str) -> None:
    """Fail unless two runs pass, the second one with the servers of the first, on loopback."""
    before = listeners()
    first = project.run(*RUN, **variables)
    first.assert_outcomes(passed=5)
    servers = project.servers()
    assert len(servers) == 2

    second = project.run(*RUN, **variables)

    second.assert_outcomes(passed=5)
    assert project.servers() == servers
    found = {each for own in project.containers() for each in ports(own)}
    assert [address for address, _ in found] == ["127.0.0.1"] * 2
    assert_opened(found, before)


def context(folder: Path, name: str, host: str) -> Path:
    """Write a docker context into a folder of Docker's configuration; return its file."""
    meta = folder / "contexts" / "meta" / sha256(name.encode()).hexdigest() / "meta.json"
    meta.parent.mkdir(parents=True)
    endpoint = {"Host": host, "SkipTLSVerify": False}
    meta.write_text(json.dumps({"Name": name, "Metadata": {}, "Endpoints": {"docker": endpoint}}))
    return meta


@pytest.fixture
def sshd() -> Iterator[Sshd]:
    """An ssh server on loopback."""
    with ssh_server("127.0.0.1") as server:
        yield server


def test_an_engine_behind_tcp_on_loopback(docker_project: Library) -> None:
    """DOCKER_HOST=tcp://127.0.0.1:PORT."""
    with forwarded(socket.create_server(("127.0.0.1", 0))) as door:
        port = door.address[1]

        assert_used_twice(docker_project, DOCKER_HOST=f"tcp://127.0.0.1:{port}")

        assert door.count


@pytest.mark.parametrize("way", ["DOCKER_CONTEXT", "currentContext"])
def test_an_engine_behind_a_context(docker_project: Library, way: str) -> None:
    """A context that `docker context use`, or the variable, has chosen."""
    with short_folder() as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "engine.sock"))
        listener.listen()
        context(folder, "elsewhere", f"unix://{folder}/engine.sock")
        (folder / "config.json").write_text(
            json.dumps({way: "elsewhere"} if way == "currentContext" else {})
        )
        named = {"DOCKER_CONTEXT": "elsewhere"} if way == "DOCKER_CONTEXT" else {}
        with forwarded(listener) as door:
            assert_used_twice(docker_project, DOCKER_HOST="", DOCKER_CONFIG=str(folder), **named)

            assert door.count


def test_an_engine_behind_a_context_with_certificates(docker_project: Library) -> None:
    """It lets in whoever shows the context's own; what the environment says is not for it."""
    with short_folder() as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        (folder / "config.json").write_text("{}")
        path = context(folder, "guarded", f"tcp://127.0.0.1:{listener.getsockname()[1]}")
        certificates = folder / "contexts" / "tls" / path.parent.name / "docker"
        certificates.mkdir(parents=True)
        # Both sides show the same one, which has signed itself.
        made = certificate(folder)
        key = made.with_suffix(".key")
        for name, file in (("ca", made), ("cert", made), ("key", key)):
            shutil.copy(file, certificates / f"{name}.pem")
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=made)
        tls.verify_mode = ssl.CERT_REQUIRED
        tls.load_cert_chain(made, key)
        variables = {
            "DOCKER_HOST": "",
            "DOCKER_CONFIG": str(folder),
            "DOCKER_CONTEXT": "guarded",
            "DOCKER_CERT_PATH": "/nonexistent",
            "DOCKER_TLS_VERIFY": "1",
            "REQUESTS_CA_BUNDLE": "",
            "CURL_CA_BUNDLE": "",
        }
        with forwarded(listener, tls) as door:
            assert_used_twice(docker_project, **variables)
            assert door.count

            # requests prefers that variable to what it is told.
            (folder / "other").mkdir()
            bundle = str(certificate(folder / "other"))
            result = docker_project.run(**{**variables, "REQUESTS_CA_BUNDLE": bundle})

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    text = "\n".join([*result.outlines, *result.errlines])
    assert "CERTIFICATE_VERIFY_FAILED" in text
    assert "REQUESTS_CA_BUNDLE is set, and replaces the engine's own" in text


def test_an_engine_that_only_testcontainers_is_told(docker_project: Library) -> None:
    """The client in a container is called by Docker's own command, which reads no such file."""
    project = docker_project
    with short_folder() as folder, ExitStack() as stack:
        door = stack.enter_context(forwarded(socket.create_server(("127.0.0.1", 0))))
        (folder / ".testcontainers.properties").write_text(
            f"tc.host=tcp://127.0.0.1:{door.address[1]}\n"
        )
        (folder / "docker").symlink_to(program("docker", "docker.io"))
        named = {"HOME": str(folder), "DOCKER_HOST": "unix:///nonexistent.sock"}
        project.run("--reuse-containers", "-k", "reader", **named).assert_outcomes(
            passed=1, deselected=4
        )

        result = project.warmstack("redis-cli", "--", "ping", **named, PATH=str(folder))

        assert result.outlines == ["PONG"]


@pytest.mark.parametrize("host", ["{user}@127.0.0.1:{port}", "engine"])
def test_an_engine_behind_ssh(docker_project: Library, sshd: Sshd, host: str) -> None:
    """By its address, and by an alias that only ssh knows, with a port that only ssh knows."""
    address = f"ssh://{host.format(user=sshd.user, port=sshd.port)}"

    assert_used_twice(docker_project, DOCKER_HOST=address, PATH=sshd.path)

    assert sshd.logins()


def test_what_ssh_says_is_told(docker_project: Library, sshd: Sshd) -> None:
    """Whoever is not let in reads why, in ssh's own words."""
    address = f"ssh://{sshd.user}@127.0.0.1:{sshd.port}"
    (sshd.programs.parent / "known").write_text("")

    result = docker_project.run(DOCKER_HOST=address, PATH=sshd.path)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    text = "\n".join([*result.outlines, *result.errlines])
    assert "The SSH connection to the Docker engine failed." in text
    assert "Host key verification failed." in text
    assert address in text


@pytest.mark.parametrize(
    ("theirs", "host", "every"),
    [("203.0.113.1", "127.0.0.1", EVERY[0]), ("2001:db8::1", "::1", EVERY[1])],
)
@pytest.mark.parametrize("runtime", [RuntimeName.DOCKER], indirect=True)
def test_an_address_that_the_engine_does_not_have_gives_way_to_all(
    bench: Bench, images: Images, theirs: str, host: str, every: str
) -> None:
    """Behind a translation of addresses the engine's machine can't bind what we reach it at.

    The engine counts ports for each address by itself. One that somebody has over IPv4 alone sees
    to it that the two numbers of ours differ.
    """
    before = listeners()
    runtime = bench.runtime()
    assert isinstance(runtime, Docker)
    runtime.engine.route = Route((theirs, ""), host)
    with engine() as client:
        somebody = client.containers.run(
            # It has the port, and nothing answers there.
            images.redis,
            ["sleep", "600"],
            detach=True,
            ports={"6379/tcp": (EVERY[0], None)},
        )
        try:
            server = runtime.ensure(bench.redis)
        finally:
            somebody.remove(force=True, v=True)
    server.client.close()

    (container,) = containers(bench.folder)
    bound = ports(container)
    assert {address for address, _ in bound} == set(EVERY)
    assert (every, server.endpoint.port) in bound
    assert server.endpoint.host == host
    assert_opened(set(bound), before)


@dataclass
class Reached:
    """What `start_redis.py` tells of a server while it is up, and the container, seen from here."""

    host: str
    port: int
    origins: list[str]
    version: str
    container: dict[str, Any]
    before: list[Listener]
    """What listened here when it was not up yet."""


Reach = Callable[..., AbstractContextManager[Reached]]


@pytest.fixture
def reach(images: Images, tmp_path: Path) -> Iterator[Reach]:
    """A function that runs `start_redis.py` by a command, and yields what it tells."""
    folder = Path(os.path.realpath(tmp_path))

    @contextmanager
    def run(*command: str, **variables: str) -> Iterator[Reached]:
        before = listeners()
        with (
            (tmp_path / "log").open("w+") as log,
            subprocess.Popen(
                [*command, sys.executable, REACH, images.redis, str(folder)],
                env={**os.environ, **variables},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            ) as process,
        ):
            assert process.stdout is not None
            line = process.stdout.readline()
            log.seek(0)
            assert line, log.read()
            (container,) = containers(folder)
            yield Reached(container=container, before=before, **json.loads(line))
            # Here its input ends, and it is waited for.

    yield run
    assert containers(folder) == []


@pytest.fixture
def elsewhere() -> Iterator[Network]:
    """A network from which this machine is another one."""
    with network() as made:
        yield made


def assert_reached_at(address: str, found: Reached) -> None:
    """Fail unless the server is open on *address* alone, and was used there by two runs."""
    assert found.origins == ["started", "reused"]
    assert found.host == address
    assert ports(found.container) == [(address, found.port)]
    assert_opened({(address, found.port)}, found.before)


@pytest.mark.parametrize("family", ["tcp", "ssh"])
def test_an_engine_on_another_machine(elsewhere: Network, reach: Reach, family: str) -> None:
    """Its loopback is not ours, so the port is opened at the address that we reach it at."""
    with ExitStack() as stack:
        if family == "tcp":
            door = socket.create_server((elsewhere.here, 0))
            stack.enter_context(forwarded(door))
            variables = {"DOCKER_HOST": f"tcp://{elsewhere.here}:{door.getsockname()[1]}"}
        else:
            sshd = stack.enter_context(ssh_server(elsewhere.here))
            variables = {"DOCKER_HOST": "ssh://engine", "PATH": sshd.path}

        with reach(*elsewhere.command(), **variables) as found:
            assert_reached_at(elsewhere.here, found)


def test_an_engine_beside_us_that_is_named_by_another_address(
    elsewhere: Network, reach: Reach
) -> None:
    """An address of this machine's own is no reason to open a port on it."""
    with forwarded(socket.create_server((elsewhere.here, 0))) as door:
        port = door.address[1]

        with reach(DOCKER_HOST=f"tcp://{elsewhere.here}:{port}") as found:
            assert_reached_at("127.0.0.1", found)


@pytest.fixture
def own_network() -> Iterator[str]:
    """A network in the engine that is not the default one."""
    with engine() as client:
        made = client.networks.create(f"ws-{os.getpid()}", driver="bridge")
        yield made.name
        made.remove()


@pytest.fixture
def neighbour(images: Images) -> Iterator[str]:
    """A container whose network another one can join, as a container's that holds a VPN."""
    with engine() as client:
        made = client.containers.run(images.redis, ["sleep", "600"], detach=True)
        yield made.id
        made.remove(force=True, v=True)


@pytest.mark.parametrize("groups", ["host", "private"])
@pytest.mark.parametrize("place", ["default", "own", "host", "neighbour"])
def test_a_container_with_the_engines_socket(
    images: Images,
    own_network: str,
    neighbour: str,
    reach: Reach,
    place: str,
    groups: str,
) -> None:
    """In the default network, in one of its own, in the host's, in another container's.

    Whether a container can tell which one it is depends on what it sees of control groups. If it
    can, ours joins that network, and nothing is published; if not, the gateway leads there. It
    does, too, where ours can't join: what belongs to another container has no name of its own.
    """
    network = {"own": own_network, "neighbour": f"container:{neighbour}"}.get(place, place)
    command = [
        *(program("docker", "docker.io"), "run", "--rm", "--interactive", "--pull=never"),
        f"--network={network}",
        f"--cgroupns={groups}",
        f"--volume={SOCKET}:{DEFAULT.removeprefix('unix://')}",
        # The image has no Python: this one's files are the container's, at the same places.
        *(f"--volume={each}:{each}:ro" for each in PLACES),
        "--env=PYTHONDONTWRITEBYTECODE=1",
        "--entrypoint=",
        images.redis,
    ]

    with reach(*command) as found, engine() as client:
        bridge = client.networks.get("bridge").attrs["IPAM"]["Config"][0]
        if place == "host":
            assert_reached_at("127.0.0.1", found)
        elif place == "neighbour" or ports(found.container):
            assert_reached_at(_gateway(bridge), found)
        else:
            name = "bridge" if place == "default" else own_network
            ((joined, its),) = found.container["NetworkSettings"]["Networks"].items()
            assert found.origins == ["started", "reused"]
            assert (joined, its["IPAddress"]) == (name, found.host)


def test_an_engine_without_root(
    images: Images, monkeypatch: pytest.MonkeyPatch, library_in: Callable[..., Library]
) -> None:
    """Its containers are in a network that only it can see, but the port is on our loopback."""
    with rootless(images) as address:
        monkeypatch.setenv("DOCKER_HOST", address)
        project = library_in(RuntimeName.DOCKER)
        try:
            assert_used_twice(project)
        finally:
            project.end()


@pytest.fixture(scope="module")
def podman_address(images: Images) -> Iterator[str]:
    """Podman's socket."""
    with podman(images) as address:
        yield address


@pytest.fixture
def by_podman(podman_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Podman as the engine of the test itself, too, and of all that it starts."""
    monkeypatch.setenv("DOCKER_HOST", podman_address)


@pytest.fixture
def podman_project(by_podman: None, docker_project: Library) -> Library:
    """A project whose servers Podman runs."""
    return docker_project


def test_podman(podman_project: Library) -> None:
    """Through the socket that speaks as Docker's does."""
    assert_used_twice(podman_project)

    assert podman_project.warmstack("clean").ret == 0
    assert podman_project.containers() == []


@pytest.mark.parametrize("runtime", [RuntimeName.DOCKER], indirect=True)
def test_podman_gives_a_name_to_one_container_only(by_podman: None, bench: Bench) -> None:
    """Many who begin at once have one server."""
    with ThreadPoolExecutor(5) as pool:
        servers = list(pool.map(lambda _: bench.ensure(bench.redis), range(5)))

    assert len({server.id for server in servers}) == 1
    assert sorted(server.origin for server in servers) == [*["reused"] * 4, "started"]


READS_EARLY = """
import os

DSN = os.environ["DSN"]
CACHE = os.environ["CACHE"]
"""

USES_LATE = """
import asyncpg
import pytest
import redis

import early

@pytest.mark.parametrize("number", range(2))
async def test_it(db_url, number):
    connection = await asyncpg.connect(early.DSN)
    assert await connection.fetchval("SELECT count(*) FROM author") == 0
    await connection.execute("INSERT INTO author VALUES (1, 'ada')")
    await connection.close()
    with redis.from_url(early.CACHE) as cache:
        assert cache.incr("number") == 1
    print("AT", early.DSN.rpartition("@")[2].partition(":")[0])
"""


def test_an_application_reads_an_address_on_another_machine(
    elsewhere: Network, docker_project: Library
) -> None:
    """The engine is asked, and the servers start before the application is imported."""
    docker_project.configure("warmstack_env =", "    DSN={db_dsn}", "    CACHE={redis_url}")
    docker_project.write("early.py", READS_EARLY)
    docker_project.write("conftest.py", "import early\n")
    docker_project.write("test_late.py", USES_LATE)
    command = [sys.executable, "-m", *pytest_with(), "-rP", "--reuse-containers", "test_late.py"]
    with forwarded(socket.create_server((elsewhere.here, 0))) as door:
        variables = {"DOCKER_HOST": f"tcp://{elsewhere.here}:{door.address[1]}"}
        for _ in range(2):
            done = subprocess.run(
                elsewhere.command(*command),
                cwd=docker_project.folder,
                env={**os.environ, **variables},
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
            )
            print(done.stdout, done.stderr)

            assert "2 passed" in done.stdout
            assert done.stdout.count(f"AT {elsewhere.here}\n") == 2
