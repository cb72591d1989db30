"""The database for development: when its template has changed."""

from __future__ import annotations

import pytest

from pytest_warmstack.postgres import development, sql
from pytest_warmstack.postgres.template.record import ALEMBIC, BASE, BuildStep, LayerRecord, Record


def record(*digests: str, seed: str = "", helper: str = "x") -> Record:
    """Return the record of a template with a revision for each of *digests*."""
    steps = []
    for number, digest in enumerate(digests):
        source = f"file:versions/{number}.py"
        after = (str(number - 1),) if number else ()
        needs = {source: digest, "file:helper.py": helper}
        steps.append(BuildStep(str(number), source, needs, after))
    layers = [LayerRecord(BASE, "16.1"), LayerRecord(ALEMBIC, "key", steps=tuple(steps))]
    if seed:
        step = BuildStep("demo.sql", "file:demo.sql", {"file:demo.sql": seed})
        layers.append(LayerRecord("seed", "key", steps=(step,)))
    return Record(1.0, "run", tuple(layers))


def is_current(old: Record, new: Record, *versions: str) -> bool:
    """Tell whether a database of *old* is current; its alembic_version has *versions*."""
    described = development._describe(old)
    values = sql.read_development(sql.development(described))
    return development._is_current(values, new, lambda _: [*versions])


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (record("a", "b", seed="s"), True),
        (record("a", "c", seed="s"), False),
        (record("a", seed="s"), False),
        (record("a", "b", seed="t"), False),
        (record("a", "b"), False),
        (record("a", "b", seed="s", helper="y"), False),
        (record("a", "b", "c", seed="s"), False),
        (Record(0.0, "", ()), False),
    ],
    ids=["same", "edited", "fewer", "other seed", "no seed", "other helper", "more", "unreadable"],
)
def test_a_database_is_current_if_its_template_would_be_built_again(
    new: Record, *, expected: bool
) -> None:
    """Every step and everything that it read counts."""
    assert is_current(record("a", "b", seed="s"), new, "1") is expected


@pytest.mark.parametrize(("version", "expected"), [("1", False), ("2", True), ("3", False)])
def test_revisions_that_the_user_has_applied_are_no_change(version: str, *, expected: bool) -> None:
    """The table of Alembic says which head the database is at."""
    assert is_current(record("a", "b"), record("a", "b", "c"), version) is expected


def test_a_comment_of_another_tool_says_nothing() -> None:
    """It is no reason to fail."""
    assert sql.read_development("a note of mine") == {}
    assert sql.read_development("7") == {}
