"""The migrations as a layer: which configuration they have, and what decides them besides files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_warmstack.options import Settings
from pytest_warmstack.postgres.template.configurations import Configuration, Configurations
from pytest_warmstack.postgres.template.dependencies import FileState
from pytest_warmstack.postgres.template.errors import TemplateFailed
from pytest_warmstack.postgres.template.layers import BuildContext, Migrations
from pytest_warmstack.postgres.template.record import LayerRecord

INI = "[alembic]\nscript_location = migrations\n"
TOML = '[project]\nname = "shop"\n'
TABLE = '[tool.alembic]\nscript_location = "migrations"\n'


def write(path: Path, text: str = "") -> Path:
    """Write *text* to *path*, making its folder, and return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with an alembic.ini, whose pyproject.toml says nothing of Alembic."""
    root = tmp_path / "shop"
    write(root / "alembic.ini", INI)
    write(root / "pyproject.toml", TOML)
    return root


def settings_of(**choices: Any) -> Settings:
    """Return settings that stand in a pytest.ini."""
    return Settings(sources={"alembic": "pytest.ini"}, **choices)


def find(root: Path, **choices: Any) -> Configuration | None:
    """Return the configuration of the tests in *root*."""
    return Configurations(settings_of(**choices), root).of(root)


def files(found: Configuration | None) -> tuple[Path | None, Path | None, str]:
    """Return where a configuration is."""
    assert found is not None
    return found.ini, found.toml, found.function


def layer(root: Path, **choices: Any) -> Migrations:
    """Return the migrations of the Alembic project in *root*."""
    configuration = find(root, **choices)
    assert configuration is not None
    context = BuildContext(settings_of(**choices), root, FileState(str(root)), configuration)
    return Migrations(context, configuration)


# What is found


def test_a_project_without_alembic_has_no_layer(tmp_path: Path) -> None:
    """Its tests get an empty database, or what schema and seed make of it."""
    assert find(tmp_path) is None


def test_a_pyproject_without_alembics_table_is_no_configuration(tmp_path: Path) -> None:
    """Every project has that file, and most have nothing for Alembic in it."""
    write(tmp_path / "pyproject.toml", TOML + '[tool.ruff]\nselect = ["alembic"]\n')

    assert find(tmp_path) is None


def test_folders_of_these_names_are_no_configuration(tmp_path: Path) -> None:
    """Only a file can be read as one."""
    (tmp_path / "alembic.ini").mkdir()
    (tmp_path / "pyproject.toml").mkdir()

    assert find(tmp_path) is None


def test_the_ini_file_at_the_root_is_found(root: Path) -> None:
    """Nothing has to be configured where things are where they usually are."""
    assert files(find(root)) == (root / "alembic.ini", None, "")
    assert layer(root).name == "alembic"


def test_the_table_in_pyproject_is_found(root: Path) -> None:
    """Alembic's newer way needs no ini file."""
    (root / "alembic.ini").unlink()
    write(root / "pyproject.toml", TOML + TABLE)

    assert files(find(root)) == (None, root / "pyproject.toml", "")


def test_both_are_taken_together(root: Path) -> None:
    """Alembic reads the table and the ini file, and so do we."""
    write(root / "pyproject.toml", TOML + TABLE)

    assert files(find(root)) == (root / "alembic.ini", root / "pyproject.toml", "")


@pytest.mark.parametrize("absolute", [False, True])
def test_a_named_ini_file_is_taken(root: Path, *, absolute: bool) -> None:
    """It is named relative to pytest's root, or by its whole path."""
    named = write(root / "conf/other.ini", INI)

    found = find(root, alembic=str(named) if absolute else "conf/other.ini")

    assert files(found) == (named, None, "")


def test_the_table_goes_with_a_named_ini_file(root: Path) -> None:
    """As for the command `alembic -c conf/other.ini`, the root's pyproject.toml counts too."""
    named = write(root / "conf/other.ini", INI)
    write(root / "pyproject.toml", TABLE)

    assert files(find(root, alembic="conf/other.ini")) == (named, root / "pyproject.toml", "")


def test_a_named_pyproject_is_taken(root: Path) -> None:
    """A part of a repository can have its own, whose table is the one that counts."""
    named = write(root / "backend/pyproject.toml", TABLE)

    assert files(find(root, alembic="backend/pyproject.toml")) == (None, named, "")


def test_the_ini_file_beside_a_named_pyproject_is_taken_with_it(root: Path) -> None:
    """Where a part of a repository has both, they belong together; the root's does not."""
    named = write(root / "backend/pyproject.toml", TABLE)
    ini = write(root / "backend/alembic.ini", INI)

    assert files(find(root, alembic="backend/pyproject.toml")) == (ini, named, "")


@pytest.mark.parametrize("name", ["shop.db:make_config", "shop.db:Database.upgrade", "conf:make"])
def test_a_named_function_is_taken_and_no_file(root: Path, name: str) -> None:
    """What gives the configuration knows where everything is; a file is not asked beside it."""
    write(root / "pyproject.toml", TABLE)

    assert files(find(root, alembic=name)) == (None, None, name)


def test_a_new_revision_needs_no_look_of_the_layers_own(root: Path) -> None:
    """That a template has all revisions is told by the digests of their folders."""
    assert layer(root).covers(LayerRecord("alembic", "k"))


# What changes the key


def key(root: Path, **choices: Any) -> str:
    """Return the key of the Alembic project in *root*."""
    return layer(root, **choices).key


@pytest.mark.parametrize(
    "several",
    [
        [{}, {"alembic_section": "shop"}, {"alembic_section": "Shop"}],
        [{}, {"alembic_x": ("a=1",)}, {"alembic_x": ("a=2",)}, {"alembic_x": ("a=1", "b=1")}],
        [{"alembic_x": ("a=1", "a=2")}, {"alembic_x": ("a=2", "a=1")}],
        [{}, {"env": ("A=1",)}, {"env": ("A=2",)}, {"env": ("A=1", "B=1")}],
        [{"env": ("A=1",)}, {"alembic_x": ("A=1",)}, {"alembic_section": "A=1"}],
        [{"alembic_x": ("env", "A=1")}, {"alembic_x": ("env",), "env": ("A=1",)}],
        [{}, {"alembic": "shop.db:make"}, {"alembic": "shop.db:make2"}],
        [{"alembic": "shop:a", "env": ("A=1",)}, {"alembic": "shop:a"}],
        [{}, {"depends_ignore": ("lite/*",)}, {"env": ("lite/*",)}],
    ],
)
def test_the_key_changes_with_what_is_said_outside_of_files(
    root: Path, several: list[dict[str, Any]]
) -> None:
    """What decides what the migrations do and stands in no file that they read, decides the key."""
    assert len({key(root, **choices) for choices in several}) == len(several)


def test_the_key_changes_with_the_kinds_of_files(root: Path) -> None:
    """With the table, without it, and with the table alone."""
    keys = {key(root)}
    write(root / "pyproject.toml", TOML + TABLE)
    keys.add(key(root))
    (root / "alembic.ini").unlink()
    keys.add(key(root))

    assert len(keys) == 3


def test_the_key_changes_with_the_file_that_is_named(root: Path) -> None:
    """Two parts of a repository have migrations of their own, in files of one name.

    The template of one would be found for the other, since of its own files none has changed.
    """
    write(root / "orders/alembic.ini", INI)
    write(root / "stock/alembic.ini", INI)
    write(root / "stock/other.ini", INI)
    names = ["", "orders/alembic.ini", "stock/alembic.ini", "stock/other.ini"]

    assert len({key(root, alembic=name) for name in names}) == len(names)


def test_the_key_is_that_of_a_copy_elsewhere(root: Path, tmp_path: Path) -> None:
    """The second checkout of a project, on a kept server, finds the template of the first."""
    copy = tmp_path / "deep/er/copy"
    write(copy / "alembic.ini", INI)
    for folder in (root, copy):
        write(folder / "conf/other.ini", INI)

    assert key(copy) == key(root)
    assert key(copy, alembic="conf/other.ini") == key(root, alembic="conf/other.ini")
    assert key(copy, alembic=str(copy / "conf/other.ini")) == key(
        root, alembic=str(root / "conf/other.ini")
    )


def test_the_key_does_not_change_with_what_stands_in_files(root: Path) -> None:
    """Files are compared by their digests, which can tell what has changed."""
    before = key(root)

    write(root / "alembic.ini", INI + "version_table = v\n")

    assert key(root) == before
    assert key(root, migrate_timeout=2.0, depends=("a",), keep_templates=1) == before


# What is refused


def refused(root: Path, **choices: Any) -> str:
    """Return the text of the error about the Alembic project in *root*."""
    with pytest.raises(TemplateFailed) as caught:
        find(root, **choices)
    return str(caught.value)


@pytest.mark.parametrize("name", ["conf/alembic.ini", "conf/pyproject.toml", "conf", "nowhere"])
def test_a_named_file_that_is_not_there_is_an_error(root: Path, name: str) -> None:
    """Who names a configuration does not want another one; the error says where it was named."""
    (root / "conf").mkdir()

    text = refused(root, alembic=name)

    assert text.startswith(f"The Alembic configuration {root}/{name} does not exist.\n")
    assert "Looked at: warmstack_alembic, from the pytest.ini\n" in text


def test_a_named_pyproject_without_the_table_is_an_error(root: Path) -> None:
    """A configuration that was named is not silently taken for none."""
    write(root / "backend/pyproject.toml", TOML)
    write(root / "backend/alembic.ini", INI)

    text = refused(root, alembic="backend/pyproject.toml")

    assert text.startswith(
        f"The Alembic configuration {root}/backend/pyproject.toml can't be used.\n"
        "Why: it has no table [tool.alembic]\n"
    )


@pytest.mark.parametrize("content", [b"[tool.alembic\n", b"\xff"])
def test_a_pyproject_that_cannot_be_read_is_an_error(root: Path, content: bytes) -> None:
    """The error names the file and tells the parser's own words."""
    (root / "pyproject.toml").write_bytes(content)

    assert refused(root).startswith(
        f"The Alembic configuration {root}/pyproject.toml can't be used.\nWhy:"
    )
