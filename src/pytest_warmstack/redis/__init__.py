"""A Redis server: how to run it in Docker or as a native process, and everything inside it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final

from pytest_warmstack.options import Settings
from pytest_warmstack.redis.connections import TITLE, USER, Admin
from pytest_warmstack.servers.identity import Service
from pytest_warmstack.servers.model import (
    REDIS_DATABASES,
    Container,
    Native,
    ServerSpec,
    major_of,
)

OPTIONS: Final[Mapping[str, str]] = {
    # Processes share one server, and each needs its own databases; 16 are not enough.
    "databases": str(REDIS_DATABASES),
    # No data has to survive.
    "save": '""',
    "appendonly": "no",
}
"""Settings of the server in every runtime."""

PROGRAMS: Final = ("redis-server", "valkey-server")

_NETWORK: Final = ("--port", "6379", "--bind", "0.0.0.0", "--daemonize", "no")  # noqa: S104
"""Settings in a container, which override those of the image's own configuration file."""


def spec(settings: Settings, number: int = 0) -> ServerSpec[Admin]:
    """Return the spec of the server that *settings* ask for; *number* 0 is the shared server."""
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
        native=lambda fingerprint: _native(settings, fingerprint),
        connect=Admin.connect,
        number=number,
    )


def server_settings(fingerprint: str, password: str) -> list[Sequence[str]]:
    """Return the name and the values of each setting.

    The server reports its fingerprint as its syslog-ident, which it only uses if it logs to syslog.
    Every user of the machine can read arguments, so they contain a digest of the password (Redis
    documentation, ACL SETUSER). The plugin has its own user: a test may change `default`.
    """
    rules = ("on", "~*", "&*", "+@all", f"#{hashlib.sha256(password.encode()).hexdigest()}")
    return [
        *OPTIONS.items(),
        ("syslog-ident", f"warmstack-{fingerprint}"),
        *(("user", user, *rules) for user in ("default", USER)),
    ]


def _container(password: str, fingerprint: str) -> Container:
    """Return settings for the official image, and those of Valkey, redis-stack and bitnami.

    redis-stack's scripts read arguments from REDIS_ARGS; bitnami's require REDIS_PASSWORD.
    """
    settings = server_settings(fingerprint, password)
    words = [word for name, *values in settings for word in (f"--{name}", *values)]
    return Container(
        environment={"REDIS_PASSWORD": password},
        arguments=[*_NETWORK, *(word.strip('"') for word in words)],
        contract="settings as arguments (--NAME VALUE), or all of them as REDIS_ARGS",
        takers=frozenset({"docker-entrypoint.sh", *PROGRAMS}),
        variable="REDIS_ARGS",
        data="/data",
        shm_size=64 * 1024 * 1024,
    )


def _native(settings: Settings, fingerprint: str) -> Native:
    from pytest_warmstack.redis.native import NativeRedis

    return NativeRedis(settings.redis_bin, fingerprint, settings.place("redis_bin"))
