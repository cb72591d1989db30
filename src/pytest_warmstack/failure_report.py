"""What a failed test did to its databases, for its report. Only a failure imports this module."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import pytest

from pytest_warmstack import fixtures, originals
from pytest_warmstack.drivers import loop_of
from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.postgres import State, changes, server_log
from pytest_warmstack.postgres.changes import Changes, Look, Rows, Transaction, short
from pytest_warmstack.postgres.connections import APPLICATION, masked
from pytest_warmstack.report import counted
from pytest_warmstack.servers.model import postgres_url
from pytest_warmstack.structs import Struct

if TYPE_CHECKING:
    from pytest_warmstack.environment import Environment
    from pytest_warmstack.postgres.clones import Clone, CloneFactory, Shared
    from pytest_warmstack.redis.contents import Key, Keys
    from pytest_warmstack.session import Session

T = TypeVar("T")

TIMEOUT: Final = 2.0
"""Seconds that a failed test waits for everything here."""

_LOOK_TIMEOUT: Final = 1.2
_OWN_TIMEOUT: Final = 0.4
"""Seconds of these for the plugin's connection to a database, and for the test's own."""

_BUDGET: Final = 60.0
"""Seconds that all failed tests of a process may take together; later ones only say so."""

_MAX_SHOWN: Final = 15
"""How many tables, objects or messages are shown; the rest is counted."""

_MAX_FAILED: Final = 5
"""How many statements that failed are shown: the last ones."""

_MAX_FURTHER: Final = 3
"""How many databases of `db_factory` are shown."""

_LOG_LINES: Final = 2000
"""How many lines of the server's log are searched."""

_LENGTH: Final = 300
"""How many characters of a statement or a message are shown."""

_PREFIX: Final = "warmstack: "
"""The beginning of the titles of the plugin's sections."""

_BEGIN: Final = "; ".join(
    (
        "SAVEPOINT warmstack_look",
        *(f"SET LOCAL {each}" for each in changes.LIMITS),
        f"SET LOCAL statement_timeout = {_OWN_TIMEOUT * 1000:.0f}",
    )
)
_END: Final = "ROLLBACK TO SAVEPOINT warmstack_look; RELEASE SAVEPOINT warmstack_look"
"""What surrounds the queries on the test's own connection."""


class _Spent(Struct):
    """How many *seconds* the failed tests of this process have taken here."""

    seconds: float = 0.0


_SPENT: Final = pytest.StashKey[_Spent]()


class _Subject(NamedTuple):
    """A database of a failed test, called *title* in its report.

    *user* are the tests that share it, or empty; *shared* is set with the isolation
    `rollback`.
    """

    clone: Clone
    factory: CloneFactory
    title: str
    will_be_saved: bool
    user: str = ""
    shared: Shared | None = None

    def note_connection(self) -> None:
        """Count the plugin's connection as one that is not the test's."""
        if self.shared is not None:
            self.shared.connections += 1


class _Database(NamedTuple):
    """A subject, how it looks from outside, and to the test's own connection in a transaction."""

    subject: _Subject
    look: Look
    inner: Changes | None = None

    @property
    def has_more(self) -> bool:
        """Whether open transactions have changed tables."""
        return any(each.tables for each in self.look.transactions)

    def open_with(self) -> str:
        """Return the number of the database when it is saved, "" if it is not."""
        clone, own = self.subject.clone, self.subject.factory.own_name(self.subject.clone)
        # The next test gets one at the application's address to which no connection came.
        is_given_on = self.look.is_unused and clone.name != own
        is_there = not (is_given_on or self.look.is_gone)
        return own.serial if self.subject.will_be_saved and is_there else ""


def add(item: pytest.Item, report: pytest.TestReport, own: Session) -> None:
    """Add to the *report* of *item*, which failed, what it did to its databases.

    Nothing is added if it had none. Whatever goes wrong here becomes a line of the report.
    """
    environment = own.environment
    if environment is None:
        return
    begin = originals.monotonic()
    sections: list[tuple[str, str]]
    properties: dict[str, str] = {}
    spent = item.config.stash.setdefault(_SPENT, _Spent())
    try:
        subjects = [*_subjects(item, own, environment)]
        leases = environment.redis_in_use()
        has_redis = leases is not None and leases.last_test == item.nodeid
        if not subjects and not has_redis:
            return
        if spent.seconds > _BUDGET:
            text = f"not read: earlier failures have taken {_BUDGET:g} seconds"
            sections = [("what the test did", text)]
        else:
            sections, properties = _read(item, own, environment, subjects, has_redis=has_redis)
    except Exception as error:  # It must not hide the failure of the test.
        text = f"could not be read: {type(error).__name__}: {error}"
        sections = [("what the test did", text)]
    spent.seconds += originals.monotonic() - begin
    report.sections += [(f"{_PREFIX}{title}", text) for title, text in sections]
    found = [(f"warmstack_{name}", value) for name, value in properties.items() if value]
    for each in (report, item):  # The JUnit XML has those of the report of the teardown.
        forget(each)
        each.user_properties += found


def forget(holder: pytest.Item | pytest.TestReport) -> None:
    """Remove this plugin's values of an earlier failure of the same test."""
    holder.user_properties = [
        each for each in holder.user_properties if not each[0].startswith("warmstack_")
    ]


def show(config: pytest.Config, report: pytest.TestReport) -> None:
    """Write this plugin's sections of *report* to the terminal."""
    reporter: Any = config.pluginmanager.getplugin("terminalreporter")
    for title, text in report.sections if reporter is not None else ():
        if title.startswith(_PREFIX):
            reporter.ensure_newline()
            reporter.write_sep("-", title)
            reporter.write_line(text)


# What is read.


def _subjects(item: pytest.Item, own: Session, environment: Environment) -> Iterator[_Subject]:
    """Yield the databases that *item* has."""
    values = getattr(item, "funcargs", {})
    users = [each.nodeid for each in item.listchain() if each.nodeid in own.in_use]
    # One that it shares is its own only if it has asked for it.
    if users and (users[-1] == item.nodeid or "db_url" in values):
        clone = own.in_use[users[-1]]
        if (source := environment.source_of(clone)) is not None and source.factory:
            yield _Subject(
                clone,
                source.factory,
                "its database",
                environment.is_saved(source) and fixtures.shared_clone(item) is None,
                "" if users[-1] == item.nodeid else fixtures.users_of_clone(item, users[-1]),
                fixtures.shared_clone(item),
            )
    further = getattr(values.get("db_factory"), "clones", [])
    for number, clone in enumerate(further[:_MAX_FURTHER], start=1):
        if (source := environment.source_of(clone)) is not None and source.factory:
            title = f"database {number} of db_factory"
            yield _Subject(clone, source.factory, title, environment.is_saved(source))


def _read(
    item: pytest.Item,
    own: Session,
    environment: Environment,
    subjects: Sequence[_Subject],
    *,
    has_redis: bool,
) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Return the sections of the report, with their titles, and short values by name."""
    deadline = originals.monotonic() + TIMEOUT
    is_paused = bool(item.config.getoption("usepdb", default=False))
    redis = _in_thread(lambda: _redis_keys(environment)) if has_redis else None
    databases = _look_at(item, subjects, deadline)
    sections: list[tuple[str, str]] = []
    properties: dict[str, str] = {}
    for each in databases:
        lines = [*_changed_lines(each), *_opening_lines(each, environment, is_paused=is_paused)]
        sections.append((f"changes in {each.subject.title}", "\n".join(lines)))
    if databases:
        properties |= _properties(databases[0])
        # Read last: then the log has what the test sent last.
        log = _in_thread(lambda: environment.postgres_log(_LOG_LINES))
        lines_ = _result(log, deadline) or []
        found = [each for one in databases for each in _messages(one, lines_, own.test_begun)]
        failures = [each for each in found if each.is_failure]
        if failures:
            sections.append(("statements that failed", _failed_text(failures)))
            properties["failed_statements"] = str(len(failures))
        if others := [each for each in found if not each.is_failure]:
            sections.append(("log of PostgreSQL", _log_text(others)))
    if redis is not None:
        text, total = _result(redis, deadline) or (_late("Redis"), "")
        sections.append(("keys in Redis", text))
        properties["redis_keys"] = total
    return sections, properties


def _late(title: str) -> str:
    return f"{title} did not answer within {TIMEOUT:g} seconds"


def _look_at(item: pytest.Item, subjects: Sequence[_Subject], deadline: float) -> list[_Database]:
    """Return all databases as they are now; the first one also as the test itself sees it."""
    futures = [
        each.factory.background.submit(
            changes.look, each.factory, each.clone, _LOOK_TIMEOUT, each.note_connection
        )
        for each in subjects
    ]
    found: list[_Database] = []
    for subject, future in zip(subjects, futures, strict=True):
        look = _result(future, deadline) or Look(problem=_late("PostgreSQL"))
        inner = None
        if not found:
            with suppress(Exception):  # Something else uses the connection.
                inner = _inner_changes(item, subject, look)
        found.append(_Database(subject, look, inner))
    return found


def _in_thread(function: Callable[[], T]) -> Future[T]:
    """Return the result of *function*, which may wait for long, as a future."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    originals.Thread(target=run, name="warmstack-failure", daemon=True).start()
    return future


def _result(future: Future[T], deadline: float) -> T | None:
    """Return the result, or None if it is not there at the *deadline*, or failed."""
    with suppress(Exception):
        return future.result(max(deadline - originals.monotonic(), 0))
    return None


def _inner_changes(item: pytest.Item, subject: _Subject, look: Look) -> Changes | None:
    """Return the changes as the test's own connection sees them, if it is in a transaction.

    The savepoint undoes the settings, and an error.
    """
    idle = {each.pid for each in look.transactions if each.state == "idle in transaction"}
    if look.template is None or not idle:
        return None
    reading = changes.changes(look.template, subject.factory.xid_of(subject.clone))
    values = getattr(item, "funcargs", {})
    for connection in _opened(values, "_warmstack_engines", "db_engine"):
        loop = loop_of(connection)
        is_usable = not (connection.is_closed() or loop.is_running() or loop.is_closed())
        if is_usable and connection.get_server_pid() in idle:

            async def read(connection: Any = connection) -> Changes:
                await connection.execute(_BEGIN)
                try:
                    return await changes.run(reading, connection.fetch)
                finally:
                    await connection.execute(_END)

            return loop.run_until_complete(asyncio.wait_for(read(), _OWN_TIMEOUT))
    for connection in _opened(values, "_warmstack_sync_engines", "db_sync_engine"):
        if not connection.closed and connection.info.backend_pid in idle:
            with connection.cursor() as cursor:

                def fetch(query: str, cursor: Any = cursor) -> Rows:
                    cursor.execute(query)
                    rows: Rows = cursor.fetchall()
                    return rows

                cursor.execute(_BEGIN)
                try:
                    return changes.run_now(reading, fetch)
                finally:
                    cursor.execute(_END)
    return None


def _opened(values: Any, maker: str, engine: str) -> list[Any]:
    """Return the connections that the *engine* of a test has opened."""
    if maker not in values or engine not in values:
        return []
    found: list[Any] = values[maker].opened(getattr(values[engine], "sync_engine", values[engine]))
    return found


def _messages(database: _Database, lines: Iterable[str], begun: float) -> list[server_log.Message]:
    look = database.look
    if not look.epoch:
        return []
    name = str(database.subject.clone.name)
    return server_log.messages(lines, name, since=look.epoch + begun, without=look.pid)


def _redis_keys(environment: Environment) -> tuple[str, str]:
    """Return the keys of this process's Redis databases as text, and their number."""
    from pytest_warmstack.redis import contents

    leases = environment.redis_in_use()
    assert leases is not None  # noqa: S101 - the test has used them
    server = leases.server
    try:
        databases = contents.read(
            server.client.endpoint, server.fingerprint, leases.indexes, TIMEOUT / 2
        )
    except Exception as error:
        why = error.why or error.what if isinstance(error, WarmstackError) else str(error)
        return f"could not be read, with {TIMEOUT / 2:g} s for each answer: {why}", ""
    lines = [line for each in databases for line in _key_lines(each, with_index=len(databases) > 1)]
    return "\n".join(lines), str(sum(each.total for each in databases))


# As text.


def _changed_lines(database: _Database) -> Iterator[str]:
    subject, look, inner = database
    if subject.user:
        yield f"shared by {subject.user}: what all of them did so far"
    if look.is_unused:
        yield "no connection came to it"
        return
    if subject.shared is not None:
        yield "what the test did is rolled back when it ends"
    seen = inner or look.changes
    if seen is not None:
        lines = [
            *_bounded(_row_lines(database), "table"),
            *_listed("made", seen.made),
            *_listed("dropped", seen.dropped),
            *_listed("altered", seen.altered),
            *_listed("sequences", seen.sequences),
            *_listed("locked by an open transaction, so not counted", seen.locked),
            *_listed("too large to count", seen.large),
        ]
        yield from lines or ["no change is committed" if database.has_more else "no changes"]
    if look.problem:
        yield look.problem
    # With `rollback`, the transaction around the test is the plugin's.
    others = [
        each
        for each in look.transactions
        if inner is None or subject.shared is None or not each.name.startswith(APPLICATION)
    ]
    yield from _bounded([*map(_transaction_line, others)], "connection")
    if inner is None and any(each.tables for each in others):
        yield "to see changes that are not committed: commit them, or stop the test with --pdb"


def _row_lines(database: _Database) -> list[str]:
    """Return how many rows of each table were changed, and whether that is committed."""
    subject, look, inner = database
    committed = {each.table: each for each in look.changes.tables} if look.changes else {}
    seen, found = inner or look.changes, []
    for each in seen.tables if seen is not None else ():
        before = committed.get(each.table)
        own = "not committed" if before is None else f"committed: {before}"
        note = "" if each == before or subject.shared is not None else f" ({own})"
        found.append(f"{each.table}: {each}{note}")
    return found


def _bounded(lines: Sequence[str], noun: str) -> Iterator[str]:
    yield from lines[:_MAX_SHOWN]
    if len(lines) > _MAX_SHOWN:
        yield f"... and {counted(len(lines) - _MAX_SHOWN, noun)} more"


def _listed(title: str, names: Sequence[str]) -> Iterator[str]:
    if names:
        more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
        yield f"{title}: {', '.join(names[:_MAX_SHOWN])}{more}"


def _transaction_line(each: Transaction) -> str:
    since = f" for {each.seconds:.1f} s" if each.seconds is not None else ""
    if each.state == "prepared":
        return f"the prepared transaction {each.name!r} is open{since}"
    name = f" of {each.name!r}" if each.name else ""
    tables = f", with changes of {short(each.tables)}" if each.tables else ""
    waits = f", waits for process {each.blockers}" if each.blockers else ""
    query = _cut(masked(each.query))
    if each.state == "active":
        return f"a statement{name} runs{since}{tables}{waits}: {query}"
    if "aborted" in each.state:
        return f"a transaction{name} has failed, so its changes are undone; last: {query}"
    return f"a transaction{name} is open{since}{tables}; last: {query}"


def _opening_lines(
    database: _Database, environment: Environment, *, is_paused: bool
) -> Iterator[str]:
    """Yield the lines to paste that open the database: now if it *is_paused*, later if saved."""
    subject = database.subject
    endpoint = subject.factory.endpoint.replace(password="", query="")
    if not (number := database.open_with()):
        if is_paused:
            yield f"open it: psql {postgres_url(endpoint, str(subject.clone.name), None)}"
        return
    own = subject.factory.own_name(subject.clone)._replace(state=State.SAVED)
    name = subject.clone.name if is_paused else own
    count = environment.settings.keep_failed
    last = f"the last {count} failed tests" if count > 1 else "the last failed test"
    yield f"open it: warmstack psql {number}"
    yield f"     or: psql {postgres_url(endpoint, str(name), None)}"
    yield f"compare its rows with those of the template: warmstack diff {number}"
    when = "when the test has ended, " if is_paused else ""
    only = ", without what is not committed" if database.has_more else ""
    yield f"(saved {when}as one of those of {last}{only})"


def _failed_text(failures: Sequence[server_log.Message]) -> str:
    lines = []
    if (more := len(failures) - _MAX_FAILED) > 0:
        lines.append(f"... {counted(more, 'earlier one')}")
    for each in failures[-_MAX_FAILED:]:
        lines.append(_cut(masked(each.statement)))
        lines += [f"  {_cut(line)}" for line in each.lines]
    return "\n".join(lines)


def _log_text(messages: Sequence[server_log.Message]) -> str:
    lines = [f"... {counted(len(messages) - _MAX_SHOWN, 'earlier message')}"]
    lines = lines if len(messages) > _MAX_SHOWN else []
    for each in messages[-_MAX_SHOWN:]:
        first, *more = each.lines
        lines += [_cut(masked(first)), *(f"  {_cut(masked(line))}" for line in more)]
        lines += [f"  STATEMENT: {_cut(masked(each.statement))}"] if each.statement else []
    return "\n".join(lines)


def _key_lines(keys: Keys, *, with_index: bool) -> Iterator[str]:
    where = f"database {keys.number}: " if with_index else ""
    if not keys.total:
        yield f"{where}no keys"
        return
    yield f"{where}{counted(keys.total, 'key')}"
    yield from (f"  {_plain(each.name)}: {_described(each)}" for each in keys.first)
    if keys.total > len(keys.first):
        yield f"  ... and {keys.total - len(keys.first)} more"


def _described(key: Key) -> str:
    size = f", {counted(key.size, key.unit)}" if key.unit else ""
    ttl = f", {key.ttl / 1000:.0f} s to live" if key.ttl is not None else ""
    return f"{key.type}{size}{ttl}"


def _properties(database: _Database) -> dict[str, str]:
    seen = database.inner or database.look.changes
    number = database.open_with()
    found = {"psql": f"warmstack psql {number}" if number else ""}
    if seen is not None:
        objects = [("made", seen.made), ("dropped", seen.dropped), ("altered", seen.altered)]
        found["rows"] = "; ".join(_row_lines(database)[:_MAX_SHOWN])
        found["objects"] = "; ".join(line for each in objects for line in _listed(*each))
    return found


def _cut(text: str) -> str:
    """Return *text* in one line, and not too long."""
    line = _plain(" ".join(text.split()))
    return line if len(line) <= _LENGTH else f"{line[:_LENGTH]} ..."


def _plain(text: str) -> str:
    """Return *text* with only characters that a terminal and XML can show."""
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
