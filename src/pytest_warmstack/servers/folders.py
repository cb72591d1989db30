"""The folders of embedded servers: creates, locks, measures and removes them.

A server's folder is in `root`. If the files are elsewhere, it is a link to them, so that all
processes find the server under the same name.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from pytest_warmstack import originals
from pytest_warmstack.servers import places
from pytest_warmstack.servers.errors import RuntimeUnavailable, ServerFailed
from pytest_warmstack.servers.lifecycle import POLL_INTERVAL

REMOVE_TIMEOUT: Final = 10.0
"""Seconds that the removal of a folder may take while other processes change it."""


def root() -> Path:
    """Return the folder that contains this user's embedded servers; it may not exist."""
    return places.within(places.usual())


def existing() -> list[Path]:
    """Return the folders of this user's embedded servers."""
    try:
        return sorted(path for path in root().iterdir() if path.is_dir() or path.is_symlink())
    except FileNotFoundError:
        return []


def _make_root(root: Path) -> None:
    """Make the folder *root*; raise `RuntimeUnavailable` if another user controls it.

    Every user can write to its parent, and its name can be guessed.
    """
    # Other users may enter a folder in it by name, since root starts PostgreSQL as another user.
    root.mkdir(mode=0o711, exist_ok=True)
    found = root.lstat()
    if found.st_uid != os.getuid() or found.st_mode & 0o022 or not stat.S_ISDIR(found.st_mode):
        raise RuntimeUnavailable.unsafe_folder(
            folder=str(root),
            cause=f"it belongs to user {found.st_uid}, with mode {found.st_mode & 0o7777:o}",
        )


def _make(folder: Path, place: Callable[[], Path]) -> None:
    """Make *folder*; if *place* is elsewhere, make a folder there and a link to it."""
    if not os.path.lexists(folder):
        elsewhere = places.within(place())
        _make_root(folder.parent)
        if elsewhere == folder.parent:
            folder.mkdir(mode=0o711)
        else:
            # Make the link first: only one of several processes can, and all follow it.
            folder.symlink_to(elsewhere / folder.name)
    if folder.is_symlink():
        elsewhere = folder.readlink()
        _make_root(elsewhere.parent)
        elsewhere.mkdir(mode=0o711, exist_ok=True)


@contextmanager
def locked(
    folder: Path, title: str, seconds: float, place: Callable[[], Path] = places.usual
) -> Iterator[None]:
    """Hold the lock on *folder*, made in *place* if necessary; it ends with the process.

    Raises `ServerFailed` if another process holds it for longer than *seconds*.
    """
    deadline = originals.monotonic() + seconds
    while True:
        with suppress(FileExistsError, FileNotFoundError):
            _make(folder, place)
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            # Another process has just removed it.
            if originals.monotonic() > deadline:
                raise
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The last holder may have removed the folder, and another process made a new one.
            if os.path.samestat(os.fstat(handle), folder.stat()):
                break
        except FileNotFoundError:
            pass
        except BlockingIOError:
            if originals.monotonic() > deadline:
                os.close(handle)
                raise ServerFailed.locked(title=title, seconds=seconds, place=str(folder)) from None
            originals.sleep(POLL_INTERVAL)
        os.close(handle)
    try:
        yield
    finally:
        os.close(handle)


def remove(folder: Path) -> None:
    """Remove *folder* with its files, even while a server's children remove files too.

    Remove the root with its last folder. Raises OSError after `REMOVE_TIMEOUT` seconds.
    """
    deadline = originals.monotonic() + REMOVE_TIMEOUT
    home = folder.resolve()
    while home.exists():
        try:
            empty(home)
            # Remove it before the folder that it leads to: a kill then leaves an empty folder.
            if folder.is_symlink():
                folder.unlink()
            home.rmdir()
        except OSError as error:
            passing = error.errno in {errno.ENOENT, errno.ENOTEMPTY}
            if not passing or originals.monotonic() > deadline:
                raise
    for parent in {home.parent, folder.parent}:
        with suppress(OSError):  # It contains other servers.
            parent.rmdir()


def empty(folder: Path) -> None:
    """Remove everything that is in *folder*."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def disk_usage(folder: Path) -> int:
    """Return the bytes of the files in *folder*; the server may remove some meanwhile."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                # st_blocks counts 512 bytes, whatever the file system's block size (stat(2)).
                total += Path(path, name).lstat().st_blocks * 512
    return total
