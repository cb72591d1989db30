"""The README tells what the code knows."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from pytest_warmstack import fixtures, options
from pytest_warmstack.postgres.template.child import arguments

README = Path(__file__, "../../../README.md").resolve()


@pytest.fixture(scope="module")
def text() -> str:
    """The README."""
    return README.read_text(encoding="utf-8")


def public() -> list[str]:
    """Return the names of the fixtures that users may ask for, as pytest finds them."""
    found = vars(fixtures).items()
    definitions = {
        getattr(each, "name", None) or name
        for name, each in found
        if type(each).__name__ == "FixtureFunctionDefinition"
    }
    return sorted(name for name in definitions if not name.startswith("_"))


def test_the_public_fixtures_are_those_that_the_design_names() -> None:
    """The list that these tests go by is the one that users were promised."""
    assert {
        "db_engine",
        "db_session",
        "db_url",
        "postgres_container",
        "redis_client",
        "redis_container",
        "redis_url",
    } <= set(public())


def test_the_table_of_choices_is_that_of_the_code(text: str) -> None:
    """Every choice, with its names and its default, stands in the README as the code has it."""
    assert options.table() in text


def test_the_table_of_what_seeds_take_is_that_of_the_code(text: str) -> None:
    """Every kind of parameter that a function may have."""

    def cell(kinds: Iterable[str]) -> str:
        return ", ".join(each if " " in each else f"`{each}`" for each in kinds)

    for names, kinds, async_kinds in arguments.PARAMETERS:
        assert f"| {cell(names)} | {cell(kinds)} | {cell(async_kinds or kinds)} |\n" in text


@pytest.mark.parametrize("name", public())
def test_the_table_of_fixtures_names_each(text: str, name: str) -> None:
    """A fixture that users may ask for has a row."""
    assert re.search(rf"^\|.*`{name}`.*\|", text, re.MULTILINE)


def test_the_table_of_choices_has_a_row_for_each() -> None:
    """The table names every flag, ini key and variable, and the way to switch the reuse off."""
    from pytest_warmstack.options import OPTIONS

    lines = options.table().splitlines()

    assert len(lines) == 2 + len(OPTIONS)
    assert len({line.count("|") for line in lines}) == 1
    assert "`--reuse-containers`, `--no-reuse-containers`" in options.table()
    for line, choice in zip(lines[2:], OPTIONS.values(), strict=True):
        assert (f"`{choice.ini}`" in line) is (choice.kind is not options.FLAG)
        assert (choice.flag is None) or f"`{choice.flag}`" in line
        assert (choice.variable is None) or f"`{choice.variable}`" in line


def test_the_page_about_applications_names_each_placeholder() -> None:
    """And none that the lines of `warmstack_env` don't know."""
    page = (README.parent / "docs" / "application.md").read_text(encoding="utf-8")

    assert set(re.findall(r"\{(\w+)\}", page)) == {*options.DB_NAMES, *options.REDIS_NAMES}


def dry(target: str) -> list[str]:
    """Return the commands that `make` would run for a target."""
    command = ["make", "--dry-run", "--no-print-directory", target]
    told = subprocess.run(command, cwd=README.parent, capture_output=True, text=True, check=True)
    return told.stdout.splitlines()


def test_the_two_commands_for_a_fresh_machine_run_pytest(text: str) -> None:
    """And nothing that has to be done before is left to the reader."""
    named = re.findall(r"^    make (\S+) ", text, re.MULTILINE)

    assert named == ["test-integration", "test"]
    for each in named:
        assert " -m pytest " in dry(each)[-1]


def test_containers_clean_is_our_own_command() -> None:
    """So the repository's servers go as everybody's do."""
    assert dry("containers-clean")[-1].endswith("/warmstack clean")
