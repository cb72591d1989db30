"""Repositories with several Alembic configurations, and runs that start in unusual places."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import pytest

from projects import Library, until

BASE: Final = Path(__file__).parents[1] / "cases" / "base"
REUSE: Final = "--reuse-containers"

REVISION: Final = """
from alembic import op

revision = "{name}1"
down_revision = None


def upgrade():
    op.execute("CREATE TABLE {name} (id serial PRIMARY KEY)")
"""

TEST: Final = """
import pytest
from sqlalchemy import text

TABLES = text("SELECT string_agg(tablename, ' ' ORDER BY 1) FROM pg_tables"
              " WHERE schemaname = 'public' AND tablename != 'alembic_version'")


async def tables(session, name):
    assert (await session.execute(TABLES)).scalar() == "{name}"
    assert (await session.execute(text("SELECT count(*) FROM {name}"))).scalar() == 0


async def test_clone(db_session):
    await tables(db_session, "{name}")


@pytest.mark.warmstack_isolation("rollback")
@pytest.mark.parametrize("number", [1, 2])
async def test_rollback(db_session, number):
    await tables(db_session, "{name}")
    await db_session.execute(text("INSERT INTO {name} DEFAULT VALUES"))
    await db_session.commit()


@pytest.mark.warmstack_isolation("class")
class TestClass:
    async def test_class(self, db_session):
        await tables(db_session, "{name}")
"""


def service(library: Library, folder: str, name: str) -> None:
    """Write a service in *folder*, whose one table is called *name*, with its tests."""
    place = library.folder / folder
    shutil.copytree(BASE, place, dirs_exist_ok=True)
    (place / "pytest.ini").unlink()
    (place / "migrations/versions/0001_customers.py").unlink()
    library.write(f"{folder}/migrations/versions/0001.py", REVISION.format(name=name))
    # As an application does: by a module beside alembic.ini, and a file beside it.
    library.write(f"{folder}/own.py", f"NAME = {name!r}\n")
    library.write(f"{folder}/own.txt", name)
    library.edit(
        f"{folder}/migrations/env.py",
        "from alembic import context\n",
        "import own\nfrom alembic import context\n\n"
        f"assert own.NAME == open('own.txt').read() == {name!r}\n",
    )
    library.write(f"{folder}/tests/test_{name}.py", TEST.replace("{name}", name))


@pytest.fixture
def repo(embedded_project: Library) -> Library:
    """A repository of two services, with nothing of Alembic at its root."""
    (embedded_project.folder / "alembic.ini").unlink()
    shutil.rmtree(embedded_project.folder / "migrations")
    (embedded_project.folder / "test_library.py").unlink()
    service(embedded_project, "services/users", "users")
    service(embedded_project, "services/orders", "orders")
    return embedded_project


def templates(result: pytest.RunResult) -> list[str]:
    """Return what the header says of templates, without times."""
    lines = [each for each in result.outlines if each.startswith("warmstack: template")]
    return sorted(each.removeprefix("warmstack: ").partition(" in ")[0] for each in lines)


@pytest.mark.parametrize("arguments", [[], ["-n2"]], ids=["one process", "xdist"])
def test_each_service_has_its_own_template_in_one_run(repo: Library, arguments: list[str]) -> None:
    """Whatever keeps the tests apart; the second run finds both."""
    for state in ("built", "found"):
        result = repo.run(REUSE, *arguments, "services")

        result.assert_outcomes(passed=8)
        assert templates(result) == [
            f"template of 1 revision, services/{name}/alembic.ini: {state}"
            for name in ("orders", "users")
        ]
    until(lambda: not repo.databases("u"), "all used clones are dropped", seconds=15)
    assert len(repo.databases("t")) == 2


def test_a_run_of_one_service_needs_no_other(repo: Library) -> None:
    """Its template is named by what it holds alone; the other's was not built."""
    result = repo.run(REUSE, "services/users")

    result.assert_outcomes(passed=4)
    assert templates(result) == ["template of 1 revision: built"]
    assert len(repo.databases("t")) == 1


def test_the_stock_and_the_templates_of_both_stay(repo: Library) -> None:
    """Also where no more than one template is kept: those in use count in any case."""
    repo.configure("warmstack_keep_templates = 1", "warmstack_clones_ahead = 2")
    for _ in range(2):
        repo.run(REUSE, "services").assert_outcomes(passed=8)

    assert len(repo.databases("t")) == 2
    until(lambda: len(repo.databases("r")) == 4, "two clones of each stand ready", seconds=15)


def test_an_edit_of_one_service_builds_that_one_and_says_why(repo: Library) -> None:
    """The other service's template says nothing about it."""
    repo.run(REUSE, "services").assert_outcomes(passed=8)
    path = "services/users/migrations/versions/0001.py"
    repo.edit(path, "serial PRIMARY KEY)", "serial PRIMARY KEY, name text)")

    result = repo.run(REUSE, "services")

    result.assert_outcomes(passed=8)
    lines = [each for each in result.outlines if each.startswith("warmstack: template")]
    assert ["(0001.py changed)" in each for each in sorted(lines)] == [False, True]


def test_the_child_of_an_edited_service_starts_while_modules_are_imported(repo: Library) -> None:
    """Although the tests of the other service, whose template is there, come first."""
    repo.run(REUSE, "services").assert_outcomes(passed=8)
    path, mark = "services/users/migrations/versions/0001.py", repo.folder / "imported"
    repo.edit(path, "def upgrade", f"open({str(mark)!r}, 'w').close()\n\n\ndef upgrade")
    repo.write(
        "services/orders/tests/test_waits.py",
        "import time\nfrom pathlib import Path\n\nend = time.monotonic() + 30\n"
        f"while not Path({str(mark)!r}).exists():\n"
        "    assert time.monotonic() < end, 'no child has imported the revision'\n"
        "    time.sleep(0.01)\n",
    )

    result = repo.run(REUSE, "services")

    result.assert_outcomes(passed=8)
    assert [each.rpartition(": ")[2] for each in templates(result)] == ["found", "rebuilt"]


def test_a_failed_test_keeps_the_database_of_its_own_service(repo: Library) -> None:
    """With the table that its migrations made."""
    repo.write(
        "services/orders/tests/test_failing.py", "async def test_fails(db_session):\n    assert 0\n"
    )

    result = repo.run(REUSE, "services")

    result.assert_outcomes(passed=8, failed=1)
    (name,) = repo.databases("k")
    assert [
        row[0]
        for row in repo.sql(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1", database=name
        )
    ] == ["alembic_version", "orders"]


def test_warmstack_up_makes_all_that_it_can_find(repo: Library) -> None:
    """It is called at the root, where no test says which it needs."""
    up = repo.warmstack("up")

    assert up.ret == 0
    assert templates(up) == [
        f"template of 1 revision, services/{name}/alembic.ini: built"
        for name in ("orders", "users")
    ]
    result = repo.run(REUSE, "services")
    assert [each.rpartition(" ")[2] for each in templates(result)] == ["found", "found"]
    status = repo.warmstack("status")
    assert status.ret == 0
    status.stdout.fnmatch_lines(["*1 revision*", "*1 revision*"])


def test_a_schema_and_a_seed_apply_to_all(repo: Library) -> None:
    """They are lines of the settings, which all services share."""
    repo.write("schema.sql", "CREATE SCHEMA extra; CREATE TABLE extra.marks (id int);\n")
    repo.write("seed.sql", "INSERT INTO extra.marks VALUES (1);\n")
    repo.configure("warmstack_schema = schema.sql", "warmstack_seed = seed.sql")

    result = repo.run(REUSE, "services")

    result.assert_outcomes(passed=8)
    assert all("schema schema.sql, 1 revision, seed seed.sql" in each for each in templates(result))
    assert len(templates(result)) == 2


# Where none is found


def test_tests_without_one_stop_the_run_where_there_are_some_below(repo: Library) -> None:
    """Before a server is started; the error has the paths, and the line to write."""
    repo.write("tests/test_both.py", "def test_both(db_url):\n    pass\n")

    result = repo.run(REUSE)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [
            "ERROR: Could not find an Alembic configuration for the tests that use a database.",
            "Why: *elsewhere there is services/orders/alembic.ini, services/users/alembic.ini",
            "*choose one for all tests: warmstack_alembic = services/orders/alembic.ini",
            "*warmstack_alembic = none",
        ]
    )
    assert repo.servers() == []


def test_one_of_another_name_is_found_and_said_in_the_syntax_of_the_file(repo: Library) -> None:
    """As `alembic -c alembic_prod.ini` needs it; pytest.toml takes texts in quotes only."""
    for name in ("orders", "users"):
        (repo.folder / f"services/{name}/alembic.ini").unlink()
    repo.write("conf/alembic_prod.ini", "[alembic]\nscript_location = services/users/migrations\n")
    repo.write("tests/test_both.py", "def test_both(db_url):\n    pass\n")
    repo.write("pytest.toml", "[pytest]\n")

    result = repo.run(REUSE, "-c", "pytest.toml", "tests")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [
            "Why: *elsewhere there is conf/alembic_prod.ini",
            '*choose it: warmstack_alembic = "conf/alembic_prod.ini"',
            '*warmstack_alembic = "none"',
        ]
    )


def test_workers_of_xdist_say_it_in_their_tests(repo: Library) -> None:
    """They have no terminal, and can't end the run before it begins."""
    repo.write("tests/test_both.py", "def test_both(db_url):\n    pass\n\ndef test_unit(): pass\n")

    result = repo.run(REUSE, "-n2", "tests")

    result.assert_outcomes(errors=1, passed=1)
    result.stdout.fnmatch_lines(["Could not find an Alembic configuration for the tests*"])


@pytest.mark.parametrize(
    ("line", "passes"),
    [
        ("warmstack_alembic = none", True),
        ("warmstack_alembic = services/users/alembic.ini", True),
        ("warmstack_schema = schema.sql", True),
        ("warmstack_seed =", False),
    ],
)
def test_the_lines_of_the_error_mend_it(repo: Library, line: str, passes: bool) -> None:
    """The one that is named is used as `alembic` in its own folder uses it."""
    repo.write("schema.sql", "CREATE TABLE t (id int);\n")
    repo.write("tests/test_both.py", "def test_both(db_url):\n    pass\n")
    repo.configure(line)
    if "users" in line:
        repo.write("own.txt", "users")  # Read by the name that `alembic -c` at the root gives it.

    result = repo.run(REUSE, "tests", "-q")

    assert (result.ret == 0) is passes
    result.stdout.no_fnmatch_line("*the databases are empty*")


def test_tests_that_ask_for_no_database_are_not_stopped(repo: Library) -> None:
    """Nor those that use the server and make their databases themselves."""
    repo.write(
        "tests/test_unit.py",
        "def test_unit(redis_url, postgres_container):\n    assert postgres_container.port\n",
    )

    for _ in range(2):
        result = repo.run(REUSE, "tests", "-q")

        result.assert_outcomes(passed=1)
        result.stdout.no_fnmatch_line("*the databases are empty*")
        shutil.rmtree(repo.folder / "services", ignore_errors=True)


# Odd places


@pytest.mark.parametrize("configured", ["app", "root", "nowhere"])
def test_a_root_that_an_editor_gives_hides_no_migrations(repo: Library, configured: str) -> None:
    """`pytest --rootdir REPO tests/test_orm.py`, called in app."""
    service(repo, "app", "books")
    for name in ("services/users", "services/orders"):
        shutil.rmtree(repo.folder / name)
    text = (repo.folder / "pytest.ini").read_text()
    (repo.folder / "pytest.ini").unlink()
    arguments = ["-o", "asyncio_mode=auto"]
    if configured != "nowhere":
        repo.write("app/pytest.ini" if configured == "app" else "pytest.ini", text)
        arguments = []
    arguments += ["--warmstack-runtime=embedded", "--rootdir", str(repo.folder)]

    result = repo.start(REUSE, *arguments, "tests/test_books.py", below="app").wait()

    result.assert_outcomes(passed=4)


def test_the_file_that_pytest_uses_may_lie_elsewhere(repo: Library) -> None:
    """Beside it, too, is a configuration looked for: it is the project's."""
    service(repo, "app", "books")
    repo.write("app/pytest.ini", (repo.folder / "pytest.ini").read_text())
    (repo.folder / "app/tests/test_books.py").rename(repo.folder / "test_books.py")
    for name in ("services/users", "services/orders"):
        shutil.rmtree(repo.folder / name)

    result = repo.run(REUSE, "-c", "app/pytest.ini", "--rootdir", ".", "test_books.py")

    result.assert_outcomes(passed=4)


def test_a_relative_script_location_of_a_named_file_may_begin_at_its_folder(repo: Library) -> None:
    """As older templates of Alembic write it: for the folder in which `alembic` is called."""
    repo.edit("services/users/alembic.ini", "%(here)s/migrations", "migrations")
    repo.configure("warmstack_alembic = services/users/alembic.ini")

    result = repo.run(REUSE, "services/users")

    result.assert_outcomes(passed=4)
