"""The layers of a template: which there are, in which order, and what decides each of them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

from pytest_warmstack.options import Settings
from pytest_warmstack.postgres.template.builder import Builder
from pytest_warmstack.postgres.template.configurations import Configurations
from pytest_warmstack.postgres.template.dependencies import FileState
from pytest_warmstack.postgres.template.errors import TemplateFailed
from pytest_warmstack.postgres.template.layers import (
    Base,
    Custom,
    Layer,
    Migrations,
    Scripts,
    Target,
    check_scripts,
    make,
)
from pytest_warmstack.postgres.template.record import MARKER, BuildStep, LayerRecord
from pytest_warmstack.postgres.template.template_layer import TemplateLayer
from pytest_warmstack.servers.model import Endpoint

NOWHERE = Target(
    Endpoint(host="127.0.0.1", port=5432, password="hunter2"), "warmstack_b_1", lambda _: [], list
)


class Search:
    """A custom layer."""

    def __init__(self, name: str = "search", text: str = "1", error: BaseException | None = None):
        self.name = name
        self._text = text
        self._error = error
        self.urls: list[str] = []

    def fingerprint(self) -> str:
        """What decides it."""
        return self._text

    def apply(self, url: str) -> None:
        """Take down where it was applied, or fail."""
        self.urls.append(url)
        if self._error is not None:
            raise self._error


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with Alembic and two scripts."""
    (tmp_path / "alembic.ini").write_text("[alembic]\nscript_location = migrations\n")
    (tmp_path / "base.sql").write_text("CREATE TABLE a (id int);\n")
    (tmp_path / "sql").mkdir()
    (tmp_path / "sql/demo.sql").write_text("INSERT INTO a VALUES (1);\n")
    return tmp_path


def layers(root: Path, *custom: TemplateLayer, **choices: Any) -> list[Layer]:
    """Return the layers of the project in *root*."""
    settings = Settings(sources={"schema": "pytest.ini", "seed": "tox.ini"}, **choices)
    alembic = Configurations(settings, root).of(root)
    return make(settings, root, FileState(str(root)), alembic, [[each] for each in custom])


def scripts(root: Path, *lines: str, **choices: Any) -> Scripts:
    """Return the layer of a seed of *lines*."""
    (layer,) = (each for each in layers(root, seed=lines, **choices) if each.name == "seed")
    assert isinstance(layer, Scripts)
    return layer


# Which there are


def test_a_project_that_says_nothing_has_no_layers(tmp_path: Path) -> None:
    """Its tests get an empty database."""
    assert layers(tmp_path) == []


def test_the_layers_stand_in_the_order_in_which_they_are_applied(root: Path) -> None:
    """The schema, the migrations, what others add, in their order, and the seed."""
    found = layers(root, Search("b"), Search("a"), schema=("base.sql",), seed=("sql/demo.sql",))

    assert [each.name for each in found] == ["schema", "alembic", "b", "a", "seed"]


def test_the_seeds_of_a_marker_are_a_layer_after_the_seed(root: Path) -> None:
    """Its scripts are those of the marker, and an error about them says so."""
    settings = Settings(seed=("base.sql",), sources={"seed": "tox.ini"})
    found = make(settings, root, FileState(str(root)), None, seeds=("sql/demo.sql", "absent.sql"))

    assert [each.name for each in found] == ["seed", MARKER]
    assert found[1].covers(LayerRecord(MARKER, "", steps=steps("sql/demo.sql", "absent.sql")))
    assert not found[1].covers(LayerRecord(MARKER, "", steps=steps("sql/demo.sql")))
    with pytest.raises(
        TemplateFailed, match=r"The seed file .*/absent.sql does not exist"
    ) as caught:
        found[1].plan(NOWHERE)
    assert caught.value.looked_at == ("warmstack_seed, from the marker",)


def steps(*names: str) -> tuple[BuildStep, ...]:
    """Return steps that need nothing."""
    return tuple(BuildStep(name, "", {}) for name in names)


@pytest.mark.parametrize(
    ("choices", "names"),
    [
        ({"schema": ("base.sql",)}, ["schema", "alembic"]),
        ({"seed": ("shop.demo:orders",)}, ["alembic", "seed"]),
        ({"alembic": "shop.db:make"}, ["alembic"]),
    ],
)
def test_a_layer_is_there_when_it_was_chosen(
    root: Path, choices: dict[str, Any], names: list[str]
) -> None:
    """A setting without lines has no layer."""
    assert [each.name for each in layers(root, **choices)] == names


def test_the_layers_of_one_build_share_its_process(root: Path) -> None:
    """One child runs the schema, the migrations and the seed; the settings reach it."""
    found = layers(
        root,
        schema=("base.sql",),
        seed=("sql/demo.sql",),
        env=("A=1",),
        depends_ignore=("x",),
        migrate_timeout=2.5,
    )
    contexts = [each._context for each in found if isinstance(each, Scripts | Migrations)]

    assert len({id(each.builder) for each in contexts}) == 1
    settings = contexts[0].settings
    assert (contexts[0].root, settings.env, settings.depends_ignore) == (root, ("A=1",), ("x",))
    assert settings.migrate_timeout == 2.5


# What everything stands on


def test_what_everything_stands_on_is_the_version_and_what_is_declared(root: Path) -> None:
    """A template of another PostgreSQL, or of other declared files, is another."""

    def base(version: str = "16.14", *depends: str) -> Base:
        return Base(version, Settings(depends=depends), FileState(str(root)))

    assert base().key == base("16.14", "sql").key
    assert base().key != base("16.15").key
    assert (
        base().key != Base("16.14", Settings(depends_ignore=("data/*",)), FileState(str(root))).key
    )
    planned = base("16.14", "sql", "nowhere").plan(NOWHERE)
    assert planned.remark == " (warmstack_depends: no files found for nowhere)"
    assert base("16.14", "sql").plan(NOWHERE).remark == ""
    assert set(planned.needs) == {"glob:sql", "glob:nowhere"}
    assert planned.steps == ()
    assert base("16.14", "nowhere", "sql").covers(planned)
    for others in ((), ("sql",), ("sql", "nowhere", "more")):
        assert not base("16.14", *others).covers(planned)


# Scripts


@pytest.mark.parametrize("ddl", ["", "0123"])
def test_each_line_is_a_step_with_its_file(
    root: Path, monkeypatch: pytest.MonkeyPatch, ddl: str
) -> None:
    """A function has no file of its own until it has run; a `MetaData` has what it makes."""
    report = {"ddl": ddl, "needs": {"file:shop/demo.py": "4567"}}
    monkeypatch.setattr(Builder, "ask", lambda *_, **__: report)
    planned = scripts(root, "sql/demo.sql", "shop.demo:orders").plan(NOWHERE)

    digest = FileState(str(root)).digest("file:sql/demo.sql")
    assert (planned.layer, planned.whole) == ("seed", True)
    key = "ddl:shop.demo:orders"
    assert planned.steps == (
        BuildStep("sql/demo.sql", "file:sql/demo.sql", {"file:sql/demo.sql": digest}),
        BuildStep("shop.demo:orders", key, {key: ddl, "file:shop/demo.py": "4567"})
        if ddl
        else BuildStep("shop.demo:orders", "", {}),
    )


def test_a_script_outside_of_the_project_has_a_name_too(root: Path) -> None:
    """It may be shared with others, and named by a relative or by its whole path."""
    shared = root.parent / f"{root.name}-shared.sql"
    shared.write_text("")

    for line in (f"../{shared.name}", str(shared)):
        (step,) = scripts(root, line).plan(NOWHERE).steps
        assert step.source == f"file:../{shared.name}"
        assert step.digest


@pytest.mark.parametrize("name", ["schema", "seed"])
def test_a_script_that_is_not_there_is_an_error(root: Path, name: str) -> None:
    """The error names the file, the setting, and where it stood; no server is needed for it."""
    settings = Settings(
        sources={"schema": "pytest.ini", "seed": "tox.ini"},
        **{name: ("shop.demo:orders", "base.sql", "sql/absent.sql")},  # type: ignore[arg-type]
    )

    with pytest.raises(TemplateFailed) as caught:
        check_scripts(settings, root)

    text = str(caught.value)
    source = {"schema": "pytest.ini", "seed": "tox.ini"}[name]
    assert text.startswith(f"The {name} file {root}/sql/absent.sql does not exist.\n")
    assert f"Looked at: warmstack_{name}, from the {source}\n" in text


def test_a_template_with_other_lines_is_another(root: Path) -> None:
    """More of them, fewer, others, or the same ones in another order."""
    planned = scripts(root, "base.sql", "sql/demo.sql").plan(NOWHERE)

    assert scripts(root, "base.sql", "sql/demo.sql").covers(planned)
    for lines in (
        ["base.sql"],
        ["sql/demo.sql", "base.sql"],
        ["base.sql", "sql/demo.sql", "shop:x"],
        ["base.sql", "shop:x"],
    ):
        assert not scripts(root, *lines).covers(planned)


def test_the_key_of_scripts_is_the_environment_that_they_get(root: Path) -> None:
    """A function may read it; the lines themselves are steps."""
    keys = {scripts(root, "base.sql", env=env).key for env in [(), ("A=1",), ("A=2",)]}

    assert len(keys) == 3
    assert scripts(root, "base.sql").key == scripts(root, "sql/demo.sql").key


# Custom layers


def test_a_custom_layer_is_one_step_whose_key_is_its_fingerprint() -> None:
    """It says itself when it would give another result."""
    layer = Custom(Search("search", "1"), 30)

    planned = layer.plan(NOWHERE)

    assert planned == LayerRecord("search", layer.key, steps=(BuildStep("", "", {}),))
    assert layer.covers(planned)
    assert Custom(Search("search", "1"), 30).key == layer.key
    assert Custom(Search("search", "2"), 30).key != layer.key
    assert planned.describe() == "search"


def test_a_custom_layer_is_applied_to_the_url_of_the_draft() -> None:
    """A plain URL, which every driver and every tool understands."""
    search = Search()
    layer = Custom(search, 30)

    applied = layer.apply(NOWHERE, layer.plan(NOWHERE))

    assert applied == layer.plan(NOWHERE)
    assert search.urls == ["postgresql://postgres:hunter2@127.0.0.1:5432/warmstack_b_1"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("no index at hunter2@127.0.0.1"), "ValueError: no index at ***@127.0.0.1"),
        (TimeoutError("too late"), "TimeoutError: too late"),
        (SystemExit(3), "SystemExit: 3"),
    ],
)
def test_a_custom_layer_that_fails_is_told_without_the_password(
    error: BaseException, words: str
) -> None:
    """The error names the layer and its class, in the words of what it raised."""
    layer = Custom(Search(error=error), 30)

    with pytest.raises(TemplateFailed) as caught:
        layer.apply(NOWHERE, layer.plan(NOWHERE))

    text = str(caught.value)
    assert text.startswith("The template layer search failed.\n")
    assert f"Why: {words}\n" in text
    assert f"a {__name__}.Search that pytest_warmstack_template_layers returned" in text
    assert "hunter2" not in text


def test_a_custom_layer_may_be_a_coroutine() -> None:
    """It has a loop of its own, beside that of the tests."""

    class Waiting(Search):
        def apply(self, url: str) -> Awaitable[None]:  # type: ignore[override]
            async def apply() -> None:
                await asyncio.sleep(0)
                self.urls.append(url)

            return apply()

    waiting = Waiting()
    layer = Custom(waiting, 30)

    layer.apply(NOWHERE, layer.plan(NOWHERE))

    assert len(waiting.urls) == 1


def test_a_custom_layer_that_takes_too_long_is_told() -> None:
    """Nobody waits for it for longer than for the migrations."""
    end = threading.Event()

    class Endless(Search):
        def apply(self, _url: str) -> None:
            end.wait(30)

    layer = Custom(Endless(), 0.1)

    with pytest.raises(TemplateFailed) as caught:
        layer.apply(NOWHERE, layer.plan(NOWHERE))
    end.set()

    assert str(caught.value).startswith("The layer search did not finish within 0.1 seconds.")
    assert f"in {__name__}." in str(caught.value)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (object(), "AttributeError: 'object' object has no attribute 'name'"),
        (Search(name=""), "its name is ''"),
        (Search(name=7), "its name is 7"),  # type: ignore[arg-type]
        (Search(text=None), "its fingerprint() is None"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_layer_is_told_as_such(layer: TemplateLayer, words: str) -> None:
    """Before anything is built: whoever wrote it reads what is missing."""
    with pytest.raises(TemplateFailed, match="can't be used") as caught:
        Custom(layer, 30)

    assert words in str(caught.value)


@pytest.mark.parametrize("result", [Search(), "search", {"search": Search()}, 7])
def test_a_hook_that_returns_no_list_is_told_as_such(root: Path, result: object) -> None:
    """One layer by itself is what one forgets to put into a list."""
    with pytest.raises(TemplateFailed, match=f"{type(result).__name__} can't be used") as caught:
        make(Settings(), root, FileState(str(root)), None, [[Search()], result])

    assert "the hook must return a list of layers" in str(caught.value)
