"""Every kind of Alembic project that `alembic init` makes is migrated without changes.

What Alembic's templates lack is in `tests/examples/forms`. One embedded PostgreSQL serves the whole
file; almost every test builds a template in it, and checks a clone of that template.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import pytest
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from projects import Library
from pytest_warmstack.options import RuntimeName

FORMS: Final = Path(__file__).parents[1] / "examples" / "forms"
REUSE: Final = "--reuse-containers"
PLACEHOLDER: Final = "driver://user:pass@localhost/dbname"

TABLES: Final = (
    "SELECT schemaname || '.' || tablename FROM pg_tables"
    " WHERE schemaname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1"
)
VERSIONS: Final = "SELECT version_num FROM alembic_version ORDER BY 1"
DRIVER: Final = "SELECT name FROM driver"

SHOP: Final = ["public.alembic_version", "public.customer", "public.driver"]
SHELVES: Final = ["public.alembic_version", "public.shelf"]

ENVIRONMENT: Final = (
    "import os\n"
    'config.set_main_option("sqlalchemy.url", os.environ["DATABASE_URL"].replace("%", "%%"))\n'
)
APPLICATION: Final = (
    "from shop_settings import DATABASE_URL\n"
    'config.set_main_option("sqlalchemy.url", DATABASE_URL.replace("%", "%%"))\n'
)
PARTS: Final = (
    "import os\n"
    'for name in ("DB_USER", "DB_PASSWORD", "DB_HOST", "DB_PORT", "DB_NAME"):\n'
    "    config.set_section_option(config.config_ini_section, name, os.environ[name])\n"
)


class Form(Library):
    """A project whose files are laid over each other, from Alembic's templates and from ours."""

    def reset(self) -> None:
        """Bring the project back to a test without migrations; caches stay."""
        for path in self.folder.iterdir():
            if path.is_dir() and path.name != ".pytest_cache":
                shutil.rmtree(path)
            elif path.is_file():
                path.unlink()
        self.lay("base")
        self.configure(f"warmstack_runtime = {self.runtime}")

    def init(self, template: str = "generic", scripts: str = "migrations", *flags: str) -> None:
        """Lay down what `alembic init` makes; it runs once for all projects of this file."""
        stock = self.folder.parents[1] / f"init-{template}-{scripts.replace('/', '-')}"
        if not stock.exists():
            stock.mkdir()
            command = [sys.executable, "-m", "alembic", "init", "-t", template, *flags, scripts]
            subprocess.run(command, cwd=stock, check=True, stdout=subprocess.DEVNULL)
        shutil.copytree(stock, self.folder, dirs_exist_ok=True)
        # Unlike any other's, so that no other test's template is found.
        with (self.folder / "alembic.ini").open("a") as file:
            file.write(f"\n[test]\nnumber = {os.urandom(8).hex()}\n")

    def lay(self, *names: str, below: str = "") -> None:
        """Lay down parts of our own."""
        for name in names:
            shutil.copytree(
                FORMS / name,
                self.folder / below,
                dirs_exist_ok=True,
                ignore=shutil.ignore_patterns("__pycache__"),
            )

    def option(self, name: str, value: str, *, old: str | None = None) -> None:
        """Set an option of alembic.ini that the template has not, or has with the value *old*."""
        if old is None:
            self.edit("alembic.ini", "[alembic]\n", f"[alembic]\n{name} = {value}\n")
        else:
            self.edit("alembic.ini", f"\n{name} = {old}\n", f"\n{name} = {value}\n")

    def rows(
        self, query: str, *arguments: str, built: bool = True, **variables: str
    ) -> list[list[Any]]:
        """Return what *query* finds in the database of a test of the next run."""
        self.write("query.sql", query)
        result = self.run(*(arguments or (REUSE,)), **variables)
        result.assert_outcomes(passed=1)
        origin = "(re)?built" if built else "found"
        result.stdout.re_match_lines([rf"warmstack: template of .*: {origin} in "])
        found: list[list[Any]] = json.loads((self.folder / "rows.json").read_text())
        return found

    def column(self, query: str, *arguments: str, **variables: str) -> list[Any]:
        """Return the only column of what *query* finds."""
        return [value for (value,) in self.rows(query, *arguments, **variables)]

    def refused(self) -> str:
        """Return the text with which the test's set-up fails; nothing half-built may be left."""
        self.write("query.sql", VERSIONS)
        result = self.run(REUSE)
        result.assert_outcomes(errors=1)
        assert self.databases("b") == []
        assert self.databases("u") == []
        return str(result.stdout)


@pytest.fixture(scope="module")
def form_in(
    embedded_programs: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Form]]:
    """A function that makes a project of a name; nothing of it is left at the end."""
    with ExitStack() as stack:

        def make(name: str) -> Form:
            folder = Path(os.path.realpath(tmp_path_factory.mktemp("home"))) / name
            folder.mkdir()
            form = Form(folder, RuntimeName.EMBEDDED)
            stack.callback(form.end)
            return form

        yield make


@pytest.fixture(scope="module")
def kept_form(form_in: Callable[[str], Form]) -> Form:
    """A project with a kept PostgreSQL for all tests of this file."""
    return form_in("shop")


@pytest.fixture
def form(kept_form: Form) -> Iterator[Form]:
    """The same without migrations yet."""
    kept_form.reset()
    yield kept_form
    kept_form.quit()


def revision(number: str, after: str | None, statement: str) -> str:
    """Return a revision file, as Alembic's templates write it."""
    return (
        "from typing import Sequence, Union\n"
        "from alembic import op\n"
        f"revision: str = {number!r}\n"
        f"down_revision: Union[str, Sequence[str], None] = {after!r}\n"
        f"def upgrade() -> None:\n    op.execute({statement!r})\n"
    )


@pytest.mark.parametrize(
    ("template", "driver"),
    [
        ("generic", "psycopg"),
        ("async", "asyncpg"),
        ("pyproject", "psycopg"),
        ("pyproject_async", "asyncpg"),
    ],
)
def test_what_alembic_init_makes_is_migrated_with_nothing_edited(
    form: Form, template: str, driver: str
) -> None:
    """The URL is the template's placeholder; env.py gets a driver of its own kind."""
    form.init(template)
    form.lay("shop")

    found = form.rows(
        f"SELECT array_agg(t), (SELECT min(name) FROM driver) FROM ({TABLES}) AS _(t)"
    )

    assert found == [[SHOP, driver]]
    assert PLACEHOLDER in (form.folder / "alembic.ini").read_text()


def test_a_synchronous_env_py_keeps_its_driver_when_a_layer_before_it_changes(form: Form) -> None:
    """Its revisions are known from a template then, and run all the same."""
    form.init()
    form.lay("shop")
    form.write("schema.sql", "CREATE TABLE legacy (id integer);\n")
    form.configure("warmstack_schema = schema.sql")
    assert form.column("SELECT min(name) FROM driver") == ["psycopg"]

    form.edit("schema.sql", "id integer", "id bigint")

    assert form.column("SELECT min(name) FROM driver") == ["psycopg"]


def test_a_configuration_elsewhere_can_be_named(form: Form) -> None:
    """`warmstack_alembic` names an alembic.ini in another folder, whose `here` is that folder."""
    form.init(scripts="conf/migrations")
    form.lay("shop", below="conf")
    (form.folder / "alembic.ini").rename(form.folder / "conf/alembic.ini")
    form.edit("conf/alembic.ini", "%(here)s/conf/migrations", "%(here)s/migrations")
    form.configure("warmstack_alembic = conf/alembic.ini")

    assert form.column(TABLES) == SHOP


def test_a_pyproject_toml_elsewhere_can_be_named(form: Form) -> None:
    """What is no matter of pyproject.toml comes from the alembic.ini beside it."""
    form.init("pyproject", scripts="service/migrations")
    form.lay("shop", below="service")
    for name in ("alembic.ini", "pyproject.toml"):
        (form.folder / name).rename(form.folder / "service" / name)
    form.edit("service/pyproject.toml", "%(here)s/service/migrations", "%(here)s/migrations")
    form.configure("warmstack_alembic = service/pyproject.toml")

    assert form.column(TABLES) == SHOP


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "driver", "mysql"])
def test_of_several_databases_the_error_shows_how_to_choose_one(form: Form, driver: str) -> None:
    """Alembic's template `multidb`: the line in the error's text is one that works.

    Also where its placeholders are still there, and where one URL's driver is not installed.
    """
    form.init("multidb")
    for number in (1, 2):
        form.edit(
            "alembic.ini",
            f"[engine{number}]\nsqlalchemy.url = driver:",
            f"[engine{number}]\nsqlalchemy.url = {driver}:",
        )
    form.write(
        "migrations/versions/0001.py",
        "from alembic import op\n\nrevision = '0001'\ndown_revision = None\n\n\n"
        "def upgrade(engine_name):\n    op.execute(f'CREATE TABLE of_{engine_name} (id int)')\n",
    )

    text = form.refused()

    assert "The migrations are for several databases (engine1, engine2), and " in text
    (line,) = (each for each in text.splitlines() if "warmstack_alembic_section" in each)
    form.configure(line[line.index("warmstack_alembic_section") :])
    assert form.column(TABLES) == ["public.alembic_version", "public.of_engine1"]
    form.edit("pytest.ini", "_section = engine1", "_section = engine2")
    assert form.column(TABLES) == ["public.alembic_version", "public.of_engine2"]


def test_a_branch_and_its_merge_are_migrated(form: Form) -> None:
    """Both ways to the merge are gone, and one head is left."""
    form.init()
    form.lay("branches")

    found = form.rows(
        "SELECT version_num, column_name FROM alembic_version, information_schema.columns"
        " WHERE table_name = 'customer' ORDER BY 2"
    )

    assert found == [["s3", "email"], ["s3", "id"], ["s3", "phone"]]


def test_every_head_of_a_branch_is_recorded(form: Form) -> None:
    """A branch that nobody has merged yet has two heads."""
    form.init()
    form.lay("branches")
    (form.folder / "migrations/versions/s3_merge.py").unlink()

    assert form.column(VERSIONS) == ["s2a", "s2b"]
    words = "(2 heads: `alembic upgrade head` refuses them)"
    assert words in form.run(REUSE).stdout.str()
    with pytest.raises(CommandError, match="multiple heads"):
        ScriptDirectory(str(form.folder / "migrations")).get_current_head()
    form.lay("branches")
    assert "heads" not in form.run(REUSE).stdout.str()


@pytest.mark.parametrize(("separator", "between"), [("os", os.pathsep), ("newline", "\n    ")])
def test_every_version_location_is_migrated(form: Form, separator: str, between: str) -> None:
    """Two locations, each with a base of its own, however the list of them is written."""
    locations = ["%(here)s/migrations/versions", "%(here)s/billing/versions"]
    form.init()
    form.lay("branches")
    form.option("path_separator", separator, old="os")
    form.option("version_locations", between.join(locations))

    assert form.column(VERSIONS) == ["b1", "s3"]


def test_version_locations_without_a_separator_are_split_as_alembic_does(form: Form) -> None:
    """Older projects have no `path_separator`; Alembic warns, and splits at spaces and commas."""
    form.init()
    form.lay("branches")
    form.edit("alembic.ini", "\npath_separator = os\n", "\n")
    form.option("version_locations", "%(here)s/migrations/versions, %(here)s/billing/versions")

    assert form.column(VERSIONS) == ["b1", "s3"]


def test_the_version_locations_of_a_pyproject_toml_are_migrated(form: Form) -> None:
    """There they are a list."""
    form.init("pyproject")
    form.lay("branches")
    form.edit(
        "pyproject.toml",
        "[tool.alembic]\n",
        "[tool.alembic]\n"
        'version_locations = ["%(here)s/migrations/versions", "%(here)s/billing/versions"]\n',
    )

    assert form.column(VERSIONS) == ["b1", "s3"]


def test_a_revision_that_depends_on_another_base_comes_after_it(form: Form) -> None:
    """As Alembic has it, a head on which another depends is not recorded on its own."""
    locations = [f"%(here)s/{name}/versions" for name in ("migrations", "billing", "delivery")]
    form.init()
    form.lay("branches")
    form.option("version_locations", os.pathsep.join(locations))

    assert form.column(VERSIONS) == ["b1", "d1"]


def years(form: Form) -> None:
    """Make a project of ten revisions, nine of which lie in a folder for their year."""
    form.init()
    form.write(
        "migrations/versions/0001_first.py",
        revision("0001", None, "CREATE TABLE customer (id integer)"),
    )
    for number in range(2, 11):
        form.write(
            f"migrations/versions/2024/{number:04}_of_2024.py",
            revision(f"{number:04}", f"{number - 1:04}", f"CREATE TABLE t{number} (id integer)"),
        )


def test_revisions_that_alembic_does_not_see_are_an_error(form: Form) -> None:
    """One of ten is seen, all is well for Alembic, and the tests would have nearly no schema."""
    years(form)

    text = form.refused()

    assert re.search(r"2024/00(0[2-9]|10)_of_2024\.py", text)
    assert "recursive_version_locations" in text


def test_revisions_that_are_left_out_on_purpose_can_be_declared(form: Form) -> None:
    """The error names the line to write, one for each folder; then the header is silent too."""
    years(form)
    lite = "migrations/lite"
    form.write(f"{lite}/0001_first.py", revision("0001", None, "SELECT lite()"))
    form.write(f"{lite}/old/0002.py", revision("0002", "0001", "SELECT lite()"))

    lines = [
        "warmstack_depends_ignore =",
        "    migrations/lite/*",
        "    migrations/versions/2024/*",
    ]
    assert " ".join(" ".join(lines).split()) in " ".join(form.refused().split())
    form.configure(*lines)

    assert form.column(TABLES) == SHOP[:2]
    assert "does not load" not in form.runs[-1].stem.with_suffix(".out").read_text()


def test_another_history_that_is_left_out_is_told_until_it_is_declared(form: Form) -> None:
    """It does not follow what Alembic sees, so that it is no error."""
    years(form)
    for each in (form.folder / "migrations/versions/2024").iterdir():
        each.write_text(each.read_text().replace("= '0", "= '9"))

    assert form.column(TABLES) == SHOP[:2]
    seen = "1 revision (9 revision files that Alembic does not load)"
    assert seen in form.runs[-1].stem.with_suffix(".out").read_text()

    form.configure("warmstack_depends_ignore = migrations/versions/2024/*")
    assert form.column(TABLES) == SHOP[:2]
    assert "does not load" not in form.runs[-1].stem.with_suffix(".out").read_text()


def test_revisions_in_folders_are_seen_where_the_configuration_says_so(form: Form) -> None:
    """The same project with recursive_version_locations is migrated, all of it."""
    years(form)
    form.option("recursive_version_locations", "true")

    found = form.rows(
        f"SELECT version_num, count(*) FROM alembic_version, ({TABLES}) AS _ GROUP BY 1"
    )

    assert found == [["0010", 11]]


def test_another_section_of_the_configuration_can_be_named(form: Form) -> None:
    """Like Alembic's `-n shop`; what the usual section says counts for nothing."""
    form.init()
    form.lay("shop")
    form.edit("alembic.ini", "[alembic]\n", "[alembic]\nscript_location = nowhere\n\n[shop]\n")
    form.configure("warmstack_alembic_section = shop")

    assert form.column(TABLES) == SHOP


@pytest.mark.parametrize("env", ["tenant", "search_path"])
def test_arguments_reach_env_py_and_the_revisions(form: Form, env: str) -> None:
    """Like Alembic's `-x`, one a line; here they decide on the schema, also of the versions."""
    form.init()
    form.lay("tenant", env)
    form.configure("warmstack_alembic_x =", "    tenant=acme", "    currency=EUR")

    found = form.rows("SELECT version_num, amount, currency FROM acme.alembic_version, acme.price")

    assert found == [["0001", 12, "EUR"]]


def test_with_other_arguments_another_template_is_built(form: Form) -> None:
    """They are among what a template is known by."""
    form.init()
    form.lay("tenant")
    form.configure("warmstack_alembic_x =", "    tenant=acme", "    currency=EUR")
    query = "SELECT currency FROM acme.price"

    assert form.column(query) == ["EUR"]
    form.edit("pytest.ini", "currency=EUR", "currency=USD")
    assert form.column(query) == ["USD"]


def test_a_revision_can_ask_for_its_surroundings_when_it_is_loaded(form: Form) -> None:
    """Outside of its functions as well: `alembic upgrade` loads it when those are there."""
    form.init()
    form.lay("shop")
    text = revision("0003", "0002", "CREATE TABLE last (id integer)")
    ask = "from alembic import context\nDIALECT = op.get_bind().dialect.name, context.config\n"
    form.write("migrations/versions/0003_last.py", text.replace("def upgrade", f"{ask}def upgrade"))

    assert form.column(VERSIONS) == ["0003"]


def in_code(form: Form, function: str) -> None:
    """Make a project whose configuration is a function, in a module that the tests can import."""
    form.lay("in_code")
    form.configure("pythonpath = .", f"warmstack_alembic = project_db.config:{function}")


def test_a_function_can_make_the_configuration(form: Form) -> None:
    """It puts the URL under a key of its own; an edited revision is in the next run's schema."""
    in_code(form, "make_config")

    assert form.column(TABLES) == SHELVES
    form.edit(
        "project_db/migrations/versions/0001_create_shelves.py",
        "CREATE TABLE s",
        "CREATE TABLE books",
    )
    assert form.column(TABLES) == ["public.alembic_version", "public.bookshelf"]


def test_a_function_can_migrate_by_itself(form: Form) -> None:
    """It returns nothing, and the template is at the heads."""
    in_code(form, "migrate")

    assert form.column(TABLES) == SHELVES


@pytest.mark.parametrize("function", ["make_config_in_a_loop", "migrate_in_a_loop"])
def test_a_function_can_be_asynchronous(form: Form, function: str) -> None:
    """It gives the configuration, or migrates by itself, over a connection of its loop."""
    in_code(form, function)

    assert form.column(TABLES) == SHELVES


IN_A_LOOP: Final = "\nimport asyncio\n\nasync def main(): pass\n\nasyncio.run(main())\n"
FROM_A_THREAD: Final = "\nimport anyio\n\nasync def main(): pass\n\nanyio.from_thread.run(main)\n"


@pytest.mark.parametrize(
    ("function", "addition", "words"),
    [
        ("make_config", FROM_A_THREAD, "*NoEventLoopError*start one there*asyncio.run(*"),
        ("migrate_by_env_py", IN_A_LOOP, "*cannot be called from*await asyncio.to_thread(*"),
    ],
)
def test_an_env_py_that_needs_another_loop_is_explained(
    form: Form, function: str, addition: str, words: str
) -> None:
    """One that is made to run below an application's loop, and one that meets a loop."""
    in_code(form, function)
    env = form.folder / "project_db/migrations/env.py"
    env.write_text(env.read_text() + addition)

    result = form.run(REUSE)

    result.assert_outcomes(errors=1)
    assert fnmatchcase(" ".join(result.outlines), words)


def test_a_function_without_a_parameter_finds_the_url_in_the_environment(form: Form) -> None:
    """It is called with nothing, after the environment was set."""
    in_code(form, "make_config_of_the_environment")
    form.configure("warmstack_env = DATABASE_URL={db_url}")

    assert form.column(TABLES) == SHELVES


@pytest.mark.parametrize(
    ("template", "below", "driver"), [("generic", "", "psycopg"), ("async", "src/", "asyncpg")]
)
def test_scripts_can_be_a_package_resource(
    form: Form, template: str, below: str, driver: str
) -> None:
    """`shop_pkg:migrations` is found where the package is, also below src."""
    form.init(template, f"{below}shop_pkg/migrations", "--package")
    form.lay("shop", below=f"{below}shop_pkg")
    form.write(f"{below}shop_pkg/__init__.py", "")
    form.option(
        "script_location",
        "shop_pkg:migrations",
        old=f"%(here)s/{below}shop_pkg/migrations",
    )
    form.option("prepend_sys_path", below.rstrip("/") or ".", old=".")

    assert form.column(DRIVER) == [driver]


@pytest.mark.parametrize(
    ("lines", "url", "driver"),
    [
        (APPLICATION, "{db_url}", "psycopg"),
        (
            ENVIRONMENT,
            "postgresql+psycopg2://{db_user}:{db_password}@{db_host}:{db_port}/{db_name}",
            "psycopg2",
        ),
    ],
    ids=["application", "env.py"],
)
def test_a_url_from_the_environment_is_the_one_that_is_configured(
    form: Form, lines: str, url: str, driver: str
) -> None:
    """Whether env.py reads it, or the application's settings do when they are imported."""
    form.init()
    form.lay("shop", "environment")
    form.edit("migrations/env.py", "config = context.config\n", f"config = context.config\n{lines}")
    form.configure(f"warmstack_env = DATABASE_URL={url}")

    assert form.column(DRIVER) == [driver]


def test_a_url_of_the_environment_has_the_driver_that_it_had_before(form: Form) -> None:
    """A DATABASE_URL that is there already tells what the project is used to."""
    form.init()
    form.lay("shop")
    form.edit(
        "migrations/env.py", "config = context.config\n", f"config = context.config\n{ENVIRONMENT}"
    )
    form.configure("warmstack_env = DATABASE_URL={db_url}")
    before = "postgresql+psycopg2://me:secret@localhost/shop"

    assert form.column(DRIVER, DATABASE_URL=before) == ["psycopg2"]


def test_a_url_whose_parts_env_py_fills_in_keeps_its_driver(form: Form) -> None:
    """`%(NAME)s` in alembic.ini is an option that env.py sets, from the environment."""
    names = ("DB_USER", "DB_PASSWORD", "DB_HOST", "DB_PORT", "DB_NAME")
    form.init()
    form.lay("shop")
    form.edit(
        "alembic.ini",
        PLACEHOLDER,
        "postgresql+psycopg2://%(DB_USER)s:%(DB_PASSWORD)s@%(DB_HOST)s:%(DB_PORT)s/%(DB_NAME)s",
    )
    form.edit("migrations/env.py", "config = context.config\n", f"config = context.config\n{PARTS}")
    form.configure("warmstack_env =", *(f"    {name}={{{name.lower()}}}" for name in names))

    assert form.column(DRIVER) == ["psycopg2"]


@pytest.mark.parametrize(
    ("template", "driver"),
    [("generic", "psycopg2"), ("async", "psycopg"), ("pyproject_async", "asyncpg")],
)
def test_the_driver_of_the_projects_own_url_is_kept(form: Form, template: str, driver: str) -> None:
    """What the project migrates with elsewhere, it migrates with here."""
    form.init(template)
    form.lay("shop")
    form.edit("alembic.ini", PLACEHOLDER, f"postgresql+{driver}://me:secret@localhost/shop")

    assert form.column(DRIVER) == [driver]


@pytest.mark.parametrize("template", ["generic", "pyproject", "in code"])
def test_a_percent_sign_and_a_space_in_the_projects_folder_do_no_harm(
    form_in: Callable[[str], Form], template: str
) -> None:
    """What works there with Alembic itself does; it takes a % in `here` for a substitution."""
    form = form_in("100% shop")
    if template == "in code":
        in_code(form, "make_config")
    else:
        form.init(template)
        form.lay("shop", "plain_url")
    if template == "generic":
        form.option("script_location", "migrations", old="%(here)s/migrations")
        form.edit("alembic.ini", "\n[post_write_hooks]\n", "\n")

    found = form.column(TABLES, "--no-reuse-containers")

    assert found == (SHELVES if template == "in code" else SHOP)
    # And without --reuse-containers nothing stays.
    assert form.folders() == []


@pytest.mark.parametrize("template", ["generic", "async"])
def test_an_index_that_is_created_concurrently_is_there(form: Form, template: str) -> None:
    """Its revision leaves the transaction, and the next one is in a transaction again."""
    form.init(template)
    form.lay("concurrently")

    found = form.rows(
        "SELECT indisvalid, (SELECT count(email) FROM customer), version_num"
        " FROM pg_index, alembic_version WHERE indexrelid = 'customer_name'::regclass"
    )

    assert found == [[True, 0, "0003"]]


def test_the_rows_that_a_migration_makes_are_in_every_test(form: Form) -> None:
    """Data that one revision inserted and another one rewrote."""
    form.init()
    form.lay("data")

    found = form.rows("SELECT id, name, first FROM customer ORDER BY id")

    assert found == [[1, "Ada Lovelace", "Ada"], [2, "100% Grace", "100%"]]


def test_an_extension_is_in_every_test(form: Form) -> None:
    """With its types and operators."""
    form.init()
    form.lay("vectors")

    found = form.rows(
        "SELECT extname, likes <-> '[1,2,5]' FROM taste, pg_extension WHERE extname = 'vector'"
    )

    assert found == [["vector", 2.0]]


def test_settings_and_grants_of_the_database_are_in_every_test(form: Form) -> None:
    """PostgreSQL copies none of them with a template; lists stay lists, and quotes are kept."""
    form.init()
    form.lay("database_wide")
    settings = ("search_path", "shop.greeting", "work_mem", "maintenance_work_mem")
    privileges = {
        "pg_monitor CONNECT": True,
        "pg_monitor TEMPORARY": True,
        "pg_monitor CREATE": False,
        "pg_read_all_data CONNECT": False,
        "pg_read_all_data TEMPORARY": False,
        "pg_signal_backend CREATE WITH GRANT OPTION": True,
    }
    questions = [
        *(f"current_setting('{name}')" for name in settings),
        *(
            "has_database_privilege('{}', current_database(), '{}')".format(*each.split(" ", 1))
            for each in privileges
        ),
        "(SELECT relnamespace::regnamespace::text FROM pg_class WHERE oid = 'customer'::regclass)",
        "(SELECT count(*) FROM pg_db_role_setting JOIN pg_database d ON d.oid = setdatabase"
        " WHERE datname = current_database())",
    ]
    query = f"SELECT {', '.join(questions)}"
    expected = [
        '"Shop Data", public',
        'It\'s "quoted", a \\ and 100%',
        "5MB",
        "7MB",
        *privileges.values(),
        '"Shop Data"',
        2,
    ]

    assert form.rows(query) == [expected]
    assert form.rows(query, built=False) == [expected]


def test_a_role_that_is_there_already_is_explained(form: Form) -> None:
    """It outlives the template whose revision created it, since the server stays."""
    role = f"reader_{os.urandom(4).hex()}"
    form.init()
    form.lay("role")
    path = form.folder / "migrations/versions/0001_create_reader.py"
    path.write_text(path.read_text().replace("shop_reader", role))
    mine = f"SELECT has_table_privilege('{role}', 'customer', 'SELECT')"
    assert form.column(mine) == [True]
    with (form.folder / "migrations/env.py").open("a") as file:
        file.write("# a change\n")

    text = form.refused()

    assert f'role "{role}" already exists' in text
    assert "whole server" in text


def test_revisions_can_import_the_projects_models_and_helpers(form: Form) -> None:
    """So can env.py."""
    form.init()
    form.lay("catalogue")
    form.edit(
        "migrations/env.py",
        "target_metadata = None\n",
        "from catalogue.models import Base\ntarget_metadata = Base.metadata\n",
    )

    found = form.column(
        "SELECT table_name || '.' || column_name || ' ' || data_type"
        " FROM information_schema.columns WHERE table_name IN ('brand', 'product') ORDER BY 1"
    )

    assert found == [
        "brand.changed timestamp with time zone",
        "brand.id integer",
        "brand.name character varying",
        "product.brand_id integer",
        "product.changed timestamp with time zone",
        "product.id integer",
    ]
