"""The fixtures: a migrated database and an empty Redis for every test, as URLs and as clients."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pytest

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

    from pytest_warmstack.environment import Environment
    from pytest_warmstack.errors import WarmstackError
    from pytest_warmstack.postgres.clones import Clone
    from pytest_warmstack.postgres.engines import Engines
    from pytest_warmstack.servers.model import ServerHandle

T = TypeVar("T")

WORKBENCH: Final = pytest.StashKey[Callable[[], "Environment"]]()
"""Where the pytest config keeps the way to the set-up of this process."""

FAILED: Final = pytest.StashKey[set[pytest.Item]]()
"""Where the pytest config keeps the tests that failed, each as its last attempt left it."""

SHOWN: Final = pytest.StashKey[dict[str, str]]()
"""Where it keeps which test showed an error first."""

ERROR: Final = "warmstack_error"
"""The attribute of a failed fixture's exception that has the error."""

IN_USE: Final = pytest.StashKey[dict[str, "Clone"]]()
"""Where the pytest config keeps the databases in use, by the id of the test, class or module."""

NEEDS: Final = {"_warmstack_postgres": "postgres", "_warmstack_redis": "redis"}
"""The fixtures behind all others, and the server that each needs.

A fixture that the user has put in the place of one of ours does not ask for them.
"""


@pytest.fixture(scope="session")
def _warmstack_postgres(pytestconfig: pytest.Config) -> Environment:
    """The set-up of this process, for a test that needs PostgreSQL."""
    return pytestconfig.stash[WORKBENCH]()


@pytest.fixture(scope="session")
def _warmstack_redis(pytestconfig: pytest.Config) -> Environment:
    """The set-up of this process, for a test that needs Redis."""
    from pytest_warmstack.suite import state

    environment = pytestconfig.stash[WORKBENCH]()
    state.watch(pytestconfig, environment.redis_in_use)
    return environment


@pytest.fixture(scope="session")
def postgres_container(_warmstack_postgres: Environment) -> ServerHandle:
    """The PostgreSQL server."""
    return _had(_warmstack_postgres.postgres).handle()


@pytest.fixture(scope="session")
def redis_container(_warmstack_redis: Environment) -> ServerHandle:
    """The Redis server; its URL leads to a database of this process's own."""
    return _had(_warmstack_redis.redis_handle)


@pytest.fixture(scope="session")
def redis_session_url(_warmstack_redis: Environment) -> str:
    """The URL of `redis_url`, for what lives as long as the run; a test that asks empties it."""
    return _had(_warmstack_redis.lease).urls[0]


@pytest.fixture(scope="session")
def _warmstack_engines() -> Engines:
    """What makes the engines of this process."""
    from pytest_warmstack.postgres.engines import Engines

    return Engines()


def _clone(request: pytest.FixtureRequest, _warmstack_postgres: Environment) -> Iterator[Clone]:
    """A migrated database for as long as the fixture's scope lasts."""
    folder = request.path.parent
    clone = _had(lambda: _warmstack_postgres.take_clone(folder))
    node, in_use = request.node, request.config.stash[IN_USE]
    in_use[node.nodeid] = clone
    yield clone
    del in_use[node.nodeid]
    all_failed = request.config.stash[FAILED]
    # Of a test without a look at all the others.
    mine = {node} & all_failed if isinstance(node, pytest.Item) else all_failed
    failed = [each.nodeid for each in mine if node in each.listchain()]
    _warmstack_postgres.give_back(clone, folder, node.nodeid, failed=sorted(failed))


_warmstack_clone_class = pytest.fixture(scope="class", name="_warmstack_clone_class")(_clone)
_warmstack_clone_module = pytest.fixture(scope="module", name="_warmstack_clone_module")(_clone)


def function_db_url(
    request: pytest.FixtureRequest, _warmstack_postgres: Environment
) -> Iterator[str]:
    """The SQLAlchemy URL of a migrated database that is this test's own.

    With another isolation than `clone` it is one that the tests of a class or module share (the
    fixture has that scope then), or all those that undo what they do.
    """
    isolation = _isolation(request, _warmstack_postgres)
    if isolation == "clone":
        for clone in _clone(request, _warmstack_postgres):
            yield clone.url
        return
    if isolation != "rollback":
        wider: Clone = request.getfixturevalue(f"_warmstack_clone_{isolation}")
        yield wider.url
        return
    from pytest_warmstack.loop_fixtures import SHARED

    folder = request.path.parent
    shared = _had(lambda: _warmstack_postgres.borrow_clone(folder))
    request.node.stash[SHARED] = shared
    in_use = request.config.stash[IN_USE]
    in_use[request.node.nodeid] = shared.clone
    yield shared.clone.url
    del in_use[request.node.nodeid]
    _warmstack_postgres.restore_clone(shared, folder, request.node.nodeid)


db_url = pytest.fixture(name="db_url")(function_db_url)


def class_db_url(_warmstack_clone_class: Clone) -> str:
    """The SQLAlchemy URL of the migrated database that the tests of this class share."""
    return _warmstack_clone_class.url


def module_db_url(_warmstack_clone_module: Clone) -> str:
    """The SQLAlchemy URL of the migrated database that the tests of this module share."""
    return _warmstack_clone_module.url


def plain_db_url(db_url: str) -> str:
    """The same URL without SQLAlchemy's driver: for asyncpg, psycopg, psql, and the like."""
    from pytest_warmstack.servers.model import plain_url

    return plain_url(db_url)


db_dsn = pytest.fixture(name="db_dsn")(plain_db_url)


@pytest.fixture
def redis_urls(request: pytest.FixtureRequest, _warmstack_redis: Environment) -> tuple[str, ...]:
    """The URLs of the Redis databases that this process has, all of them empty now."""
    return _had(lambda: _warmstack_redis.take_lease(request.node.nodeid)).urls


@pytest.fixture
def redis_url(redis_urls: tuple[str, ...]) -> str:
    """The URL of a Redis database that is empty now and that no other process uses."""
    return redis_urls[0]


def function_db_engine(
    request: pytest.FixtureRequest, db_url: str, _warmstack_engines: Engines
) -> Iterator[AsyncEngine]:
    """An engine of the test's own database, disposed of when the test is done.

    With the isolation `class` or `module` it has that scope. Its connections may be used in any
    event loop, one in each.
    """
    from pytest_warmstack.loop_fixtures import ROLLBACK, SHARED
    from pytest_warmstack.postgres.engines import is_clone

    if _is_of_anyio(request) and inspect.iscoroutinefunction(getattr(request, "function", None)):
        _see_backend(request)
    if not is_clone(db_url):
        yield _in_the_loop_of_the_test(request, "other_engine")
    elif SHARED in request.node.stash:
        rollback = _in_the_loop_of_the_test(request, "rollback_connection")
        request.node.stash[ROLLBACK] = rollback
        _had(lambda: _in_the_loop_of_the_test(request, "rollback"))
        engine = _warmstack_engines.make(db_url, rollback)
        yield engine
        _warmstack_engines.end(engine, close=False)
    else:
        yield from clone_engine(db_url, _warmstack_engines)


def clone_engine(db_url: str, _warmstack_engines: Engines) -> Iterator[AsyncEngine]:
    """An engine of the database that the tests of this class or module share."""
    engine = _warmstack_engines.make(db_url)
    yield engine
    _warmstack_engines.end(engine)


db_engine = pytest.fixture(name="db_engine")(function_db_engine)


@pytest.fixture
def db_session(request: pytest.FixtureRequest, db_engine: AsyncEngine) -> AsyncSession:
    """A session on the test's own database; what it commits, no other test sees."""
    session: AsyncSession = _in_the_loop_of_the_test(request, "session")
    return session


@pytest.fixture
def redis_client(request: pytest.FixtureRequest, redis_url: str) -> Redis:
    """A client of an empty Redis database, closed when the test is done."""
    client: Redis = _in_the_loop_of_the_test(request, "redis")
    return client


def _is_of_anyio(request: pytest.FixtureRequest) -> bool:
    """Tell whether anyio's plugin runs the test, and not pytest-asyncio.

    There is no asyncio marker, and the fixture that tells that plugin to run coroutines.
    """
    marker = request.node.get_closest_marker("asyncio")
    return marker is None and "anyio_backend" in request.fixturenames


def _see_backend(request: pytest.FixtureRequest) -> None:
    """Fail a test that AnyIO's plugin runs on another backend than asyncio."""
    backend = request.getfixturevalue("anyio_backend")
    name = backend if isinstance(backend, str) else backend[0]
    if name != "asyncio":
        from pytest_warmstack.postgres.errors import LoopFailed

        raise _failure(LoopFailed.backend(name=name))


def _isolation(request: pytest.FixtureRequest, environment: Environment) -> str:
    """Return what keeps the test apart from others: its marker's word, else the setting."""
    marker = request.node.get_closest_marker("warmstack_isolation")
    if marker is None:
        return environment.settings.isolation
    from pytest_warmstack.settings import ISOLATION, Isolation
    from pytest_warmstack.settings_errors import SettingsError

    try:
        (word,) = marker.args
        return Isolation(word)
    except ValueError:
        given = ", ".join(map(str, marker.args))
        name = "the marker warmstack_isolation"
        error = SettingsError.bad_value(name=name, value=given, source="", wanted=ISOLATION.wanted)
        text = str(error)
    pytest.fail(text, pytrace=False)


def _had(get: Callable[[], T]) -> T:
    """Return what *get* gives; an error of ours fails the test with its text alone."""
    from pytest_warmstack.errors import WarmstackError

    try:
        return get()
    except WarmstackError as error:
        found = error
    # Outside the handler: what led to the error is in its text, and no chain of tracebacks helps.
    raise _failure(found)


def _failure(error: WarmstackError) -> BaseException:
    """Return what fails a test with the text of *error*, and with no traceback."""
    failure = pytest.fail.Exception(str(error), pytrace=False)
    setattr(failure, ERROR, error)
    return failure


def shorten(item: pytest.Item, failed: BaseException) -> None:
    """Leave one line of an error that another test has shown: five hundred may meet the same."""
    error = getattr(failed, ERROR, None)
    if error is not None:
        shown = item.config.stash[SHOWN]
        # Not for the test that showed it first: when it is run again, that is all one sees of it.
        is_first = shown.setdefault(str(error), item.nodeid) == item.nodeid
        failed.msg = str(error) if is_first else error.brief()  # type: ignore[attr-defined]


def _in_the_loop_of_the_test(request: pytest.FixtureRequest, name: str) -> Any:
    """Return what the fixture *name* of `loop_fixtures` gives in the test's own event loop."""
    loop = _loop(request)
    manager = request.config.pluginmanager
    if not manager.hasplugin(f"warmstack-{loop}"):
        # Declared only now: most runs use one loop, and many none.
        from pytest_warmstack import loop_fixtures

        manager.register(loop_fixtures.declare(loop), f"warmstack-{loop}")
    return request.getfixturevalue(f"_warmstack_{name}_{loop}")


def _loop(request: pytest.FixtureRequest) -> str:
    """Return which loop the test runs in: a scope of pytest-asyncio's, or `anyio`."""
    marker = request.node.get_closest_marker("asyncio")
    if _is_of_anyio(request):
        _see_backend(request)
        return "anyio"
    if marker is not None and (
        scope := marker.kwargs.get("loop_scope") or marker.kwargs.get("scope")
    ):
        return str(scope)
    if not request.config.pluginmanager.hasplugin("asyncio"):
        pytest.fail(
            f"{request.fixturename} needs an event loop, and neither pytest-asyncio nor anyio's"
            " plugin gives this test one. Use db_url or redis_url, or switch one of them on.",
            pytrace=False,
        )
    return str(request.config.getini("asyncio_default_test_loop_scope") or "function")
