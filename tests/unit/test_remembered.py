"""Remembered servers: what a run leaves for the next one, and what makes it useless."""

from __future__ import annotations

import json
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pytest_warmstack import redis
from pytest_warmstack.options import RuntimeName, Settings, environment, resolve
from pytest_warmstack.servers import WORK_INTERVAL, RememberedServers, asked
from pytest_warmstack.servers.identity import Label, Project, Service
from pytest_warmstack.servers.model import Endpoint, NotReady, ServerInfo

PROJECT = Project("/shop")
SPEC = redis.spec(Settings(), 0)
ENDPOINT = Endpoint(host="127.0.0.1", port=54321, password="hunter2")
SERVER = ServerInfo(
    runtime="docker",
    id="c0ffee",
    name="warmstack-shop",
    labels={
        Label.PROJECT: PROJECT.id,
        Label.SERVICE: "redis",
        Label.FINGERPRINT: SPEC.fingerprint("docker"),
    },
    endpoint=ENDPOINT,
    what="image redis:7",
    state="running",
    since=1.5,
)
OTHER = SERVER.replace(endpoint=ENDPOINT.replace(port=1))
WHY = "Docker is not running"
NOTHING = (None, "")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that is not there yet."""
    return tmp_path / "cache" / "warmstack"


@pytest.fixture
def remembered(folder: Path) -> RememberedServers:
    """The servers remembered in it."""
    return RememberedServers(folder)


def written(folder: Path) -> list[Path]:
    """Return the files in *folder*."""
    return sorted(folder.iterdir())


def test_a_server_is_read_as_it_was_written(remembered: RememberedServers, folder: Path) -> None:
    """The next run, which is another process, finds all that this one knew."""
    remembered.write(Service.POSTGRES, SERVER, WHY)

    assert RememberedServers(folder).read(Service.POSTGRES) == (SERVER, WHY)


def test_each_server_is_remembered_by_itself(remembered: RememberedServers) -> None:
    """What is known of one server says nothing of the other."""
    remembered.write(Service.POSTGRES, SERVER, WHY)
    assert remembered.read(Service.REDIS) == NOTHING

    remembered.write(Service.REDIS, OTHER, "")
    assert remembered.read(Service.POSTGRES) == (SERVER, WHY)


def test_only_the_owner_can_read_the_file(remembered: RememberedServers, folder: Path) -> None:
    """It holds a password."""
    remembered.write(Service.POSTGRES, SERVER, WHY)

    (file,) = written(folder)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_file_that_others_could_read_is_replaced_by_one_that_they_cannot(
    remembered: RememberedServers, folder: Path
) -> None:
    """The mode of the old file does not survive."""
    remembered.write(Service.POSTGRES, SERVER, WHY)
    (file,) = written(folder)
    file.chmod(0o644)

    remembered.write(Service.POSTGRES, OTHER, WHY)

    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_new_file_replaces_the_old_one_as_a_whole(
    remembered: RememberedServers, folder: Path
) -> None:
    """Who has the old file open reads it to its end, and no draft is left beside the new one."""
    remembered.write(Service.POSTGRES, SERVER, WHY)
    (file,) = written(folder)
    with file.open("rb") as reader:
        remembered.write(Service.POSTGRES, OTHER, WHY)
        old = json.load(reader)

    assert old["server"] == SERVER.to_plain()
    assert remembered.read(Service.POSTGRES) == (OTHER, WHY)
    assert written(folder) == [file]


def test_the_same_server_is_not_written_again(remembered: RememberedServers, folder: Path) -> None:
    """A warm run changes nothing on the disk."""
    remembered.write(Service.POSTGRES, SERVER, WHY)
    before = written(folder)[0].stat()

    remembered.write(Service.POSTGRES, SERVER, WHY)

    after = written(folder)[0].stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


PLAIN = {"asked": "", "why": WHY, "server": SERVER.to_plain()}
WRONG: tuple[Any, ...] = (
    *(None, [], {}, {"endpoint": {}}, {**SERVER.to_plain(), "more": 1}),
    {**SERVER.to_plain(), "endpoint": None},
)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"no json",
        b"null",
        b"[]",
        b"{}",
        b'{"port": 1}',
        *(json.dumps(PLAIN)[:end].encode() for end in (-1, -5)),
        *(json.dumps({**PLAIN, "server": server}).encode() for server in WRONG),
    ],
)
def test_an_invalid_file_is_ignored(
    remembered: RememberedServers, folder: Path, content: bytes
) -> None:
    """A torn, foreign or older file counts as none, and the next run replaces it."""
    remembered.write(Service.POSTGRES, SERVER, WHY)
    written(folder)[0].write_bytes(content)

    assert remembered.read(Service.POSTGRES) == NOTHING
    remembered.write(Service.POSTGRES, SERVER, WHY)
    assert remembered.read(Service.POSTGRES) == (SERVER, WHY)


def test_a_file_that_cannot_be_read_is_ignored(remembered: RememberedServers, folder: Path) -> None:
    """Something else in its place is left as it is, without an error."""
    (folder / "postgres.json").mkdir(parents=True)

    assert remembered.read(Service.POSTGRES) == NOTHING
    remembered.write(Service.POSTGRES, SERVER, WHY)
    assert remembered.read(Service.POSTGRES) == NOTHING
    assert written(folder) == [folder / "postgres.json"]


def test_without_the_folder_nothing_is_found(remembered: RememberedServers, folder: Path) -> None:
    """Reading makes nothing."""
    assert remembered.read(Service.POSTGRES) == NOTHING
    assert not folder.exists()


def test_a_folder_that_cannot_be_made_is_no_error(
    remembered: RememberedServers, folder: Path
) -> None:
    """A run is not worse off for what the next one won't find."""
    folder.parent.mkdir()
    folder.write_text("a file, where the folder should be")

    remembered.write(Service.POSTGRES, SERVER, WHY)

    assert remembered.read(Service.POSTGRES) == NOTHING


def test_without_a_cache_nothing_is_remembered() -> None:
    """With pytest's cache switched off, nothing is written and nothing is found."""
    remembered = RememberedServers(None)

    remembered.write(Service.POSTGRES, SERVER, WHY)

    assert remembered.read(Service.POSTGRES) == NOTHING


CHANGED = {
    "runtime": Settings(runtime=RuntimeName.EMBEDDED),
    "PostgreSQL's image": Settings(postgres_image="postgers:16"),
    "Redis' image": Settings(redis_image="redis:8"),
    "PostgreSQL's programs": Settings(postgres_bin="/opt/pg"),
    "Redis' programs": Settings(redis_bin="/opt/redis"),
    "PostgreSQL's URL": Settings(postgres_url="postgresql://db"),
    "Redis' URL": Settings(redis_url="redis://db"),
}


@pytest.mark.parametrize("what", CHANGED)
def test_a_changed_setting_makes_another_question(what: str, folder: Path) -> None:
    """A server that was asked for otherwise is not found, and the new one replaces it."""
    RememberedServers(folder, asked(Settings(), {})).write(Service.POSTGRES, SERVER, WHY)
    changed = RememberedServers(folder, asked(CHANGED[what], {}))

    assert changed.read(Service.POSTGRES) == NOTHING
    changed.write(Service.POSTGRES, SERVER, WHY)
    assert changed.read(Service.POSTGRES) == (SERVER, WHY)
    assert RememberedServers(folder, asked(Settings(), {})).read(Service.POSTGRES) == NOTHING


def test_an_image_that_is_named_makes_another_question() -> None:
    """Also if it is the default one: embedded servers may replace that only if it is not named."""
    named = resolve(environment({"WARMSTACK_REDIS_IMAGE": Settings().redis_image}))

    assert asked(named, {}) != asked(Settings(), {})


@pytest.mark.parametrize("name", ["DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CERT_PATH", "TC_HOST"])
def test_another_engine_makes_another_question(name: str) -> None:
    """And what has nothing to do with it does not."""
    assert asked(Settings(), {name: "one"}) != asked(Settings(), {name: "two"})
    assert asked(Settings(seed=("a.sql",)), {"PATH": "/bin"}) == asked(Settings(), {})


def test_what_is_due_is_due_once_in_a_while(tmp_path: Path) -> None:
    """The first time, and again when the pause is over; each thing by itself."""
    remembered = RememberedServers(tmp_path / "new")

    assert [remembered.is_due("cleanup") for _ in range(3)] == [True, False, False]
    assert remembered.is_due("another")
    stamp = tmp_path / "new" / "cleanup.stamp"
    os.utime(stamp, (time.time() - WORK_INTERVAL - 1,) * 2)
    assert [remembered.is_due("cleanup") for _ in range(2)] == [True, False]


def test_nothing_is_due_where_nothing_can_be_noted(tmp_path: Path) -> None:
    """Else it would be done in every run."""
    (tmp_path / "file").touch()

    assert not RememberedServers(None).is_due("cleanup")
    assert not RememberedServers(tmp_path / "file").is_due("cleanup")


@dataclass
class Client:
    """A connection to a server that answers."""

    endpoint: Endpoint
    version: str = "7.2"
    also: str = ""


def connect(remembered: RememberedServers, project: Project = PROJECT, **changed: Any) -> Any:
    """Return what is found for a spec whose server answers, but for what is *changed* in it."""
    spec = SPEC.replace(connect=lambda endpoint, *_: Client(endpoint), **changed)
    return remembered.connect(spec, project)


def test_a_remembered_server_that_answers_is_reused(remembered: RememberedServers) -> None:
    """With its address, and the reason that it is in its runtime."""
    remembered.write(SPEC.key, SERVER, WHY)

    server, why = connect(remembered)

    assert (server.origin, server.id, server.since, why) == ("reused", "c0ffee", 1.5, WHY)
    assert server.handle().endpoint == ENDPOINT
    assert server.facts(why)["title"] == "Redis 7.2"


def test_a_copied_checkout_does_not_get_the_other_ones_server(
    remembered: RememberedServers,
) -> None:
    """Nor does a run with other settings, a URL, or a server that does not answer."""
    remembered.write(SPEC.key, SERVER, WHY)

    def refuse(*_: object) -> Any:
        raise NotReady

    assert connect(remembered, Project("/copy")) == NOTHING
    assert connect(remembered, options={"databases": "3"}) == NOTHING
    assert connect(remembered, url="redis://db") == NOTHING
    assert remembered.connect(SPEC.replace(connect=refuse), PROJECT) == NOTHING
