"""Images: how they are pulled, and started by their own entrypoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, Final, NamedTuple

from docker.errors import APIError, DockerException, ImageNotFound
from requests.exceptions import Timeout
from testcontainers.core.config import testcontainers_config
from urllib3.exceptions import HTTPError

from pytest_warmstack import originals
from pytest_warmstack.servers.docker.engine import explanation
from pytest_warmstack.servers.docker.errors import DockerUnavailable
from pytest_warmstack.servers.identity import Service
from pytest_warmstack.servers.model import Container, ServerSpec

PULL_TIMEOUT: Final = 60.0
"""Seconds that the engine may be silent during a pull. It also reports its retries."""

_MARKS: Final[Mapping[Service, frozenset[str]]] = {
    Service.POSTGRES: frozenset({"5432/tcp", "PG_MAJOR", "PG_VERSION", "PGDATA"}),
    Service.REDIS: frozenset({"6379/tcp", "REDIS_VERSION", "VALKEY_VERSION", "REDIS_ARGS"}),
}
"""The ports and variables that images of a service declare."""

_SCRIPT_FOLDERS: Final = "/docker-entrypoint"
"""How folders for a project's own scripts begin; some images declare them as volumes."""

_TMPFS_OPTIONS: Final = "mode=1777"
"""Mount options: any user may write, because an image may start its server as any user."""

_DOWNLOADED: Final = frozenset({"Download complete", "Extracting", "Pull complete"})
_NEW_LAYER: Final = _DOWNLOADED | {
    *("Pulling fs layer", "Waiting", "Downloading", "Verifying Checksum")
}
"""The engine's states of a layer that it must download."""


def name_of(spec: ServerSpec[Any]) -> str:
    """Return the full name of an image, with the registry in testcontainers' settings."""
    return f"{testcontainers_config.hub_image_name_prefix}{spec.image}"


def check(client: Any, spec: ServerSpec[Any], say: Callable[[str], None]) -> None:
    """Pull the image of *spec* if necessary; raise `RuntimeUnavailable` if it can't be used."""
    name = name_of(spec)
    try:
        try:
            found = client.images.get(name)
        except ImageNotFound:
            _pull(client.api, name, say)
            found = client.images.get(name)
    except (APIError, _NotPulled) as error:
        raise DockerUnavailable.no_image(spec, image=name, cause=explanation(error)) from error
    service = Image(found.attrs["Config"]).service()
    if service not in {None, spec.service}:
        raise DockerUnavailable.another_service(
            image=name,
            found=str(service),
            cause=f"the image declares the port or the variables of {service}",
            title=spec.title,
            variable=spec.image_variable,
            source=spec.image_source,
        )


class _NotPulled(Exception):
    """An image could not be pulled; the text is the answer of its registry, or of the engine."""


def _pull(api: Any, image: str, say: Callable[[str], None]) -> None:
    """Pull *image* and report the progress; raise `_NotPulled` with the registry's answer."""
    say(f"pulling {image}")
    _limit_silence(api.get_adapter(api.base_url))
    # Without a tag, the engine would pull every tag that the registry has.
    tagged = image if ":" in image.rpartition("/")[2] or "@" in image else f"{image}:latest"
    pull = Pull(image, originals.monotonic())
    try:
        for line in api.pull(tagged, stream=True, decode=True):
            if "error" in line:
                raise _NotPulled(line["error"])
            if text := pull.note(line):
                say(text)
    except (Timeout, HTTPError) as error:
        raise _NotPulled(f"the engine was silent for {PULL_TIMEOUT:g} seconds") from error
    except (DockerException, OSError) as error:
        raise _NotPulled(explanation(error)) from error
    say(pull.end(originals.monotonic()))


def _limit_silence(adapter: Any) -> None:
    """Make *adapter* wait `PULL_TIMEOUT` for each part of an answer; docker-py waits forever."""
    send = adapter.send

    def send_with_timeout(*args: Any, timeout: Any = None, **options: Any) -> Any:
        return send(*args, timeout=timeout or PULL_TIMEOUT, **options)

    adapter.send = send_with_timeout


class Pull:
    """The layers of an image that is being pulled, and how many bytes of each have arrived.

    The engine reports the size of a layer only when it downloads it, and never for a small layer.
    """

    def __init__(self, image: str, now: float) -> None:
        self._image = image
        self._begin = now
        self._layers: dict[str, tuple[int, int]] = {}
        self._done: set[str] = set()

    def note(self, line: Mapping[str, Any]) -> str | None:
        """Process a *line* from the engine; return how far the pull is, once layers are known."""
        layer, status = str(line.get("id", "")), line.get("status", "")
        if status in _NEW_LAYER:
            here, size = self._layers.setdefault(layer, (0, 0))
            detail = line.get("progressDetail") or {}
            if status == "Downloading":
                rest = max(detail.get("total", 0), 0)
                size = max(size, rest)
                # After it loses its connection, the engine only counts what was still missing. At
                # that moment it reports the whole size, so this number can go down.
                here = size - rest + detail.get("current", 0)
            elif status in _DOWNLOADED:
                here = size
            self._layers[layer] = here, size
        if status == "Pull complete":
            self._done.add(layer)
        if not self._layers:
            return None
        here, size = (sum(each) for each in zip(*self._layers.values(), strict=True))
        layers = f"{len(self._done)} of {len(self._layers)} layers"
        return f"pulling {self._image}: {here / 1e6:.1f} of {size / 1e6:.1f} MB, {layers}"

    def end(self, now: float) -> str:
        """Return the line for the end of the pull."""
        size = sum(size for _, size in self._layers.values())
        return f"pulled {self._image}: {size / 1e6:.1f} MB in {now - self._begin:.1f} s"


class Start(NamedTuple):
    """How to create a container; *tmpfs* has the mount options of each folder in memory."""

    entrypoint: list[str] | None
    command: list[str]
    environment: dict[str, str]
    tmpfs: dict[str, str]


class Image:
    """An image, as described by `Config` in the engine's answer to an inspection."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._entrypoint: list[str] = config.get("Entrypoint") or []
        self._command: list[str] = config.get("Cmd") or []
        self._volumes: list[str] = [*(config.get("Volumes") or [])]
        self._ports: set[str] = {*(config.get("ExposedPorts") or [])}
        self._is_root = (config.get("User") or "").partition(":")[0] in {"", "0", "root"}
        self._variables = dict(
            entry.split("=", 1) for entry in config.get("Env") or [] if "=" in entry
        )

    def service(self) -> Service | None:
        """Return the service that the image runs, if it declares exactly one."""
        declared = self._ports | self._variables.keys()
        found = [service for service, marks in _MARKS.items() if declared & marks]
        return found[0] if len(found) == 1 else None

    def start(self, plan: Container) -> Start:
        """Return how the image's own entrypoint starts the server of *plan*.

        The arguments follow the image's own command. A script may read them from a variable
        instead; if the image declares that variable, they go only there. If it is not known what
        the script reads, they go to both places.
        """
        files = [f"{name}_FILE" for name in plan.environment]
        # Scripts refuse a password that is both a variable and a file.
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
        if _is_shell(entrypoint):
            # Docker ignores the command of such an image.
            entrypoint, command = _with_arguments(entrypoint), []
        elif _is_shell(command):
            command = _with_arguments(command)
        data = self._variables.get(plan.data_variable, plan.data)
        # Mount all declared volumes, so that the data is in memory wherever the image puts it, and
        # the engine makes no anonymous volume.
        volumes = [each for each in self._volumes if not each.startswith(_SCRIPT_FOLDERS)]
        folders = volumes or [data]
        if plan.data_variable and data in folders and not self._is_root:
            # A tmpfs belongs to root, and PostgreSQL must own its folder.
            environment[plan.data_variable] = f"{data}/data"
        return Start(
            entrypoint=entrypoint or None,
            command=[*command, *arguments],
            environment=environment,
            tmpfs=dict.fromkeys(folders, _TMPFS_OPTIONS),
        )


def _is_shell(words: Sequence[str]) -> bool:
    """Return whether *words* are a command in Docker's shell form."""
    return len(words) == 3 and words[0].endswith("sh") and words[1] == "-c"


def _with_arguments(words: Sequence[str]) -> list[str]:
    """Return a shell's command line that passes the following arguments on.

    >>> _with_arguments(["/bin/sh", "-c", "redis-server /etc/redis.conf"])
    ['/bin/sh', '-c', 'redis-server /etc/redis.conf "$@"', '/bin/sh']
    """
    shell, option, line = words
    return [shell, option, f'{line} "$@"', shell]
