"""Pulls from a registry show their progress, and explain why they fail."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from docker.errors import ImageNotFound

from projects import Bench, Library, engine
from pytest_warmstack.options import RuntimeName
from pytest_warmstack.servers.errors import RuntimeUnavailable
from registry import Registry, noise, running, saved, scratch

pytestmark = pytest.mark.docker

docker_only = pytest.mark.parametrize("runtime", [RuntimeName.DOCKER], indirect=True)

NAME = "warmstack-test/cache:7"
MODULE = "pytest_warmstack.servers.docker.image"


@pytest.fixture
def registry() -> Iterator[Registry]:
    """A registry with an image that no engine has; what was pulled from it is removed."""
    with running(Registry()) as registry:
        registry.hold(*scratch())
        yield registry
        with engine() as client, suppress(ImageNotFound):
            client.images.remove(registry.image(NAME), force=True)


def check(bench: Bench, image: str) -> list[str]:
    """Have the runtime look for *image*, as before the first test; return what it said."""
    said: list[str] = []
    spec = bench.redis.replace(image=image)
    bench.runtime().check([spec], said.append)
    return said


def refused(bench: Bench, image: str) -> str:
    """Return the text of the error with which the pull of *image* ends."""
    with pytest.raises(RuntimeUnavailable) as caught:
        check(bench, image)
    text = str(caught.value)
    assert text.startswith(f"Could not pull the Docker image {image}.\nWhy: ")
    assert "set WARMSTACK_REDIS_IMAGE to an image that the engine has" in text
    assert "--warmstack-runtime=embedded" in text
    return text


def have(image: str) -> bool:
    """Tell whether the engine has *image*."""
    with engine() as client:
        try:
            client.images.get(image)
        except ImageNotFound:
            return False
        return True


@docker_only
def test_a_pull_shows_how_far_it_has_come(bench: Bench, registry: Registry) -> None:
    """Megabytes of all layers together, never fewer than before; at last the time."""
    registry.pause = 0.02
    image = registry.image(NAME)

    begin = time.monotonic()
    first, *lines, last = check(bench, image)
    seconds = time.monotonic() - begin

    assert have(image)
    assert first == f"pulling {image}"
    pattern = rf"pulling {image}: ([\d.]+) of ([\d.]+) MB, (\d) of [1-3] layers"
    matches = [re.fullmatch(pattern, line) for line in lines]
    shown = [(float(each[1]), float(each[2])) for each in matches if each]
    assert len(shown) == len(lines)
    assert len(lines) >= 2
    here = [each for each, _ in shown]
    assert here == sorted(here)
    assert here[0] < 6.0
    assert all(each <= size <= 6.1 for each, size in shown)
    match = re.fullmatch(rf"pulled {image}: 6\.0 MB in ([\d.]+) s", last)
    assert match
    assert float(match[1]) <= seconds + 0.1


@docker_only
def test_an_image_that_is_there_is_not_asked_for(bench: Bench, registry: Registry) -> None:
    """The second look says nothing, and no registry hears of it."""
    image = registry.image(NAME)
    check(bench, image)
    registry.asked.clear()

    assert check(bench, image) == []
    assert registry.asked == []


@docker_only
def test_two_that_pull_at_once_both_have_it(bench: Bench, registry: Registry) -> None:
    """Two runs on a new machine: each shows its pull, and neither fails."""
    registry.pause = 0.01
    image = registry.image(NAME)

    with ThreadPoolExecutor(2) as pool:
        told = list(pool.map(lambda _: check(bench, image), range(2)))

    for said in told:
        assert said[0] == f"pulling {image}"
        assert said[-1].startswith(f"pulled {image}: ")
    assert have(image)


def test_a_run_begins_with_the_pull_of_its_image(
    docker_project: Library, registry: Registry
) -> None:
    """On a new machine the lines stand before the first test, and the tests pass."""
    assert docker_project.images is not None
    config, layers = saved(docker_project.images.redis)
    config["history"] = []
    registry.hold(config, [*layers, noise(1_000_000)])
    registry.pause = 0.1
    image = registry.image(NAME)
    docker_project.configure(f"warmstack_redis_image = {image}")
    ini = docker_project.folder / "pytest.ini"
    old = f"warmstack_redis_image = {docker_project.images.redis}\n"
    ini.write_text(ini.read_text().replace(old, ""))

    result = docker_project.run("-k", "reader")

    result.assert_outcomes(passed=1, deselected=4)
    result.stdout.fnmatch_lines(
        [
            f"warmstack: pulling {image}: * of * MB, * of * layers (1 s)",
            f"warmstack: Redis * docker, image {image}: started in *",
        ]
    )


@docker_only
@pytest.mark.parametrize(
    ("status", "code", "words", "way"),
    [
        (
            404,
            "MANIFEST_UNKNOWN",
            "the registry says manifest_unknown",
            "the registry has no such image",
        ),
        (
            401,
            "UNAUTHORIZED",
            "the registry says unauthorized",
            "if it is private, log in: docker login 127.0.0.1:{port}",
        ),
        (
            403,
            "DENIED",
            "the registry says denied",
            "if it is private, log in: docker login 127.0.0.1:{port}",
        ),
        (
            429,
            "TOOMANYREQUESTS",
            "the registry says toomanyrequests",
            "docker login 127.0.0.1:{port}",
        ),
        (500, "UNKNOWN", "500 internal server error", "docker pull"),
    ],
)
def test_a_registry_that_refuses_is_quoted(
    bench: Bench, registry: Registry, status: int, code: str, words: str, way: str
) -> None:
    """Its own words are in the error, and what can be done about them."""
    registry.refusal = (status, code)

    text = refused(bench, registry.image(NAME))

    assert words in text.splitlines()[1].lower()
    assert way.format(port=registry.port) in text


@docker_only
def test_a_registry_that_nobody_answers_for_is_told(bench: Bench) -> None:
    """The error has the engine's words for it, which name the address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"

    text = refused(bench, f"{place}/cache:7")

    assert place in text.splitlines()[1]
    assert "connection refused" in text.splitlines()[1]


@docker_only
def test_a_name_that_is_none_is_told(bench: Bench) -> None:
    """What the engine will not even ask for."""
    assert "invalid reference format" in refused(bench, "no such:image:1")


@docker_only
@pytest.mark.parametrize("place", ["manifest", "layer"])
def test_a_registry_that_falls_silent_is_given_up(
    bench: Bench, registry: Registry, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Nothing hangs, whatever it is that does not come; the error names the seconds."""
    monkeypatch.setattr(f"{MODULE}.PULL_TIMEOUT", 1.5)
    registry.stall = 0 if place == "manifest" else 1_000_000

    begin = time.monotonic()
    text = refused(bench, registry.image(NAME))

    assert "Why: the engine was silent for 1.5 seconds" in text
    assert time.monotonic() - begin < 15


@docker_only
def test_the_engine_is_of_use_after_a_pull_that_was_given_up(
    bench: Bench, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next attempt, when the registry has come to itself, brings the image."""
    monkeypatch.setattr(f"{MODULE}.PULL_TIMEOUT", 1.0)
    registry.stall = 1_000_000
    refused(bench, registry.image(NAME))
    registry.stall = None
    registry.closing.set()

    said: list[Any] = check(bench, registry.image(NAME))

    assert said[-1].startswith("pulled ")
    assert have(registry.image(NAME))


@docker_only
def test_a_pull_goes_on_after_its_connection_was_cut(bench: Bench, registry: Registry) -> None:
    """The engine tries again by itself, after some seconds, and that is waited for."""
    registry.pause = 0.01
    registry.cut, registry.cuts = 1_000_000, 1

    said = check(bench, registry.image(NAME))

    assert registry.cuts == 0
    assert re.fullmatch(r"pulled .*: 6\.0 MB in [\d.]+ s", said[-1])
    assert have(registry.image(NAME))


@docker_only
def test_a_layer_that_is_refused_is_told(bench: Bench, registry: Registry) -> None:
    """What goes wrong after the pull has begun comes in the stream, and is the error all the same.

    So does a connection that is cut time and again: after its fifth attempt the engine says so.
    """
    registry.refusal, registry.refused = (403, "DENIED"), "blobs"

    text = refused(bench, registry.image(NAME))

    assert "denied" in text.splitlines()[1]
    assert not have(registry.image(NAME))
