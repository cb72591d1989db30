"""Which folder the files of an embedded server get, and why not another."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from pytest_warmstack.servers import places
from pytest_warmstack.servers.errors import RuntimeUnavailable
from pytest_warmstack.servers.model import Need

MB = 1024 * 1024
NEED = Need(least=100 * MB, wanted=500 * MB, files=1000)

World = Callable[..., None]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A function that adds a folder: its name, and what `statvfs` reports about it."""
    found: dict[str, dict[str, int]] = {}
    real = os.statvfs

    def statvfs(path: str | Path) -> object:
        if not str(path).startswith(str(tmp_path)):
            return real(path)
        given = found[Path(path).relative_to(tmp_path).parts[0]]
        blocks = {"f_frsize": MB, "f_blocks": 1000, "f_bavail": 1000}
        return SimpleNamespace(**{**blocks, "f_files": 0, "f_favail": 0, "f_flag": 0, **given})

    def say(name: str, **given: int) -> None:
        (tmp_path / name).mkdir(exist_ok=True)
        found[name] = given
        monkeypatch.setattr(places, "_folders", lambda _: [tmp_path / each for each in found])

    monkeypatch.setattr(os, "statvfs", statvfs)
    monkeypatch.setattr(places, "memory_left", lambda: None)
    return say


def chosen(need: Need = NEED) -> str:
    """Return the name of the folder that is chosen."""
    return places.choose(need, "PostgreSQL").name


def test_the_first_with_the_wanted_room_is_taken(world: World) -> None:
    """Memory comes first, even if a disk is larger."""
    world("shm", f_bavail=600)
    world("tmp", f_bavail=9000)

    assert chosen() == "shm"


def test_where_none_has_the_wanted_room_the_roomiest_is_taken(world: World) -> None:
    """A little space is better than no server, as long as it is enough for one."""
    world("shm", f_bavail=120)
    world("tmp", f_bavail=450)
    world("more", f_bavail=120)

    assert chosen() == "tmp"


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"f_blocks": 64, "f_bavail": 60}, "64 MB, of which 60 MB are free: that is too small"),
        ({"f_flag": os.ST_RDONLY}, "it is mounted read-only"),
        ({"f_flag": os.ST_NOEXEC}, r"programs can't be executed there \(noexec\)"),
        ({"f_files": 5000, "f_favail": 999}, r"it has room for only 999 more files \(inodes\)"),
    ],
    ids=["room", "read-only", "noexec", "inodes"],
)
def test_what_a_place_lacks_is_said_when_none_will_do(
    world: World, tmp_path: Path, given: dict[str, int], why: str
) -> None:
    """The next one is taken; without one, the error has each place and the setting."""
    need = NEED._replace(executes=True)
    world("shm", **given)
    with pytest.raises(RuntimeUnavailable, match=why) as caught:
        places.choose(need, "PostgreSQL")
    world("tmp")

    assert chosen(need) == "tmp"
    assert str(tmp_path / "shm") in str(caught.value)
    assert "WARMSTACK_EMBEDDED_FOLDER=FOLDER" in str(caught.value)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"f_bavail": 60}, " is too small"),
        ({"f_bavail": 400}, " is too small"),
        ({"f_flag": os.ST_NOEXEC}, ": programs can't be executed there (noexec)"),
        ({"f_files": 5000, "f_favail": 999}, ": it has room for only 999 more files (inodes)"),
    ],
    ids=["room", "less than wanted", "noexec", "inodes"],
)
def test_the_header_says_why_the_usual_place_was_passed_by(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, int],
    why: str,
) -> None:
    """A place can be unusable for other reasons than its size."""
    world("shm", **given)
    monkeypatch.setattr(places, "_SHARED_MEMORY", tmp_path / "shm")

    assert places.passed_by(NEED._replace(executes=True)) == f"{tmp_path / 'shm'}{why}"


def test_execution_matters_only_where_something_is_executed(world: World) -> None:
    """That matters only if the server's program is copied there."""
    world("shm", f_flag=os.ST_NOEXEC)
    world("tmp")

    assert chosen() == "shm"


def test_a_folder_that_is_not_there_is_passed_by(tmp_path: Path) -> None:
    """Like /dev/shm on some machines."""
    place = places.look(tmp_path / "none", NEED)

    assert place.lacks == "No such file or directory"
    assert str(place) == f"{tmp_path / 'none'}: No such file or directory"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as another user")
def test_the_user_of_the_server_has_to_come_in(world: World, tmp_path: Path) -> None:
    """As root PostgreSQL runs as nobody, who can't enter a folder of root's own."""
    tmp_path.chmod(0o711)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.getuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    world("shm")
    (tmp_path / "shm").chmod(0o700)
    world("tmp")
    (tmp_path / "tmp").chmod(0o711)

    assert chosen(NEED._replace(user="nobody")) == "tmp"


def test_a_limit_of_memory_counts_where_files_lie_in_memory(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in a tmpfs is memory of the control group that wrote it."""
    monkeypatch.setattr(places, "memory_left", lambda: 80 * MB)
    monkeypatch.setattr(places, "_is_memory", lambda folder: "shm" in folder.parts)
    world("shm")
    with pytest.raises(RuntimeUnavailable) as caught:
        chosen()
    world("tmp")

    assert chosen() == "tmp"
    assert "80 MB are free: that is too small, because of the memory limit" in str(caught.value)


def test_this_machines_own_places_are_recognised() -> None:
    """The kernel's table of mounts tells which file systems are in memory."""
    assert places._is_memory(Path("/dev/shm"))
    assert not places._is_memory(Path("/sys"))


def group(folder: Path, version: int, limit: object, used: int, cache: int) -> None:
    """Write what the kernel reports about a control group."""
    names = (
        ("memory.max", "memory.current", "inactive_file")
        if version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 7\n{names[2]} {cache}\n")


@pytest.mark.parametrize(
    ("version", "line", "top"),
    [(2, "0::/a/b", ""), (1, "9:cpu:/\n4:memory,x:/a/b\n0::/a/b", "memory")],
    ids=["v2", "v1"],
)
def test_the_tightest_group_decides(tmp_path: Path, version: int, line: str, top: str) -> None:
    """Of the group and those above it; the cache of files on disks doesn't count."""
    own = tmp_path / "own"
    own.write_text(line + "\n")
    left = lambda: places.memory_left(str(tmp_path), str(own))  # noqa: E731
    unlimited = "max" if version == 2 else 2**63 - 4096
    assert left() is None

    group(tmp_path / top / "a" / "b", version, unlimited, 500, 0)
    assert (left() or 2**62) >= 2**62

    group(tmp_path / top / "a", version, 1000, 700, 100)
    assert left() == 400
    group(tmp_path / top / "a" / "b", version, 600, 500, 50)
    assert left() == 150
    # A container sees its own group as the root.
    own.write_text(line.replace("/a/b", "/docker/0123") + "\n")
    group(tmp_path / top, version, 90, 100, 0)
    assert left() == 0
