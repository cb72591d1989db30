"""The projects in `examples`: no file of an application is changed for its tests.

Each is copied as it is, and what a test machine has to say, it says by variables.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from projects import Library, until

EXAMPLES: Final = Path(__file__).parents[2] / "examples"

PASSED: Final = {
    "fastapi_orders": 11,
    "flask_notes": 5,
    "litestar_asyncpg": 4,
    "monorepo": 6,
    "redis_worker": 4,
    "two_databases": 4,
}
"""How many tests each has; all of them pass."""

MADE: Final = shutil.ignore_patterns("__pycache__", ".pytest_cache")


@pytest.fixture(scope="module")
def shared(runtime: str, library_in: Callable[..., Library]) -> Iterator[Library]:
    """A folder whose servers all examples of a runtime share."""
    library = library_in(runtime, "examples")
    yield library
    library.end()


@pytest.fixture
def run(shared: Library) -> Callable[..., pytest.RunResult]:
    """A function that runs an example's tests in the folder, which has nothing else."""
    variables = {"WARMSTACK_RUNTIME": shared.runtime, "WARMSTACK_MAX_IDLE": "9999d"}
    if shared.images is not None:
        variables["WARMSTACK_POSTGRES_IMAGE"] = shared.images.postgres
        variables["WARMSTACK_REDIS_IMAGE"] = shared.images.redis
    for path in shared.folder.iterdir():
        if path.name != ".pytest_cache":
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def run(name: str, *arguments: str) -> pytest.RunResult:
        shutil.copytree(EXAMPLES / name, shared.folder, ignore=MADE, dirs_exist_ok=True)
        return shared.run("--reuse-containers", *arguments, **variables)

    return run


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a project, without what Python and pytest make."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not {"__pycache__", ".pytest_cache"} & set(path.parts)
    }


def test_every_example_is_run() -> None:
    """And none is run that is not there; the page about them names them all."""
    assert {path.name for path in EXAMPLES.iterdir() if path.is_dir()} == set(PASSED)
    page = (EXAMPLES / "README.md").read_text()
    assert [name for name in PASSED if f"| [`{name}`]({name}) |" not in page] == []


@pytest.mark.parametrize("name", PASSED)
def test_an_example_passes(
    shared: Library, run: Callable[..., pytest.RunResult], name: str
) -> None:
    """Twice, since the second run finds what the first one left; nothing is complained about."""
    for _ in range(2):
        result = run(name)

        assert result.parseoutcomes() | {"warnings": 0} == {"passed": PASSED[name], "warnings": 0}
        result.stdout.no_fnmatch_line("*: it left *")
    assert contents(shared.folder) == contents(EXAMPLES / name)
    until(lambda: not shared.databases("u"), "all used clones are dropped", seconds=15)


@pytest.mark.parametrize("name", PASSED)
def test_an_example_passes_in_parallel(run: Callable[..., pytest.RunResult], name: str) -> None:
    """Each worker has an address of its own, which its application has read."""
    result = run(name, "-n", "2")

    assert result.parseoutcomes() | {"warnings": 0} == {"passed": PASSED[name], "warnings": 0}
