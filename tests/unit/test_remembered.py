"""Remembered servers: what a run leaves for the next, and what happens when it can not."""

from __future__ import annotations

import json
import os
import stat
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pytest_warmstack.servers.identity import Service
from pytest_warmstack.servers.remembered import PAUSE, RememberedServer, RememberedServers, asked
from pytest_warmstack.settings import RuntimeName, Settings, environment, resolve

HINT = RememberedServer(
    runtime="docker",
    fingerprint="0123456789abcdef",
    host="127.0.0.1",
    port=54321,
    password="hunter2",
    id="c0ffee",
    what="image postgres:16-alpine",
    since=1.5,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that is not there yet."""
    return tmp_path / "cache" / "warmstack"


@pytest.fixture
def remembered(folder: Path) -> RememberedServers:
    """The hints in it."""
    return RememberedServers(folder)


def written(folder: Path) -> list[Path]:
    """Return the files in *folder*."""
    return sorted(folder.iterdir())


def test_a_hint_is_read_as_it_was_written(remembered: RememberedServers, folder: Path) -> None:
    """The next run, which is another process, finds all that this one knew."""
    remembered.write(Service.POSTGRES, HINT)

    assert RememberedServers(folder).read(Service.POSTGRES) == HINT


def test_each_server_has_a_hint_of_its_own(remembered: RememberedServers) -> None:
    """What is known of one server says nothing of the other."""
    remembered.write(Service.POSTGRES, HINT)
    assert remembered.read(Service.REDIS) is None

    remembered.write(Service.REDIS, replace(HINT, port=63790))
    assert remembered.read(Service.POSTGRES) == HINT


def test_only_the_owner_can_read_a_hint(remembered: RememberedServers, folder: Path) -> None:
    """It holds a password."""
    remembered.write(Service.POSTGRES, HINT)

    (file,) = written(folder)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_file_that_others_could_read_is_replaced_by_one_that_they_cannot(
    remembered: RememberedServers, folder: Path
) -> None:
    """The mode of an old file does not survive a new hint."""
    remembered.write(Service.POSTGRES, HINT)
    (file,) = written(folder)
    file.chmod(0o644)

    remembered.write(Service.POSTGRES, replace(HINT, password="secret3"))

    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_new_hint_takes_the_place_of_the_old_one_as_a_whole(
    remembered: RememberedServers, folder: Path
) -> None:
    """Who has the old file open reads it to its end, and no draft is left beside the new one."""
    remembered.write(Service.POSTGRES, HINT)
    (file,) = written(folder)
    with file.open("rb") as reader:
        remembered.write(Service.POSTGRES, replace(HINT, port=1))
        old = json.load(reader)

    assert old == asdict(HINT)
    assert remembered.read(Service.POSTGRES) == replace(HINT, port=1)
    assert written(folder) == [file]


def test_the_same_hint_is_not_written_again(remembered: RememberedServers, folder: Path) -> None:
    """A warm run changes nothing on the disk."""
    remembered.write(Service.POSTGRES, HINT)
    before = written(folder)[0].stat()

    remembered.write(Service.POSTGRES, HINT)

    after = written(folder)[0].stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


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
        json.dumps(asdict(HINT))[:-5].encode(),
        json.dumps({**asdict(HINT), "more": 1}).encode(),
    ],
)
def test_a_file_that_cannot_be_understood_is_no_hint(
    remembered: RememberedServers, folder: Path, content: bytes
) -> None:
    """A torn, foreign or older file is as good as none, and the next hint replaces it."""
    remembered.write(Service.POSTGRES, HINT)
    written(folder)[0].write_bytes(content)

    assert remembered.read(Service.POSTGRES) is None
    remembered.write(Service.POSTGRES, HINT)
    assert remembered.read(Service.POSTGRES) == HINT


def test_a_file_that_cannot_be_read_is_no_hint(remembered: RememberedServers, folder: Path) -> None:
    """Something else in the hint's place is left as it is, and nobody is troubled with it."""
    (folder / "postgres.json").mkdir(parents=True)

    assert remembered.read(Service.POSTGRES) is None
    remembered.write(Service.POSTGRES, HINT)
    assert remembered.read(Service.POSTGRES) is None
    assert written(folder) == [folder / "postgres.json"]


def test_a_folder_that_is_not_there_holds_no_hint(
    remembered: RememberedServers, folder: Path
) -> None:
    """Reading makes nothing."""
    assert remembered.read(Service.POSTGRES) is None
    assert not folder.exists()


def test_a_folder_that_cannot_be_made_is_no_error(
    remembered: RememberedServers, folder: Path
) -> None:
    """A run is not worse off for what the next one won't find."""
    folder.parent.mkdir()
    folder.write_text("a file, where the folder should be")

    remembered.write(Service.POSTGRES, HINT)

    assert remembered.read(Service.POSTGRES) is None


def test_without_a_folder_there_are_no_hints() -> None:
    """With pytest's cache switched off, nothing is written and nothing is found."""
    remembered = RememberedServers(None)

    remembered.write(Service.POSTGRES, HINT)

    assert remembered.read(Service.POSTGRES) is None


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
    """A hint that was left for another question is none, and the new one takes its place."""
    RememberedServers(folder, asked(Settings(), {})).write(Service.POSTGRES, HINT)
    changed = RememberedServers(folder, asked(CHANGED[what], {}))

    assert changed.read(Service.POSTGRES) is None
    changed.write(Service.POSTGRES, HINT)
    assert changed.read(Service.POSTGRES) is not None
    assert RememberedServers(folder, asked(Settings(), {})).read(Service.POSTGRES) is None


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

    assert [remembered.is_due("upkeep") for _ in range(3)] == [True, False, False]
    assert remembered.is_due("another")
    stamp = tmp_path / "new" / "upkeep.stamp"
    os.utime(stamp, (time.time() - PAUSE - 1,) * 2)
    assert [remembered.is_due("upkeep") for _ in range(2)] == [True, False]


def test_nothing_is_due_where_nothing_can_be_noted(tmp_path: Path) -> None:
    """Else it would be done in every run."""
    (tmp_path / "file").touch()

    assert not RememberedServers(None).is_due("upkeep")
    assert not RememberedServers(tmp_path / "file").is_due("upkeep")
