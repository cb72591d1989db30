"""What a PostgreSQL of ours looks like, in Docker and as a native process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.postgres.admin import Admin, initdb_arguments
from pytest_warmstack.postgres.connections import TITLE
from pytest_warmstack.servers.identity import Service
from pytest_warmstack.servers.model import USER, Container, Native, ServerSpec, major_of
from pytest_warmstack.settings import INITDB_ARGS, Settings, pairs

OPTIONS: Final[Mapping[str, str]] = {
    # Nothing has to survive a crash (PostgreSQL documentation, "Non-Durable Settings").
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    # asyncpg asks for types on every new engine, with queries that are not worth compiling.
    "jit": "off",
    # Each test has an engine with a pool of its own, and each worker two connections of ours.
    "max_connections": "300",
    # An application may commit in two phases; what a test left prepared is rolled back.
    "max_prepared_transactions": "64",
    # A clone does not live for long enough, and a worker in it would hold its drop up.
    "autovacuum": "off",
    # A clone per test means many databases, and migrations touch many tables in a transaction.
    "max_locks_per_transaction": "256",
    "timezone": "UTC",
}
"""Settings of the server, the same for every runtime, unless the user gives it others."""

_REACHED: Final = ("-c", "listen_addresses=*", "-c", "port=5432")
"""How a server in a container is reached, whatever the image's own configuration says."""

_SHM_SIZE: Final = 256 * 1024 * 1024
"""Bytes of /dev/shm in a container: with Docker's 64 MiB a parallel query can fail."""


def spec(settings: Settings, background: BackgroundLoop) -> ServerSpec[Admin]:
    """Return the description of the PostgreSQL that *settings* ask for."""
    tagged = major_of(settings.postgres_image)
    # Whoever names programs has named the version with them; the image is for Docker.
    major = None if settings.postgres_bin else tagged
    # The user's own settings win.
    options = {**OPTIONS, **pairs(settings.postgres_args)}
    environment = pairs(settings.postgres_env)
    return ServerSpec(
        service=Service.POSTGRES,
        title=TITLE,
        image=settings.postgres_image,
        image_variable=settings.place("postgres_image"),
        image_source=settings.sources.get("postgres_image", ""),
        url=settings.postgres_url,
        url_variable=settings.place("postgres_url"),
        major=major,
        native_major=settings.postgres_version,
        programs=settings.postgres_bin,
        folder=settings.embedded_folder,
        options=options,
        environment=environment,
        port=5432,
        container=lambda password, fingerprint: _container(
            password, tagged, environment, _arguments(options, fingerprint)
        ),
        native=lambda fingerprint: _native(
            settings,
            settings.postgres_version or major,
            environment,
            _arguments(options, fingerprint),
        ),
        connect=lambda endpoint, fingerprint, seconds: Admin.connect(
            endpoint, fingerprint, background=background, timeout=seconds
        ),
    )


def _arguments(options: Mapping[str, str], fingerprint: str) -> list[str]:
    """Return *options* as arguments; the server tells its fingerprint as its cluster_name."""
    named = {**options, "cluster_name": f"warmstack-{fingerprint}"}
    return [part for name, value in named.items() for part in ("-c", f"{name}={value}")]


def _native(
    settings: Settings, major: int | None, environment: Mapping[str, str], arguments: list[str]
) -> Native:
    """Return how to run PostgreSQL's own programs; only now their room is imported."""
    from pytest_warmstack.postgres.native import NativePostgres

    return NativePostgres(
        major=major,
        named=settings.postgres_bin,
        setting=settings.place("postgres_bin"),
        version_setting=settings.place("postgres_version"),
        why="" if settings.postgres_version else " (as the image's tag says)",
        environment=environment,
        arguments=arguments,
    )


def _container(
    password: str, major: int | None, environment: Mapping[str, str], arguments: list[str]
) -> Container:
    """Return what the official image takes, and all that are made from it or like it."""
    initdb = [*initdb_arguments(major), environment.get(INITDB_ARGS, "")]
    return Container(
        environment={
            **environment,
            "POSTGRES_USER": USER,
            "POSTGRES_PASSWORD": password,
            "POSTGRES_DB": "postgres",
            INITDB_ARGS: " ".join(filter(None, initdb)),
        },
        arguments=[*_REACHED, *arguments],
        contract="the password as POSTGRES_PASSWORD, and settings as arguments (-c NAME=VALUE)",
        data="/var/lib/postgresql/data",
        data_variable="PGDATA",
        shm_size=_SHM_SIZE,
    )
