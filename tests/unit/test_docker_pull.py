"""How far a pull has come: lines of a Docker engine, and what is said of them."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_warmstack import redis
from pytest_warmstack.options import Settings
from pytest_warmstack.servers.docker.errors import DockerUnavailable
from pytest_warmstack.servers.docker.image import Pull


def line(layer: str, status: str, here: int = 0, size: int = 0) -> dict[str, Any]:
    """Return a line of the engine's; *here* and *size* are in megabytes."""
    detail = {"current": here * 10**6, "total": size * 10**6} if size else {}
    return {"id": layer, "status": status, "progressDetail": detail}


def last(*lines: dict[str, Any]) -> str | None:
    """Return what is said at the last of *lines*."""
    pull = Pull("redis:7", 0.0)
    return [pull.note(each) for each in lines][-1]


def test_layers_are_added_up() -> None:
    """What is here of each, and how large those are whose size is known."""
    assert (
        last(
            line("a", "Pulling fs layer"),
            line("b", "Pulling fs layer"),
            line("c", "Waiting"),
            line("a", "Downloading", 3, 10),
            line("b", "Downloading", 1, 30),
            line("b", "Downloading", 2, 30),
        )
        == "pulling redis:7: 5.0 of 40.0 MB, 0 of 3 layers"
    )


@pytest.mark.parametrize("status", ["Download complete", "Extracting", "Pull complete"])
def test_a_layer_that_was_fetched_counts_as_a_whole(status: str) -> None:
    """Its last piece is not always told; what is extracted of it is another number."""
    done = 1 if status == "Pull complete" else 0

    said = last(line("a", "Downloading", 3, 10), line("a", status, 1, 20))

    assert said == f"pulling redis:7: 10.0 of 10.0 MB, {done} of 1 layers"


@pytest.mark.parametrize(
    "other",
    [
        {"status": "Pulling from library/redis", "id": "7"},
        {"status": "Digest: sha256:0123"},
        {"status": "Already exists", "id": "d"},
        {"status": "Retrying in 5 seconds", "id": "a"},
        {},
    ],
)
def test_lines_of_another_kind_change_nothing(other: dict[str, Any]) -> None:
    """The name, the digest, layers that were there before, another attempt."""
    assert (
        last(line("a", "Downloading", 3, 10), other)
        == "pulling redis:7: 3.0 of 10.0 MB, 0 of 1 layers"
    )


def test_a_layer_that_is_resumed_goes_on_where_it_was() -> None:
    """After a connection was cut, the engine counts from there; we count from the beginning."""
    # As the engine closes its own bar, it says that all is here.
    lines = [line("a", "Downloading", 5, 10), line("a", "Downloading", 10, 10)]

    assert (
        last(*lines, line("a", "Retrying in 1 second"), line("a", "Downloading", 2, 5))
        == "pulling redis:7: 7.0 of 10.0 MB, 0 of 1 layers"
    )


def test_nothing_is_said_before_there_is_a_layer() -> None:
    """However long the registry takes for its first answer."""
    assert last({"status": "Pulling from library/redis", "id": "7"}) is None


def test_the_end_tells_the_size_and_the_time() -> None:
    """Whatever was said before."""
    pull = Pull("redis:7", 100.0)
    pull.note(line("a", "Downloading", 100, 100))

    assert pull.end(110.04) == "pulled redis:7: 100.0 MB in 10.0 s"


@pytest.mark.parametrize(
    ("image", "cause", "hint"),
    [
        ("redis:7", "toomanyrequests: You have reached your pull rate limit.", "docker login"),
        ("ghcr.io/a/b:1", "unauthorized: authentication required", "docker login ghcr.io"),
        ("localhost:5000/b", "no basic auth credentials", "docker login localhost:5000"),
        ("shop/redis:7", "pull access denied for shop/redis", "docker login"),
        ("redis:7", "write /var/lib/docker/x: no space left on device", "docker system prune"),
        ("redis:99", "manifest for redis:99 not found: manifest unknown", "the name and the tag"),
    ],
)
def test_an_answer_of_the_registry_comes_with_what_helps_first(
    image: str, cause: str, hint: str
) -> None:
    """Its words decide; the other ways out follow."""
    error = DockerUnavailable.no_image(redis.spec(Settings()), image=image, cause=cause)

    assert hint in error.todo[0]
    assert len(error.todo) == 4


def test_another_answer_has_the_general_ways_out_only() -> None:
    """Nobody is told to log in where that is not what is wrong."""
    error = DockerUnavailable.no_image(redis.spec(Settings()), image="redis:7", cause="EOF")

    assert len(error.todo) == 3
