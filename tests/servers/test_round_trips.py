"""How often a warm run asks its servers: more questions would make every run slower."""

from __future__ import annotations

import json
from contextlib import ExitStack

import pytest

from counting import Counter, counted
from projects import Library

REUSE = "--reuse-containers"

TESTS = """
import pytest

@pytest.mark.parametrize("number", range({count}))
def test_that_does_nothing(number, db_url, redis_url):
    pass
"""


@pytest.fixture
def warm(project: Library) -> Library:
    """A project with kept servers, a template, and clones that are ready."""
    project.write("test_library.py", TESTS.format(count=1))
    for _ in range(2):  # The second run does the clean-up of this hour.
        project.run(REUSE).assert_outcomes(passed=1)
    return project


def questions(project: Library, count: int) -> dict[str, Counter]:
    """Return what a warm run of *count* tests asks each server."""
    project.write("test_library.py", TESTS.format(count=count))
    with ExitStack() as stack:
        counters = {}
        for service in ("postgres", "redis"):
            path = project.hint_file(service)
            stack.callback(path.write_text, path.read_text())
            counter = stack.enter_context(counted(project.kept(service)))
            hint = json.loads(path.read_text())
            hint["server"]["endpoint"]["port"] = counter.port
            path.write_text(json.dumps(hint))
            counters[service] = counter
        project.run(REUSE).assert_outcomes(passed=count)
    return counters


def test_a_warm_run_asks_its_servers_few_questions(warm: Library) -> None:
    """For the servers, the template, a clone, a lease and the end of the run."""
    found = questions(warm, 1)

    # asyncpg takes three to connect, and two for a query that it sends for the first time.
    assert found["postgres"].connections <= 2
    assert found["postgres"].round_trips <= 33
    # Two of them only show that the server speaks the protocol of Redis: when it is greeted during
    # the collection, and when it is used.
    assert found["redis"].connections <= 3
    assert found["redis"].round_trips <= 16


def test_a_test_adds_few_questions(warm: Library) -> None:
    """For its clone and its flush; the run's own are subtracted."""
    few, many = questions(warm, 5), questions(warm, 25)

    added = {each: (many[each].round_trips - few[each].round_trips) / 20 for each in few}
    # The clone is copied, found, asked for connections that are left, and dropped.
    assert added["postgres"] <= 5
    assert added["redis"] <= 1.5
