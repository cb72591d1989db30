"""How the entrypoint of an image is used, told from what the engine says of the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import pytest

from pytest_warmstack import redis
from pytest_warmstack.options import Settings
from pytest_warmstack.servers.docker.image import Image
from pytest_warmstack.servers.identity import Service
from pytest_warmstack.servers.model import Container

POSTGRES: Final = Container(
    environment={"POSTGRES_PASSWORD": "secret"},
    arguments=["-c", "fsync=off"],
    contract="",
    data="/var/lib/postgresql/data",
    data_variable="PGDATA",
    shm_size=1,
)
REDIS: Final = Container(
    environment={"REDIS_PASSWORD": "secret"},
    arguments=["--save", "", "--databases", "256"],
    contract="",
    data="/data",
    shm_size=1,
    takers=frozenset({"docker-entrypoint.sh", "redis-server"}),
    variable="REDIS_ARGS",
)
ARGUMENTS: Final = ["--save", "", "--databases", "256"]
WORDS: Final = "--save --databases 256"


@pytest.mark.parametrize(
    ("entrypoint", "own", "command"),
    [
        (["docker-entrypoint.sh"], ["postgres"], ["postgres", "-c", "fsync=off"]),
        (["docker-entrypoint.sh"], None, ["-c", "fsync=off"]),
        (["/opt/run"], ["postgres", "-D", "/x"], ["postgres", "-D", "/x", "-c", "fsync=off"]),
        (["/opt/run"], ["postgres", "-c", "a=1"], ["postgres", "-c", "a=1", "-c", "fsync=off"]),
        (None, ["/opt/run.sh"], ["/opt/run.sh", "-c", "fsync=off"]),
        (
            None,
            ["/bin/sh", "-c", "postgres -D /x"],
            ["/bin/sh", "-c", 'postgres -D /x "$@"', "/bin/sh", "-c", "fsync=off"],
        ),
    ],
)
def test_the_arguments_follow_the_images_own_command(
    entrypoint: list[str] | None, own: list[str] | None, command: list[str]
) -> None:
    """And the entrypoint stays what it is."""
    start = Image({"Entrypoint": entrypoint, "Cmd": own}).start(POSTGRES)

    assert (start.entrypoint, start.command) == (entrypoint, command)
    assert start.environment == {"POSTGRES_PASSWORD": "secret"}


def test_an_entrypoint_in_shell_form_gets_the_arguments() -> None:
    """Docker hands it none, and drops the command."""
    image = Image({"Entrypoint": ["/bin/sh", "-c", "redis-server"], "Cmd": ["--port", "1"]})

    start = image.start(REDIS)

    assert start.entrypoint == ["/bin/sh", "-c", 'redis-server "$@"', "/bin/sh"]
    assert start.command == ARGUMENTS


@pytest.mark.parametrize(
    ("config", "command", "variable"),
    [
        ({"Entrypoint": ["docker-entrypoint.sh"], "Cmd": ["redis-server"]}, ARGUMENTS, None),
        ({"Entrypoint": ["/usr/bin/redis-server", "/etc/redis.conf"]}, ARGUMENTS, None),
        # From redis-stack, and started around its script.
        ({"Cmd": ["redis-server", "/x.conf"], "Env": ["REDIS_ARGS="]}, ARGUMENTS, None),
        ({"Cmd": ["/entrypoint.sh"], "Env": ["REDIS_ARGS="]}, [], WORDS),
        ({"Cmd": ["/entrypoint.sh"], "Env": ["REDIS_ARGS=--x 1"]}, [], f"--x 1 {WORDS}"),
        ({"Entrypoint": ["/opt/start"]}, ARGUMENTS, WORDS),
    ],
)
def test_a_script_gets_a_variable_where_it_may_take_no_arguments(
    config: Mapping[str, Any], command: Sequence[str], variable: str | None
) -> None:
    """A server that were given both would refuse to start: no user may be there twice."""
    start = Image(config).start(REDIS)

    assert start.command == [*config.get("Cmd", []), *command]
    assert start.environment.get("REDIS_ARGS") == variable


@pytest.mark.parametrize(
    ("config", "folders"),
    [
        ({}, ["/var/lib/postgresql/data"]),
        ({"Env": ["PGDATA=/pgdata"]}, ["/pgdata"]),
        ({"Volumes": {"/var/lib/postgresql": {}}}, ["/var/lib/postgresql"]),
        ({"Volumes": {"/docker-entrypoint-initdb.d": {}, "/bitnami": {}}}, ["/bitnami"]),
        ({"Volumes": {"/docker-entrypoint-initdb.d": {}}}, ["/var/lib/postgresql/data"]),
    ],
)
def test_what_lies_in_memory(config: Mapping[str, Any], folders: list[str]) -> None:
    """The places of data, but not of a project's own scripts: a tmpfs would hide them."""
    assert Image(config).start(POSTGRES).tmpfs == dict.fromkeys(folders, "mode=1777")


@pytest.mark.parametrize(
    ("user", "place", "data"),
    [
        ("", "/var/lib/postgresql/data", None),
        ("root", "/var/lib/postgresql/data", None),
        ("0:0", "/var/lib/postgresql/data", None),
        ("postgres", "/var/lib/postgresql/data", "/var/lib/postgresql/data/data"),
        ("999:999", "/var/lib/postgresql/data", "/var/lib/postgresql/data/data"),
        ("postgres", "/var/lib/postgresql/18/docker", None),
    ],
)
def test_a_user_other_than_root_has_a_folder_in_the_tmpfs(
    user: str, place: str, data: str | None
) -> None:
    """The tmpfs itself is root's, and PostgreSQL wants its folder to be its own."""
    volume = "/var/lib/postgresql" if "18" in place else place
    image = Image({"User": user, "Env": [f"PGDATA={place}"], "Volumes": {volume: {}}})

    assert image.start(POSTGRES).environment.get("PGDATA") == data


def test_a_secret_of_the_image_does_not_stand_against_ours() -> None:
    """The official script refuses a password that is also given as a file."""
    image = Image({"Env": ["POSTGRES_PASSWORD_FILE=/run/secrets/password", "TZ=UTC"]})

    assert image.start(POSTGRES).environment == {
        "POSTGRES_PASSWORD_FILE": "",
        "POSTGRES_PASSWORD": "secret",
    }


@pytest.mark.parametrize(
    ("config", "service"),
    [
        ({"ExposedPorts": {"5432/tcp": {}}}, Service.POSTGRES),
        ({"ExposedPorts": {"6379/tcp": {}, "8001/tcp": {}}}, Service.REDIS),
        ({"Env": ["PATH=/bin", "PG_MAJOR=16"]}, Service.POSTGRES),
        ({"Env": ["VALKEY_VERSION=8.1.1"]}, Service.REDIS),
        ({"ExposedPorts": {"5432/tcp": {}, "6379/tcp": {}}}, None),
        ({"ExposedPorts": {"80/tcp": {}}, "Env": None, "Cmd": None, "Volumes": None}, None),
        ({}, None),
    ],
)
def test_an_image_tells_which_service_it_has(
    config: Mapping[str, Any], service: Service | None
) -> None:
    """By the ports and the variables that it declares; nothing is said of one that has both."""
    assert Image(config).service() is service


def test_the_password_of_redis_is_in_no_argument() -> None:
    """Everybody on the machine can read the arguments of a process."""
    plan = redis.spec(Settings()).container("hunter2", "0123456789abcdef")

    assert "hunter2" not in " ".join(plan.arguments)
    assert plan.environment == {"REDIS_PASSWORD": "hunter2"}
