"""Which databases a sweep of a kept server may drop."""

from __future__ import annotations

import json

import pytest

from pytest_warmstack.identity import DatabaseName, State, fingerprint
from pytest_warmstack.postgres.admin import Database
from pytest_warmstack.postgres.template import KEEP, doomed


def template(built: float, *, sealed: bool = True) -> Database:
    """Return a template that was built at the time *built*."""
    name = DatabaseName(State.TEMPLATE, fingerprint(str(built)))
    return Database(name, sealed, json.dumps({"built": built, "layers": "7 revisions"}))


def test_an_empty_server_has_nothing_to_drop() -> None:
    """Of no databases, none is doomed."""
    assert doomed([]) == []


def test_four_templates_stay() -> None:
    """That many branches of a project can be worked on in turn without building anew."""
    assert KEEP == 4
    assert doomed([template(number) for number in range(4)]) == []


@pytest.mark.parametrize("order", [[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1], [2, 6, 1, 5, 3, 4]])
def test_all_but_the_newest_four_templates_are_doomed(order: list[int]) -> None:
    """The time of the build counts, not the order in which the server lists them."""
    names = doomed([template(1e9 + number) for number in order])

    assert set(names) == {template(1e9 + number).name for number in (1, 2)}


def test_a_template_without_a_seal_is_doomed_and_takes_no_place() -> None:
    """A build that died before its end is rubbish, however new it is."""
    whole = [template(number) for number in range(4)]
    broken = template(100, sealed=False)

    assert doomed([broken, *whole]) == [broken.name]


@pytest.mark.parametrize("state", [State.BUILDING, State.IN_USE])
@pytest.mark.parametrize("sealed", [False, True])
def test_builds_and_clones_are_doomed_and_take_no_place(state: State, *, sealed: bool) -> None:
    """Those that somebody still owns are locked, which is for the sweep to see."""
    whole = [template(number) for number in range(4)]
    others = [Database(DatabaseName.new(state, "f" * 16), sealed, "") for _ in range(3)]

    assert doomed([*others, *whole]) == [each.name for each in others]


@pytest.mark.parametrize(
    "comment",
    [
        "",
        "a note of mine",
        "null",
        "[]",
        "7",
        '{"built": 1e12}',
        '{"built": 1e12, "layers": "", "more": 1}',
        '{"built": "yesterday", "layers": ""}',
        '{"built": null, "layers": ""}',
    ],
)
def test_a_template_with_a_comment_that_is_not_ours_is_the_oldest(comment: str) -> None:
    """It goes first when there are too many."""
    odd = Database(DatabaseName(State.TEMPLATE, "e" * 16), sealed=True, comment=comment)
    whole = [template(number) for number in range(1, 5)]

    assert doomed([odd, *whole]) == [odd.name]
    assert doomed([odd, *whole[1:]]) == []
