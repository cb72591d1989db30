"""The servers, templates, clones and leases of one process, each made when it is first needed.

Background threads make them. So a timeout or Ctrl-C interrupts the test that waits, but not the
work that it waits for.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, wait
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

from pytest_warmstack import originals, server_specs
from pytest_warmstack import servers as runtimes
from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.options import NONE, Isolation, RedisPlan, RuntimeName, Settings
from pytest_warmstack.report import Ledger, Step
from pytest_warmstack.servers import CONNECT_TIMEOUT, RememberedServers
from pytest_warmstack.servers.errors import AddressLost, RuntimeUnavailable, ServerFailed
from pytest_warmstack.servers.identity import Process, Service
from pytest_warmstack.servers.model import (
    Endpoint,
    NotOurs,
    NotReady,
    OwnRuntime,
    RunContext,
    Runtime,
    Server,
    ServerSpec,
)
from pytest_warmstack.structs import Struct

if TYPE_CHECKING:
    from pytest_warmstack.addresses import Reserved
    from pytest_warmstack.head_start import EarlyBuild, HeadStart
    from pytest_warmstack.postgres.address import Address
    from pytest_warmstack.postgres.clones import Clone, CloneFactory, Clones, Finding, Leak, Shared
    from pytest_warmstack.postgres.databases import Databases
    from pytest_warmstack.postgres.template.configurations import Configuration, Configurations
    from pytest_warmstack.postgres.template.dependencies import FileState
    from pytest_warmstack.postgres.template.in_process import InProcess
    from pytest_warmstack.postgres.template.layers import Layer
    from pytest_warmstack.postgres.template.profile import Profile
    from pytest_warmstack.postgres.template.templates import Template
    from pytest_warmstack.progress import Wait
    from pytest_warmstack.redis.connections import Admin as RedisAdmin
    from pytest_warmstack.redis.leases import Lease, Leases

T = TypeVar("T")

MAX_REDIS_SERVERS: Final = 64
"""How many Redis servers a project may have, if each process has its own."""

CLOSE_TIMEOUT: Final = 10.0
"""Seconds that the end of a run waits for background work; the next run sweeps what is left."""

SIGNAL_INTERVAL: Final = 0.5
"""Seconds after which a wait looks for signals: Python misses one that comes as a wait begins."""

_MISSING_EXTENSION: Final = (
    r'extension "([^"]+)" is not available|/([\w-]+)\.control"|/([\w-]+)\.so": '
)
"""Matches PostgreSQL's messages about an extension, or its library, that is not installed."""


class Lazy(Generic[T]):
    """A value that *make* creates once, in its own thread, when it is first needed.

    If something interrupts the wait, the thread continues, and the next caller waits for it. If
    *make* raises an `Exception`, every caller gets it. Any other exception, such as a `SystemExit`
    of the project's code, is raised for the first caller only; the others try again.
    """

    def __init__(self, name: str, make: Callable[[], T]) -> None:
        self._name = name
        self._make = make
        self._lock = threading.Lock()
        self._pid = originals.getpid()
        self.future: Future[T] | None = None

    def get(self) -> T:
        """Return the value. Raises what *make* raised, and `Forked` in a forked process."""
        if self._pid != originals.getpid():
            raise Forked.back(process=self._pid)
        future = self.future
        if future is not None and future.done() and future.exception() is None:
            return future.result()  # Tests come here several times each.
        own: Future[T] = Future()
        while True:
            future = self.begin(own)
            _wait([future])
            error = future.exception()
            if future is own or error is None or isinstance(error, Exception):
                return future.result()

    def begin(self, future: Future[T] | None = None) -> Future[T]:
        """Return the future of the value; start the thread that makes it, if there is none."""
        with self._lock:
            if self.future is not None:
                return self.future
            future = self.future = future or Future()
            try:
                originals.Thread(
                    target=self._run, args=(future,), name=f"warmstack-{self._name}", daemon=True
                ).start()
            except BaseException:
                if future.cancel():  # The interruption came before the thread began.
                    self.future = None
                raise
            return future

    def _run(self, future: Future[T]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(self._make())
        except BaseException as error:
            if not isinstance(error, Exception):
                self.future = None
            future.set_exception(error)

    @property
    def value(self) -> T | None:
        """The value; None if it doesn't exist yet or could not be made."""
        return self._done.result() if self._done and not self.error else None

    @property
    def error(self) -> BaseException | None:
        """The exception that *make* raised; None if it raised none or is still running."""
        return self._done.exception() if self._done else None

    @property
    def _done(self) -> Future[T] | None:
        future = self.future
        return future if future and future.done() and not future.cancelled() else None


class TemplateKey(NamedTuple):
    """Which template a test needs: that of the tests in *folder*, with the scripts *seeds* on it.

    The seeds are those of the marker `warmstack_seed`, without those that every template has.
    """

    folder: Path
    seeds: tuple[str, ...] = ()


class ConfiguredTemplate(Struct, eq=False):
    """The template of one Alembic *configuration* (None without one) and *seeds*, and its clones.

    *expected* is the number of tests that will use a clone. *template* is set if the template
    outlives the run.
    """

    configuration: Configuration | None
    layers: Lazy[list[Layer]]
    clones: Lazy[Clones]
    seeds: tuple[str, ...] = ()
    expected: int = 0
    template: Template | None = None
    factory: CloneFactory | None = None


class Environment(Struct, eq=False):
    """The servers of one process, and what is on them.

    *waiting* shows the user what takes long, until its context ends. *custom_layers* returns the
    results of the hook `pytest_warmstack_template_layers`. *ini* is pytest's configuration file,
    *worker* the number of this process among the workers of its run, *reserved* what the
    application has read. *forget_pools* ends the connections of this process to a database.
    *head_start* has begun with what the last run needed. `ledger` records what was made; `used`
    has the names of the runtimes that were used. `postgres` is the PostgreSQL server, `leases` are
    this process's Redis databases; both are made when they are first needed.
    """

    settings: Settings
    run_context: RunContext
    remembered: RememberedServers
    waiting: Callable[[str], AbstractContextManager[Wait]]
    custom_layers: Callable[[], Sequence[object]] = tuple
    ini: Path | None = None
    worker: int = 0
    reserved: Reserved | None = None
    forget_pools: Callable[[str], None] = lambda _: None
    head_start: HeadStart | None = None

    def __post_init__(self) -> None:
        """Declare what will be made when it is first needed."""
        self.ledger = Ledger()
        self.used: list[str] = []
        self._root = Path(self.run_context.project.path)
        self._pid = originals.getpid()
        self._stack = ExitStack()
        self._background = BackgroundLoop()
        self._ending = False
        self._lazies: list[Lazy[Any]] = []
        self._specs: dict[Service, ServerSpec[Any]] = {}
        self._runtime = self._lazy("runtime", self._choose_runtime)
        self.postgres: Lazy[Server[Databases]] = self._lazy(
            "postgres", lambda: self._find_or_start(self._spec(Service.POSTGRES))
        )
        self._redis: Lazy[Server[RedisAdmin]] = self._lazy(
            "redis", lambda: self._find_or_start(self._spec(Service.REDIS))
        )
        self.leases: Lazy[Leases] = self._lazy("leases", self._make_leases)
        self._template_of: dict[TemplateKey, ConfiguredTemplate] = {}
        self._templates: dict[tuple[Configuration | None, tuple[str, ...]], ConfiguredTemplate] = {}
        self._first: ConfiguredTemplate | None = None
        self._misconfigured: list[BaseException] = []
        self._sweeping: Future[Any] | None = None
        # How many databases tests have now, and whether a connection ever came to one of them.
        self._taken = 0
        self._was_reached = False

    def _lazy(self, name: str, make: Callable[[], T]) -> Lazy[T]:
        made = Lazy(name, make)
        self._lazies.append(made)
        return made

    def start(self, services: Collection[Service], tests: Mapping[TemplateKey, int]) -> None:
        """Prepare *services*, all at the same time.

        *tests* maps each template to the number of tests that need a clone of it. Raises
        `TemplateFailed` if a file of the schema or the seed is missing, or if databases would be
        empty although Alembic is configured elsewhere; raises `RuntimeUnavailable` if the settings
        name a runtime or an image that is not available. Any other error is raised later, for the
        tests that need what could not be made.
        """
        for key, count in tests.items():
            try:
                self._template(key).expected += count
            except WarmstackError as error:
                self._misconfigured.append(error)
        if tests:
            from pytest_warmstack.postgres.template.layers import check_scripts

            check_scripts(self.settings, self._root)
        without = self._templates.get((None, ()))
        if without is not None and without.expected:
            self._check_empty_is_meant()
        self._specs = {service: self._spec(service) for service in services}
        steps = {Service.POSTGRES: self._make_templates, Service.REDIS: self._take_first_lease}
        _wait([self._lazy(f"start-{each}", steps[each]).begin() for each in services])
        refusal, is_named = self._runtime.error, self.settings.runtime is not RuntimeName.AUTO
        if isinstance(refusal, RuntimeUnavailable) and (is_named or refusal.image):
            raise refusal

    def asked_for(self) -> set[Service]:
        """Return the services whose servers something has needed so far."""
        lazies: dict[Service, list[Lazy[Any]]] = {
            Service.POSTGRES: [self.postgres],
            Service.REDIS: [self._redis, self.leases],
        }
        return {service for service, own in lazies.items() if any(each.future for each in own)}

    def close(self, *, tidy: bool) -> None:
        """Release everything; with *tidy*, also remove what this run and dead runs left behind.

        You can close twice. If a step fails, the other steps still run. A forked process closes
        nothing, because everything belongs to its parent.
        """
        if self._pid != originals.getpid():
            return
        self._ending = True
        # From here on, nothing new begins.
        begun = [each.future for each in self._lazies if each.future and not each.future.cancel()]
        if not all(future.done() for future in begun):
            # No test needs the template any more, so stop its build.
            for template in self._templates.values():
                for layer in template.layers.value or ():
                    layer.discard()
            wait(begun, timeout=CLOSE_TIMEOUT)
        begin = originals.monotonic()
        with ExitStack() as last:
            last.callback(self._background.close)
            if (chosen := self._runtime.value) is not None:
                last.callback(chosen[0].close)
                if tidy:
                    last.callback(self._remove_servers, chosen[0])
            elif tidy and self.remembered.is_due("cleanup"):
                from pytest_warmstack import cleanup

                # A run that reuses its servers sends no request to an engine.
                last.callback(cleanup.begin, self.settings.max_idle)
            last.push(self._stack.pop_all())
        for each in self._lazies:
            each.future = None
        if "clone" in self.ledger.times and self.reserved and self.reserved.database:
            self.ledger.note(Step("address", 0.0, {"reached": "yes" if self._was_reached else ""}))
        if self.ledger.steps:
            self.ledger.note(Step("end", originals.monotonic() - begin))

    def errors(self) -> list[BaseException]:
        """Return the errors of everything that could not be made so far, each error once."""
        found = [*self._misconfigured, *(each.error for each in self._lazies)]
        return list({id(error): error for error in found if error is not None}.values())

    def secrets(self) -> list[str]:
        """Return the texts that reports must not show: passwords, and secrets in the settings."""
        from pytest_warmstack.masking import password_of, secrets_of

        servers: list[Server[Any] | None] = [self.postgres.value, self._redis.value]
        if leases := self.leases.value:
            servers.append(leases.server)
        return [
            *map(password_of, (self.settings.postgres_url, self.settings.redis_url)),
            *(each.endpoint.password for each in servers if each is not None),
            *secrets_of((*self.settings.env, *self.settings.postgres_env)),
        ]

    def redis_in_use(self) -> Leases | None:
        """Return the leases of this process if it has any; don't make them."""
        return self.leases.value if self._pid == originals.getpid() else None

    def take_lease(self, test: str) -> Lease:
        """Empty this process's Redis databases for *test*, and return them."""
        leases = self.leases.get()
        with self.ledger.timed("flush"):
            return leases.acquire(test)

    def folders(self) -> list[Path]:
        """Return the folders of all Alembic configurations; only the root if it has its own."""
        with suppress(WarmstackError):
            if not self.settings.alembic:
                return [each.folder for each in self._configurations.all()] or [self._root]
        return [self._root]

    def shares_template(self, one: TemplateKey, other: TemplateKey) -> bool:
        """Return whether tests with either key get clones of the same template.

        Raises `TemplateFailed` if Alembic's configuration can't be read.
        """
        return self._template(one) is self._template(other)

    def first_key(self, key: TemplateKey) -> TemplateKey:
        """Return the first key that has the same template as *key*. Raises `TemplateFailed`."""
        template = self._template(key)
        return next(each for each, other in self._template_of.items() if other is template)

    def source(
        self, key: TemplateKey, *, alembic: str, section: str, x: tuple[str, ...]
    ) -> ConfiguredTemplate:
        """Return what further databases of a test with *key* are clones of; build nothing.

        Without other arguments it is the test's own template. Raises `TemplateFailed` if there is
        no such configuration.
        """
        if not (alembic or section or x):
            return self._template(key)
        if alembic:
            found: Configuration | None = self._configurations.named(alembic)
        else:
            found = self._template(key).configuration
        if found is None:
            from pytest_warmstack.postgres.template.errors import TemplateFailed

            raise TemplateFailed.no_file(
                layer="alembic", file=str(key.folder / "alembic.ini"), source=""
            )
        options = [f"-n {section}"] if section else []
        name = " ".join([found.name, *options, *(f"-x {each}" for each in x)])
        return self._configured(found._replace(name=name, section=section, x=x, alone=True))

    def empty_source(self, *, schema: bool = False) -> ConfiguredTemplate:
        """Return what empty databases are clones of; build nothing.

        With *schema*, they have what the lines of `warmstack_schema` make.
        """
        from pytest_warmstack.postgres.template.configurations import EMPTY

        if not (schema and self.settings.schema):
            return self._configured(EMPTY)
        return self._configured(EMPTY._replace(name="the schema", alone=False))

    def in_process(self, key: TemplateKey, database: str) -> InProcess | None:
        """Return the migrations of tests with *key* on *database*, to run in this process.

        None if these tests have no Alembic configuration.
        """
        if (configuration := self._template(key).configuration) is None:
            return None
        from pytest_warmstack.postgres.template.in_process import InProcess

        root, endpoint = self.run_context.project.path, self.postgres.get().endpoint
        return InProcess(configuration, self.settings, root, endpoint, database)

    def take_further(self, source: ConfiguredTemplate, *, at_address: bool = False) -> Clone:
        """Return a further database for a test, *at_address* if the application has read one."""
        clones = source.clones.get()
        with self.ledger.timed("clone"), self._explain_errors():
            return clones.take(at_address=at_address)

    def take_clone(self, key: TemplateKey, *, fresh: bool = False) -> Clone:
        """Return a migrated database for one test, a clone of the template of *key*.

        No test has ever used a *fresh* one.
        """
        clones = self._clones(key)
        with self.ledger.timed("clone"), self._explain_errors():
            clone = clones.take(fresh=fresh)
        self._taken += 1
        return clone

    def give_back(
        self,
        clone: Clone,
        key: TemplateKey,
        test: str,
        *,
        failed: Sequence[str],
        again: bool = False,
    ) -> None:
        """Take back the database of *test*; if tests *failed* with it, save it for them.

        Another test may use it *again* once it has been put back.
        """
        self._taken -= 1
        if (use := self._clones(key).inspect(clone)) is not None:
            self._was_reached = self._was_reached or not use.is_unused
            if use.is_unused:
                return
            for leak in use.leaks:
                self._record_leak(test, leak)
        source = self._template(key)
        self.give_back_further(clone, source, test, failed=", ".join(failed), again=again)

    def give_back_further(
        self,
        clone: Clone,
        source: ConfiguredTemplate,
        test: str,
        *,
        failed: str,
        again: bool = False,
    ) -> None:
        """Take back a database of *test*; if *failed* names tests that failed, save it for them."""
        if failed and self.is_saved(source):
            source.clones.get().save(clone, failed)
        else:
            source.clones.get().give_back(clone, test, again=again)
        self._sweep()

    # A clone that stays with the connection of db_engine, from test to test in one event loop.

    @property
    def keeps_connections(self) -> bool:
        """Whether a test's connection can outlive it: its database must have a name of its own."""
        return self.reserved is None or self.reserved.database is None

    def take_again(self, key: TemplateKey) -> None:
        """Count a test that gets the clone of the test before it, which `put_back` has put back."""
        with self.ledger.timed("clone"):
            self._clones(key).take_again()
        self._taken += 1

    async def put_back(self, clone: Clone, key: TemplateKey, connection: Any) -> bool:
        """Undo what a test did to *clone*; return whether that was possible.

        *connection* is the only one to it, of asyncpg, in the running loop. If this returns true,
        the clone is no longer in use; otherwise, give it back.
        """
        done = await self._clones(key).put_back_on(connection, clone)
        self._taken -= done
        return done

    def hand_back(self, clone: Clone, key: TemplateKey) -> None:
        """Take back a clone that `put_back` has put back, when its connection has ended."""
        self._clones(key).hand_back(clone)

    def return_address(self, clone: Clone, key: TemplateKey) -> None:
        """Lead the address that the application has read to *clone* again, which tests share."""
        self._clones(key).return_address(clone)

    def borrow_clone(self, key: TemplateKey) -> Shared:
        """Return the database that all tests with *key* share; each test undoes its changes."""
        clones = self._clones(key)
        with self.ledger.timed("rollback" if clones.is_shared else "clone"), self._explain_errors():
            shared = clones.borrow()
        self._taken += 1
        self._was_reached = True
        return shared

    def restore_clone(self, shared: Shared, key: TemplateKey, test: str) -> None:
        """Take the shared database back after *test*."""
        self._taken -= 1
        self._clones(key).restore(shared, test)
        self._sweep()

    @property
    def has_database(self) -> bool:
        """Whether a test has a database now."""
        return self._taken > 0

    def name_clone(self, clone: Clone, test: str) -> None:
        """Note on a database that *test* is in the debugger, for `warmstack psql`."""
        if (factory := self._factory()) is not None:
            with suppress(WarmstackError):
                factory.name(clone, test)

    def source_of(self, clone: Clone) -> ConfiguredTemplate | None:
        """Return what *clone* was made from; None if no test has it any more."""
        made = self._templates.values()
        return next((each for each in made if each.factory and each.factory.has(clone)), None)

    def is_saved(self, source: ConfiguredTemplate) -> bool:
        """Return whether a clone of *source* is saved if its test fails."""
        return source.template is not None and self.settings.keep_failed > 0

    def postgres_log(self, lines: int) -> list[str]:
        """Return the last *lines* of the log of a managed PostgreSQL; of an external one, none.

        Raises `RuntimeUnavailable`.
        """
        server = self.postgres.value
        if server is None or server.external:
            return []
        with closing(runtimes.make(server.runtime, self.run_context)) as runtime:
            return [*runtime.log(server, lines)]

    def holders(self) -> list[str]:
        """Return who holds PostgreSQL's connections; nothing if the server doesn't answer."""
        if (factory := self._factory()) is not None:
            with suppress(WarmstackError):
                return factory.holders()
        return []

    # For development.

    def configurations_for(self, folder: Path) -> list[Configuration]:
        """Return the Alembic configuration for *folder*, or else all of those below the root."""
        found = self._configurations.of(self._root if self.settings.alembic else folder)
        return [found] if found else self._configurations.all()

    def development_database(self, folder: Path, *, fresh: bool) -> tuple[Endpoint, str, str]:
        """Return the server and the name of the development database for *folder*, and a remark.

        The database is made if there is none, and again with *fresh*. The remark says that the
        template has changed since. Raises the errors of the template, and `DevelopmentFailed`.
        """
        from pytest_warmstack.postgres import DatabaseName, development

        self._clones(TemplateKey(folder))
        made = self._template(TemplateKey(folder))
        assert made.template is not None and made.factory is not None  # noqa: PT018, S101
        project, of = self.run_context.project, made.configuration
        section = self.settings.alembic_section
        name = DatabaseName.development(project.path, f"{of.name}:{section}" if of else "")
        databases = self.postgres.get().client
        with self._explain_errors(), self._waiting_when_said() as say:
            request = development.DevelopmentRequest(
                name=name,
                template=made.template.name,
                take=made.factory.take,
                project=project.slug,
                configuration=of.name if of else "",
                fresh=fresh,
                say=say,
            )
            remark = development.ensure(databases, made.factory, request)
        return databases.endpoint, str(name), remark

    def development_redis(self, *, fresh: bool) -> tuple[Endpoint, int]:
        """Return the server and the number of the Redis database for development.

        It is on the shared server. Where each process of a run has a server of its own, no run uses
        that one, and the number is 0, as in tests. Raises `LeaseFailed`.
        """
        server = self._redis.get()
        if self.settings.redis is not RedisPlan.SHARED:
            if fresh:
                server.client.commands(("SELECT", 0), ("FLUSHDB", "SYNC"))
            return server.client.endpoint, 0
        lease = self._leases_on(server).reserve(self.run_context.project.id, fresh=fresh)
        return server.client.endpoint, lease.index

    def profile(self, folder: Path) -> Profile:
        """Build the template for *folder* once more, and drop it; return how long each step took.

        Raises `TemplateFailed`.
        """
        from pytest_warmstack.postgres.template import profile

        configuration = self._template(TemplateKey(folder)).configuration
        databases, files = self.postgres.get().client, self._file_state
        custom = self._custom_layers
        with self._explain_errors():
            return profile.measure(
                databases, self.settings, self._root, files, configuration, custom
            )

    def no_space(self, error: BaseException) -> ServerFailed | None:
        """Return the explanation of *error* if an embedded PostgreSQL has no space left."""
        if (server := self._embedded_postgres()) is None:
            return None
        from pytest_warmstack.servers import embedded

        return embedded.no_space(error, server.title, server.name)

    def _clones(self, key: TemplateKey) -> Clones:
        return self._template(key).clones.get()

    def _factory(self) -> CloneFactory | None:
        return next((each.factory for each in self._templates.values() if each.factory), None)

    def _embedded_postgres(self) -> Server[Any] | None:
        server = self.postgres.value
        return server if server and server.runtime == RuntimeName.EMBEDDED else None

    @contextmanager
    def _explain_errors(self) -> Iterator[None]:
        """Add to an error of an embedded PostgreSQL what only this process knows."""
        try:
            yield
        except WarmstackError as error:
            if (full := self.no_space(error)) is not None:
                raise full from error
            missing = re.search(_MISSING_EXTENSION, error.why)
            if missing and self._embedded_postgres():
                from pytest_warmstack.postgres.native import NativePostgres

                native = self._spec(Service.POSTGRES).native("")
                if isinstance(native, NativePostgres):
                    name = next(filter(None, missing.groups()))
                    error.todo = (*native.extension_hints(name), *error.todo[-1:])
            raise

    # Servers.

    def _spec(self, service: Service) -> ServerSpec[Any]:
        spec = server_specs.make(service, self.settings, self._background)
        reserved = self.reserved.servers.get(service) if self.reserved else None
        return spec.replace(reserved=reserved) if reserved else spec

    def find_running(self, service: Service) -> Endpoint | None:
        """Return the address of a kept server of this project that runs but isn't remembered."""
        spec, named = self._spec(service), self.settings.runtime
        both = (RuntimeName.DOCKER, RuntimeName.EMBEDDED)
        for name in both if named is RuntimeName.AUTO else (named,):
            # Raised for the tests that need it.
            with (
                suppress(WarmstackError),
                closing(runtimes.make(name, self.run_context)) as runtime,
            ):
                wanted = self.run_context.name(spec, name)
                for found in runtime.list():
                    if found.running and found.name == wanted:
                        with suppress(NotReady, NotOurs):
                            client = runtime.connect(spec, found)
                            client.close()
                            address: Endpoint = client.endpoint
                            return address.replace(looks=False)
        return None

    def _find_or_start(self, spec: ServerSpec[Any]) -> Server[Any]:
        """Return the server for *spec*: the one that the last run used, or one from a runtime."""
        begin = originals.monotonic()
        early = self.head_start.take(spec.service) if self.head_start and not spec.number else None
        server, why = early or self.remembered.connect(spec, self.run_context.project)
        if server is None:
            with self._waiting_when_said() as say:
                runtime, why = self._runtime_for(spec, say)
                if spec.service is Service.POSTGRES:
                    self._prepare_layers()
                if not spec.url:
                    say(f"starting {spec.title}")
                try:
                    server = runtime.ensure(spec)
                except AddressLost:
                    self.remembered.forget(spec.key)
                    raise
            if self.run_context.keep and not server.external:
                self.remembered.write(spec.key, server, why)
        self._stack.callback(server.client.close)
        seconds = originals.monotonic() - begin
        self.ledger.note(Step(str(spec.service), seconds, server.facts(why)))
        return server

    @contextmanager
    def _waiting_when_said(self) -> Iterator[Callable[[str], None]]:
        """Yield a function that shows what happens; before its first call, nothing is shown."""
        waits: list[Wait] = []
        with ExitStack() as stack:

            def say(text: str) -> None:
                if not waits:
                    waits.append(stack.enter_context(self.waiting(text)))
                waits[0].update(text)

            yield say

    def _runtime_for(
        self, spec: ServerSpec[Any], say: Callable[[str], None]
    ) -> tuple[Runtime, str]:
        """Return the runtime for *spec*, and why it was chosen."""
        if spec.url:
            from pytest_warmstack.servers.external import External

            return External(self.run_context, say), ""
        is_late = spec.service not in self._specs
        self._specs.setdefault(spec.service, spec)
        runtime, why = self._runtime.get()
        if is_late:  # A running test needs it, after the runtime was chosen.
            runtime.check([spec], say)
        return runtime, why

    def _choose_runtime(self) -> tuple[OwnRuntime, str]:
        """Return the runtime for all managed servers of this process, and why it was chosen."""
        specs = [each for each in self._specs.values() if not each.url]
        with self._waiting_when_said() as say:
            chosen = runtimes.choose(self.settings.runtime, self.run_context, specs, say)
        self.used.append(str(chosen[0].name))
        return chosen

    def _remove_servers(self, runtime: OwnRuntime) -> None:
        """Remove the servers of this run and of dead runs; record what could not be removed."""
        from pytest_warmstack import cleanup

        with self.waiting("removing the servers"):
            lines = cleanup.tidy(runtime, self.run_context.run, self.settings.max_idle)
        for line in lines:
            self._record_trouble("at the end", line)

    def _record_trouble(self, test: str, trouble: str) -> None:
        self.ledger.note(Step("left", 0.0, {"test": test, "trouble": trouble}))

    # Templates.

    @cached_property
    def _configurations(self) -> Configurations:
        from pytest_warmstack.postgres.template.configurations import Configurations

        return Configurations(self.settings, self._root, self.ini)

    @cached_property
    def _file_state(self) -> FileState:
        """The state of the project's files; each file is read once."""
        from pytest_warmstack.postgres.template.dependencies import FileState

        earlier = self.head_start.file_state() if self.head_start else None
        return FileState(self.run_context.project.path, earlier=earlier)

    def _template(self, key: TemplateKey) -> ConfiguredTemplate:
        """Return the template of *key*; it may not be built yet."""
        if self.settings.alembic:
            key = key._replace(folder=self._root)
        if key not in self._template_of:
            configuration = self._configurations.of(key.folder)
            self._template_of[key] = self._configured(configuration, key.seeds)
        return self._template_of[key]

    def _configured(
        self, configuration: Configuration | None, seeds: tuple[str, ...] = ()
    ) -> ConfiguredTemplate:
        own = configuration, seeds
        if own not in self._templates:
            self._templates[own] = ConfiguredTemplate(
                configuration,
                self._lazy("layers", lambda: self._make_layers(*own)),
                self._lazy("clones", lambda: self._make_clones(self._templates[own])),
                seeds,
            )
        return self._templates[own]

    def _make_templates(self) -> None:
        """Make the templates that tests need, one after the other; without any, only the server."""
        # A template with seeds is built on those with fewer.
        for each in sorted(self._templates.values(), key=lambda each: len(each.seeds)):
            if each.configuration or each.expected:
                with suppress(Exception):  # Raised for the tests that need it.
                    each.clones.get()
        self.postgres.get()

    def _check_empty_is_meant(self) -> None:
        """Raise `TemplateFailed` if databases would be empty, but Alembic is configured elsewhere.

        If your tests create their tables themselves, set `warmstack_alembic = none`.
        """
        try:
            if self.settings.alembic == NONE or self._templates[None, ()].layers.get():
                return
        except Exception:
            return  # Raised for the tests that need the layers.
        below = [each.name for each in self._configurations.below()]
        if found := below or self._configurations.named_otherwise():
            from pytest_warmstack.postgres.template.errors import TemplateFailed

            raise TemplateFailed.elsewhere(
                found=found, root=self.run_context.project.path, file=self.settings.file
            )

    def _make_layers(
        self, configuration: Configuration | None, seeds: tuple[str, ...]
    ) -> list[Layer]:
        from pytest_warmstack.postgres.template import layers

        settings, root, files = self.settings, self._root, self._file_state
        if configuration is None or not configuration.is_further:
            custom, early = self._custom_layers, self._early_build(configuration, seeds)
            child = early and early.builder
            return layers.make(settings, root, files, configuration, custom, seeds, child)
        settings = settings.replace(
            schema=() if configuration.alone else settings.schema,
            seed=(),
            alembic_section=configuration.section or settings.alembic_section,
            alembic_x=configuration.x or settings.alembic_x,
        )
        return layers.make(settings, root, files, None if configuration.is_empty else configuration)

    @cached_property
    def _custom_layers(self) -> Sequence[object]:
        return self.custom_layers()

    def _early_build(
        self, configuration: Configuration | None, seeds: tuple[str, ...]
    ) -> EarlyBuild | None:
        return self.head_start.build_for(configuration, seeds) if self.head_start else None

    def _prepare_layers(self) -> None:
        """Begin to build the first template while its server is still starting.

        Workers of xdist don't do that: one of them builds, and the others would slow it down.
        """
        if self._first is None or self.run_context.owner != Process.current():
            return
        with suppress(WarmstackError):  # Raised where the layers are needed.
            for layer in self._first.layers.get():
                self._stack.callback(layer.discard)
                layer.prepare()

    # Clones.

    def _make_clones(self, template: ConfiguredTemplate) -> Clones:
        """Find or build *template*, and return its clones."""
        with self._explain_errors():
            if template.configuration is None and not template.seeds:
                self._check_empty_is_meant()
            self._first = self._first or template
            server = self.postgres.get()
            if self._ending:
                raise CancelledError
            # External servers stay, so any later run can use the clones that are ready there.
            keep = self.run_context.keep or server.external
            made = self._ensure_template(template, server.client, keep=keep)
            return self._open_clones(template, server.client, made, keep=keep)

    def _ensure_template(
        self, template: ConfiguredTemplate, databases: Databases, *, keep: bool
    ) -> Template:
        from pytest_warmstack.postgres.template import templates

        begin = originals.monotonic()
        settings, layers = self.settings, template.layers.get()
        early = self._early_build(template.configuration, template.seeds)
        with self._waiting_when_said() as say:
            request = templates.TemplateRequest(
                layers=layers,
                settings=settings,
                file_state=self._file_state,
                say=say,
                # Other seeds of this run begin with the same migrations.
                keep=keep or bool(template.seeds),
                run=self.run_context.run,
                project=self.run_context.project.slug,
                draft=early and early.draft,
                yields=bool(
                    self.head_start and self.head_start.differs and not self.head_start.builds
                ),
            )
            made = templates.ensure(databases, request)
        if early:
            early.builder.discard()
        facts = {
            "origin": made.origin,
            "text": made.text,
            "how": made.how,
            "why": made.why,
            "of": template.configuration.name if template.configuration else "",
            "seeds": " ".join(template.seeds),
            "empty": "" if layers or template.configuration or settings.alembic == NONE else "yes",
        }
        self.ledger.note(Step("template", originals.monotonic() - begin, facts))
        return made

    @cached_property
    def _address(self) -> Address | None:
        """The address that the application has read, if it has read one."""
        if self.reserved is None or self.reserved.database is None:
            return None
        from pytest_warmstack.postgres.address import Address

        return Address(self.reserved.database, self.postgres.get().client)

    def _open_clones(
        self, template: ConfiguredTemplate, databases: Databases, made: Template, *, keep: bool
    ) -> Clones:
        from pytest_warmstack.postgres.clones import CloneFactory, Clones

        ahead, context = self.settings.clones_ahead, self.run_context
        is_further = template.configuration is not None and template.configuration.is_further
        new_factory: Callable[..., CloneFactory] = CloneFactory
        new_clones: Callable[..., Clones] = Clones
        if self.settings.report:
            from pytest_warmstack.postgres import measured_clones as measured

            new_factory = partial(measured.MeasuredCloneFactory, self.ledger.note)
            new_clones = measured.MeasuredClones
        factory = new_factory(
            databases, made.name, context.project.slug, context.run, self._address
        )
        factory.open(many=template.expected > ahead)
        clones = new_clones(
            factory,
            ahead=ahead,
            expected=template.expected,
            stock=ahead if keep and not is_further else 0,
            keep=self.settings.keep_failed,
            puts_back=self.settings.isolation is not Isolation.FRESH_CLONE,
            found=self._record_finding,
            forget_pools=self.forget_pools,
        )
        template.factory = factory
        self._stack.callback(clones.close, timeout=CLOSE_TIMEOUT)
        if keep:
            template.template = made
            self._sweeping = None
            self._stack.callback(self._finish_sweep, clones)
        return clones

    def _record_finding(self, found: Finding) -> None:
        if found.saved:
            self.ledger.note(Step("kept", 0.0, {"test": found.test, "name": found.saved}))
        elif found.replaced:
            self.ledger.note(Step("replaced", 0.0, {"test": found.test, "why": found.replaced}))
        elif found.leak:
            self._record_leak(found.test, found.leak)
        else:
            self._record_trouble(found.test, found.trouble)

    def _record_leak(self, test: str, leak: Leak) -> None:
        self.ledger.note(Step("left", 0.0, {"test": test, **leak._asdict()}))

    def _sweep(self) -> Future[Any] | None:
        """Begin, once, after the first test, to drop what dead runs left behind."""
        if self._sweeping is None and any(each.template for each in self._templates.values()):
            self._sweeping = self._begin_sweep()
        return self._sweeping

    def _begin_sweep(self) -> Future[Any]:
        """Begin to drop what dead runs left behind; note that this run uses its templates."""
        from pytest_warmstack.postgres.retention import Retention

        settings, factory = self.settings, self._factory()
        kept = [each.template for each in self._templates.values() if each.template]
        assert factory is not None  # noqa: S101 - each template has its factory
        return factory.sweep(
            Retention(
                templates=settings.keep_templates,
                current={each.name for each in kept},
                stock=settings.clones_ahead,
                saved=settings.keep_failed,
                run=self.run_context.run,
                idle=settings.max_idle,
            ),
            notes=[note for each in kept for note in each.notes()],
        )

    def _finish_sweep(self, clones: Clones) -> None:
        """Wait for the sweep; the next run sweeps the rest."""
        if (sweep := self._sweep()) is not None:
            wait([sweep], timeout=CLOSE_TIMEOUT)
        if clones.has_saved:
            # The saved databases of earlier runs make room for those of this run.
            wait([self._begin_sweep()], timeout=CLOSE_TIMEOUT)

    # Leases.

    def _take_first_lease(self) -> None:
        with suppress(WarmstackError):  # Raised for the tests that need it.
            leases = self.leases.get()
            with self.ledger.timed("lease"):
                leases.take()

    def _make_leases(self) -> Leases:
        if self.settings.redis is RedisPlan.SHARED:
            leases = self._leases_on(self._redis.get())
        elif self.settings.redis_url:
            from pytest_warmstack.redis.errors import LeaseFailed

            raise LeaseFailed.not_whole()
        else:
            leases = self._lease_free_server()
        self._stack.callback(leases.close)
        return leases

    def _leases_on(self, server: Server[RedisAdmin]) -> Leases:
        from pytest_warmstack.redis.leases import Leases

        connect = self._spec(Service.REDIS).connect
        return Leases(
            server,
            lambda: connect(server.endpoint, server.fingerprint, CONNECT_TIMEOUT),
            count=self.settings.redis_databases,
            whole=self.settings.redis is RedisPlan.PER_PROCESS,
            at=self.reserved.indexes if self.reserved else None,
            found=self._record_trouble,
        )

    def _lease_free_server(self) -> Leases:
        """Return the lease of a server that no other process uses; start a server if necessary.

        The workers of xdist begin at different numbers, so that they don't all try the same server.
        """
        from pytest_warmstack.redis.errors import LeaseFailed

        numbers = range(1, MAX_REDIS_SERVERS + 1)
        for number in sorted(numbers, key=lambda each: each != self.worker + 1):
            spec = server_specs.make(Service.REDIS, self.settings, number=number)
            server = self._find_or_start(spec)
            leases = self._leases_on(server)
            with suppress(LeaseFailed):
                leases.take()
                return leases
            server.client.close()
        raise LeaseFailed.no_server(servers=MAX_REDIS_SERVERS)


def _wait(futures: Collection[Future[Any]]) -> None:
    """Wait until all *futures* are done; a signal interrupts it within `SIGNAL_INTERVAL`."""
    while wait(futures, timeout=SIGNAL_INTERVAL).not_done:
        pass


class Forked(WarmstackError):
    """A process that a test forked continues the run of its parent."""

    @classmethod
    def back(cls, *, process: int) -> Forked:
        """The databases belong to *process*, the parent."""
        return cls(
            "A forked process can't use the databases of its parent.",
            why=f"a test forked it from process {process}, and it continued the run",
            todo=[
                "end the child with os._exit",
                "or start it with subprocess, or with multiprocessing's start method spawn",
            ],
        )
