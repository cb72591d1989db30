"""Where the files of embedded servers can lie: each place with its room, and what it lacks.

Memory comes first, since nothing has to survive. But a container's `/dev/shm` has 64 MB as a rule,
and what lies in memory counts against the limit of a control group.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from pytest_warmstack.servers.errors import RuntimeUnavailable
from pytest_warmstack.servers.model import Need

_MEGABYTE: Final = 1024 * 1024
_TEST: Final = "/usr/bin/test"
_TOO_SMALL: Final = "that is too small"


class Place(NamedTuple):
    """A folder with its *size* and what is *free* of it, in bytes; *lacks* says why it won't do."""

    folder: Path
    size: int
    free: int
    lacks: str = ""

    def __str__(self) -> str:
        room = f"{self.size // _MEGABYTE} MB, of which {self.free // _MEGABYTE} MB are free"
        parts = (f"{self.folder}", room if self.size else "", self.lacks)
        return ": ".join(filter(None, parts))


_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - whoever makes something in it looks first


def usual() -> Path:
    """Return the folder in memory where there is one, else the one for temporary files."""
    is_there = os.access(_SHARED_MEMORY, os.W_OK)
    return _SHARED_MEMORY if is_there else Path(tempfile.gettempdir())


def passed_by(need: Need) -> str:
    """Return why the usual folder was not taken, by what it lacks now."""
    lacks = look(usual(), need).lacks
    too_small = not lacks or lacks.startswith(_TOO_SMALL)
    return f"{usual()} is too small" if too_small else f"{usual()}: {lacks}"


def within(folder: Path) -> Path:
    """Return the folder in *folder* that holds this user's embedded servers; it may not exist."""
    return folder / f"pytest-warmstack-{os.getuid()}"


def choose(need: Need, title: str, named: str = "") -> Path:
    """Return the first folder with the wanted room, else the roomiest; *named* is the user's own.

    Raises `RuntimeUnavailable` when none will do for the server called *title*.
    """
    places = looked(need, named)
    fit = [place for place in places if not place.lacks]
    if not fit:
        raise RuntimeUnavailable.no_place(
            title=title,
            needed=f"{need.least // _MEGABYTE} MB",
            looked_at=map(str, places),
            named=named,
        )
    roomy = (place for place in fit if place.free >= need.wanted)
    return next(roomy, max(fit, key=lambda place: place.free)).folder


_NOTHING: Final = Need()


def looked(need: Need, named: str = "") -> list[Place]:
    """Return the folders that are looked at, best first; only *named*, if there is one."""
    return [look(folder, need) for folder in _candidates(named)]


def look(folder: Path, need: Need = _NOTHING) -> Place:
    """Return what *folder* has to offer, or what is mounted in it for our servers."""
    mounted = within(folder) if within(folder).is_dir() else folder
    try:
        found = os.statvfs(mounted)
    except OSError as error:
        return Place(folder, 0, 0, error.strerror or str(error))
    size, free = found.f_frsize * found.f_blocks, found.f_frsize * found.f_bavail
    limit = ""
    if _is_memory(mounted) and (left := memory_left()) is not None and left < free:
        free, limit = left, ", as far as the memory limit of the control group goes"
    lacks = ""
    if not os.access(mounted, os.W_OK | os.X_OK):
        lacks = "you may not write there"
    elif found.f_flag & os.ST_RDONLY:
        lacks = "it is mounted read-only"
    elif need.executes and found.f_flag & os.ST_NOEXEC:
        lacks = "programs can't be executed there (noexec)"
    elif free < need.least:
        lacks = f"{_TOO_SMALL}{limit}"
    # Some file systems have no fixed number, and say 0.
    elif found.f_files and found.f_favail < need.files:
        lacks = f"it has room for {found.f_favail} more files only (inodes)"
    elif need.user is not None and not _may_enter(need.user, mounted):
        lacks = f"{need.user}, who runs the server, may not enter it"
    return Place(folder, size, free, lacks)


def _candidates(named: str) -> Iterator[Path]:
    """Yield the folders that are looked at, best first."""
    if named:
        yield Path(named)
        return
    yield _SHARED_MEMORY
    try:
        yield Path(tempfile.gettempdir())
    except FileNotFoundError:  # Nothing can be written to any of them.
        yield Path(os.environ.get("TMPDIR") or "/tmp")  # noqa: S108 - to be looked at
    yield Path("/var/tmp")  # noqa: S108 - as above


def _may_enter(user: str, folder: Path) -> bool:
    answer = subprocess.run([_TEST, "-x", folder], check=False, timeout=10, user=user)
    return answer.returncode == 0


def _is_memory(folder: Path) -> bool:
    """Tell whether the files in *folder* lie in memory, by the kernel's table of mounts."""
    device = folder.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in _lines("/proc/self/mountinfo"):
        # The third word is the device, the first one behind the dash the type (proc(5)).
        before, _, behind = line.partition(" - ")
        if before.split()[2] == number:
            return behind.split()[0] in {"tmpfs", "ramfs"}
    return False


def memory_left(root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> int | None:
    """Return the bytes that the control groups of this process let it take; None without a limit.

    What can be thrown away, the cache of files on disks, doesn't count as taken (the kernel's
    documentation, "Control Group v2" and "Memory Resource Controller").
    """
    left = []
    for line in _lines(own):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, names = Path(root), ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = Path(root, "memory")
            names = (
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
        else:
            continue
        group = top / path.lstrip("/")
        # In a container the path may be one of its host, and the root is the container's own.
        for each in (group, *group.parents):
            left += _left(each, *names)
            if each == top:
                break
    return max(min(left), 0) if left else None


def _left(group: Path, limit: str, used: str, cache: str) -> list[int]:
    """Return what is left of the limit of one control group; nothing without one."""
    highest, now = (" ".join(_lines(str(group / name))) for name in (limit, used))
    if not (highest.isdigit() and now.isdigit()):
        return []
    rows = dict(line.split() for line in _lines(str(group / "memory.stat")))
    return [int(highest) - int(now) + int(rows.get(cache, 0))]


def _lines(path: str) -> list[str]:
    """Return the lines of a file of the kernel's; none where there is no such file."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
