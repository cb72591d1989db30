"""`warmstack up --profile`: the slow revisions, without a trace of the build that finds them."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

import pytest

from migration_projects import ENV, INI, Project, Shelf
from projects import Bench, Library
from pytest_warmstack.options import RuntimeName, Settings
from pytest_warmstack.postgres.template.configurations import Configurations
from pytest_warmstack.postgres.template.dependencies import FileState
from pytest_warmstack.postgres.template.errors import TemplateFailed
from pytest_warmstack.postgres.template.profile import measure

SLOW: Final = """
import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade():
    op.execute("SELECT pg_sleep(0.3)")
    for n in range(20):
        op.get_bind().execute(sa.text("INSERT INTO author VALUES (:n, 'x')"), {"n": n + 1000})
    op.execute("COMMENT ON TABLE author IS '" + "x" * 500 + "'")
    op.execute("DO $$ BEGIN IF false THEN CREATE ROLE demo PASSWORD 'hunter2'; END IF; END $$")
"""

SEED: Final = "CREATE TABLE country (code text PRIMARY KEY);\nINSERT INTO country VALUES ('fr');\n"

FUNCTION: Final = """
from sqlalchemy import text


def fill(session):
    session.execute(text("INSERT INTO country VALUES ('de')"))
"""

CUSTOM: Final = """
class Nothing:
    name = "search index"

    def fingerprint(self):
        return "1"

    def apply(self, url):
        pass


def pytest_warmstack_template_layers(config):
    return [Nothing()]
"""

FILES: Final = {
    "0001": "migrations/versions/0001_create_authors.py",
    "0002": "migrations/versions/0002_create_books.py",
    "0003": "migrations/versions/0003_index_titles.py",
    "0004": "migrations/versions/0004_slow.py",
    "search index": "",
    "seed.sql": "",
    "seeds:fill": "",
}


@pytest.fixture
def slow(kept: Library) -> Library:
    """A kept project with one slow revision, a seed and a layer of its own."""
    kept.write("migrations/versions/0004_slow.py", SLOW)
    kept.write("seed.sql", SEED)
    kept.write("seeds.py", FUNCTION)
    kept.write("conftest.py", CUSTOM)
    kept.configure("warmstack_seed =", "    seed.sql", "    seeds:fill")
    return kept


def profile(library: Library, *arguments: str) -> Any:
    """Return what `up --profile --json` prints."""
    result = library.warmstack("up", "--profile", "--json", *arguments)
    assert result.ret == 0
    return json.loads(result.stdout.str())


def test_the_slowest_revision_is_first_with_its_statements(slow: Library) -> None:
    """Each revision has its time; a statement that ran often is one line."""
    result = slow.warmstack("up", "--profile")

    assert result.ret == 0
    lines = [re.sub(r"under 1 ms|\d[\d.]* m?s(?= |$)", "T", line) for line in result.outlines]
    begin = next(place for place, line in enumerate(lines) if "profile of" in line)
    shown = [" ".join(line.split()) for line in lines[begin:] if line]
    assert shown[0] == (
        "warmstack: profile of alembic.ini: 7 steps in T (a throw-away build; kept templates stay"
        " as they are)"
    )
    assert shown[1] == "warmstack: T 0004 (migrations/versions/0004_slow.py), 23 statements"
    assert shown[2] == "warmstack: T SELECT pg_sleep(0.3)"
    assert shown[-1] == "warmstack: T imports, env.py, connections and commits"
    rest = "\n".join(shown)
    assert "warmstack: T 0001 (migrations/versions/0001_create_authors.py), 1 statement\n" in rest
    assert "warmstack: T seed.sql\n" in rest
    assert "warmstack: T seeds:fill, 1 statement\n" in rest
    assert "warmstack: T search index\n" in rest
    # What `up` itself tells comes first.
    assert "warmstack: template of 4 revisions, search index, 2 seed scripts" in lines[begin - 2]


def test_the_json_has_every_step(slow: Library) -> None:
    """Sorted by time; statements are shortened, and have no password."""
    made = profile(slow)

    assert made["version"] == 1
    (template,) = made["templates"]
    assert template["configuration"] == "alembic.ini"
    steps = template["steps"]
    assert {each["name"]: each["file"] for each in steps} == FILES
    assert [each["seconds"] for each in steps] == sorted(
        (each["seconds"] for each in steps), reverse=True
    )
    assert template["seconds"] >= sum(each["seconds"] for each in steps)
    first = steps[0]
    assert (first["layer"], first["name"], first["statements"]) == ("alembic", "0004", 23)
    assert first["seconds"] >= first["slowest"][0]["seconds"] >= 0.3
    statements = {each["text"]: each["count"] for each in first["slowest"]}
    assert statements["INSERT INTO author VALUES ($1, 'x')"] == 20
    assert any(text.endswith("xxx...") and len(text) == 203 for text in statements)
    assert any("CREATE ROLE demo PASSWORD '***'" in text for text in statements)
    assert "hunter2" not in json.dumps(made)


def test_nothing_of_the_build_is_left_and_the_template_stays(slow: Library) -> None:
    """The kept template and its clones are those of before, and the next run finds them."""
    assert slow.warmstack("up").ret == 0
    before = sorted(slow.databases())

    profile(slow)

    assert sorted(slow.databases()) == before
    result = slow.run("--reuse-containers")
    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines(["warmstack: template of 4 revisions, *: found in *"])


@pytest.mark.parametrize("runtime", [RuntimeName.EMBEDDED], indirect=True)
@pytest.mark.parametrize("fails", [False, True])
def test_the_database_is_dropped_at_once(bench: Bench, tmp_path: Path, *, fails: bool) -> None:
    """Also if a migration fails. Nothing has to sweep it, and no template is made of it."""
    project = Project(tmp_path / "shop")
    project.write("alembic.ini", INI)
    project.write("migrations/env.py", ENV)
    project.revise("0001", None)
    project.revise("0002", "0001", *["raise ValueError('no')"] * fails)
    shelf = Shelf(bench.ensure(bench.postgres), bench.postgres)
    settings, files = Settings(), FileState(str(project.folder))
    found = Configurations(settings, project.folder).of(project.folder)

    with project.importable(), pytest.raises(TemplateFailed) if fails else nullcontext():
        made = measure(shelf.admin, settings, project.folder, files, found, ())
        assert [step.name for step in made.steps] == ["0001", "0002"]

    assert shelf.admin.all() == []
    assert shelf.admin.locked() == set()


def test_a_project_without_migrations_has_a_profile_of_its_scripts(kept: Library) -> None:
    """`alembic upgrade` has nothing to do with it."""
    kept.write("seed.sql", SEED)
    kept.configure("warmstack_alembic = none", "warmstack_seed = seed.sql")

    (template,) = profile(kept)["templates"]

    assert template["configuration"] == ""
    assert [each["name"] for each in template["steps"]] == ["seed.sql"]


def test_migrations_that_cannot_run_twice_show_their_error(kept: Library) -> None:
    """A role belongs to the whole server. The template of the first build stays."""
    kept.write(
        "migrations/versions/0004_role.py",
        SLOW.partition("    op.execute")[0] + '    op.execute("CREATE ROLE clerk")\n',
    )
    try:
        result = kept.warmstack("up", "--profile")
    finally:
        kept.sql("DROP ROLE IF EXISTS clerk")

    assert result.ret == 1
    result.stdout.fnmatch_lines(["warmstack: template of 4 revisions: *"])
    assert 'role "clerk" already exists' in result.stderr.str()
    assert "in revision 0004 (0004_role.py" in result.stderr.str()
    assert not [name for name in kept.databases() if name.startswith("warmstack_b_")]


def test_the_list_as_json_is_for_the_profile(kept: Library) -> None:
    """`up` alone prints no JSON."""
    result = kept.warmstack("up", "--json")

    assert result.ret == 2
    result.stderr.fnmatch_lines(["*: error: --json is for --profile; write up --profile --json"])
