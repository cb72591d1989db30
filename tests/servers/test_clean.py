"""`warmstack clean` removes what belongs to this project, and nothing else."""

from __future__ import annotations

import pytest

from projects import Library, assert_nothing_left, until
from pytest_warmstack.options import RuntimeName

REUSE = "--reuse-containers"
READER = ("-k", "reader")

WAITING = """
import time
from pathlib import Path

def test_that_waits(redis_url):
    Path("running").touch()
    deadline = time.monotonic() + 60
    while not Path("go").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
"""


def test_it_removes_the_kept_servers_and_names_them(
    project: Library, other_project: Library
) -> None:
    """Those of another project stay; once more there is nothing to remove, and that is fine."""
    for each in (project, other_project):
        each.run(REUSE, *READER).assert_outcomes(passed=1, deselected=4)
    others = other_project.servers()

    result = project.warmstack("clean")

    assert result.ret == 0
    result.stdout.fnmatch_lines([f"removed redis warmstack-library-* ({project.runtime})"])
    assert_nothing_left(project.folder)
    assert other_project.servers() == others

    again = project.warmstack("clean")
    assert again.ret == 0
    assert f"nothing to remove for {project.folder}" in again.outlines
    folder = other_project.folder
    assert str(folder) not in again.stdout.str()
    again.stdout.re_match_lines([r"servers of \d+ other projects?: warmstack status"])

    assert project.warmstack("clean", "--project", str(folder)).ret == 0
    assert_nothing_left(folder)


@pytest.mark.parametrize("arguments", [(), (REUSE,)], ids=["its own", "kept"])
def test_it_spares_a_run_in_progress_unless_forced(
    project: Library, arguments: tuple[str, ...]
) -> None:
    """A server that a living run uses is named and spared with status 1; --force removes it."""
    project.write("test_wait.py", WAITING)
    running = project.start("test_wait.py", *arguments)
    until((project.folder / "running").exists, "the test runs")
    (server,) = project.servers()

    result = project.warmstack("clean")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [f"spared redis warmstack-library-* ({project.runtime}): a run in progress uses it*"]
    )
    assert project.servers() == [server]

    forced = project.warmstack("clean", "--force")
    assert forced.ret == 0
    assert project.servers() == []

    (project.folder / "go").touch()
    running.wait().assert_outcomes(passed=1)


@pytest.mark.docker
@pytest.mark.parametrize("runtime", [RuntimeName.DOCKER], indirect=True)
def test_it_removes_from_both_runtimes_at_once(project: Library, embedded_programs: None) -> None:
    """A project that was used with either runtime is clean after one command."""
    project.run(REUSE, *READER).assert_outcomes(passed=1, deselected=4)
    project.run(REUSE, *READER, "--warmstack-runtime=embedded").assert_outcomes(
        passed=1, deselected=4
    )
    assert len(project.containers()) == 1
    assert len(project.folders()) == 1

    result = project.warmstack("clean")

    assert result.ret == 0
    result.stdout.fnmatch_lines_random(["removed redis *(docker)", "removed redis *(embedded)"])
    assert_nothing_left(project.folder)


def test_it_works_without_an_engine(embedded_project: Library) -> None:
    """Without Docker the embedded servers are removed; a line says why Docker was not checked."""
    project = embedded_project
    project.run(REUSE, *READER).assert_outcomes(passed=1, deselected=4)

    result = project.warmstack("clean", DOCKER_HOST="unix:///nonexistent.sock")

    assert result.ret == 0
    result.stdout.fnmatch_lines(["removed redis *(embedded)"])
    result.stderr.fnmatch_lines(["could not check the runtime docker: Docker is not running.*"])
    assert project.folders() == []


def test_it_finds_the_root_from_a_folder_below(embedded_project: Library) -> None:
    """The project is the nearest folder upwards that pytest would take for the root."""
    project = embedded_project
    project.run(REUSE, *READER).assert_outcomes(passed=1, deselected=4)
    command = ("pytest_warmstack.cli", "clean")

    elsewhere = project.start("--project", "/", command=command).wait()
    assert elsewhere.ret == 1
    assert len(project.folders()) == 1

    result = project.start(command=command, below="migrations/versions").wait()
    assert result.ret == 0
    assert project.folders() == []
