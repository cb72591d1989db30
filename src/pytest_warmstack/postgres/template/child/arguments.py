"""The project's functions: how a line names them, and which arguments they get.

`PARAMETERS` lists the parameters that a seed or schema function may have. The code, the error and
the README's table are derived from it.
"""

from __future__ import annotations

import asyncio
import difflib
import importlib
import inspect
import re
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing, contextmanager
from enum import StrEnum
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, NamedTuple, get_args, get_origin, get_type_hints

from pytest_warmstack.postgres.template.child.failures import (
    BuildFailure,
    is_project_file,
    listen_to_warnings,
)


class Kind(StrEnum):
    """The kind of an argument, in the words of the error and of the README."""

    SESSION = "sqlalchemy.orm.Session"
    FACTORY = "sqlalchemy.orm.sessionmaker"
    CONNECTION = "sqlalchemy.Connection"
    ENGINE = "sqlalchemy.Engine"
    ASYNC_SESSION = "sqlalchemy.ext.asyncio.AsyncSession"
    ASYNC_FACTORY = "sqlalchemy.ext.asyncio.async_sessionmaker"
    ASYNC_CONNECTION = "sqlalchemy.ext.asyncio.AsyncConnection"
    ASYNC_ENGINE = "sqlalchemy.ext.asyncio.AsyncEngine"
    ASYNCPG = "asyncpg.Connection"
    PSYCOPG = "psycopg.Connection"
    ASYNC_PSYCOPG = "psycopg.AsyncConnection"
    PSYCOPG2 = "psycopg2.extensions.connection"
    URL = "sqlalchemy.URL"
    TEXT = "a URL as text"
    DSN = "a URL as text, without a driver"


class ParameterRow(NamedTuple):
    """A row of `PARAMETERS`: names of a parameter, and the types that its annotation may have.

    Without an annotation, a `def` gets the first of *kinds*, an `async def` the first of
    *async_kinds*.
    """

    names: tuple[str, ...]
    kinds: tuple[Kind, ...]
    async_kinds: tuple[Kind, ...] = ()


PARAMETERS: Final = (
    ParameterRow(
        ("session", "db", "db_session", "async_session"), (Kind.SESSION,), (Kind.ASYNC_SESSION,)
    ),
    ParameterRow(
        ("connection", "conn", "db_connection"),
        (Kind.CONNECTION, Kind.PSYCOPG, Kind.PSYCOPG2),
        (Kind.ASYNC_CONNECTION, Kind.ASYNCPG, Kind.ASYNC_PSYCOPG),
    ),
    ParameterRow(("engine", "db_engine", "async_engine"), (Kind.ENGINE,), (Kind.ASYNC_ENGINE,)),
    ParameterRow(
        ("session_factory", "session_maker", "sessionmaker"), (Kind.FACTORY,), (Kind.ASYNC_FACTORY,)
    ),
    ParameterRow(("url", "db_url", "database_url"), (Kind.TEXT, Kind.URL)),
    ParameterRow(("dsn", "conninfo"), (Kind.DSN,)),
)

_CLASSES: Final = [
    kind for row in PARAMETERS for kind in (*row.kinds, *row.async_kinds) if " " not in kind
]
_ASYNC: Final = frozenset(kind for row in PARAMETERS for kind in row.async_kinds)
_GREENLET: Final = frozenset({Kind.SESSION, Kind.FACTORY, Kind.CONNECTION, Kind.ENGINE})
"""The kinds that work with asyncpg only in SQLAlchemy's `run_sync`."""

_VARIADIC: Final = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


class Argument(NamedTuple):
    """The argument for *parameter*; *cls* may be a subclass of *kind*, as SQLModel's `Session`."""

    parameter: inspect.Parameter
    kind: Kind
    cls: Any = None


class Call(NamedTuple):
    """A function of the project and its arguments."""

    function: Callable[..., Any]
    arguments: tuple[Argument, ...]
    is_async: bool

    def __call__(self, values: Mapping[str, Any]) -> Any:
        """Call the function; *values* has the arguments by the names of the parameters."""
        parameters = [each.parameter for each in self.arguments]
        positional = [each.name for each in parameters if each.kind is each.POSITIONAL_ONLY]
        named = {name: value for name, value in values.items() if name not in positional}
        return self.function(*map(values.__getitem__, positional), **named)


def resolve(line: str, root: str) -> Any:
    """Return what *line*, `package.module:attribute`, names in the project whose folder is *root*.

    Raises `BuildFailure` if the module has no such attribute.
    """
    module, _, path = line.partition(":")
    _prefer_project(module, root)
    found: Any = importlib.import_module(module)
    for name in path.split("."):
        if not hasattr(found, name):
            close = difflib.get_close_matches(name, dir(found), 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise BuildFailure("config", f"{module} has no attribute {path}{hint}")
        found = getattr(found, name)
    return found


def _prefer_project(module: str, root: str) -> None:
    """Make Python import *module* from *root*, even if its folder has no `__init__.py`.

    Python prefers packages that have one, wherever they are on the path (PEP 420): the folder
    `tests` of an installed package would hide the project's `tests/seed.py`.
    """
    top, file = module.partition(".")[0], Path(root, *module.split("."))
    if top not in sys.modules and (file.with_suffix(".py").is_file() or file.is_dir()):
        spec = PathFinder.find_spec(top, [root])
        if spec is not None and spec.loader is None:
            sys.modules[top] = module_from_spec(spec)


def understood() -> list[str]:
    """Return a line for each row of `PARAMETERS`."""
    return [
        f"{', '.join(row.names)}: {' or '.join(row.kinds)}"
        + (f"; in an async def {' or '.join(row.async_kinds)}" if row.async_kinds else "")
        for row in PARAMETERS
    ]


def call(function: Callable[..., Any]) -> Call:
    """Return how to call *function*; a parameter with a default value keeps it.

    Raises `BuildFailure` for a parameter that is not in `PARAMETERS`.
    """
    unwrapped, target = inspect.unwrap(function), function
    if any(each.kind in _VARIADIC for each in _parameters(function)):
        target = unwrapped  # A decorator that passes its arguments on.
    # A callable object is asynchronous by its `__call__`.
    is_async = any(map(inspect.iscoroutinefunction, (function, target, type(function).__call__)))
    arguments = [
        _argument(each, getattr(unwrapped, "__globals__", {}), is_async=is_async)
        for each in _parameters(target)
        if each.kind not in _VARIADIC and each.default is each.empty
    ]
    return Call(function, tuple(arguments), is_async)


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters of *function* itself, not of the function that it wraps."""
    options: dict[str, Any] = {"follow_wrapped": False}
    if sys.version_info >= (3, 14):
        # An annotation may contain names that are imported only for type checkers.
        options["annotation_format"] = importlib.import_module("annotationlib").Format.STRING
    return list(inspect.signature(function, **options).parameters.values())


def _argument(
    parameter: inspect.Parameter, names: Mapping[str, Any], *, is_async: bool
) -> Argument:
    """Return the argument for *parameter*, by its annotation or else by its name."""
    hint = parameter.annotation
    try:
        # This removes `Annotated`, and finds the names in the module.
        namespace = SimpleNamespace(__annotations__={"it": hint})
        hint = get_type_hints(namespace, dict(names)).get("it", hint)
    except Exception:  # A name that is imported only for type checkers: compare the text.
        hint = str(hint)
    found = _by_text(hint) if isinstance(hint, str) else _by_class(hint)
    # From `Session | AsyncSession`, take the class that the function can use.
    found.sort(key=lambda each: (each[0] in _ASYNC) != is_async)
    kind, cls = found[0] if found else (_by_name(parameter.name, hint, is_async=is_async), None)
    if kind is None:
        raise BuildFailure("signature", f"its parameter ({parameter}) is not supported")
    if is_async and kind in _GREENLET:
        raise BuildFailure(
            "signature",
            f"its parameter ({parameter}) is not asynchronous, but it is an async def: make it a"
            " def",
        )
    return Argument(parameter, kind, cls)


def _by_class(hint: Any) -> list[tuple[Kind, Any]]:
    """Return the kinds, with their classes, of an annotation, which may be a union."""
    hint = getattr(hint, "__value__", hint)  # The value of Python 3.12's `type X = ...`.
    cls = get_origin(hint) or hint
    if not isinstance(cls, type) or cls.__module__ in {"types", "typing"}:
        return [each for member in get_args(hint) for each in _by_class(member)]
    # A class may be defined in a module other than the one that users import it from.
    bases = {(base.__module__.partition(".")[0], base.__name__) for base in cls.__mro__}
    return [
        (kind, cls)
        for kind in _CLASSES
        if (kind.partition(".")[0], kind.rpartition(".")[2]) in bases
    ]


def _by_text(hint: str) -> list[tuple[Kind, Any]]:
    """Return the kind of an annotation that can't be evaluated, by the names in it."""
    words = re.findall(r"[A-Za-z_][\w.]*", hint)
    return [
        (kind, None)
        for word in words
        for name in (word, word.rpartition(".")[2])
        for kind in _CLASSES
        if f".{kind}".endswith(f".{name}")
    ][:1]


def _by_name(name: str, hint: Any, *, is_async: bool) -> Kind | None:
    """Return the kind of argument for a parameter's *name*, if its annotation allows that."""
    for row in PARAMETERS:
        if name in row.names and hint in (inspect.Parameter.empty, Any, object, str):
            kind = ((is_async and row.async_kinds) or row.kinds)[0]
            return kind if hint is not str or kind in {Kind.TEXT, Kind.DSN} else None
    return None


def run(call: Call, urls: Callable[..., Any]) -> None:
    """Do *call*; then commit and close its arguments.

    *urls* takes a driver, and returns SQLAlchemy's URL of the database for it.
    """
    kinds = {each.kind for each in call.arguments}
    with _fail_if_not_awaited(), ExitStack() as stack:
        values = {
            each.parameter.name: stack.enter_context(_open(each.kind, urls, call.is_async))
            for each in call.arguments
            if each.kind not in _ASYNC | _GREENLET
        }
        if kinds.isdisjoint(_ASYNC | _GREENLET):
            # Without an event loop: the function may call asyncio.run() itself.
            wait_for(call(values))
        else:
            asyncio.run(_run_in_loop(call, values, urls))


def wait_for(result: Any) -> Any:
    """Return the result of a call; if it is awaitable, wait for it in an event loop."""

    async def wait() -> Any:
        return await result

    return asyncio.run(wait()) if inspect.isawaitable(result) else result


@contextmanager
def _fail_if_not_awaited() -> Iterator[None]:
    """Raise `BuildFailure` if the project's code never awaits a coroutine.

    Python only warns about that, and rows would be missing without an error.
    """
    seen: list[tuple[str, str]] = []

    def note(message: str, category: type[Warning], filename: str, line: int) -> None:
        if issubclass(category, RuntimeWarning) and "was never awaited" in message:
            # Python names the line that deletes the coroutine. For a variable, that is the end of
            # the call.
            own = is_project_file(filename)
            seen.append((message, f"in {Path(filename).name}, line {line}" if own else ""))

    with warnings.catch_warnings():
        warnings.filterwarnings("always", ".* was never awaited", RuntimeWarning)
        listen_to_warnings(note)
        yield
    for text, where in seen:
        raise BuildFailure("script", f"{text}: it did nothing", where)


async def _run_in_loop(call: Call, values: dict[str, Any], urls: Callable[..., Any]) -> None:
    from sqlalchemy import NullPool
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(urls("postgresql+asyncpg"), poolclass=NullPool)
    dsn = urls("postgresql").render_as_string(hide_password=False)
    takes_async = any(each.kind in _ASYNC for each in call.arguments)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(engine.dispose)
        for each in call.arguments:
            if each.kind in _ASYNC | _GREENLET:
                opened = await stack.enter_async_context(_open_in_loop(each, engine, dsn))
                values[each.parameter.name] = opened
        if call.is_async or takes_async:
            result = call(values)
        else:
            connection = await stack.enter_async_context(engine.connect())
            result = await connection.run_sync(lambda _: call(values))
        if inspect.isawaitable(result):
            await result
        elif takes_async:
            raise BuildFailure(
                "signature",
                "it is not an async def, but takes an asynchronous argument: make it an async def",
            )


@contextmanager
def _open(kind: Kind, urls: Callable[..., Any], is_async: bool) -> Iterator[Any]:  # noqa: FBT001
    """Yield an argument that needs no event loop."""
    dsn = urls("postgresql").render_as_string(hide_password=False)
    if kind is Kind.DSN:
        yield dsn
    elif kind in {Kind.TEXT, Kind.URL}:
        url = urls("postgresql+asyncpg" if is_async else "")
        yield url if kind is Kind.URL else url.render_as_string(hide_password=False)
    else:
        driver = importlib.import_module(kind.partition(".")[0])
        with closing(driver.connect(dsn)) as connection:
            yield connection
            if not connection.closed:
                connection.commit()


@asynccontextmanager
async def _open_in_loop(argument: Argument, engine: Any, dsn: str) -> AsyncIterator[Any]:
    """Yield an argument that belongs to the running loop."""
    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
    from sqlalchemy.orm import Session, sessionmaker

    kind, cls = argument.kind, argument.cls
    if kind in {Kind.ENGINE, Kind.ASYNC_ENGINE}:
        yield engine.sync_engine if kind is Kind.ENGINE else engine
    elif kind is Kind.FACTORY:
        yield sessionmaker(engine.sync_engine)
    elif kind is Kind.ASYNC_FACTORY:
        yield async_sessionmaker(engine, expire_on_commit=False)
    elif kind is Kind.ASYNCPG:
        import asyncpg

        connection = await asyncpg.connect(dsn)
        try:
            yield connection
            if connection.is_in_transaction():
                await connection.execute("COMMIT")
        finally:
            await connection.close()
    else:
        if kind is Kind.ASYNC_PSYCOPG:
            import psycopg

            manager: Any = await psycopg.AsyncConnection.connect(dsn)
        elif kind is Kind.SESSION:
            manager = AsyncSession(engine, sync_session_class=cls or Session)
        elif kind is Kind.ASYNC_SESSION:
            manager = (cls or AsyncSession)(engine, expire_on_commit=False)
        else:
            manager = engine.connect()
        async with manager as opened:
            sync_side = {Kind.SESSION: "sync_session", Kind.CONNECTION: "sync_connection"}
            yield getattr(opened, sync_side[kind]) if kind in sync_side else opened
            if not getattr(opened, "closed", False):
                await opened.commit()
