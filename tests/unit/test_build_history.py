"""Chains compared: what is planned with what templates hold, and the words for a difference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from pytest_warmstack.postgres.template.build_history import Comparison
from pytest_warmstack.postgres.template.dependencies import ABSENT, FileState
from pytest_warmstack.postgres.template.record import ALEMBIC, BASE, BuildStep, LayerRecord, Record

HELPERS = "file:shop/migrations/helpers.py"
CSV = "file:shop/data/countries.csv"


class Files(FileState):
    """Files that exist in a test's mind alone: keys with their digests."""

    def __init__(self, files: Mapping[str, str]) -> None:
        super().__init__("/nowhere")
        self.files = files

    def digest(self, key: str) -> str:
        """Return the digest that the test says."""
        return self.files.get(key, ABSENT)

    def same(self, key: str, digest: str) -> bool:
        """Tell whether the test says so."""
        return self.digest(key) == digest


def key(number: int, words: str = "t") -> str:
    """Return the key of a revision's file."""
    return f"file:shop/versions/{number:04}_{words}.py"


def step(number: int, *, words: str = "t", text: str = "", **needs: str) -> BuildStep:
    """Return a revision with the content *text*, which needs more files."""
    source = key(number, words)
    return BuildStep(f"{number:04}", source, {source: text or f"text {number}", **needs})


def after(number: int, *before: int, text: str = "") -> BuildStep:
    """Return a revision that is applied after others, in whatever order those are."""
    return step(number, text=text)._replace(after=tuple(f"{each:04}" for each in before))


def alembic(*steps: BuildStep, **fields: Any) -> LayerRecord:
    """Return what the layer of Alembic has."""
    return LayerRecord(ALEMBIC, "k", steps=steps)._replace(**fields)


def base(**needs: str) -> LayerRecord:
    """Return what everything stands on."""
    return LayerRecord(BASE, "16.14", needs=needs)


def seed(*names: str, **fields: Any) -> LayerRecord:
    """Return what the layer of the seed has."""
    steps = tuple(BuildStep(each, f"file:{each}", {f"file:{each}": each}) for each in names)
    return LayerRecord("seed", "s", steps=steps)._replace(**fields)


class Case:
    """What is planned, what a template was built of, and what the files hold that both name.

    A file holds what is planned for it, else what was recorded, unless *files* say otherwise.
    """

    def __init__(
        self, planned: list[LayerRecord], recorded: list[LayerRecord], **files: str
    ) -> None:
        self.planned, self.record = planned, Record(1.0, "run", tuple(recorded))
        there: dict[str, str] = {}
        for layer in (*recorded, *planned):
            there.update(layer.needs)
            for each in layer.steps:
                there.update(each.needs)
        self._comparison = Comparison(Files(there | files))

    @property
    def common(self) -> tuple[int, bool]:
        """What the comparison says both have in common."""
        return self._comparison.common(self.planned, self.record)

    @property
    def begins(self) -> int:
        """How many steps the template has, if the plan begins with all of them."""
        count, whole = self.common
        return count if whole else 0

    def arranged(self, base: LayerRecord | None, near: LayerRecord) -> tuple[list[str], int]:
        """The numbers of the revisions in the order of the build, and where edits begin."""
        records = [Record(1.0, "run", (each,)) if each else None for each in (base, near)]
        assert records[1] is not None
        found, reach = self._comparison.arrange(self.planned, records[0], records[1])
        return [each.name.lstrip("0") for each in found[0].steps], reach

    @property
    def why(self) -> str:
        """The words for what differs first."""
        return next(iter(self._comparison.differences(self.planned, self.record)[0]), "")


ONE, TWO, THREE = step(1), step(2), step(3)


# The same, or more


def test_what_is_the_same_agrees_to_the_end() -> None:
    """All steps are in common, those are all, and there is no reason to tell."""
    layers = [base(), alembic(ONE, TWO, THREE), seed("a.sql", "b.sql")]

    case = Case(layers, layers)

    assert (case.common, case.begins, case.why) == ((5, True), 5, "")


@pytest.mark.parametrize("added", [(THREE,), (THREE, step(4), step(5))])
def test_steps_at_the_end_extend_what_is_there(added: tuple[BuildStep, ...]) -> None:
    """Revisions after the last one are applied to the template as it is; that needs no reason."""
    case = Case([base(), alembic(ONE, TWO, *added)], [base(), alembic(ONE, TWO)])

    assert (case.common, case.begins, case.why) == ((2, True), 2, "")


def test_a_layer_at_the_end_extends_what_is_there() -> None:
    """A seed that is new is applied to the migrated template."""
    case = Case([base(), alembic(ONE, TWO), seed("a.sql")], [base(), alembic(ONE, TWO)])

    assert (case.common, case.begins, case.why) == ((2, True), 2, "")


def test_a_revision_and_a_layer_at_the_end_extend_what_is_there() -> None:
    """Both at once are as good as one after the other."""
    case = Case([base(), alembic(ONE, TWO), seed("a.sql")], [base(), alembic(ONE)])

    assert (case.common, case.begins, case.why) == ((1, True), 1, "")


def test_a_file_that_was_renamed_agrees() -> None:
    """A revision is known by its id and its content; its file's name decides nothing."""
    old, new = step(2, words="add_totals", text="same"), step(2, words="totals", text="same")

    case = Case([base(), alembic(ONE, new)], [base(), alembic(ONE, old)], **{old.source: ABSENT})

    assert (case.common, case.begins, case.why) == ((2, True), 2, "")


def test_functions_are_told_apart_by_their_names() -> None:
    """They have no file of their own that could be compared, and may stand in one module."""
    module = {"file:shop/demo.py": "1"}
    orders, stock = (BuildStep(f"shop.demo:{name}", "", module) for name in ("orders", "stock"))

    same = Case(
        [base(), seed()._replace(steps=(orders,))], [base(), seed()._replace(steps=(orders,))]
    )
    other = Case(
        [base(), seed()._replace(steps=(stock,))], [base(), seed()._replace(steps=(orders,))]
    )

    assert (same.common, same.why) == ((1, True), "")
    assert other.common == (0, False)
    assert other.why == "shop.demo:orders is gone"


def test_a_template_of_nothing_is_no_beginning() -> None:
    """One without a step saves no work: an empty database is made as quickly."""
    case = Case([base(), alembic(ONE)], [base()])

    assert (case.common, case.begins, case.why) == ((0, True), 0, "")


# Branches


def test_a_revision_on_one_of_two_branches_extends_what_is_there() -> None:
    """Alembic would apply it before the other branch; nothing of that needs it."""
    there = [after(1), after(2, 1), after(3, 2)]

    case = Case([base(), alembic(after(1), after(9, 1), *there[1:])], [base(), alembic(*there)])

    assert (case.common, case.begins, case.why) == ((3, True), 3, "")


def test_branches_in_another_order_are_the_same() -> None:
    """Alembic orders them by the names of their files."""
    one, two, three = after(1), after(2, 1), after(3, 1)

    case = Case([base(), alembic(one, three, two)], [base(), alembic(one, two, three)])

    assert (case.common, case.begins, case.why) == ((3, True), 3, "")


def test_a_revision_without_what_it_follows_is_not_in_common() -> None:
    """It stood on something else."""
    case = Case(
        [base(), alembic(after(1), after(2, 1), after(3, 1, 2))],
        [base(), alembic(after(1), after(2, 1, text="old"), after(3, 1, 2))],
    )

    assert (case.common, case.begins) == ((1, False), 0)


def test_an_edit_on_one_branch_leaves_the_other_in_common() -> None:
    """What follows the edited revision is to be applied again, and nothing else."""
    planned = [after(1), after(2, 1), after(3, 2), after(4, 1), after(5, 4)]
    recorded = [after(1), after(2, 1, text="old"), *planned[2:]]

    case = Case([base(), alembic(*planned)], [base(), alembic(*recorded)])

    assert (case.common, case.begins, case.why) == ((3, False), 0, "0002_t.py changed")


ROOT, LEFT, LEFTER, RIGHT, RIGHTER = after(1), after(2, 1), after(3, 2), after(4, 1), after(5, 4)
EDITED = alembic(ROOT, after(2, 1, text="old"), LEFTER, RIGHT, RIGHTER)


@pytest.mark.parametrize(
    ("there", "order", "reach"),
    [
        # From nothing, as Alembic does it.
        (None, "12345", 1),
        ([ROOT], "14523", 3),
        ([ROOT, RIGHT], "14523", 3),
        ([ROOT, LEFT], "12453", 4),
        ([ROOT, RIGHT, LEFT], "12453", 4),
    ],
)
def test_what_was_edited_is_built_last(
    there: list[BuildStep] | None, order: str, reach: int
) -> None:
    """It will be edited again; what it leaves alone is in the template that is left before it."""
    case = Case([alembic(ROOT, LEFT, LEFTER, RIGHT, RIGHTER)], [])

    arranged = case.arranged(None if there is None else alembic(*there), EDITED)

    assert arranged == (list(order), reach)


# Something else


def test_an_edited_step_ends_what_is_in_common() -> None:
    """What was applied after it stood on something else."""
    edited = step(2, text="edited")

    case = Case([base(), alembic(ONE, edited, THREE)], [base(), alembic(ONE, TWO, THREE)])

    assert (case.common, case.begins) == ((1, False), 0)
    assert case.why == "0002_t.py changed"


def test_the_file_of_an_edited_step_is_told_by_its_name_of_now() -> None:
    """Who looks for it finds it under that name."""
    edited = step(2, words="renamed", text="edited")

    case = Case([base(), alembic(ONE, edited)], [base(), alembic(ONE, TWO)])

    assert case.common == (1, False)
    assert case.why == "0002_renamed.py changed"


def test_a_removed_step_ends_what_is_in_common() -> None:
    """A revision can't be taken back out of a template."""
    case = Case([base(), alembic(ONE, THREE)], [base(), alembic(ONE, TWO, THREE)])

    assert (case.common, case.begins) == ((1, False), 0)
    assert case.why == "0002_t.py is gone"


def test_a_step_that_was_removed_from_the_end_is_told() -> None:
    """A checkout of an older branch has fewer revisions than the template."""
    case = Case([base(), alembic(ONE)], [base(), alembic(ONE, TWO, THREE)])

    assert (case.common, case.begins) == ((1, False), 0)
    assert case.why == "0002_t.py is gone"


def test_an_inserted_step_ends_what_is_in_common() -> None:
    """A revision that comes in between changes what the next one stands on."""
    between = step(9, words="between")

    case = Case([base(), alembic(ONE, between, TWO)], [base(), alembic(ONE, TWO)])

    assert (case.common, case.begins) == ((1, False), 0)
    assert case.why == "0009_between.py is new before 0002_t.py"


def test_steps_in_another_order_are_something_else() -> None:
    """Two scripts of the seed that change places may do something else."""
    case = Case([base(), seed("b.sql", "a.sql")], [base(), seed("a.sql", "b.sql")])

    assert (case.common, case.begins) == ((0, False), 0)
    assert case.why == "b.sql now comes before a.sql"


def test_a_changed_helper_is_told_with_who_imported_it() -> None:
    """The first step that imports it is where the difference begins."""
    two, three = step(2, **{HELPERS: "old"}), step(3, **{HELPERS: "old"})

    case = Case(
        [base(), alembic(ONE, two, three)], [base(), alembic(ONE, two, three)], **{HELPERS: "new"}
    )

    assert (case.common, case.begins) == ((1, False), 0)
    assert case.why == "helpers.py changed (imported by 0002_t.py)"


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        ("old", "new", "countries.csv changed (used by 0002_t.py)"),
        ("old", ABSENT, "countries.csv is gone (used by 0002_t.py)"),
        (ABSENT, "new", "countries.csv is new (used by 0002_t.py)"),
    ],
)
def test_changed_data_is_told_with_who_used_it(before: str, now: str, words: str) -> None:
    """A file that a step read as it ran: edited, removed, or made where there was none."""
    recorded = step(2, **{CSV: before})

    case = Case([base(), alembic(ONE, TWO)], [base(), alembic(ONE, recorded)], **{CSV: now})

    assert (case.common, case.begins) == ((1, False), 0)
    assert case.why == words


def test_a_folder_and_a_pattern_are_told_whole() -> None:
    """There may be many files and folders of one name."""
    for need in ("folder:shop/data", "glob:shop/**/*.sql"):
        recorded = step(2, **{need: "old"})
        case = Case([base(), alembic(TWO)], [base(), alembic(recorded)], **{need: "new"})

        assert case.why == f"{need.partition(':')[2]} changed (used by 0002_t.py)"


def test_what_a_step_is_planned_to_need_has_to_be_as_it_was_read_too() -> None:
    """A helper that is edited between the plan and the comparison makes the plan an old one."""
    planned = step(2, **{HELPERS: "old"})

    case = Case([base(), alembic(ONE, planned)], [base(), alembic(ONE, TWO)], **{HELPERS: "new"})

    assert case.common == (1, False)


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        ("1.15.2", "1.16.0", "alembic is 1.16.0, was 1.15.2"),
        ("1.15.2", ABSENT, "alembic is gone, was 1.15.2"),
        (ABSENT, "1.16.0", "alembic is 1.16.0, was missing"),
    ],
)
def test_a_changed_package_is_told_with_both_versions(before: str, now: str, words: str) -> None:
    """The same scripts under another Alembic may build something else."""
    needs = {"package:alembic": before}

    case = Case(
        [base(), alembic(ONE)], [base(), alembic(ONE, needs=needs)], **{"package:alembic": now}
    )

    assert (case.common, case.begins) == ((0, False), 0)
    assert case.why == words


def test_a_package_that_one_step_imports_is_told_with_this_one() -> None:
    """Those before it do not depend on it."""
    two = step(2, **{"package:geoalchemy2": "0.15"})
    now = {"package:geoalchemy2": "0.16"}

    case = Case([base(), alembic(ONE, two)], [base(), alembic(ONE, two)], **now)

    assert case.common == (1, False)
    assert case.why == "geoalchemy2 is 0.16, was 0.15 (used by 0002_t.py)"


@pytest.mark.parametrize(
    ("need", "name"),
    [("ini:conf/alembic.ini", "alembic.ini"), ("toml:pyproject.toml", "pyproject.toml")],
)
def test_a_changed_configuration_is_told(need: str, name: str) -> None:
    """What all steps depend on is nobody's in particular."""
    case = Case([base(), alembic(ONE)], [base(), alembic(ONE, needs={need: "a"})], **{need: "b"})

    assert case.common == (0, False)
    assert case.why == f"{name} changed"


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (
            BASE,
            "warmstack_depends_ignore, or the version of PostgreSQL or pytest-warmstack, changed",
        ),
        (ALEMBIC, "warmstack_alembic, its section or arguments, or warmstack_env changed"),
        ("search", "the settings of search changed"),
        ("seed", "warmstack_env changed"),
    ],
)
def test_a_layer_with_another_key_is_told(layer: str, words: str) -> None:
    """What decides a layer and stands in no file."""
    search = LayerRecord("search", "1", steps=(BuildStep("", "", {}),))
    planned = [base(), alembic(ONE), search, seed("a.sql")]
    recorded = [each._replace(key="old") if each.layer == layer else each for each in planned]

    case = Case(planned, recorded)

    assert case.begins == 0
    assert case.common == ({BASE: 0, ALEMBIC: 0, "search": 1, "seed": 2}[layer], False)
    assert case.why == words


# What is declared


@pytest.mark.parametrize(
    ("recorded", "files", "is_of_another"),
    [
        ({"ini:orders/alembic.ini": "1"}, {"ini:orders/alembic.ini": "2"}, True),
        ({"ini:orders/alembic.ini": "1"}, {}, False),
        (
            {"ini:users/alembic.ini": "1", "toml:pyproject.toml": "1"},
            {"toml:pyproject.toml": "1"},
            False,
        ),
        ({}, {}, False),
    ],
    ids=["of another service", "of a file that moved", "of the same file", "of a function"],
)
def test_what_another_configuration_has_is_not_compared(
    recorded: dict[str, str], files: dict[str, str], *, is_of_another: bool
) -> None:
    """Where it is still there: else it may be this one, which was moved."""
    planned = [base(), alembic(needs={"ini:users/alembic.ini": "1"})]
    record = Record(0.0, "", (base(), alembic(needs=recorded)))

    assert Comparison(Files(files)).is_of_another_project(planned, record) is is_of_another  # type: ignore[arg-type]


def test_a_declared_file_that_changed_is_told_as_declared() -> None:
    """Its change rebuilds all, since nobody knows who reads it."""
    layers = [base(**{"glob:sql": "old"}), alembic(ONE)]

    case = Case(layers, layers, **{"glob:sql": "new"})

    assert (case.common, case.begins) == ((0, False), 0)
    assert case.why == "sql changed (named in warmstack_depends)"


@pytest.mark.parametrize(
    ("now", "before"),
    [
        ({"glob:sql": "1"}, {}),
        ({}, {"glob:sql": "1"}),
        ({"glob:a": "1"}, {"glob:sql": "1"}),
        ({"glob:a": "1", "glob:sql": "1"}, {"glob:sql": "1"}),
    ],
)
def test_another_declaration_is_told(now: dict[str, str], before: dict[str, str]) -> None:
    """What was declared when the template was built is not what is declared now."""
    case = Case([base(**now), alembic(ONE)], [base(**before), alembic(ONE)])

    assert (case.common, case.begins) == ((0, False), 0)
    assert case.why == "warmstack_depends changed"


def test_declarations_in_another_order_are_the_same() -> None:
    """Lines of a setting may be sorted."""
    now, before = base(**{"glob:a": "1", "glob:b": "2"}), base(**{"glob:b": "2", "glob:a": "1"})

    case = Case([now, alembic(ONE)], [before, alembic(ONE)])

    assert (case.common, case.begins, case.why) == ((1, True), 1, "")


# Fewer layers, and more


def test_a_layer_that_is_gone_is_told() -> None:
    """A template with a seed is no template without one."""
    case = Case([base(), alembic(ONE)], [base(), alembic(ONE), seed("a.sql")])

    assert (case.common, case.begins) == ((1, False), 0)
    assert case.why == "the layer seed was removed"


def test_a_layer_that_came_before_another_is_told() -> None:
    """What was applied first can't follow."""
    case = Case(
        [base(), LayerRecord("schema", "k", steps=(BuildStep("a.sql", "", {}),)), alembic(ONE)],
        [base(), alembic(ONE)],
    )

    assert (case.common, case.begins) == ((0, False), 0)
    assert case.why == "the layer schema was added"


def test_a_step_at_the_end_of_a_layer_that_is_not_the_last_is_told() -> None:
    """The seed was applied before the revision that is new."""
    case = Case([base(), alembic(ONE, TWO), seed("a.sql")], [base(), alembic(ONE), seed("a.sql")])

    assert (case.common, case.begins) == ((1, False), 0)
    assert case.why == "0002_t.py is new"


def test_an_edited_seed_leaves_the_migrations_in_common() -> None:
    """What comes before it need not be built again."""
    edited = seed()._replace(steps=(BuildStep("a.sql", "file:a.sql", {"file:a.sql": "edited"}),))

    case = Case([base(), alembic(ONE, TWO), edited], [base(), alembic(ONE, TWO), seed("a.sql")])

    assert (case.common, case.begins) == ((2, False), 0)
    assert case.why == "a.sql changed"


def test_the_first_difference_is_the_one_that_is_told() -> None:
    """Of several, the one from which on everything is built anew."""
    two = step(2, **{HELPERS: "old"})
    case = Case(
        [base(), alembic(step(1, text="edited"), two), seed("b.sql")],
        [base(), alembic(ONE, two), seed("a.sql")],
        **{HELPERS: "new"},
    )

    assert case.common == (0, False)
    assert case.why == "0001_t.py changed"


def test_whatever_differs_has_a_reason() -> None:
    """No template is built anew without a word, unless what is there was only added to."""
    layers = [base(**{"glob:sql": "1"}), alembic(ONE, TWO), seed("a.sql")]
    others = [
        [base(), *layers[1:]],
        [layers[0], alembic(ONE), layers[2]],
        [layers[0], alembic(TWO), layers[2]],
        [layers[0], alembic(ONE, TWO, THREE), layers[2]],
        [layers[0], layers[2], layers[1]],
        [layers[0], alembic(ONE, TWO, key="x"), layers[2]],
        [*layers, LayerRecord("tail", "k", steps=(BuildStep("", "", {}),))],
        layers[:1],
    ]

    for other in others:
        for planned, recorded in ((layers, other), (other, layers)):
            case = Case(planned, recorded)
            steps, whole = case.common
            assert bool(case.why) is not whole, (planned, recorded)
            assert case.begins == (steps if whole else 0)
