"""What the last run of the same selection needed, begun while pytest imports the test modules.

The remembered servers are greeted, and the templates compared with the project's files; if a build
is due, its child process starts. None of this counts as a use: a run that turns out to need no
database throws it away. Whatever can't be done early is done later, as if nothing had begun.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from pytest_warmstack import originals, server_specs
from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.options import RedisPlan, Settings, is_attribute
from pytest_warmstack.servers import CONNECT_TIMEOUT, RememberedServers
from pytest_warmstack.servers.identity import Service, write_private
from pytest_warmstack.servers.model import Endpoint, RunContext, Server, ServerSpec

if TYPE_CHECKING:
    from pytest_warmstack.postgres import DatabaseName
    from pytest_warmstack.postgres.databases import Databases
    from pytest_warmstack.postgres.template.builder import Builder
    from pytest_warmstack.postgres.template.configurations import Configuration
    from pytest_warmstack.postgres.template.dependencies import FileState

MAX_SELECTIONS: Final = 30
"""How many selections of a project are remembered."""

_JOIN_TIMEOUT: Final = 5.0
"""Seconds that the thread may take to end after it was cancelled."""


class Needs(NamedTuple):
    """What the last run of a selection needed.

    *templates* are folders with tests, and the seeds of their markers. *path* was `sys.path` after
    the collection. With *is_steady*, the collection left the environment as it was.
    """

    services: tuple[Service, ...] = ()
    templates: tuple[tuple[str, tuple[str, ...]], ...] = ()
    path: tuple[str, ...] = ()
    is_steady: bool = True

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> Self:
        """Return the needs in an entry of the file. Raises `TypeError` and `ValueError`."""
        templates = tuple((str(folder), tuple(seeds)) for folder, seeds in plain["templates"])
        services = tuple(map(Service, plain["services"]))
        return cls(services, templates, tuple(map(str, plain["path"])), bool(plain["is_steady"]))


def remember(path: Path, entries: list[Any], selection: object, needs: Needs) -> None:
    """Write what a run of *selection* needed to the file *path*, which has *entries*.

    Nothing is written if it is there already, or if the folder is not writable.
    """
    plain = {"selection": selection, **json.loads(json.dumps(needs._asdict()))}
    others = [each for each in entries if each.get("selection") != selection]
    wanted = [plain, *others][:MAX_SELECTIONS] if needs.services else others
    if (plain if needs.services else others) not in (entries, *entries):
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_private(path, json.dumps(wanted))


class EarlyBuild(NamedTuple):
    """A child process that was started early, for the database *draft*."""

    builder: Builder
    draft: DatabaseName


class HeadStart:
    """The early work of one process; *needs* says what is worth it.

    *ini* is pytest's configuration file. With *builds*, this process also starts the child of a
    build that is due: of the workers of xdist, one does. `differs` is true if one is due.
    """

    def __init__(
        self,
        needs: Needs,
        settings: Settings,
        run_context: RunContext,
        remembered: RememberedServers,
        *,
        ini: Path | None,
        builds: bool,
    ) -> None:
        self._needs = needs
        self._settings = settings
        self._run_context = run_context
        self._remembered = remembered
        self._ini = ini
        self.builds = builds
        self._environ = dict(os.environ)
        self._background = BackgroundLoop()
        self._lock = threading.Lock()
        self._greeted: dict[Service, Future[tuple[Server[Any] | None, str]]] = {}
        self._unwanted: set[Service] = set()
        self._early: dict[tuple[Configuration | None, tuple[str, ...]], EarlyBuild] = {}
        self._compared: Future[None] = Future()
        self._thread: threading.Thread | None = None
        self._file_state: FileState | None = None
        self.differs = False

    def begin(self, services: Collection[Service]) -> None:
        """Greet the servers of *services*, each in a thread.

        The modules for that are imported here: were they imported in a thread, the project's own
        imports could find them half done.
        """
        for service in services:
            is_shared = service is Service.POSTGRES or self._settings.redis is RedisPlan.SHARED
            if not is_shared or self._settings.url(service):
                continue
            spec = server_specs.make(service, self._settings, self._background)
            future = self._greeted[service] = Future()
            thread = originals.Thread(
                target=self._greet,
                args=(spec, future),
                name=f"warmstack-early-{service}",
                daemon=True,
            )
            if service is Service.POSTGRES:
                from pytest_warmstack.postgres.template import templates  # noqa: F401

                self._thread = thread
            thread.start()
        if self._thread is None:
            self._compared.set_result(None)

    @property
    def is_steady(self) -> bool:
        """Whether the environment is what it was when this began."""
        return self._environ == os.environ

    def keep(self, services: Collection[str]) -> None:
        """Let only *services* be taken; end the connections to the others."""
        for service in [each for each in self._greeted if each not in services]:
            self._abandon(service)

    def take(self, service: Service) -> tuple[Server[Any] | None, str] | None:
        """Return the remembered server of *service*, now in use, and why its runtime was chosen.

        The server is None if it doesn't answer. Returns None if it was not greeted.
        """
        future = self._greeted.get(service)
        if future is None or service in self._unwanted:
            return None
        server = None
        try:
            server, why = future.result()
            if server is not None:
                server.client.use(CONNECT_TIMEOUT)
        except Exception:  # Connecting again succeeds, or raises what the user has to read.
            _end(server)
            return None
        finally:
            self._greeted.pop(service, None)
        return server, why

    def file_state(self) -> FileState | None:
        """Return the state of the files that were compared, when that is done."""
        self._compared.result()
        return self._file_state

    def build_for(
        self, configuration: Configuration | None, seeds: tuple[str, ...]
    ) -> EarlyBuild | None:
        """Return the child that was started for a template, when the comparison is done."""
        self._compared.result()
        return self._early.get((configuration, seeds))

    def close(self) -> None:
        """Throw away what was not taken, without waiting for a server. You can close twice."""
        for service in Service:
            self._abandon(service)
        self._background.close()

    def _abandon(self, service: Service) -> None:
        with self._lock:
            self._unwanted.add(service)
            future = self._greeted.pop(service, None)
        if future is not None and future.done() and not future.exception():
            _end(future.result()[0])
        if service is Service.POSTGRES and self._thread is not None:
            self._background.cancel()
            self._thread.join(_JOIN_TIMEOUT)
            for each in self._early.values():
                each.builder.discard()

    # In threads.

    def _greet(self, spec: ServerSpec[Any], future: Future[tuple[Server[Any] | None, str]]) -> None:
        server: Server[Any] | None = None
        try:
            server, why = self._remembered.connect(spec, self._run_context.project, looks=True)
            future.set_result((server, why))
            if server is not None and spec.service is Service.POSTGRES:
                self._compare(server.client)
        except BaseException as error:
            if not future.done():
                future.set_exception(error)
        finally:
            with self._lock:
                is_unwanted = spec.service in self._unwanted
            if is_unwanted:
                _end(server)
            if spec.service is Service.POSTGRES:
                self._compared.set_result(None)

    def _compare(self, databases: Databases) -> None:
        """Compare the templates with the project's files; start the child of the first build."""
        from pytest_warmstack.postgres import DatabaseName, State
        from pytest_warmstack.postgres.template import layers, templates
        from pytest_warmstack.postgres.template.configurations import Configurations
        from pytest_warmstack.postgres.template.dependencies import FileState
        from pytest_warmstack.postgres.template.record import ALEMBIC

        settings, root = self._settings, Path(self._run_context.project.path)
        self._file_state = FileState(str(root), is_early=True)
        configurations = Configurations(settings, root, self._ini)
        for folder, seeds in self._needs.templates:
            configuration = configurations.of(Path(folder))
            made = layers.make(settings, root, self._file_state, configuration, (), seeds)
            request = templates.TemplateRequest(
                layers=made,
                settings=settings,
                file_state=self._file_state,
                say=lambda _: None,
                run=self._run_context.run,
            )
            search = templates.Search(databases, request)
            if outdated := search.outdated():
                self.differs = True
                if self.builds and made:
                    from pytest_warmstack.postgres.template.builder import Builder

                    context = layers.BuildContext(settings, root, self._file_state, configuration)
                    draft = DatabaseName.new(State.BUILDING, search.key)
                    early = self._early[configuration, seeds] = EarlyBuild(Builder(context), draft)
                    is_migrated = ALEMBIC in [each.name for each in outdated]
                    self._start_child(early, databases.endpoint, may_plan=is_migrated)
                return

    def _start_child(self, early: EarlyBuild, endpoint: Endpoint, *, may_plan: bool) -> None:
        """Start the child; with *may_plan*, let it plan the migrations, if that is certain."""
        needs, configuration = self._needs, early.builder.configuration
        with self._lock:
            if Service.POSTGRES in self._unwanted:
                return
            if (
                may_plan
                and needs.is_steady
                and needs.path
                # A function of the project may do more than return a configuration.
                and configuration is not None
                and not configuration.function
                # Before the migrations, the child would be asked about these.
                and not any(map(is_attribute, self._settings.schema))
            ):
                early.builder.plan_ahead(endpoint, str(early.draft), needs.path)
            else:
                early.builder.prepare()


def _end(server: Server[Any] | None) -> None:
    """End the connection to *server*; it may have ended already."""
    if server is not None:
        with suppress(WarmstackError):
            server.client.abandon()
