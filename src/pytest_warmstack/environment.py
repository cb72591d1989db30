"""The only place that knows the order: settings, servers, template, clone.

It starts what is asked for, once, remembers what failed, and removes at the end what is not kept.
All of it is made in threads of its own, so that a timeout or a Ctrl-C interrupts the test that
waits, and never what it waits for.
"""

from __future__ import annotations

import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import CancelledError, Future, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pytest_warmstack import originals, server_specs
from pytest_warmstack import servers as runtimes
from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.postgres.template.errors import TemplateFailed
from pytest_warmstack.report import Ledger, Step
from pytest_warmstack.servers.errors import RuntimeUnavailable, ServerFailed
from pytest_warmstack.servers.identity import Service
from pytest_warmstack.servers.model import (
    Endpoint,
    NotOurs,
    NotReady,
    OwnRuntime,
    RunContext,
    Runtime,
    Server,
    ServerHandle,
    ServerSpec,
    called,
)
from pytest_warmstack.servers.processes import Process
from pytest_warmstack.servers.remembered import RememberedServer, RememberedServers
from pytest_warmstack.settings import NONE, RedisPlan, RuntimeName, Settings

if TYPE_CHECKING:
    from pytest_warmstack.postgres.admin import Admin as PostgresAdmin
    from pytest_warmstack.postgres.clone_factory import CloneFactory
    from pytest_warmstack.postgres.clones import Clone, Clones, Finding, Shared
    from pytest_warmstack.postgres.template.configurations import Configuration, Configurations
    from pytest_warmstack.postgres.template.dependencies import FileState
    from pytest_warmstack.postgres.template.templates import Layer, Template
    from pytest_warmstack.redis.admin import Admin as RedisAdmin
    from pytest_warmstack.redis.leases import Lease, Leases

T = TypeVar("T")

CONNECT_TIMEOUT: Final = 1.0
"""Seconds that a server at a hinted address may take to answer."""

REDIS_SERVERS: Final = 64
"""How many servers of its own kind there may be where each process has one."""

CLOSE_TIMEOUT: Final = 10.0
"""Seconds that background work may take at the end of the run; what it leaves is swept later."""


_EXTENSION: Final = re.compile(
    r'extension "([^"]+)" is not available|/([\w-]+)\.control"|/([\w-]+)\.so": '
)
"""Where PostgreSQL's words name an extension, or a library of one, that is not there."""


@dataclass
class Environment:
    """The set-up of one process. Everything is made when it is first asked for, once.

    *say* tells the user what takes long; *foreign* gives the layers of the template that others
    add; *ini* is the configuration file that pytest uses; *worker* is the number of this process
    among those of its run. What the set-up did is entered in `ledger`; `used` names the
    runtimes that were asked for a server.
    """

    settings: Settings
    run_context: RunContext
    remembered: RememberedServers
    say: Callable[[str], None]
    foreign: Callable[[], Sequence[object]] = tuple
    ini: Path | None = None
    worker: int = 0
    ledger: Ledger = field(default_factory=Ledger)

    def __post_init__(self) -> None:
        self._pid = os.getpid()
        self._made: dict[str, Future[Any]] = {}
        self._making = threading.Lock()
        self._begun: dict[str, Future[Any]] = {}
        self._ending = False
        self._stack = ExitStack()
        self._background = BackgroundLoop()
        self._expected: Counter[Configuration | None] = Counter()
        self._templates: list[tuple[Template, CloneFactory]] = []
        self._sweep_begun: Future[Any] | None = None
        self.used: list[str] = []
        self._specs: dict[Service, ServerSpec[Any]] = {}

    def start(self, services: Collection[Service], tests: Mapping[Path, int]) -> None:
        """Begin to make *services* ready, all at the same time, and wait until they are.

        *tests* tells by folders how many tests will ask for a database. Errors are not raised here:
        whoever asks for the thing gets them. But it raises `TemplateFailed` before it starts
        anything if tests would get an empty database, and Alembic's configuration is elsewhere.
        """
        for folder, count in tests.items():
            with suppress(WarmstackError):
                self._expected[self._alembic(folder)] += count
        if self._expected[None]:
            self._see_that_empty_is_meant()
        self._specs = {service: self._spec(service) for service in services}
        begin: dict[Service, Callable[[], Future[Any]]] = {
            Service.POSTGRES: lambda: self._begin("templates", self._make_templates),
            Service.REDIS: lambda: self._begin("lease", lambda: self._leases().take()),
        }
        wait([begin[service]() for service in services])

    def postgres(self) -> Server[PostgresAdmin]:
        """Return the PostgreSQL server."""
        return self._get("postgres", self._postgres)

    def redis(self) -> Server[RedisAdmin]:
        """Return the Redis server; if each process has its own, this process's one."""
        if self.settings.redis is RedisPlan.PER_PROCESS:
            return self.leases().server
        return self._get("redis", self._redis)

    def folders(self) -> list[Path]:
        """Return a folder for each configuration that tests may ask for: the root's, else all."""
        root = Path(self.run_context.project.path)
        with suppress(WarmstackError):
            if not self.settings.alembic:
                return [each.folder for each in self._configurations().all()] or [root]
        return [root]

    def clones(self, folder: Path) -> Clones:
        """Return the clones of the template for the tests in *folder*; it is found or built."""
        alembic = self._alembic(folder)
        return self._get(f"clones{_of(alembic)}", lambda: self._clones(alembic))

    def leases(self) -> Leases:
        """Return the leases of this process."""
        return self._get("leases", self._leases)

    def lease(self) -> Lease:
        """Return this process's Redis databases, as they are."""
        return self.leases().take()

    def redis_handle(self) -> ServerHandle:
        """Return the Redis server for the suite; its URL leads to this process's own database."""
        lease = self.lease()
        return self.leases().server.handle(lease.index)

    def redis_in_use(self) -> Leases | None:
        """Return the leases of this process if it has any, without making them."""
        leases: Leases | None = self._had("leases") if self._pid == originals.getpid() else None
        return leases

    def take_clone(self, folder: Path) -> Clone:
        """Return a migrated database for one test, which lies in *folder*."""
        clones = self.clones(folder)
        with self.ledger.timed("clone"):
            return self._telling_place(clones.take)

    def name_clone(self, clone: Clone, test: str) -> None:
        """Note on a database that *test* uses it, for `warmstack psql`: it is in a debugger."""
        keepers: list[CloneFactory] = self._all("keeper")
        if keepers:
            with suppress(WarmstackError):
                keepers[0].name(clone, test)

    def give_back(self, clone: Clone, folder: Path, test: str, *, failed: Sequence[str]) -> None:
        """Take back the database of *test*, which is done; keep it for the tests that *failed*."""
        if failed and self._templates and self.settings.keep_failed:
            self.clones(folder).keep(clone, ", ".join(failed))
        else:
            self.clones(folder).give_back(clone, test)
        self._sweep()

    def borrow_clone(self, folder: Path) -> Shared:
        """Return the database of the tests in *folder* that undo what they do."""
        clones = self.clones(folder)
        with self.ledger.timed("rollback" if clones.is_shared else "clone"):
            return self._telling_place(clones.borrow)

    def restore_clone(self, shared: Shared, folder: Path, test: str) -> None:
        """Take back the shared database after *test*."""
        self.clones(folder).restore(shared, test)
        self._sweep()

    def holders(self) -> list[str]:
        """Return who holds PostgreSQL's connections, as far as that can be asked."""
        keepers: list[CloneFactory] = self._all("keeper")
        try:
            return keepers[0].holders() if keepers else []
        except WarmstackError:
            return []

    def no_space(self, error: BaseException) -> ServerFailed | None:
        """Return what to tell of *error*, if the files of an embedded PostgreSQL found no room."""
        server: Server[Any] | None = self._had("postgres")
        if server is None or server.runtime != RuntimeName.EMBEDDED:
            return None
        from pytest_warmstack.servers import embedded

        folder = embedded.place_of(server.id)
        return embedded.no_space(error, server.title, folder) if folder is not None else None

    def _telling_place(self, make: Callable[[], T]) -> T:
        """Return what *make* gives; an error for want of space names the place."""
        try:
            return make()
        except WarmstackError as error:
            if (full := self.no_space(error)) is not None:
                raise full from error
            self._name_extensions(error)
            raise

    def _name_extensions(self, error: WarmstackError) -> None:
        """Add the ways to an extension to *error*, if an embedded PostgreSQL lacks it."""
        server: Server[Any] | None = self._had("postgres")
        missing = _EXTENSION.search(error.why)
        if missing is None or server is None or server.runtime != RuntimeName.EMBEDDED:
            return
        from pytest_warmstack.postgres.native import NativePostgres

        native = self._spec(Service.POSTGRES).native("")
        if isinstance(native, NativePostgres):
            name = next(filter(None, missing.groups()))
            error.todo = (*native.extension_hints(name), *error.todo[-1:])

    def take_lease(self, test: str) -> Lease:
        """Return this process's Redis databases, empty for *test*."""
        leases = self.leases()
        with self.ledger.timed("flush"):
            return leases.acquire(test)

    def refusal(self) -> RuntimeUnavailable | None:
        """Return why no runtime could be had, if that is what happened."""
        for name in ("runtime", *(f"external {service}" for service in Service)):
            made = self._made.get(name)
            error = made.exception() if made is not None and made.done() else None
            if isinstance(error, RuntimeUnavailable):
                return error
        return None

    def secrets(self) -> list[str]:
        """Return what no report may show: passwords, and the secrets that the user configured."""
        from pytest_warmstack.masking import password_of, secrets_of

        leases = self._had("leases")
        servers = (self._had("postgres"), self._had("redis"), leases and leases.server)
        return [
            *map(password_of, (self.settings.postgres_url, self.settings.redis_url)),
            *(each.endpoint.password for each in servers if each is not None),
            *secrets_of((*self.settings.env, *self.settings.postgres_env)),
        ]

    def errors(self) -> list[BaseException]:
        """Return what went wrong so far, each error once."""
        found = [made.exception() for made in self._made.values() if made.done()]
        return list({id(error): error for error in found if error is not None}.values())

    def close(self, *, tidy: bool) -> None:
        """Give everything back; with *tidy*, remove what this run, and dead ones, leave behind.

        Closing twice is fine. One failure does not keep the rest from being cleaned. In a process
        that was forked from this one it does nothing: all of it is still its parent's.
        """
        if self._pid != os.getpid():
            return
        self._ending = True
        # One that has not started does not start any more.
        begun = [future for future in self._begun.values() if not future.cancel()]
        if not all(future.done() for future in begun):
            # The run ends while it is being made ready: no test waits for a template any more.
            for layers in self._all("layers"):
                for layer in layers:
                    layer.discard()
            wait(begun, timeout=CLOSE_TIMEOUT)
        begin = originals.monotonic()
        with ExitStack() as last:
            last.callback(self._background.close)
            if (chosen := self._had("runtime")) is not None:
                runtime: OwnRuntime = chosen[0]
                last.callback(runtime.close)
                if tidy:
                    last.callback(self._tidy, runtime)
            elif tidy and self.remembered.is_due("upkeep"):
                from pytest_warmstack import cleanup

                # A run that reuses its servers asks no engine anything.
                last.callback(cleanup.begin, self.settings.max_idle)
            last.push(self._stack.pop_all())
        self._made.clear()
        if self.ledger.steps:
            self.ledger.note(Step("end", originals.monotonic() - begin))

    def _tidy(self, runtime: OwnRuntime) -> None:
        """Remove what this run, and dead ones, leave; one line names what can't be removed."""
        from pytest_warmstack import cleanup

        for line in cleanup.tidy(runtime, self.run_context.run, self.settings.max_idle):
            self._found("at the end", {"trouble": line})

    def _had(self, name: str) -> Any:
        """Return what was made under *name*; None when it was not, or could not be."""
        made = self._made.get(name)
        return made.result() if made is not None and made.done() and not made.exception() else None

    def _all(self, kind: str) -> list[Any]:
        """Return what was made of *kind*, for one Alembic configuration after the other."""
        names = [name for name in list(self._made) if name.split(" ")[0] == kind]
        return [found for name in names if (found := self._had(name)) is not None]

    def _get(self, name: str, make: Callable[[], T]) -> T:
        """Return what *make* gives in a thread of its own; it has *name* as what `_once` keeps.

        If the wait is interrupted, the thread goes on, and the next test waits for the rest of it.
        """
        if self._pid != os.getpid():
            raise Forked.back(process=self._pid)
        made: Future[T] | None = self._made.get(name)
        if made is None or not made.done():
            made = self._begun.get(name)
            if made is None or made.done():
                made = self._begin(name, make)
        return made.result()

    def _begin(self, name: str, make: Callable[[], T]) -> Future[T]:
        """Begin to *make* something in a thread of its own."""
        future: Future[T] = Future()

        def run() -> None:
            # Not before it runs: a start that was interrupted is nothing to wait for.
            self._begun[name] = future
            _settle(future, make)

        originals.Thread(target=run, name=f"warmstack-{name}", daemon=True).start()
        return future

    def _once(self, name: str, make: Callable[[], T]) -> T:
        """Return what *make* gave the first time; an `Exception` is remembered and raised again.

        What is none, such as a SystemExit of the project's own code, ends this attempt alone:
        other threads that wait for it try themselves.
        """
        own: Future[T] = Future()
        while True:
            with self._making:
                made: Future[T] = self._made.setdefault(name, own)
            if made is own:
                _settle(own, make)
            error = made.exception()
            if error is None or isinstance(error, Exception):
                return made.result()
            with self._making:
                if self._made.get(name) is made:
                    del self._made[name]
            if made is own:
                return made.result()

    def _postgres(self, prepare: Callable[[], None] | None = None) -> Server[PostgresAdmin]:
        return self._once("postgres", lambda: self._ensure(self._spec(Service.POSTGRES), prepare))

    def _redis(self) -> Server[RedisAdmin]:
        return self._once("redis", lambda: self._ensure(self._spec(Service.REDIS)))

    def _configurations(self) -> Configurations:
        from pytest_warmstack.postgres.template.configurations import Configurations

        root = Path(self.run_context.project.path)
        return self._once("configurations", lambda: Configurations(self.settings, root, self.ini))

    def _alembic(self, folder: Path) -> Configuration | None:
        """Return Alembic's configuration for the tests in *folder*."""
        name = "alembic" if self.settings.alembic else f"alembic {folder}"
        return self._once(name, lambda: self._configurations().of(folder))

    def _clones(self, alembic: Configuration | None) -> Clones:
        name = f"clones{_of(alembic)}"
        return self._once(name, lambda: self._telling_place(lambda: self._make_clones(alembic)))

    def _leases(self) -> Leases:
        return self._once("leases", self._make_leases)

    def _ensure(
        self, spec: ServerSpec[Any], prepare: Callable[[], None] | None = None
    ) -> Server[Any]:
        """Return the server of *spec*: at the hinted address, else from the runtime.

        *prepare* is called before the runtime starts it.
        """
        begin = originals.monotonic()
        server, why = self._knock(spec)
        if server is None:
            runtime, why = self._runtime(spec)
            if prepare is not None:
                prepare()
            server = runtime.ensure(spec)
            if self.run_context.keep and not server.foreign:
                self.remembered.write(spec.key, _hint(server, why, self.run_context.project.id))
        self._stack.callback(server.client.close)
        self.ledger.note(
            Step(
                str(spec.service),
                originals.monotonic() - begin,
                {
                    "title": f"{server.title} {called(server.client)}",
                    "place": server.endpoint.place,
                    "runtime": server.runtime,
                    "why": why,
                    "what": server.what,
                    "origin": server.origin,
                    "reason": server.reason,
                    "since": "" if server.foreign else str(server.since),
                },
            )
        )
        return server

    def _knock(self, spec: ServerSpec[Any]) -> tuple[Server[Any] | None, str]:
        """Return the kept server at the hinted address, if it is still the one asked for.

        Then no engine is asked, and nothing that speaks to one is imported.
        """
        hint = self.remembered.read(spec.key) if self.run_context.keep and not spec.url else None
        # The project as well: who copies a checkout copies pytest's cache with it.
        if hint is None or hint.project != self.run_context.project.id:
            return None, ""
        if hint.fingerprint != spec.fingerprint(hint.runtime):
            return None, ""
        endpoint = Endpoint(host=hint.host, port=hint.port, password=hint.password)
        try:
            client = spec.connect(endpoint, hint.fingerprint, CONNECT_TIMEOUT)
        except (NotReady, NotOurs):
            return None, ""
        server = Server(
            service=spec.service,
            title=spec.title,
            runtime=hint.runtime,
            id=hint.id,
            fingerprint=hint.fingerprint,
            endpoint=endpoint,
            client=client,
            what=hint.what,
            origin="reused",
            since=hint.since,
        )
        return server, hint.why

    def _runtime(self, spec: ServerSpec[Any]) -> tuple[Runtime, str]:
        """Return the one runtime for all the servers of this process, and why it is this one."""
        name = self.settings.runtime
        if spec.url:
            return self._once(
                f"external {spec.service}",
                lambda: (runtimes.elsewhere(self.run_context, self.say), ""),
            )
        wanted = {each.service: each for each in (*self._specs.values(), spec) if not each.url}

        def choose() -> tuple[OwnRuntime, str]:
            chosen = runtimes.choose(name, self.run_context, list(wanted.values()), self.say)
            self.used.append(str(chosen[0].name))
            return chosen

        runtime, why = self._once("runtime", choose)
        if spec.service not in self._specs:
            # Asked for by a test as it ran: the choice was made without it.
            self._specs[spec.service] = spec
            runtime.check([spec], self.say)
        return runtime, why

    def _spec(self, service: Service) -> ServerSpec[Any]:
        """Return what the server looks like; only now its driver is imported."""
        return server_specs.make(service, self.settings, self._background)

    def _make_templates(self) -> None:
        """Make the templates that tests will ask for, one after the other, or the server alone."""
        for alembic, count in self._expected.items():
            if alembic or count:
                with suppress(Exception):  # Whoever asks for it gets it.
                    self._clones(alembic)
        self._postgres()

    def _see_that_empty_is_meant(self) -> None:
        """Raise `TemplateFailed` if databases would be empty, and there is a configuration below.

        Tests that make their tables themselves say so: `warmstack_alembic = none`.
        """
        try:
            if self.settings.alembic == NONE or self._layers(None):
                return
        except Exception:
            return  # Whoever needs them gets it.
        configurations = self._configurations()
        below = [each.name for each in configurations.below()]
        if found := below or configurations.named_otherwise():
            raise TemplateFailed.elsewhere(
                found=found, root=self.run_context.project.path, file=self.settings.file
            )

    def _make_clones(self, alembic: Configuration | None) -> Clones:
        from pytest_warmstack.postgres.clone_factory import CloneFactory
        from pytest_warmstack.postgres.clones import Clones
        from pytest_warmstack.postgres.template import templates

        if alembic is None:
            self._see_that_empty_is_meant()
        server = self._postgres(lambda: self._prepare_layers(alembic))
        if self._ending:
            raise CancelledError
        admin = server.client
        begin = originals.monotonic()
        settings, run_context = self.settings, self.run_context
        layers = self._layers(alembic)
        # Somebody else's server stays, and what stands ready on it serves the next run, of anybody.
        keep = run_context.keep or server.foreign
        made = templates.ensure(
            admin,
            layers,
            file_state=self._file_state(),
            depends=settings.depends,
            ignore=settings.depends_ignore,
            keep=keep,
            rebuild=settings.rebuild,
            run=run_context.run,
            project=run_context.project.slug,
            # A waiting process may wait for the whole build of another, and no longer.
            timeout=settings.migrate_timeout,
            say=self.say,
        )
        self.ledger.note(
            Step(
                "template",
                originals.monotonic() - begin,
                {
                    "origin": made.origin,
                    "text": made.text,
                    "how": made.how,
                    "why": made.why,
                    "of": alembic.name if alembic else "",
                    "empty": "" if layers or settings.alembic == NONE else "yes",
                },
            )
        )
        clone_factory = self._once(
            f"keeper{_of(alembic)}",
            lambda: CloneFactory(admin, made.name, run_context.project.slug, run_context.run),
        )
        expected = self._expected[alembic]
        clone_factory.open(many=expected > settings.clones_ahead)
        clones = Clones(
            clone_factory,
            ahead=settings.clones_ahead,
            expected=expected,
            stock=settings.clones_ahead if keep else 0,
            keep=settings.keep_failed,
            found=self._found_by_clones,
        )
        self._stack.callback(clones.close, timeout=CLOSE_TIMEOUT)
        if keep:
            self._templates.append((made, clone_factory))
            self._sweep_begun = None
            self._stack.callback(self._swept, clones)
        return clones

    def _sweep(self) -> Future[Any] | None:
        """Begin to drop what dead runs left, once, and not before the first test is done."""
        if self._templates and self._sweep_begun is None:
            self._sweep_begun = self._sweep_again()
        return self._sweep_begun

    def _sweep_again(self) -> Future[Any]:
        """Begin to drop what dead runs left; note that this run uses its templates."""
        from pytest_warmstack.postgres.template import templates

        settings, made = self.settings, [each for each, _ in self._templates]
        return self._templates[0][1].sweep(
            lambda listed: templates.doomed(
                listed,
                settings.keep_templates,
                current={each.name for each in made},
                stock=settings.clones_ahead,
                failed=settings.keep_failed,
                run=self.run_context.run,
                idle=settings.max_idle,
            ),
            notes=[note for each in made for note in each.notes()],
        )

    def _swept(self, clones: Clones) -> None:
        """Wait for the sweep to end; the next run sweeps what is left then."""
        if (sweep := self._sweep()) is not None:
            wait([sweep], timeout=CLOSE_TIMEOUT)
        if clones.has_saved:
            # The databases of earlier runs' failed tests make room for those of this one.
            wait([self._sweep_again()], timeout=CLOSE_TIMEOUT)

    def _found_by_clones(self, each: Finding) -> None:
        if each.kept:
            self.ledger.note(Step("kept", 0.0, {"test": each.test, "name": each.kept}))
        else:
            facts = each.leak._asdict() if each.leak else {"trouble": each.trouble}
            self._found(each.test, facts)

    def _found(self, test: str, facts: Mapping[str, str]) -> None:
        """Enter what a test left behind."""
        self.ledger.note(Step("left", 0.0, {"test": test, **facts}))

    def _prepare_layers(self, alembic: Configuration | None) -> None:
        """Begin to build the template before there is a server for it.

        Not in the workers of xdist: one of them will build, and the others would only compete.
        """
        if self.run_context.owner != Process.current():
            return
        with suppress(WarmstackError):  # It is raised where the layers are needed.
            for layer in self._layers(alembic):
                self._stack.callback(layer.discard)
                layer.prepare()

    def _layers(self, alembic: Configuration | None) -> list[Layer]:
        """Return the layers of the template that has the migrations of *alembic*."""
        from pytest_warmstack.postgres.template import layers

        root = Path(self.run_context.project.path)
        foreign = self._once("foreign", self.foreign)
        return self._once(
            f"layers{_of(alembic)}",
            lambda: layers.make(self.settings, root, self._file_state(), alembic, foreign),
        )

    def _file_state(self) -> FileState:
        """Return the state of the project's files, as they are looked at for the first time."""
        from pytest_warmstack.postgres.template.dependencies import FileState

        return self._once("present", lambda: FileState(self.run_context.project.path))

    def _make_leases(self) -> Leases:
        from pytest_warmstack.redis.leases import Leases

        def on(server: Server[RedisAdmin]) -> Leases:
            connect = self._spec(Service.REDIS).connect
            return Leases(
                server,
                lambda: connect(server.endpoint, server.fingerprint, CONNECT_TIMEOUT),
                count=self.settings.redis_databases,
                whole=self.settings.redis is RedisPlan.PER_PROCESS,
                found=lambda test, trouble: self._found(test, {"trouble": trouble}),
            )

        if self.settings.redis is RedisPlan.SHARED:
            leases = on(self._redis())
        elif self.settings.redis_url:
            from pytest_warmstack.redis.errors import LeaseFailed

            raise LeaseFailed.not_whole()
        else:
            leases = self._first_free(on)
        self._stack.callback(leases.close)
        return leases

    def _first_free(self, on: Callable[[Server[RedisAdmin]], Leases]) -> Leases:
        """Return the lease of a server that no other process has; start one if there is none.

        Each worker of xdist begins at another number, so that not all want the same one first.
        """
        from pytest_warmstack.redis.errors import LeaseFailed

        numbers = range(1, REDIS_SERVERS + 1)
        for number in sorted(numbers, key=lambda each: each != self.worker + 1):
            server = self._ensure(server_specs.make(Service.REDIS, self.settings, number=number))
            leases = on(server)
            with suppress(LeaseFailed):
                leases.take()
                return leases
            server.client.close()
        raise LeaseFailed.no_server(servers=REDIS_SERVERS)


def _of(alembic: Configuration | None) -> str:
    """Return what tells things apart that each Alembic configuration has."""
    return f" {alembic.name}" if alembic else ""


def _hint(server: Server[Any], why: str, project: str) -> RememberedServer:
    """Return what the next run needs to find *server*, and why it is in this runtime."""
    return RememberedServer(
        runtime=server.runtime,
        fingerprint=server.fingerprint,
        host=server.endpoint.host,
        port=server.endpoint.port,
        password=server.endpoint.password,
        id=server.id,
        what=server.what,
        since=server.since,
        why=why,
        project=project,
    )


def _settle(future: Future[T], make: Callable[[], T]) -> None:
    """Let *future* have what *make* gives or raises, unless it was cancelled."""
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(make())
        except BaseException as error:
            future.set_exception(error)


class Forked(WarmstackError):
    """A process that was forked from the one that runs the tests goes on with them."""

    @classmethod
    def back(cls, *, process: int) -> Forked:
        """Tell that *process* is the one whose databases these are."""
        return cls(
            "This process has no databases of its own.",
            why=f"it was forked from process {process}, by a test, and came back into the run",
            looked_at=["the id of this process"],
            todo=[
                "end the child with os._exit, which leaves the run to its parent",
                "or start it with subprocess, or with multiprocessing's method spawn",
            ],
        )
