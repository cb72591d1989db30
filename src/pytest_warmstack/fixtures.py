"""The fixtures: a migrated database and an empty Redis for every test, as URLs and as clients.

pytest-asyncio fixes the event loop of a fixture when you declare it. But the loop of a test depends
on the test's marker, and a connection works only in its own loop. So this module declares one
asynchronous fixture for each kind of loop that tests run in, and nothing asynchronous outlives its
loop. All others are functions: a coroutine as a fixture costs a test four times as much.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pytest

from pytest_warmstack.session import NEEDS, REQUESTS, Session, session_of

if TYPE_CHECKING:
    from redis import Redis as SyncRedis
    from redis.asyncio import Redis
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
    from sqlalchemy.orm import Session as SyncSession

    from pytest_warmstack.background import Begun, LoopOfTests
    from pytest_warmstack.environment import Environment, TemplateKey
    from pytest_warmstack.errors import WarmstackError
    from pytest_warmstack.exports import Exports
    from pytest_warmstack.factory import DatabaseFactory
    from pytest_warmstack.options import Settings
    from pytest_warmstack.postgres import DatabaseAddress
    from pytest_warmstack.postgres.clones import Clone, Shared
    from pytest_warmstack.postgres.engines import Engines, RollbackConnection
    from pytest_warmstack.postgres.kept import KeptConnection
    from pytest_warmstack.postgres.sync_engines import SyncEngines, SyncRollbackConnection
    from pytest_warmstack.queries import Queries
    from pytest_warmstack.redis.kept import KeptSocket
    from pytest_warmstack.servers.model import ServerHandle

T = TypeVar("T")

_SHARED: Final[pytest.StashKey[Shared]] = pytest.StashKey()
"""The key of the clone that a test with the isolation `rollback` shares."""

_ROLLBACK: Final[pytest.StashKey[RollbackConnection]] = pytest.StashKey()
"""The key of such a test's connection, in its own loop, which rolls its changes back."""

_SYNC_ROLLBACK: Final[pytest.StashKey[SyncRollbackConnection]] = pytest.StashKey()
"""The key of the connection that rolls a test back which uses `db_sync_engine`."""

_KEPT: Final[pytest.StashKey[KeptConnection]] = pytest.StashKey()
"""The key of the connection of a test's `db_engine`, which may stay open for the next test."""

_BEGUN: Final[pytest.StashKey[Begun]] = pytest.StashKey()
"""The key of the coroutines that a test's session and client made."""

_LOOP: Final[pytest.StashKey[str]] = pytest.StashKey()
"""The key of the loop that a test runs in, as `_loop` returns it."""

_LOOPS: Final[pytest.StashKey[dict[str, LoopOfTests]]] = pytest.StashKey()
"""The key of the event loops of tests that there are now, by the scope of each."""


_FIRST: Final = {
    "postgres": ("_warmstack_postgres", "db_url"),
    "redis": ("_warmstack_redis", "redis_url"),
}
"""What a covered test requests before all else, for each service that `warmstack_env` names."""


def cover(item: pytest.Item, exports: Exports) -> None:
    """Make a covered test request its databases before its own fixtures.

    A test is covered if a line of `warmstack_env` names a server, and the test requests a fixture
    of this module, or has the marker `warmstack`, or `warmstack_autouse` names it.
    """
    names: list[str] | None = getattr(item, "fixturenames", None)
    if names is not None and (is_covered(item) or exports.names(item)):
        first = [name for service in sorted(exports.services) for name in _FIRST[service]]
        # A new list: pytest shares one between the items of a parametrized function.
        item.fixturenames = [*first, *(name for name in names if name not in first)]  # type: ignore[attr-defined]


def is_covered(item: pytest.Item) -> bool:
    """Return whether *item* requests a fixture of this module, itself or through another one."""
    return not NEEDS.keys().isdisjoint(getattr(item, "fixturenames", ()))


def needs(items: Iterable[pytest.Item]) -> tuple[set[str], Counter[TemplateKey]]:
    """Return the servers that *items* need, and how many tests need clones of each template."""
    services: set[str] = set()
    templates: Counter[TemplateKey] = Counter()
    for item in items:
        names = getattr(item, "fixturenames", ())
        if "_warmstack_postgres" in names:
            if (key := _key_or_none(item)) is None:
                continue  # Its marker is wrong, so it fails before it needs anything.
            templates[key] += "db_url" in names
        services.update(service for name, service in NEEDS.items() if name in names)
    return services, templates


def template_key(node: pytest.Item | pytest.Collector) -> TemplateKey:
    """Return which template the database of a test, class or module is a copy of.

    Raises `SeedError` if its marker `warmstack_seed` can't be used.
    """
    from pytest_warmstack.environment import TemplateKey

    return TemplateKey(node.path.parent, seeds_of(node))


def seeds_of(node: pytest.Item | pytest.Collector) -> tuple[str, ...]:
    """Return the scripts that the markers `warmstack_seed` of *node* add. Raises `SeedError`."""
    if node.get_closest_marker("warmstack_seed") is None:
        return ()
    from pytest_warmstack import seeds

    return seeds.of(node)


def _key_or_none(item: pytest.Item) -> TemplateKey | None:
    from pytest_warmstack.errors import WarmstackError

    try:
        return template_key(item)
    except WarmstackError:
        return None


def check_seeds(item: pytest.Item) -> None:
    """Fail a test whose marker `warmstack_seed` can't be used, whatever fixtures it has."""
    result_or_fail(lambda: seeds_of(item))


# Servers.


@pytest.fixture(scope="session")
def _warmstack_postgres(pytestconfig: pytest.Config) -> Environment:
    """The environment, for a test that needs PostgreSQL."""
    return session_of(pytestconfig).open()


@pytest.fixture(scope="session")
def _warmstack_redis(pytestconfig: pytest.Config) -> Environment:
    """The environment, for a test that needs Redis."""
    return session_of(pytestconfig).open_redis()


@pytest.fixture(scope="session")
def postgres_container(_warmstack_postgres: Environment) -> ServerHandle:
    """The PostgreSQL server."""
    return result_or_fail(_warmstack_postgres.postgres.get).handle()


@pytest.fixture(scope="session")
def redis_container(_warmstack_redis: Environment) -> ServerHandle:
    """The Redis server; its URL leads to a database that only this process uses."""
    leases = result_or_fail(_warmstack_redis.leases.get)
    return leases.server.handle(result_or_fail(leases.take).index)


# Redis.


@pytest.fixture(scope="session")
def redis_process_url(_warmstack_redis: Environment) -> str:
    """The URL of `redis_url`, for fixtures that last for the run; tests with Redis empty it."""
    return result_or_fail(lambda: _warmstack_redis.leases.get().take()).urls[0]


@pytest.fixture
def redis_urls(_warmstack_redis: Environment) -> tuple[str, ...]:
    """The URLs of all Redis databases of this process; they are empty now."""
    test = REQUESTS[-1].node.nodeid
    return result_or_fail(lambda: _warmstack_redis.take_lease(test)).urls


@pytest.fixture
def redis_url(redis_urls: tuple[str, ...]) -> str:
    """The URL of a Redis database that is empty now and that no other process uses."""
    return redis_urls[0]


@pytest.fixture
def redis_client(redis_url: str, _warmstack_redis_socket: KeptSocket) -> Iterator[Redis]:
    """A client of an empty Redis database, closed when the test is done."""
    from pytest_warmstack.redis.connections import open_client

    request = REQUESTS[-1]
    node, loop = request.node, _loop_of_test(request)
    socket = _warmstack_redis_socket
    client, close = open_client(redis_url, _begun(node), socket, lasts=loop.lasts)
    loop.closers["redis"] = socket.leave_loop
    yield client
    loop.at_end(close)
    loop.end_test()


@pytest.fixture(scope="session")
def _warmstack_redis_socket() -> Iterator[KeptSocket]:
    from pytest_warmstack.redis.kept import KeptSocket

    kept = KeptSocket()
    yield kept
    kept.close()


@pytest.fixture
def redis_sync_client(redis_url: str) -> Iterator[SyncRedis]:
    """A synchronous client of an empty Redis database, closed when the test is done."""
    from pytest_warmstack.redis.connections import sync_client

    with sync_client(redis_url) as client:
        yield client


# Databases. `scopes` declares these fixtures once more for tests that share one.


def _clone(request: pytest.FixtureRequest, _warmstack_postgres: Environment) -> Iterator[Clone]:
    """A migrated database for as long as the fixture's scope lasts."""
    yield from _own_clone(request, _warmstack_postgres)


def _own_clone(
    request: pytest.FixtureRequest, environment: Environment, *, fresh: bool = False
) -> Iterator[Clone]:
    """Yield a migrated database; a *fresh* one was never used before."""
    node = request.node
    key = result_or_fail(lambda: key_of(request))
    clone = result_or_fail(lambda: environment.take_clone(key, fresh=fresh))
    own = session_of(request.config)
    own.in_use[node.nodeid] = clone
    yield clone
    own.in_use.pop(node.nodeid, None)
    failed = _failed(own, request, key, "db_url")
    environment.give_back(clone, key, _label(node), failed=failed, again=not fresh)


def _keeps_connection(request: pytest.FixtureRequest, environment: Environment) -> bool:
    """Return whether the test's database can be put back on the connection of its `db_engine`.

    That saves the server a connection. If the test shares its event loop with the next one, that
    one gets the connection, too.
    """
    return (
        environment.keeps_connections
        and "db_engine" in request.fixturenames
        and inspect.iscoroutinefunction(getattr(request, "function", None))
        and not _is_run_by_anyio(request)
    )


def _kept_clone(request: pytest.FixtureRequest, environment: Environment) -> Iterator[Clone]:
    """A migrated database for a test: that of the test before it, if it was put back."""
    node, own = request.node, session_of(request.config)
    key = result_or_fail(lambda: template_key(node))
    loop = _loop_of_test(request)
    if loop.kept is None:
        loop.kept = _new_kept_connection()
        loop.closers["kept"] = partial(_leave, loop.kept, environment)
    kept: KeptConnection = loop.kept
    if kept.ready is not None and kept.key == key:
        clone = kept.ready
        result_or_fail(lambda: environment.take_again(key))
    else:
        _leave(kept, environment)
        clone = result_or_fail(lambda: environment.take_clone(key))
    kept.ready, kept.used, kept.key = None, clone, key
    node.stash[_KEPT] = kept
    loop.has_later_end = True
    own.in_use[node.nodeid] = clone
    yield clone
    own.in_use.pop(node.nodeid, None)
    del node.stash[_KEPT]
    loop.has_later_end = False

    async def put_back() -> None:
        if await kept.clean() and await environment.put_back(clone, key, kept.driver):
            kept.ready, kept.used = clone, None
        else:
            give_back([])

    def give_back(failed: Sequence[str]) -> None:
        kept.lose()
        environment.give_back(clone, key, _label(node), failed=failed, again=True)

    if (failed := _failed(own, request, key, "db_url")) or kept.driver is None:
        give_back(failed)
    else:
        loop.at_end(put_back)
    loop.end_test()


def _new_kept_connection() -> KeptConnection:
    from pytest_warmstack.postgres.kept import KeptConnection

    return KeptConnection()


def _leave(kept: KeptConnection, environment: Environment) -> None:
    """End a connection that no further test gets, and give its database to other tests."""
    ready, used = kept.ready, kept.used
    kept.lose()
    if ready is not None:
        environment.hand_back(ready, kept.key)
    if used is not None:  # Something has interrupted the end of its test.
        environment.give_back(used, kept.key, "", failed=[], again=True)


def key_of(request: pytest.FixtureRequest) -> TemplateKey:
    """Return which template a fixture gets a copy of, whatever its scope is. Raises `SeedError`."""
    if request.scope != "session":
        return template_key(request.node)
    from pytest_warmstack.environment import TemplateKey

    item: pytest.Item = request._pyfuncitem  # noqa: SLF001 - with the scope session, no `path`
    return TemplateKey(item.path.parent)


def _label(node: pytest.Item | pytest.Collector) -> str:
    """Return what the user reads about the tests that share a database."""
    return node.nodeid or "the tests of this process"


def _failed(
    own: Session, request: pytest.FixtureRequest, key: TemplateKey, fixture: str
) -> list[str]:
    """Return the tests that failed with the *fixture* of this scope and the template of *key*."""
    node, environment = request.node, own.environment
    if isinstance(node, pytest.Item):
        # Look for the failures of this test only, not of all tests.
        return [node.nodeid] if node in own.failed else []
    assert environment is not None  # noqa: S101 - the database comes from it
    return sorted(
        each.nodeid
        for each in own.failed
        if node in each.listchain()
        and fixture in getattr(each, "fixturenames", ())
        and _word(each, own.settings) == request.scope
        and (other := _key_or_none(each)) is not None
        and environment.shares_template(other, key)
    )


def _word(item: pytest.Item, settings: Settings) -> str:
    """Return the isolation of a test: that of its marker, or else the setting."""
    marker = item.get_closest_marker("warmstack_isolation")
    return settings.isolation if marker is None else ", ".join(map(str, marker.args))


_warmstack_clone_class = pytest.fixture(scope="class", name="_warmstack_clone_class")(_clone)
_warmstack_clone_module = pytest.fixture(scope="module", name="_warmstack_clone_module")(_clone)


def function_db_url(_warmstack_postgres: Environment) -> Iterator[str]:
    """The SQLAlchemy URL of a migrated database that only this test uses.

    With the isolation `class`, `module` or `session`, the tests of a class, a module or this
    process share it, and the fixture has that scope. With `rollback`, all tests share it, and each
    one is rolled back. With `clone`, it may be one that another test had, put back as it was at
    first; with `fresh-clone`, it never is.
    """
    request = REQUESTS[-1]
    isolation = _isolation(request, _warmstack_postgres)
    if isolation in {"clone", "fresh-clone"}:
        fresh = isolation == "fresh-clone"
        keeps = not fresh and _keeps_connection(request, _warmstack_postgres)
        clones = (
            _kept_clone(request, _warmstack_postgres)
            if keeps
            else _own_clone(request, _warmstack_postgres, fresh=fresh)
        )
        for clone in clones:
            yield clone.url
    elif isolation == "rollback":
        yield from _shared_url(request, _warmstack_postgres)
    elif isolation == "session":
        yield session_db_url(request, _warmstack_postgres)
    else:
        wider: Clone = request.getfixturevalue(f"_warmstack_clone_{isolation}")
        yield wider.url


def _shared_url(request: pytest.FixtureRequest, environment: Environment) -> Iterator[str]:
    node = request.node
    key = result_or_fail(lambda: template_key(node))
    shared = result_or_fail(lambda: environment.borrow_clone(key))
    node.stash[_SHARED] = shared
    in_use = session_of(request.config).in_use
    in_use[node.nodeid] = shared.clone
    yield shared.clone.url
    del in_use[node.nodeid]
    environment.restore_clone(shared, key, node.nodeid)


db_url = pytest.fixture(name="db_url")(function_db_url)


def shared_clone(item: pytest.Item) -> Shared | None:
    """Return the clone that *item* shares with the isolation `rollback`, if it does."""
    return item.stash.get(_SHARED, None)


def users_of_clone(item: pytest.Item, user: str) -> str:
    """Return which tests share the database of *item*, that of the class or module *user*."""
    isolation = _word(item, session_of(item.config).settings)
    return "all tests of this process" if isolation == "session" else f"the tests of {user}"


def class_db_url(_warmstack_clone_class: Clone) -> str:
    """The SQLAlchemy URL of the migrated database that the tests of this class share."""
    return _warmstack_clone_class.url


def module_db_url(_warmstack_clone_module: Clone) -> str:
    """The SQLAlchemy URL of the migrated database that the tests of this module share."""
    return _warmstack_clone_module.url


def session_db_url(request: pytest.FixtureRequest, _warmstack_postgres: Environment) -> str:
    """The SQLAlchemy URL of the migrated database that all tests of this process share.

    If the project has several Alembic configurations, there is one database for each.
    """
    clone: Clone = once(request, _warmstack_postgres, "clone", _clone)
    # For a debugger: the ids of the tests that get this value begin with that of their parent.
    *_, parent, _item = request._pyfuncitem.listchain()  # noqa: SLF001 - as in `key_of`
    session_of(request.config).in_use[parent.nodeid] = clone
    result_or_fail(lambda: _warmstack_postgres.return_address(clone, key_of(request)))
    return clone.url


def return_address(item: pytest.Item) -> None:
    """Lead the exported address to the database of *item*, which it shares with earlier tests.

    Since then, a test with a database of its own may have run, or with another Alembic
    configuration's. That database leaves the address in the background.
    """
    own = session_of(item.config)
    # The closest node is last.
    found = [own.in_use[each.nodeid] for each in item.listchain() if each.nodeid in own.in_use]
    clone = found[-1] if found else None
    if clone is not None and own.environment is not None:
        environment = own.environment
        result_or_fail(lambda: environment.return_address(clone, template_key(item)))


def once(
    request: pytest.FixtureRequest,
    environment: Environment,
    name: str,
    function: Callable[..., object],
) -> Any:
    """Return the value of a session-scoped fixture, one for each Alembic configuration.

    *function* makes it; *name* tells it from other such fixtures. `scopes` declares a fixture of
    the scope `session` once for each module, so this is for what all of them share.
    """
    first = result_or_fail(lambda: environment.first_key(key_of(request)))
    full, manager = f"_warmstack_{name}_of_{first.folder}", request.config.pluginmanager
    if not manager.hasplugin(full):
        plugin = ModuleType(full)
        vars(plugin)[name] = pytest.fixture(scope="session", name=full)(function)
        manager.register(plugin, full)
    return request.getfixturevalue(full)


def plain_db_url(db_url: str) -> str:
    """The URL without SQLAlchemy's driver, for asyncpg, psycopg, psql and similar clients."""
    from pytest_warmstack.servers.model import plain_url

    return plain_url(db_url)


db_dsn = pytest.fixture(name="db_dsn")(plain_db_url)


def address_of_db_url(db_url: str) -> DatabaseAddress:
    """The parts of `db_url`: `host`, `port`, `user`, `password` and `name`."""
    from pytest_warmstack.postgres import DatabaseAddress

    return DatabaseAddress.parse(db_url)


db_address = pytest.fixture(name="db_address")(address_of_db_url)


def database_factory(
    request: pytest.FixtureRequest, _warmstack_postgres: Environment
) -> Iterator[DatabaseFactory]:
    """A function that makes further databases for a test: clones, empty ones, other migrations.

    With the isolation `class`, `module` or `session` it has that scope, and so have the databases.
    """
    yield from further_databases(request, _warmstack_postgres)


def further_databases(
    request: pytest.FixtureRequest, environment: Environment, *, at_address: bool = False
) -> Iterator[DatabaseFactory]:
    """Yield what makes further databases, *at_address* if the application has read one."""
    from pytest_warmstack.factory import DatabaseFactory

    key = result_or_fail(lambda: key_of(request))
    engines = partial(request.getfixturevalue, "_warmstack_engines")
    factory = DatabaseFactory(environment, key, engines, at_address=at_address)
    yield factory
    failed = _failed(session_of(request.config), request, key, "db_factory")
    factory.close(_label(request.node), failed=", ".join(failed))


db_factory = pytest.fixture(name="db_factory")(database_factory)


@pytest.fixture(scope="session")
def _warmstack_engines() -> Engines:
    from pytest_warmstack.postgres.engines import Engines

    return Engines()


def function_db_engine(db_url: str, _warmstack_engines: Engines) -> Iterator[AsyncEngine]:
    """An engine of the test's database, disposed of after the test.

    With the isolation `class`, `module` or `session` it has that scope. You can use it in any event
    loop: each connection stays in the loop that opened it.
    """
    from pytest_warmstack.postgres.engines import is_clone

    request = REQUESTS[-1]
    node = request.node
    kept = node.stash.get(_KEPT, None)
    if kept is not None and ((kept.used and kept.used.url == db_url) or is_clone(db_url)):
        engine = _warmstack_engines.make(db_url, kept=kept)
        yield engine
        _warmstack_engines.leave(engine, db_url, kept)
        return
    if _is_run_by_anyio(request) and inspect.iscoroutinefunction(
        getattr(request, "function", None)
    ):
        _check_backend(request)
    if not is_clone(db_url):
        yield from _other_engine(db_url, _loop_of_test(request))
    elif (shared := node.stash.get(_SHARED, None)) is not None:
        _check_one_rollback(request, _SYNC_ROLLBACK)
        yield from _rolled_back_engine(request, db_url, _warmstack_engines, shared)
    else:
        yield from clone_engine(db_url, _warmstack_engines)


def _other_engine(db_url: str, loop: LoopOfTests) -> Iterator[AsyncEngine]:
    """An engine of a database that the user's own `db_url` leads to."""
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(db_url)
    yield engine
    loop.run(engine.dispose())


def _rolled_back_engine(
    request: pytest.FixtureRequest, db_url: str, engines: Engines, shared: Shared
) -> Iterator[AsyncEngine]:
    """An engine whose only connection rolls back what the test did."""
    from pytest_warmstack.postgres.engines import RollbackConnection

    loop = _loop_of_test(request)
    if loop.rollback is None:
        loop.rollback = RollbackConnection()
        loop.closers["rollback"] = loop.rollback.close
    rollback: RollbackConnection = loop.rollback
    request.node.stash[_ROLLBACK] = rollback
    result_or_fail(lambda: loop.run(rollback.begin(shared)))
    engine = engines.make(db_url, rollback)
    loop.has_later_end = True
    yield engine
    loop.has_later_end = False
    engines.end(engine, close=False)

    async def end() -> None:
        shared.trouble = await rollback.end()

    loop.at_end(end)
    loop.run(loop.end())  # Even if the loop ends soon: what follows needs the answer.


def clone_engine(db_url: str, _warmstack_engines: Engines) -> Iterator[AsyncEngine]:
    """An engine of a database that is not rolled back, such as one that tests share."""
    engine = _warmstack_engines.make(db_url)
    yield engine
    _warmstack_engines.end(engine)


def session_engine(
    request: pytest.FixtureRequest, db_url: str, _warmstack_postgres: Environment
) -> AsyncEngine:
    """An engine of the database that all tests of this process share."""
    engine: AsyncEngine = once(request, _warmstack_postgres, "engine", clone_engine)
    return engine


db_engine = pytest.fixture(name="db_engine")(function_db_engine)


@pytest.fixture
def db_session(db_engine: AsyncEngine, _warmstack_engines: Engines) -> Iterator[AsyncSession]:
    """A session on the test's database; no other test sees what it commits."""
    from sqlalchemy.ext.asyncio import AsyncSession

    from pytest_warmstack.background import watch

    request = REQUESTS[-1]
    node, loop = request.node, _loop_of_test(request)
    # SQLAlchemy would load an expired attribute when it is read, which asyncio can't do.
    session = AsyncSession(db_engine, expire_on_commit=False)
    yield watch(session, "db_session", _begun(node))
    if (rollback := node.stash.get(_ROLLBACK, None)) is not None:
        loop.run(rollback.leave(session))
    elif _warmstack_engines.leave_other_loops(db_engine, loop.loop):
        # Its own connection may be one of those; then the session can't close it properly.
        loop.run(session.invalidate())
    elif session.in_transaction():
        loop.run(session.close())
    else:  # It has no connection, so there is nothing to wait for.
        session.sync_session.close()


def _begun(node: pytest.Item) -> Begun:
    """Return what notes the coroutines of a test's session and client."""
    from pytest_warmstack.background import Begun

    return node.stash.setdefault(_BEGUN, Begun())


@pytest.fixture(scope="session")
def _warmstack_sync_engines() -> SyncEngines:
    from pytest_warmstack.postgres.sync_engines import SyncEngines

    return result_or_fail(SyncEngines)


@pytest.fixture(scope="session")
def _warmstack_sync_rollback() -> Iterator[SyncRollbackConnection]:
    from pytest_warmstack.postgres.sync_engines import SyncRollbackConnection

    connection = SyncRollbackConnection()
    yield connection
    connection.close()


def function_db_sync_engine(
    request: pytest.FixtureRequest, db_url: str, _warmstack_sync_engines: SyncEngines
) -> Iterator[Engine]:
    """A synchronous engine of the test's database, disposed of after the test.

    It uses psycopg or psycopg2; without either, the test fails. With the isolation `class`,
    `module` or `session` it has that scope.
    """
    from pytest_warmstack.postgres.engines import is_clone

    if not is_clone(db_url):
        from sqlalchemy import create_engine

        engine = create_engine(_warmstack_sync_engines.url_of(db_url))
        yield engine
        engine.dispose()
    elif (shared := request.node.stash.get(_SHARED, None)) is not None:
        _check_one_rollback(request, _ROLLBACK)
        rollback = request.getfixturevalue("_warmstack_sync_rollback")
        request.node.stash[_SYNC_ROLLBACK] = rollback
        rollback.begin(shared)
        engine = _warmstack_sync_engines.make(db_url, rollback)
        yield engine
        _warmstack_sync_engines.end(engine, close=False)
        shared.trouble = rollback.end()
    else:
        yield from clone_sync_engine(db_url, _warmstack_sync_engines)


def clone_sync_engine(db_url: str, _warmstack_sync_engines: SyncEngines) -> Iterator[Engine]:
    """A synchronous engine of a database that is not rolled back."""
    engine = _warmstack_sync_engines.make(db_url)
    yield engine
    _warmstack_sync_engines.end(engine)


def session_sync_engine(
    request: pytest.FixtureRequest, db_url: str, _warmstack_postgres: Environment
) -> Engine:
    """A synchronous engine of the database that all tests of this process share."""
    engine: Engine = once(request, _warmstack_postgres, "sync_engine", clone_sync_engine)
    return engine


db_sync_engine = pytest.fixture(name="db_sync_engine")(function_db_sync_engine)


@pytest.fixture
def db_sync_session(
    request: pytest.FixtureRequest, db_sync_engine: Engine
) -> Iterator[SyncSession]:
    """A synchronous session on the test's database; no other test sees what it commits."""
    from pytest_warmstack.postgres.sync_engines import open_session

    with open_session(db_sync_engine) as session:
        yield session
        if (rollback := request.node.stash.get(_SYNC_ROLLBACK, None)) is not None:
            rollback.check()


@pytest.fixture
def db_queries(pytestconfig: pytest.Config, db_url: str) -> Iterator[Queries]:
    """The statements that SQLAlchemy sends to the test's databases while the test function runs.

    It records them on all engines, in all threads and event loops. It leaves out what fixtures
    send, what only begins or ends transactions and savepoints, and what SQLAlchemy asks when an
    engine first connects.
    """
    from pytest_warmstack import queries

    yield from queries.of_call(pytestconfig, db_url)


def _check_one_rollback(request: pytest.FixtureRequest, other: pytest.StashKey[Any]) -> None:
    """Fail a test that rolls back on two connections, which don't see each other's rows."""
    if other in request.node.stash:
        from pytest_warmstack.postgres.errors import RollbackFailed

        raise _failure(RollbackFailed.two_connections())


def _isolation(request: pytest.FixtureRequest, environment: Environment) -> str:
    """Return the isolation of the test; fail it if there is no such isolation."""
    from pytest_warmstack.options import ISOLATION, Isolation

    word = _word(request.node, environment.settings)
    try:
        return Isolation(word)
    except ValueError:
        from pytest_warmstack.settings_errors import SettingsError

        name = "the marker warmstack_isolation"
        error = SettingsError.bad_value(name=name, value=word, source="", wanted=ISOLATION.wanted)
        text = str(error)
    pytest.fail(text, pytrace=False)


# Event loops.


def _loop_of_test(request: pytest.FixtureRequest) -> LoopOfTests:
    """Return the event loop of a test; a fixture whose scope is that of the loop makes it."""
    stash = request.node.stash
    name = stash[_LOOP] = stash.get(_LOOP, "") or _loop(request)
    loops = request.config.stash.setdefault(_LOOPS, {})
    if name not in loops:
        manager = request.config.pluginmanager
        if not manager.hasplugin(f"warmstack-{name}"):
            # Declare it only now: most runs use one loop, and many use none.
            manager.register(_declare(name), f"warmstack-{name}")
        request.getfixturevalue(f"_warmstack_loop_{name}")
    return loops[name]


def _loop(request: pytest.FixtureRequest) -> str:
    """Return the loop that the test runs in: a scope of pytest-asyncio, or `anyio`."""
    if _is_run_by_anyio(request):
        _check_backend(request)
        return "anyio"
    marker = request.node.get_closest_marker("asyncio")
    options = marker.kwargs if marker is not None else {}
    if scope := options.get("loop_scope") or options.get("scope"):
        return str(scope)
    if not request.config.pluginmanager.hasplugin("asyncio"):
        pytest.fail(
            f"{request.fixturename} needs an event loop, and neither pytest-asyncio nor anyio's"
            " plugin gives this test one. Use db_sync_session or redis_sync_client, or switch a"
            " plugin on.",
            pytrace=False,
        )
    return str(request.config.getini("asyncio_default_test_loop_scope") or "function")


def _is_run_by_anyio(request: pytest.FixtureRequest) -> bool:
    """Return whether anyio's plugin runs the test, and not pytest-asyncio.

    Such a test has no marker `asyncio`, but the fixture that makes anyio's plugin run coroutines.
    """
    marker = request.node.get_closest_marker("asyncio")
    return marker is None and "anyio_backend" in request.fixturenames


def _check_backend(request: pytest.FixtureRequest) -> None:
    """Fail a test that anyio's plugin runs on another backend than asyncio."""
    backend = request.getfixturevalue("anyio_backend")
    name = backend if isinstance(backend, str) else backend[0]
    if name != "asyncio":
        from pytest_warmstack.postgres.errors import LoopFailed

        raise _failure(LoopFailed.backend(name=name))


def _declare(scope: str) -> ModuleType:
    """Return a pytest plugin with the only asynchronous fixture for tests in loops of *scope*."""
    name = f"_warmstack_loop_{scope}"

    async def keep_loop(request: pytest.FixtureRequest) -> AsyncIterator[None]:
        from pytest_warmstack.background import LoopOfTests

        loops = request.config.stash[_LOOPS]
        loop = loops[scope] = LoopOfTests(lasts=scope not in {"function", "anyio"})
        yield
        del loops[scope]
        await loop.close()

    # pytest finds fixtures and hooks by the names in a plugin.
    plugin = ModuleType(f"{__name__}.{scope}")
    vars(plugin).update(pytest_runtest_call=_check_all_is_awaited)
    if scope == "anyio":
        vars(plugin)[name] = pytest.fixture(name=name)(keep_loop)
    else:
        import pytest_asyncio

        fixture: Any = pytest_asyncio.fixture
        vars(plugin)[name] = fixture(name=name, scope=scope, loop_scope=scope)(keep_loop)
    return plugin


@pytest.hookimpl(wrapper=True)
def _check_all_is_awaited(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a test that made a coroutine, itself or in its fixtures, and did not await it."""

    def forgotten() -> WarmstackError | None:
        begun = item.stash.get(_BEGUN, None)
        if begun is None or not (names := begun.forgotten()):
            return None
        from pytest_warmstack.postgres.errors import LoopFailed

        return LoopFailed.forgotten(names=names)

    try:
        result = yield
    except BaseException as error:
        if (found := forgotten()) is not None:
            error.add_note(found.line)
        raise
    if (found := forgotten()) is not None:
        pytest.fail(str(found), pytrace=False)
    return result


# Failures.


def result_or_fail(get: Callable[[], T]) -> T:
    """Return the result of *get*; on a `WarmstackError`, fail the test with its text alone."""
    from pytest_warmstack.errors import WarmstackError

    try:
        return get()
    except WarmstackError as error:
        failure = _failure(error)
    # Outside of the handler: the text has the cause, so a chain of tracebacks adds nothing.
    raise failure


def _failure(error: WarmstackError) -> BaseException:
    failure = pytest.fail.Exception(str(error), pytrace=False)
    failure.warmstack_error = error  # type: ignore[attr-defined]
    return failure


def shorten(session: Session, item: pytest.Item, failed: BaseException) -> None:
    """Shorten an error that another test has shown to one line: hundreds of tests may get it."""
    error: WarmstackError | None = getattr(failed, "warmstack_error", None)
    if error is not None:
        # Keep it whole for the test that showed it first, which may run again.
        is_first = session.shown.setdefault(str(error), item.nodeid) == item.nodeid
        failed.msg = str(error) if is_first else error.brief()  # type: ignore[attr-defined]
