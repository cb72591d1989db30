"""What a template says of itself: written into its comment, read back, told in the header."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pytest_warmstack.postgres import sql
from pytest_warmstack.postgres.template.record import (
    ALEMBIC,
    BASE,
    MARKER,
    BuildStep,
    LayerRecord,
    Record,
    count_steps,
)

HELPER = ("file:shop/migrations/helpers.py", "d" * 16)


def revision(number: int, **more: str) -> BuildStep:
    """Return the step of a revision, which needs *more* besides its own file."""
    source = f"file:shop/migrations/versions/{number:04}_t.py"
    return BuildStep(f"{number:04}", source, {source: f"{number:016}", **more})


def revisions(count: int, first: int = 1, **fields: Any) -> LayerRecord:
    """Return what the layer of Alembic has."""
    steps = tuple(revision(number) for number in range(first, first + count))
    return LayerRecord(ALEMBIC, "k", steps=steps)._replace(**fields)


def seed(*names: str) -> LayerRecord:
    """Return what the layer of the seed has."""
    return LayerRecord("seed", "s", steps=tuple(BuildStep(name, "", {}) for name in names))


def record(*layers: LayerRecord) -> Record:
    """Return the record of a template of *layers*, above what everything stands on."""
    return Record(1.5, "run", (LayerRecord(BASE, "b", needs={"glob:data": "1"}), *layers))


# Written and read


WHOLE = Record(
    built=1763866800.123456,
    run="0123456789",
    layers=(
        LayerRecord(BASE, "0" * 16, needs={"glob:data/**": "1" * 16, "glob:absent": ""}),
        LayerRecord(
            "schema", "1" * 16, steps=(BuildStep("a.sql", "file:a.sql", {"file:a.sql": "2"}),)
        ),
        LayerRecord(
            ALEMBIC,
            "2" * 16,
            needs={"package:alembic": "1.16.0", "ini:alembic.ini": "3/4"},
            folders={"scripts:migrations/versions": "5"},
            steps=(
                revision(1)._replace(after=()),
                revision(2, **{HELPER[0]: HELPER[1], "file:größe.csv": "6"})._replace(
                    after=("0001",)
                ),
                BuildStep("shop.db:upgrade", "", {"file:shop/db.py": "7"}),
            ),
            remark=" (1 revision file that Alembic does not see)",
            whole=False,
        ),
        LayerRecord("search index", "3" * 16, steps=(BuildStep("", "", {}),)),
        LayerRecord("seed", "4" * 16),
    ),
)
"""A record with something in each of its places."""


def test_a_record_is_read_as_it_was_written() -> None:
    """All of it, in order: layers, steps, and what each of them needs."""
    again = Record.read(WHOLE.write())

    assert again == WHOLE
    assert again is not None
    assert again.write() == WHOLE.write()
    assert [list(step.needs) for step in again.layers[2].steps] == [
        list(step.needs) for step in WHOLE.layers[2].steps
    ]


def test_what_many_steps_share_stands_in_the_text_once() -> None:
    """A helper that a thousand revisions import makes the comment no thousand times longer."""
    many = LayerRecord(
        ALEMBIC,
        "k",
        needs=dict([HELPER]),
        steps=tuple(revision(number, **dict([HELPER])) for number in range(1000)),
    )
    text = record(many).write()

    assert Record.read(text) == record(many)
    assert text.count(HELPER[0]) == 1
    assert text.count("0999_t.py") == 1
    assert len(text) < 150 * 1000


def test_one_file_with_two_digests_stays_two() -> None:
    """A file that changed between two parts of a build is told for each as that one read it."""
    both = LayerRecord(
        ALEMBIC,
        "k",
        steps=(revision(1, **{HELPER[0]: "before"}), revision(2, **{HELPER[0]: "after"})),
    )

    assert Record.read(record(both).write()) == record(both)


def test_what_was_left_on_the_way_is_known_by_the_beginning_of_its_text() -> None:
    """The text is long, and a sweep does not read all of it."""
    left = WHOLE._replace(left=True)

    assert left.write().startswith(sql.LEFT)
    assert Record.read(left.write()) == left
    assert not WHOLE.write().startswith(sql.LEFT)


def test_seeds_of_a_marker_are_known_by_the_beginning_of_the_text() -> None:
    """So that a sweep counts them separately; what was left on the way is that first."""
    marked = record(seed("a.sql")._replace(layer=MARKER))

    assert marked.write().startswith(sql.SEEDED)
    assert Record.read(marked.write()) == marked
    assert marked._replace(left=True).write().startswith(sql.LEFT)
    assert not WHOLE.write().startswith(sql.SEEDED)


def test_a_text_without_line_breaks_is_written() -> None:
    """It becomes a comment of PostgreSQL, and nobody reads it but us."""
    assert "\n" not in WHOLE.write()
    assert json.loads(WHOLE.write())["run"] == "0123456789"


@pytest.mark.parametrize(
    "comment",
    [
        *("", " ", "a note of mine", "null", "[]", "7", "{}", '"built"', "{", "\x00"),
        '{"built": 1, "run": "r"}',
        '{"built": 1, "run": "r", "layers": []}',
        '{"built": "yesterday", "run": "r", "layers": [], "table": []}',
        '{"built": null, "run": "r", "layers": [], "table": []}',
        '{"built": 1, "run": "r", "layers": 5, "table": []}',
        '{"built": 1, "run": "r", "layers": [[]], "table": []}',
        '{"built": 1, "run": "r", "layers": [["a", "k", [0], [], [], "", true]], "table": []}',
        '{"built": 1, "run": "r", "layers": [["a", "k", 0, [], [], "", true]], "table": []}',
        '{"built": 1, "run": "r", "layers": [["a", "k", [], [], [1], "", true]], "table": []}',
        '{"built": 1, "run": "r", "layers": [["a", "k", [], [], []]], "table": []}',
        '{"built": 1, "run": "r", "layers": [], "table": [1]}',
        '{"built": 1, "run": "r", "layers": [], "table": ["abc"]}',
        # What the version before this one wrote.
        '{"built": 1763866800.0, "layers": "9 revisions"}',
    ],
)
def test_a_comment_that_is_not_ours_is_read_as_none(comment: str) -> None:
    """A template that says nothing that we understand is not used, and ends no run."""
    assert Record.read(comment) is None


@pytest.mark.parametrize("end", [1, 10, 100, -2])
def test_a_comment_that_was_cut_is_read_as_none(end: int) -> None:
    """Half of a record is none."""
    assert Record.read(WHOLE.write()[:end]) is None


# What it tells


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (revisions(9), "9 revisions"),
        (revisions(1), "1 revision"),
        (revisions(0), "0 revisions"),
        (revisions(2, remark=" (Alembic warns: no)"), "2 revisions (Alembic warns: no)"),
        (seed("demo.sql"), "seed demo.sql"),
        (seed("a.sql", "shop.demo:orders"), "2 seed scripts"),
        (seed("a.sql", "shop.demo:orders")._replace(layer=MARKER), "seed a.sql + shop.demo:orders"),
        (
            LayerRecord(ALEMBIC, "k", steps=(BuildStep("shop.db:upgrade", "", {}),), remark=" (x)"),
            "the migrations of shop.db:upgrade (x)",
        ),
        (LayerRecord("schema", "k", steps=(BuildStep("a.sql", "file:a.sql", {}),)), "schema a.sql"),
        (LayerRecord("search index", "k", steps=(BuildStep("", "", {}),)), "search index"),
    ],
)
def test_a_layer_tells_what_it_holds(layer: LayerRecord, words: str) -> None:
    """Revisions are counted, a script is named, and somebody else's layer has its name."""
    assert layer.describe() == words


def test_a_record_tells_what_its_layers_hold() -> None:
    """In the order in which they were applied, without what everything stands on."""
    assert record().text == "an empty database"
    assert record(revisions(9)).text == "9 revisions"
    assert record(revisions(9), seed("demo.sql")).text == "9 revisions, seed demo.sql"


def test_a_warning_is_told_once_at_its_end() -> None:
    """One about what everything stands on too, which has no words of its own."""
    warned = LayerRecord(BASE, "b", remark=" (no files found for sql)")
    unseen = revisions(0, remark=" (1 revision file that Alembic does not see)")

    assert Record(1.5, "run", (warned, revisions(9), seed("a.sql"))).text == (
        "9 revisions, seed a.sql (no files found for sql)"
    )
    assert record(unseen).text == "0 revisions (1 revision file that Alembic does not see)"


@pytest.mark.parametrize(
    ("source", "label"),
    [
        ("file:shop/versions/0007_add_totals.py", "0007_add_totals.py"),
        ("file:0007_add_totals.py", "0007_add_totals.py"),
        ("file:<site>/thing/0001.py", "0001.py"),
        ("file:../a b.sql", "a b.sql"),
        ("", "the name"),
    ],
)
def test_a_step_is_known_by_the_name_of_its_file(source: str, label: str) -> None:
    """That is what a reader sees in the folder; without a file it is the step's own name."""
    step = BuildStep("the name", source, {source: "1"} if source else {})

    assert step.label == label


def test_a_steps_own_file_is_told_from_the_others() -> None:
    """Its own is compared by content, so that it can be renamed; the others by their names."""
    step = revision(1, **dict([HELPER]))

    assert step.digest == f"{1:016}"
    assert step.other_needs() == dict([HELPER])
    assert BuildStep("shop.demo:orders", "", dict([HELPER])).digest is None
    assert BuildStep("shop.demo:orders", "", dict([HELPER])).other_needs() == dict([HELPER])


@pytest.mark.parametrize(
    ("base", "made", "words"),
    [
        (record(revisions(14)), record(revisions(16)), "by 2 revisions from 14"),
        (record(revisions(14)), record(revisions(15)), "by 1 revision from 14"),
        (record(revisions(1)), record(revisions(2)), "by 1 revision from 1"),
        (
            record(revisions(14)),
            record(revisions(14), seed("demo.sql")),
            "by seed demo.sql from 14 revisions",
        ),
        (
            record(revisions(14)),
            record(revisions(16), seed("demo.sql")),
            "by 2 revisions, seed demo.sql from 14",
        ),
        (
            record(revisions(14), seed("a.sql")),
            record(revisions(14), seed("a.sql", "b.sql")),
            "by seed b.sql from 14 revisions, seed a.sql",
        ),
        (
            record(LayerRecord("schema", "k", steps=(BuildStep("a.sql", "", {}),))),
            record(LayerRecord("schema", "k", steps=(BuildStep("a.sql", "", {}),)), revisions(3)),
            "by 3 revisions from schema a.sql",
        ),
        (
            record(revisions(2, remark=" (Alembic warns: x)")),
            record(revisions(3, remark=" (Alembic warns: x)")),
            "by 1 revision from 2",
        ),
    ],
)
def test_an_extension_tells_what_was_added_to_what(base: Record, made: Record, words: str) -> None:
    """Revisions are counted from the number that was there, all else is named."""
    assert made.describe_growth(base) == words


# Put together


def test_steps_of_all_layers_are_counted() -> None:
    """What everything stands on has none."""
    assert count_steps(record(revisions(3), seed("a.sql", "b.sql")).layers) == 5
    assert count_steps(record().layers) == 0


def test_what_is_planned_carries_what_a_template_is_known_to_need() -> None:
    """A revision that is not run again keeps the data that it read; planned files count as now."""
    planned = revisions(3, needs={"package:alembic": "2"})
    known = revisions(
        2,
        needs={"package:alembic": "1", "package:psycopg": "3"},
        steps=(
            revision(1, **dict([HELPER])),
            BuildStep("0002", "file:old.py", {"file:old.py": "old"}),
        ),
    )

    made = planned.with_needs_of(known._replace(steps=known.steps[::-1]))

    assert made == planned.with_needs_of(known)
    assert made.needs == {"package:alembic": "2", "package:psycopg": "3"}
    assert made.steps == (revision(1, **dict([HELPER])), revision(2), revision(3))


def test_what_was_applied_takes_the_place_of_what_was_planned() -> None:
    """From the first step that ran, with what it was seen to need; the others stay."""
    planned = revisions(3, needs={"a": "1"}, folders={"f": "1"}, remark=" (before)")
    applied = revisions(
        1,
        needs={"a": "2", "b": "2"},
        folders={"g": "2"},
        steps=(revision(2, **dict([HELPER])),),
    )

    made = planned.with_applied(1, applied)

    assert made.steps == (revision(1), revision(2, **dict([HELPER])), revision(3))
    assert made.needs == {"a": "2", "b": "2"}
    assert made.folders == {"f": "1", "g": "2"}
    assert made.remark == " (before)"
    assert planned.with_applied(1, applied._replace(remark=" (after)")).remark == " (after)"
