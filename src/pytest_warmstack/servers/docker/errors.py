"""Errors about the Docker engine, images, and servers in containers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final, NamedTuple, Self

from pytest_warmstack.servers.errors import (
    EMBEDDED_INSTEAD,
    RuntimeUnavailable,
    ServerFailed,
    last_lines,
    set_by,
)
from pytest_warmstack.servers.model import ServerSpec


class EngineFault(NamedTuple):
    """A way in which the engine can fail, and the likeliest cure."""

    what: str
    todo: str


NOT_RUNNING: Final = EngineFault(
    "Docker is not running. Please start Docker first.",
    "start Docker, or point DOCKER_HOST or a Docker context at a running engine",
)
LOST: Final = EngineFault(
    "The Docker engine stopped answering.", "check that the engine is running, then run again"
)
REFUSED: Final = EngineFault(
    "The Docker engine refused a request of pytest-warmstack.",
    "read the engine's answer above, then run again",
)
NO_PERMISSION: Final = EngineFault(
    "Permission denied on the socket of the Docker engine.",
    "add this user to the socket's group (sudo usermod -aG docker $USER), then log in again",
)
NO_TLS: Final = EngineFault(
    "The TLS connection to the Docker engine failed.",
    "check the certificates of the Docker context, or those in DOCKER_CERT_PATH",
)
NO_SSH: Final = EngineFault(
    "The SSH connection to the Docker engine failed.",
    "connect by hand, with the user and host of that address: ssh USER@HOST docker version",
)

_DISK_HINT: Final = (
    "no space left on device",
    "free disk space on the engine's machine: docker system prune",
)
_REGISTRY_HINTS: Final = (
    _DISK_HINT,
    (
        "toomanyrequests|too many requests",
        "{login}: registries allow more pulls after a login",
    ),
    (
        "unauthorized|denied|authentication|no basic auth",
        "check the name of the image; if it is private, log in: {login}",
    ),
    (
        "manifest unknown|not found",
        "check the name and the tag: the registry has no such image",
    ),
)
"""Patterns of a registry's answer, and the cure for each; the first match counts.

The codes come from the OCI distribution specification, "Error Codes", and of Docker Hub.
"""


class DockerUnavailable(RuntimeUnavailable):
    """The Docker engine can't be used, or lacks an image."""

    @classmethod
    def by_engine(cls, *, fault: EngineFault, cause: str, address: str, source: str) -> Self:
        """The engine at *address* failed; *source* is the setting that names it."""
        return cls(
            fault.what,
            why=cause,
            looked_at=[f"{address} ({source})"],
            todo=[
                fault.todo,
                f"see the engine's own answer: docker --host {address} version",
                EMBEDDED_INSTEAD,
            ],
            place=address,
        )

    @classmethod
    def no_context(cls, *, name: str, cause: str) -> Self:
        """The current Docker context does not exist, or can't be read."""
        return cls(
            f"The Docker context {name!r} can't be used.",
            why=cause,
            todo=[
                "choose another context (docker context ls, then docker context use NAME), or "
                "correct DOCKER_CONTEXT",
                EMBEDDED_INSTEAD,
            ],
        )

    @classmethod
    def no_image(cls, spec: ServerSpec[Any], *, image: str, cause: str) -> Self:
        """The engine does not have *image*, the image of *spec*, and can't pull it."""
        return cls(
            f"Could not pull the Docker image {image}{set_by(spec.image_source)}.",
            why=cause,
            todo=[
                *_hint(cause, _REGISTRY_HINTS, login=_login(image)),
                f"see the registry's own answer: docker pull {image}",
                f"set {spec.image_variable} to an image that the engine has, or to a mirror",
                EMBEDDED_INSTEAD,
            ],
            image=image,
        )


class ContainerFailed(ServerFailed):
    """A server in a container did not become ready."""

    @classmethod
    def refused(cls, *, title: str, cause: str) -> Self:
        """The engine did not create or start the container."""
        return cls(
            f"{title} could not be started in Docker.",
            why=cause,
            todo=[
                *_hint(cause, [_DISK_HINT]),
                "read the engine's answer above, or remove the old servers: warmstack clean",
            ],
        )

    @classmethod
    def no_memory(cls, *, title: str, place: str, cause: str, log: str) -> Self:
        """The server ran out of memory, which also holds its data."""
        return cls(
            f"{title} ran out of memory for its data while it was starting in Docker.",
            why=cause,
            looked_at=[place, last_lines(log)],
            todo=[
                "give the Docker engine more memory (Docker Desktop: Settings, Resources)",
                "or stop what uses it: docker stats shows that, and warmstack clean --all-projects "
                "removes the kept servers of all your projects",
                EMBEDDED_INSTEAD,
            ],
        )

    @classmethod
    def by_contract(cls, spec: ServerSpec[Any], *, image: str, cause: str) -> Self:
        """The server of *image* answers, but ignored its password or its settings."""
        return cls(
            f"{spec.title} from the Docker image {image}{set_by(spec.image_source)} ignored its "
            "password or its settings.",
            why=f"it answers, but {cause}",
            todo=[
                f"make the image's entrypoint accept {spec.container('', '').contract}",
                f"or set {spec.image_variable} to another image",
                f"or run the image yourself and use its server: {spec.url_variable}=URL",
            ],
        )


def _hint(cause: str, hints: Iterable[tuple[str, str]], **names: str) -> list[str]:
    """Return the first of *hints* whose pattern matches *cause*, if one does."""
    return [hint.format(**names) for words, hint in hints if re.search(words, cause.lower())][:1]


def _login(image: str) -> str:
    """Return the command that logs in to the registry of *image*."""
    first, slash, _ = image.partition("/")
    return f"docker login {first}" if slash and {*".:"} & {*first} else "docker login"
