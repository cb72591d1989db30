"""Which databases of a kept server stay, and which a sweep may drop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from pytest_warmstack.options import Settings
from pytest_warmstack.postgres import Database, DatabaseName, State, sql
from pytest_warmstack.postgres.retention import Retention, unused
from pytest_warmstack.servers.identity import Project, fingerprint

NOW = 1e9


def doomed(databases: Sequence[Database], templates: int, **others: Any) -> list[DatabaseName]:
    """Return what a sweep may drop if *templates* of each project stay."""
    return Retention(templates=templates, **others).doomed(databases)


def template(used: float, *, sealed: bool = True, comment: str = "") -> Database:
    """Return a template that was used last at the time *used*."""
    name = DatabaseName(State.TEMPLATE, fingerprint(str(used)))
    return Database(name, sealed, used, comment, unused=NOW - used)


def development(folder: str) -> Database:
    """Return the database for development of the project in *folder*."""
    return Database(DatabaseName.development(folder), sealed=False, used=NOW - 20, unused=20)


def test_an_empty_server_has_nothing_to_drop() -> None:
    """Without databases there is nothing to drop."""
    assert doomed([], 4) == []


def test_the_given_number_of_templates_stays() -> None:
    """By default one can switch between eight branches without a build."""
    assert Settings().keep_templates == 8
    for keep in range(1, 9):
        assert doomed([template(number) for number in range(keep)], keep) == []
        assert len(doomed([template(number) for number in range(9)], keep)) == 9 - keep


@pytest.mark.parametrize("order", [[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1], [2, 6, 1, 5, 3, 4]])
def test_all_but_the_last_used_templates_are_doomed(order: list[int]) -> None:
    """The time of the last use counts, not the order of the list."""
    names = doomed([template(1e9 + number) for number in order], 4)

    assert set(names) == {template(1e9 + number).name for number in (1, 2)}


def test_the_order_of_the_list_stays() -> None:
    """The sweep drops databases in the order in which the server lists them."""
    listed = [template(number) for number in (2, 6, 1, 5)]

    assert doomed(listed, 1) == [template(number).name for number in (2, 1, 5)]


def test_an_old_template_that_was_just_used_stays() -> None:
    """The age of a template does not count."""
    oldest = Database(DatabaseName(State.TEMPLATE, "0" * 16), sealed=True, used=100.0)
    newer = [template(number) for number in (1, 2, 3)]

    assert doomed([oldest, *newer], 3) == [template(1).name]


def test_a_template_that_was_never_used_goes_first() -> None:
    """Its run ended before it could use it."""
    odd = Database(DatabaseName(State.TEMPLATE, "e" * 16), sealed=True)
    whole = [template(number) for number in range(1, 5)]

    assert doomed([odd, *whole], 4) == [odd.name]
    assert doomed([odd, *whole[1:]], 4) == []


def test_intermediate_templates_are_counted_separately() -> None:
    """They take no place of a state that the project was in."""
    whole = [template(number) for number in range(10, 14)]
    left = [template(number, comment=sql.LEFT) for number in range(20, 26)]

    names = doomed([*whole, *left], 4)

    assert names == [template(number).name for number in (20, 21)]


def test_templates_with_the_seeds_of_markers_are_counted_separately() -> None:
    """However many markers there are, the state before them stays."""
    plain = [template(number) for number in range(10, 12)]
    seeded = [template(number, comment=sql.SEEDED) for number in range(20, 26)]

    names = doomed([*plain, *seeded], 2)

    assert names == [template(number).name for number in range(20, 24)]
    assert len(sql.SEEDED) == len(sql.LEFT), "a list of databases has only so many letters"


def test_a_template_without_a_seal_is_doomed_and_takes_no_place() -> None:
    """Its build did not end, however new it is."""
    whole = [template(number) for number in range(4)]
    broken = template(100, sealed=False)

    assert doomed([broken, *whole], 4) == [broken.name]


@pytest.mark.parametrize("state", [State.BUILDING, State.IN_USE])
@pytest.mark.parametrize("sealed", [False, True])
def test_builds_and_clones_are_doomed_and_take_no_place(state: State, *, sealed: bool) -> None:
    """The sweep spares those whose owner still holds the lock."""
    whole = [template(number) for number in range(4)]
    others = [Database(DatabaseName.new(state, "f" * 16), sealed, 100.0) for _ in range(3)]

    assert doomed([*others, *whole], 4) == [each.name for each in others]


CURRENT = template(100.0)


def ready(serial: str, *, of: Database = CURRENT, visits: int = 0) -> Database:
    """Return a ready clone of a template."""
    name = DatabaseName(State.READY, of.name.fingerprint, serial * 10)
    return Database(name, sealed=False, visits=visits)


def test_the_stock_of_the_current_template_stays() -> None:
    """Other ready clones are dropped; without a stock, all of them."""
    listed = [CURRENT, *map(ready, "0123")]

    for stock in range(5):
        names = doomed(listed, 4, current={CURRENT.name}, stock=stock)
        assert names == [each.name for each in listed[1 + stock :]]
    assert doomed(listed, 4) == [each.name for each in listed[1:]]


def of(project: str, used: float) -> Database:
    """Return a template of *project*."""
    return template(used)._replace(project=project)


def test_each_project_keeps_its_own_templates() -> None:
    """Projects that share a server don't drop each other's templates."""
    shop = [of("shop", number) for number in (1, 2, 3)]
    blog = [of("blog", number) for number in (7, 8, 9)]

    names = doomed([*shop, *blog], 2, current={blog[2].name})

    assert names == [shop[0].name, blog[0].name]


def test_the_stock_of_another_project_stays() -> None:
    """As long as its template stays."""
    blog, old = of("blog", NOW), of("blog", NOW - 100)
    listed = [CURRENT, blog, old, ready("0", of=blog), ready("1", of=blog), ready("2", of=old)]

    assert doomed(listed, 1, current={CURRENT.name}, stock=2) == [old.name, listed[5].name]
    assert doomed(listed, 1, current={CURRENT.name}, stock=1) == [
        old.name,
        listed[4].name,
        listed[5].name,
    ]


def test_all_current_templates_stay_with_their_stock() -> None:
    """A run may use a template of each of several services."""
    templates = [template(number) for number in range(4)]
    current = {each.name for each in templates[:3]}
    clones = [ready("0", of=each) for each in templates]

    assert doomed([*templates, *clones], 2, current=current, stock=1) == [
        templates[3].name,
        clones[3].name,
    ]


def test_a_template_that_was_not_used_for_long_goes_unless_it_is_current() -> None:
    """No other command cleans an external server."""
    stale, fresh = of("blog", NOW - 100), of("blog", NOW - 50)
    listed = [CURRENT, stale, fresh]

    assert doomed(listed, 4, current={CURRENT.name}, idle=75) == [stale.name]
    assert doomed(listed, 4, current={CURRENT.name}) == []


def test_the_current_template_stays_without_a_note() -> None:
    """A role can't always write notes on the template of another role."""
    newer = [template(CURRENT.used + number) for number in (1, 2)]

    assert CURRENT.name not in doomed([CURRENT, *newer], 1, current={CURRENT.name})


def saved(project: str, used: float) -> Database:
    """Return a database of a failed test."""
    name = DatabaseName.new(State.SAVED, "f" * 16)
    return Database(name, sealed=False, used=used, unused=NOW - used, project=project)


def test_the_last_saved_databases_of_each_project_stay() -> None:
    """Without a number, none stays."""
    shop = [saved("shop", NOW - number) for number in range(5)]
    blog = [saved("blog", NOW - number) for number in range(2)]

    names = doomed([*shop, *blog], 4, saved=2)

    assert names == [each.name for each in shop[2:]]
    assert doomed(shop, 4) == [each.name for each in shop]


def test_all_databases_that_the_run_itself_saved_stay() -> None:
    """Each of its workers saves up to the given number, and reports them."""
    old, *mine = [saved("shop", NOW - number) for number in range(5)]
    mine = [each._replace(comment=sql.saved("test", "run")) for each in mine]

    assert doomed([old, *mine], 4, saved=1, run="run") == []
    assert doomed([old, *mine], 4, saved=1, run="other") == [each.name for each in mine]
    assert doomed([old, *mine], 4, saved=1) == [each.name for each in mine]


def test_a_saved_database_that_is_too_old_goes() -> None:
    """As does one without a note, because its run was killed."""
    old, new, unknown = saved("shop", NOW - 100), saved("shop", NOW - 10), saved("", 0.0)

    assert doomed([old, new, unknown], 4, saved=9, idle=50) == [old.name, unknown.name]


def test_a_template_that_is_not_current_has_no_stock() -> None:
    """Though the template itself stays."""
    old = template(50.0)
    listed = [old, CURRENT, ready("0", of=old), ready("1")]

    assert doomed(listed, 4, current={CURRENT.name}, stock=2) == [listed[2].name]


def test_a_clone_with_visits_is_not_part_of_the_stock() -> None:
    """A visitor may have changed it."""
    listed = [CURRENT, ready("0", visits=1), ready("1"), ready("2")]

    assert doomed(listed, 4, current={CURRENT.name}, stock=2) == [listed[1].name]


def test_databases_for_development_stay() -> None:
    """Of every project, however long they were not used."""
    assert doomed([development("/srv/shop"), development("/srv/blog")], 0) == []


def test_clones_in_use_and_builds_go_whatever_the_stock() -> None:
    """The sweep drops them only if their owner has ended."""
    rubbish = [
        Database(DatabaseName.new(state, CURRENT.name.fingerprint), sealed=False)
        for state in (State.IN_USE, State.BUILDING)
    ]

    assert doomed([CURRENT, *rubbish], 4, current={CURRENT.name}, stock=9) == [
        each.name for each in rubbish
    ]


# `warmstack clean` on an external server


def test_a_database_belongs_to_the_project_of_its_template() -> None:
    """One without a template belongs to none; one for development belongs to one checkout."""
    shop, blog = of("shop", NOW - 100), of("blog", NOW - 200)
    orphan = Database(DatabaseName.new(State.IN_USE, "e" * 16), sealed=False)
    listed = [shop, blog, ready("0", of=shop), ready("1", of=blog), orphan]
    listed += [development("/srv/shop"), development("/home/me/shop")]

    assert unused(listed, Project("/srv/shop"), 0) == [listed[each].name for each in (0, 2, 5)]
    assert unused(listed, None, 0) == [each.name for each in listed]
    assert unused(listed, None, 30) == [each.name for each in listed[:-2]]


def test_a_database_is_as_old_as_the_last_use_of_its_template() -> None:
    """A saved database has a time of its own; one without any time is older than all."""
    old, new = of("shop", NOW - 100), of("shop", NOW - 10)
    orphan = Database(DatabaseName.new(State.IN_USE, "e" * 16), sealed=False)
    listed = [old, new, ready("0", of=old), ready("1", of=new), saved("shop", NOW - 90), orphan]

    assert unused(listed, None, 50) == [listed[each].name for each in (0, 2, 4, 5)]
