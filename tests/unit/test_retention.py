"""Which databases a sweep of a kept server may drop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from pytest_warmstack.postgres import Database, DatabaseName, State, sql
from pytest_warmstack.postgres.retention import Retention
from pytest_warmstack.servers.identity import fingerprint
from pytest_warmstack.settings import Settings

NOW = 1e9


def doomed(databases: Sequence[Database], templates: int, **others: Any) -> list[DatabaseName]:
    """Return what a sweep may drop where that many templates stay."""
    return Retention(templates=templates, **others).doomed(databases)


def template(used: float, *, sealed: bool = True, comment: str = "") -> Database:
    """Return a template that was used last at the time *used*."""
    name = DatabaseName(State.TEMPLATE, fingerprint(str(used)))
    return Database(name, sealed, used, comment, unused=NOW - used)


def test_an_empty_server_has_nothing_to_drop() -> None:
    """Of no databases, none is doomed."""
    assert doomed([], 4) == []


def test_as_many_templates_stay_as_are_to_be_kept() -> None:
    """That many branches of a project can be worked on in turn without building anew."""
    assert Settings().keep_templates == 8
    for keep in range(1, 9):
        assert doomed([template(number) for number in range(keep)], keep) == []
        assert len(doomed([template(number) for number in range(9)], keep)) == 9 - keep


@pytest.mark.parametrize("order", [[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1], [2, 6, 1, 5, 3, 4]])
def test_all_but_the_last_used_templates_are_doomed(order: list[int]) -> None:
    """The time of the last use counts, not the order in which the server lists them."""
    names = doomed([template(1e9 + number) for number in order], 4)

    assert set(names) == {template(1e9 + number).name for number in (1, 2)}


def test_the_doomed_are_told_in_the_order_of_the_list() -> None:
    """Whoever drops them one after the other does so as the server listed them."""
    listed = [template(number) for number in (2, 6, 1, 5)]

    assert doomed(listed, 1) == [template(number).name for number in (2, 1, 5)]


def test_an_old_template_that_was_just_used_stays() -> None:
    """What is in use from day to day is not dropped for being old."""
    oldest = Database(DatabaseName(State.TEMPLATE, "0" * 16), sealed=True, used=100.0)
    newer = [template(number) for number in (1, 2, 3)]

    assert doomed([oldest, *newer], 3) == [template(1).name]


def test_a_template_that_nobody_has_used_goes_first() -> None:
    """One without a time, which died before it could be used, is the first to go."""
    odd = Database(DatabaseName(State.TEMPLATE, "e" * 16), sealed=True)
    whole = [template(number) for number in range(1, 5)]

    assert doomed([odd, *whole], 4) == [odd.name]
    assert doomed([odd, *whole[1:]], 4) == []


def test_those_that_were_left_for_the_next_edit_are_counted_by_themselves() -> None:
    """They take no place of a state that the project was in."""
    whole = [template(number) for number in range(10, 14)]
    left = [template(number, comment=sql.LEFT) for number in range(20, 26)]

    names = doomed([*whole, *left], 4)

    assert names == [template(number).name for number in (20, 21)]


def test_a_template_without_a_seal_is_doomed_and_takes_no_place() -> None:
    """A build that died before its end is rubbish, however new it is."""
    whole = [template(number) for number in range(4)]
    broken = template(100, sealed=False)

    assert doomed([broken, *whole], 4) == [broken.name]


@pytest.mark.parametrize("state", [State.BUILDING, State.IN_USE])
@pytest.mark.parametrize("sealed", [False, True])
def test_builds_and_clones_are_doomed_and_take_no_place(state: State, *, sealed: bool) -> None:
    """Those that somebody still owns are locked, which is for the sweep to see."""
    whole = [template(number) for number in range(4)]
    others = [Database(DatabaseName.new(state, "f" * 16), sealed, 100.0) for _ in range(3)]

    assert doomed([*others, *whole], 4) == [each.name for each in others]


CURRENT = template(100.0)


def ready(serial: str, *, of: Database = CURRENT, visits: int = 0) -> Database:
    """Return a clone that stands ready."""
    name = DatabaseName(State.READY, of.name.fingerprint, serial * 10)
    return Database(name, sealed=False, visits=visits)


def test_as_many_clones_of_the_current_template_stand_ready_as_asked() -> None:
    """Those beyond are dropped; without a stock, all of them are."""
    listed = [CURRENT, *map(ready, "0123")]

    for stock in range(5):
        names = doomed(listed, 4, current={CURRENT.name}, stock=stock)
        assert names == [each.name for each in listed[1 + stock :]]
    assert doomed(listed, 4) == [each.name for each in listed[1:]]


def of(project: str, used: float) -> Database:
    """Return a template of another project than those above."""
    return template(used)._replace(project=project)


def test_each_project_keeps_its_own_templates() -> None:
    """On a server that many projects share, none drops the templates of another."""
    shop = [of("shop", number) for number in (1, 2, 3)]
    blog = [of("blog", number) for number in (7, 8, 9)]

    names = doomed([*shop, *blog], 2, current={blog[2].name})

    assert names == [shop[0].name, blog[0].name]


def test_a_stock_of_another_project_stands_ready() -> None:
    """Its clones are somebody else's, as long as its template stays."""
    blog, old = of("blog", NOW), of("blog", NOW - 100)
    listed = [CURRENT, blog, old, ready("0", of=blog), ready("1", of=blog), ready("2", of=old)]

    assert doomed(listed, 1, current={CURRENT.name}, stock=2) == [old.name, listed[5].name]
    assert doomed(listed, 1, current={CURRENT.name}, stock=1) == [
        old.name,
        listed[4].name,
        listed[5].name,
    ]


def test_all_the_current_ones_stay_with_their_stock() -> None:
    """A run of several services uses a template of each, however few are kept."""
    templates = [template(number) for number in range(4)]
    current = {each.name for each in templates[:3]}
    clones = [ready("0", of=each) for each in templates]

    assert doomed([*templates, *clones], 2, current=current, stock=1) == [
        templates[3].name,
        clones[3].name,
    ]


def test_a_template_that_was_not_used_for_long_is_doomed_but_for_the_current_one() -> None:
    """Nobody else cleans a server that somebody else runs."""
    stale, fresh = of("blog", NOW - 100), of("blog", NOW - 50)
    listed = [CURRENT, stale, fresh]

    assert doomed(listed, 4, current={CURRENT.name}, idle=75) == [stale.name]
    assert doomed(listed, 4, current={CURRENT.name}) == []


def test_the_current_template_stays_also_where_its_use_is_not_noted() -> None:
    """Another role's template can't always be written to."""
    newer = [template(CURRENT.used + number) for number in (1, 2)]

    assert CURRENT.name not in doomed([CURRENT, *newer], 1, current={CURRENT.name})


def saved(project: str, used: float) -> Database:
    """Return a database of a failed test."""
    name = DatabaseName.new(State.SAVED, "f" * 16)
    return Database(name, sealed=False, used=used, unused=NOW - used, project=project)


def test_of_each_project_the_last_databases_of_failed_tests_stay() -> None:
    """As many as are to be kept, whatever other projects have; none without such a wish."""
    shop = [saved("shop", NOW - number) for number in range(5)]
    blog = [saved("blog", NOW - number) for number in range(2)]

    names = doomed([*shop, *blog], 4, saved=2)

    assert names == [each.name for each in shop[2:]]
    assert doomed(shop, 4) == [each.name for each in shop]


def test_all_databases_of_failed_tests_stay_that_the_run_itself_has_kept() -> None:
    """Each of its workers has as many as are to be kept, and tells of them at the end."""
    old, *mine = [saved("shop", NOW - number) for number in range(5)]
    mine = [each._replace(comment=sql.saved("test", "run")) for each in mine]

    assert doomed([old, *mine], 4, saved=1, run="run") == []
    assert doomed([old, *mine], 4, saved=1, run="other") == [each.name for each in mine]
    assert doomed([old, *mine], 4, saved=1) == [each.name for each in mine]


def test_a_database_of_a_failed_test_that_is_too_old_is_doomed() -> None:
    """And one whose note could not be written any more, since its run was killed."""
    old, new, unknown = saved("shop", NOW - 100), saved("shop", NOW - 10), saved("", 0.0)

    assert doomed([old, new, unknown], 4, saved=9, idle=50) == [old.name, unknown.name]


def test_clones_of_another_template_do_not_stand_ready() -> None:
    """A template that was followed by another one has no stock any more, though it stays."""
    old = template(50.0)
    listed = [old, CURRENT, ready("0", of=old), ready("1")]

    assert doomed(listed, 4, current={CURRENT.name}, stock=2) == [listed[2].name]


def test_a_clone_that_somebody_has_looked_into_does_not_stand_ready() -> None:
    """It may have been changed; it takes no other one's place."""
    listed = [CURRENT, ready("0", visits=1), ready("1"), ready("2")]

    assert doomed(listed, 4, current={CURRENT.name}, stock=2) == [listed[1].name]


def test_clones_in_use_and_builds_are_dropped_whatever_the_stock() -> None:
    """A sweep gets only those whose owner is gone."""
    rubbish = [
        Database(DatabaseName.new(state, CURRENT.name.fingerprint), sealed=False)
        for state in (State.IN_USE, State.BUILDING)
    ]

    assert doomed([CURRENT, *rubbish], 4, current={CURRENT.name}, stock=9) == [
        each.name for each in rubbish
    ]
