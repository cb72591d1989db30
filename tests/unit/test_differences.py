"""Differences are shown in lines that fit, in colours only where these are wanted."""

from __future__ import annotations

import pytest

from pytest_warmstack.cli.differences import coloured, lines
from pytest_warmstack.postgres.comparison import (
    Comparison,
    ObjectChange,
    RowChange,
    TableChange,
)


def text(*tables: TableChange, limit: int = 20) -> list[str]:
    """Return the lines about *tables*."""
    return list(lines(Comparison(tables=[*tables]), limit=limit))


def test_of_long_values_the_part_that_differs_is_shown() -> None:
    """After a few characters that are the same."""
    before, after = ({"note": f"{'same ' * 50}{word} end"} for word in ("old", "new"))
    row = RowChange("changed", {"id": "1"}, before, after)

    found = text(TableChange(table="public.note", changed=1, rows=[row], numeric=frozenset({"id"})))

    assert found == [
        "public.note: 1 changed",
        "  ~ id=1: note '...me same old end' -> '...me same new end'",
    ]


def test_equal_rows_are_counted() -> None:
    """Each of them counts as one that is shown."""
    row = RowChange("added", {}, {}, {"line": None}, times=1200)

    found = text(TableChange(table="public.log", added=1201, rows=[row]), limit=1)

    assert found == [
        "public.log: 1,201 added",
        "  + line=NULL (1,200 times)",
        "  ... 1 more row (--limit 10 shows more)",
    ]


def test_a_table_with_too_many_differences_is_told() -> None:
    """With the number of rows before and after."""
    table = TableChange(table="public.log", before=300_000, after=1, added=None)

    assert text(table) == [
        "public.log: 300,000 rows -> 1, too many differences to compare row by row"
    ]


def test_a_long_definition_has_a_line_for_each_side() -> None:
    """Cut off at the width."""
    change = ObjectChange("view", "public.v", "changed", "SELECT\n 1" + "0" * 90, "SELECT 2")

    found = list(lines(Comparison(objects=[change]), limit=1, width=40))

    assert found == ["view public.v changed:", f"  - SELECT 1{'0' * 28}", "  + SELECT 2"]


def test_only_rows_have_a_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of their sign; none with NO_COLOR."""
    monkeypatch.delenv("NO_COLOR", raising=False)

    assert coloured("  + id=1") == "\x1b[32m  + id=1\x1b[0m"
    assert coloured("     and=more") == "     and=more"
    assert coloured("-- a test's name") == "-- a test's name"
    monkeypatch.setenv("NO_COLOR", "1")
    assert coloured("  + id=1") == "  + id=1"
