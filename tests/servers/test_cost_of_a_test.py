"""What a test costs its own process, counted: set-ups of fixtures, and runs of the event loop."""

from __future__ import annotations

from typing import Final

import pytest

from projects import Library

REUSE: Final = "--reuse-containers"

COUNTING: Final = """
import asyncio
import collections
import pytest

FOUND = collections.Counter()
run_until_complete = asyncio.base_events.BaseEventLoop.run_until_complete

def run(self, future):
    FOUND["runs"] += 1
    return run_until_complete(self, future)

asyncio.base_events.BaseEventLoop.run_until_complete = run

@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef, request):
    if fixturedef.argname.startswith(("_warmstack", "db_", "redis_")):
        FOUND["fixtures"] += 1

def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"found: {FOUND['fixtures']} {FOUND['runs']}")
"""

TESTS: Final = """
import pytest
from sqlalchemy import text

@pytest.mark.asyncio(loop_scope="SCOPE")
@pytest.mark.parametrize("number", range(COUNT))
async def test_plain(db_session, redis_client, number):
    await db_session.execute(text("INSERT INTO author VALUES (1, 'Ursula')"))
    await db_session.commit()
    assert await db_session.scalar(text("SELECT count(*) FROM author")) == 1
    await redis_client.set("number", number)
"""


def found(project: Library, scope: str, count: int, *arguments: str) -> tuple[int, int]:
    """Return how many fixtures a run of *count* tests sets up, and how often it runs the loop."""
    project.write("conftest.py", COUNTING)
    project.write("test_plain.py", TESTS.replace("SCOPE", scope).replace("COUNT", str(count)))
    result = project.run(REUSE, *arguments, "test_plain.py")
    result.assert_outcomes(passed=count)
    (line,) = [each for each in result.outlines if each.startswith("found: ")]
    _, fixtures, runs = line.split()
    return int(fixtures), int(runs)


@pytest.mark.parametrize(
    ("isolation", "scope", "fixtures", "runs"),
    [
        # The test itself, the end of its session, and all else that has to be ended.
        ("clone", "session", 6, 3),
        # One run more for the begin of the transaction around the test.
        ("rollback", "session", 6, 4),
        # The loop has a fixture, at whose end all else ends, and pytest-asyncio ends the loop.
        ("clone", "function", 7, 6),
        ("rollback", "function", 7, 8),
    ],
)
def test_a_test_has_few_fixtures_and_runs_of_the_loop(
    kept: Library, isolation: str, scope: str, fixtures: int, runs: int
) -> None:
    """With `db_session` and `redis_client`; what a run costs in any case is subtracted."""
    option = f"--warmstack-isolation={isolation}"
    few, many = (found(kept, scope, count, option) for count in (20, 40))

    added = [(many[each] - few[each]) / 20 for each in range(2)]
    assert added[0] <= fixtures
    # A test whose connection is a new one has a run more.
    assert added[1] <= runs + 0.25
