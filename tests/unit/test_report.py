"""What the set-up did, as facts that travel between processes and as lines that a user reads."""

from __future__ import annotations

import itertools
import time

import pytest

from pytest_warmstack import report
from pytest_warmstack.report import Ledger, Step

NAMES = {
    "postgres": ("PostgreSQL 16.14", "127.0.0.1:54321", "postgres:16-alpine"),
    "redis": ("Redis 7.4.2", "127.0.0.1:63790", "redis:7-alpine"),
}
DURATIONS = [
    (0.0, "under 1 ms"),
    (0.0004, "under 1 ms"),
    (0.001, "1 ms"),
    (0.0144, "14 ms"),
    (0.62, "620 ms"),
    (1.0, "1.00 s"),
    (1.314, "1.31 s"),
    (75.5, "75.50 s"),
]
AGES = [
    (0, "0 s"),
    (-5, "0 s"),
    (42, "42 s"),
    (60, "1 min"),
    (45 * 60, "45 min"),
    (3600, "1 h"),
    (3 * 3600, "3 h"),
    (86400, "1 d"),
    (12 * 86400, "12 d"),
]


def server(name: str = "postgres", *, seconds: float = 1.314, **facts: str) -> Step:
    """Return what the set-up notes about a server; *facts* replace the usual ones."""
    title, place, image = NAMES[name]
    usual = {
        "title": title,
        "place": place,
        "runtime": "docker",
        "why": "",
        "what": f"image {image}",
        "origin": "started",
        "reason": "",
        "since": "0",
    }
    return Step(name, seconds, usual | facts)


def template(
    origin: str = "built",
    text: str = "7 revisions",
    seconds: float = 0.62,
    *,
    how: str = "",
    why: str = "",
    of: str = "",
    seeds: str = "",
    empty: str = "",
) -> Step:
    """Return what the set-up notes about the template."""
    return Step(
        "template",
        seconds,
        {
            "origin": origin,
            "text": text,
            "how": how,
            "why": why,
            "of": of,
            "seeds": seeds,
            "empty": empty,
        },
    )


def header(*steps: Step, reuse: bool = False, source: str = "") -> list[str]:
    """Return the lines before the tests."""
    return list(report.header(steps, reuse=reuse, reuse_source=source))


def summary(*steps: Step, workers: int = 0, **times: list[float]) -> list[str]:
    """Return the lines after the tests."""
    return list(report.summary(Ledger(list(steps), times), workers=workers))


# The ledger


def test_a_ledger_comes_through_json_as_it_was() -> None:
    """What a worker sends is what the controller reads."""
    ledger = Ledger([server(), template()], {"clone": [0.01, 0.02], "flush": []})

    assert Ledger.from_json(ledger.to_json()) == ledger


def test_an_empty_ledger_comes_through_json() -> None:
    """A worker that set nothing up says so."""
    assert Ledger.from_json(Ledger().to_json()) == Ledger()


def test_a_merged_ledger_holds_the_steps_and_times_of_both() -> None:
    """Nothing of either is lost, and the other ledger stays as it was."""
    ledger = Ledger([server()], {"clone": [1.0], "flush": [2.0]})
    other = Ledger([server("redis")], {"clone": [3.0], "other": [4.0]})

    ledger.merge(other)

    assert ledger.steps == [server(), server("redis")]
    assert ledger.times == {"clone": [1.0, 3.0], "flush": [2.0], "other": [4.0]}
    assert other == Ledger([server("redis")], {"clone": [3.0], "other": [4.0]})


def test_what_is_timed_is_counted() -> None:
    """Each repetition is counted under its name, with a time that is not negative."""
    ledger = Ledger()
    for _ in range(3):
        with ledger.timed("clone"):
            pass

    count, median = ledger.repeated("clone")
    assert count == 3
    assert 0 <= median < 1
    assert ledger.repeated("flush") == (0, 0.0)


def test_the_time_of_the_one_in_the_middle_is_told() -> None:
    """One slow repetition among fast ones does not change what is told."""
    ledger = Ledger(times={"clone": [9.0, 0.2, 0.1]})

    assert ledger.repeated("clone") == (3, 0.2)


# The lines before the tests


def test_nothing_set_up_has_no_line() -> None:
    """A run of unit tests reads nothing of ours, whether servers are kept or not."""
    assert header() == []
    assert header(reuse=True, source="command line") == []
    assert summary() == []
    assert summary(workers=2) == []


def test_servers_and_template_have_a_line_each() -> None:
    """PostgreSQL comes first, then Redis, then the template, in whatever order they were ready."""
    assert header(template(), server("redis", seconds=0.5), server()) == [
        "PostgreSQL 16.14 on 127.0.0.1:54321, docker, image postgres:16-alpine: started in 1.31 s",
        "Redis 7.4.2 on 127.0.0.1:63790, docker, image redis:7-alpine: started in 500 ms",
        "template of 7 revisions: built in 620 ms",
    ]


def test_only_what_was_asked_for_is_told() -> None:
    """A run with Redis alone reads of Redis alone."""
    assert header(server("redis", seconds=0.5)) == [
        "Redis 7.4.2 on 127.0.0.1:63790, docker, image redis:7-alpine: started in 500 ms",
    ]


@pytest.mark.parametrize(
    ("step", "end"),
    [
        (server(origin="started"), ": started in 1.31 s"),
        (
            server(origin="started again", reason="its process had ended"),
            ": started again in 1.31 s (its process had ended)",
        ),
        (
            server(origin="replaced", reason="image: postgres:15 -> postgres:16-alpine"),
            ": replaced in 1.31 s (image: postgres:15 -> postgres:16-alpine)",
        ),
    ],
)
def test_a_server_that_was_made_tells_how_long_it_took_and_why(step: Step, end: str) -> None:
    """Started, started again or replaced: the time it took, and the reason where there is one."""
    before = "PostgreSQL 16.14 on 127.0.0.1:54321, docker, image postgres:16-alpine"

    assert header(step) == [before + end]


@pytest.mark.parametrize(("seconds", "age"), AGES)
def test_a_server_that_was_found_tells_its_age(seconds: int, age: str) -> None:
    """The age of a server that stood already is told in its largest unit."""
    (line,) = header(server(origin="reused", since=str(time.time() - seconds)))

    assert line.endswith(f", image postgres:16-alpine: reused, {age} old")


@pytest.mark.parametrize(("origin", "begun"), [("shared", 0), ("reused", 7300), ("reused", 7200)])
def test_a_server_of_the_run_itself_is_not_reused(origin: str, begun: int) -> None:
    """A worker of the run has started it, and has not lived to say so."""
    now = time.time()
    step = server(origin=origin, since=str(now - 7200))

    (line,) = report.header([step], reuse=False, reuse_source="", begun=now - begun)

    assert line.endswith(", image postgres:16-alpine: started 2 h ago by another process")


def test_a_server_that_is_older_than_the_run_is_reused() -> None:
    """By a second, too."""
    now = time.time()
    step = server(origin="reused", since=str(now - 7201))

    (line,) = report.header([step], reuse=False, reuse_source="", begun=now - 7200)

    assert line.endswith(": reused, 2 h old")


@pytest.mark.parametrize(("seconds", "age"), [(59.6, "59 s"), (3599, "59 min"), (86399, "23 h")])
def test_an_age_is_not_rounded_up_to_the_next_unit(seconds: float, age: str) -> None:
    """Units that are full are counted: nothing is 60 minutes old."""
    (line,) = header(server(origin="reused", since=str(time.time() - seconds)))

    assert line.endswith(f": reused, {age} old")


@pytest.mark.parametrize(
    ("origin", "text", "line"),
    [
        ("built", "7 revisions", "template of 7 revisions: built in 620 ms"),
        ("found", "7 revisions", "template of 7 revisions: found in 620 ms"),
        ("built", "an empty database", "template of an empty database: built in 620 ms"),
        ("found", "", "template: found in 620 ms"),
    ],
)
def test_the_template_tells_what_it_holds(origin: str, text: str, line: str) -> None:
    """Built or found, of what, and how long that took."""
    assert header(template(origin, text)) == [line]


@pytest.mark.parametrize(
    ("step", "line"),
    [
        (
            template("extended", "16 revisions", how="by 2 revisions from 14"),
            "template of 16 revisions: extended by 2 revisions from 14 in 620 ms",
        ),
        (
            template(
                "extended",
                "9 revisions",
                how="by 3 revisions from 6",
                why="0007_add_totals.py changed",
            ),
            "template of 9 revisions: extended by 3 revisions from 6 in 620 ms"
            " (0007_add_totals.py changed)",
        ),
        (
            template(
                "rebuilt",
                "9 revisions",
                1.2,
                why="helpers.py changed (imported by 0007_add_totals.py)",
            ),
            "template of 9 revisions: rebuilt in 1.20 s"
            " (helpers.py changed (imported by 0007_add_totals.py))",
        ),
        (
            template("rebuilt", "9 revisions, seed demo.sql", why="--warmstack-rebuild"),
            "template of 9 revisions, seed demo.sql: rebuilt in 620 ms (--warmstack-rebuild)",
        ),
    ],
)
def test_a_template_that_was_built_anew_tells_from_where_and_why(step: Step, line: str) -> None:
    """What was added to which template, and which change made it necessary."""
    assert header(step) == [line]


@pytest.mark.parametrize(("seconds", "text"), DURATIONS)
def test_a_time_is_told_as_one_reads_it(seconds: float, text: str) -> None:
    """Seconds with two digits, milliseconds without, and no false precision below one."""
    assert header(template(seconds=seconds)) == [f"template of 7 revisions: built in {text}"]


def test_a_time_just_under_a_second_is_not_a_thousand_milliseconds() -> None:
    """What would be rounded to the next unit is told in that unit."""
    assert header(template(seconds=0.9996)) == ["template of 7 revisions: built in 1.00 s"]


def test_why_a_runtime_was_chosen_is_told_once() -> None:
    """The first server's line says why there is no Docker, the second one's need not."""
    why = "Docker is not running"

    assert header(
        server(runtime="embedded", why=why, what="process 7 of bin/postgres"),
        server("redis", runtime="embedded", why=why, what="process 8 of valkey-server"),
    ) == [
        "PostgreSQL 16.14 on 127.0.0.1:54321, embedded (auto: Docker is not running),"
        " process 7 of bin/postgres: started in 1.31 s",
        "Redis 7.4.2 on 127.0.0.1:63790, embedded, process 8 of valkey-server: started in 1.31 s",
    ]


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("command line", "the servers stay (command line); to remove them: warmstack clean"),
        ("pyproject.toml", "the servers stay (pyproject.toml); to remove them: warmstack clean"),
        ("", "the servers stay; to remove them: warmstack clean"),
    ],
)
def test_kept_servers_are_told_with_the_choice_and_the_way_out(source: str, line: str) -> None:
    """Who keeps servers reads where that was chosen and how to be rid of them."""
    assert header(server("redis"), reuse=True, source=source)[1:] == [line]


@pytest.mark.parametrize(
    ("origins", "told"),
    [
        (["shared", "started", "shared"], "started in 1.31 s"),
        (["started", "shared"], "started in 1.31 s"),
        (["reused", "replaced"], "replaced in 1.31 s"),
        (["reused", "started again"], "started again in 1.31 s"),
        (["started", "replaced", "reused"], "replaced in 1.31 s"),
        (["reused", "reused"], "reused, 2 h old"),
    ],
)
def test_of_several_workers_the_one_that_did_most_is_told(origins: list[str], told: str) -> None:
    """One worker started what the others found: a single line says that it was started."""
    since = str(time.time() - 7200)

    (line,) = header(*(server(origin=origin, since=since) for origin in origins))

    assert line.endswith(f": {told}")


@pytest.mark.parametrize("origin", ["built", "rebuilt", "extended"])
def test_of_several_workers_the_one_that_built_the_template_is_told(origin: str) -> None:
    """The template was built by one worker, and the others waited for it and found it."""
    steps = [template("found", seconds=0.7), template(origin), template("found", seconds=0.8)]

    assert header(*steps) == [f"template of 7 revisions: {origin} in 620 ms"]


@pytest.mark.parametrize("origin", ["found", "extended", "rebuilt", "built"])
def test_every_origin_that_a_template_may_have_has_a_line(origin: str) -> None:
    """A word that the report did not know would end the run."""
    assert f": {origin} in " in header(template(origin))[0]


def test_each_of_several_templates_is_named_by_its_configuration() -> None:
    """Workers of xdist tell each of them; their costs come one after the other."""
    steps = [template(of="a/alembic.ini"), template("found", of="b/alembic.ini")]
    steps += [template("found", seconds=0.1, of="a/alembic.ini"), server()]

    assert header(*steps)[1:] == [
        "template of 7 revisions, a/alembic.ini: built in 620 ms",
        "template of 7 revisions, b/alembic.ini: found in 620 ms",
    ]
    (line,) = summary(*steps, workers=2)
    assert "templates 1.24 s" in line


def test_a_template_with_the_seeds_of_a_marker_has_a_line_of_its_own() -> None:
    """It is no other configuration, so none is named."""
    text = "7 revisions, seed big.sql"
    steps = [template(), template("extended", text, how="by seed big.sql", seeds="big.sql")]
    steps += [template("found", text, seeds="big.sql"), server()]

    assert header(*steps)[1:] == [
        "template of 7 revisions: built in 620 ms",
        "template of 7 revisions, seed big.sql: extended by seed big.sql in 620 ms",
    ]
    assert "templates 1.24 s" in summary(*steps, workers=2)[0]


# The line after the tests


def test_the_summary_adds_up_what_the_set_up_cost() -> None:
    """Servers and template once, clones and flushes with their number, and the end."""
    assert summary(
        server(),
        server("redis", seconds=0.5),
        template(),
        Step("end", 0.03),
        clone=[0.014, 0.012, 0.02],
        flush=[0.0003, 0.0002],
    ) == [
        "set-up: servers 1.31 s, template 620 ms, 3 clones of 14 ms, 2 flushes of under 1 ms,"
        " end 30 ms"
    ]


def test_the_summary_counts_one_without_a_plural() -> None:
    """One clone is a clone, one flush is a flush."""
    assert summary(server(), clone=[0.014], flush=[0.002]) == [
        "set-up: servers 1.31 s, 1 clone of 14 ms, 1 flush of 2 ms"
    ]


def test_the_summary_leaves_out_what_did_not_happen() -> None:
    """Redis alone has no template and no clones."""
    assert summary(server("redis", seconds=0.5)) == ["set-up: servers 500 ms"]


def test_the_summary_of_several_workers_tells_the_slowest_and_how_many_there_were() -> None:
    """Workers set up side by side, so that the slowest is what the run waited for."""
    assert summary(
        *(server(seconds=seconds) for seconds in (2.0, 1.0)),
        *(template(seconds=seconds) for seconds in (0.1, 0.2)),
        *(Step("end", seconds) for seconds in (0.3, 0.1)),
        workers=2,
        clone=[0.01] * 4,
    ) == [
        "set-up by 2 workers: servers 2.00 s, template 200 ms, 4 clones of 10 ms, end 300 ms",
    ]


def test_a_single_worker_is_not_counted() -> None:
    """One worker is as good as none."""
    assert summary(server(), workers=1) == ["set-up: servers 1.31 s"]


# What tests left behind


def leftover(**facts: str) -> Step:
    """Return the step for what a test left."""
    plain = {"test": "a.py::test", "application": "shop", "state": "idle", "query": "SELECT 1"}
    return Step("left", 0.0, {**plain, **facts})


def test_a_connection_that_was_left_open_is_told_with_its_test_and_its_name() -> None:
    """And what it did last, on one line, cut off where it is long."""
    query = "SELECT 1,\n   2" + ", 3" * 100

    (line,) = report.left([leftover(query=query)])

    begin = "a.py::test: it left a connection 'shop' open (idle, last: SELECT 1, 2, 3"
    assert line.startswith(begin)
    assert len(line) < len(begin) + 100


def test_a_connection_without_a_name_or_a_query_is_told_all_the_same() -> None:
    """There is always something to say."""
    (line,) = report.left([leftover(application="", query="", state="")])

    assert line == "a.py::test: it left a connection open (state unknown)"


def test_other_trouble_is_told_in_its_own_words() -> None:
    """As whoever found it put it."""
    step = Step("left", 0.0, {"test": "a.py::test", "trouble": "it committed"})

    assert list(report.left([step])) == ["a.py::test: it committed"]


def test_a_run_that_leaves_much_is_not_told_all_of_it() -> None:
    """A suite in which every test forgets a connection would bury all else."""
    lines = list(report.left([leftover() for _ in range(40)]))

    assert len(lines) == 13
    assert lines[-1] == "... and 28 more like these"


@pytest.mark.parametrize("query", ["ROLLBACK", "COMMIT;", "SELECT pg_advisory_unlock_all();\nA"])
def test_connections_in_a_pool_are_one_line(query: str) -> None:
    """However many tests the engine of the application has served; it says what ends them."""
    pooled = [leftover(query=query, test=f"a.py::test_{n}") for n in (1, 1, 2, 3)]
    others = [leftover(state="idle in transaction", query=query), leftover()]

    lines = list(report.left([*pooled, *others]))

    assert len(lines) == 3
    assert lines[2].startswith(
        "a.py::test_1 and 2 other tests: 4 idle connections stayed open, as in an engine's pool: "
    )
    (line,) = report.left(pooled[:1])
    assert line.startswith("a.py::test_1: 1 idle connection stayed open, ")
    assert list(report.left(pooled, leaks=False)) == []


def test_a_run_that_leaves_nothing_says_nothing() -> None:
    """Other steps are told elsewhere."""
    assert list(report.left([Step("postgres", 1.0, {})])) == []


class Refused(Exception):
    """An error of a driver, with PostgreSQL's code."""

    sqlstate = "53300"


def raised(*errors: Exception) -> Exception:
    """Return the last of *errors*, each of which came of the one before."""
    for cause, error in itertools.pairwise(errors):
        error.__cause__ = cause
    return errors[-1]


def test_a_refused_connection_is_known_whatever_is_around_it() -> None:
    """SQLAlchemy keeps the driver's error as `orig`, others as a cause."""
    wrapped = ValueError("wrapped")
    wrapped.orig = Refused()  # type: ignore[attr-defined]

    assert report.has_state(Refused(), "53300")
    assert report.has_state(wrapped, "53300")
    assert report.has_state(raised(Refused(), ValueError("a"), ValueError("b")), "53300")


def test_other_errors_are_none_for_want_of_connections() -> None:
    """And one that is its own cause does not keep us."""
    loop = ValueError("loop")
    loop.__cause__ = ValueError("other")
    loop.__cause__.__cause__ = loop

    assert not report.has_state(ValueError("53300"), "53300")
    assert not report.has_state(loop, "53300")
