"""The statements that SQLAlchemy sends in a test: what the fixture `db_queries` gives.

SQLAlchemy reports them to listeners of the class `Engine`, so all engines are seen, in all threads
and event loops. The listeners exist only while something records.
"""

from __future__ import annotations

import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, overload

import pytest

from pytest_warmstack import originals
from pytest_warmstack.drivers import POSTGRES, Target, target_of
from pytest_warmstack.guard import host_of
from pytest_warmstack.postgres import DatabaseAddress, DatabaseName, State
from pytest_warmstack.report import counted
from pytest_warmstack.structs import Struct

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.engine import ExceptionContext

_TRANSACTION: Final = re.compile(
    r"\s*(BEGIN|START TRANSACTION|COMMIT|END|ROLLBACK|ABORT|PREPARE TRANSACTION|SAVEPOINT|RELEASE)"
    r"\b[^;]*;?\s*",
    re.IGNORECASE,
)
"""Statements that begin or end transactions and savepoints, and do nothing else."""

_WIDTH: Final = 160
"""How many characters of a statement a message shows."""

_MOST: Final = 10
"""How many statements that were sent once a message lists."""

_LIBRARIES: Final = (
    "<",  # Code that was made from a text.
    f"{sysconfig.get_path('stdlib')}/",
    f"{sysconfig.get_path('platstdlib')}/",
    f"{Path(__file__).parent}/",
)
"""How the names of files begin that aren't the user's, beside those of installed packages."""


class Query(Struct):
    """A statement that SQLAlchemy has sent.

    `statement` is its text, with the driver's placeholders. `parameters` are their values, as the
    driver got them, a list of several if it is *executemany*; no report shows them.
    `seconds` is the time until the driver had the answer, or the error; 0.0 until then. `caller` is
    the line of your code that led to it, such as `shop/orders.py:14`, relative to pytest's root
    directory; "" if only libraries called.
    """

    secret = frozenset({"parameters"})

    statement: str
    parameters: Any
    executemany: bool
    caller: str
    seconds: float = 0.0


class Queries(Sequence[Query]):
    """The statements of a test, or of a part of it, in the order in which they were sent.

    A slice is of the same class.
    """

    def __init__(self, queries: Iterable[Query] = (), *, recorder: Recorder | None = None) -> None:
        self._queries = list(queries)
        self._recorder = recorder

    def __len__(self) -> int:
        return len(self._queries)

    @overload
    def __getitem__(self, index: int) -> Query: ...
    @overload
    def __getitem__(self, index: slice) -> Queries: ...
    def __getitem__(self, index: int | slice) -> Query | Queries:
        found = self._queries[index]
        return Queries(found, recorder=self._recorder) if isinstance(found, list) else found

    def __iter__(self) -> Iterator[Query]:
        return iter(self._queries.copy())  # Another thread may be sending statements.

    def __repr__(self) -> str:
        """Tell how many there are; `str` shows them."""
        return f"<{type(self).__name__}: {counted(len(self), 'statement')}>"

    def __str__(self) -> str:
        return "\n".join([f"{counted(len(self), 'statement')} sent", *_groups(self)])

    def clear(self) -> None:
        """Forget all statements up to now."""
        self._queries.clear()

    def assert_at_most(self, count: int) -> None:
        """Raise `AssertionError` if there are more than *count* statements.

        The error groups those that were sent several times, with the lines that sent them.
        """
        __tracebackhide__ = True
        if len(self) > count:
            lines = [
                f"{counted(len(self), 'statement')} sent, at most {count} allowed",
                *_groups(self),
            ]
            raise AssertionError("\n".join(lines))

    @contextmanager
    def recording(self) -> Generator[Queries]:
        """Record a part of the test: the statements that are sent in the `with` block."""
        part = Queries(recorder=self._recorder)
        with _recorder_of(self).into(part):
            yield part

    def _add(self, query: Query) -> None:
        self._queries.append(query)


def _recorder_of(queries: Queries) -> Recorder:
    recorder = queries._recorder  # noqa: SLF001 - of this module
    if recorder is None:
        raise TypeError("recording() is a method of what the fixture db_queries gives")
    return recorder


def _groups(queries: Iterable[Query]) -> list[str]:
    """Return the lines that show *queries*: first those that were sent several times."""
    callers: dict[str, Counter[str]] = {}
    for each in queries:
        text = " ".join(each.statement.split())
        callers.setdefault(text, Counter())[each.caller or "no line of your code"] += 1
    repeated = {text: found for text, found in callers.items() if found.total() > 1}
    once = [text for text in callers if text not in repeated]
    lines = ["", "Sent several times, as with N + 1 queries:"] if repeated else []
    for text, found in sorted(repeated.items(), key=lambda item: -item[1].total()):
        lines += [f"  {found.total()} times: {_shortened(text)}", *_places(found)]
    lines += ["", "Sent once:"] if once else []
    for text in once[:_MOST]:
        lines += [f"  {_shortened(text)}", *_places(callers[text])]
    if len(once) > _MOST:
        lines.append(f"  and {len(once) - _MOST} more")
    return lines


def _places(callers: Counter[str]) -> list[str]:
    several = len(callers) > 1
    return [
        f"    at {place}{f', {number} times' if several and number > 1 else ''}"
        for place, number in callers.most_common()
    ]


def _shortened(text: str) -> str:
    """Return *text* without its middle, which is often a list of columns, if it is long."""
    if len(text) <= _WIDTH:
        return text
    return f"{text[: _WIDTH // 2 - 5]} ... {text[-_WIDTH // 2 :]}"


class Recorder:
    """Hears of the statements that SQLAlchemy sends to a test's own databases.

    These are the database at *url*, and those of the plugin in use on the same server: further ones
    of `db_factory`. *root* is the folder to which the names of files are relative.
    """

    def __init__(self, url: str, root: Path) -> None:
        address = DatabaseAddress.parse(url)
        self._server = host_of(address.host), address.port
        self._database = address.name
        self._shown = _Files(root)
        self._parts: tuple[Queries, ...] = ()
        # By the ids of SQLAlchemy's execution contexts: what waits for its answer, and since when.
        self._sent: dict[int, tuple[Query, float]] = {}

    @contextmanager
    def into(self, queries: Queries) -> Generator[None]:
        """Record into *queries*. Such blocks can overlap."""
        from sqlalchemy import Engine, event

        listeners: dict[str, Callable[..., None]] = {
            "before_cursor_execute": self._begin,
            "after_cursor_execute": self._end,
            "handle_error": self._fail,
        }
        if not self._parts:
            for name, listener in listeners.items():
                event.listen(Engine, name, listener)
        self._parts = (*self._parts, queries)
        try:
            yield
        finally:
            self._parts = tuple(each for each in self._parts if each is not queries)
            if not self._parts:
                for name, listener in listeners.items():
                    event.remove(Engine, name, listener)

    # What SQLAlchemy tells. It reports nothing of what a dialect asks at its first connection.

    def _begin(
        self,
        connection: Connection,
        _cursor: object,
        statement: str,
        parameters: object,
        context: object,
        executemany: bool,  # noqa: FBT001 - SQLAlchemy's signature
    ) -> None:
        if _TRANSACTION.fullmatch(statement) or not self._is_own(connection):
            return
        query = Query(statement, parameters, executemany, self._shown.caller(sys._getframe(1)))  # noqa: SLF001
        for each in self._parts:
            each._add(query)  # noqa: SLF001 - of this module
        self._sent[id(context)] = query, originals.monotonic()

    def _end(self, *arguments: Any) -> None:
        self._answered(arguments[4])

    def _fail(self, error: ExceptionContext) -> None:
        self._answered(error.execution_context)

    def _answered(self, context: object) -> None:
        if (sent := self._sent.pop(id(context), None)) is not None:
            query, since = sent
            query.seconds = originals.monotonic() - since

    def _is_own(self, connection: Connection) -> bool:
        """Return whether a connection of SQLAlchemy leads to a database of the test."""
        target = target_of(connection.connection.driver_connection)
        if target is None:  # Of a driver that the plugin doesn't know.
            url = connection.engine.url
            place = url.host or "", url.port or 5432, url.database or ""
            target = Target(connection.dialect.driver, POSTGRES, *place)
        if (host_of(target.host), target.port) != self._server:
            return False
        own = DatabaseName.parse(target.database)
        is_in_use = own is not None and own.state is State.IN_USE
        return is_in_use or target.database == self._database


class _Files:
    """Tells the user's code from libraries by the names of files."""

    def __init__(self, root: Path) -> None:
        import sqlalchemy

        # Where packages are installed, even if it has another name than site-packages.
        installed = Path(sqlalchemy.__file__).parents[1]
        self._libraries = (
            _LIBRARIES if root.is_relative_to(installed) else (*_LIBRARIES, f"{installed}/")
        )
        self._root = root
        self._names: dict[str, str] = {}

    def caller(self, frame: FrameType) -> str:
        """Return the innermost line of the user's code among the callers of *frame*, or ""."""
        for each in _callers(frame):
            file = each.f_code.co_filename
            if file not in self._names:
                self._names[file] = self._name(file)
            if name := self._names[file]:
                return f"{name}:{each.f_lineno}"
        return ""

    def _name(self, file: str) -> str:
        """Return how *file* is shown, or "" if it belongs to a library."""
        path = Path(file)
        is_library = not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
        if is_library or file.startswith(self._libraries):
            return ""
        inside = path.is_relative_to(self._root)
        return str(path.relative_to(self._root)) if inside else file


def _callers(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield *frame* and its callers, in asynchronous code too.

    There SQLAlchemy works in a greenlet; the code that awaits it is in the parent greenlet.
    """
    module: Any = sys.modules.get("greenlet")
    greenlet = module.getcurrent() if module is not None else None
    while True:
        while frame is not None:
            yield frame
            frame = frame.f_back
        greenlet = greenlet.parent if greenlet is not None else None
        if greenlet is None:
            return
        frame = greenlet.gr_frame


def of_call(config: pytest.Config, url: str) -> Iterator[Queries]:
    """Yield what records the statements of the current test's function, but not of its fixtures.

    *url* is the `db_url` of the test. If its function requests `db_queries` while it runs, this
    begins then.
    """
    recorder = Recorder(url, config.rootpath)
    queries = Queries(recorder=recorder)
    with ExitStack() as stack:
        stack.enter_context(recorder.into(queries))
        hook = _CallHook(queries, stack.close)
        config.pluginmanager.register(hook)
        yield queries
    config.pluginmanager.unregister(hook)


class _CallHook:
    """Forgets what fixtures sent before the function of the test, and then ends the recording."""

    def __init__(self, queries: Queries, stop: Callable[[], None]) -> None:
        self._queries = queries
        self._stop = stop

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self) -> Generator[None, object, object]:
        """Record the call alone."""
        self._queries.clear()
        try:
            return (yield)
        finally:
            self._stop()
