"""How the user's settings and variables change the PostgreSQL server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.options import Settings
from pytest_warmstack.postgres import server
from pytest_warmstack.servers.identity import changes
from pytest_warmstack.servers.model import ServerSpec

RUNTIMES = ("docker", "embedded")


@pytest.fixture(scope="module")
def background() -> Iterator[BackgroundLoop]:
    """A background loop for the descriptions; nothing here connects."""
    background = BackgroundLoop()
    yield background
    background.close()


def described(background: BackgroundLoop, *args: str, env: tuple[str, ...] = ()) -> ServerSpec[Any]:
    """Return the description of a server with the user's *args* and *env*."""
    return server.spec(Settings(postgres_args=args, postgres_env=env), background)


def options(spec: ServerSpec[Any]) -> list[str]:
    """Return the options of the server in a container, as NAME=VALUE."""
    arguments = spec.container("secret", "0123456789abcdef").arguments
    assert set(arguments[::2]) == {"-c"}
    reached, options = list(arguments[1:4:2]), list(arguments[5::2])
    assert reached == ["listen_addresses=*", "port=5432"]
    return options


def test_the_users_value_overrides_the_default(background: BackgroundLoop) -> None:
    """Each name is given once; new names are added."""
    defaults = options(described(background))

    both = options(described(background, "max_connections=500", "work_mem=8MB"))

    assert "max_connections=300" in defaults
    assert set(both) - set(defaults) == {"max_connections=500", "work_mem=8MB"}
    assert set(defaults) - set(both) == {"max_connections=300"}
    names = [option.partition("=")[0] for option in both]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_settings_and_variables_are_part_of_the_fingerprint(
    background: BackgroundLoop, runtime: str
) -> None:
    """Each value counts."""
    specs = [
        described(background),
        described(background, "work_mem=8MB"),
        described(background, "work_mem=9MB"),
        described(background, env=("TZ=UTC",)),
        described(background, env=("TZ=GMT",)),
        described(background, env=("TZ=UTC", "A=")),
    ]

    assert len({spec.fingerprint(runtime) for spec in specs}) == len(specs)
    assert described(background).config(runtime).keys() == {
        "format",
        {"docker": "image", "embedded": "version"}[runtime],
        *server.OPTIONS,
    }


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_configuration_hides_the_values_of_variables(
    background: BackgroundLoop, runtime: str
) -> None:
    """It is a label of the container, which all users of the engine can read."""
    spec = described(background, env=("TOKEN=hunter2", "POSTGRES_INITDB_ARGS=--data-checksums"))

    text = json.dumps(spec.config(runtime))

    assert "env.TOKEN" in text
    assert "hunter2" not in text
    assert "data-checksums" not in text
    assert "hunter2" not in repr(spec)


def test_a_difference_hides_the_values_of_variables(background: BackgroundLoop) -> None:
    """It shows the values of settings only."""
    old = described(background, "work_mem=8MB", env=("A=hunter2", "B=hunter2", "C=1"))
    new = described(background, "work_mem=9MB", env=("A=swordfish", "C=1", "D=swordfish"))

    assert changes(old.config("docker"), new.config("docker")) == [
        "env.A: changed",
        "env.B: unset",
        "env.D: set",
        "work_mem: 8MB -> 9MB",
    ]


def test_a_container_has_the_variables_of_user_and_plugin(background: BackgroundLoop) -> None:
    """The user's arguments of initdb come last."""
    plain = described(background).container("secret", "0123456789abcdef").environment
    spec = described(background, env=("TZ=UTC", "POSTGRES_INITDB_ARGS=--locale-provider=icu"))

    environment = spec.container("secret", "0123456789abcdef").environment

    defaults = "--no-sync --set scram_iterations=1"
    assert plain["POSTGRES_INITDB_ARGS"] == defaults
    assert environment == {
        **plain,
        "TZ": "UTC",
        "POSTGRES_INITDB_ARGS": f"{defaults} --locale-provider=icu",
    }
