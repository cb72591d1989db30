"""`--warmstack-report`: a real suite with expensive tests, in every way in which pytest runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from projects import Library
from pytest_warmstack.options import RuntimeName

CONFTEST: Final = """
import sys
import time

import pytest

from pytest_warmstack.session import session_of


@pytest.fixture
def after_the_first(request):
    # From then on, what a test did is undone, or it is said why not.
    environment = session_of(request.config).environment
    deadline = time.monotonic() + 30
    while not any(each.factory._baseline for each in environment._templates.values()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def pytest_unconfigure(config):
    if not hasattr(config, "workerinput"):
        names = sorted(name for name in sys.modules if name.startswith("pytest_warmstack."))
        print("modules:", *names)
"""

TESTS: Final = """
import psycopg
import pytest
from sqlalchemy import text

open_connections = []


def test_first(db_sync_session, redis_sync_client):
    db_sync_session.execute(text("INSERT INTO author VALUES (1, 'Ursula')"))
    db_sync_session.commit()


@pytest.mark.usefixtures("after_the_first")
class TestCostly:
    def test_schema(self, db_sync_session):
        db_sync_session.execute(text("CREATE TABLE zebra (id int)"))
        db_sync_session.commit()

    def test_leak(self, db_dsn):
        open_connections.append(psycopg.connect(db_dsn))

    def test_rows(self, db_sync_session):
        db_sync_session.execute(text("UPDATE country SET code = upper(code)"))
        db_sync_session.commit()

    def test_seeded(self, db_sync_session):
        db_sync_session.execute(text("INSERT INTO country VALUES ('it')"))
        db_sync_session.commit()

    async def test_async(self, db_session):
        await db_session.execute(text("INSERT INTO author VALUES (1, 'Ursula')"))
        await db_session.commit()

    @pytest.mark.warmstack_isolation("rollback")
    @pytest.mark.parametrize("turn", range(2))
    def test_rollback(self, db_sync_session, turn):
        db_sync_session.execute(text("INSERT INTO author VALUES (1, 'Ursula')"))

    # While these are expected, databases are put back, not dropped. All tests are in the report.
    @pytest.mark.parametrize("turn", range(3))
    def test_late(self, db_url, turn):
        pass


def test_without_servers():
    pass
"""

SEED: Final = """
CREATE TABLE country (code text PRIMARY KEY);
INSERT INTO country VALUES ('fr'), ('de');
"""

ID: Final = "test_costs.py::TestCostly::"
REASONS: Final = {
    f"{ID}test_schema": "changed the schema (zebra, pg_attribute, pg_class, pg_depend, pg_type)",
    f"{ID}test_leak": "left a connection open",
    f"{ID}test_rows": "changed rows of the template in public.country",
    f"{ID}test_seeded": "wrote to tables with rows of the template (public.country)",
    f"{ID}test_async": "what it did was undone",
}

TABLE: Final = [
    "step count median p95 total",
    "PostgreSQL reused 1 T T T",
    "Redis reused 1 T T T",
    "template found 1 T T T",
    "wait for a clone 10 T T T",
    "put back, in the test 1 T T T",
    "put back * N T T T",
    "end of connections * N T T T",
    "copy * N T T T",
    "drop * N T T T",
    "rollback 1 T T T",
    "Redis lease 1 T T T",
    "flush 1 T T T",
    "end 1 T T T",
    "* in the background, while other tests run",
    "the tests whose databases cost most (* included):",
]

WITH_FILE: Final = ("--reuse-containers", "--warmstack-report=out/costs.json")


@pytest.fixture(scope="module")
def suite(embedded_programs: None, library_in: Callable[..., Library]) -> Iterator[Library]:
    """A project with expensive tests, kept servers and a built template."""
    library = library_in(RuntimeName.EMBEDDED)
    library.write("conftest.py", CONFTEST)
    library.write("test_costs.py", TESTS)
    library.write("seed.sql", SEED)
    (library.folder / "test_library.py").unlink()
    library.configure("warmstack_seed = seed.sql")
    library.run("--reuse-containers").assert_outcomes(passed=12)
    yield library
    library.end()


def report(result: pytest.RunResult) -> list[str]:
    """Return the lines of the report, without their times and the counts of the background."""
    lines = [line.partition("warmstack: ")[2] for line in result.outlines if "warmstack: " in line]
    begin = next(place for place, line in enumerate(lines) if line.startswith("step "))
    found = []
    for line in lines[begin:]:
        line = re.sub(r"under 1 ms|\d[\d.]* m?s\b", "T", line)
        line = re.sub(r"(?<= \*)\s+\d+(?= +T)", " N", line)
        found.append(" ".join(line.split()))
    return found


def written(suite: Library) -> Any:
    """Return the report in the file, which is removed."""
    path = suite.folder / "out" / "costs.json"
    found = json.loads(path.read_text())
    path.unlink()
    return found


@pytest.mark.parametrize(
    "arguments",
    [[], ["-n0"], ["-p", "no:xdist"], ["-q"], ["-p", "pytest_sugar"]],
    ids=["usual", "n0", "no-xdist", "quiet", "sugar"],
)
def test_the_table_the_tests_and_what_would_help(suite: Library, arguments: list[str]) -> None:
    """The same lines, however the tests run in one process."""
    result = suite.run("--reuse-containers", "--warmstack-report", *arguments)

    result.assert_outcomes(passed=12)
    lines = report(result)
    assert lines[: len(TABLE)] == TABLE
    end = lines.index("what would make it faster:")
    shown = dict(line.removeprefix("T ").split(": ", 1) for line in lines[len(TABLE) : end])
    assert {test: shown.get(test) for test in REASONS} == REASONS
    advice = lines[end + 1 :]
    for name, text in {
        "test_schema": "- 1 test changed the schema; its database was replaced, not put back (T):",
        "test_leak": "- 1 test left connections open, for which the plugin waits up to T each;",
        "test_rows": "- 1 test changed rows of the template, or inserted very many;",
    }.items():
        (place,) = (place for place, line in enumerate(advice) if line == f"{ID}{name}")
        assert advice[place - 1].startswith(text)


@pytest.mark.parametrize(
    "arguments", [[], ["-q"], ["-p", "no:terminal"]], ids=["usual", "quiet", "no-terminal"]
)
def test_the_file_is_written_with_and_without_a_terminal(
    suite: Library, arguments: list[str]
) -> None:
    """It has the same numbers; the terminal then has no table."""
    result = suite.run(*WITH_FILE, *arguments)

    assert result.ret == 0
    assert "median" not in result.stdout.str()
    made = written(suite)
    assert (made["version"], made["workers"]) == (1, [])
    counts = {(each["step"], each["how"]): each["count"] for each in made["steps"]}
    assert (
        counts.items()
        >= {
            ("postgres", "reused"): 1,
            ("redis", "reused"): 1,
            ("template", "found"): 1,
            ("clone", ""): 10,
            ("rollback", ""): 1,
            ("lease", ""): 1,
            ("flush", ""): 1,
        }.items()
    )
    assert all(each["workers"] == {} for each in made["steps"])
    tests = {each["test"]: each for each in made["tests"]}
    assert {test: "; ".join(tests[test]["reasons"]) for test in REASONS} == REASONS
    assert tests[f"{ID}test_schema"]["steps"].keys() == {"clone", "connections", "copy", "drop"}
    assert "put_back_at_once" in tests[f"{ID}test_async"]["steps"]
    assert {each["name"] for each in made["advice"]} >= {"schema", "connections", "rows"}


def test_workers_have_numbers_of_their_own_in_one_file(suite: Library) -> None:
    """The controller writes it, and the table too, with a row for each worker."""
    suite.write("test_more.py", "def test_more(db_url, redis_url): pass\n")
    try:
        result = suite.run(*WITH_FILE, "-n2", "--dist=loadfile", "-q")
        table = suite.run("--reuse-containers", "--warmstack-report", "-n2", "--dist=loadfile")
    finally:
        (suite.folder / "test_more.py").unlink()

    result.assert_outcomes(passed=13)
    made = written(suite)
    assert sorted(made["workers"]) == ["gw0", "gw1"]
    (clones,) = (each for each in made["steps"] if each["step"] == "clone")
    assert sorted(each["count"] for each in clones["workers"].values()) == [1, 10]
    assert clones["count"] == 11
    tests = {each["test"]: "; ".join(each["reasons"]) for each in made["tests"]}
    # One of eleven is not among the ten that are shown.
    shown = REASONS.keys() & tests.keys()
    assert len(shown) >= len(REASONS) - 1
    assert {test: tests[test] for test in shown} == {test: REASONS[test] for test in shown}
    lines = report(table)
    place = lines.index("wait for a clone 11 T T T")
    assert sorted(lines[place + 1 : place + 3]) in (
        ["gw0 1 T T T", "gw1 10 T T T"],
        ["gw0 10 T T T", "gw1 1 T T T"],
    )


def test_a_variable_or_the_configuration_file_names_the_place(suite: Library) -> None:
    """The variable wins over the file, whose paths begin at its folder."""
    inner = suite.folder / "inner"
    inner.mkdir()
    before = (suite.folder / "pytest.ini").read_text()
    suite.configure("warmstack_report = ini.json")
    try:
        named = suite.start("-k", "servers", "..", below="inner").wait()
        varied = suite.start(
            "-k", "servers", "..", below="inner", WARMSTACK_REPORT="variable.json"
        ).wait()
        off = suite.run("-k", "servers", "--warmstack-report=no")
    finally:
        (suite.folder / "pytest.ini").write_text(before)

    for result in (named, varied, off):
        result.assert_outcomes(passed=1, deselected=11)
    # No test needed a server, and still there is a report.
    empty = {"version": 1, "workers": [], "steps": [], "tests": [], "advice": []}
    found = {path.parent.name: path for path in suite.folder.rglob("*.json") if "ini" in path.name}
    assert list(found) == [suite.folder.name]
    assert json.loads((suite.folder / "ini.json").read_text()) == empty
    assert json.loads((inner / "variable.json").read_text()) == empty


@pytest.mark.parametrize("arguments", [[], ["-n2"], ["-p", "no:terminal"]])
def test_a_place_that_cannot_be_written_is_an_error_before_the_tests(
    suite: Library, arguments: list[str]
) -> None:
    """It is a wrong use of the option, and nothing has run."""
    result = suite.run("--warmstack-report=seed.sql/costs.json", *arguments)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    place = suite.folder / "seed.sql" / "costs.json"
    shown = result.stderr.str() + result.stdout.str()
    assert f"Can't write the report to {place}." in shown
    assert "set --warmstack-report to a file in a folder that you may write to" in shown
    assert "modules: pytest_warmstack" in shown
    assert "pytest_warmstack.environment" not in shown


def test_a_file_of_tests_after_the_option_is_not_overwritten(suite: Library) -> None:
    """It would be the value of the option."""
    result = suite.run("--warmstack-report", "test_costs.py")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [
            "ERROR: Invalid value 'test_costs.py' for --warmstack-report.",
            "*write paths of tests before the option: pytest test_costs.py --warmstack-report",
        ]
    )
    assert (suite.folder / "test_costs.py").read_text() == TESTS


def test_a_file_that_cannot_be_written_at_the_end_is_told(suite: Library) -> None:
    """The tests have passed, and the run says so."""
    suite.write(
        "test_remove.py",
        "import pathlib\n\ndef test_remove():\n    pathlib.Path('gone').rmdir()\n",
    )
    try:
        result = suite.run("--warmstack-report=gone/costs.json", "test_remove.py")
    finally:
        (suite.folder / "test_remove.py").unlink()

    assert result.ret == 0
    place = suite.folder / "gone" / "costs.json"
    result.stderr.fnmatch_lines(
        [f"warmstack: the report {place} could not be written: No such file or directory"]
    )


def test_what_runs_no_tests_writes_nothing(suite: Library) -> None:
    """The report of the last run stays after a collection, and after a command."""
    place = str(suite.write("out/costs.json", "{}"))

    assert suite.run(*WITH_FILE, "--collect-only").ret == 0
    assert suite.warmstack("up", WARMSTACK_REPORT=place).ret == 0
    assert "median" not in suite.warmstack("up", WARMSTACK_REPORT="yes").stdout.str()
    assert written(suite) == {}


def test_a_run_without_the_option_imports_nothing_for_it(suite: Library) -> None:
    """And one with it imports these modules alone."""

    def modules(*arguments: str) -> set[str]:
        result = suite.run("--reuse-containers", *arguments)
        (line,) = (line for line in result.outlines if line.startswith("modules: "))
        return set(line.split()[1:])

    without = modules()
    with_table = modules("--warmstack-report")

    assert with_table - without >= {
        "pytest_warmstack.cost_report",
        "pytest_warmstack.postgres.measured_clones",
    }
    assert not {name for name in without if "report_" in name or "_report" in name}
    assert not {name for name in without if "measured" in name or "profile" in name}
