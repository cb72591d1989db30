"""The report about the cost, made of measurements that are known: its numbers, words and advice."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pytest_warmstack import cost_report
from pytest_warmstack.options import Isolation, Settings
from pytest_warmstack.report import Ledger, Step
from pytest_warmstack.settings_errors import SettingsError

PAGE = Path(__file__).parents[2] / "docs" / "report.md"

STEP = {"step": str, "how": str, "count": int, "median": float, "p95": float, "total": float}
STEP |= {"workers": dict}
TEST = {"test": str, "seconds": float, "steps": dict, "reasons": list}
ADVICE = {"name": str, "text": str, "seconds": float, "tests": list}


def spent(on: str, seconds: float = 0.02, test: str = "a.py::test", **facts: str) -> Step:
    """Return what is measured of a test's database."""
    if on.startswith("put_back"):
        facts.setdefault("tables", "")
    return Step("spent", seconds, {"on": on, "test": test, **facts})


def server(origin: str = "started", seconds: float = 1.0) -> Step:
    """Return what is noted about PostgreSQL."""
    return Step("postgres", seconds, {"origin": origin})


def template(origin: str = "built", seconds: float = 0.3) -> Step:
    """Return what is noted about the template."""
    return Step("template", seconds, {"origin": origin})


def replaced(test: str, why: str) -> Step:
    """Return what is noted about a database that was replaced."""
    return Step("replaced", 0.0, {"test": test, "why": why})


def document(*steps: Step, settings: Settings | None = None, **times: list[float]) -> Any:
    """Return the report of one process, as a reader of the file gets it."""
    made = cost_report.document([("", Ledger([*steps], times))], settings or Settings())
    return json.loads(json.dumps(made))


def advice(*steps: Step, settings: Settings | None = None) -> dict[str, str]:
    """Return the advice of a run, by name."""
    made = document(*steps, settings=settings or Settings(reuse=True))
    return {each["name"]: each["text"] for each in made["advice"]}


LEAK = Step("left", 0.0, {"test": "a.py::test_leak", "application": "", "state": "", "query": ""})


def test_the_table_the_tests_and_the_advice_in_words() -> None:
    """Every line, for one process."""
    made = document(
        server(),
        template(),
        Step("clones", 0.0, {"puts_back": "yes"}),
        spent("clone", 0.001, "a.py::test_ddl"),
        spent("connections", 0.004, "a.py::test_ddl"),
        spent("copy", 0.02, "a.py::test_ddl"),
        spent("drop", 0.005, "a.py::test_ddl"),
        replaced("a.py::test_ddl", "changed the schema (extra)"),
        spent("connections", 0.52, "a.py::test_leak"),
        LEAK,
        replaced("a.py::test_leak", "left a connection open"),
        spent("put_back_later", 0.012, "a.py::test_seeded", tables="public.country"),
        spent("put_back_at_once", 0.007, "a.py::test_plain"),
        Step("end", 0.03),
        clone=[0.001, 0.0002, 0.0001, 0.0003],
        lease=[0.002],
        flush=[0.0001, 0.003],
    )

    assert list(cost_report.lines(made)) == [
        "step                       count     median        p95      total",
        "PostgreSQL started             1     1.00 s     1.00 s     1.00 s",
        "template built                 1     300 ms     300 ms     300 ms",
        "wait for a clone               4 under 1 ms       1 ms       2 ms",
        "put back, in the test          1       7 ms       7 ms       7 ms",
        "put back *                     1      12 ms      12 ms      12 ms",
        "end of connections *           2     262 ms     520 ms     524 ms",
        "copy *                         1      20 ms      20 ms      20 ms",
        "drop *                         1       5 ms       5 ms       5 ms",
        "Redis lease                    1       2 ms       2 ms       2 ms",
        "flush                          2       2 ms       3 ms       3 ms",
        "end                            1      30 ms      30 ms      30 ms",
        "* in the background, while other tests run",
        "the tests whose databases cost most (* included):",
        "    520 ms  a.py::test_leak: left a connection open",
        "     30 ms  a.py::test_ddl: changed the schema (extra)",
        "     12 ms  a.py::test_seeded: wrote to tables with rows of the template (public.country)",
        "      7 ms  a.py::test_plain: what it did was undone",
        "what would make it faster:",
        "- the servers were started in 1.00 s and removed at the end, with a template that was"
        " built in 300 ms: --reuse-containers keeps both for the next run",
        "- 1 test left connections open, for which the plugin waits up to 0.5 s each; its database"
        " was replaced, not put back (520 ms): close them in the test or in its fixtures, or"
        " dispose of their engine",
        "  a.py::test_leak",
        "- 1 test changed the schema; its database was replaced, not put back (29 ms): do that in a"
        " migration or in warmstack_schema, or let tests share a database with the marker"
        " warmstack_isolation",
        "  a.py::test_ddl",
    ]


def test_a_run_without_databases_has_a_report_too() -> None:
    """An empty one, so that a job that reads the file finds it."""
    made = document()

    assert made == {"version": 1, "workers": [], "steps": [], "tests": [], "advice": []}
    assert list(cost_report.lines(made))[-1] == "nothing was found that would make it faster"


def test_each_worker_has_a_row_where_several_did_the_same() -> None:
    """The first row of a step is for all of them."""
    parts = [
        ("gw0", Ledger([server()], {"clone": [0.1, 0.3]})),
        ("gw1", Ledger([server("shared")], {"clone": [0.2]})),
    ]

    made = cost_report.document(parts, Settings(reuse=True))

    assert made["workers"] == ["gw0", "gw1"]
    assert [" ".join(line.split()) for line in cost_report.lines(made)][1:-1] == [
        "PostgreSQL started 1 1.00 s 1.00 s 1.00 s",
        "PostgreSQL shared 1 1.00 s 1.00 s 1.00 s",
        "wait for a clone 3 200 ms 300 ms 600 ms",
        "gw0 2 200 ms 300 ms 400 ms",
        "gw1 1 200 ms 200 ms 200 ms",
    ]


@pytest.mark.parametrize(
    ("count", "median", "p95"),
    [(1, 1, 1), (2, 1.5, 2), (19, 10, 19), (20, 10.5, 19), (100, 50.5, 95)],
)
def test_the_numbers_of_a_step(count: int, median: float, p95: float) -> None:
    """p95 is the least time that 95 of 100 repetitions did not exceed."""
    times = [float(each) for each in range(count, 0, -1)]

    (step,) = document(clone=times)["steps"]

    assert (step["count"], step["median"], step["p95"]) == (count, median, p95)
    assert step["total"] == sum(times)


def test_ten_tests_are_shown() -> None:
    """Those that cost most, the costliest first."""
    steps = [spent("drop", n / 100, f"a.py::test_{n:02}") for n in range(1, 16)]

    shown = [each["test"] for each in document(*steps)["tests"]]

    assert shown == [f"a.py::test_{n:02}" for n in range(15, 5, -1)]


@pytest.mark.parametrize(
    ("steps", "reasons"),
    [
        ([spent("clone")], ["it waited for its database"]),
        ([spent("connections")], ["its connections ended late"]),
        ([spent("put_back_later"), spent("clone", 0.001)], ["what it did was undone"]),
        (
            [spent("copy"), spent("drop")],
            ["was among the first: its database was replaced, to learn what an unused one has"],
        ),
        (
            [spent("drop"), Step("kept", 0.0, {"test": "a.py::test", "name": "x"})],
            ["failed, so its database was saved"],
        ),
        (
            [spent("drop"), Step("left", 0.0, {"test": "a.py::test", "trouble": "it was lost"})],
            ["it was lost"],
        ),
    ],
)
def test_the_reasons_of_a_test(steps: list[Step], reasons: list[str]) -> None:
    """What is known, or else what took longest."""
    assert document(*steps)["tests"][0]["reasons"] == reasons


@pytest.mark.parametrize(
    ("why", "name"),
    [
        ("changed the schema (extra)", "schema"),
        ("renamed or blocked its database", "connections"),
        ("ran VACUUM or ANALYZE on country", "statistics"),
        ("reset the statistics", "statistics"),
        ("inserted many rows into public.big", "rows"),
        ("changed rows of the template in public.country", "rows"),
        ("changed public.audit, which has triggers or rules that always fire", "rows"),
        ("changed settings, privileges or the comment of the database", None),
        ("left a prepared transaction", None),
    ],
)
def test_what_replaced_databases_have_in_common(why: str, name: str | None) -> None:
    """A reason that the author of a test can do something about is an advice."""
    found = advice(replaced("a.py::test", why), replaced("b.py::test", why))

    assert list(found) == ([name] if name else [])
    assert all(text.startswith("2 tests ") for text in found.values())


def test_what_a_run_does_again_each_time() -> None:
    """Servers that stay, or that a CI machine throws away, are none of it."""
    again = [server(), template()]

    assert list(advice(*again, settings=Settings())) == ["reuse"]
    assert advice(*again, settings=Settings(reuse=True)) == {}
    assert advice(server("connected"), settings=Settings()) == {}
    ci = Settings(sources={"reuse": "environment variable CI"})
    assert advice(*again, settings=ci) == {}


def test_a_slow_build_leads_to_the_profile() -> None:
    """A template that was found took its time for something else."""
    assert "warmstack up --profile" in advice(template(seconds=3.0))["build"]
    assert advice(template("found", seconds=3.0)) == {}


def test_a_large_template_is_slow_to_copy() -> None:
    """A small one is not, whatever a copy takes; nor is a large one that is copied quickly."""

    def found(tables: int, seconds: float) -> dict[str, str]:
        facts = Step("clones", 0.0, {"tables": str(tables)})
        return advice(facts, spent("copy", seconds, ""), spent("copy", seconds, ""))

    assert found(400, 0.08)["tables"].startswith(
        "the template has 400 tables, and a copy takes 80 ms (median of 2)"
    )
    assert found(4, 0.08) == found(400, 0.01) == {}


def test_a_server_that_cannot_put_back_is_named() -> None:
    """Not if each test asked for a new clone."""
    steps = [Step("clones", 0.0, {"puts_back": ""}), *[spent("drop")] * 12]

    assert advice(*steps)["put_back"].startswith("12 databases were dropped and copied again")
    fresh = Settings(reuse=True, isolation=Isolation.FRESH_CLONE)
    assert advice(*steps, settings=fresh) == {}


def test_long_waits_ask_for_more_clones_ahead() -> None:
    """In the notation of the configuration file. Short waits, or few, don't."""
    settings = Settings(reuse=True, clones_ahead=3, file="pyproject.toml")

    found = advice(*[spent("clone", 0.05)] * 10, settings=settings)["ahead"]

    assert found == (
        "10 tests waited for their databases (500 ms): make more clones ahead"
        ' (warmstack_clones_ahead = "6", now 3)'
    )
    assert advice(*[spent("clone", 0.05)] * 9) == advice(*[spent("clone", 0.005)] * 90) == {}


def test_tests_with_an_event_loop_each_could_share_one() -> None:
    """Those that kept the connection of the test before them do already."""
    each = [spent("put_back_at_once")] * 12

    assert advice(*each)["loop"].startswith("12 asynchronous tests with db_engine")
    assert advice(*each, *[spent("again", 0.0)] * 11) == {}


def test_tables_with_rows_of_the_template_are_slow_to_put_back() -> None:
    """The tables that are written to most are named."""
    often = [spent("put_back_later", tables="public.country, public.role")] * 9

    found = advice(*often, spent("put_back_later", tables="public.role"))["seeded"]

    assert "such as public.role, public.country, which" in found
    assert advice(*often) == {}


def test_the_document_is_what_the_page_says() -> None:
    """Every key of it, with its type; the page names each step and each advice."""
    page = PAGE.read_text(encoding="utf-8")
    made = document(
        server(),
        spent("copy"),
        replaced("a.py::test", "changed the schema (x)"),
        clone=[0.1],
    )

    assert list(made) == ["version", "workers", "steps", "tests", "advice"]
    for entries, kinds in ((made["steps"], STEP), (made["tests"], TEST), (made["advice"], ADVICE)):
        for each in entries:
            assert {key: type(value) for key, value in each.items()} == kinds
    for key, kinds in {"steps": STEP, "tests": TEST, "advice": ADVICE}.items():
        for name in kinds:
            assert re.search(rf"^\| .*`({key}\[\])?\.{name}`", page, re.M), (key, name)
    assert re.search(r"^\| `version` \| integer \| 1;", page, re.M)
    assert cost_report.VERSION == 1
    for name, words in cost_report._STEPS.items():
        assert f"`{name}`" in page
        assert words in page
    source = Path(cost_report.__file__).read_text(encoding="utf-8")
    names = {*re.findall(r'yield Advice\("(\w+)"', source)}
    names |= {each.name for each in cost_report._CAUSES}
    (listed,) = re.findall(r"`advice\[\].name` \| text \| (.*) \|", page)
    assert names == set(re.findall(r"`(\w+)`", listed))


# The file


def test_the_place_of_the_file_is_tried_before_the_run(tmp_path: Path) -> None:
    """Its folder is made; nothing is written yet, and an older report stays."""
    path = tmp_path / "out" / "costs.json"
    settings = Settings(report=str(path))

    cost_report.check(settings)
    assert path.parent.is_dir()
    assert not path.exists()

    cost_report.write(str(path), {"version": 1})
    cost_report.check(settings)
    assert json.loads(path.read_text()) == {"version": 1}
    assert [each.name for each in path.parent.iterdir()] == ["costs.json"]


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """The error names the file, the reason, and where the user has set it."""
    (tmp_path / "out").write_text("no folder")
    path = tmp_path / "out" / "costs.json"
    sources = {"report": "command line option --warmstack-report"}

    with pytest.raises(SettingsError) as caught:
        cost_report.check(Settings(report=str(path), sources=sources))

    assert caught.value.what == f"Can't write the report to {path}."
    assert caught.value.why
    assert caught.value.todo == (
        "set --warmstack-report to a file in a folder that you may write to",
    )
