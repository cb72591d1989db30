"""The report about what the set-up cost: as a table, and as JSON for machines.

Only a run with `--warmstack-report` imports this module. docs/report.md documents the JSON.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from pytest_warmstack.errors import line_of
from pytest_warmstack.options import Isolation, Settings
from pytest_warmstack.report import SERVERS, Ledger, Step, counted, duration
from pytest_warmstack.settings_errors import SettingsError

VERSION: Final = 1
"""The version of the JSON. A new key doesn't change it; a changed or removed one does."""

_STEPS: Final = {
    "postgres": "PostgreSQL",
    "redis": "Redis",
    "template": "template",
    "clone": "wait for a clone",
    "put_back_at_once": "put back, in the test",
    "put_back_later": "put back *",
    "connections": "end of connections *",
    "copy": "copy *",
    "drop": "drop *",
    "rollback": "rollback",
    "lease": "Redis lease",
    "flush": "flush",
    "end": "end",
}
"""The steps in their order, with the words of the table; those with a star don't delay the test."""

_MOST: Final = {
    "clone": "it waited for its database",
    "connections": "its connections ended late",
    "drop": "its database was dropped",
    **dict.fromkeys(("put_back_at_once", "put_back_later"), "what it did was undone"),
}
"""What is said of a test if nothing is known but the step that took the most time."""

_MAX_TESTS: Final = 10
"""How many tests are shown."""

_MAX_NAMED: Final = 3
"""How many tests an advice names."""

Part = tuple[str, Ledger]
"""The name of a worker of pytest-xdist, empty without them, and what it measured."""


class Advice(NamedTuple):
    """What would make the run faster: a stable *name*, and a *text* with what was measured.

    *seconds* is what it cost, *tests* are those that it is about.
    """

    name: str
    text: str
    seconds: float
    tests: Sequence[str] = ()


# The file


def check(settings: Settings) -> None:
    """Make the folder of the report and try to write there. Raises `SettingsError`."""
    file = Path(settings.report)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        existed = file.exists()
        with file.open("a"):
            pass
        if not existed:
            file.unlink()
    except OSError as error:
        name, cause = settings.place("report"), error.strerror or str(error)
        raise SettingsError.not_writable(name=name, path=str(file), cause=cause) from error


def write(path: str, document: Mapping[str, Any]) -> None:
    """Write *document* to *path*, whole or not at all. Raises `OSError`."""
    draft = Path(f"{path}.{os.getpid()}")
    draft.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    draft.replace(path)


# The document


def document(parts: Sequence[Part], settings: Settings) -> dict[str, Any]:
    """Return the report as JSON has it; docs/report.md describes its keys."""
    whole = Ledger()
    for _, ledger in parts:
        whole.merge(ledger)
    return {
        "version": VERSION,
        "workers": [worker for worker, _ in parts if worker],
        "steps": list(_steps(parts)),
        "tests": _tests(whole.steps),
        "advice": [each._asdict() for each in _advice(whole, settings)],
    }


def _steps(parts: Sequence[Part]) -> Iterator[dict[str, Any]]:
    measured: dict[tuple[str, str], dict[str, list[float]]] = {}
    for worker, ledger in parts:
        for key, times in _times(ledger).items():
            measured.setdefault(key, {})[worker] = times
    order = list(_STEPS)
    for (step, how), workers in sorted(measured.items(), key=lambda each: order.index(each[0][0])):
        yield {
            "step": step,
            "how": how,
            **_statistics([seconds for times in workers.values() for seconds in times]),
            "workers": {name: _statistics(times) for name, times in workers.items() if name},
        }


def _times(ledger: Ledger) -> dict[tuple[str, str], list[float]]:
    """Return the seconds of each step of *ledger*, by its name and how it was done."""
    found: dict[tuple[str, str], list[float]] = {}
    for step in ledger.steps:
        name, how = step.name, step.facts.get("origin", "")
        if name == "spent":
            name = step.facts["on"]
            if name in ledger.times:
                continue  # It is there for every run.
        if name in _STEPS:
            found.setdefault((name, how), []).append(step.seconds)
    for name, times in ledger.times.items():
        found[name, ""] = times
    return found


def _statistics(times: Iterable[float]) -> dict[str, float]:
    times = sorted(times)
    middle = times[(len(times) - 1) // 2 : len(times) // 2 + 1]
    return {
        "count": len(times),
        "median": round(sum(middle) / len(middle), 6),
        "p95": round(times[math.ceil(len(times) * 0.95) - 1], 6),
        "total": round(sum(times), 6),
    }


def _tests(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Return the tests whose databases cost most, with the seconds of each step, and why."""
    spent: dict[str, dict[str, float]] = {}
    for step in steps:
        if step.name == "spent" and step.facts["test"]:
            seconds = spent.setdefault(step.facts["test"], defaultdict(float))
            seconds[step.facts["on"]] += step.seconds
    most = sorted(spent, key=lambda test: -sum(spent[test].values()))[:_MAX_TESTS]
    return [
        {
            "test": test,
            "seconds": round(sum(spent[test].values()), 6),
            "steps": {on: round(spent[test][on], 6) for on in _STEPS if on in spent[test]},
            "reasons": _reasons([each for each in steps if each.facts.get("test") == test]),
        }
        for test in most
    ]


def _reasons(steps: Sequence[Step]) -> list[str]:
    """Return why a test's database cost time, given all *steps* of that test."""
    found = [step.facts["why"] for step in steps if step.name == "replaced"]
    left = [step.facts for step in steps if step.name == "left"]
    found += [facts["trouble"] for facts in left if "trouble" in facts]
    if any("trouble" not in facts for facts in left):
        found.append("left a connection open")
    for step in steps:
        if tables := step.facts.get("tables"):
            found.append(f"wrote to tables with rows of the template ({tables})")
    if any(step.name == "kept" for step in steps):
        found.append("failed, so its database was saved")
    if not found:
        spent = {step.facts["on"]: step.seconds for step in steps if step.name == "spent"}
        if "copy" in spent:
            return [
                "was among the first: its database was replaced, to learn what an unused one has"
            ]
        return [_MOST[max(spent.keys() & _MOST.keys(), key=lambda on: spent[on])]]
    return list(dict.fromkeys(found))


# What would make it faster


class _Cause(NamedTuple):
    """A kind of reason why a database was replaced: how it begins, and what is said about it."""

    name: str
    beginnings: tuple[str, ...]
    did: str
    cure: str


_SHARE: Final = "let tests share a database with the marker warmstack_isolation"

_CAUSES: Final = (
    _Cause(
        "schema",
        ("changed the schema",),
        "changed the schema",
        f"do that in a migration or in warmstack_schema, or {_SHARE}",
    ),
    _Cause(
        "connections",
        ("left a connection open", "renamed or blocked"),
        "left connections open, for which the plugin waits up to 0.5 s each",
        "close them in the test or in its fixtures, or dispose of their engine",
    ),
    _Cause(
        "statistics",
        ("ran VACUUM", "reset the statistics"),
        "ran VACUUM or ANALYZE, or reset the statistics",
        f"do that once, in warmstack_seed, or {_SHARE}",
    ),
    _Cause(
        "rows",
        ("inserted many rows", "changed rows of the template", "changed "),
        "changed rows of the template, or inserted very many",
        "put rows that many tests need into the template with the marker warmstack_seed, or"
        f" {_SHARE}",
    ),
)
"""The first one that fits counts."""


def _advice(ledger: Ledger, settings: Settings) -> list[Advice]:
    found = [
        *_replaced(ledger),
        *_set_up(ledger, settings),
        *_databases(ledger, settings),
    ]
    return sorted(found, key=lambda each: -each.seconds)


def _spent(ledger: Ledger, on: str) -> list[Step]:
    return [step for step in ledger.steps if step.name == "spent" and step.facts["on"] == on]


def _replaced(ledger: Ledger) -> Iterator[Advice]:
    """Yield what tests did so that their databases could not be put back."""
    cost: dict[str, float] = defaultdict(float)
    for on in ("copy", "drop", "connections"):
        for step in _spent(ledger, on):
            cost[step.facts["test"]] += step.seconds
    of: dict[_Cause, list[str]] = {}
    for step in ledger.steps:
        is_leak = step.name == "left" and "trouble" not in step.facts
        if step.name == "replaced" or is_leak:
            why, test = step.facts.get("why", "left a connection open"), step.facts["test"]
            cause = next((each for each in _CAUSES if why.startswith(each.beginnings)), None)
            if cause and not why.startswith("changed settings"):
                of.setdefault(cause, []).append(test)
    for cause, every in of.items():
        tests = list(dict.fromkeys(every))
        seconds = sum(cost[test] for test in tests)
        text = (
            f"{counted(len(tests), 'test')} {cause.did};"
            f" {'their databases were' if len(tests) > 1 else 'its database was'} replaced, not put"
            f" back ({duration(seconds)}): {cause.cure}"
        )
        yield Advice(cause.name, text, round(seconds, 6), tests)


_LONG_BUILD: Final = 1.0
"""Seconds from which a build of a template is worth a look."""


def _set_up(ledger: Ledger, settings: Settings) -> Iterator[Advice]:
    """Yield what is done again in each run, or takes long."""
    started = [
        step
        for step in ledger.steps
        if step.name in SERVERS and step.facts["origin"] in {"started", "replaced"}
    ]
    builds = [
        step for step in ledger.steps if step.name == "template" and step.facts["origin"] != "found"
    ]
    build = max((step.seconds for step in builds), default=0.0)
    is_ci = settings.sources.get("reuse", "").endswith(" CI")
    if started and not settings.reuse and not is_ci:
        seconds = max(step.seconds for step in started)
        text = (
            f"the servers were started in {duration(seconds)} and removed at the end"
            f"{f', with a template that was built in {duration(build)}' if builds else ''}:"
            " --reuse-containers keeps both for the next run"
        )
        yield Advice("reuse", text, round(seconds + build, 6))
    if build >= _LONG_BUILD:
        text = (
            f"the template was built in {duration(build)}: to see which revisions take long, run"
            " warmstack up --profile"
        )
        yield Advice("build", text, round(build, 6))


_MANY_TABLES: Final = 100
_SLOW_COPY: Final = 0.05
_LONG_WAIT: Final = 0.01
_MANY: Final = 10
"""Advice is given from so many tables, seconds of a copy, seconds of a wait, and tests."""


def _databases(ledger: Ledger, settings: Settings) -> Iterator[Advice]:
    """Yield what makes copies, waits and connections slow."""
    facts = {
        name: text
        for step in ledger.steps
        if step.name == "clones"
        for name, text in step.facts.items()
    }
    copies = [step.seconds for step in _spent(ledger, "copy")]
    tables = int(facts.get("tables", 0))
    if copies and tables >= _MANY_TABLES and (many := _statistics(copies))["median"] >= _SLOW_COPY:
        text = (
            f"the template has {tables} tables, and a copy takes {duration(many['median'])}"
            f" (median of {len(copies)}): tests that roll back need no copy"
            f" ({line_of('warmstack_isolation', 'rollback', settings.file)})"
        )
        yield Advice("tables", text, many["total"])
    drops = _spent(ledger, "drop")
    is_fresh = settings.isolation is Isolation.FRESH_CLONE
    if not facts.get("puts_back", "yes") and not is_fresh and len(drops) >= _MANY:
        seconds = sum(copies) + sum(step.seconds for step in drops)
        text = (
            f"{len(drops)} databases were dropped and copied again ({duration(seconds)}), because"
            " this server can't put them back: use PostgreSQL 15 or newer, without a pooler, as a"
            " role with SUPERUSER"
        )
        yield Advice("put_back", text, round(seconds, 6))
    waits = [step for step in _spent(ledger, "clone") if step.seconds >= _LONG_WAIT]
    if len(waits) >= _MANY:
        seconds, ahead = sum(step.seconds for step in waits), settings.clones_ahead
        text = (
            f"{counted(len(waits), 'test')} waited for their databases ({duration(seconds)}):"
            f" make more clones ahead"
            f" ({line_of('warmstack_clones_ahead', str(ahead * 2), settings.file)}, now {ahead})"
        )
        yield Advice("ahead", text, round(seconds, 6), [step.facts["test"] for step in waits])
    seeded = [
        step
        for on in ("put_back_at_once", "put_back_later")
        for step in _spent(ledger, on)
        if step.facts["tables"]
    ]
    if len(seeded) >= _MANY:
        seconds = sum(step.seconds for step in seeded)
        written = Counter(
            name for step in seeded for name in step.facts["tables"].split(", ")
        ).most_common(_MAX_NAMED)
        text = (
            f"{len(seeded)} times a test wrote to tables with rows of the template, such as"
            f" {', '.join(name for name, _ in written)}, which the plugin then has to vacuum"
            f" ({duration(seconds)}): give rows that few tests need to these alone, with the"
            " marker warmstack_seed"
        )
        tests = list(dict.fromkeys(step.facts["test"] for step in seeded))
        yield Advice("seeded", text, round(seconds, 6), tests)
    at_once, again = _spent(ledger, "put_back_at_once"), _spent(ledger, "again")
    if len(at_once) >= _MANY and len(again) * 4 < len(at_once):
        text = (
            f"{counted(len(at_once), 'asynchronous test')} with db_engine opened a connection"
            " each, because each has an event loop of its own: tests that share one keep it open"
            f" ({line_of('asyncio_default_test_loop_scope', 'module', settings.file)})"
        )
        seconds = round(sum(step.seconds for step in at_once), 6)
        yield Advice("loop", text, seconds, [step.facts["test"] for step in at_once])


# The table


def lines(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the table, of the tests that cost most, and of the advice."""
    yield from _table(document["steps"])
    if tests := document["tests"]:
        yield "the tests whose databases cost most (* included):"
        for each in tests:
            yield f"{duration(each['seconds']):>10}  {each['test']}: {'; '.join(each['reasons'])}"
    if advice := document["advice"]:
        yield "what would make it faster:"
        for each in advice:
            named = ", ".join(each["tests"][:_MAX_NAMED])
            more = len(each["tests"]) - _MAX_NAMED
            yield f"- {each['text']}"
            if named:
                yield f"  {named}{f' and {more} more' if more > 0 else ''}"
    else:
        yield "nothing was found that would make it faster"


def _table(steps: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a row for each step, and below it one for each worker, if there are several."""
    rows: list[tuple[str, Mapping[str, Any]]] = []
    for step in steps:
        how = f" {step['how']}" if step["how"] else ""
        rows.append((f"{_STEPS[step['step']]}{how}", step))
        if len(workers := step["workers"]) > 1:
            rows += [(f"  {name}", each) for name, each in workers.items()]
    width = max((len(name) for name, _ in rows), default=4)
    names: Sequence[tuple[str, Callable[[Any], str]]] = [
        ("count", str),
        *((name, duration) for name in ("median", "p95", "total")),
    ]
    yield f"{'step':{width}}" + "".join(f"{name:>11}" for name, _ in names)
    for title, row in rows:
        yield f"{title:{width}}" + "".join(f"{show(row[name]):>11}" for name, show in names)
    if any("*" in title for title, _ in rows):
        yield "* in the background, while other tests run"
