"""Many processes write to the same servers all the time, and none sees another's data.

The sizes suit the time that `.ci/run` has; `make stress` uses larger ones.
"""

from __future__ import annotations

import os
from itertools import combinations

import pytest

from projects import Library, until

REUSE = "--reuse-containers"
RUNS = int(os.environ.get("STRESS_RUNS", "2"))
WORKERS = int(os.environ.get("STRESS_WORKERS", "4"))
TESTS = int(os.environ.get("STRESS_TESTS", "100"))

WRITING = """
import os
import time
from pathlib import Path
import pytest
from sqlalchemy import text

BEGUN = time.monotonic()

def log(name, *words):
    with Path(name).open("a") as file:
        file.write(" ".join(map(str, words)) + "\\n")

@pytest.fixture(scope="session", autouse=True)
def living():
    yield
    log("living.log", os.getpid(), BEGUN, time.monotonic())

@pytest.mark.parametrize("number", range(int(os.environ["TESTS"])))
async def test_writing(db_session, redis_client, redis_url, number):
    assert await db_session.scalar(text("SELECT count(*) FROM author")) == 0
    assert await redis_client.dbsize() == 0
    rows = int(os.environ["RUN"]) * 1000 + number + 1
    await db_session.execute(
        text("INSERT INTO author SELECT n, 'Ursula' FROM generate_series(1, :rows) n"),
        {"rows": rows},
    )
    await db_session.commit()
    keys = number % 50 + 1
    await redis_client.mset({f"{os.getpid()} {key}": number for key in range(keys)})
    name = await db_session.scalar(text("SELECT current_database()"))
    log("written.log", os.environ["RUN"], number, os.getpid(), name, redis_url.rpartition("/")[2])
    assert await db_session.scalar(text("SELECT count(*) FROM author")) == rows
    assert await redis_client.dbsize() == keys
"""


@pytest.mark.parametrize("reuse", [[REUSE], []], ids=["kept", "ephemeral"])
def test_many_processes_at_once_never_meet(embedded_project: Library, reuse: list[str]) -> None:
    """Every test finds its own rows and keys alone, whatever the tests before it left.

    A kept server has as many databases afterwards as after a run of twenty tests.
    """
    project = embedded_project
    project.write("test_writing.py", WRITING)

    runs = [
        project.start(*reuse, "-n", str(WORKERS), "test_writing.py", TESTS=str(TESTS), RUN=str(run))
        for run in range(RUNS)
    ]
    for running in runs:
        running.wait(1200).assert_outcomes(passed=TESTS)

    written = [line.split() for line in project.lines("written.log")]
    assert len({(run, number) for run, number, *_ in written}) == RUNS * TESTS
    living = [line.split() for line in project.lines("living.log")]
    lives = {process: (float(begin), float(end)) for process, begin, end in living}
    places = {(run if not reuse else "", process, index) for run, _, process, _, index in written}
    for (server, one, index), (other_server, other, other_index) in combinations(places, 2):
        if (server, index) == (other_server, other_index):
            (begin, end), (other_begin, other_end) = lives[one], lives[other]
            assert end < other_begin or other_end < begin, (one, other, index)
    if not reuse:
        return
    assert project.databases("u") == project.databases("b") == []
    many = len(project.databases())
    project.run(REUSE, "test_writing.py", TESTS="20", RUN="0").assert_outcomes(passed=20)
    few = until(
        lambda: len(project.databases("r")) == 2 and len(project.databases()), "two stand ready"
    )
    assert many <= few
    ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pytest-warmstack%'"
    until(lambda: project.sql(ours)[0][0] == 0, "every connection of ours has ended")
