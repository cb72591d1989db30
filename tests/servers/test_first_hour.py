"""A new user: an application with settings at import, stock asynchronous Alembic, FastAPI, streams.

The tests do only what the messages say.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from projects import Library

ORDERS: Final = Path(__file__).parents[1] / "examples" / "orders"


def application(project: Library) -> None:
    """Lay down the application in place of the library, with what `alembic init` makes."""
    shutil.rmtree(project.folder / "migrations")
    for name in ("alembic.ini", "test_library.py"):
        (project.folder / name).unlink()
    command = [sys.executable, "-m", "alembic", "init", "-t", "async", "migrations"]
    subprocess.run(command, cwd=project.folder, check=True, stdout=subprocess.DEVNULL)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ORDERS, project.folder, dirs_exist_ok=True, ignore=ignored)
    # As most projects do, instead of writing the URL into a file.
    project.edit(
        "migrations/env.py",
        "config = context.config\n",
        "config = context.config\n\n"
        "from app import settings\n\n"
        'config.set_main_option("sqlalchemy.url", settings.DATABASE_URL)\n',
    )


def test_only_what_the_messages_say_is_written(project: Library) -> None:
    """The first run says what is missing, all of it, and the second one passes; so does a third."""
    application(project)
    runtime = [line for line in project.lines("pytest.ini") if "=" in line]

    first = project.run()

    assert first.parseoutcomes() == {"errors": 1}
    said = first.outlines
    head = next(place for place, each in enumerate(said) if each.endswith("write in pytest.ini:"))
    project.configure(*said[head + 1 : head + 4])
    assert [line for line in project.lines("pytest.ini") if line not in runtime][-3:] == [
        "warmstack_env =",
        "    DATABASE_URL={db_url}",
        "    REDIS_URL={redis_url}",
    ]
    for _ in range(2):
        project.run("--reuse-containers").assert_outcomes(passed=2)


def test_a_conftest_file_that_imports_the_application_gets_the_same_lines(
    embedded_project: Library,
) -> None:
    """It is imported before pytest has any report to write to."""
    project = embedded_project
    application(project)
    project.write("conftest.py", "from app.main import app\n")

    result = project.run()

    assert result.ret == 4
    assert "    REDIS_URL={redis_url}" in result.errlines
    assert "    DATABASE_URL={db_url}" in result.errlines


def test_what_else_an_application_misses_is_not_commented_on(embedded_project: Library) -> None:
    """A key of another service has nothing to do with databases."""
    project = embedded_project
    project.write("test_more.py", 'import os\n\nKEY = os.environ["STRIPE_KEY"]\n')

    result = project.run("test_more.py")

    assert result.parseoutcomes() == {"errors": 1}
    result.stdout.no_fnmatch_line("*conftest.py*")
