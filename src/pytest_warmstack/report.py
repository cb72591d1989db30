"""Turns timings and findings into lines for a run and for the command `warmstack`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple, Self

from pytest_warmstack import originals
from pytest_warmstack.errors import line_of
from pytest_warmstack.structs import Struct

SERVERS: Final = ("postgres", "redis")
"""The names of the steps that start servers."""


class Step(NamedTuple):
    """A step of the set-up: its *name*, how many *seconds* it took, and *facts* about it."""

    name: str
    seconds: float
    facts: Mapping[str, str] = {}


class Ledger(Struct):
    """What a process set up and how long it took, in a form that another process can read.

    `steps` has what happened once; `times` has the seconds of each clone, rollback and flush.
    """

    steps: list[Step] = []  # noqa: RUF012 - copied
    times: dict[str, list[float]] = {}  # noqa: RUF012

    def note(self, step: Step) -> None:
        """Add a step that happened once."""
        self.steps.append(step)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Measure the time of the `with` block as one more repetition of *name*."""
        begin = originals.monotonic()
        yield
        self.times.setdefault(name, []).append(originals.monotonic() - begin)

    def repeated(self, name: str) -> tuple[int, float]:
        """Return how often *name* ran, and the median of its seconds."""
        # Importing the statistics module would take longer than most of the set-up.
        times = sorted(self.times.get(name, []))
        middle = times[(len(times) - 1) // 2 : len(times) // 2 + 1]
        return len(times), sum(middle) / len(middle) if middle else 0.0

    def to_json(self) -> str:
        """Return a text from which `from_json` restores this ledger in another process."""
        return json.dumps([self.steps, self.times])

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the ledger in the *text* of `to_json`."""
        steps, times = json.loads(text)
        return cls([Step(*step) for step in steps], times)

    def merge(self, other: Ledger) -> None:
        """Add the ledger of another process."""
        self.steps += other.steps
        for name, times in other.times.items():
            self.times.setdefault(name, []).extend(times)


# Before the tests

_ORIGINS: Final = (
    *("replaced", "started again", "started", "connected"),
    *("rebuilt", "built", "extended"),
    *("reused", "found", "shared"),
)
"""The most informative first: one worker starts what the other workers then find."""


def fallback(steps: Sequence[Step]) -> Iterator[str]:
    """Yield the line that even a quiet run needs if `auto` didn't choose Docker."""
    for step in steps:
        if step.name in SERVERS and step.facts["why"]:
            yield f"servers are {step.facts['runtime']} ({step.facts['why']})"
            return


def empty(steps: Sequence[Step], file: str = "") -> Iterator[str]:
    """Yield the line that even a quiet run needs if the databases are empty.

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
    """Yield a line for each server and each template of the run.

    *begun* is when the run began, in seconds since the epoch: a younger server was not reused.
    """
    servers = [[step for step in steps if step.name == name] for name in SERVERS]
    with_why = True
    for found in filter(None, servers):
        yield _server(_most_telling(found), begun, with_why=with_why)
        with_why = False
    templates = _templates(steps)
    has_several = len({of for of, _ in templates}) > 1
    for (of, _), found in templates.items():
        yield _template(_most_telling(found), of if has_several else "")
    yield from empty(steps, file)
    if reuse and any(step.facts["since"] for step in steps if step.name in SERVERS):
        source = f" ({reuse_source})" if reuse_source else ""
        yield f"the servers stay{source}; to remove them: warmstack clean"


def _most_telling(steps: Sequence[Step]) -> Step:
    return min(steps, key=lambda step: _ORIGINS.index(step.facts["origin"]))


def _templates(steps: Sequence[Step]) -> dict[tuple[str, str], list[Step]]:
    """Return the templates by their Alembic configurations and the seeds of markers."""
    found: dict[tuple[str, str], list[Step]] = {}
    for step in steps:
        if step.name == "template":
            found.setdefault((step.facts["of"], step.facts["seeds"]), []).append(step)
    return found


def _server(step: Step, begun: float, *, with_why: bool) -> str:
    facts = step.facts
    why = f" (auto: {facts['why']})" if facts["why"] and with_why else ""
    what = f", {facts['what']}" if facts["what"] else ""
    state = f"{facts['origin']} in {duration(step.seconds)}"
    if facts["origin"] in {"reused", "shared"}:
        since = float(facts["since"])
        old = age(originals.now() - since)
        # Another worker may have started it, and ended before it could report that.
        is_new = facts["origin"] == "shared" or since >= begun
        state = f"started {old} ago by another process" if is_new else f"reused, {old} old"
    return (
        f"{facts['title']} on {facts['place']}, {facts['runtime']}{why}{what}: {state}"
        f"{_in_brackets(facts['reason'])}"
    )


def _template(step: Step, of: str) -> str:
    facts = step.facts
    text = f" of {facts['text']}" if facts["text"] else ""
    where = f", {of}" if of else ""
    how = f" {facts['how']}" if facts["how"] else ""
    return (
        f"template{text}{where}: {facts['origin']}{how} in {duration(step.seconds)}"
        f"{_in_brackets(facts['why'])}"
    )


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""


# After the tests

_MAX_LEFT: Final = 12
"""How many lines about what tests left behind are shown; the rest is only counted."""

_MAX_QUERY: Final = 100
"""How many characters of a query are shown."""

_PUT_BACK: Final = ("COMMIT", "ROLLBACK", "SELECT PG_ADVISORY_UNLOCK_ALL()")
"""How the last statement of a connection begins after it has returned to a pool.

SQLAlchemy and psycopg then end the transaction; asyncpg resets the connection.
"""


def left(steps: Sequence[Step], *, leaks: bool = True) -> Iterator[str]:
    """Yield a line for everything that a test left behind, and one for connections in pools.

    Without *leaks*, connections that are still open are not reported.
    """
    found = [
        step.facts for step in steps if step.name == "left" and (leaks or "trouble" in step.facts)
    ]
    pooled = [facts for facts in found if _is_pooled(facts)]
    others = [facts for facts in found if not _is_pooled(facts)]
    for facts in others[:_MAX_LEFT]:
        yield f"{facts['test']}: {facts['trouble'] if 'trouble' in facts else _leak(facts)}"
    if len(others) > _MAX_LEFT:
        yield f"... and {len(others) - _MAX_LEFT} more like these"
    if pooled:
        first, *more = dict.fromkeys(facts["test"] for facts in pooled)
        tests = f"{first} and {counted(len(more), 'other test')}" if more else first
        yield (
            f"{tests}: {counted(len(pooled), 'idle connection')} stayed open, as in an engine's"
            " pool: dispose of the engine after the test, or give it poolclass=NullPool"
        )


def _is_pooled(facts: Mapping[str, str]) -> bool:
    last = facts.get("query", "").strip().upper()
    return facts.get("state") == "idle" and last.startswith(_PUT_BACK)


def _leak(facts: Mapping[str, str]) -> str:
    name = f"connection {facts['application']!r}" if facts["application"] else "connection"
    query = f", last: {' '.join(facts['query'].split())[:_MAX_QUERY]}" if facts["query"] else ""
    return f"it left a {name} open ({facts['state'] or 'state unknown'}{query})"


def kept(steps: Sequence[Step]) -> Iterator[str]:
    """Yield a line for each database that was saved because its test failed."""
    for step in steps:
        if step.name == "kept":
            number = step.facts["name"].rpartition("_")[2]
            yield f"{step.facts['test']}: its database is saved: warmstack psql {number}"


def unreached(steps: Sequence[Step], variables: Sequence[str]) -> Iterator[str]:
    """Yield the line for a run whose databases no connection ever reached.

    *variables* lead to them.
    """
    found = [step.facts["reached"] for step in steps if step.name == "address"]
    if found and not any(found):
        yield (
            f"no test has connected to its database, to which {', '.join(variables)} leads: does"
            " the application read another variable? (see warmstack_env; if these tests need no"
            " database, there is nothing to do)"
        )


def summary(ledger: Ledger, *, workers: int) -> Iterator[str]:
    """Yield the line about how long the set-up took, if there was one."""
    servers = [step.seconds for step in ledger.steps if step.name in SERVERS]
    if not servers:
        return
    # The servers start at the same time; the templates follow, one after the other.
    parts = [f"servers {duration(max(servers))}"]
    if templates := _templates(ledger.steps).values():
        cost = sum(max(step.seconds for step in each) for each in templates)
        parts.append(f"template{'s' * (len(templates) > 1)} {duration(cost)}")
    replaced = sum(step.name == "replaced" for step in ledger.steps)
    for name, plural in (("clone", "s"), ("rollback", "s"), ("flush", "es")):
        count, median = ledger.repeated(name)
        if count:
            again = f" ({replaced} replaced)" if name == "clone" and replaced else ""
            parts.append(f"{count} {name}{plural * (count > 1)} of {duration(median)}{again}")
    if ends := [step.seconds for step in ledger.steps if step.name == "end"]:
        parts.append(f"end {duration(max(ends))}")
    by = f" by {workers} workers" if workers > 1 else ""
    yield f"set-up{by}: {', '.join(parts)}"


# Beside the failure of a test


def wider_scope(fixture: str, scope: str, file: str) -> str:
    """Return the advice if a fixture of a wider *scope* requests *fixture*.

    *file* is pytest's configuration file.
    """
    # A package has no database of its own.
    isolation = "session" if scope == "package" else scope
    engine = fixture.replace("_session", "_engine")
    only = f"{fixture} belongs to one test, so open a session on {engine}; " * (engine != fixture)
    return (
        f"{only}{engine} has the scope {isolation} with"
        f" {line_of('warmstack_isolation', isolation, file)} in {file or 'pytest.ini'}, or with"
        f' pytestmark = pytest.mark.warmstack_isolation("{isolation}") in the test file'
    )


OWN_DATABASE: Final = (
    "the marker warmstack_isolation of this test gives it a database of its own: remove the marker,"
    " or don't request fixtures that use the database of the other tests"
)
"""The advice if a test has another isolation than the fixtures that it requests."""

PLAIN_URL: Final = (
    "db_url is for create_async_engine. asyncpg, psycopg and libpq take db_dsn, the same URL"
    " without a driver. Instead of create_engine, use db_sync_engine, or for an engine of your own:"
    " make_url(db_url).set(drivername='postgresql+psycopg')"
)
"""The advice if another driver gets `db_url`."""

NO_CONNECTION: Final = "53300"
NO_SPACE: Final = "53100"
"""SQLSTATEs (PostgreSQL's documentation, appendix "PostgreSQL Error Codes")."""

_MAX_CAUSES: Final = 10
"""How many causes of an error are examined: they may form a cycle."""


def has_state(error: BaseException, state: str) -> bool:
    """Return whether *error*, or a cause of it, is a refusal of PostgreSQL with this SQLSTATE."""
    cause: BaseException | None = error
    for _ in range(_MAX_CAUSES):
        if cause is None:
            return False
        if state in (getattr(cause, "sqlstate", None), getattr(cause, "pgcode", None)):
            return True
        cause = getattr(cause, "orig", None) or cause.__cause__ or cause.__context__
    return False


# Numbers


def counted(count: int, noun: str) -> str:
    """Return a number of things, each of which is a *noun*.

    >>> counted(2, "entry")
    '2 entries'
    """
    plural = f"{noun[:-1]}ies" if noun.endswith("ry") else f"{noun}s"
    return f"{count} {noun if count == 1 else plural}"


def duration(seconds: float) -> str:
    """Return a duration in readable form, such as `1.31 s` or `14 ms`."""
    if seconds >= 0.9995:
        return f"{seconds:.2f} s"
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.0005 else "under 1 ms"


def age(seconds: float) -> str:
    """Return an age in its largest whole unit.

    >>> age(7300)
    '2 h'
    """
    for unit, size_ in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size_:
            return f"{seconds // size_:.0f} {unit}"
    return f"{max(seconds, 0) // 1:.0f} s"


def ago(moment: float) -> str:
    """Return how long ago *moment* was, in seconds since the epoch; a dash if it is 0."""
    return f"{age(originals.now() - moment)} ago" if moment else "-"


def size(count: int) -> str:
    """Return *count* bytes in a suitable unit; a dash for 0.

    >>> size(8_500_000)
    '8.5 MB'
    """
    for unit, many in (("GB", 1e9), ("MB", 1e6)):
        if count >= many:
            return f"{count / many:.1f} {unit}"
    return f"{count / 1e3:.0f} kB" if count else "-"
