"""What a seed or schema function may take, and how it gets it.

`TAKEN` is the one list of that: the code, the error and the README are made from it.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import re
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, NamedTuple, get_args, get_origin, get_type_hints

from pytest_warmstack.postgres.template.child.failures import Trouble, is_own


class Taken(NamedTuple):
    """A row of the list: names of a parameter, and what it may be annotated with.

    Without an annotation a `def` gets the first of *plain*, an `async def` that of *awaited*.
    """

    names: tuple[str, ...]
    plain: tuple[str, ...]
    awaited: tuple[str, ...] = ()


SESSION: Final = "sqlalchemy.orm.Session"
FACTORY: Final = "sqlalchemy.orm.sessionmaker"
CONNECTION: Final = "sqlalchemy.Connection"
ENGINE: Final = "sqlalchemy.Engine"
ASYNC_SESSION: Final = "sqlalchemy.ext.asyncio.AsyncSession"
ASYNC_FACTORY: Final = "sqlalchemy.ext.asyncio.async_sessionmaker"
ASYNC_CONNECTION: Final = "sqlalchemy.ext.asyncio.AsyncConnection"
ASYNC_ENGINE: Final = "sqlalchemy.ext.asyncio.AsyncEngine"
ASYNCPG: Final = "asyncpg.Connection"
PSYCOPG: Final = "psycopg.Connection"
ASYNC_PSYCOPG: Final = "psycopg.AsyncConnection"
PSYCOPG2: Final = "psycopg2.extensions.connection"
URL: Final = "sqlalchemy.URL"
TEXT: Final = "a URL as text"
DSN: Final = "a URL as text, without a driver"

TAKEN: Final = (
    Taken(("session", "db", "db_session", "async_session"), (SESSION,), (ASYNC_SESSION,)),
    Taken(
        ("connection", "conn", "db_connection"),
        (CONNECTION, PSYCOPG, PSYCOPG2),
        (ASYNC_CONNECTION, ASYNCPG, ASYNC_PSYCOPG),
    ),
    Taken(("engine", "db_engine", "async_engine"), (ENGINE,), (ASYNC_ENGINE,)),
    Taken(("session_factory", "session_maker", "sessionmaker"), (FACTORY,), (ASYNC_FACTORY,)),
    Taken(("url", "db_url", "database_url"), (TEXT, URL)),
    Taken(("dsn", "conninfo"), (DSN,)),
)

_AWAITED: Final = frozenset(kind for taken in TAKEN for kind in taken.awaited)
_GREENLET: Final = frozenset({SESSION, FACTORY, CONNECTION, ENGINE})
"""What works over asyncpg only below SQLAlchemy's `run_sync`."""

_VARIADIC: Final = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


class Argument(NamedTuple):
    """What a parameter gets: *kind* is a text of `TAKEN`.

    *cls* is the class of an annotation, which may be a subclass, such as SQLModel's `Session`.
    """

    parameter: inspect.Parameter
    kind: str
    cls: Any = None


class Call(NamedTuple):
    """A function of the project and what it gets."""

    function: Callable[..., Any]
    arguments: tuple[Argument, ...]
    is_async: bool

    def __call__(self, given: Mapping[str, Any]) -> Any:
        """Call the function with what is *given* for each parameter."""
        alone = [
            each.parameter.name
            for each in self.arguments
            if each.parameter.kind is inspect.Parameter.POSITIONAL_ONLY
        ]
        named = {name: value for name, value in given.items() if name not in alone}
        return self.function(*(given[name] for name in alone), **named)


def understood() -> list[str]:
    """Return a line for each kind of parameter that is understood."""
    return [
        f"{', '.join(taken.names)}: {' or '.join(taken.plain)}"
        + (f"; in an async def {' or '.join(taken.awaited)}" if taken.awaited else "")
        for taken in TAKEN
    ]


def table() -> str:
    """Return the same as the README has it."""

    def cell(texts: tuple[str, ...]) -> str:
        return ", ".join(each if " " in each else f"`{each}`" for each in texts)

    rows = [
        (cell(taken.names), cell(taken.plain), cell(taken.awaited or taken.plain))
        for taken in TAKEN
    ]
    head = ("Parameter", "in a `def`", "in an `async def`")
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * 3, *rows))


def call(function: Callable[..., Any]) -> Call:
    """Return how *function* is called; raise `Trouble` for a parameter that is not understood.

    A parameter with a default keeps it.
    """
    taker = function
    if any(each.kind in _VARIADIC for each in _parameters(function)):
        # A decorator that passes on whatever it gets.
        taker = inspect.unwrap(function)
    is_async = any(
        map(inspect.iscoroutinefunction, (function, taker, type(function).__call__))  # an object's
    )
    names = getattr(inspect.unwrap(function), "__globals__", {})
    arguments = []
    for parameter in _parameters(taker):
        if parameter.kind in _VARIADIC or parameter.default is not parameter.empty:
            continue
        argument = _argument(parameter, names, is_async=is_async)
        if argument is None:
            raise Trouble("signature", f"its parameter ({parameter}) is not understood")
        if is_async and argument.kind in _GREENLET:
            raise Trouble(
                "signature",
                f"its parameter ({parameter}) is not asynchronous, and it is an async def: make"
                " it a def",
            )
        arguments.append(argument)
    return Call(function, tuple(arguments), is_async)


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters of *function* itself, and not of what it wraps."""
    options: dict[str, Any] = {"follow_wrapped": False}
    if sys.version_info >= (3, 14):
        # An annotation may name what is imported for type checkers only.
        options["annotation_format"] = importlib.import_module("annotationlib").Format.STRING
    return list(inspect.signature(function, **options).parameters.values())


def _argument(
    parameter: inspect.Parameter, names: Mapping[str, Any], *, is_async: bool
) -> Argument | None:
    """Return what *parameter* gets, by its annotation or else by its name; None for neither."""
    hint = parameter.annotation
    try:
        # It takes `Annotated` off, and knows the names of the module.
        here = SimpleNamespace(__annotations__={"it": hint})
        hint = get_type_hints(here, dict(names)).get("it", hint)
    except Exception:  # A name that is imported for type checkers only: its text is looked at.
        hint = str(hint)
    found = _by_text(hint) if isinstance(hint, str) else _by_class(hint)
    # Of `Session | AsyncSession` the one that the function can use.
    found.sort(key=lambda each: (each[0] in _AWAITED) != is_async)
    if found:
        return Argument(parameter, *found[0])
    if hint not in (parameter.empty, Any, object, str):
        return None
    for taken in TAKEN:
        if parameter.name in taken.names:
            kinds = taken.awaited if is_async and taken.awaited else taken.plain
            if hint is not str or kinds[0] in {TEXT, DSN}:
                return Argument(parameter, kinds[0])
    return None


def _by_class(hint: Any) -> list[tuple[str, Any]]:
    """Return the kinds, with their classes, of an annotation, which may be a union."""
    hint = getattr(hint, "__value__", hint)  # What Python 3.12's `type X = ...` stands for.
    members = get_args(hint)
    cls = get_origin(hint) or hint
    if not isinstance(cls, type) or cls.__module__ in {"types", "typing"}:
        return [each for member in members for each in _by_class(member)]
    found = []
    for kind in _kinds():
        module, _, name = kind.rpartition(".")
        known = getattr(sys.modules.get(module), name, None)
        if isinstance(known, type) and issubclass(cls, known):
            found.append((kind, cls))
    return found


def _by_text(hint: str) -> list[tuple[str, Any]]:
    """Return the kinds of an annotation that can't be evaluated, by the names in it."""
    for word in re.findall(r"[A-Za-z_][\w.]*", hint):
        last = word.rpartition(".")[2]
        for wanted in (word, last):
            found = [kind for kind in _kinds() if f".{kind}".endswith(f".{wanted}")]
            if found:
                return [(found[0], None)]
    return []


def _kinds() -> Iterator[str]:
    """Yield the kinds that are classes."""
    for taken in TAKEN:
        yield from (kind for kind in (*taken.plain, *taken.awaited) if " " not in kind)


def run(call: Call, urls: Callable[..., Any]) -> None:
    """Do *call*; then commit and close what it got.

    *urls* gives SQLAlchemy's URL of the database, with the driver that it is called with.
    """
    kinds = {each.kind for each in call.arguments}
    with _all_awaited(), ExitStack() as stack:
        # With no loop around it, where none is needed: the function may call asyncio.run().
        given = {
            each.parameter.name: stack.enter_context(_plain(each, urls, is_async=call.is_async))
            for each in call.arguments
            if each.kind not in _AWAITED | _GREENLET
        }
        if kinds.isdisjoint(_AWAITED | _GREENLET):
            made = call(given)
            if inspect.isawaitable(made):
                asyncio.run(_result(made))
        else:
            asyncio.run(_in_loop(call, given, urls))


@contextmanager
def _all_awaited() -> Iterator[None]:
    """Raise `Trouble` if the project's code began something meanwhile, and never awaited it.

    Python warns of that alone: the rows would be missing, and nothing would say so.
    """
    show, seen = warnings.showwarning, list[tuple[str, str]]()

    def note(message: Warning | str, category: type[Warning], filename: str, *rest: Any) -> None:
        if issubclass(category, RuntimeWarning) and "was never awaited" in str(message):
            # Python tells where the last of it was: in a variable, that is where the call ends.
            place = f"in {Path(filename).name}, line {rest[0]}" if is_own(filename) else ""
            seen.append((str(message), place))
        show(message, category, filename, *rest)

    with warnings.catch_warnings():
        warnings.filterwarnings("always", ".* was never awaited", RuntimeWarning)
        warnings.showwarning = note  # type: ignore[assignment]
        yield
    for text, where in seen:
        raise Trouble("script", f"{text}: nothing of it happened", where)


async def _result(made: Any) -> Any:
    return await made


async def _in_loop(call: Call, given: dict[str, Any], urls: Callable[..., Any]) -> None:
    from sqlalchemy import NullPool
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(urls("postgresql+asyncpg"), poolclass=NullPool)
    dsn = urls("postgresql").render_as_string(hide_password=False)
    awaited = False
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.dispose)
        for each in call.arguments:
            if each.kind in _AWAITED | _GREENLET:
                opened = await stack.enter_async_context(_opened(each, engine, dsn))
                given[each.parameter.name] = opened
            awaited |= each.kind in _AWAITED
        if call.is_async or awaited:
            made = call(given)
        else:
            connection = await stack.enter_async_context(engine.connect())
            made = await connection.run_sync(lambda _: call(given))
        if inspect.isawaitable(made):
            await made
        elif awaited:
            raise Trouble("signature", "it awaits nothing of what it takes: make it an async def")


@contextmanager
def _plain(argument: Argument, urls: Callable[..., Any], *, is_async: bool) -> Iterator[Any]:
    """Yield what *argument* gets; SQLAlchemy is not needed for it."""
    dsn = urls("postgresql").render_as_string(hide_password=False)
    if argument.kind == DSN:
        yield dsn
    elif argument.kind in {TEXT, URL}:
        url = urls("postgresql+asyncpg" if is_async else "")
        yield url if argument.kind == URL else url.render_as_string(hide_password=False)
    else:
        driver = importlib.import_module(argument.kind.partition(".")[0])
        with closing(driver.connect(dsn)) as connection:
            yield connection
            if not connection.closed:
                connection.commit()


@asynccontextmanager
async def _opened(argument: Argument, engine: Any, dsn: str) -> AsyncIterator[Any]:
    """Yield what *argument* gets, which belongs to the running loop."""
    kind, cls = argument.kind, argument.cls
    if kind in {ENGINE, ASYNC_ENGINE}:
        yield engine.sync_engine if kind == ENGINE else engine
    elif kind in {FACTORY, ASYNC_FACTORY}:
        from sqlalchemy.ext.asyncio import async_sessionmaker
        from sqlalchemy.orm import sessionmaker

        if kind == FACTORY:
            yield sessionmaker(engine.sync_engine)
        else:
            yield async_sessionmaker(engine, expire_on_commit=False)
    elif kind in {SESSION, ASYNC_SESSION}:
        from sqlalchemy.ext.asyncio import AsyncSession
        from sqlalchemy.orm import Session

        if kind == SESSION:
            session = AsyncSession(engine, sync_session_class=cls or Session)
        else:
            session = (cls or AsyncSession)(engine, expire_on_commit=False)
        async with session:
            yield session.sync_session if kind == SESSION else session
            await session.commit()
    elif kind in {CONNECTION, ASYNC_CONNECTION}:
        async with engine.connect() as connection:
            yield connection.sync_connection if kind == CONNECTION else connection
            if not connection.closed:
                await connection.commit()
    elif kind == ASYNC_PSYCOPG:
        import psycopg

        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            yield connection  # It commits and closes itself.
    else:
        import asyncpg

        connection = await asyncpg.connect(dsn)
        try:
            yield connection
            if connection.is_in_transaction():
                await connection.execute("COMMIT")
        finally:
            await connection.close()
