"""pytest-alembic's tests of the migrations, on a database of their own."""

from __future__ import annotations

import shutil
from typing import Final

import pytest

from projects import Library, until

REUSE: Final = "--reuse-containers"
PLUGIN: Final = ("-p", "pytest_alembic")

ENV: Final = """
from alembic import context
from models import metadata
from sqlalchemy import engine_from_config, pool

config = context.config
engine = engine_from_config(
    config.get_section(config.config_ini_section), prefix="sqlalchemy.", poolclass=pool.NullPool
)
with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=metadata)
    with context.begin_transaction():
        context.run_migrations()
"""

ASYNC_ENV: Final = """
import asyncio
from alembic import context
from models import metadata
from sqlalchemy import pool
from sqlalchemy.ext.asyncio import async_engine_from_config

config = context.config


def migrate(connection):
    context.configure(connection=connection, target_metadata=metadata)
    with context.begin_transaction():
        context.run_migrations()


async def main():
    engine = async_engine_from_config(
        config.get_section(config.config_ini_section), prefix="sqlalchemy.", poolclass=pool.NullPool
    )
    async with engine.connect() as connection:
        await connection.run_sync(migrate)
    await engine.dispose()


asyncio.run(main())
"""

# As its documentation shows it, for one connection that it passes on.
CONNECTION_ENV: Final = """
import asyncio
from alembic import context
from models import metadata
from sqlalchemy import create_engine, pool
from sqlalchemy.ext.asyncio import AsyncEngine


def migrate(connection):
    context.configure(connection=connection, target_metadata=metadata)
    with context.begin_transaction():
        context.run_migrations()


async def main(engine):
    async with engine.connect() as connection:
        await connection.run_sync(migrate)
    await engine.dispose()


engine = context.config.attributes.get("connection", None)
if isinstance(engine, AsyncEngine):
    asyncio.run(main(engine))
else:
    if engine is None:
        engine = create_engine(
            context.config.get_main_option("sqlalchemy.url"), poolclass=pool.NullPool
        )
    with engine.connect() as connection:
        migrate(connection)
"""

VARIABLE_ENV: Final = """
import os
from alembic import context
from models import metadata
from sqlalchemy import create_engine, pool

with create_engine(os.environ["SHOP_URL"], poolclass=pool.NullPool).connect() as connection:
    context.configure(connection=connection, target_metadata=metadata)
    with context.begin_transaction():
        context.run_migrations()
"""

MODELS: Final = """
from sqlalchemy import Column, ForeignKey, Integer, MetaData, Table, Text

metadata = MetaData()
Table("customers", metadata, Column("id", Integer, primary_key=True), Column("name", Text))
Table(
    "orders",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("customer", ForeignKey("customers.id")),
)
"""

REVISIONS: Final = {
    "one": """
import sqlalchemy as sa
from alembic import op

revision = "one"
down_revision = None


def upgrade():
    op.create_table("customers", sa.Column("id", sa.Integer, primary_key=True),
                    sa.Column("name", sa.Text))


def downgrade():
    op.drop_table("customers")
""",
    "two": """
import sqlalchemy as sa
from alembic import op

revision = "two"
down_revision = "one"


def upgrade():
    op.create_table("orders", sa.Column("id", sa.Integer, primary_key=True),
                    sa.Column("customer", sa.Integer, sa.ForeignKey("customers.id")))


def downgrade():
    op.drop_table("orders")
""",
}

TESTS: Final = """
from pytest_alembic.tests import (
    test_model_definitions_match_ddl, test_single_head_revision, test_up_down_consistency,
    test_upgrade,
)
"""
"""The default tests, imported: pytest-alembic 0.13 can't collect them itself with pytest 9.2."""

HEAD: Final = """
from sqlalchemy import text


def test_a_revision(alembic_runner, alembic_engine):
    alembic_runner.migrate_up_before("two")
    alembic_runner.insert_into("customers", {"id": 1, "name": "Ada"})
    alembic_runner.migrate_up_one()
    with alembic_engine.connect() as connection:
        assert connection.scalar(text("SELECT name FROM customers")) == "Ada"
        assert connection.scalar(text("SELECT count(*) FROM orders")) == 0


async def test_of_the_application(db_session):
    assert await db_session.scalar(text("SELECT count(*) FROM customers")) == 0
"""


@pytest.fixture
def shop(kept: Library) -> Library:
    """A project of two revisions that fit its models, without a conftest.py."""
    (kept.folder / "test_library.py").unlink()
    for name in ("tests", "services", "__pycache__"):
        shutil.rmtree(kept.folder / name, ignore_errors=True)
    for path in kept.folder.joinpath("migrations/versions").iterdir():
        path.unlink()
    for name, text in REVISIONS.items():
        kept.write(f"migrations/versions/{name}.py", text)
    kept.write("migrations/script.py.mako", "")
    kept.write("models.py", MODELS)
    kept.write("tests/test_migrations.py", TESTS)
    kept.write("tests/test_revision.py", HEAD)
    use(kept, ENV, "postgresql+psycopg")
    return kept


def use(project: Library, env: str, driver: str) -> None:
    """Write an env.py, and the driver of the project's own URL."""
    project.write("migrations/env.py", env)
    project.write(
        "alembic.ini",
        "[alembic]\nscript_location = %(here)s/migrations\nprepend_sys_path = .\n"
        f"path_separator = os\nsqlalchemy.url = {driver}://shop:secret@localhost:1/shop\n",
    )


@pytest.mark.parametrize(
    ("env", "driver"),
    [
        (ENV, "postgresql+psycopg"),
        (ENV, "postgresql+psycopg2"),
        (ENV, "driver"),
        (ASYNC_ENV, "postgresql+asyncpg"),
        (ASYNC_ENV, "driver"),
        (CONNECTION_ENV, "postgresql+psycopg"),
    ],
    ids=["psycopg", "psycopg2", "placeholder", "asyncpg", "async placeholder", "connection"],
)
def test_its_default_tests_pass_without_a_conftest(shop: Library, env: str, driver: str) -> None:
    """With the env.py that Alembic's templates have, or that its documentation shows."""
    use(shop, env, driver)

    result = shop.run(REUSE, *PLUGIN)

    result.assert_outcomes(passed=6)
    result.stdout.no_fnmatch_line("*it left*")
    until(lambda: not shop.databases("u"), "all used clones are dropped", seconds=15)


@pytest.mark.parametrize("env", [ASYNC_ENV, CONNECTION_ENV], ids=["async", "connection"])
def test_without_a_synchronous_driver_the_engine_is_asynchronous(shop: Library, env: str) -> None:
    """As many projects have only asyncpg."""
    use(shop, env, "postgresql+asyncpg")
    (shop.folder / "tests/test_revision.py").unlink()
    shop.write("conftest.py", "import sys\nsys.modules |= {'psycopg': None, 'psycopg2': None}\n")
    shop.write(
        "tests/test_engine.py",
        "def test_it(alembic_engine, alembic_runner):\n"
        "    assert alembic_engine.dialect.driver == 'asyncpg'\n"
        "    alembic_runner.migrate_up_to('one')\n"
        "    alembic_runner.insert_into('customers', {'id': 1})\n",
    )

    shop.run(REUSE, *PLUGIN).assert_outcomes(passed=5)


def test_an_env_py_that_reads_a_variable_gets_the_url(shop: Library) -> None:
    """By the lines of `warmstack_env`, also if it is read only once, when a conftest is loaded."""
    use(shop, VARIABLE_ENV, "postgresql+psycopg")
    shop.configure("warmstack_env = SHOP_URL={db_url}")
    shop.write(
        "tests/test_then.py",
        "import os\nimport settings\n\n"
        "def test_then():\n    assert os.environ['SHOP_URL'] == settings.URL\n",
    )
    shop.write("settings.py", "import os\n\nURL = os.environ['SHOP_URL']\n")
    shop.write("conftest.py", "import settings\n")
    env = shop.folder / "migrations/env.py"
    env.write_text(
        "import settings\n" + env.read_text().replace('os.environ["SHOP_URL"]', "settings.URL")
    )
    assert "settings.URL" in env.read_text()

    result = shop.run(REUSE, *PLUGIN, SHOP_URL="postgresql+psycopg://me@localhost:1/mine")

    result.assert_outcomes(passed=7)


@pytest.mark.parametrize(
    ("name", "old", "new", "test", "words"),
    [
        (
            *("two", 'down_revision = "one"', "down_revision = None"),
            *("test_single_head_revision", "*Expected 1 head revision, found 2*"),
        ),
        (
            *("two", 'op.drop_table("orders")', 'op.drop_table("nothing")'),
            *("test_up_down_consistency", '*table "nothing" does not exist*'),
        ),
        (
            *("one", "sa.Text", "sa.Integer"),
            *("test_model_definitions_match_ddl", "*out of sync*"),
        ),
        (
            *("two", '"customers.id"', '"missing.id"'),
            *("test_upgrade", '*relation "missing" does not exist*'),
        ),
    ],
    ids=["two heads", "downgrade", "models", "upgrade"],
)
def test_a_planted_fault_is_found(
    shop: Library, name: str, old: str, new: str, test: str, words: str
) -> None:
    """By the test that is for it; also if the template can't be built."""
    path = shop.folder / f"migrations/versions/{name}.py"
    path.write_text(path.read_text().replace(old, new))
    options = ["-o", "warmstack_keep_failed=0"]

    result = shop.run(REUSE, *PLUGIN, *options, "tests/test_migrations.py", "-k", test)

    result.assert_outcomes(failed=1, deselected=3)
    result.stdout.fnmatch_lines([words])


def test_the_schema_comes_before_the_migrations(shop: Library) -> None:
    """As in a build; the seed and layers of the project's own come after them, and don't."""
    shop.write("schema.sql", "CREATE TYPE color AS ENUM ('red')")
    shop.write("seed.sql", "INSERT INTO customers VALUES (7, 'Seed')")
    shop.configure("warmstack_schema = schema.sql", "warmstack_seed = seed.sql")
    shop.edit(
        "migrations/versions/one.py",
        'op.drop_table("customers")',
        'op.drop_table("customers")\n    op.execute("SELECT \'red\'::color")',
    )
    (shop.folder / "tests/test_revision.py").unlink()

    shop.run(REUSE, *PLUGIN).assert_outcomes(passed=4)


@pytest.mark.parametrize("place", ["conftest", "plugin"])
def test_the_users_own_fixtures_replace_ours(shop: Library, place: str) -> None:
    """Also those of a plugin that a conftest.py names; a configuration can be built on ours."""
    fixtures = (
        "import pytest\nfrom pytest_alembic import Config\nfrom sqlalchemy import create_engine\n\n"
        "@pytest.fixture\ndef alembic_config(alembic_config):\n"
        "    return Config(alembic_config=alembic_config, at_revision_data={\n"
        "        'one': {'__tablename__': 'customers', 'id': 3, 'name': 'Grace'}})\n"
    )
    if place == "plugin":
        shop.write("own.py", fixtures)
        shop.write("conftest.py", "pytest_plugins = ['own']\n")
    else:
        shop.write("conftest.py", fixtures)
    shop.write(
        "tests/test_data.py",
        "from sqlalchemy import text\n\n"
        "def test_data(alembic_runner, alembic_engine):\n"
        "    alembic_runner.migrate_up_to('heads')\n"
        "    with alembic_engine.connect() as connection:\n"
        "        assert connection.scalar(text('SELECT name FROM customers')) == 'Grace'\n",
    )

    result = shop.run(REUSE, *PLUGIN, "tests/test_data.py", "tests/test_migrations.py")
    result.assert_outcomes(passed=5)
    engine = (
        "\n@pytest.fixture\ndef alembic_engine():\n    return create_engine('sqlite:///mine.db')\n"
    )
    name = "own.py" if place == "plugin" else "conftest.py"
    shop.write(name, fixtures.partition("@pytest.fixture")[0] + engine)
    shop.write(
        "tests/test_data.py",
        "def test_data(alembic_engine, alembic_config):\n"
        "    assert alembic_engine.dialect.name == 'sqlite'\n    assert alembic_config == {}\n",
    )
    shop.run(REUSE, *PLUGIN, "tests/test_data.py").assert_outcomes(passed=1)


def test_a_service_has_its_own_migrations_and_folder(shop: Library) -> None:
    """They run where `alembic` is called, and find the modules beside alembic.ini."""
    service = shop.folder / "services/shop"
    service.mkdir(parents=True)
    for name in ("alembic.ini", "models.py", "migrations"):
        (shop.folder / name).rename(service / name)
    (shop.folder / "tests").rename(service / "tests")
    shop.write("services/shop/near.txt", "here")
    with (service / "migrations/env.py").open("a") as file:
        file.write("assert open('near.txt').read() == 'here'\n")

    shop.run(REUSE, *PLUGIN, "services").assert_outcomes(passed=6)


def test_a_configuration_from_code_is_used(shop: Library) -> None:
    """The function gets the URL; one that migrates by itself gives pytest-alembic nothing."""
    shop.configure("warmstack_alembic = own:config")
    (shop.folder / "alembic.ini").rename(shop.folder / "other.ini")
    text = (
        "from alembic import command\nfrom alembic.config import Config\n\n"
        "def config(url):\n    made = Config('other.ini')\n"
        "    made.set_main_option('sqlalchemy.url', url)\n"
    )
    shop.write("own.py", f"{text}    return made\n")
    shop.run(REUSE, *PLUGIN).assert_outcomes(passed=6)

    shop.write("own.py", f"{text}    command.upgrade(made, 'heads')\n")
    result = shop.run(REUSE, *PLUGIN, "tests/test_migrations.py")
    result.assert_outcomes(errors=4)
    result.stdout.fnmatch_lines(
        ["The function own:config returned no Alembic configuration for pytest-alembic."]
    )


def test_without_the_plugin_there_are_no_such_fixtures(shop: Library) -> None:
    """Nor is it imported."""
    shop.write(
        "tests/test_none.py",
        "import sys\n\ndef test_none(request):\n"
        "    names = {'pytest_alembic', 'pytest_warmstack.alembic_fixtures'}\n"
        "    assert not names & {*sys.modules}\n\n"
        "def test_fixture(alembic_engine):\n    pass\n",
    )

    result = shop.run(REUSE, "tests/test_none.py")

    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*fixture 'alembic_engine' not found"])
