"""Which engine is asked, and the way to its containers, as far as it can be told without one."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from ssl import SSLError

import pytest
import testcontainers.core.config
from docker.errors import APIError, DockerException, TLSParameterError
from testcontainers.core.config import ConnectionMode

from pytest_warmstack.servers.docker import errors
from pytest_warmstack.servers.docker.container import _is_conflict, _published, _reachable_host
from pytest_warmstack.servers.docker.engine import (
    Engine,
    EngineAddress,
    Route,
    _fault,
    _gateway,
    _is_beside,
    _is_own_address,
    _resolve,
    _route,
    find_address,
)
from pytest_warmstack.servers.docker.errors import (
    NO_PERMISSION,
    NO_SSH,
    NO_TLS,
    NOT_RUNNING,
    REFUSED,
    DockerUnavailable,
    EngineFault,
)
from pytest_warmstack.servers.docker.ssh import NoSsh

BRIDGE = ConnectionMode.bridge_ip
GATEWAY = ConnectionMode.gateway_ip
HOST = ConnectionMode.docker_host
LOOPBACK = Route(("127.0.0.1",), "127.0.0.1")

Contexts = Callable[..., None]


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Contexts:
    """A function that writes docker contexts, and the name of the current one; nothing else is."""
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))

    def write(current: str = "", /, **hosts: str) -> None:
        (tmp_path / "config.json").write_text(
            json.dumps({"currentContext": current} if current else {})
        )
        for name, host in hosts.items():
            folder = tmp_path / "contexts" / "meta" / sha256(name.encode()).hexdigest()
            folder.mkdir(parents=True)
            context = {"Name": name, "Metadata": {}, "Endpoints": {"docker": {"Host": host}}}
            (folder / "meta.json").write_text(json.dumps(context))

    write()
    return write


@pytest.mark.parametrize(
    ("mode", "host", "address", "shared", "network", "route"),
    [
        # The usual one: the engine is on this machine.
        (HOST, "localhost", "127.0.0.1", True, "", LOOPBACK),
        # The same, and the machine has the marker file of a container.
        (GATEWAY, "172.17.0.1", "172.17.0.1", True, "", LOOPBACK),
        # In a container on the host's own network.
        (BRIDGE, "172.17.0.1", "172.17.0.1", True, "host", LOOPBACK),
        # An engine that is named by another address of this machine.
        (HOST, "192.0.2.7", "192.0.2.7", True, "", LOOPBACK),
        # An engine on another machine, by its address, and by a name.
        (HOST, "192.0.2.7", "192.0.2.7", False, "", Route(("192.0.2.7", ""), "192.0.2.7")),
        (HOST, "build", "192.0.2.7", False, "", Route(("192.0.2.7", ""), "build")),
        # A name that this machine does not know.
        (HOST, "build", "", False, "", Route(("",), "build")),
        # In a container with the engine's socket, which can't tell its own network.
        (GATEWAY, "172.17.0.1", "172.17.0.1", False, "", Route(("172.17.0.1", ""), "172.17.0.1")),
        # The same, and it can: nothing is published at all.
        (BRIDGE, "172.17.0.1", "172.17.0.1", False, "shop", Route((), "", "shop")),
    ],
)
def test_a_port_is_opened_no_wider_than_it_is_reachable_host(
    mode: ConnectionMode, host: str, address: str, shared: bool, network: str, route: Route
) -> None:
    """Loopback wherever it is the engine's too; all addresses only after the likely one."""
    assert _route(mode, host, address, shared=shared, network=network) == route


@pytest.mark.parametrize(
    ("bound", "reached"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("0.0.0.0", "build"),  # noqa: S104 - nothing is bound here
        ("::", "build"),
        ("", "build"),
        ("127.0.0.1", "build"),
    ],
)
def test_a_port_is_reached_where_it_is_bound(bound: str, reached: str) -> None:
    """But for wildcards, and the loopback of another machine."""
    assert _reachable_host("build", bound) == reached


V4 = {"HostIp": "0.0.0.0", "HostPort": "32770"}  # noqa: S104 - nothing is bound here
V6 = {"HostIp": "::", "HostPort": "32768"}
ANY = {"HostIp": "", "HostPort": "32771"}


@pytest.mark.parametrize(
    ("entries", "address", "entry"),
    [
        ([V4, V6], "192.0.2.7", V4),
        ([V6, V4], "192.0.2.7", V4),
        ([V4, V6], "2001:db8::7", V6),
        ([V6, V4], "2001:db8::7", V6),
        # A name that this machine does not know.
        ([V4, V6], "build", V4),
        # Podman names no address for all of them; an engine may have no IPv6.
        ([ANY], "2001:db8::7", ANY),
        ([V4], "2001:db8::7", V4),
        # It is not running.
        ([], "192.0.2.7", {}),
    ],
)
def test_the_number_of_a_port_is_that_of_the_address_we_come_to(
    entries: list[dict[str, str]], address: str, entry: dict[str, str]
) -> None:
    """An engine chooses it for IPv4 and for IPv6 each by itself."""
    assert _published(entries, address) == entry


def test_a_port_on_the_loopback_that_is_ours_is_reached_there() -> None:
    """Then the way to the engine is loopback too."""
    assert _reachable_host("127.0.0.1", "127.0.0.1") == "127.0.0.1"


@pytest.mark.parametrize(
    ("pool", "gateway"),
    [
        ({"Subnet": "172.17.0.0/16", "Gateway": "172.17.0.9"}, "172.17.0.9"),
        ({"Subnet": "172.17.0.0/16"}, "172.17.0.1"),
    ],
)
def test_the_gateway_is_told_or_the_first_address(pool: dict[str, str], gateway: str) -> None:
    """An engine that chose its network itself does not always tell the gateway."""
    assert _gateway(pool) == gateway


@pytest.mark.parametrize(
    ("address", "ours"),
    [("127.0.0.1", True), ("203.0.113.1", False), ("2001:db8::1", False), ("", False)],
)
def test_an_address_is_ours_when_a_socket_can_be_bound_to_it(address: str, ours: bool) -> None:
    """An address of another machine can't be bound; not a byte is sent to find that out."""
    assert _is_own_address(address) is ours


@pytest.mark.parametrize(
    ("host", "address"), [("192.0.2.7", "192.0.2.7"), ("no.such.host.invalid", "")]
)
def test_a_name_that_nobody_knows_has_no_address(host: str, address: str) -> None:
    """It may be one that only a proxy, or ssh, knows."""
    assert _resolve(host) == address


def test_an_engine_is_here_when_we_see_its_process(tmp_path: Path) -> None:
    """Whoever listens on the socket is one of our machine's processes, and we are in its network.

    As it is for a test, unless it runs in a network of its own.
    """
    path = tmp_path / "engine.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        try:
            beside = Path("/proc/1/ns/net").samefile("/proc/self/ns/net")
        except OSError:
            beside = True

        assert _is_beside(f"unix://{path}") is beside
        assert not _is_beside("tcp://127.0.0.1:2375")


@pytest.mark.parametrize(
    ("status", "words", "conflict"),
    [
        (409, 'Conflict. The container name "/a" is already in use by container "b".', True),
        (500, 'container create: the container name "a" is already in use by b.', True),
        (500, "no space left on device", False),
    ],
)
def test_a_name_that_is_taken_is_told_from_other_trouble(
    status: int, words: str, conflict: bool
) -> None:
    """Docker has a status for it; Podman has none, but the same words."""
    response = type("Response", (), {"status_code": status})()

    assert _is_conflict(APIError(words, response=response, explanation=words)) is conflict


def test_without_a_word_it_is_the_default_socket(contexts: Contexts) -> None:
    """As it is for the `docker` command."""
    assert find_address() == EngineAddress("unix:///var/run/docker.sock", "the default")


def test_each_source_gives_way_to_the_one_before(
    contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is testcontainers' properties, DOCKER_HOST, DOCKER_CONTEXT, the current context."""
    contexts("current", current="tcp://a:1", other="ssh://me@b/c.sock")
    assert find_address()[:3] == ("tcp://a:1", "the Docker context current", ())

    monkeypatch.setenv("DOCKER_CONTEXT", "other")
    assert find_address()[:3] == ("ssh://me@b/c.sock", "the Docker context other", ())
    monkeypatch.setenv("DOCKER_CONTEXT", "default")
    assert find_address() == EngineAddress("unix:///var/run/docker.sock", "the default")

    monkeypatch.setenv("DOCKER_HOST", "tcp://c:3")
    assert find_address() == EngineAddress("tcp://c:3", "DOCKER_HOST")

    properties = {"tc.host": "tcp://d:4"}
    monkeypatch.setattr(
        testcontainers.core.config.testcontainers_config, "tc_properties", properties
    )
    source = "tc.host in ~/.testcontainers.properties"
    # The `docker` command does not read that file.
    assert find_address() == EngineAddress("tcp://d:4", source, ("--host", "tcp://d:4"))


@pytest.mark.parametrize("skip", [False, True])
def test_a_context_shows_its_own_certificates_and_no_others(
    contexts: Contexts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, skip: bool
) -> None:
    """What the environment says of certificates is for DOCKER_HOST."""
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", "/nonexistent")
    contexts("plain", plain="tcp://a:1", guarded="tcp://b:2")
    assert find_address().variables == {"DOCKER_CERT_PATH": "", "DOCKER_TLS_VERIFY": ""}

    monkeypatch.setenv("DOCKER_CONTEXT", "guarded")
    key = sha256(b"guarded").hexdigest()
    folder = tmp_path / "contexts" / "tls" / key / "docker"
    folder.mkdir(parents=True)
    for name in ("ca.pem", "cert.pem", "key.pem"):
        (folder / name).touch()
    meta = tmp_path / "contexts" / "meta" / key / "meta.json"
    told = json.loads(meta.read_text())
    told["Endpoints"]["docker"]["SkipTLSVerify"] = skip
    meta.write_text(json.dumps(told))

    assert find_address().variables == {
        "DOCKER_CERT_PATH": str(folder),
        "DOCKER_TLS_VERIFY": "" if skip else "1",
    }


def test_an_engine_behind_ssh_needs_the_program(
    contexts: Contexts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The error says what is missing, and which address wanted it."""
    monkeypatch.setenv("DOCKER_HOST", "ssh://me@build")
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(DockerUnavailable) as caught:
        Engine()

    assert "Why: the program `ssh` is not installed" in str(caught.value)
    assert "ssh://me@build (DOCKER_HOST)" in str(caught.value)
    assert caught.value.brief_reason == (
        "The SSH connection to the Docker engine failed at ssh://me@build"
    )


@pytest.mark.parametrize("by", ["name", "variable"])
def test_a_context_that_is_not_there_is_no_reason_to_take_another_engine(
    contexts: Contexts, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """The `docker` command refuses it too; testcontainers would go to the default socket."""
    if by == "name":
        contexts("gone")
    else:
        monkeypatch.setenv("DOCKER_CONTEXT", "gone")

    with pytest.raises(DockerUnavailable, match="The Docker context 'gone' can't be used"):
        find_address()


def test_contexts_are_only_found_beside_a_configuration(
    contexts: Contexts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The `docker` command finds them without one, so what is missing is told."""
    contexts(other="tcp://a:1")
    (tmp_path / "config.json").unlink()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DOCKER_CONTEXT", "other")

    with pytest.raises(DockerUnavailable, match=r"not found; docker-py finds .* config\.json"):
        find_address()


def because(error: Exception, cause: Exception) -> Exception:
    """Return *error*, raised from *cause*."""
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "said", "fault"),
    [
        (ConnectionRefusedError(), "", None),
        (FileNotFoundError(), "", None),
        (DockerException("Error while fetching server API version"), "", None),
        (PermissionError(), "", NO_PERMISSION),
        (APIError("no"), "", REFUSED),
        (because(DockerException("fetching"), APIError("no")), "", REFUSED),
        (TLSParameterError("no file"), "", NO_TLS),
        (because(DockerException("fetching"), because(OSError(), SSLError())), "", NO_TLS),
        (NoSsh(), "", NO_SSH),
        (OSError(), "ssh: Host key verification failed.", NO_SSH),
        (OSError(), "Cannot connect to the Docker daemon at unix:///x.", NOT_RUNNING),
        (OSError(), "permission denied while trying to connect to the Docker API", NO_PERMISSION),
    ],
)
def test_an_engine_that_cannot_be_used_is_not_said_to_be_stopped(
    error: Exception, said: str, fault: EngineFault | None
) -> None:
    """Permission, certificates and ssh have headlines of their own; an unknown failure has none."""
    assert _fault(error, said) is fault


def test_each_fault_has_a_headline_of_its_own() -> None:
    """Only an engine that does not answer is said to be stopped."""
    faults = [each for each in vars(errors).values() if isinstance(each, EngineFault)]

    assert len({each.what for each in faults}) == len(faults) == 6
    assert [each for each in faults if "start Docker" in each.what] == [NOT_RUNNING]


def test_a_socket_that_this_user_may_not_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first advice is about the right to use it."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///closed.sock")
    monkeypatch.setattr(Engine, "_open", refuse)

    with pytest.raises(DockerUnavailable) as caught:
        Engine()

    assert (caught.value.what, caught.value.todo[0]) == NO_PERMISSION
    assert caught.value.looked_at == ("unix:///closed.sock (DOCKER_HOST)",)


def refuse(engine: Engine) -> str:
    """Fail as the kernel does."""
    raise PermissionError(13, "Permission denied")
