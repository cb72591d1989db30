"""What an image tells the engine of itself, and how its own entrypoint starts a server. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final

from pytest_warmstack.servers.identity import Service
from pytest_warmstack.servers.model import Container

_MARKS: Final[Mapping[Service, frozenset[str]]] = {
    Service.POSTGRES: frozenset({"5432/tcp", "PG_MAJOR", "PG_VERSION", "PGDATA"}),
    Service.REDIS: frozenset({"6379/tcp", "REDIS_VERSION", "VALKEY_VERSION", "REDIS_ARGS"}),
}
"""The ports and variables that images of a service declare."""

_SCRIPTS: Final = "/docker-entrypoint"
"""What the folders with a project's own scripts begin with: some images declare them as volumes."""

_ROOT: Final = frozenset({"", "0", "root"})


@dataclass(frozen=True, kw_only=True)
class Start:
    """How a container is created: *tmpfs* has the options of each folder that lies in memory."""

    entrypoint: Sequence[str] | None
    command: Sequence[str]
    environment: Mapping[str, str] = field(repr=False)
    tmpfs: Mapping[str, str]


class Image:
    """An image, by the part `Config` of what the engine's inspection returns."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._entrypoint: list[str] = config.get("Entrypoint") or []
        self._command: list[str] = config.get("Cmd") or []
        self._volumes: list[str] = [*(config.get("Volumes") or [])]
        self._ports: set[str] = {*(config.get("ExposedPorts") or [])}
        self._user: str = (config.get("User") or "").partition(":")[0]
        self._variables = dict(
            entry.partition("=")[::2] for entry in config.get("Env") or [] if "=" in entry
        )

    def service(self) -> Service | None:
        """Return the service whose server the image has, when it declares that of one only."""
        declared = self._ports | self._variables.keys()
        found = [service for service, marks in _MARKS.items() if declared & marks]
        return found[0] if len(found) == 1 else None

    def start(self, plan: Container) -> Start:
        """Return how the image's own entrypoint starts the server of *plan*.

        The arguments follow the image's own command. A script that takes no arguments may take
        them as a variable: as the only way if the image declares the variable, as a second way if
        what the script takes is unknown.
        """
        files = [f"{name}_FILE" for name in plan.environment]
        # The image's own secrets: scripts refuse a variable and a file for the same.
        environment = {name: "" for name in files if name in self._variables}
        environment |= plan.environment
        entrypoint, command = self._entrypoint, self._command
        words = " ".join((*entrypoint, *command)).split()
        is_known = any(PurePosixPath(each).name in plan.takers for each in words)
        arguments: Sequence[str] = plan.arguments
        if plan.variable and not is_known:
            own = self._variables.get(plan.variable)
            environment[plan.variable] = " ".join(filter(None, (own, *plan.arguments)))
            if own is not None:
                arguments = ()
        if entrypoint and _is_shell(entrypoint):
            # Docker drops the command then.
            entrypoint, command = _opened(entrypoint), []
        elif _is_shell(command):
            command = _opened(command)
        tmpfs = self._in_memory(plan)
        data = self._variables.get(plan.data_variable, plan.data)
        if plan.data_variable and data in tmpfs and self._user not in _ROOT:
            # The folder of a tmpfs is root's. Who is not root may make one of their own in it.
            environment[plan.data_variable] = f"{data}/data"
        return Start(
            entrypoint=entrypoint or None,
            command=[*command, *arguments],
            environment=environment,
            tmpfs=tmpfs,
        )

    def _in_memory(self, plan: Container) -> dict[str, str]:
        """Return the options of a tmpfs for each folder with data.

        Those are the volumes that the image declares: then the data lies in memory wherever this
        image puts it, and no anonymous volume is made. All users of the container may write there,
        since the image may start the server as any.
        """
        volumes = [each for each in self._volumes if not each.startswith(_SCRIPTS)]
        data = volumes or [self._variables.get(plan.data_variable, plan.data)]
        return dict.fromkeys(data, "mode=1777")


def _is_shell(words: Sequence[str]) -> bool:
    """Tell whether *words* are a shell's command line, as Docker's shell form makes them."""
    return len(words) == 3 and words[0].endswith("sh") and words[1] == "-c"


def _opened(words: Sequence[str]) -> list[str]:
    """Return a shell's command line that passes on the arguments after it.

    >>> _opened(["/bin/sh", "-c", "redis-server /etc/redis.conf"])
    ['/bin/sh', '-c', 'redis-server /etc/redis.conf "$@"', '/bin/sh']
    """
    shell, option, line = words
    return [shell, option, f'{line} "$@"', shell]
