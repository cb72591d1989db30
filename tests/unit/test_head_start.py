"""What a run needed is remembered by its selection."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pytest_warmstack.head_start import MAX_SELECTIONS, Needs, remember
from pytest_warmstack.servers.identity import Service

NEEDS = Needs((Service.POSTGRES,), (("/srv/tests", ("a.sql",)),), ("/srv",), is_steady=False)


def read(path: Path) -> list[Any]:
    """Return the entries in the file."""
    return list(json.loads(path.read_text()))


def test_needs_are_read_as_they_were_written(tmp_path: Path) -> None:
    """The folder is made."""
    path = tmp_path / "warmstack/needs.json"
    remember(path, [], ["tests", ""], NEEDS)

    (entry,) = read(path)
    assert entry["selection"] == ["tests", ""]
    assert Needs.read(entry) == NEEDS


def test_the_last_selections_stay_and_one_that_needs_nothing_goes(tmp_path: Path) -> None:
    """A selection that is remembered already is not written again."""
    path = tmp_path / "needs.json"
    remember(path, [], ["0"], NEEDS)
    for number in range(1, MAX_SELECTIONS + 3):
        remember(path, read(path), [str(number)], NEEDS)
    remember(path, read(path), ["5"], Needs())
    before = path.stat().st_ino
    remember(path, read(path), ["9"], NEEDS)
    remember(path, read(path), ["never"], Needs())

    assert path.stat().st_ino == before
    last = range(MAX_SELECTIONS + 2, 2, -1)
    assert [each["selection"] for each in read(path)] == [[str(n)] for n in last if n != 5]


@pytest.mark.parametrize(
    "entry",
    [{}, {"services": ["mysql"]}, {"services": 3}, {"services": [], "templates": [1], "path": []}],
)
def test_an_entry_of_another_version_is_refused(entry: dict[str, Any]) -> None:
    """The caller then begins nothing."""
    with pytest.raises((KeyError, TypeError, ValueError)):
        Needs.read({"templates": [], "path": [], **entry})
