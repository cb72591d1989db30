"""What one pytest process holds: its settings, its environment, and what it writes about the run.

A run is one process, or pytest-xdist's controller and its workers. The controller, or the only
process, owns the servers of the run: it removes those that are not kept, after the workers have
ended.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import warnings
from collections.abc import Collection, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_warmstack import options, originals
from pytest_warmstack.options import Leaks

if TYPE_CHECKING:
    from argparse import Namespace

    from pytest_warmstack.addresses import Reserved
    from pytest_warmstack.environment import Environment, TemplateKey
    from pytest_warmstack.guard import Guard
    from pytest_warmstack.head_start import HeadStart
    from pytest_warmstack.pools import Pools
    from pytest_warmstack.postgres.clones import Clone
    from pytest_warmstack.progress import Progress, Wait
    from pytest_warmstack.report import Ledger
    from pytest_warmstack.servers import RememberedServers
    from pytest_warmstack.servers.model import RunContext
    from pytest_warmstack.signals import SignalWatch

NEEDS: Final = {"_warmstack_postgres": "postgres", "_warmstack_redis": "redis"}
"""The fixtures that all others are built on, and the server that each of them needs.

If you override a fixture of `fixtures`, yours doesn't request them.
"""

_MESSAGE: Final = "warmstack"
"""The key of the data that xdist's controller and workers send to each other."""

_PROGRESS: Final = "warmstack-progress"
"""The key of the execnet channel by which a worker tells the controller what takes long."""

_SILENT: Final = -2
"""The verbosity of `pytest -qq`, which shows no progress."""

_RUN: Final = "PYTEST_WARMSTACK_RUN"
"""The variable with the same data for a new worker, which needs it early."""


class Session:
    """The state of this plugin in one pytest process. Raises `SettingsError`.

    `environment` is what `open` made, None before and after. `failed` has the tests whose last
    attempt failed. `shown` maps the text of an error to the first test that showed it. `in_use`
    maps the id of a test, class or module to its database. `test_begun` is when the set-up of the
    current test began, of `originals.monotonic`. `collector` is the class or module whose
    tests pytest collects now. `has_advised` is true if the user has read which variables are
    missing. `terminal` is a descriptor of what pytest writes to, whatever captures it; None in
    workers and before pytest is configured. `reserved` is what the application has read, if
    `warmstack_env` has lines, and `pools` the connections to that. *line* is the parsed command
    line, if *config* doesn't have it yet.
    """

    def __init__(self, config: pytest.Config, line: Namespace | None = None) -> None:
        self.config = config
        self.settings = options.read(config, line)
        self.environment: Environment | None = None
        self.failed: set[pytest.Item] = set()
        self.shown: dict[str, str] = {}
        self.in_use: dict[str, Clone] = {}
        self.collector: pytest.Collector | None = None
        self.test_begun = 0.0
        self.has_advised = False
        self.terminal: int | None = None
        # A worker of xdist reads conftest files before it has its `workerinput`. Nothing that it
        # starts may take itself for a worker of this run.
        self._early: dict[str, Any] = json.loads(os.environ.pop(_RUN, "{}"))
        self.is_worker = bool(self._early) or hasattr(config, "workerinput")
        self.reserved: Reserved | None = None
        self.pools: Pools | None = None
        self._ledger: Ledger | None = None
        self._signals: SignalWatch | None = None
        self._guard: Guard | None = None
        self._progress: Progress | None = None
        self._progress_lock = threading.Lock()
        self._head_start: HeadStart | None = None
        self._begin = originals.now()
        # The process ids of xdist's workers, in the controller; 0 for other machines.
        self._workers: dict[Any, int] = {}

    def open(self) -> Environment:
        """Return the environment of this process; the first call makes it."""
        if self.environment is None:
            from pytest_warmstack.environment import Environment

            config = self.config
            self._watch_signals()
            self.environment = Environment(
                settings=self.settings,
                run_context=self.run_context(),
                remembered=self.remembered(),
                waiting=self.waiting,
                custom_layers=lambda: config.hook.pytest_warmstack_template_layers(config=config),
                ini=config.inipath,
                worker=self.worker_number(),
                reserved=self.reserved,
                forget_pools=self.pools.forget_pools if self.pools else lambda _: None,
                head_start=self._head_start,
            )
            config.pluginmanager.register(_WarningMask(self.environment))
            self._watch_connections(self.environment)
        return self.environment

    def _watch_connections(self, environment: Environment) -> None:
        """Refuse connections of tests with a database to other databases, until `close`."""
        from pytest_warmstack.guard import Guard, GuardHooks, own_servers

        self._guard = Guard(self.settings, lambda: own_servers(environment))
        self._guard.install()
        self.config.pluginmanager.register(GuardHooks(self._guard, NEEDS))

    def start(self, services: Iterable[str], tests: Mapping[TemplateKey, int]) -> None:
        """Prepare *services* before the first test, and write a line about each.

        *tests* maps each template to the number of tests that need a clone of it. Raises
        `pytest.UsageError` for the errors of `Environment.start`.
        """
        from pytest_warmstack.errors import WarmstackError
        from pytest_warmstack.servers.identity import Service

        environment = self.open()
        try:
            environment.start({Service(each) for each in services}, tests)
        except WarmstackError as error:
            # Workers of xdist have no terminal; their tests show the error.
            if not self.is_worker:
                raise pytest.UsageError(str(error)) from None
        if "redis" in services:
            self.open_redis()
        self._write_header(environment.ledger)

    # What can be done before it is known which tests run.

    def begin_early(self) -> None:
        """Begin with what the last run of this selection needed, while pytest imports modules.

        Only kept servers are remembered. The controller of xdist runs no tests.
        """
        if self._workers or (path := self._needs_file) is None:
            return
        selection = self._selection()
        own = [each for each in self._needs_in(path) if each.get("selection") == selection]
        if not own:
            return
        from pytest_warmstack.head_start import HeadStart, Needs

        try:
            needs = Needs.read(own[0])
        except (KeyError, TypeError, ValueError):
            return
        begun = HeadStart(
            needs,
            self.settings,
            self.run_context(),
            self.remembered(),
            ini=self.config.inipath,
            builds=self.worker_number() == 0,
        )
        used = self.environment.asked_for() if self.environment is not None else ()
        try:
            begun.begin([each for each in needs.services if each not in used])
        except Exception:  # Raised again for the tests that need it.
            begun.close()
            return
        self._head_start = begun
        if self.environment is not None:
            self.environment.head_start = begun

    def end_early(self, services: Collection[str], tests: Collection[TemplateKey]) -> None:
        """Throw away what was begun for other services; remember what this run needs."""
        early = self._head_start
        if early is not None:
            early.keep(services)
            if not services:
                early.close()
        path = self._needs_file
        if path is None or self.worker_number() or not (services or early):
            return
        from pytest_warmstack.head_start import Needs, remember
        from pytest_warmstack.servers.identity import Service

        needs = Needs(
            services=tuple(map(Service, sorted(services))),
            templates=tuple((str(each.folder), each.seeds) for each in tests),
            path=tuple(map(os.path.abspath, sys.path)),
            is_steady=early is None or early.is_steady,
        )
        remember(path, self._needs_in(path), self._selection(), needs)

    @cached_property
    def _needs_file(self) -> Path | None:
        """The file with what runs needed, beside the remembered servers; None without those."""
        if not (self.settings.reuse and self.config.pluginmanager.hasplugin("cacheprovider")):
            return None
        folder = pytest.Cache.cache_dir_from_config(self.config, _ispytest=True)
        return folder / "d" / "warmstack" / "needs.json"

    def _needs_in(self, path: Path) -> list[Any]:
        with suppress(OSError, ValueError):
            entries = json.loads(path.read_bytes())
            if isinstance(entries, list):
                return [each for each in entries if isinstance(each, dict)]
        return []

    def _selection(self) -> list[str]:
        """Return what selects the tests of this run."""
        option = self.config.option
        narrowed = option.keyword, option.markexpr
        return [str(self.config.invocation_params.dir), *self.config.args, *narrowed]

    def open_redis(self) -> Environment:
        """Return the environment, for tests that use Redis."""
        from pytest_warmstack import suite_state

        environment = self.open()
        suite_state.watch(self.config, environment.redis_in_use)
        return environment

    def name_clone(self, test: str) -> None:
        """Note on the database of *test* that the test is in the debugger."""
        users = [user for user in self.in_use if test.startswith(user)]
        if users and self.environment is not None:
            # Prefer the test's own database to the one of its class or module.
            self.environment.name_clone(self.in_use[max(users, key=len)], test)

    @property
    def has_databases(self) -> bool:
        """Whether a test is running that has databases."""
        has_own = self.environment is not None and self.environment.has_database
        return has_own or bool(self._guard and self._guard.test)

    def secrets(self) -> list[str]:
        """Return the texts that reports must not show."""
        reserved = self.reserved.servers.values() if self.reserved else ()
        found = [each.password for each in reserved if each.password]
        return [*found, *(self.environment.secrets() if self.environment else ())]

    def close(self) -> None:
        """Close the environment; the owner of the run also removes what the run leaves behind."""
        if self._signals is not None:
            self._signals.clean_up()
        if self._guard is not None:
            self._guard.uninstall()
        if (environment := self.environment) is not None:
            environment.close(tidy=not self.is_worker)
            self._ledger, self.environment = environment.ledger, None
            if self.is_worker:
                message = {"ledger": environment.ledger.to_json(), "runtimes": environment.used}
                getattr(self.config, "workeroutput", {})[_MESSAGE] = message
        elif self._workers and self._ledger is None:
            self._remove_servers()
        if self._head_start is not None:
            self._head_start.close()
        if self._progress is not None:
            self._progress.close()
        if self._signals is not None:
            self._signals.restore()

    # Other processes.

    def add_worker(self, node: Any) -> None:
        """Send the worker *node* of xdist the id of its run, and the owner of its servers."""
        node.workerinput[_MESSAGE] = self.run
        # execnet calls this in a thread that it has anyway, and with [] when the worker ends.
        channel, name = node.gateway.newchannel(), node.gateway.id
        channel.setcallback(lambda waits: self._receive(name, waits), endmarker=[])
        node.workerinput[_PROGRESS] = channel
        spec = node.gateway.spec
        # There is no public API for this; xdist itself reads it.
        pid = node.gateway._rinfo().pid if spec.popen and not spec.via else 0  # noqa: SLF001
        self._workers[node] = pid
        self._watch_signals()

    def _receive(self, worker: str, waits: list[Any]) -> None:
        """Show what takes long in *worker*; a run without that imports nothing for it."""
        if waits or self._progress is not None:
            self._shown().receive(worker, waits)

    @property
    def status(self) -> int:
        """The exit status of a run that a signal ends, else 0."""
        return self._signals.status if self._signals is not None else 0

    def send_early(self) -> None:
        """Give the workers of xdist that start from now on what they need before conftest files."""
        os.environ[_RUN] = json.dumps(self.run)

    def _watch_signals(self) -> None:
        """Make SIGTERM and SIGHUP end the run properly."""
        if self._signals is not None:
            return
        from pytest_warmstack.signals import SignalWatch

        def stop(name: str, number: int) -> None:
            # If a test suppresses the interruption, the run ends after that test.
            session: Any = self.config.pluginmanager.getplugin("session")
            session.shouldstop = f"{name} ends the run"
            for pid in filter(None, self._workers.values()):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)

        # A worker may get the signal twice: as part of its process group and from its controller.
        self._signals = SignalWatch(stop, patient=self.is_worker)
        self.config.pluginmanager.register(self._signals, "warmstack-signals")

    def _messages(self) -> list[dict[str, Any] | None]:
        """Return what each worker of xdist sent; None for one that crashed before that."""
        outputs = [getattr(node, "workeroutput", None) for node in self._workers]
        return [None if each is None else each.get(_MESSAGE, {}) for each in outputs]

    def _remove_servers(self) -> None:
        """Remove the servers that the workers of xdist started, in all runtimes."""
        from pytest_warmstack import cleanup
        from pytest_warmstack.report import Ledger, Step

        ledger = self._ledger = Ledger()
        messages = self._messages()
        for each in filter(None, messages):
            ledger.merge(Ledger.from_json(each["ledger"]))
        used = {name for each in messages if each for name in each["runtimes"]}
        # A worker that crashed or was interrupted may have used any runtime.
        maybe = cleanup.OWN if None in messages else ()
        idle = self.settings.max_idle
        if used or maybe:
            with self.waiting("removing the servers"):
                lines = cleanup.tidy_all(used, maybe, self.run_context(), idle)
            for line in lines:
                ledger.note(Step("left", 0.0, {"test": "at the end", "trouble": line}))
        elif self.remembered().is_due("cleanup"):
            cleanup.begin(idle)

    def worker_number(self) -> int:
        """Return the number of this process among the workers of xdist: 3 for `gw3`."""
        digits = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
        return int(digits) if self.is_worker and digits.isdigit() else 0

    @cached_property
    def run(self) -> dict[str, Any]:
        """What the processes of a run share.

        It is the id of the run; its owner, the process that outlives the others; the servers that
        are reserved for it; and a number from which its workers choose Redis databases.
        """
        given = self._early or getattr(self.config, "workerinput", {}).get(_MESSAGE)
        if given:
            return dict(given)
        from pytest_warmstack.servers.identity import Process

        own, number = str(Process.current()), int(originals.urandom(2).hex(), 16)
        return {"id": originals.urandom(5).hex(), "owner": own, "base": number, "servers": {}}

    def run_context(self) -> RunContext:
        """Return the context of this run, for its servers."""
        from pytest_warmstack.servers.identity import Process, Project
        from pytest_warmstack.servers.model import RunContext

        return RunContext(
            project=Project(path=os.path.realpath(self.config.rootpath)),
            run=self.run["id"],
            owner=Process.parse(self.run["owner"]) or Process.current(),
            keep=self.settings.reuse,
            start_timeout=self.settings.start_timeout,
        )

    def remembered(self) -> RememberedServers:
        """Return the project's remembered servers; none if the run keeps no servers."""
        from pytest_warmstack.servers import RememberedServers, asked

        has_cache = self.settings.reuse and self.config.pluginmanager.hasplugin("cacheprovider")
        cache = self._cache() if has_cache else None
        return RememberedServers(
            cache and cache.mkdir("warmstack"), asked(self.settings, os.environ)
        )

    def _cache(self) -> pytest.Cache | None:
        """Return pytest's cache. Before conftest files pytest has none yet, so make one."""
        if (found := getattr(self.config, "cache", None)) is not None:
            return found  # type: ignore[no-any-return]
        folder = pytest.Cache.cache_dir_from_config(self.config, _ispytest=True)
        return pytest.Cache(folder, self.config, _ispytest=True)

    # What the run says.

    def waiting(self, text: str) -> AbstractContextManager[Wait]:
        """Show *text* while the context is open, if that takes longer than a second."""
        return self._shown().waiting(text)

    def show_progress(self, descriptor: int) -> None:
        """Show what takes long at *descriptor*, however quiet pytest is. For commands."""
        from pytest_warmstack.progress import Progress, Screen

        self._progress = Progress(Screen(descriptor).display())

    def _shown(self) -> Progress:
        """Return what shows waits: on the terminal, or by the controller of xdist."""
        with self._progress_lock:
            if self._progress is None:
                from pytest_warmstack.progress import Display, Progress, Screen, Sender

                channel = getattr(self.config, "workerinput", {}).get(_PROGRESS)
                display: Display | None = None
                if self.config.get_verbosity() > _SILENT and channel is not None:
                    display = Sender(channel.send)
                elif self.config.get_verbosity() > _SILENT and self.terminal is not None:
                    reporter = self.config.pluginmanager.getplugin("terminalreporter")
                    writer = getattr(reporter, "_tw", None)  # pytest-rich has none.
                    display = Screen(
                        self.terminal,
                        lambda: writer.width_of_current_line if writer else 0,
                        lambda: writer.flush() if writer else None,
                    ).display()
                self._progress = Progress(display)
            return self._progress

    def write(self, lines: Iterable[str], *, quiet: bool = False) -> None:
        """Write *lines* to the terminal; with `pytest -q`, only if they are *quiet*."""
        reporter = self.config.pluginmanager.getplugin("terminalreporter")
        if reporter is not None and (quiet or self.config.get_verbosity() >= 0):
            for line in lines:
                reporter.write_line(f"warmstack: {line}")

    def write_summary(self) -> None:
        """Write what tests left behind, and how long the set-up took."""
        if (ledger := self._ledger) is None:
            return
        from pytest_warmstack import report

        if messages := list(filter(None, self._messages())):
            self._write_header(ledger)  # The workers of xdist can't write it.
        leaks = self.settings.leaks is Leaks.REPORT
        self.write(report.left(ledger.steps, leaks=leaks), quiet=True)
        self.write(report.kept(ledger.steps), quiet=True)
        if self._may_be_misled():
            named = [each.partition("=")[0] for each in self.settings.env if "{db_" in each]
            self.write(report.unreached(ledger.steps, named), quiet=True)
        self.write(report.summary(ledger, workers=len(messages)))
        if self.settings.report == options.YES:
            from pytest_warmstack import cost_report

            self.write(cost_report.lines(self._cost()), quiet=True)

    def check_report(self) -> None:
        """Raise `pytest.UsageError` if the file for the report about the cost can't be written."""
        if self._has_report_file:
            from pytest_warmstack import cost_report
            from pytest_warmstack.settings_errors import SettingsError

            try:
                cost_report.check(self.settings)
            except SettingsError as error:
                raise pytest.UsageError(str(error)) from None

    def write_report(self) -> None:
        """Write the file with the report about the cost, if the settings name one."""
        if self._has_report_file:
            from pytest_warmstack import cost_report

            try:
                cost_report.write(self.settings.report, self._cost())
            except OSError as error:  # The disk may be full since the start.
                text = f"the report {self.settings.report} could not be written: {error.strerror}"
                sys.stderr.write(f"warmstack: {text}\n")

    @property
    def _has_report_file(self) -> bool:
        option = self.config.option
        runs = not (self.is_worker or option.collectonly or getattr(option, "setupplan", False))
        return runs and self.settings.report not in {"", options.YES}

    def _cost(self) -> dict[str, Any]:
        """Return the report about what this process, or each worker of xdist, has measured."""
        from pytest_warmstack import cost_report
        from pytest_warmstack.report import Ledger

        parts = [
            (node.gateway.id, Ledger.from_json(message["ledger"]))
            for node, message in zip(self._workers, self._messages(), strict=True)
            if message
        ]
        return cost_report.document(parts or [("", self._ledger or Ledger())], self.settings)

    def _may_be_misled(self) -> bool:
        """Return whether it matters that no test connected: some tests need no database."""
        option = self.config.option
        narrowed = self.config.args_source is pytest.Config.ArgsSource.ARGS
        is_whole = not (narrowed or option.keyword or option.markexpr)
        return is_whole or bool(self.failed)

    def _write_header(self, ledger: Ledger) -> None:
        """Write what was set up; with `pytest -q`, only what the user may not expect."""
        from pytest_warmstack import report

        settings = self.settings
        if self.config.get_verbosity() < 0:
            self.write(report.fallback(ledger.steps), quiet=True)
            self.write(report.empty(ledger.steps, settings.file), quiet=True)
            return
        lines = report.header(
            ledger.steps,
            reuse=settings.reuse,
            reuse_source=settings.sources.get("reuse", ""),
            begun=self._begin,
            file=settings.file,
        )
        self.write(lines)


class _WarningMask:
    """Masks passwords in the warnings that pytest shows."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    @pytest.hookimpl(tryfirst=True)
    def pytest_warning_recorded(self, warning_message: warnings.WarningMessage) -> None:
        """Mask a warning before the terminal shows it and before xdist sends it."""
        from pytest_warmstack.masking import all_masked

        warning = warning_message.message
        if isinstance(warning, Warning):
            warning.args = all_masked(warning.args, self._environment.secrets())


REQUESTS: Final[list[pytest.FixtureRequest]] = []
"""The requests of the fixtures that are being set up; each one asked for the next.

For each argument `request`, pytest makes two definitions of a fixture, and reads their signatures.
So the fixtures that most tests have take theirs from here.
"""

SESSION: Final = pytest.StashKey[Session]()


def session_of(config: pytest.Config) -> Session:
    """Return the session of the process that *config* belongs to."""
    return config.stash[SESSION]
