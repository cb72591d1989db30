"""The project's code finds modules where the tests find them, before installed packages."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from projects import Library

SEED = """
def countries(connection):
    connection.exec_driver_sql("INSERT INTO author VALUES (1, 'Ada')")
"""

TEST = """
from sqlalchemy import text

async def test_rows(db_session):
    assert (await db_session.execute(text("SELECT name FROM author"))).scalars().all() == ["Ada"]
"""


@pytest.fixture
def kept(embedded_project: Library) -> Library:
    """A project without the example's tests, which need no seed."""
    (embedded_project.folder / "test_library.py").unlink()
    return embedded_project


@pytest.fixture
def wheel(tmp_path: Path) -> dict[str, str]:
    """The variables of a run for which a wheel with packages `tests` and `shelves` is installed.

    Its folder is a second one of installed packages, behind the environment's own.
    """
    folder, site = tmp_path / "start", tmp_path / "packages"
    folder.mkdir()
    built = tmp_path / "other-1.0-py3-none-any.whl"
    with zipfile.ZipFile(built, "w") as archive:
        archive.writestr("tests/__init__.py", "")
        archive.writestr("tests/test_other.py", "")
        archive.writestr("shelves.py", "NAME = 'of the wheel'\n")
        archive.writestr("other-1.0.dist-info/METADATA", "Name: other\nVersion: 1.0\n")
    zipfile.ZipFile(built).extractall(site)
    (folder / "sitecustomize.py").write_text(f"import site\nsite.addsitedir({str(site)!r})\n")
    # As the command `pytest`: `python -m pytest` puts the current folder on the path.
    return {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}


@pytest.mark.parametrize("package", [True, False], ids=["a package", "a folder"])
@pytest.mark.parametrize("mode", ["prepend", "importlib"])
def test_a_seed_in_tests_is_the_projects_own(
    kept: Library, wheel: dict[str, str], mode: str, package: bool
) -> None:
    """Whether `tests` has an `__init__.py` or not, and whichever way pytest imports tests."""
    kept.write("tests/seed.py", SEED)
    kept.write("tests/test_rows.py", TEST)
    if package:
        kept.write("tests/__init__.py", "")
    kept.configure("warmstack_seed = tests.seed:countries")

    result = kept.run("--reuse-containers", f"--import-mode={mode}", "tests", **wheel)

    result.assert_outcomes(passed=1)


def test_warmstack_up_finds_the_seed_that_the_tests_find(
    kept: Library, wheel: dict[str, str]
) -> None:
    """It collects no test, so that pytest has put nothing on the path."""
    kept.write("tests/seed.py", SEED)
    kept.write("tests/__init__.py", "")
    kept.configure("warmstack_seed = tests.seed:countries")

    result = kept.warmstack("up", **wheel)

    assert result.ret == 0
    result.stdout.fnmatch_lines(["warmstack: template of *, seed tests.seed:countries: *"])


def test_a_folder_of_pythonpath_comes_first(kept: Library, wheel: dict[str, str]) -> None:
    """A module of it that a package has, too, is the same one for migrations and tests."""
    kept.write("src/shelves.py", "NAME = 'Ada'\n")
    kept.write("seeds.py", "import shelves\n" + SEED.replace("'Ada'", "'\" + shelves.NAME + \"'"))
    kept.write("test_rows.py", "import shelves\n" + TEST.replace('"Ada"', "shelves.NAME"))
    kept.configure("pythonpath = src", "warmstack_seed = seeds:countries")

    result = kept.run("--reuse-containers", "test_rows.py", **wheel)

    result.assert_outcomes(passed=1)


def test_a_folder_of_the_project_does_not_hide_alembic_from_the_plugin(kept: Library) -> None:
    """Scripts may lie in a package `alembic`; a seed that is asked first imports no Alembic."""
    kept.write("test_rows.py", TEST)
    kept.run("--reuse-containers", "test_rows.py").assert_outcomes(failed=1)  # There is no row.
    kept.write("alembic/__init__.py", "")
    kept.write("seeds.py", SEED)
    kept.configure("warmstack_seed = seeds:countries", "warmstack_schema = models:METADATA")
    kept.write(
        "models.py",
        "from sqlalchemy import Column, Integer, MetaData, Table\n"
        "METADATA = MetaData()\nTable('shelf', METADATA, Column('id', Integer))\n",
    )

    result = kept.run("--reuse-containers", "test_rows.py")

    result.assert_outcomes(passed=1)


def test_a_module_that_is_not_found_is_told_with_the_folders_that_were_looked_in(
    kept: Library, wheel: dict[str, str]
) -> None:
    """Of a package that is there, the folder that it lies in: it may be another one."""
    kept.write("tests/seed.py", SEED)
    kept.write("test_rows.py", TEST)
    lines = {
        "shelves.seed:fill": ["No module named 'shelves.seed'", "in shelves: */shelves.py"],
        "tests.absent:fill": ["No module named 'tests.absent'", "in tests: */packages/tests"],
        "absent:fill": ["No module named 'absent'", f"Looked for it in: *{kept.folder}*"],
    }
    for line, words in lines.items():
        result = kept.run("--reuse-containers", "-o", f"warmstack_seed={line}", **wheel)

        result.assert_outcomes(errors=1)
        result.stdout.fnmatch_lines([f"*{each}*" for each in words])
