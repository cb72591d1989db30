"""The places for the files of embedded servers, with their space and their problems.

Memory is preferred, because the files needn't survive. But a container's `/dev/shm` usually has
64 MB, and files in memory count against the limit of a control group.
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
    """A folder, its *size* and *free* space in bytes; *lacks* is why it can't be used, or ""."""

    folder: Path
    size: int
    free: int
    lacks: str = ""

    def __str__(self) -> str:
        room = f"{self.size // _MEGABYTE} MB, of which {self.free // _MEGABYTE} MB are free"
        parts = (f"{self.folder}", room if self.size else "", self.lacks)
        return ": ".join(filter(None, parts))


_SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - `embedded` checks who owns what is there


def usual() -> Path:
    """Return the folder in memory if there is one, or else the folder for temporary files."""
    return _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else Path(tempfile.gettempdir())


def passed_by(need: Need) -> str:
    """Return why the usual folder is not used, judged by its current state."""
    lacks = look(usual(), need).lacks
    too_small = not lacks or lacks.startswith(_TOO_SMALL)
    return f"{usual()} is too small" if too_small else f"{usual()}: {lacks}"


def within(folder: Path) -> Path:
    """Return the folder in *folder* for this user's embedded servers; it may not exist."""
    return folder / f"pytest-warmstack-{os.getuid()}"


def choose(need: Need, title: str, named: str = "") -> Path:
    """Return the first folder with the wanted space, or else the folder with the most space.

    If the user *named* a folder, only that is considered. Raises `RuntimeUnavailable` if the server
    called *title* can use none.
    """
    places = candidates(need, named)
    fit = [place for place in places if not place.lacks]
    if not fit:
        raise RuntimeUnavailable.no_place(
            title=title,
            needed=f"{need.least // _MEGABYTE} MB",
            looked_at=map(str, places),
            named=named,
        )
    # Of several with enough space, max returns the first.
    return max(fit, key=lambda place: min(place.free, need.wanted)).folder


def candidates(need: Need, named: str = "") -> list[Place]:
    """Return the candidates in order of preference; only *named*, if the user named a folder."""
    return [look(folder, need) for folder in _folders(named)]


def look(folder: Path, need: Need = Need()) -> Place:  # noqa: B008 - it is immutable
    """Return the place *folder*, or the file system that is mounted in it for these servers."""
    mounted = within(folder) if within(folder).is_dir() else folder
    try:
        found = os.statvfs(mounted)
    except OSError as error:
        return Place(folder, 0, 0, error.strerror or str(error))
    size, free = found.f_frsize * found.f_blocks, found.f_frsize * found.f_bavail
    limit = ""
    if _is_memory(mounted) and (left := memory_left()) is not None and left < free:
        free, limit = left, ", because of the memory limit of the control group"
    lacks = ""
    if not os.access(mounted, os.W_OK | os.X_OK):
        lacks = "you may not write there"
    elif found.f_flag & os.ST_RDONLY:
        lacks = "it is mounted read-only"
    elif need.executes and found.f_flag & os.ST_NOEXEC:
        lacks = "programs can't be executed there (noexec)"
    elif free < need.least:
        lacks = f"{_TOO_SMALL}{limit}"
    # Some file systems have no fixed number, and report 0.
    elif found.f_files and found.f_favail < need.files:
        lacks = f"it has room for only {found.f_favail} more files (inodes)"
    elif need.user is not None and not _may_enter(need.user, mounted):
        lacks = f"the user {need.user}, who runs the server, may not enter it"
    return Place(folder, size, free, lacks)


def _folders(named: str) -> Iterator[Path]:
    if named:
        yield Path(named)
        return
    yield _SHARED_MEMORY
    try:
        yield Path(tempfile.gettempdir())
    except FileNotFoundError:  # It found no folder that is writable.
        yield Path(os.environ.get("TMPDIR") or "/tmp")  # noqa: S108 - only to look at it
    yield Path("/var/tmp")  # noqa: S108 - as above


def _may_enter(user: str, folder: Path) -> bool:
    answer = subprocess.run([_TEST, "-x", folder], check=False, timeout=10, user=user)
    return answer.returncode == 0


def _is_memory(folder: Path) -> bool:
    """Return whether the files in *folder* are in memory, according to the table of mounts."""
    device = folder.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in _lines("/proc/self/mountinfo"):
        # The third word is the device, the first one after the dash the type (proc(5)).
        before, _, after = line.partition(" - ")
        if before.split()[2] == number:
            return after.split()[0] in {"tmpfs", "ramfs"}
    return False


def memory_left(root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> int | None:
    """Return the bytes that this process's control groups allow it to use; None without a limit.

    The cache of files on disks doesn't count, because it can be dropped (the kernel's
    documentation, "Control Group v2" and "Memory Resource Controller").
    """
    left = []
    for line in _lines(own):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, names = Path(root), ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = Path(root, "memory")
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = top / path.lstrip("/")
        # In a container, this may be a path on the host, while the root belongs to the container.
        for each in (group, *group.parents):
            left += _left(each, *names)
            if each == top:
                break
    return max(min(left), 0) if left else None


def _left(group: Path, limit: str, used: str, cache: str) -> list[int]:
    """Return what is left of one control group's limit; an empty list without a limit."""
    highest, now = (" ".join(_lines(group / name)) for name in (limit, used))
    if not (highest.isdigit() and now.isdigit()):
        return []
    rows = dict(line.split() for line in _lines(group / "memory.stat"))
    return [int(highest) - int(now) + int(rows.get(cache, 0))]


def _lines(path: str | Path) -> list[str]:
    """Return the lines of a file of the kernel; none if it doesn't exist."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
