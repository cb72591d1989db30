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
from put_back_databases import Clone, Databases, Operation
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


def run(clone: Clone, operations: Sequence[Operation]) -> list[str]:
    """Do what a test does; return the answers, which are shown if the example fails."""
    answers = clone.run(operations)
    for operation, answer in zip(operations, answers, strict=False):
        note(f"{operation.connection}: {operation.text}\n   {answer[:200]}")
    return answers


def put_back(clone: Clone) -> str:
    """Put a clone back; return why it has to be replaced instead, or ""."""
    try:
        clone.put_back()
    except (NotPutBack, StatementRefused) as error:
        reason = error.why if isinstance(error, StatementRefused) else str(error)
        event(f"replaced: the test {reason}")
        return reason
    event("put back")
    return ""


@pytest.fixture(scope="module")
def databases(standing: Bench, background: BackgroundLoop) -> Iterator[Databases]:
    """The template, and what makes clones of it."""
    databases = Databases(standing, standing.ensure(standing.postgres), background)
    yield databases
    databases.close()
    standing.leave()


@examples(80)
@given(rounds=st.lists(st.one_of(ROWS, MORE_ROWS, MORE_ROWS, EVERYTHING), min_size=1, max_size=3))
def test_what_is_put_back_is_like_a_fresh_clone(
    databases: Databases, rounds: Sequence[Sequence[Operation]]
) -> None:
    """Whatever tests do, one after the other; or else the database is replaced, with a reason."""
    with databases.clone() as clone:
        for operations in rounds:
            run(clone, operations)
            if put_back(clone):
                return
        assert clone.differences(thorough=bool(EXAMPLES)) == []


@examples(40, share=3)
@given(operations=ROWS)
def test_rows_and_sequences_are_put_back(
    databases: Databases, operations: Sequence[Operation]
) -> None:
    """What most tests do never replaces the database, except for many rows in one table."""
    with databases.clone() as clone:
        run(clone, operations)
        assert put_back(clone) in {"", "inserted many rows into public.plain"}


@examples(25, share=3)
@given(
    rounds=st.lists(st.one_of(ROWS, MORE_ROWS), min_size=1, max_size=3),
    times=st.sampled_from((1, 1, 30 if EXAMPLES else 4)),
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
            run(clone, before)
            if put_back(clone):
                return
        assert run(clone, operations) == run(fresh, operations)
        assert clone.differences_from(fresh) == []
