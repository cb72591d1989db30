"""The architecture page has the floors, the modules and the tests that the repository has."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "pytest_warmstack"

PACKAGES = ("postgres/template/", "postgres/", "servers/", "redis/", "cli/", "pytest_warmstack/")
"""The packages with a table of their own, inner ones first."""

MODULES = sorted(
    path.relative_to(SOURCE).with_suffix("").as_posix() for path in SOURCE.rglob("*.py")
)


@pytest.fixture(scope="module")
def page() -> str:
    """The text of the page."""
    return (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_drawing_has_the_floors_of_the_linter(page: str) -> None:
    """Each floor is a line of the drawing, in the same order."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    floors = tools["importlinter"]["contracts"][0]["layers"]

    drawing = page.partition("```text\n")[2].partition("```")[0].splitlines()[2:]
    drawn = [re.split(r"  ", line)[0].strip() for line in drawing]
    assert drawn == floors


@pytest.mark.parametrize("module", MODULES)
def test_each_module_is_in_the_table_of_its_package(page: str, module: str) -> None:
    """A module without code has no row."""
    if not re.search(r"^(def|class|async def) ", (SOURCE / f"{module}.py").read_text(), re.M):
        return
    package = next((each for each in PACKAGES if module.startswith(each)), PACKAGES[-1])
    if module == "__init__":
        return  # The public names.

    table = page.partition(f"### `{package}`")[2].partition("\n### ")[0]
    cells = "".join(re.findall(r"^\| (`.*?`) \|", table, re.M))
    assert f"`{module.removeprefix(package)}`" in cells


def test_each_module_in_a_table_exists(page: str) -> None:
    """No row is left of a module that was moved."""
    rooms = page.partition("## Where to find a line")[2].partition("\n## ")[0]
    for section in rooms.split("\n### ")[1:]:
        package = section.partition("`")[2].partition("`")[0].removeprefix("pytest_warmstack/")
        for cell in re.findall(r"^\| (`.*?`) \|", section, re.M):
            for name in re.findall(r"`(.*?)`", cell):
                assert f"{package}{name}" in MODULES


def test_each_server_test_is_listed(page: str) -> None:
    """Every file of tests/servers has a subject, and each that is listed exists."""
    table = page.partition("| subject |")[2]
    listed = set(re.findall(r"`(\w+)`", table))

    found = {path.stem.removeprefix("test_") for path in (ROOT / "tests/servers").glob("test_*.py")}
    assert found == listed
