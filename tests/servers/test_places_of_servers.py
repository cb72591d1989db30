"""Where embedded servers put their files if the usual place is small or becomes full."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from projects import Library

SHM = "mount -t tmpfs -o size={} none /dev/shm"
ALL = """
import os, subprocess, sys

def run(*command, **variables):
    environ = {**os.environ, **variables}
    subprocess.run([sys.executable, "-m", *command], env=environ, check=True)

def show(when):
    sys.stdout.write(f"{when}: {len(os.listdir('PLACE'))} {len(os.listdir('/dev/shm'))}\\n")
    sys.stdout.flush()

reuse = ("pytest", "--reuse-containers", "-p", "no:cacheprovider")
run(*reuse, TMPDIR="PLACE")
show("between")
run(*reuse)
run("pytest_warmstack.cli", "clean")
show("at last")
"""
"""A run, another one with another TMPDIR, which no hint leads to the server, and a clean-up."""

FULL = "No space left on device for the files of PostgreSQL."
SETTING = "WARMSTACK_EMBEDDED_FOLDER=FOLDER"


def text(result: pytest.RunResult) -> str:
    """Return all that a run wrote."""
    return "\n".join([*result.outlines, *result.errlines])


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that everybody may pass through, as PostgreSQL has to, which is not root."""
    with TemporaryDirectory(prefix="ws-place-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


def of_size(size: str, place: Path) -> str:
    """Return the command that makes *place* a file system of a *size*."""
    return f"mount -t tmpfs -o size={size},mode=711 none {place}"


@pytest.mark.parametrize("size", ["64m", "4k"])
def test_a_small_shared_memory_is_passed_by(
    embedded_project: Library, place: Path, size: str
) -> None:
    """As in an ordinary container; the header says so, and nothing is left in either place."""
    running = embedded_project.start("-n2", mounts=SHM.format(size), TMPDIR=str(place))

    result = running.wait()

    result.assert_outcomes(passed=5)
    assert f"its files are in {place}: /dev/shm is too small" in text(result)
    assert [each.name for each in place.iterdir() if each.name.startswith("pytest-w")] == []


def test_a_kept_server_elsewhere_is_found_and_removed(
    embedded_project: Library, place: Path
) -> None:
    """Every process finds it under its one name, whatever its own TMPDIR is."""
    embedded_project.write("all.py", ALL.replace("PLACE", str(place)))

    result = embedded_project.start(mounts=SHM.format("64m"), command=("all",)).wait(120)

    assert result.ret == 0
    assert text(result).count("5 passed") == 2
    assert text(result).count(": reused") == 2
    assert "between: 1 1" in result.outlines
    assert "at last: 0 0" in result.outlines


def test_no_place_with_room_is_said_before_any_test(embedded_project: Library, place: Path) -> None:
    """With each place and its size, and the setting that names another."""
    result = embedded_project.start(
        mounts=of_size("100m", place), WARMSTACK_EMBEDDED_FOLDER=str(place)
    ).wait()

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "Could not find a folder for the files of PostgreSQL." in text(result)
    assert f"{place}: 100 MB, of which 100 MB are free: that is too small" in text(result)
    assert f"choose another folder with enough space: {SETTING}" in text(result)
    assert "passed" not in text(result)
    for command in (["status"], ["clean"], ["doctor"], ["logs"], ["psql"]):
        running = embedded_project.start(
            *command,
            command=("pytest_warmstack.cli",),
            mounts=of_size("4k", place),
            WARMSTACK_EMBEDDED_FOLDER=str(place),
        )
        said = text(running.wait())
        assert "Traceback" not in said
        assert ("that is too small" in said) == (command == ["doctor"])


FILLING = """
import pytest
from sqlalchemy import text

FILL = "CREATE TABLE big AS SELECT repeat(md5(n::text), 30) AS a FROM generate_series(1, 400000) n"

async def test_that_fills(db_session):
    await db_session.execute(text(FILL))
"""


def test_a_place_that_becomes_full_in_a_test_is_named(
    embedded_project: Library, place: Path
) -> None:
    """PostgreSQL's own error is shown as it is, and behind it where the files are."""
    embedded_project.write("test_filling.py", FILLING)

    result = embedded_project.start(
        "test_filling.py", mounts=of_size("200m", place), WARMSTACK_EMBEDDED_FOLDER=str(place)
    ).wait()

    result.assert_outcomes(failed=1)
    assert "DiskFullError" in text(result)
    assert FULL in text(result)
    assert f"{place}: 200 MB" in text(result)
    assert SETTING in text(result)


def test_a_place_that_is_full_as_the_server_starts_is_named(
    embedded_project: Library, place: Path
) -> None:
    """Where there is less room than was seen, as when others fill it."""
    embedded_project.write(
        "conftest.py",
        "from pytest_warmstack.postgres import native\n"
        "native._MIN_SPACE = native._WANTED_SPACE = 1\n",
    )

    result = embedded_project.start(
        mounts=of_size("20m", place), WARMSTACK_EMBEDDED_FOLDER=str(place)
    ).wait()

    assert FULL in text(result)
    assert f"{place}: 20 MB" in text(result)
    assert SETTING in text(result)


@pytest.mark.parametrize("where", ["template", "clone"])
def test_a_place_that_is_full_for_the_plugins_own_work_is_named(
    embedded_project: Library, place: Path, where: str
) -> None:
    """While a template is built and while clones are made of it, the error says where and how."""
    rows = 400000 if where == "template" else 70000
    embedded_project.write("seed.sql", FILLING.split('"')[1].replace("400000", str(rows)) + ";\n")
    embedded_project.configure("warmstack_seed = seed.sql")

    result = embedded_project.start(
        mounts=of_size("200m", place), WARMSTACK_EMBEDDED_FOLDER=str(place)
    ).wait()

    assert result.parseoutcomes()["errors"] >= 1
    assert FULL in text(result)
    assert f"{place}: 200 MB" in text(result)
    assert SETTING in text(result)
    assert "start with a new server" not in text(result)
