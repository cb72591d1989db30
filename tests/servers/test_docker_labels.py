"""Containers have labels of pytest-warmstack, never a reaper's; other containers are left alone.

This file also tests what a run does if an image is missing or the engine doesn't answer.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pytest
from testcontainers.core.container import DockerContainer
from testcontainers.core.labels import LABEL_SESSION_ID, SESSION_ID

from projects import Bench, Images, Library, containers, engine
from pytest_warmstack.options import RuntimeName
from pytest_warmstack.servers.identity import KEPT, Label, Process, Project

pytestmark = [
    pytest.mark.docker,
    pytest.mark.parametrize("runtime", [RuntimeName.DOCKER], indirect=True),
]

NOT_RUNNING = "Docker is not running. Please start Docker first."


@pytest.fixture
def somebody_elses(images: Images) -> Iterator[Any]:
    """A container that carries labels of another tool, as Compose or a reaper sets them."""
    labels = {"com.docker.compose.project": "shop", LABEL_SESSION_ID: "another session"}
    with engine() as client:
        container = client.containers.run(
            images.redis, ["sleep", "600"], labels=labels, detach=True
        )
        yield container
        container.remove(force=True, v=True)


@pytest.fixture(params=["socket", "port"])
def nowhere(request: pytest.FixtureRequest) -> str:
    """A DOCKER_HOST where no engine answers."""
    if request.param == "socket":
        return "unix:///nonexistent.sock"
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    return f"tcp://127.0.0.1:{port}"


def without_images(project: Library) -> None:
    """Let a project's images be the default ones."""
    ini = project.folder / "pytest.ini"
    lines = ini.read_text().splitlines(keepends=True)
    ini.write_text("".join(each for each in lines if "_image = " not in each))


def test_a_container_says_whose_it_is(bench: Bench) -> None:
    """Each label is there with its value, for a kept server and for one of a run."""
    kept = bench.ensure(bench.redis)
    passing = bench.ensure(bench.redis, keep=False)

    found = {each["Id"]: each["Config"]["Labels"] for each in containers(bench.folder)}

    common = {
        Label.PROJECT: Project(path=str(bench.folder)).id,
        Label.PATH: str(bench.folder),
        Label.SERVICE: "redis",
        Label.FINGERPRINT: bench.redis.fingerprint("docker"),
        Label.CONFIG: json.dumps(bench.redis.config("docker"), sort_keys=True),
        Label.VERSION: version("pytest-warmstack"),
        Label.OWNER: str(Process.current()),
    }
    assert set(found) == {kept.id, passing.id}
    runs = {found[each.id].get(Label.RUN) for each in (kept, passing)}
    assert KEPT in runs
    assert len(runs) == 2
    for labels in found.values():
        assert {key: labels.get(key) for key in common} == common


def test_the_users_own_containers_keep_their_reaper_and_ours_have_none(
    bench: Bench, images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container that the user starts in the same process is still marked for testcontainers."""
    before = bench.ensure(bench.redis)
    # Its image is nothing that this test needs; the mark is set either way.
    monkeypatch.setattr("testcontainers.core.config.testcontainers_config.ryuk_disabled", True)
    with DockerContainer(images.redis).with_command(["sleep", "600"]) as users:
        labels = users.get_wrapped_container().labels
        after = bench.ensure(bench.redis, keep=False)

        assert labels[LABEL_SESSION_ID] == SESSION_ID
        ours = {each["Id"]: each["Config"]["Labels"] for each in containers(bench.folder)}
        assert set(ours) == {before.id, after.id}
        assert not [key for own in ours.values() for key in own if "testcontainers" in key]
        users.get_docker_client().client.close()


@pytest.mark.parametrize("given", [False, True])
def test_the_environment_is_left_as_it_was(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, *, given: bool
) -> None:
    """The client of testcontainers writes DOCKER_HOST; the user's own code must not see that."""
    if given and "DOCKER_HOST" not in os.environ:
        monkeypatch.setenv("DOCKER_HOST", "unix:///var/run/docker.sock")
    elif not given:
        if "DOCKER_HOST" in os.environ:
            pytest.skip("the engine is found by DOCKER_HOST here")
        monkeypatch.delenv("DOCKER_HOST", raising=False)
    before = dict(os.environ)

    bench.ensure(bench.redis)
    bench.runtime().list()

    assert dict(os.environ) == before


def test_somebody_elses_container_survives_us(project: Library, somebody_elses: Any) -> None:
    """Neither the end of a run nor `warmstack clean --force` touches what is not labelled ours."""
    project.run("-k", "reader").assert_outcomes(passed=1, deselected=4)
    project.run("-k", "reader", "--reuse-containers").assert_outcomes(passed=1, deselected=4)
    assert project.warmstack("clean", "--force").ret == 0

    somebody_elses.reload()
    assert somebody_elses.status == "running"
    assert project.containers() == []


@pytest.mark.parametrize("run", [KEPT, "1"])
def test_a_container_that_only_bears_labels_like_ours_stops_nothing(
    project: Library, images: Images, run: str
) -> None:
    """Of this very project, but with no word in them that we would have written.

    It is shown for what it says, and nothing is taken from it.
    """
    labels = {
        Label.PROJECT: Project(path=str(project.folder)).id,
        Label.PATH: str(project.folder),
        Label.SERVICE: "mongo",
        Label.CONFIG: "{",
        Label.OWNER: "nobody",
        Label.RUN: run,
    }
    with engine() as client:
        container = client.containers.run(
            images.redis, ["sleep", "600"], labels=labels, detach=True
        )
        try:
            passed = project.run("-k", "reader", "--reuse-containers")
            shown = project.warmstack("status")
            told = json.loads(project.warmstack("status", "--json").stdout.str())
            container.reload()
            assert container.status == "running"
        finally:
            container.remove(force=True, v=True)

    passed.assert_outcomes(passed=1, deselected=4)
    assert (shown.ret, shown.stderr.str()) == (0, "")
    assert container.name in json.dumps(told)


def test_a_missing_image_stops_a_run_that_demanded_docker(project: Library) -> None:
    """The run ends with a usage error that holds the registry's own words."""
    image = "127.0.0.1:9/nobody/postgres:16"

    result = project.run(f"--warmstack-postgres-image={image}")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    text = "\n".join([*result.outlines, *result.errlines])
    assert f"Could not pull the Docker image {image} (command line option " in text
    assert "127.0.0.1:9: connect: connection refused" in text
    assert "set --warmstack-postgres-image to an image that the engine has" in text
    assert project.lines("servers.log") == []


def test_a_missing_default_image_makes_auto_take_the_embedded_servers(
    project: Library, embedded_programs: None
) -> None:
    """All tests run, and the header says where and why."""
    without_images(project)

    result = project.run(
        "--warmstack-runtime=auto", TESTCONTAINERS_HUB_IMAGE_NAME_PREFIX="127.0.0.1:9/nobody/"
    )

    result.assert_outcomes(passed=5)
    # Both are asked for at the same time: the one that is refused first is named.
    why = "Could not pull the Docker image 127.0.0.1:9/nobody/*"
    result.stdout.fnmatch_lines([f"warmstack: * embedded (auto: {why}), *: started in *"])
    result.stdout.no_fnmatch_line("warmstack: * on *, docker*")


def test_a_named_image_is_never_replaced(project: Library) -> None:
    """The run stops with what the registry says, and names the line that names the image."""
    without_images(project)
    project.configure("warmstack_postgres_image = 127.0.0.1:9/nobody/postgres:16-alpin")

    result = project.run("--warmstack-runtime=auto", "-k", "book")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    text = "\n".join([*result.outlines, *result.errlines])
    image = "127.0.0.1:9/nobody/postgres:16-alpin"
    assert f"Could not pull the Docker image {image} (pytest.ini).\nWhy: " in text
    assert "connection refused" in text
    assert "--warmstack-runtime=embedded" in text
    assert project.lines("servers.log") == []


@pytest.mark.parametrize("chosen", ["auto", "embedded"])
def test_an_image_that_embedded_servers_can_not_replace_needs_the_engine(
    project: Library, embedded_programs: None, nowhere: str, chosen: str
) -> None:
    """What else the image has is not known; who asks for embedded servers does without."""
    without_images(project)
    project.configure("warmstack_postgres_image = postgis/postgis:16-3.4")

    result = project.run(f"--warmstack-runtime={chosen}", "-k", "book", DOCKER_HOST=nowhere)

    if chosen == RuntimeName.EMBEDDED:
        result.assert_outcomes(passed=1, deselected=4)
        return
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    text = "\n".join([*result.outlines, *result.errlines])
    assert NOT_RUNNING in text
    assert "the image postgis/postgis:16-3.4 (pytest.ini) needs Docker" in text
    assert "--warmstack-runtime=embedded" in text
    assert nowhere in text
    assert project.lines("servers.log") == []


def test_a_missing_engine_stops_a_run_that_demanded_docker(project: Library, nowhere: str) -> None:
    """The run ends with a usage error that says what to do and what was tried."""
    result = project.run(DOCKER_HOST=nowhere)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    text = "\n".join([*result.outlines, *result.errlines])
    assert NOT_RUNNING in text
    assert nowhere in text
    assert project.lines("servers.log") == []


def test_a_missing_engine_makes_auto_take_the_embedded_servers(
    project: Library, embedded_programs: None, nowhere: str
) -> None:
    """All tests run, and the header says where and why.

    An official image that was named does not change that: its tag is the version asked for.
    """
    without_images(project)
    project.configure("warmstack_redis_image = redis:7.2")

    result = project.run("--warmstack-runtime=auto", "-k", "reader", DOCKER_HOST=nowhere)

    result.assert_outcomes(passed=1, deselected=4)
    why = f"Docker is not running at {nowhere}"
    result.stdout.fnmatch_lines([f"warmstack: Redis * embedded (auto: {why}), *"])


def test_tests_that_need_no_server_run_where_the_demanded_engine_is_missing(
    project: Library,
) -> None:
    """A run that selects none of our fixtures does not care about Docker."""
    result = project.run("-k", "pages", DOCKER_HOST="unix:///nonexistent.sock")

    result.assert_outcomes(passed=1, deselected=4)
    assert not [line for line in result.outlines if line.startswith("warmstack:")]
