"""Facts to text: what the user reads before and after the tests. Pure; nothing is written here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from pytest_warmstack import originals
from pytest_warmstack.errors import line_of
from pytest_warmstack.timings import Ledger, Step

_SERVERS: Final = ("postgres", "redis")
_LINES: Final = 12
"""How many of the things that tests left behind are told."""

_QUERY: Final = 100
"""Characters of a query that are shown."""

_PUT_BACK: Final = ("COMMIT", "ROLLBACK", "SELECT PG_ADVISORY_UNLOCK_ALL()")
"""How the last statement of a connection begins that a pool has put back."""

_DEPTH: Final = 10
"""How far an error's causes are followed."""

_ORIGINS: Final = (
    *("replaced", "started again", "started", "connected"),
    *("rebuilt", "built", "extended"),
    *("reused", "found", "shared"),
)
"""Most telling first: of several workers, one started what the others then found."""


WIDER_SCOPE: Final = (
    "db_url and db_engine belong to one test, unless its class or module has a database of its own:"
    ' pytestmark = pytest.mark.warmstack_isolation("module")'
)
"""What helps when a fixture of a wider scope asks for them."""

PLAIN_URL: Final = (
    "db_url is for create_async_engine. asyncpg, psycopg and libpq take db_dsn, the same URL"
    " without a driver; for create_engine: make_url(db_url).set(drivername='postgresql+psycopg')"
)
"""What helps when another driver gets it."""


def fallback(steps: Sequence[Step]) -> Iterator[str]:
    """Yield the line that even a quiet run needs: the servers are not where one would expect."""
    for step in steps:
        if step.name in _SERVERS and step.facts["why"]:
            yield f"servers are {step.facts['runtime']} ({step.facts['why']})"
            return


def empty(steps: Sequence[Step], file: str = "") -> Iterator[str]:
    """Yield the line that even a quiet run needs: there is nothing in the databases.

    *file* is pytest's configuration file.
    """
    if any(step.name == "template" and step.facts["empty"] for step in steps):
        yield (
            "the databases are empty: no alembic.ini, [tool.alembic] or warmstack_schema was found"
            f" (if this is right, say so: {line_of('warmstack_alembic', 'none', file)})"
        )


def header(
    steps: Sequence[Step],
    *,
    reuse: bool,
    reuse_source: str,
    begun: float = math.inf,
    file: str = "",
) -> Iterator[str]:
    """Yield a line for each server and for the template, as far as they were asked for.

    A server that was made after the run had *begun*, in epoch seconds, was not reused.
    """
    told_why = False
    for name in _SERVERS:
        if told := [step for step in steps if step.name == name]:
            yield _server(_most_telling(told), begun, with_why=not told_why)
            told_why = True
    templates = _templates(steps)
    for name, told in templates.items():
        yield _template(_most_telling(told), of=name if len(templates) > 1 else "")
    yield from empty(steps, file)
    if reuse and any(step.name in _SERVERS and step.facts["since"] for step in steps):
        source = f" ({reuse_source})" if reuse_source else ""
        yield f"the servers stay{source}; to remove them: warmstack clean"


def _most_telling(steps: Sequence[Step]) -> Step:
    return min(steps, key=lambda each: _ORIGINS.index(each.facts["origin"]))


def _templates(steps: Sequence[Step]) -> dict[str, list[Step]]:
    """Return the templates by the Alembic configurations that they are of."""
    found: dict[str, list[Step]] = {}
    for step in steps:
        if step.name == "template":
            found.setdefault(step.facts["of"], []).append(step)
    return found


NO_CONNECTION: Final = "53300"
NO_SPACE: Final = "53100"
"""SQLSTATEs (PostgreSQL's documentation, appendix "PostgreSQL Error Codes")."""


def has_state(error: BaseException, state: str) -> bool:
    """Tell whether *error*, or what it came of, is a refusal of PostgreSQL's with this SQLSTATE."""
    told: BaseException | None = error
    for _ in range(_DEPTH):
        if told is None:
            return False
        if state in (getattr(told, "sqlstate", None), getattr(told, "pgcode", None)):
            return True
        told = getattr(told, "orig", None) or told.__cause__ or told.__context__
    return False


def left(steps: Sequence[Step], *, leaks: bool = True) -> Iterator[str]:
    """Yield a line for each thing that a test left behind, and for those that are too many.

    Without *leaks* nothing is said of connections that are still open.
    """
    told = [
        step.facts for step in steps if step.name == "left" and (leaks or "trouble" in step.facts)
    ]
    pooled = [facts for facts in told if _is_pooled(facts)]
    told = [facts for facts in told if not _is_pooled(facts)]
    for facts in told[:_LINES]:
        yield f"{facts['test']}: {facts['trouble'] if 'trouble' in facts else _leak(facts)}"
    if len(told) > _LINES:
        yield f"... and {len(told) - _LINES} more like these"
    if pooled:
        tests = list(dict.fromkeys(facts["test"] for facts in pooled))
        others = f" and {_counted(len(tests) - 1, 'other test')}" if len(tests) > 1 else ""
        yield (
            f"{tests[0]}{others}: {_counted(len(pooled), 'idle connection')} stayed open, as in an"
            " engine's pool: dispose of the engine after the test, or give it poolclass=NullPool"
        )


def kept(steps: Sequence[Step]) -> Iterator[str]:
    """Yield a line for each database of a failed test that is there to be looked at."""
    for step in steps:
        if step.name == "kept":
            number = step.facts["name"].rpartition("_")[2]
            yield f"{step.facts['test']}: its database is kept: warmstack psql {number}"


def summary(ledger: Ledger, *, workers: int) -> Iterator[str]:
    """Yield the line that tells what the set-up cost, if there was any."""
    seconds = {
        name: max((step.seconds for step in ledger.steps if step.name == name), default=None)
        for name in (*_SERVERS, "end")
    }
    servers = [cost for name in _SERVERS if (cost := seconds[name]) is not None]
    if not servers:
        return
    # The two servers start side by side, the templates follow PostgreSQL, one after the other.
    parts = [f"servers {_duration(max(servers))}"]
    if templates := _templates(ledger.steps).values():
        cost = sum(max(step.seconds for step in each) for each in templates)
        parts.append(f"template{'s' * (len(templates) > 1)} {_duration(cost)}")
    for name, plural in (("clone", "s"), ("rollback", "s"), ("flush", "es")):
        count, median = ledger.repeated(name)
        if count:
            parts.append(f"{count} {name}{plural * (count > 1)} of {_duration(median)}")
    if seconds["end"] is not None:
        parts.append(f"end {_duration(seconds['end'])}")
    by = f" by {workers} workers" if workers > 1 else ""
    yield f"set-up{by}: {', '.join(parts)}"


def _leak(facts: Mapping[str, str]) -> str:
    """Return the words for a connection that a test left open."""
    name = f"connection {facts['application']!r}" if facts["application"] else "connection"
    query = f", last: {' '.join(facts['query'].split())[:_QUERY]}" if facts["query"] else ""
    return f"it left a {name} open ({facts['state'] or 'state unknown'}{query})"


def _is_pooled(facts: Mapping[str, str]) -> bool:
    """Tell whether a connection looks like one that lies in a pool.

    SQLAlchemy and psycopg end the transaction of what comes back, asyncpg resets the connection.
    """
    last = facts.get("query", "").strip().upper()
    return facts.get("state") == "idle" and last.startswith(_PUT_BACK)


def _counted(count: int, noun: str) -> str:
    """Return a number with what it counts: `2 tests`."""
    return f"{count} {noun}{'s' * (count != 1)}"


def _server(step: Step, begun: float, *, with_why: bool) -> str:
    """Return the line of one server."""
    facts = step.facts
    runtime = facts["runtime"]
    why = f" (auto: {facts['why']})" if facts["why"] and with_why else ""
    origin = facts["origin"]
    if origin in {"reused", "shared"}:
        since = float(facts["since"])
        age = _age(originals.now() - since)
        # By a worker that has ended and could not tell, for example.
        is_new = origin == "shared" or since >= begun
        state = f"started {age} ago by another process" if is_new else f"reused, {age} old"
    else:
        state = f"{origin} in {_duration(step.seconds)}"
    reason = f" ({facts['reason']})" if facts["reason"] else ""
    what = f", {facts['what']}" if facts["what"] else ""
    return f"{facts['title']} on {facts['place']}, {runtime}{why}{what}: {state}{reason}"


def _template(step: Step, *, of: str) -> str:
    """Return the line of a template; *of* names its Alembic configuration, if there are others."""
    facts = step.facts
    text = f" of {facts['text']}" if facts["text"] else ""
    how = f" {facts['how']}" if facts["how"] else ""
    why = f" ({facts['why']})" if facts["why"] else ""
    where = f", {of}" if of else ""
    return f"template{text}{where}: {facts['origin']}{how} in {_duration(step.seconds)}{why}"


def _duration(seconds: float) -> str:
    """Return a time as one reads it: `1.31 s`, `14 ms`."""
    if seconds >= 0.9995:
        return f"{seconds:.2f} s"
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.0005 else "under 1 ms"


def _age(seconds: float) -> str:
    """Return an age in its largest whole unit: `3 h`."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(seconds, 0) // 1:.0f} s"
