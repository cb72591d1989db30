"""Embedded servers, as far as that takes no server: their records and processes."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Self

import pytest

from pytest_warmstack.servers import embedded
from pytest_warmstack.servers.identity import Process
from pytest_warmstack.servers.model import Endpoint, ServerInfo

RECORD = ServerInfo(
    runtime="embedded",
    id=str(Process.current()),
    name="one",
    labels={"pytest-warmstack.service": "redis"},
    endpoint=Endpoint(host="127.0.0.1", port=1, password="hunter2"),
    what="/opt/redis/bin/redis-server",
    since=1.5,
)


def test_a_record_is_read_with_the_state_of_its_process(tmp_path: Path) -> None:
    """A process that has ended, or has not been started yet, does not run."""
    for record, state in ((RECORD, "running"), (RECORD.replace(id=""), "ended")):
        embedded._write(tmp_path, record)

        assert embedded._read(tmp_path) == record.replace(state=state)


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", '{"endpoint": {}}', "{"])
def test_an_invalid_record_counts_as_none(tmp_path: Path, text: str) -> None:
    """So its folder is a leftover."""
    assert embedded._read(tmp_path) is None
    (tmp_path / "server.json").write_text(text)

    assert embedded._read(tmp_path) is None


def test_a_record_has_the_password_and_no_representation_shows_it(tmp_path: Path) -> None:
    """The file can be read by its owner only."""
    embedded._write(tmp_path, RECORD)

    assert json.loads((tmp_path / "server.json").read_text())["endpoint"]["password"] == "hunter2"
    assert (tmp_path / "server.json").stat().st_mode & 0o077 == 0
    assert "hunter2" not in repr(RECORD)


def test_a_process_of_another_machine_gets_no_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a reboot, or in another container, its id may be that of any process."""
    process = Process.current()._replace(host="another-boot")
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("a signal is sent"))

    embedded._stop(RECORD.replace(id=str(process)))


def test_a_port_is_found_while_a_test_blocks_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """As pytest-socket does, which puts its own class in the place of `socket.socket`."""

    class Blocked(socket.socket):
        def __new__(cls, *_: object) -> Self:
            raise RuntimeError

    monkeypatch.setattr(socket, "socket", Blocked)

    assert embedded._free_port() > 0
