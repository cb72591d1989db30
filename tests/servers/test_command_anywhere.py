"""The command `warmstack` in unusual or incomplete projects, and without any project."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from projects import Library

REUSE = "--reuse-containers"
READER = ("-k", "reader")

WARNS = "import warnings\nwarnings.warn('this plugin warns', DeprecationWarning)\n"

PLUGIN = """
def pytest_addoption(parser):
    parser.addoption("--no-cov", dest="no_cov", action="store_true")

def pytest_configure(config):
    print("measured", not config.option.no_cov)
"""
"""A plugin with the option by which pytest-cov is switched off, which is not installed here."""

WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("docker", "testcontainers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""
"""What Python imports at its start to be without the packages of Docker."""


def told(result: pytest.RunResult) -> str:
    """Return all that a command has written."""
    return "\n".join([*result.outlines, *result.errlines])


def addopts(project: Library, text: str) -> None:
    """Put *text* before the other options in the project's configuration."""
    path = project.folder / "pytest.ini"
    path.write_text(path.read_text().replace("addopts = ", f"addopts = {text} "))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("-p warns -W error", "filterwarnings = error"),
        ("", "filterwarnings = error::absent.Warn"),
        ("-p absent", "required_plugins = pytest-absent"),
        ("--absent-option=3 --cov shop -n 2", "minversion = 99"),
        ("-p no:warmstack --strict-config", "absent_key = 1"),
    ],
)
def test_the_settings_are_read_whatever_a_run_needs(
    embedded_project: Library, text: str, line: str
) -> None:
    """Those in the file and those in addopts; nothing is said of the rest, nothing of it runs."""
    project = embedded_project
    project.write("warns.py", WARNS)
    project.write("conftest.py", "raise RuntimeError('a conftest file was loaded')")
    addopts(project, f"{text} --warmstack-keep-failed=5")
    project.configure("warmstack_clones_ahead = 3", line)
    path = {"PYTHONPATH": str(project.folder)}

    doctor = project.warmstack("doctor", DOCKER_HOST="unix:///nonexistent.sock", **path)

    assert doctor.errlines == []
    doctor.stdout.fnmatch_lines(["*keep_failed *5  (command line option *", "*clones_ahead *3 *"])
    doctor.stdout.no_fnmatch_line("*can't be read*")


def test_the_variables_of_pytest_count(embedded_project: Library) -> None:
    """Another root, another file and options in PYTEST_ADDOPTS; plugins are not loaded."""
    project = embedded_project
    project.write("below/other.ini", "[pytest]\nwarmstack_leaks = ignore\n")

    result = project.warmstack(
        "doctor",
        PYTEST_ADDOPTS="-c below/other.ini -p absent -n3 --warmstack-clones-ahead=3",
        PYTEST_PLUGINS="absent",
        DOCKER_HOST="unix:///nonexistent.sock",
    )

    result.stdout.fnmatch_lines(
        [
            f"settings of {project.folder}/below",
            "*clones_ahead *3  (command line option *",
            "*leaks *ignore  (other.ini)",
        ]
    )


def test_the_commands_work_without_the_packages_of_docker(embedded_project: Library) -> None:
    """A run, `up`, `status`, `doctor` and `clean`: each says what it could not look at, and why."""
    project = embedded_project
    project.write("without/sitecustomize.py", WITHOUT)
    path = {"PYTHONPATH": str(project.folder / "without")}

    assert project.warmstack("up", **path).ret == 0
    project.run(REUSE, *READER, **path).assert_outcomes(passed=1, deselected=4)
    status = project.warmstack("status", **path)
    doctor = project.warmstack("doctor", **path)
    clean = project.warmstack("clean", **path)

    assert (status.ret, doctor.ret, clean.ret) == (0, 0, 0)
    status.stdout.fnmatch_lines([str(project.folder)])
    for result in (status, clean):
        result.stderr.fnmatch_lines(["could not check the runtime docker: *No module named*"])
    doctor.stdout.fnmatch_lines(["  NO  engine *No module named*", "fit: a run would use embedded"])
    assert project.folders() == []


def test_without_the_packages_of_docker_auto_takes_embedded_servers(
    embedded_project: Library,
) -> None:
    """And says why; who demands Docker gets the error with the line that mends it."""
    project = embedded_project
    project.write("without/sitecustomize.py", WITHOUT)
    path = {"PYTHONPATH": str(project.folder / "without")}

    auto = project.run("--warmstack-runtime=auto", *READER, **path)
    docker = project.run("--warmstack-runtime=docker", *READER, **path)

    auto.assert_outcomes(passed=1, deselected=4)
    auto.stdout.fnmatch_lines(
        ["warmstack: Redis * embedded (auto: The Python packages for Docker*"]
    )
    assert docker.ret == pytest.ExitCode.USAGE_ERROR
    docker.stderr.fnmatch_lines(["*pip install testcontainers docker*"])


@pytest.mark.parametrize("blocked", ["-p no:xdist -p no:cov", "-p no:warmstack", "-n 2"])
def test_up_asks_for_what_is_loaded(embedded_project: Library, blocked: str) -> None:
    """A plugin that is installed and blocked has no options; this one is loaded all the same."""
    project = embedded_project
    addopts(project, blocked)

    result = project.warmstack("up")

    assert result.ret == 0, told(result)
    assert "worker" not in told(result)
    assert len(project.folders()) == 2


def test_up_switches_a_measurement_off(embedded_project: Library) -> None:
    """By the option of the plugin that measures."""
    project = embedded_project
    project.write("measure.py", PLUGIN)
    addopts(project, "-p measure")

    result = project.warmstack("up", PYTHONPATH=str(project.folder))

    assert result.ret == 0
    assert "measured False" in told(result)


# Where there is no project


@pytest.mark.parametrize("command", ["up", "psql", "redis-cli", "logs", "clean"])
def test_outside_a_project_one_line_says_so(guest: Library, command: str) -> None:
    """Nothing is started, and the line names what is missing and what to do."""
    empty = guest.folder / "empty"
    empty.mkdir()
    for name in ("pytest.ini", "alembic.ini"):
        (guest.folder / name).unlink()

    result = guest.start(command, command=("pytest_warmstack.cli",), below="empty").wait()

    assert result.ret == 1
    assert told(result) == (
        f"warmstack: No project found in {empty}: it has no pytest configuration, alembic.ini,"
        " conftest.py or tests; run the command in the project's folder, or add --project FOLDER"
    )


def test_outside_a_project_the_machine_can_be_looked_at(kept: Library, tmp_path: Path) -> None:
    """`status` shows all, and says that there is no project; `clean` has its other options."""
    outside = str(tmp_path / "empty")
    Path(outside).mkdir()

    status = kept.warmstack("status", "--project", outside)
    clean = kept.warmstack("clean", "--project", outside, "--orphans", "--dry-run")

    assert (status.ret, clean.ret) == (0, 0)
    status.stderr.fnmatch_lines([f"No project found in {outside}: *"])
    assert "No project found" not in told(clean)


@pytest.mark.parametrize(
    "name",
    ["alembic.ini", "setup.py", "conftest.py", "tests/x", "test/x", "test_it.py", "it_test.py"],
)
def test_what_makes_a_folder_a_project(guest: Library, name: str) -> None:
    """Whatever speaks of tests, without a configuration of pytest's."""
    (guest.folder / "pytest.ini").unlink()
    guest.write(f"empty/{name}", "")

    result = guest.warmstack("clean", "--project", "empty")

    assert result.outlines[0] == f"nothing to remove for {guest.folder}/empty"


# Whose servers


def test_status_and_clean_are_about_one_project(
    kept: Library, library_in: Callable[..., Library]
) -> None:
    """`status --project` shows that one alone; `clean` with nothing to do counts the others."""
    other = library_in("embedded", "archive")
    try:
        status = kept.warmstack("status", "--project", str(other.folder))
        whole = other.warmstack("status")
        mine = other.warmstack("status", "--project", str(kept.folder))
        clean = other.warmstack("clean")
    finally:
        other.end()

    assert told(status) == "no warmstack servers found"
    assert str(kept.folder) in whole.outlines
    assert [line for line in mine.outlines if line.startswith("/")] == [str(kept.folder)]
    assert clean.ret == 0
    assert str(kept.folder) not in told(clean)
    assert clean.outlines[0] == f"nothing to remove for {other.folder}"
    clean.stdout.re_match_lines([r"servers of \d+ other projects?: warmstack status"])


# Typing mistakes


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (["statsu"], "status"),
        (["redis"], "redis-cli"),
        (["clean", "--al-projects"], "--all-projects"),
        (["status", "--jsno"], "--json"),
        (["clean", "--all", "--dry-run"], "--all-projects"),
    ],
)
def test_a_wrong_word_is_answered_with_the_right_one(
    guest: Library, arguments: list[str], near: str
) -> None:
    """For commands and their options; the status is that of a wrong call."""
    result = guest.warmstack(*arguments)

    assert result.ret == 2
    assert told(result).endswith(f"; did you mean {near}?")


def test_an_option_of_another_command_is_named_as_that(guest: Library) -> None:
    """It is no typing mistake."""
    result = guest.warmstack("status", "--all-projects")

    assert result.ret == 2
    assert told(result).endswith("; --all-projects is an option of warmstack clean")


def test_a_word_like_no_other_is_answered_with_what_there_is(guest: Library) -> None:
    """No guess is better than a wrong one."""
    result = guest.warmstack("xyzzy")

    assert result.ret == 2
    assert "did you mean" not in told(result)
    assert "status" in told(result)
