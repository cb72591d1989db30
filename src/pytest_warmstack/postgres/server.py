"""The PostgreSQL server that this package runs, in Docker or as a native process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.options import INITDB_ARGS, Settings, pairs
from pytest_warmstack.postgres.connections import TITLE
from pytest_warmstack.postgres.databases import Databases
from pytest_warmstack.servers.identity import Service
from pytest_warmstack.servers.model import USER, Container, Native, ServerSpec, major_of

OPTIONS: Final[Mapping[str, str]] = {
    # No data has to survive a crash (PostgreSQL documentation, "Non-Durable Settings").
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    # asyncpg queries types for every new engine; compiling these queries takes too long.
    "jit": "off",
    # Each test has an engine with a pool, and each worker a few connections of this package.
    "max_connections": "300",
    # For two-phase commits; what a test leaves prepared is rolled back.
    "max_prepared_transactions": "64",
    # Clones don't live long enough for autovacuum, and its worker would delay the drop.
    "autovacuum": "off",
    # There are many databases, and migrations change many tables in one transaction.
    "max_locks_per_transaction": "256",
    # DROP DATABASE waits for each client that logs in, and one whose event loop was closed never
    # answers. PostgreSQL's default is a minute.
    "authentication_timeout": "3s",
    "timezone": "UTC",
    # The report of a failed test shows the lines of its database.
    "log_line_prefix": "%m [%p] %q%d ",
    "log_timezone": "UTC",
}
"""Settings of the server in every runtime; the user's settings override them."""

_SHM_SIZE: Final = 256 * 1024 * 1024
"""Bytes of /dev/shm in a container: with Docker's 64 MiB a parallel query can fail."""


def spec(settings: Settings, background: BackgroundLoop) -> ServerSpec[Databases]:
    """Return the spec of the PostgreSQL server that *settings* ask for."""
    tagged = major_of(settings.postgres_image)
    # The folder of programs decides the version; the image is for Docker only.
    major = None if settings.postgres_bin else tagged
    options = {**OPTIONS, **pairs(settings.postgres_args)}
    environment = pairs(settings.postgres_env)

    def arguments(fingerprint: str) -> list[str]:
        # The server reports its fingerprint as its cluster_name.
        named = {**options, "cluster_name": f"warmstack-{fingerprint}"}
        return [part for name, value in named.items() for part in ("-c", f"{name}={value}")]

    def container(password: str, fingerprint: str) -> Container:
        # The official image, and images with its entrypoint, understand this.
        initdb = [*initdb_arguments(tagged), environment.get(INITDB_ARGS, "")]
        return Container(
            environment={
                **environment,
                "POSTGRES_USER": USER,
                "POSTGRES_PASSWORD": password,
                "POSTGRES_DB": "postgres",
                INITDB_ARGS: " ".join(filter(None, initdb)),
            },
            # The address comes first: the image's own configuration must not change it.
            arguments=["-c", "listen_addresses=*", "-c", "port=5432", *arguments(fingerprint)],
            contract="the password as POSTGRES_PASSWORD, and settings as arguments (-c NAME=VALUE)",
            data="/var/lib/postgresql/data",
            data_variable="PGDATA",
            shm_size=_SHM_SIZE,
        )

    def native(fingerprint: str) -> Native:
        from pytest_warmstack.postgres.native import NativePostgres

        return NativePostgres(
            major=settings.postgres_version or major,
            named=settings.postgres_bin,
            setting=settings.place("postgres_bin"),
            version_setting=settings.place("postgres_version"),
            why="" if settings.postgres_version else " (as the image's tag says)",
            environment=environment,
            arguments=arguments(fingerprint),
        )

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
        container=container,
        native=native,
        connect=lambda endpoint, fingerprint, seconds: Databases.connect(
            endpoint, fingerprint, background=background, timeout=seconds
        ),
    )


def initdb_arguments(major: int | None) -> list[str]:
    """Return arguments for initdb in every runtime.

    They choose one round of hashing for the password if the server has that setting: the password
    is random and long, and every connection of every test would pay for the usual 4,096 rounds.
    """
    return ["--no-sync", *(["--set", "scram_iterations=1"] if (major or 0) >= 16 else [])]
