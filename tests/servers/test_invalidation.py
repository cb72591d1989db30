"""What happens to a template after a change: it is found, extended or rebuilt.

One embedded PostgreSQL serves the whole file, and keeps templates of the unchanged project.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from migration_projects import ENV, INI, VERSIONS, Project, Shelf, promised
from projects import Bench, keeping, until
from pytest_warmstack.options import RuntimeName, Settings
from pytest_warmstack.postgres.retention import Retention
from pytest_warmstack.postgres.template import dependencies, templates
from pytest_warmstack.postgres.template.errors import TemplateFailed

pytestmark = pytest.mark.parametrize("runtime", [RuntimeName.EMBEDDED], indirect=True)

Change = Callable[[Project], object]

LOGGING: Final = "\n[logger_root]\nlevel = WARNING\n"

COLOUR: Final = (
    "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET shop.colour TO red',"
    " current_database()); END $$"
)


@pytest.fixture(scope="module")
def shelf(
    standing: Bench, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Shelf, Project]]:
    """A server with the templates of the project as it is before any change."""
    shelf = Shelf(standing.ensure(standing.postgres), standing.postgres)
    project = shop(Path(os.path.realpath(tmp_path_factory.mktemp("original"))))
    with pytest.MonkeyPatch.context() as patch:
        # Python takes a compiled file for current when it has the second and the size right.
        patch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        shelf.ensure(project)
        shelf.remember()
        yield shelf, project
    standing.leave()


@pytest.fixture
def kept(shelf: tuple[Shelf, Project]) -> Shelf:
    """The same server, with the templates of the original project and no others."""
    shelf[0].reset()
    return shelf[0]


@pytest.fixture
def project(shelf: tuple[Shelf, Project], tmp_path: Path) -> Project:
    """A project as the original one."""
    return shelf[1].copied_to(Path(os.path.realpath(tmp_path)) / "shop")


def shop(folder: Path) -> Project:
    """Write the project that the changes are made to: five revisions and what they read."""
    project = Project(folder)
    project.write("alembic.ini", INI + LOGGING)
    project.write(
        "migrations/env.py",
        ENV.replace("from alembic import", "import models\nfrom alembic import").replace(
            "connection=connection", "connection=connection, target_metadata=models.metadata"
        ),
    )
    project.write("models.py", "from sqlalchemy import MetaData\n\nmetadata = MetaData()\n")
    project.write("helpers.py", 'from more.deep import LENGTH\n\nKIND = f"varchar({LENGTH})"\n')
    project.write("more/deep.py", "LENGTH = 10\n")
    project.write("data/rows.sql", "INSERT INTO t0004 VALUES (1)")
    project.write("rules/prices.txt", "1\n")
    project.write("schema.sql", "CREATE TABLE early (a integer);\n")
    project.write("seed.sql", "INSERT INTO t0001 VALUES (1);\n")
    project.write("amounts.py", "AMOUNT = 7\n")
    project.write(
        "seeds.py",
        "from sqlalchemy import text\n\nfrom amounts import AMOUNT\n\n\n"
        "async def sow(connection):\n"
        '    await connection.execute(text(f"INSERT INTO t0002 VALUES ({AMOUNT})"))\n',
    )
    project.revise("0001", None, name="0001_one")
    project.revise("0002", "0001", f'op.execute("{COLOUR}")', name="0002_two")
    project.revise(
        "0003",
        "0002",
        'op.execute(f"ALTER TABLE t0003 ADD COLUMN b {helpers.KIND}")',
        imports=["import helpers"],
        name="0003_three",
    )
    project.revise(
        "0004",
        "0003",
        'data = Path(__file__).parents[2] / "data"',
        'op.execute(data.joinpath("rows.sql").read_text())',
        'op.execute("CREATE TABLE listed (name text)")',
        "for each in sorted(data.iterdir()):",
        "    op.execute(f\"INSERT INTO listed VALUES ('{each.name}')\")",
        name="0004_four",
    )
    project.revise("0005", "0004", name="0005_five")
    return project


ONE, TWO, THREE, FOUR, FIVE = (
    f"{VERSIONS}/{name}.py"
    for name in ("0001_one", "0002_two", "0003_three", "0004_four", "0005_five")
)


class Step(NamedTuple):
    """A change, and what the header says of the template that the next run gets."""

    change: Change
    origin: str
    how: str = ""
    why: str = ""


def found(change: Change) -> Step:
    """Expect that nothing is built."""
    return Step(change, "found")


def rebuilt(change: Change, why: str) -> Step:
    """Expect that everything is built."""
    return Step(change, "rebuilt", "", why)


def extended(change: Change, how: str, why: str = "") -> Step:
    """Expect that a template is copied, and what is missing is built on it."""
    return Step(change, "extended", how, why)


def together(*changes: Change) -> Change:
    """Return a change of several."""

    def change(project: Project) -> None:
        for each in changes:
            each(project)

    return change


def nothing(_project: Project) -> None:
    """Change nothing."""


def touched(name: str) -> Change:
    """Return a change of a file's time."""
    return lambda project: os.utime(project.folder / name)


def ahead(name: str) -> Change:
    """Return a change of a file's time to one that is yet to come, as another machine's clock."""
    later = time.time() + 3600
    return lambda project: os.utime(project.folder / name, (later, later))


def written(name: str, text: str = "") -> Change:
    """Return a change that writes a whole file."""
    return lambda project: project.write(name, text)


def appended(name: str, text: str) -> Change:
    """Return a change that adds to the end of a file."""
    return lambda project: project.write(name, (project.folder / name).read_text() + text)


def edited(name: str, old: str, new: str) -> Change:
    """Return a change of a few words of a file."""
    return lambda project: project.edit(name, old, new)


def removed(*names: str) -> Change:
    """Return a change that removes files."""
    return lambda project: [project.remove(name) for name in names]


def renamed(name: str, new: str) -> Change:
    """Return a change of a file's name."""
    return lambda project: project.rename(name, new)


def linked(name: str, to: str) -> Change:
    """Return a change of where a link leads."""

    def change(project: Project) -> None:
        (project.folder / name).unlink(missing_ok=True)
        (project.folder / name).symlink_to(project.folder / to)

    return change


def revised(id: str, after: str | tuple[str, ...] | None, *body: str, name: str = "") -> Change:
    """Return a change that adds a revision."""
    return lambda project: project.revise(id, after, *body, name=name)


def with_options(**options: Any) -> Change:
    """Return a change of the settings."""
    return lambda project: project.options.update(options)


def column(number: int) -> str:
    """Return a line of a revision, different for each *number*."""
    return f'    op.execute("ALTER TABLE history ADD COLUMN c{number} integer")\n'


def on_a_branch(project: Project) -> None:
    """Change the files as a switch to another branch does."""
    project.edit(THREE, "(a integer)", "(a bigint)")
    project.revise("0006", "0005")


def on_main(project: Project) -> None:
    """Change them back."""
    project.edit(THREE, "(a bigint)", "(a integer)")
    project.remove(f"{VERSIONS}/0006.py")


NEW_BASE: Final = (
    "warmstack_depends_ignore, or the version of PostgreSQL or pytest-warmstack, changed"
)
NEW_SETTINGS: Final = "warmstack_alembic, its section or arguments, or warmstack_env changed"

PYPROJECT: Final = '[project]\nname = "shop"\n\n[tool.alembic]\nsize = 1\n'

PLACES: Final = """\
from alembic.config import Config


def make():
    config = Config()
    config.set_main_option("script_location", "migrations")
    return config
"""

CASES: Final[dict[str, list[Step]]] = {
    "nothing": [found(nothing)],
    "the time of a revision": [found(touched(THREE))],
    "the time of a file that is read": [found(touched("data/rows.sql"))],
    # What all revisions depend on.
    "env.py": [
        rebuilt(appended("migrations/env.py", "# edited\n"), "env.py changed"),
        rebuilt(appended("migrations/env.py", "# again\n"), "env.py changed"),
    ],
    "what only env.py imports": [found(edited("models.py", "MetaData()", 'MetaData("other")'))],
    "what only env.py imports and lies beside it": [
        rebuilt(
            together(
                written("migrations/parts.py"),
                edited(
                    "migrations/env.py",
                    "import models\n",
                    "import models\nimport migrations.parts\n",
                ),
            ),
            "env.py changed",
        ),
        rebuilt(written("migrations/parts.py", "# edited\n"), "parts.py changed"),
    ],
    "the template for new revisions": [found(written("migrations/script.py.mako", "${up}\n"))],
    "the logging in alembic.ini": [found(edited("alembic.ini", "WARNING", "INFO"))],
    "a comment in alembic.ini": [found(appended("alembic.ini", "# edited\n"))],
    "the URL in alembic.ini": [found(edited("alembic.ini", "user:secret", "me:secret"))],
    "an option in alembic.ini": [
        rebuilt(
            edited("alembic.ini", "[alembic]\n", "[alembic]\nsize = 3\n"), "alembic.ini changed"
        ),
        found(edited("alembic.ini", "[alembic]\nsize = 3\n", "[alembic]\n")),
    ],
    "pyproject.toml beside alembic.ini": [
        found(written("pyproject.toml", PYPROJECT.partition("[tool.alembic]")[0])),
        rebuilt(written("pyproject.toml", PYPROJECT), NEW_SETTINGS),
        found(edited("pyproject.toml", 'name = "shop"', 'name = "store"')),
        rebuilt(edited("pyproject.toml", "size = 1", "size = 2"), "pyproject.toml changed"),
    ],
    "the function that gives the configuration": [
        rebuilt(
            together(written("places.py", PLACES), with_options(alembic="places:make")),
            NEW_SETTINGS,
        ),
        rebuilt(appended("places.py", "# edited\n"), "places.py changed"),
        extended(revised("0006", "0005"), "by 1 revision from 5"),
    ],
    "the environment of the migrations": [
        rebuilt(with_options(env=("SHOP=1",)), NEW_SETTINGS),
        found(with_options(env=())),
    ],
    "the arguments of env.py": [
        rebuilt(with_options(alembic_x=("tenant=a",)), NEW_SETTINGS),
        found(with_options(alembic_x=())),
    ],
    # What a revision depends on.
    "a helper, twice": [
        rebuilt(
            edited("helpers.py", "varchar", "char"),
            "helpers.py changed (imported by 0003_three.py)",
        ),
        extended(
            edited("helpers.py", "char(", "varchar(2"),
            "by 3 revisions from 2",
            "helpers.py changed (imported by 0003_three.py)",
        ),
    ],
    "a helper's helper, twice": [
        rebuilt(edited("more/deep.py", "10", "20"), "deep.py changed (imported by 0003_three.py)"),
        extended(
            edited("more/deep.py", "20", "30"),
            "by 3 revisions from 2",
            "deep.py changed (imported by 0003_three.py)",
        ),
    ],
    "a helper is gone": [
        rebuilt(
            together(
                removed("helpers.py"),
                edited(THREE, "import helpers\n", ""),
                edited(THREE, "{helpers.KIND}", "text"),
            ),
            "0003_three.py changed",
        ),
    ],
    "a data file, twice": [
        rebuilt(edited("data/rows.sql", "(1)", "(2)"), "rows.sql changed (used by 0004_four.py)"),
        extended(
            edited("data/rows.sql", "(2)", "(3)"),
            "by 2 revisions from 3",
            "rows.sql changed (used by 0004_four.py)",
        ),
    ],
    "a data file that an older template's revision has read": [
        extended(revised("0006", "0005"), "by 1 revision from 5"),
        rebuilt(edited("data/rows.sql", "(1)", "(2)"), "rows.sql changed (used by 0004_four.py)"),
        extended(revised("0007", "0006"), "by 1 revision from 6"),
        extended(
            edited("data/rows.sql", "(2)", "(3)"),
            "by 4 revisions from 3",
            "rows.sql changed (used by 0004_four.py)",
        ),
    ],
    "a new file in a folder that is listed": [
        rebuilt(written("data/more.sql", "SELECT 1"), "data changed (used by 0004_four.py)"),
        found(removed("data/more.sql")),
    ],
    "a module that was not there to be imported": [
        extended(
            revised(
                "0006",
                "0005",
                "try:",
                "    from local_kinds import KIND",
                "except ImportError:",
                '    KIND = "integer"',
                'op.execute(f"CREATE TABLE late (a {KIND})")',
            ),
            "by 1 revision from 5",
        ),
        extended(
            written("local_kinds.py", "KIND = 'bigint'\n"),
            "by 1 revision from 5",
            "local_kinds.py is new (imported by 0006.py)",
        ),
    ],
    "a file that was not there to be read": [
        extended(
            revised(
                "0006",
                "0005",
                "try:",
                '    op.execute(open("more/late.sql").read())',
                "except FileNotFoundError:",
                "    pass",
            ),
            "by 1 revision from 5",
        ),
        extended(
            written("more/late.sql", "CREATE TABLE late (a integer)"),
            "by 1 revision from 5",
            "late.sql is new (used by 0006.py)",
        ),
        found(removed("more/late.sql")),
    ],
    "a file that was looked for": [
        extended(
            revised(
                "0006",
                "0005",
                'path = Path("more/late.sql")',
                "if path.exists():",
                "    op.execute(path.read_text())",
            ),
            "by 1 revision from 5",
        ),
        extended(
            written("more/late.sql", "CREATE TABLE late (a integer)"),
            "by 1 revision from 5",
            "late.sql is new (used by 0006.py)",
        ),
    ],
    "where a link leads": [
        extended(
            together(
                written("sql/one.sql", "CREATE TABLE late (a integer)"),
                written("sql/two.sql", "CREATE TABLE later (a integer)"),
                linked("more/link.sql", "sql/one.sql"),
                revised("0006", "0005", 'op.execute(Path("more/link.sql").read_text())'),
            ),
            "by 1 revision from 5",
        ),
        extended(
            linked("more/link.sql", "sql/two.sql"),
            "by 1 revision from 5",
            "link.sql changed (used by 0006.py)",
        ),
    ],
    "a resource of a package": [
        extended(
            together(
                written("sql/__init__.py"),
                written("sql/one.sql", "CREATE TABLE late (a integer)"),
                revised(
                    "0006",
                    "0005",
                    "from importlib.resources import files",
                    'op.execute(files("sql").joinpath("one.sql").read_text())',
                ),
            ),
            "by 1 revision from 5",
        ),
        extended(
            edited("sql/one.sql", "integer", "bigint"),
            "by 1 revision from 5",
            "one.sql changed (used by 0006.py)",
        ),
    ],
    "what pkgutil reads": [
        extended(
            together(
                written("sql/__init__.py"),
                written("sql/one.sql", "CREATE TABLE late (a integer)"),
                revised(
                    "0006",
                    "0005",
                    "import pkgutil",
                    'op.execute(pkgutil.get_data("sql", "one.sql").decode())',
                ),
            ),
            "by 1 revision from 5",
        ),
        extended(
            edited("sql/one.sql", "integer", "bigint"),
            "by 1 revision from 5",
            "one.sql changed (used by 0006.py)",
        ),
    ],
    "a module that a revision runs by its path": [
        extended(
            together(
                written("more/kinds.py", "KIND = 'integer'\n"),
                revised(
                    "0006",
                    "0005",
                    "from importlib.util import module_from_spec, spec_from_file_location",
                    'spec = spec_from_file_location("kinds", "more/kinds.py")',
                    "module = module_from_spec(spec)",
                    "spec.loader.exec_module(module)",
                    'op.execute(f"CREATE TABLE late (a {module.KIND})")',
                ),
            ),
            "by 1 revision from 5",
        ),
        extended(
            edited("more/kinds.py", "integer", "bigint"),
            "by 1 revision from 5",
            "kinds.py changed (imported by 0006.py)",
        ),
    ],
    "a new file in a tree that is searched": [
        extended(
            together(
                written("sql/README"),
                revised(
                    "0006",
                    "0005",
                    'for each in sorted(Path("sql").glob("**/*.sql")):',
                    "    op.execute(each.read_text())",
                ),
            ),
            "by 1 revision from 5",
        ),
        extended(
            written("sql/more/one.sql", "CREATE TABLE late (a integer)"),
            "by 1 revision from 5",
            "sql changed (used by 0006.py)",
        ),
        extended(
            written("sql/more/two.sql", "CREATE TABLE later (a integer)"),
            "by 1 revision from 5",
            "sql/more changed (used by 0006.py)",
        ),
    ],
    # The revisions themselves.
    "a revision appended": [
        extended(revised("0006", "0005"), "by 1 revision from 5"),
        extended(revised("0007", "0006"), "by 1 revision from 6"),
    ],
    "two revisions appended": [
        extended(
            together(revised("0006", "0005"), revised("0007", "0006")), "by 2 revisions from 5"
        ),
    ],
    "the last revision, twice": [
        rebuilt(appended(FIVE, column(1)), "0005_five.py changed"),
        extended(appended(FIVE, column(2)), "by 1 revision from 4", "0005_five.py changed"),
        extended(appended(FIVE, column(3)), "by 1 revision from 4", "0005_five.py changed"),
    ],
    "a revision that was just appended": [
        extended(revised("0006", "0005"), "by 1 revision from 5"),
        extended(
            revised("0006", "0005", column(1).strip()), "by 1 revision from 5", "0006.py changed"
        ),
    ],
    "a revision in the middle, twice": [
        rebuilt(appended(THREE, column(1)), "0003_three.py changed"),
        extended(appended(THREE, column(2)), "by 3 revisions from 2", "0003_three.py changed"),
    ],
    "a revision in the middle, then one before it, then one after it": [
        rebuilt(appended(THREE, column(3)), "0003_three.py changed"),
        rebuilt(appended(TWO, column(2)), "0002_two.py changed"),
        extended(appended(FOUR, column(4)), "by 4 revisions from 1", "0004_four.py changed"),
        extended(appended(FOUR, column(5)), "by 2 revisions from 3", "0004_four.py changed"),
        extended(appended(TWO, column(6)), "by 4 revisions from 1", "0002_two.py changed"),
    ],
    "the first revision": [
        rebuilt(appended(ONE, column(1)), "0001_one.py changed"),
        rebuilt(appended(ONE, column(2)), "0001_one.py changed"),
    ],
    "a comment in a revision": [rebuilt(appended(FOUR, "# edited\n"), "0004_four.py changed")],
    "an edit and its undoing": [
        rebuilt(edited(FOUR, "(a integer)", "(a bigint)"), "0004_four.py changed"),
        found(edited(FOUR, "(a bigint)", "(a integer)")),
    ],
    # The reason is this change, and none that was undone.
    "an edit that is undone, and another one": [
        rebuilt(edited(FOUR, "(a integer)", "(a bigint)"), "0004_four.py changed"),
        extended(
            together(edited(FOUR, "(a bigint)", "(a integer)"), appended(FIVE, column(1))),
            "by 2 revisions from 3",
            "0005_five.py changed",
        ),
    ],
    "an edit of what all depends on, which is undone, and another one": [
        rebuilt(appended("migrations/env.py", "# edited\n"), "env.py changed"),
        rebuilt(
            together(edited("migrations/env.py", "# edited\n", ""), appended(FIVE, column(1))),
            "0005_five.py changed",
        ),
    ],
    "a setting that is undone, and an edit": [
        rebuilt(with_options(env=("SHOP=1",)), NEW_SETTINGS),
        rebuilt(
            together(with_options(env=()), appended("migrations/env.py", "# edited\n")),
            "env.py changed",
        ),
    ],
    "a revision whose time is yet to come": [
        extended(
            together(revised("0006", "0005"), ahead(f"{VERSIONS}/0006.py")), "by 1 revision from 5"
        ),
        extended(
            together(
                edited(f"{VERSIONS}/0006.py", "(a integer)", "(a bigint)"),
                ahead(f"{VERSIONS}/0006.py"),
            ),
            "by 1 revision from 5",
            "0006.py changed",
        ),
    ],
    "a revision's file renamed": [
        found(renamed(THREE, f"{VERSIONS}/2026_three.py")),
        extended(revised("0006", "0005"), "by 1 revision from 5"),
    ],
    "a revision's file renamed and another edited": [
        rebuilt(
            together(renamed(TWO, f"{VERSIONS}/2026_two.py"), appended(FOUR, column(1))),
            "0004_four.py changed",
        ),
        extended(
            together(renamed(ONE, f"{VERSIONS}/2026_one.py"), appended(FOUR, column(2))),
            "by 2 revisions from 3",
            "0004_four.py changed",
        ),
    ],
    "the last revision deleted": [
        rebuilt(removed(FIVE), "0005_five.py is gone"),
    ],
    "an appended revision deleted": [
        extended(revised("0006", "0005"), "by 1 revision from 5"),
        found(removed(f"{VERSIONS}/0006.py")),
    ],
    "the last revision edited, then deleted": [
        rebuilt(appended(FIVE, column(1)), "0005_five.py changed"),
        found(removed(FIVE)),
    ],
    "the last revision replaced": [
        rebuilt(together(removed(FIVE), revised("0005x", "0004")), "0005_five.py is gone"),
        extended(
            together(removed(f"{VERSIONS}/0005x.py"), revised("0005y", "0004")),
            "by 1 revision from 4",
            "0005x.py is gone",
        ),
    ],
    "two revisions in another order": [
        rebuilt(
            together(
                edited(FOUR, "down_revision = '0003'", "down_revision = '0005'"),
                edited(FIVE, "down_revision = '0004'", "down_revision = '0003'"),
            ),
            "0004_four.py changed",
        ),
        found(
            together(
                edited(FOUR, "down_revision = '0005'", "down_revision = '0003'"),
                edited(FIVE, "down_revision = '0003'", "down_revision = '0004'"),
            ),
        ),
    ],
    "all revisions squashed into one": [
        rebuilt(
            together(removed(ONE, TWO, THREE, FOUR, FIVE), revised("0100", None)),
            "0001_one.py is gone",
        ),
        extended(revised("0101", "0100"), "by 1 revision from 1"),
    ],
    "all revisions squashed into one with the id of the last": [
        rebuilt(
            together(
                removed(ONE, TWO, THREE, FOUR),
                edited(FIVE, "down_revision = '0004'", "down_revision = None"),
            ),
            "0001_one.py is gone",
        ),
    ],
    "all revisions removed": [
        rebuilt(removed(ONE, TWO, THREE, FOUR, FIVE), "0001_one.py is gone"),
    ],
    # Alembic orders branches by the names of their files, and applies the last ones first.
    "a branch at the end, and its merge": [
        extended(
            together(revised("0006", "0005"), revised("0006b", "0005")), "by 2 revisions from 5"
        ),
        extended(revised("0007", ("0006", "0006b")), "by 1 revision from 7"),
    ],
    "a branch that Alembic applies last": [
        extended(revised("0006", "0005"), "by 1 revision from 5"),
        extended(revised("0006b", "0005", name="0000"), "by 1 revision from 6"),
        extended(revised("0007", "0006"), "by 1 revision from 7"),
        extended(revised("0008", ("0007", "0006b")), "by 1 revision from 8"),
    ],
    "a branch that Alembic applies first": [
        extended(revised("0006", "0005"), "by 1 revision from 5"),
        extended(revised("0006b", "0005"), "by 1 revision from 6"),
    ],
    "two branches, on which revisions come in turn": [
        extended(
            together(revised("0006", "0005"), revised("0006b", "0005")), "by 2 revisions from 5"
        ),
        extended(revised("0007", "0006"), "by 1 revision from 7"),
        extended(revised("0007b", "0006b"), "by 1 revision from 8"),
        extended(
            revised("0007b", "0006b", column(1).strip()),
            "by 1 revision from 8",
            "0007b.py changed",
        ),
        extended(
            revised("0006", "0005", column(2).strip()), "by 4 revisions from 5", "0006.py changed"
        ),
        # What was edited has moved behind the other branch.
        extended(
            revised("0006", "0005", column(3).strip()), "by 2 revisions from 7", "0006.py changed"
        ),
        extended(revised("0008", ("0007", "0007b")), "by 1 revision from 9"),
        extended(revised("0007c", "0006b"), "by 1 revision from 10"),
    ],
    "a revision that depends on one of another branch, which goes on": [
        extended(
            together(
                revised("1000", None, name="0000"),
                edited(f"{VERSIONS}/0000.py", "depends_on = None", "depends_on = '0003'"),
            ),
            "by 1 revision from 5",
        ),
        extended(revised("0006", "0005"), "by 1 revision from 6"),
        extended(revised("1001", "1000"), "by 1 revision from 7"),
    ],
    "a branch from the middle": [
        extended(revised("0003b", "0002", name="9999"), "by 1 revision from 5"),
        extended(
            edited(f"{VERSIONS}/9999.py", "(a integer)", "(a bigint)"),
            "by 1 revision from 5",
            "9999.py changed",
        ),
        extended(revised("0006", ("0005", "0003b")), "by 1 revision from 6"),
    ],
    "the name of a file, by which Alembic orders branches": [
        extended(
            together(revised("0006", "0005"), revised("0006b", "0005", name="0000")),
            "by 2 revisions from 5",
        ),
        found(renamed(f"{VERSIONS}/0000.py", f"{VERSIONS}/9999.py")),
    ],
    "a second base": [
        extended(revised("1000", None, name="0000"), "by 1 revision from 5"),
        extended(revised("1001", "1000", name="0000b"), "by 1 revision from 6"),
    ],
    "a second base that depends on a revision": [
        extended(
            together(
                revised("1000", None, name="0000"),
                edited(f"{VERSIONS}/0000.py", "depends_on = None", "depends_on = '0003'"),
            ),
            "by 1 revision from 5",
        ),
    ],
    "a second base that depends on the head of the first": [
        extended(
            together(
                revised("1000", None, name="0000"),
                edited(f"{VERSIONS}/0000.py", "depends_on = None", "depends_on = '0005'"),
            ),
            "by 1 revision from 5",
        ),
    ],
    "a revision in between": [
        rebuilt(
            together(
                revised("0002b", "0002"),
                edited(THREE, "down_revision = '0002'", "down_revision = '0002b'"),
            ),
            "0003_three.py changed",
        ),
    ],
    "a text among the revisions": [found(written(f"{VERSIONS}/README", "Read me."))],
    "an __init__.py among the revisions": [found(written(f"{VERSIONS}/__init__.py", ""))],
    "to a branch and back": [
        rebuilt(on_a_branch, "0003_three.py changed"),
        found(on_main),
        found(on_a_branch),
        found(on_main),
    ],
    # The seed.
    "a seed, edited": [
        extended(with_options(seed=("seed.sql",)), "by seed seed.sql from 5 revisions"),
        extended(
            edited("seed.sql", "(1)", "(2)"),
            "by seed seed.sql from 5 revisions",
            "seed.sql changed",
        ),
        found(with_options(seed=())),
    ],
    "a seed, and a revision appended": [
        extended(with_options(seed=("seed.sql",)), "by seed seed.sql from 5 revisions"),
        extended(revised("0006", "0005"), "by 1 revision, seed seed.sql from 5", "0006.py is new"),
        extended(
            edited("seed.sql", "(1)", "(2)"),
            "by seed seed.sql from 6 revisions",
            "seed.sql changed",
        ),
    ],
    "a seed function, edited": [
        extended(with_options(seed=("seeds:sow",)), "by seed seeds:sow from 5 revisions"),
        extended(
            edited("seeds.py", "({AMOUNT})", "({AMOUNT} + 1)"),
            "by seed seeds:sow from 5 revisions",
            "seeds.py changed (imported by seeds:sow)",
        ),
        extended(
            edited("amounts.py", "7", "8"),
            "by seed seeds:sow from 5 revisions",
            "amounts.py changed (imported by seeds:sow)",
        ),
    ],
    "a second seed": [
        extended(with_options(seed=("seed.sql",)), "by seed seed.sql from 5 revisions"),
        extended(
            with_options(seed=("seed.sql", "seeds:sow")),
            "by seed seeds:sow from 5 revisions, seed seed.sql",
        ),
        extended(
            edited("amounts.py", "7", "8"),
            "by seed seeds:sow from 5 revisions, seed seed.sql",
            "amounts.py changed (imported by seeds:sow)",
        ),
        extended(
            edited("seed.sql", "(1)", "(2)"),
            "by 2 seed scripts from 5 revisions",
            "seed.sql changed",
        ),
        extended(
            with_options(seed=("seeds:sow", "seed.sql")),
            "by 2 seed scripts from 5 revisions",
            "seeds:sow now comes before seed.sql",
        ),
        extended(
            with_options(seed=("seeds:sow",)),
            "by seed seeds:sow from 5 revisions",
            "seed.sql is gone",
        ),
    ],
    # The schema.
    "a schema, edited": [
        rebuilt(with_options(schema=("schema.sql",)), "the layer schema was added"),
        rebuilt(edited("schema.sql", "integer", "bigint"), "schema.sql changed"),
        found(with_options(schema=())),
    ],
    # What is declared.
    "a file that is declared": [
        rebuilt(with_options(depends=("rules/*.txt",)), "warmstack_depends changed"),
        rebuilt(
            edited("rules/prices.txt", "1", "2"), "rules/*.txt changed (named in warmstack_depends)"
        ),
        rebuilt(written("rules/more.txt"), "rules/*.txt changed (named in warmstack_depends)"),
        found(removed("rules/more.txt")),
        found(written("rules/more.md")),
    ],
    "a folder that is declared": [
        rebuilt(with_options(depends=("rules",)), "warmstack_depends changed"),
        rebuilt(written("rules/more/deep.md"), "rules changed (named in warmstack_depends)"),
    ],
    "a helper that is to be ignored": [
        rebuilt(with_options(depends_ignore=("helpers.py",), rebuild=True), "--warmstack-rebuild"),
        found(together(with_options(rebuild=False), appended("helpers.py", "# edited\n"))),
        found(appended("more/deep.py", "# edited\n")),
    ],
    "a helper that is to be ignored from now on": [
        rebuilt(with_options(depends_ignore=("helpers.py",)), NEW_BASE),
        found(appended("helpers.py", "# edited\n")),
        # The template of before, which the helper counted for, is the nearest one.
        rebuilt(
            with_options(depends_ignore=()),
            "helpers.py changed (imported by 0003_three.py)",
        ),
        extended(
            appended("helpers.py", "# again\n"),
            "by 3 revisions from 2",
            "helpers.py changed (imported by 0003_three.py)",
        ),
    ],
    "on demand": [
        rebuilt(with_options(rebuild=True), "--warmstack-rebuild"),
        rebuilt(nothing, "--warmstack-rebuild"),
        found(with_options(rebuild=False)),
    ],
    "what the function that gives the configuration imports for other purposes": [
        rebuilt(
            together(
                written("web.py", "import things\n\nSIZE = 1\n"),
                written("things.py"),
                written("names.py", 'TENANT = "a"\nOTHER = 1\n'),
                written(
                    "places.py",
                    "import helpers\nimport models\nimport names\nimport web\n"
                    + PLACES.replace(
                        "    return",
                        '    config.set_main_option("tenant", names.TENANT)\n'
                        '    config.attributes["path"] = Path("notes.txt").read_text()[:1]\n'
                        "    return",
                    ).replace("def make", "from pathlib import Path\n\n\ndef make"),
                ),
                written("notes.txt", "one"),
                with_options(alembic="places:make"),
            ),
            NEW_SETTINGS,
        ),
        found(edited("web.py", "1", "2")),
        found(appended("things.py", "# edited\n")),
        found(edited("names.py", "1", "2")),
        found(edited("notes.txt", "one", "or")),
        extended(revised("0006", "0005"), "by 1 revision from 5"),
        # What the configuration says.
        rebuilt(edited("names.py", '"a"', '"b"'), "the Config that places:make returns changed"),
        rebuilt(edited("notes.txt", "or", "two"), "the Config that places:make returns changed"),
        # What env.py and a revision import as well.
        rebuilt(appended("models.py", "# edited\n"), "models.py changed"),
        rebuilt(
            appended("helpers.py", "# edited\n"), "helpers.py changed (imported by 0003_three.py)"
        ),
    ],
    "a configuration that holds more than values": [
        rebuilt(
            together(
                written("web.py"),
                written(
                    "places.py",
                    "import web\n"
                    + PLACES.replace(
                        "    return", '    config.attributes["web"] = web\n    return'
                    ),
                ),
                with_options(alembic="places:make"),
            ),
            NEW_SETTINGS,
        ),
        rebuilt(appended("web.py", "# edited\n"), "web.py changed"),
    ],
    "what the function that gives the configuration imports": [
        rebuilt(
            together(
                written("places.py", PLACES),
                written("settings.py", "from places import make\n"),
                with_options(alembic="settings:make"),
            ),
            NEW_SETTINGS,
        ),
        rebuilt(appended("places.py", "# edited\n"), "places.py changed"),
    ],
}


def refused(command: list[str], **_options: Any) -> None:
    """Stand for `Popen` where no process may be started."""
    raise AssertionError(f"a process was started: {command}")


OFTEN: Final = frozenset(
    {
        *("nothing", "the time of a revision", "env.py", "a helper, twice", "a revision appended"),
        *("the last revision, twice", "a revision in the middle, twice", "a seed, edited"),
        *("the last revision deleted", "two revisions in another order", "a schema, edited"),
        *("a new file in a folder that is listed", "a branch at the end, and its merge"),
    }
)
"""The cases of every day; the others are slow together."""


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(steps, id=name, marks=() if name in OFTEN else pytest.mark.slow)
        for name, steps in CASES.items()
    ],
)
def test_a_change_costs_what_depends_on_it_and_no_more(
    kept: Shelf, project: Project, monkeypatch: pytest.MonkeyPatch, steps: list[Step]
) -> None:
    """The header tells what was done, and the result is that of a build from nothing."""
    for step in steps:
        step.change(project)
        before = len(kept.templates())

        made = kept.ensure(project)

        assert (made.origin, made.how, made.why) == (step.origin, step.how, step.why)
        count = promised(made)
        assert len(project.taken("ran.log")) == count
        # Where no revision is run, env.py isn't either.
        executed = bool(project.taken("executions.log"))
        assert executed == (made.origin == "rebuilt" or count > 0)
        assert kept.leftovers() == []
        if not project.options.get("rebuild"):
            with monkeypatch.context() as patch:
                patch.setattr(subprocess, "Popen", refused)
                again = kept.ensure(project)
            assert (again.name, again.origin, again.text) == (made.name, "found", made.text)
        # What was rebuilt without a stop on the way is itself a build from nothing.
        if made.origin != "rebuilt" or len(kept.templates()) > before + 1:
            assert kept.dump(made.name) == kept.from_nothing(project)


def test_a_module_among_the_revisions_that_is_none_is_told_by_its_name(
    kept: Shelf, project: Project
) -> None:
    """Alembic refuses it, and so do we, with Alembic's words."""
    project.write(f"{VERSIONS}/notes.py", "NOTES = 1\n")

    with pytest.raises(TemplateFailed, match=r"revision id from filename notes\.py"):
        kept.ensure(project)

    assert kept.leftovers() == []
    project.remove(f"{VERSIONS}/notes.py")
    assert kept.ensure(project).origin == "found"


def test_a_revision_that_fails_leaves_a_template_at_its_parent(
    kept: Shelf, project: Project
) -> None:
    """Nothing half-built stays, and what repairs it begins there."""
    project.write(FOUR, (project.folder / FOUR).read_text() + '    op.execute("SELECT 1 / 0")\n')
    before = len(kept.templates())

    with pytest.raises(TemplateFailed, match="in revision 0004"):
        kept.ensure(project)

    assert kept.leftovers() == []
    assert len(kept.templates()) == before + 1
    assert project.taken("ran.log") == ["0001", "0002", "0003", "0004"]
    project.edit(FOUR, "1 / 0", "1 / 1")
    made = kept.ensure(project)
    assert (made.origin, made.how) == ("extended", "by 2 revisions from 3")
    assert project.taken("ran.log") == ["0004", "0005"]
    assert kept.dump(made.name) == kept.from_nothing(project)


def test_a_seed_that_fails_leaves_the_migrated_template(kept: Shelf, project: Project) -> None:
    """The revisions that went before it need not be run again."""
    project.revise("0006", "0005")
    project.write("seed.sql", "INSERT INTO nowhere VALUES (1);\n")
    project.options["seed"] = ("seed.sql",)

    with pytest.raises(TemplateFailed, match="nowhere"):
        kept.ensure(project)

    assert kept.leftovers() == []
    assert project.taken("ran.log") == ["0006"]
    project.edit("seed.sql", "nowhere", "t0006")
    made = kept.ensure(project)
    assert (made.origin, made.how) == ("extended", "by seed seed.sql from 6 revisions")
    assert project.taken("ran.log") == []


def test_no_process_is_started_for_a_template_that_is_found(
    kept: Shelf, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when files were touched, and when there are a schema and a seed besides Alembic."""
    project.options.update(schema=("schema.sql",), seed=("seed.sql", "seeds:sow"))
    name = kept.ensure(project).name
    for path in project.folder.rglob("*.*"):
        os.utime(path)
    monkeypatch.setattr(subprocess, "Popen", refused)

    made = kept.ensure(project)

    assert (made.name, made.origin) == (name, "found")


FINDER: Final = """
import json, sys
sys.modules.update(dict.fromkeys(["alembic", "sqlalchemy", "mako"]))
sys.path[:0] = sys.argv[1:]
from pathlib import Path
from migration_projects import Project, Shelf
from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.postgres.databases import Databases
from pytest_warmstack.servers.model import Endpoint
told = json.loads(sys.stdin.read())
background = BackgroundLoop()
admin = Databases.connect(Endpoint(**told["endpoint"]), told["mark"],
    background=background, timeout=10)
project = Project(Path(told["folder"]), {"seed": ["seeds:sow"]})
print(Shelf(None, None).ensure(project, admin=admin).origin)
admin.close()
background.close()
"""


def test_a_template_is_found_without_alembic_and_sqlalchemy(kept: Shelf, project: Project) -> None:
    """A process that can import neither of them finds it."""
    project.options["seed"] = ("seeds:sow",)
    kept.ensure(project)
    endpoint = kept.server.endpoint
    told = {
        "endpoint": {"host": endpoint.host, "port": endpoint.port, "password": endpoint.password},
        "mark": kept.server.fingerprint,
        "folder": str(project.folder),
    }

    answer = subprocess.run(
        [sys.executable, "-c", FINDER, *sys.path],
        input=json.dumps(told),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert (answer.stdout, answer.stderr) == ("found\n", "")


def test_a_new_seed_alone_needs_no_alembic(kept: Shelf, project: Project) -> None:
    """The process that runs the seed does not pay for importing it."""
    project.write(
        "seeds.py",
        "import sys\n\n\nasync def sow(connection):\n"
        '    with open("modules.log", "a") as log:\n'
        "        log.write(f\"{'alembic' in sys.modules}\\n\")\n",
    )
    project.options["seed"] = ("seeds:sow",)

    assert kept.ensure(project).origin == "extended"

    assert project.taken("modules.log") == ["False"]
    assert project.taken("executions.log") == []


def test_another_version_of_a_package_costs_what_imports_it(
    kept: Shelf, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A revision that imports it and what follows; all for Alembic's own; nothing for others."""
    project.revise("0006", "0005", imports=["import mako"])
    project.revise("0007", "0006")
    name = kept.ensure(project).name
    project.taken("ran.log")
    installed = dependencies._installed()
    mako, alembic = (importlib.metadata.version(each) for each in ("mako", "alembic"))

    for package, how, why, ran in (
        ("mako", "by 2 revisions from 5", f"mako is 99, was {mako} (used by 0006.py)", 2),
        ("alembic", "", f"alembic is 99, was {alembic}", 7),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(
                dependencies, "_installed", lambda package=package: {**installed, package: "99"}
            )
            made = kept.ensure(project)
        assert (made.how, made.why) == (how, why)
        assert len(project.taken("ran.log")) == ran
    monkeypatch.setattr(dependencies, "_installed", lambda: {**installed, "pytest": "99"})
    assert kept.ensure(project).origin == "found"
    assert name in kept.templates()


def test_a_template_that_was_dropped_by_hand_is_built_again(kept: Shelf, project: Project) -> None:
    """On what is left below it."""
    project.revise("0006", "0005")
    kept.ensure(project)
    project.options["seed"] = ("seed.sql",)
    whole, below = kept.ensure(project).used
    project.taken("ran.log")

    kept.drop(below)
    assert kept.ensure(project).origin == "found"
    kept.drop(whole)
    made = kept.ensure(project)
    assert (made.origin, made.how) == ("extended", "by 1 revision, seed seed.sql from 5")
    assert project.taken("ran.log") == ["0006"]
    kept.drop(made.name)
    made = kept.ensure(project)
    assert (made.origin, made.how) == ("extended", "by seed seed.sql from 6 revisions")
    assert project.taken("ran.log") == []


def test_a_rebuild_is_done_once_in_a_run(kept: Shelf, project: Project) -> None:
    """The other processes of the run, such as xdist's workers, find what one of them built."""
    project.options["rebuild"] = True

    first, second, third = (kept.ensure(project, run=run) for run in ("a", "a", "b"))

    assert [each.origin for each in (first, second, third)] == ["rebuilt", "found", "rebuilt"]
    assert first.name == second.name != third.name


def test_a_server_that_does_not_stay_gets_one_template(kept: Shelf, project: Project) -> None:
    """None is left on the way for builds that won't come."""
    project.options.update(schema=("schema.sql",), seed=("seed.sql",))
    before = len(kept.templates())

    made = kept.ensure(project, keep=False)

    assert made.text == "schema schema.sql, 5 revisions, seed seed.sql"
    assert len(kept.templates()) == before + 1


def test_another_checkout_finds_the_same_template(
    kept: Shelf, project: Project, tmp_path: Path
) -> None:
    """What a template is known by does not say where the project lies."""
    project.revise("0006", "0005")
    name = kept.ensure(project).name

    made = kept.ensure(project.copied_to(Path(os.path.realpath(tmp_path)) / "other"))

    assert (made.name, made.origin) == (name, "found")


def test_two_at_once_build_once(kept: Shelf, project: Project, standing: Bench) -> None:
    """The second one waits, says so, and finds what the first one built."""
    project.revise(
        "0006",
        "0005",
        "import time",
        'Path("migrating").touch()',
        "deadline = time.monotonic() + 60",
        'while not Path("go").exists():',
        "    assert time.monotonic() < deadline",
        "    time.sleep(0.02)",
    )
    admins = [standing.ensure(standing.postgres).client for _ in range(2)]
    told: list[str] = []

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(kept.ensure, project, admin=admins[0])
        until((project.folder / "migrating").exists, "the first one migrates")
        second = pool.submit(kept.ensure, project, admin=admins[1], say=told.append)
        until(lambda: told, "the second one waits")
        (project.folder / "go").touch()

    assert (first.result().origin, second.result().origin) == ("extended", "found")
    assert first.result().name == second.result().name
    assert told[0] == "waiting for another build"
    assert project.taken("ran.log") == ["0006"]


def test_the_templates_that_were_used_last_stay(
    kept: Shelf, project: Project, standing: Bench
) -> None:
    """Not those that were built last; and one that a living run uses stays in any case."""
    mine, others = (standing.ensure(standing.postgres).client for _ in range(2))
    project.options["seed"] = ("seed.sql",)

    def use(number: int, admin: Any) -> templates.Template:
        project.write("seed.sql", f"INSERT INTO t0001 VALUES ({number});\n")
        return kept.ensure(project, admin=admin)

    in_use = use(0, others).name
    names = [use(number, mine).name for number in range(1, 5)]
    assert (use(1, mine).name, use(1, mine).origin) == (names[0], "found")
    mine.close()
    sweeper = standing.ensure(standing.postgres).client

    def sweep() -> set[str]:
        with keeping(sweeper, names[0]) as clone_factory:
            clone_factory.sweep(Retention(templates=2)).result(timeout=30)
        return {str(each) for each in kept.templates() if each not in kept.known}

    assert sweep() == {str(each) for each in (in_use, names[0], names[-1])}
    others.close()
    assert sweep() == {str(each) for each in (names[0], names[-1])}


@pytest.mark.slow
def test_the_state_before_a_day_of_edits_is_found(
    kept: Shelf, project: Project, standing: Bench
) -> None:
    """Of the states of one edit the first stays, and the last ones; no more than a few in all."""
    kept_by_default = Settings()

    def use() -> templates.Template:
        run = standing.ensure(standing.postgres).client
        made = kept.ensure(project, admin=run)
        run.close()
        with keeping(kept.admin, made.name) as clone_factory:
            clone_factory.sweep(
                Retention(
                    templates=kept_by_default.keep_templates,
                    current={made.name},
                    idle=kept_by_default.max_idle,
                )
            ).result(timeout=30)
        return made

    project.edit(ONE, "(a integer)", "(a bigint)")
    first, text = use(), (project.folder / FIVE).read_text()
    project.taken("ran.log")
    edits = []
    for number in range(11):
        project.write(FIVE, text + column(number))
        edits.append(use())

    assert [each.origin for each in edits] == ["rebuilt"] + 10 * ["extended"]
    assert project.taken("ran.log") == ["0001", "0002", "0003", "0004", *11 * ["0005"]]
    # The first state, the one that was left before the edit, the last two of the edit.
    assert len([each for each in kept.templates() if each not in kept.known]) == 4
    project.write(FIVE, text + column(9))
    assert (use().name, use().origin) == (edits[9].name, "found")
    project.write(FIVE, text)
    assert (use().name, use().origin) == (first.name, "found")


def test_what_was_built_before_a_rebuild_is_not_built_upon(
    kept: Shelf, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked for when something changed that no build can be seen to read."""
    project.edit(THREE, "{helpers.KIND}", "{__import__('os').environ['KIND']}")
    monkeypatch.setenv("KIND", "integer")
    kept.ensure(project)
    project.edit(FOUR, "(a integer)", "(a bigint)")
    kept.ensure(project)
    monkeypatch.setenv("KIND", "bigint")
    project.options["rebuild"] = True
    kept.ensure(project)
    project.options["rebuild"] = False

    project.edit(FOUR, "(a bigint)", "(a text)")
    made = kept.ensure(project)

    assert kept.dump(made.name) == kept.from_nothing(project)


def test_migrations_that_have_no_revision_yet_are_a_layer_too(
    kept: Shelf, project: Project
) -> None:
    """They leave Alembic's table behind, on an empty database as on a schema."""
    for path in (ONE, TWO, THREE, FOUR, FIVE):
        project.remove(path)
    project.options["schema"] = ("schema.sql",)
    project.rename("alembic.ini", "later.ini")
    kept.ensure(project)

    project.rename("later.ini", "alembic.ini")
    made = kept.ensure(project)

    assert kept.dump(made.name) == kept.from_nothing(project)


OWN: Final = """\
from alembic import command
from alembic.config import Config


def migrate(url):
    config = Config("alembic.ini")
    config.set_main_option("sqlalchemy.url", url)
    command.upgrade(config, "heads")
"""


def test_a_function_that_migrates_by_itself_is_one_link(kept: Shelf, project: Project) -> None:
    """What any of its revisions needs is what all of it needs."""
    project.write("own.py", OWN)
    project.options["alembic"] = "own:migrate"
    made = kept.ensure(project)
    assert (made.text, made.origin) == ("the migrations of own:migrate", "rebuilt")
    assert kept.ensure(project).origin == "found"

    for name, old, new, why in (
        ("more/deep.py", "10", "20", "deep.py changed"),
        ("data/rows.sql", "(1)", "(2)", "rows.sql changed (used by own:migrate)"),
        (FIVE, "(a integer)", "(a bigint)", "0005_five.py changed"),
        ("own.py", '"alembic.ini"', "'alembic.ini'", "own.py changed"),
    ):
        project.edit(name, old, new)
        project.taken("ran.log")
        made = kept.ensure(project)
        assert (made.origin, made.why) == ("rebuilt", why)
        assert len(project.taken("ran.log")) == 5
        assert kept.ensure(project).origin == "found"


def test_a_new_revision_of_a_function_that_migrates_by_itself_is_applied(
    kept: Shelf, project: Project
) -> None:
    """Where a new revision may appear counts as it does for all others."""
    project.write("own.py", OWN)
    project.options["alembic"] = "own:migrate"
    kept.ensure(project)

    project.revise("0006", "0005")
    made = kept.ensure(project)

    assert kept.dump(made.name) == kept.from_nothing(project)
