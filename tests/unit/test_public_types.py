"""What users see of the types: `make typing` checks tests/typing, which has to be complete."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest

import pytest_warmstack
from pytest_warmstack import fixtures, plugin

MODULES = [
    ast.parse(path.read_text())
    for path in Path(__file__, "../../typing").resolve().iterdir()
    if path.suffix == ".py"
]
NODES = [node for module in MODULES for node in ast.walk(module)]


def declared() -> Iterator[tuple[str, str]]:
    """Yield each public fixture with the type of what it gives, as text."""
    for attribute, each in vars(fixtures).items():
        if type(each).__name__ != "FixtureFunctionDefinition":
            continue
        name = getattr(each, "name", None) or attribute
        if not name.startswith("_"):
            result = each._get_wrapped_function().__annotations__["return"]
            yield name, re.sub(r"^(Async)?(Iterator|Generator)\[(.*)\]$", r"\3", result)


@pytest.mark.parametrize(("name", "result"), list(declared()))
def test_a_fixture_has_the_type_that_users_write(name: str, result: str) -> None:
    """A module of tests/typing asks for it, and every one that does annotates it right."""
    written = {
        ast.unparse(node.annotation)
        for node in NODES
        if isinstance(node, ast.arg) and node.arg == name and node.annotation is not None
    }

    assert written == {result}


def test_each_public_name_is_checked() -> None:
    """A module of tests/typing imports it."""
    imported = {
        alias.name
        for node in NODES
        if isinstance(node, ast.ImportFrom) and node.module == "pytest_warmstack"
        for alias in node.names
    }

    assert set(pytest_warmstack.__all__) <= imported
    for name in pytest_warmstack.__all__:
        assert getattr(pytest_warmstack, name) is not None
        assert name in dir(pytest_warmstack)


def test_each_hook_is_checked() -> None:
    """A module of tests/typing implements it with the annotations of its specification."""
    written = {node.name: node for node in NODES if isinstance(node, ast.FunctionDef)}

    for name, hook in vars(plugin.HookSpecs).items():
        if name.startswith("pytest_"):
            function = written[name]
            types = {each.arg: each.annotation for each in function.args.args}
            types["return"] = function.returns
            unparsed = {each: ast.unparse(kind) for each, kind in types.items() if kind}
            assert unparsed == hook.__annotations__


def test_each_marker_is_checked(pytestconfig: pytest.Config) -> None:
    """A module of tests/typing uses it."""
    lines: list[str] = pytestconfig.getini("markers")
    own = {
        name for line in lines if (name := line.split("(")[0].split(":")[0]).startswith("warmstack")
    }
    used = {ast.unparse(node) for node in NODES if isinstance(node, ast.Attribute)}

    assert own
    assert {f"pytest.mark.{name}" for name in own} <= used


def test_checkers_read_the_types_of_an_installed_package() -> None:
    """The package says so, as PEP 561 asks."""
    assert (resources.files("pytest_warmstack") / "py.typed").is_file()


def test_a_misspelt_name_is_an_error_at_run_time_too() -> None:
    """It is no attribute, though public names are imported when they are first used."""
    assert "pytest_warmstack" in sys.modules
    with pytest.raises(AttributeError, match="has no attribute 'ServerHandel'"):
        _ = pytest_warmstack.ServerHandel  # type: ignore[attr-defined]
