"""The project's own URL, with all its options, on its way to the migrations."""

from __future__ import annotations

import shutil
from pathlib import Path

from projects import Library

CASES = Path(__file__).parents[1] / "cases"
NOTE = (
    'import sqlalchemy as sa\nfrom alembic import op\nrevision = "0002"\ndown_revision = "0001"\n'
    'def upgrade():\n    op.create_table("note", sa.Column("id", sa.Integer))\n'
)
TEST = (
    "from sqlalchemy import text\n"
    "async def test_path(db_session):\n"
    "    tables = \"SELECT string_agg(schemaname || '.' || tablename, ' ' ORDER BY 1)\"\n"
    "    where = \" FROM pg_tables WHERE schemaname IN ('public', 'shop')\"\n"
    "    print('tables:', await db_session.scalar(text(tables + where)))\n"
)


def lay(project: Library) -> None:
    """Put the project with a `search_path` in its URL in the place of the example."""
    shutil.rmtree(project.folder / "migrations")
    for name in ("base/migrations", "url_options/migrations"):
        shutil.copytree(CASES / name, project.folder / "migrations", dirs_exist_ok=True)
    shutil.copy(CASES / "url_options/alembic.ini", project.folder)
    project.write("test_path.py", TEST)


def test_a_version_table_is_found_where_the_search_path_leads(kept: Library) -> None:
    """Alembic made it before there was the schema that comes first on the path."""
    lay(kept)
    kept.run("--reuse-containers", "test_path.py").assert_outcomes(passed=1)

    kept.write("migrations/versions/0002_note.py", NOTE)
    result = kept.run("--reuse-containers", "-s", "test_path.py")

    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*template of 3 revisions: extended by 1 revision from 2 *"])
    result.stdout.fnmatch_lines(["*tables: public.alembic_version shop.customers shop.note*"])


def test_options_of_a_config_in_code_and_of_a_variable_are_kept(kept: Library) -> None:
    """As those of an ini file are: `env.py` gets them in both ways."""
    lay(kept)
    url = "postgresql+psycopg://u:p@db/shop?options=-csearch_path%3Dshop,public&sslmode=require"
    kept.write(
        "in_code.py",
        "from pathlib import Path\nfrom alembic.config import Config\n"
        "def make():\n    config = Config()\n"
        "    config.set_main_option('script_location', str(Path('migrations').resolve()))\n"
        f"    config.set_main_option('sqlalchemy.url', {url.replace('%', '%%')!r})\n"
        "    return config\n",
    )
    kept.write(
        "migrations/env.py",
        (kept.folder / "migrations/env.py").read_text()
        + "\nimport os\nurl = config.get_main_option('sqlalchemy.url')\n"
        "assert os.environ['SHOP_URL'] == url, (os.environ['SHOP_URL'], url)\n",
    )
    kept.configure(
        "pythonpath = .", "warmstack_alembic = in_code:make", "warmstack_env = SHOP_URL={db_url}"
    )

    result = kept.run("--reuse-containers", "-s", "test_path.py", SHOP_URL=url)

    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*tables: public.alembic_version shop.customers*"])


def test_a_driver_that_gets_the_url_of_another_is_answered_with_the_right_one(
    kept: Library,
) -> None:
    """Their own errors say nothing of it."""
    kept.write(
        "test_it.py",
        "import asyncpg, psycopg, psycopg2, pytest, sqlalchemy as sa\n\n"
        "@pytest.mark.asyncio\nasync def test_asyncpg(db_url):\n"
        "    await asyncpg.connect(db_url)\n\n"
        "def test_psycopg(db_url):\n    psycopg.connect(db_url)\n\n"
        "def test_psycopg2(db_url):\n    psycopg2.connect(db_url)\n\n"
        "def test_engine(db_url):\n    sa.create_engine(db_url).connect()\n\n"
        "def test_other(db_url):\n    raise ValueError\n",
    )

    result = kept.run("--reuse-containers", "test_it.py")

    result.assert_outcomes(failed=5)
    advice = [line for line in result.outlines if "which URL a driver takes" in line]
    assert len(advice) == 4
