"""Which Alembic configuration the tests of a folder get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_warmstack.options import Settings
from pytest_warmstack.postgres.template import configurations
from pytest_warmstack.postgres.template.configurations import Configuration, Configurations
from pytest_warmstack.postgres.template.errors import TemplateFailed

INI = "[alembic]\nscript_location = %(here)s/migrations\n"
TABLE = '[tool.alembic]\nscript_location = "migrations"\n'


def write(path: Path, text: str = INI) -> Path:
    """Write *text* to *path*, making its folder, and return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A repository with two services, of which one has a pyproject.toml of its own."""
    write(tmp_path / "repo/services/users/alembic.ini")
    write(tmp_path / "repo/services/users/pyproject.toml", '[project]\nname = "users"\n')
    write(tmp_path / "repo/services/orders/pyproject.toml", TABLE)
    return tmp_path / "repo"


def found(root: Path, folder: str, *, ini: str = "", **choices: Any) -> Configuration | None:
    """Return what the tests in *folder* get; *ini* is the file that pytest uses."""
    settings = Settings(sources={"alembic": "pytest.ini"}, **choices)
    return Configurations(settings, root, root / ini if ini else None).of(root / folder)


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("services/users", "services/users/alembic.ini"),
        ("services/users/tests/api", "services/users/alembic.ini"),
        ("services/orders/tests", "services/orders/pyproject.toml"),
        ("services", None),
        ("services/mail/tests", None),
        ("tests", None),
    ],
)
def test_the_nearest_one_from_the_tests_upwards_counts(
    repo: Path, folder: str, name: str | None
) -> None:
    """None of another branch of the tree is taken."""
    configuration = found(repo, folder)

    assert (configuration and configuration.name) == name
    if configuration is not None:
        assert configuration.folder == repo / Path(configuration.name).parent


def test_the_roots_own_serves_those_without_one(repo: Path) -> None:
    """It is the last on the way."""
    write(repo / "alembic.ini")

    assert found(repo, "services/mail/tests") == Configuration(
        "alembic.ini", repo, repo / "alembic.ini"
    )
    assert found(repo, "services/users/tests") == found(repo, "services/users")


def test_both_files_of_a_folder_are_taken_together(repo: Path) -> None:
    """As Alembic does."""
    toml = write(repo / "services/users/pyproject.toml", TABLE)

    configuration = found(repo, "services/users/tests")

    assert configuration is not None
    assert (configuration.ini, configuration.toml) == (toml.with_name("alembic.ini"), toml)


@pytest.mark.parametrize("folder", ["tests", "services/users/tests"])
def test_the_folder_of_pytests_own_file_is_looked_at_after_the_way_up(
    repo: Path, folder: str
) -> None:
    """An editor gives --rootdir, and the file in use may lie beside the way."""
    write(repo / "app/alembic.ini")

    configuration = found(repo, folder, ini="app/pytest.ini")

    expected = "services/users/alembic.ini" if "users" in folder else "app/alembic.ini"
    assert configuration is not None
    assert configuration.name == expected


def test_tests_outside_of_the_root_find_their_own(repo: Path) -> None:
    """`pytest -c conf/pytest.ini app/tests`: the root is conf. Nothing above both is looked at."""
    write(repo.parent / "alembic.ini")
    write(repo / "app/alembic.ini")
    root = repo / "conf"

    configuration = Configurations(Settings(), root).of(repo / "app/tests")

    assert configuration is not None
    assert configuration.name == "../app/alembic.ini"
    assert Configurations(Settings(), root).of(repo / "other/tests") is None


def test_a_link_to_the_root_leads_there(repo: Path) -> None:
    """The root is known by its real name, and tests by the one that was used."""
    link = repo.parent / "link"
    link.symlink_to(repo)

    configuration = Configurations(Settings(), repo).of(link / "services/users/tests")

    assert configuration is not None
    assert configuration.name == "services/users/alembic.ini"


@pytest.mark.parametrize("ini", ["", "app/pytest.ini"])
def test_one_that_is_named_serves_all(repo: Path, ini: str) -> None:
    """It is named from pytest's own file, or from the root."""
    app = write(repo / "app/conf/alembic.ini")
    named = "conf/alembic.ini" if ini else "app/conf/alembic.ini"
    for folder in ("services/users", "tests"):
        configuration = found(repo, folder, ini=ini, alembic=named)
        assert configuration is not None
        assert configuration.ini == app
    other = found(repo, "tests", ini="app/pytest.ini", alembic="services/users/alembic.ini")
    assert other is not None
    assert other.name == "services/users/alembic.ini"


def test_none_is_none_whatever_is_there(repo: Path) -> None:
    """Tests that make their tables themselves say so."""
    assert found(repo, "services/users", alembic="none") is None


def test_a_file_of_tables_that_cannot_be_read_is_named(repo: Path) -> None:
    """Where it lies on the way."""
    write(repo / "services/pyproject.toml", "[tool.alembic\n")

    with pytest.raises(TemplateFailed) as caught:
        found(repo, "services/mail")

    assert f"{repo}/services/pyproject.toml" in str(caught.value)


def test_each_folder_is_looked_at_once(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many folders of tests there are."""
    asked: list[Path] = []
    original = Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda path: (asked.append(path), original(path))[1])
    places = Configurations(Settings(), repo)

    for _ in range(2):
        for number in range(10):
            places.of(repo / f"tests/unit/test{number}")

    # Its own, and those above it: tests/unit, tests and the root. Two files each.
    assert len(asked) == (10 + 3) * 2


# What is there, where the tests' way leads to none


def test_those_below_are_listed_the_nearest_ones_first(repo: Path) -> None:
    """Not those of what is installed, or hidden, and not the root's."""
    for folder in (
        ".git",
        ".venv/x",
        "env",
        "node_modules/a",
        "lib/site-packages/b",
        "deep/er/yet",
    ):
        write(repo / folder / "alembic.ini")
    write(repo / "env/pyvenv.cfg", "")
    write(repo / "last/alembic.ini")
    write(repo / "other/pyproject.toml", '[project]\nname = "other"\n')

    names = [each.name for each in Configurations(Settings(), repo).below()]

    assert names == [
        "last/alembic.ini",
        "services/orders/pyproject.toml",
        "services/users/alembic.ini",
        "deep/er/yet/alembic.ini",
    ]


def test_the_search_below_ends(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with a million files the run is not held up."""
    monkeypatch.setattr(configurations, "MAX_ENTRIES", 3)

    assert Configurations(Settings(), repo).below() == []


@pytest.mark.parametrize(
    ("name", "expected", "folder"),
    [
        ("services/users", "services/users/alembic.ini", "services/users"),
        ("services/users/alembic.ini", "services/users/alembic.ini", "."),
        ("services/orders", "services/orders/pyproject.toml", "services/orders"),
        ("services/orders/pyproject.toml", "services/orders/pyproject.toml", "."),
        ("shop.db:config", "shop.db:config", "."),
    ],
)
def test_db_factory_names_a_file_a_folder_or_a_function(
    repo: Path, name: str, expected: str, folder: str
) -> None:
    """Migrations of a folder run in it, and those of a file as the setting's do."""
    settings = Settings(alembic="none")

    configuration = Configurations(settings, repo).named(name)

    assert configuration.name == expected
    assert configuration.folder == repo / folder


@pytest.mark.parametrize("name", ["services", "services/users/nothing.ini", "nowhere"])
def test_what_db_factory_names_must_exist(repo: Path, name: str) -> None:
    """The error doesn't speak of a setting."""
    with pytest.raises(TemplateFailed) as caught:
        Configurations(Settings(), repo).named(name)

    assert caught.value.what == f"The Alembic configuration {repo / name} does not exist."
    assert caught.value.looked_at == ("the arguments of db_factory",)
    assert len(caught.value.todo) == 1
