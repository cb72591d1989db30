"""Property test: a database that is put back can't be told from a fresh clone.

To try more and different examples, set WARMSTACK_TEST_EXAMPLES=5000.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, Phase, event, given, note, settings
from hypothesis import strategies as st

from projects import Bench
from put_back_databases import Databases, Operation
from put_back_operations import EVERYTHING, MORE_ROWS, ROWS
from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.options import RuntimeName
from pytest_warmstack.postgres.connections import StatementRefused
from pytest_warmstack.postgres.put_back import NotPutBack

pytestmark = pytest.mark.parametrize("runtime", [RuntimeName.EMBEDDED], indirect=True)

EXAMPLES: Final = int(os.environ.get("WARMSTACK_TEST_EXAMPLES", "0"))


def examples(few: int, *, share: int = 1) -> Any:
    """Return the settings of a test with *few* examples, or the *share* of many."""
    return settings(
        max_examples=EXAMPLES // share or few,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def databases(standing: Bench, background: BackgroundLoop) -> Iterator[Databases]:
    """The template, and what makes clones of it."""
    databases = Databases(standing, standing.ensure(standing.postgres), background)
    yield databases
    databases.close()
    standing.leave()


@examples(150)
@given(rounds=st.lists(st.one_of(ROWS, MORE_ROWS, MORE_ROWS, EVERYTHING), min_size=1, max_size=3))
def test_what_is_put_back_is_like_a_fresh_clone(
    databases: Databases, rounds: Sequence[Sequence[Operation]]
) -> None:
    """Whatever tests do, one after the other; or else the database is replaced, with a reason."""
    with databases.clone() as clone:
        for operations in rounds:
            for operation, answer in zip(operations, clone.run(operations), strict=False):
                note(f"{operation.connection}: {operation.text}\n   {answer}")
            try:
                clone.put_back()
            except (NotPutBack, StatementRefused) as error:
                note(f"replaced: the test {error}")
                event(f"replaced: the test {getattr(error, 'why', error)}")
                return
            event("put back")
            assert clone.differences(thorough=bool(EXAMPLES)) == []


@examples(50, share=3)
@given(
    rounds=st.lists(st.one_of(ROWS, MORE_ROWS), min_size=1, max_size=3),
    times=st.sampled_from((1, 1, 30)),
    operations=st.one_of(ROWS, MORE_ROWS),
)
def test_the_next_test_gets_the_answers_that_it_gets_in_a_fresh_clone(
    databases: Databases,
    rounds: Sequence[Sequence[Operation]],
    times: int,
    operations: Sequence[Operation],
) -> None:
    """Rows, their order, keys, errors and plans are the same in both."""
    with databases.clone() as clone, databases.clone() as fresh:
        for before in [*rounds] * times:
            answers = clone.run(before)
            for operation, answer in zip(before, answers, strict=False):
                note(f"before: {operation.connection}: {operation.text}\n   {answer[:200]}")
            try:
                clone.put_back()
            except (NotPutBack, StatementRefused):
                return
        event("put back")
        answers = clone.run(operations)
        expected = fresh.run(operations)
        for operation, answer in zip(operations, expected, strict=False):
            note(f"{operation.connection}: {operation.text}\n   {answer[:200]}")
        assert answers == expected
        assert clone.differences_from(fresh) == []
