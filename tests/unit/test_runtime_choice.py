"""Which runtime `auto` chooses, and when it fails; no engine and no server is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pytest

from pytest_warmstack import redis
from pytest_warmstack import servers as runtimes
from pytest_warmstack.options import RuntimeName, Settings, environment, resolve
from pytest_warmstack.servers.docker.errors import NOT_RUNNING, DockerUnavailable
from pytest_warmstack.servers.errors import RuntimeUnavailable
from pytest_warmstack.servers.identity import Service
from pytest_warmstack.servers.model import ServerSpec

NO_ENGINE: Final = DockerUnavailable.by_engine(
    fault=NOT_RUNNING,
    cause="connection refused",
    address="unix:///nowhere.sock",
    source="DOCKER_HOST",
)
NO_IMAGE: Final = DockerUnavailable.no_image(
    redis.spec(Settings()), image="redis:7", cause="manifest unknown"
)


@dataclass
class Runtime:
    """A runtime that refuses, or does not."""

    name: str
    refusal: RuntimeUnavailable | None = None

    def check(self, specs: Sequence[ServerSpec[Any]], say: Callable[[str], None]) -> None:
        """Raise the refusal, if there is one."""
        if self.refusal is not None:
            raise self.refusal

    def close(self) -> None:
        """Close nothing."""


def chosen(
    monkeypatch: pytest.MonkeyPatch, refusal: RuntimeUnavailable, *images: str
) -> tuple[str, str]:
    """Return what `auto` chooses when Docker refuses, and why; an empty image is the default."""
    made: Mapping[str, Runtime] = {
        RuntimeName.DOCKER: Runtime("docker", refusal),
        RuntimeName.EMBEDDED: Runtime("embedded"),
    }
    monkeypatch.setattr(runtimes, "make", lambda name, run_context: made[name])
    specs = [
        redis.spec(resolve(environment({"WARMSTACK_REDIS_IMAGE": image}))).replace(
            service=Service.POSTGRES if "postg" in image or "pgvector" in image else Service.REDIS,
        )
        for image in images
    ]
    run_context: Any = None
    runtime, why = runtimes.choose(RuntimeName.AUTO, run_context, specs, pytest.fail)
    return runtime.name, why


def test_embedded_servers_replace_the_default_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever Docker lacks; the reason is reported."""
    assert chosen(monkeypatch, NO_IMAGE, "", "") == (
        "embedded",
        "Could not pull the Docker image redis:7",
    )
    assert chosen(monkeypatch, NO_ENGINE, "")[0] == "embedded"


@pytest.mark.parametrize("images", [("redis:7",), ("", "redis:7"), ("redis:7", "")])
def test_a_named_image_is_not_replaced_where_there_is_an_engine(
    monkeypatch: pytest.MonkeyPatch, images: Sequence[str]
) -> None:
    """Neither if it is missing itself, nor if another server's image is."""
    with pytest.raises(RuntimeUnavailable) as caught:
        chosen(monkeypatch, NO_IMAGE, *images)

    assert caught.value is NO_IMAGE


@pytest.mark.parametrize(
    "image",
    [
        *("redis", "redis:7", "redis:7-alpine", "postgres:17.2", "valkey/valkey:8"),
        *("library/redis:7", "docker.io/redis:7", "docker.io/library/postgres:16"),
        *("docker.io/valkey/valkey:8", "public.ecr.aws/docker/library/redis:7-alpine"),
        *("mirror.local:5000/library/postgres:16", "redis:7@sha256:0123"),
    ],
)
def test_an_official_image_is_replaced_where_there_is_no_engine(
    monkeypatch: pytest.MonkeyPatch, image: str
) -> None:
    """The embedded server has the version in its tag, and the same features."""
    assert chosen(monkeypatch, NO_ENGINE, image)[0] == "embedded"


@pytest.mark.parametrize(
    "image",
    [
        *("postgis/postgis:16-3.4", "redis/redis-stack:7.2", "pgvector/pgvector:pg16"),
        *("registry.local/postgres:16", "redis-stack:7", "docker.io/me/redis:7", "valkey:8"),
    ],
)
def test_another_image_needs_the_engine(monkeypatch: pytest.MonkeyPatch, image: str) -> None:
    """The error names the image, its setting, and what is known about the engine."""
    with pytest.raises(RuntimeUnavailable) as caught:
        chosen(monkeypatch, NO_ENGINE, "", image)

    error = caught.value
    assert (error.what, error.looked_at) == (NO_ENGINE.what, NO_ENGINE.looked_at)
    named = f"the image {image} (environment variable WARMSTACK_REDIS_IMAGE) needs Docker"
    assert error.why.startswith(f"connection refused; {named}")
    assert any("--warmstack-runtime=embedded" in each for each in error.todo)


@pytest.mark.parametrize("name", [RuntimeName.AUTO, RuntimeName.EMBEDDED, RuntimeName.DOCKER])
@pytest.mark.parametrize(
    "image",
    ["postgres:16", "postgres", "registry.local:5000/postgis:16", "bitnami/postgresql@sha256:0"],
)
def test_an_image_named_for_the_other_service_is_recognized(name: RuntimeName, image: str) -> None:
    """Before any engine is asked: its tag would count as the version of an embedded server."""
    spec = redis.spec(resolve(environment({"WARMSTACK_REDIS_IMAGE": image})))
    run_context: Any = None

    with pytest.raises(RuntimeUnavailable) as caught:
        runtimes.choose(name, run_context, [spec], pytest.fail)

    assert caught.value.image == image
    assert caught.value.what == (
        f"The Docker image {image} runs postgres, but is set as the image of Redis (environment "
        "variable WARMSTACK_REDIS_IMAGE)."
    )
