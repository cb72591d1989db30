"""How ssh is called for an engine, with a program in its place that tells what it was given."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from pytest_warmstack.servers.docker import ssh

PROGRAM = """#!{python}
import sys
if "-G" in sys.argv:
    print("user me")
    print("hostname 192.0.2.7")
elif "silent" in sys.argv:
    sys.exit("ssh: nobody there")
else:
    print(*sys.argv[1:], sep="|", flush=True)
    print(sys.stdin.readline().upper(), end="", flush=True)
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program called ssh, first in the path."""
    path = tmp_path / "ssh"
    path.write_text(PROGRAM.format(python=sys.executable))
    path.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


def talk(address: str, words: bytes) -> bytes:
    """Return all that comes over a tunnel's socket after *words* went there."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(address.removeprefix("unix://"))
        client.sendall(words)
        answer = b""
        while part := client.recv(4096):
            answer += part
        return answer


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ssh://build", ["--", "build", "docker system dial-stdio"]),
        ("ssh://build/", ["--", "build", "docker system dial-stdio"]),
        ("ssh://me@build:2222", ["-lme", "-p2222", "--", "build", "docker system dial-stdio"]),
        (
            "ssh://build/run/my engine.sock",
            ["--", "build", "docker --host 'unix:///run/my engine.sock' system dial-stdio"],
        ),
        ("ssh://me@[fe80::1]:22", ["-lme", "-p22", "--", "fe80::1", "docker system dial-stdio"]),
        # No host can be an option.
        ("ssh://-oProxyCommand=x", ["--", "-oProxyCommand=x", "docker system dial-stdio"]),
    ],
)
def test_ssh_is_called_as_the_docker_command_does(address: str, words: list[str]) -> None:
    """No port is named that the address does not name: the user's configuration may have one."""
    assert ssh.command(address) == ["ssh", "-T", "-o", "ConnectTimeout=30", *words]


def test_the_host_is_the_one_that_ssh_makes_of_it(program: None) -> None:
    """An alias in the user's configuration is known to ssh alone."""
    assert ssh.host_of("ssh://me@alias:2222") == "192.0.2.7"


def test_the_host_is_the_given_one_where_ssh_tells_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without the program the name is all that there is."""
    monkeypatch.setenv("PATH", str(tmp_path))

    assert ssh.host_of("ssh://me@alias:2222") == "alias"


def test_each_connection_is_an_ssh_of_its_own(program: None) -> None:
    """Both ways, and as many as there are."""
    tunnel = ssh.Tunnel("ssh://build")
    try:
        answers = [talk(tunnel.address, words) for words in (b"one\n", b"two\n")]
    finally:
        tunnel.close()

    head = b"-T|-o|ConnectTimeout=30|--|build|docker system dial-stdio\n"
    assert answers == [head + b"ONE\n", head + b"TWO\n"]


def test_what_ssh_says_is_kept_for_the_user(program: None) -> None:
    """A connection that can't be made ends, and the reason is there to be told."""
    tunnel = ssh.Tunnel("ssh://silent")
    try:
        assert talk(tunnel.address, b"") == b""
        assert tunnel.words() == "ssh: nobody there"
    finally:
        tunnel.close()


def test_a_closed_tunnel_leaves_nothing(program: None) -> None:
    """No socket, no folder, no process, no thread, also with a connection that is still open."""
    tunnel = ssh.Tunnel("ssh://build")
    folder = Path(tunnel.address.removeprefix("unix://")).parent
    assert folder.stat().st_mode & 0o077 == 0
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(tunnel.address.removeprefix("unix://"))
        assert client.recv(3, socket.MSG_WAITALL) == b"-T|"
        client.shutdown(socket.SHUT_WR)

        tunnel.close()

    assert not folder.exists()
    assert not tunnel._thread.is_alive()
    assert [child.returncode for child in tunnel._children] == [0]
