"""What seed functions take, told from their signatures as people write them."""

from __future__ import annotations

import asyncio
import functools
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import make_url

from pytest_warmstack.postgres.template.child import arguments, database_url
from pytest_warmstack.postgres.template.child.arguments import Kind
from pytest_warmstack.postgres.template.child.failures import BuildFailure

HEAD = """
import asyncio, functools, sqlalchemy as sa
from typing import TYPE_CHECKING, Annotated, Any, Optional, Union
from sqlalchemy import URL, Connection, Engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker
import asyncpg, psycopg, psycopg2.extensions

class Own(Session):
    pass

class OwnAsync(AsyncSession):
    pass

SessionDep = Annotated[Session, "Depends"]
AsyncDep = Annotated[OwnAsync, "Depends"]

def passes_on(function):
    @functools.wraps(function)
    async def wrapper(*args, **kwargs):
        return await function(*args, **kwargs)
    return wrapper

def gives(function):
    @functools.wraps(function)
    async def wrapper():
        return await function(None)
    return wrapper
"""


def made(text: str, *, future: bool = False, head: str = HEAD) -> Callable[..., Any]:
    """Return the function `seed` of a module with *text*; *future* has all annotations be texts."""
    names: dict[str, Any] = {}
    whole = ("from __future__ import annotations\n" * future) + head + textwrap.dedent(text)
    exec(compile(whole, "seeds.py", "exec", dont_inherit=True), names)  # noqa: S102
    return names["seed"]  # type: ignore[no-any-return]


def kinds(function: Callable[..., Any]) -> list[str]:
    """Return what *function* gets."""
    return [each.kind for each in arguments.call(function).arguments]


@pytest.mark.parametrize("future", [False, True])
@pytest.mark.parametrize(
    ("signature", "kind"),
    [
        ("def seed(x: Session)", Kind.SESSION),
        ("def seed(x: Own)", Kind.SESSION),
        ("def seed(x: SessionDep)", Kind.SESSION),
        ("def seed(x: Optional[Session])", Kind.SESSION),
        ("def seed(x: 'Session | None')", Kind.SESSION),
        ("def seed(*, x: Annotated[Optional['Session'], 'Depends'])", Kind.SESSION),
        ("def seed(x: Session, /)", Kind.SESSION),
        ("async def seed(x: AsyncSession)", Kind.ASYNC_SESSION),
        ("async def seed(x: AsyncDep)", Kind.ASYNC_SESSION),
        ("async def seed(x: Session | AsyncSession)", Kind.ASYNC_SESSION),
        ("def seed(x: AsyncSession | Session)", Kind.SESSION),
        ("def seed(x: sessionmaker[Session])", Kind.FACTORY),
        ("async def seed(x: async_sessionmaker[AsyncSession])", Kind.ASYNC_FACTORY),
        ("def seed(x: Connection | Engine)", Kind.CONNECTION),
        ("def seed(x: sa.Connection)", Kind.CONNECTION),
        ("async def seed(x: AsyncConnection)", Kind.ASYNC_CONNECTION),
        ("async def seed(x: asyncpg.Connection)", Kind.ASYNCPG),
        ("def seed(x: 'psycopg.Connection[Any]')", Kind.PSYCOPG),
        ("async def seed(x: psycopg.AsyncConnection)", Kind.ASYNC_PSYCOPG),
        ("def seed(x: psycopg2.extensions.connection)", Kind.PSYCOPG2),
        ("def seed(x: Engine)", Kind.ENGINE),
        ("async def seed(x: AsyncEngine)", Kind.ASYNC_ENGINE),
        ("def seed(x: AsyncEngine)", Kind.ASYNC_ENGINE),
        ("async def seed(x: URL)", Kind.URL),
        ("async def seed(x: str | URL)", Kind.URL),
        ("def seed(url: str)", Kind.TEXT),
        ("async def seed(db_url)", Kind.TEXT),
        ("def seed(dsn: str)", Kind.DSN),
        ("def seed(db)", Kind.SESSION),
        ("async def seed(session)", Kind.ASYNC_SESSION),
        ("def seed(conn: Any)", Kind.CONNECTION),
        ("async def seed(connection: object)", Kind.ASYNC_CONNECTION),
        ("def seed(engine)", Kind.ENGINE),
        ("async def seed(session_factory)", Kind.ASYNC_FACTORY),
        ("@passes_on\nasync def seed(x: AsyncSession)", Kind.ASYNC_SESSION),
    ],
)
def test_a_parameter_is_understood(signature: str, kind: str, *, future: bool) -> None:
    """By its annotation in each of the ways in which it is written, else by its name."""
    assert kinds(made(f"{signature}:\n    pass", future=future)) == [kind]


@pytest.mark.parametrize(
    ("annotation", "kind"),
    [
        ("AsyncSession", Kind.ASYNC_SESSION),
        ("AsyncSession | None", Kind.ASYNC_SESSION),
        ("Annotated[AsyncSession, Depends(get)]", Kind.ASYNC_SESSION),
        ("orm.Session", Kind.SESSION),
        ("sa.Connection", Kind.CONNECTION),
        ("asyncpg.Connection", Kind.ASYNCPG),
        ("psycopg.Connection", Kind.PSYCOPG),
        ("Engine", Kind.ENGINE),
    ],
)
def test_what_is_imported_for_type_checkers_only_is_understood_too(
    annotation: str, kind: str
) -> None:
    """The names in the text of the annotation have to do."""
    word = "async def" if "sync" in annotation else "def"
    assert kinds(made(f"{word} seed(x: '{annotation}'): pass", head="")) == [kind]


@pytest.mark.parametrize(
    "signature",
    [
        "seed()",
        "seed(x=1)",
        "seed(session: Session = None)",
        "seed(*args, **kwargs)",
        "seed(*, count: int = 3)",
    ],
)
def test_what_has_a_default_keeps_it(signature: str) -> None:
    """And what takes nothing gets nothing."""
    assert kinds(made(f"def {signature}: pass")) == []


def test_a_decorator_that_gives_the_parameter_itself_gets_nothing() -> None:
    """Its own signature counts unless it passes on whatever it gets."""
    assert kinds(made("@gives\nasync def seed(session: AsyncSession): pass")) == []


def test_a_partial_function_needs_only_the_rest() -> None:
    """What was given stays."""
    function = made("async def seed(session, count): pass")

    call = arguments.call(functools.partial(function, count=3))

    assert [each.kind for each in call.arguments] == [Kind.ASYNC_SESSION]
    assert call.is_async


@pytest.mark.parametrize(
    ("signature", "words"),
    [
        ("def seed(client)", r"\(client\) is not supported"),
        ("def seed(locale: str)", r"\(locale: str\) is not supported"),
        ("def seed(session: str)", r"\(session: str\) is not supported"),
        ("def seed(session: dict)", r"\(session: dict\) is not supported"),
        ("def seed(db: 'Database')", r"\(db: 'Database'\) is not supported"),
        ("async def seed(x: Session)", "is not asynchronous, .* make it a def"),
        ("async def seed(x: Engine)", "is not asynchronous, .* make it a def"),
    ],
)
def test_what_is_not_understood_is_named(signature: str, words: str) -> None:
    """Before anything is built: the list of what is understood follows in the error."""
    with pytest.raises(BuildFailure, match=words) as caught:
        arguments.call(made(f"{signature}: pass"))

    assert caught.value.kind == "signature"


def test_the_list_names_each_kind_once() -> None:
    """The error's lines and the README's rows are made from one list."""
    lines = arguments.understood()

    assert len(lines) == len(arguments.PARAMETERS)
    for row, line in zip(arguments.PARAMETERS, lines, strict=True):
        assert all(each in line for each in (*row.names, *row.kinds, *row.async_kinds))


def test_a_function_that_needs_no_loop_runs_in_none() -> None:
    """It may run one itself, as a project's own entry point does; a URL is as its driver wants."""
    seen: list[str] = []
    url = make_url("postgresql+asyncpg://a:b@127.0.0.1:1/c?ssl=require")

    async def awaited(dsn, url):  # type: ignore[no-untyped-def]
        seen.extend([dsn, url])

    def seed(dsn, url):  # type: ignore[no-untyped-def]
        asyncio.run(awaited(dsn, url))

    for function in (seed, awaited):
        arguments.run(arguments.call(function), lambda driver: database_url.for_code(url, driver))

    plain = "postgresql://a:b@127.0.0.1:1/c?sslmode=require"
    assert seen == [
        plain,
        "postgresql+psycopg://a:b@127.0.0.1:1/c?sslmode=require",
        plain,
        "postgresql+asyncpg://a:b@127.0.0.1:1/c?ssl=require",
    ]


@pytest.mark.parametrize("wrapper", ["**named", "*given, dsn, **named"])
def test_a_decorator_gets_the_parameters_by_their_names(wrapper: str) -> None:
    """But for those that can only be given by their position."""
    head = f"""
import functools
def passes_on(function):
    @functools.wraps(function)
    def wrapper({wrapper}):
        seen.append(dsn if "dsn" in locals() else named["dsn"])
    return wrapper
seen = []
"""
    seed = made("@passes_on\ndef seed(dsn): pass\nseed.seen = seen", head=head)

    arguments.run(arguments.call(seed), lambda _: make_url("postgresql://h/d"))

    assert vars(seed)["seen"] == ["postgresql://h/d"]


@pytest.mark.parametrize(
    "text",
    [
        "async def seed(): work()",
        "def seed(): work()",
        "async def seed():\n    begun = work()\n    await asyncio.sleep(0)",
    ],
)
def test_what_a_seed_never_awaits_is_an_error(text: str) -> None:
    """Its rows would be missing, and Python only warns."""
    seed = made(f"async def work(): pass\n{text}")

    with pytest.warns(RuntimeWarning), pytest.raises(BuildFailure) as caught:
        arguments.run(arguments.call(seed), lambda _: make_url("postgresql://"))

    assert "coroutine 'work' was never awaited" in str(caught.value)
    assert "arguments.py" not in caught.value.where
