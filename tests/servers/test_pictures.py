"""The pictures of the documentation show what runs and commands print today."""

from __future__ import annotations

import difflib
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from projects import assert_nothing_left

ROOT = Path(__file__).parents[2]
NAMES = ("cold", "warm", "failure", "queries", "status", "doctor")


@pytest.fixture(scope="module")
def make() -> Any:
    """The script that makes the pictures."""
    sys.path.insert(0, str(ROOT / "docs" / "pictures"))
    try:
        import make
    finally:
        sys.path.pop(0)
    return make


@pytest.fixture(scope="module")
def printed(
    make: Any, embedded_programs: None, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """What each scene prints in a new run."""
    folder = Path(os.path.realpath(tmp_path_factory.mktemp("pictures"))) / "library"
    found = dict(make.scenes(folder))
    assert_nothing_left(folder)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_has_the_words_of_a_new_run(
    make: Any, printed: dict[str, str], name: str
) -> None:
    """If not, the message shows the difference, and how to draw the picture again."""
    shown, new = (make.words(text) for text in (
        make.text_of(make.picture(name)), make.plain(printed[name])
    ))  # fmt: skip

    changes = "\n".join(difflib.unified_diff(shown, new, "the picture", "a new run", lineterm=""))
    assert not changes, (
        f"docs/pictures/{name}.svg is outdated; to draw it: make pictures\n{changes}"
    )


def test_every_scene_has_a_picture_that_the_documentation_shows(make: Any) -> None:
    """And there is no other picture."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    shown = re.findall(r"\((?:docs/)?pictures/(\w+)\.svg\)", "".join(map(Path.read_text, pages)))

    assert tuple(make.SCENES) == NAMES
    assert sorted(shown) == sorted(NAMES)
    assert sorted(each.stem for each in make.HERE.glob("*.svg")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_small_and_refers_to_nothing_outside(make: Any, name: str) -> None:
    """No font or image is fetched, and no folder of the machine that drew it is in it."""
    svg = make.picture(name).read_text(encoding="utf-8")

    assert len(svg) < 40_000
    assert re.findall(r"\w+://[\w.]+", svg.replace("postgresql://", "")) == ["http://www.w3.org"]
    assert not re.search(r"url\((?!#)|<script|<image|href=", svg)
    assert "/tmp/pytest" not in svg
    assert str(ROOT) not in svg
    # What it draws is what its description says.
    drawn = "".join(re.findall(r"<text[^>]*>(.*?)</text>", svg)).replace("&#160;", "")
    described = re.search("<desc>(.*)</desc>", svg, re.DOTALL)
    assert described is not None
    without_quotes = drawn.replace("&#x27;", "'").replace("&quot;", '"')
    assert "".join(without_quotes.split()) == "".join(described[1].split())


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("template: built in 168 ms", "template: built in 1.29 s", True),
        ("2 clones of under 1 ms", "2 clones of 8 ms", True),
        ("running  9 s  now", "running  13 min  2 s ago", True),
        ("on 127.0.0.1:5432, process 17", "on 127.0.0.1:27858, process 6454", True),
        ("psql 90c1a3aba4", "psql 14d643cdfd", True),
        ("=== 4 passed in 0.37s ===", "= 4 passed in 10.37s =", True),
        ("=== 4 passed in 0.37s ===", "=== 5 passed in 0.37s ===", False),
        ("template: built in 168 ms", "template: found in 168 ms", False),
        ("its database is saved", "its database is kept", False),
        ("option --reuse", "option -reuse", False),
    ],
)
def test_only_words_make_a_picture_outdated(make: Any, one: str, other: str, same: bool) -> None:
    """Times, ports and ids differ from run to run."""
    assert (make.words(one) == make.words(other)) is same
