"""What the arguments of the marker `warmstack_seed` mean."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_warmstack.environment import TemplateKey
from pytest_warmstack.fixtures import needs
from pytest_warmstack.options import Settings
from pytest_warmstack.seeds import SeedError, _read
from pytest_warmstack.session import SESSION


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with an SQL file at its root, one beside its tests, and one outside."""
    for name in ("shop/a.sql", "shop/tests/b.sql", "c.sql"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("SELECT 1;\n")
    return tmp_path / "shop"


def read(root: Path, *values: object, **keywords: object) -> list[str]:
    """Return the scripts of a marker with these arguments, of a test in the folder `tests`."""
    mark = pytest.Mark("warmstack_seed", values, keywords, _ispytest=True)
    return list(_read(mark, "tests/test_it.py::test_it", (root / "tests", root)))


@pytest.mark.parametrize(
    ("value", "script"),
    [
        ("a.sql", "a.sql"),
        ("../a.sql", "a.sql"),
        ("./tests/../a.sql", "a.sql"),
        ("b.sql", "tests/b.sql"),
        ("tests/b.sql", "tests/b.sql"),
        ("../c.sql", "../c.sql"),
        ("tests.seeds:catalogue", "tests.seeds:catalogue"),
        ("models:Base.metadata", "models:Base.metadata"),
    ],
)
def test_a_path_begins_at_the_tests_or_at_the_root(root: Path, value: str, script: str) -> None:
    """It becomes one from the root, so that every spelling has the same template."""
    assert read(root, value) == [script]


def test_a_whole_path_is_one_from_the_root_as_well(root: Path) -> None:
    """So that another checkout of the same project has the same template."""
    assert read(root, str(root / "tests/b.sql")) == ["tests/b.sql"]


def test_a_path_that_names_two_files_is_an_error_with_a_path_for_each(root: Path) -> None:
    """These paths name one file each."""
    (root / "b.sql").write_text("SELECT 2;\n")

    with pytest.raises(SeedError) as caught:
        read(root, "b.sql")

    first, second = caught.value.todo
    assert first == f'write "tests/b.sql" for {root}/tests/b.sql'
    assert second == f'write "../b.sql" for {root}/b.sql'
    assert read(root, "tests/b.sql", "../b.sql") == ["tests/b.sql", "b.sql"]


def test_the_name_of_a_function_is_suggested_for_the_function(root: Path) -> None:
    """A marker that has another argument besides takes it as one."""
    with pytest.raises(SeedError) as caught:
        read(root, "a.sql", read)

    assert f'"{__name__}:read"' in caught.value.todo[0]


@pytest.mark.parametrize("value", [None, 3, Path("a.sql"), "", "a", "seeds.py", "seeds.catalogue"])
def test_what_names_no_script_is_an_error(root: Path, value: object) -> None:
    """Whatever it is."""
    with pytest.raises(SeedError, match="Invalid script"):
        read(root, value)


def item(root: Path, *fixtures: str, seeds: tuple[object, ...] = ()) -> Any:
    """Return a test of the project that has *fixtures*, and a marker if there are *seeds*."""
    marks = [pytest.Mark("warmstack_seed", seeds, {}, _ispytest=True)] if seeds else []
    session = SimpleNamespace(settings=Settings(seed=("./a.sql",)))
    found = SimpleNamespace(
        config=SimpleNamespace(rootpath=root, stash={SESSION: session}),
        path=root / "tests/test_it.py",
        nodeid="tests/test_it.py::test_it",
        fixturenames=fixtures,
        own_markers=marks,
        get_closest_marker=lambda _: marks[0] if marks else None,
    )
    found.listchain = lambda: [found]
    return found


def test_the_tests_of_each_template_are_counted(root: Path) -> None:
    """A wrong marker needs nothing; a script that the setting has makes no other template."""
    database = ("_warmstack_postgres", "db_url")
    items = [
        *(item(root, *database) for _ in range(3)),
        item(root, *database, seeds=("a.sql",)),
        *(item(root, *database, seeds=("b.sql", "a.sql", "tests/b.sql")) for _ in range(2)),
        item(root, "_warmstack_postgres", seeds=("b.sql",)),
        item(root, *database, "_warmstack_redis", seeds=("absent.sql",)),
        item(root, "tmp_path", seeds=("../c.sql",)),
    ]
    folder = root / "tests"

    services, counts = needs(items)

    assert services == {"postgres"}
    assert counts == {TemplateKey(folder): 4, TemplateKey(folder, ("tests/b.sql",)): 2}
