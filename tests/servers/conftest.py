"""Real servers for the tests in this folder: in Docker and embedded, in projects of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from docker.errors import DockerException, ImageNotFound

from pytest_warmstack import redis
from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.options import RuntimeName, Settings
from pytest_warmstack.postgres import server as postgres
from pytest_warmstack.servers.errors import RuntimeUnavailable
from pytest_warmstack.servers.model import ServerSpec

pytest.register_assert_rewrite("projects")

from projects import Bench, Images, Library, engine, lacking  # noqa: E402 - after its asserts are rewritten

SLOW = frozenset(
    {
        # All versions, odd engines, images and networks.
        *("test_versions", "test_docker_engines", "test_docker_labels", "test_images", "test_pull"),
        *("test_external", "test_external_odd", "test_external_wrong", "test_two_hosts"),
        *("test_binaries", "test_locales", "test_postgres_settings", "test_places_of_servers"),
        # Long properties, and processes that are killed.
        *("test_stress", "test_layered_property", "test_killed", "test_ended_by_signal"),
        "test_interrupted_set_up",
        # Commands in terminals, and comparisons of databases of all kinds.
        *("test_status_watch", "test_saved_databases"),
        # Projects and suites of all kinds.
        *("test_cases", "test_alembic_forms", "test_bad_input", "test_several_configurations"),
        *("test_search_path", "test_changed_world", "test_first_hour", "test_command_anywhere"),
        *("test_examples", "test_development_database", "test_seed_marker", "test_pytest_alembic"),
        *("test_report_of_costs", "test_profile"),
        # Faults of the machine and of servers.
        *("test_faults", "test_refusals", "test_remembered_servers", "test_lookers"),
        "test_progress",
    }
)
"""The files whose tests are expensive and rarely affected by a change."""

IN_BOTH_RUNTIMES = frozenset({"test_reuse", "test_runtime_contract"})
"""The files that are run in Docker, too, by `make test`; of others, it runs the embedded twins."""

_OFFICIAL = Images(Settings().postgres_image, Settings().redis_image)
_STAND_IN = Images("warmstack-standin-postgres:16", "warmstack-standin-redis:7")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make test` leaves to `make test-all`."""
    for item in items:
        if item.path.parent != Path(__file__).parent:
            continue
        callspec = getattr(item, "callspec", None)
        is_twin = callspec is not None and callspec.params.get("runtime") == RuntimeName.DOCKER
        if item.path.stem in SLOW or (is_twin and item.path.stem not in IN_BOTH_RUNTIMES):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def images() -> Images:
    """The Docker images to use; where there are none, the test is skipped, or fails on demand."""
    found = _usable()
    if not isinstance(found, Images):
        lacking(found)
    return found


def _usable() -> Images | str:
    """Return images that were named, the official ones or the stand-ins; or why there are none."""
    named = Images(
        os.environ.get("WARMSTACK_POSTGRES_IMAGE", ""), os.environ.get("WARMSTACK_REDIS_IMAGE", "")
    )
    try:
        with engine(timeout=10) as client:
            if named.postgres and named.redis:
                return named
            if _have(client, _OFFICIAL) or _can_pull(client, _OFFICIAL):
                return _OFFICIAL
            if _have(client, _STAND_IN):
                return _STAND_IN
    except DockerException as error:
        return f"no Docker engine answers: {error}"
    return (
        f"{_OFFICIAL.postgres} and {_OFFICIAL.redis} can't be pulled, and there are no stand-ins;"
        " to make them: tests/images/build"
    )


def _have(client: Any, images: Images) -> bool:
    """Tell whether the engine has both images."""
    try:
        for image in (images.postgres, images.redis):
            client.images.get(image)
    except ImageNotFound:
        return False
    return True


def _can_pull(client: Any, images: Images) -> bool:
    """Tell whether the registry answers for both images, without fetching them."""
    try:
        for image in (images.postgres, images.redis):
            client.api.inspect_distribution(image)
    except (DockerException, OSError):
        return False
    return True


@pytest.fixture(scope="session")
def embedded_programs() -> None:
    """The programs of the embedded servers, without which a test is skipped."""
    try:
        for spec in (postgres.spec(Settings(), BackgroundLoop()), redis.spec(Settings())):
            spec.native("").check()
    except RuntimeUnavailable as refusal:
        pytest.skip(refusal.what)


@pytest.fixture(
    scope="session",
    params=[pytest.param(RuntimeName.DOCKER, marks=pytest.mark.docker), RuntimeName.EMBEDDED],
)
def runtime(request: pytest.FixtureRequest) -> str:
    """The runtime under test: each test that asks for it runs in Docker and embedded."""
    request.getfixturevalue(
        "images" if request.param is RuntimeName.DOCKER else "embedded_programs"
    )
    return str(request.param)


@pytest.fixture(scope="session")
def library_in(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Library]:
    """A function that makes a project for a runtime; whoever calls it has to `end()` it."""

    def make(runtime: str, name: str = "library") -> Library:
        folder = Path(os.path.realpath(tmp_path_factory.mktemp("home"))) / name
        folder.mkdir()
        docker = runtime == RuntimeName.DOCKER
        return Library(folder, runtime, request.getfixturevalue("images") if docker else None)

    return make


@pytest.fixture
def project(runtime: str, library_in: Callable[..., Library]) -> Iterator[Library]:
    """A project of its own for each test, in either runtime; nothing of it is left at the end."""
    library = library_in(runtime)
    yield library
    library.end()


@pytest.fixture
def embedded_project(
    embedded_programs: None, library_in: Callable[..., Library]
) -> Iterator[Library]:
    """The same with embedded servers only, where the runtime makes no difference."""
    library = library_in(RuntimeName.EMBEDDED)
    yield library
    library.end()


@pytest.fixture(scope="module")
def kept_project(embedded_programs: None, library_in: Callable[..., Library]) -> Iterator[Library]:
    """A project with kept embedded servers for all tests of a file."""
    library = library_in(RuntimeName.EMBEDDED)
    library.run("--reuse-containers").assert_outcomes(passed=5)
    yield library
    library.end()


@pytest.fixture
def kept(kept_project: Library) -> Iterator[Library]:
    """The same with its files as they were."""
    kept_project.reset()
    yield kept_project
    kept_project.quit()


@pytest.fixture
def guest(library_in: Callable[..., Library]) -> Iterator[Library]:
    """A project that has no servers of its own."""
    library = library_in(RuntimeName.EXTERNAL)
    yield library
    library.end()


@pytest.fixture
def docker_project(images: Images, library_in: Callable[..., Library]) -> Iterator[Library]:
    """The same in Docker only."""
    library = library_in(RuntimeName.DOCKER)
    yield library
    library.end()


@pytest.fixture
def other_project(runtime: str, library_in: Callable[..., Library]) -> Iterator[Library]:
    """A second project beside `project`."""
    library = library_in(runtime, "archive")
    yield library
    library.end()


@pytest.fixture(scope="session")
def background() -> Iterator[BackgroundLoop]:
    """The background loop for the connections that tests open themselves."""
    background = BackgroundLoop()
    yield background
    background.close()


@pytest.fixture(scope="session")
def settings(request: pytest.FixtureRequest, runtime: str) -> Settings:
    """Settings with the images that can be had here."""
    if runtime != RuntimeName.DOCKER:
        return Settings()
    images: Images = request.getfixturevalue("images")
    return Settings(postgres_image=images.postgres, redis_image=images.redis)


@pytest.fixture(scope="session")
def postgres_spec(settings: Settings, background: BackgroundLoop) -> ServerSpec[Any]:
    """What a PostgreSQL of ours looks like."""
    return postgres.spec(settings, background)


@pytest.fixture(scope="session")
def redis_spec(settings: Settings) -> ServerSpec[Any]:
    """What a Redis of ours looks like."""
    return redis.spec(settings)


@pytest.fixture
def bench(
    runtime: str, tmp_path: Path, postgres_spec: ServerSpec[Any], redis_spec: ServerSpec[Any]
) -> Iterator[Bench]:
    """A runtime at work for a project of the test's own; nothing of it is left at the end."""
    bench = Bench(runtime, Path(os.path.realpath(tmp_path)), postgres_spec, redis_spec)
    yield bench
    bench.end()


@pytest.fixture(scope="module")
def standing(
    runtime: str,
    tmp_path_factory: pytest.TempPathFactory,
    postgres_spec: ServerSpec[Any],
    redis_spec: ServerSpec[Any],
) -> Iterator[Bench]:
    """A runtime at work for one project of a whole file, for tests that change nothing."""
    folder = Path(os.path.realpath(tmp_path_factory.mktemp("standing")))
    bench = Bench(runtime, folder, postgres_spec, redis_spec)
    yield bench
    bench.end()
