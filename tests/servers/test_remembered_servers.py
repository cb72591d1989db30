"""A remembered server is used until a run has other settings; then a runtime is chosen again."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from projects import Library

BOOK = ("--reuse-containers", "-k", "book")
NO_ENGINE = {
    "DOCKER_HOST": "unix:///nonexistent.sock",
    "WARMSTACK_POSTGRES_IMAGE": "postgres:16-alpine",
}
"""An engine that does not answer, and an image that embedded servers can replace."""

OTHER_ENGINE = {**NO_ENGINE, "DOCKER_HOST": "tcp://127.0.0.1:1"}


@pytest.fixture
def auto(docker_project: Library, embedded_programs: None) -> Library:
    """A project whose servers run in Docker if that is possible, else as native processes."""
    path = docker_project.folder / "pytest.ini"
    path.write_text(path.read_text().replace("warmstack_runtime = docker", ""))
    return docker_project


def where(project: Library, *arguments: str, **variables: str) -> tuple[str, str]:
    """Return the runtime that a run took, and what it did to have the server there."""
    result = project.run(*BOOK, *arguments, **variables)
    result.assert_outcomes(passed=1, deselected=4)
    (line,) = (line for line in result.outlines if line.startswith("warmstack: PostgreSQL "))
    runtime = "docker" if ", docker" in line else "embedded"
    return runtime, line.rpartition(": ")[2].split()[0].rstrip(",")


@pytest.mark.parametrize("trouble", [NO_ENGINE, OTHER_ENGINE], ids=["socket", "port"])
def test_a_run_goes_back_to_docker_once_what_was_wrong_is_corrected(
    auto: Library, trouble: dict[str, str]
) -> None:
    """And from there to native processes, and back again to the container that was kept."""
    assert where(auto, **trouble) == ("embedded", "started")
    assert where(auto) == ("docker", "started")
    assert where(auto, **trouble) == ("embedded", "reused")
    assert where(auto) == ("docker", "reused")


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [((), NO_ENGINE), ((), {})],
    ids=["a fall-back", "a choice"],
)
def test_what_is_asked_for_again_is_not_decided_again(
    auto: Library, arguments: Sequence[str], variables: dict[str, str]
) -> None:
    """The second run asks no engine: it imports nothing that could."""
    first = where(auto, *arguments, **variables)
    auto.write(
        "conftest.py",
        "import sys\n"
        "def pytest_sessionfinish():\n"
        "    assert not {'docker', 'testcontainers'} & {*sys.modules}\n",
    )

    assert where(auto, *arguments, **variables) == (first[0], "reused")


def test_another_runtime_is_another_question(auto: Library) -> None:
    """What a run with a named runtime has left is not what `auto` would choose."""
    assert where(auto, "--warmstack-runtime=embedded") == ("embedded", "started")
    assert where(auto) == ("docker", "started")
    assert where(auto, "--warmstack-runtime=embedded") == ("embedded", "reused")
