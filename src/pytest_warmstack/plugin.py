"""The pytest hooks, and nothing but hooks: declare, start after collection, tell, clean up.

Imported in every pytest run on the machine, so nothing heavy may be imported with it.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress
from inspect import iscoroutinefunction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_warmstack import originals
from pytest_warmstack import settings as options
from pytest_warmstack.settings import Isolation, Leaks, RuntimeName, Settings

if TYPE_CHECKING:
    from pytest_warmstack.environment import Environment
    from pytest_warmstack.report import Ledger
    from pytest_warmstack.servers.identity import Service
    from pytest_warmstack.servers.model import RunContext
    from pytest_warmstack.servers.remembered import RememberedServers
    from pytest_warmstack.suite.signals import SignalWatch

SETTINGS: Final = pytest.StashKey[Settings]()
MADE: Final = pytest.StashKey["Environment"]()
LEDGER: Final = pytest.StashKey["Ledger"]()
RUN: Final = pytest.StashKey[dict[str, str]]()
SIGNALS: Final = pytest.StashKey["SignalWatch"]()
BEGUN: Final = pytest.StashKey[float]()
"""When the run began, in epoch seconds."""

WORKERS: Final = pytest.StashKey[dict[Any, int]]()
"""The workers of xdist, as their controller knows them, and their processes; 0 for far ones."""

ADVISED: Final = pytest.StashKey[bool]()
"""Whether it was said which variables the application misses."""

COLLECTOR: Final = pytest.StashKey[pytest.Collector]()
"""The class or module whose tests are being made."""

_WIDER: Final = {Isolation.CLASS, Isolation.MODULE}
"""The isolations with a database that several tests share, and commit to."""

_WORD: Final = "warmstack"
"""The key under which controller and workers leave word for each other."""


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Declare the hooks that others may implement."""
    from pytest_warmstack import hookspecs

    pluginmanager.add_hookspecs(hookspecs)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    options.add(parser)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> Generator[None]:
    """Declare the option that another plugin may have declared, now that all are loaded.

    And say what to write if a conftest file imports an application that misses its variables.
    """
    options.add_reuse(parser, early_config.pluginmanager)
    options.refuse_unknown(args)
    early_config.pluginmanager.register(_Quiet(), "warmstack-quiet")
    try:
        return (yield)
    except Exception as error:
        from pytest_warmstack.suite import unset

        # The options are not parsed yet, so the lines of `warmstack_env` are not known.
        file = early_config.inipath.name if early_config.inipath else ""
        if told := unset.advice(error, Settings(file=file)):
            sys.stderr.write(f"warmstack: {told}\n")
        raise


def pytest_exception_interact(
    node: pytest.Item | pytest.Collector, call: pytest.CallInfo[Any], report: object
) -> None:
    """Say, once, what to write if a test module imports an application that misses variables."""
    if not isinstance(report, pytest.CollectReport) or call.excinfo is None:
        return
    from pytest_warmstack.suite import unset

    told = unset.advice(call.excinfo.value, node.config.stash[SETTINGS])
    if told and not node.config.stash.get(ADVISED, False):
        node.config.stash[ADVISED] = True
        report.sections.append(("warmstack: variables that are missing", told))


class _Quiet:
    """Keeps pytest-asyncio, which came with us, from advising a project that does not use it."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Leave out its warning of an option that is not set, unless its mode is."""
        has = config.pluginmanager.hasplugin("asyncio")
        if has and (config.option.asyncio_mode or config.getini("asyncio_mode")) == "strict":
            warnings.filterwarnings("ignore", '.*"asyncio_default_fixture_loop_scope" is unset')


def pytest_configure(config: pytest.Config) -> None:
    """Read the settings, and register the fixtures now that pytest-asyncio is loaded."""
    from pytest_warmstack import fixtures

    try:
        config.stash[SETTINGS] = options.settings(config)
    except Exception as error:
        from pytest_warmstack.settings_errors import SettingsError

        if not isinstance(error, SettingsError):
            raise
        raise pytest.UsageError(str(error)) from None
    config.addinivalue_line(
        "markers",
        "warmstack_isolation(word): what keeps the test's database from others:"
        " clone, class, module or rollback",
    )
    config.stash[BEGUN] = originals.now()
    config.stash[WORKERS] = {}
    config.stash[fixtures.FAILED] = set()
    config.stash[fixtures.SHOWN] = {}
    config.stash[fixtures.IN_USE] = {}
    config.stash[fixtures.WORKBENCH] = lambda: set_up(config)
    config.pluginmanager.register(fixtures, "warmstack-fixtures")


@pytest.hookimpl(wrapper=True)
def pytest_sessionstart(session: pytest.Session) -> Generator[None, object, object]:
    """Tell of settings that are mistyped, once, below pytest's header."""
    result = yield
    if not _is_worker(session.config):
        _write(session.config, options.unknown(session.config), quiet=True)
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Collector) -> None:
    """Declare the fixtures of a class's or module's own database before its tests are made."""
    # pytest calls this for every name of a module: only the first time there may be anything to do.
    stash = collector.config.stash
    if stash.get(COLLECTOR, None) is collector:
        return
    stash[COLLECTOR] = collector
    isolation = stash[SETTINGS].isolation
    if isolation in _WIDER or collector.get_closest_marker("warmstack_isolation") is not None:
        from pytest_warmstack import scopes

        scopes.declare(collector, isolation)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let the marker of a test win over that of its class or module."""
    if any(each.name == "warmstack_isolation" for each in item.own_markers):
        from pytest_warmstack import scopes

        scopes.narrow(item)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of xdist which run it is part of, and who owns what it starts."""
    node.workerinput[_WORD] = _run(node.config)
    spec = node.gateway.spec
    # xdist asks for that, too, and no public name tells it.
    pid = node.gateway._rinfo().pid if spec.popen and not spec.via else 0  # noqa: SLF001
    node.config.stash[WORKERS][node] = pid
    _watch(node.config)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Start what the selected tests ask for, before the first of them and outside its time.

    Only a run that demanded a runtime or an image, and can't have it, stops here. All other
    trouble is told by the tests that meet it; the rest of the tests can still run.
    """
    config = session.config
    if not _will_run(session) or not (services := _services(session.items)):
        return
    from pytest_warmstack.errors import WarmstackError

    bench = set_up(config)
    try:
        bench.start(services, _tests(session.items))
    except WarmstackError as error:
        # Workers of xdist have no terminal: there the tests tell it.
        if not _is_worker(config):
            raise pytest.UsageError(str(error)) from None
    if "redis" in services:
        from pytest_warmstack.suite import state

        state.watch(config, bench.redis_in_use)
    _write_header(config, bench.ledger)
    refusal = bench.refusal()
    demanded = config.stash[SETTINGS].runtime is not RuntimeName.AUTO
    if refusal is not None and (demanded or refusal.image) and not _is_worker(config):
        raise pytest.UsageError(str(refusal))


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Let pytest forget that a timeout or the like interrupted a fixture.

    Else all tests in the fixture's scope get the same interruption again.
    """
    try:
        return (yield)
    except BaseException as error:
        is_own = str(fixturedef.func.__module__).startswith(f"{__package__}.")
        if is_own and not isinstance(error, Exception):
            # pytest finishes only what has a result, and notes none for a SystemExit.
            fixturedef.cached_result = fixturedef.cached_result or (None, None, (error, None))
            fixturedef.finish(request)  # type: ignore[arg-type]
        raise


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Mark what failed, before its database is given back; each attempt of a rerun by itself.

    And tell who holds the connections when it failed because PostgreSQL has none to spare, and
    where its files are when there was no space for them. And keep passwords out of the report,
    which may be printed, or written for a CI system.
    """
    from pytest_warmstack.fixtures import FAILED, shorten

    if call.excinfo is not None:
        shorten(item, call.excinfo.value)
    failed = item.config.stash[FAILED]
    if call.when == "setup":
        failed.discard(item)
    known = item in failed
    if call.excinfo is not None and call.when != "teardown":
        # pytest-retry tears the attempt down before there is a report.
        failed.add(item)
    report = yield
    if report.failed and call.when != "teardown":
        failed.add(item)
    elif not known:
        failed.discard(item)
    if call.excinfo is not None and _wants_wider_scope(str(call.excinfo.value)):
        from pytest_warmstack.report import WIDER_SCOPE

        report.sections.append(("warmstack: how to share a database", WIDER_SCOPE))
    environment = item.config.stash.get(MADE, None)
    if (
        call.excinfo is not None
        and environment is not None
        and _wants_plain_url(item, call.excinfo)
    ):
        from pytest_warmstack.report import PLAIN_URL

        report.sections.append(("warmstack: which URL a driver takes", PLAIN_URL))
    if call.excinfo is not None and environment is not None:
        from pytest_warmstack.report import NO_CONNECTION, NO_SPACE, has_state

        error = call.excinfo.value
        if has_state(error, NO_CONNECTION) and (holders := environment.holders()):
            report.sections.append(("warmstack: who holds the connections", "\n".join(holders)))
        if has_state(error, NO_SPACE) and (full := environment.no_space(error)) is not None:
            report.sections.append(("warmstack: where the space is", str(full)))
    if environment is not None and (report.longrepr or report.sections or report.user_properties):
        from pytest_warmstack.masking import all_masked

        secrets = environment.secrets()
        for name in ("longrepr", "sections", "user_properties"):
            setattr(report, name, all_masked(getattr(report, name), secrets))
    return report


class _Warnings:
    """Keeps passwords out of the warnings that pytest shows."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    @pytest.hookimpl(tryfirst=True)
    def pytest_warning_recorded(self, warning_message: warnings.WarningMessage) -> None:
        """Mask a warning before the terminal gets it, and before xdist sends it."""
        from pytest_warmstack.masking import all_masked

        warning = warning_message.message
        if isinstance(warning, Warning):
            warning.args = all_masked(warning.args, self._environment.secrets())


def pytest_enter_pdb(config: pytest.Config) -> None:
    """Note on the database of a test that is at a breakpoint which test it is."""
    from pytest_warmstack.fixtures import IN_USE

    # pytest keeps the id of the test there, with the phase (its documentation, "Examples").
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" (")[0]
    in_use = config.stash[IN_USE]
    if users := [user for user in in_use if test.startswith(user)]:
        # Its own rather than that of its class or module.
        set_up(config).name_clone(in_use[max(users, key=len)], test)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, object, object]:
    """Give everything back, whatever the other plugins raise as the session ends.

    The owner of the run removes what is not kept, after its workers have ended.
    """
    config = session.config
    try:
        return (yield)
    except KeyboardInterrupt:
        if not _status(config):
            raise
        return None
    finally:
        environment = config.stash.get(MADE, None)
        _close(config)
        if environment is not None and _is_worker(config):
            config.workeroutput[_WORD] = {  # type: ignore[attr-defined]
                "ledger": environment.ledger.to_json(),
                "runtimes": environment.used,
            }
        session.exitstatus = _status(config) or session.exitstatus


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Tell what the set-up cost; of the workers of xdist also what they found, who can't write."""
    if (ledger := config.stash.get(LEDGER, None)) is None:
        return
    from pytest_warmstack import report

    reported = list(filter(None, _reports(config)))
    if reported:
        _write_header(config, ledger)
    leaks = config.stash[SETTINGS].leaks is Leaks.REPORT
    _write(config, report.left(ledger.steps, leaks=leaks), quiet=True)
    _write(config, report.kept(ledger.steps), quiet=True)
    if config.get_verbosity() < 0:
        return
    for line in report.summary(ledger, workers=len(reported)):
        terminalreporter.write_line(f"warmstack: {line}")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Give everything back also when the session ended before it began."""
    if config.stash.get(WORKERS, None) is not None:
        _close(config)


def _worker(config: pytest.Config) -> int:
    """Return the number of this process among the workers of xdist: 3 for `gw3`."""
    digits = str(getattr(config, "workerinput", {}).get("workerid", "")).lstrip("gw")
    return int(digits) if digits.isdigit() else 0


def _is_worker(config: pytest.Config) -> bool:
    """Tell whether this process is a worker of xdist."""
    return hasattr(config, "workerinput")


def _reports(config: pytest.Config) -> list[dict[str, Any] | None]:
    """Return what each worker of xdist reported; None for one that crashed before it could."""
    outputs = [getattr(node, "workeroutput", None) for node in config.stash[WORKERS]]
    return [None if each is None else each.get(_WORD, {}) for each in outputs]


def _watch(config: pytest.Config) -> None:
    """See that a SIGTERM or SIGHUP ends the run in order, from now on."""
    if config.stash.get(SIGNALS, None) is not None:
        return
    from pytest_warmstack.suite.signals import SignalWatch

    def told(name: str, number: int) -> None:
        # Where a test swallows the interruption, the run ends after it.
        session: Any = config.pluginmanager.getplugin("session")
        session.shouldstop = f"{name} ends the run"
        for pid in filter(None, config.stash[WORKERS].values()):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    # A worker may be told twice: by the one who told the whole group, and by its controller.
    signals = config.stash[SIGNALS] = SignalWatch(told, patient=_is_worker(config))
    config.pluginmanager.register(signals, "warmstack-signals")


def _status(config: pytest.Config) -> int:
    """Return the exit status of a run that a signal ends, else 0."""
    signals: SignalWatch | None = config.stash.get(SIGNALS, None)
    return signals.status if signals is not None else 0


def _wants_wider_scope(text: str) -> bool:
    """Tell whether pytest says that a fixture of a class or module asked for a test's database."""
    return text.startswith("ScopeMismatch") and "fixture db_" in text


def _wants_plain_url(item: pytest.Item, error: pytest.ExceptionInfo[BaseException]) -> bool:
    """Tell whether *error* is that of a driver, or of a plain engine, that got `db_url`."""
    if error.typename == "MissingGreenlet":
        function = getattr(item, "function", None)
        return "db_url" in getattr(item, "fixturenames", ()) and not iscoroutinefunction(function)
    text = str(error.value)
    return "got 'postgresql+asyncpg'" in text or 'missing "=" after "postgresql+asyncpg:' in text


def _will_run(session: pytest.Session) -> bool:
    """Tell whether fixtures will be set up at all: not so when pytest lists, plans or gives up."""
    option = session.config.option
    gives_up = session.testsfailed and not option.continue_on_collection_errors
    return not (option.collectonly or getattr(option, "setupplan", False) or gives_up)


def _services(items: Iterable[pytest.Item]) -> set[Service]:
    """Return the servers that the fixtures of *items* need."""
    from pytest_warmstack.fixtures import NEEDS

    names: set[str] = set()
    for item in items:
        names.update(getattr(item, "fixturenames", ()))
    if names.isdisjoint(NEEDS):
        return set()
    from pytest_warmstack.servers.identity import Service

    return {Service(service) for name, service in NEEDS.items() if name in names}


def _tests(items: Iterable[pytest.Item]) -> Counter[Path]:
    """Return the folders of those of *items* that need PostgreSQL; how many want a database."""
    found: Counter[Path] = Counter()
    for item in items:
        names = getattr(item, "fixturenames", ())
        if "_warmstack_postgres" in names:
            found[item.path.parent] += "db_url" in names
    return found


def _run(config: pytest.Config) -> dict[str, str]:
    """Return the id of this run and its owner: the process that outlives all the others."""
    if config.stash.get(RUN, None) is None:
        from pytest_warmstack.servers.processes import Process

        own = {"id": originals.urandom(5).hex(), "owner": str(Process.current())}
        config.stash[RUN] = getattr(config, "workerinput", {}).get(_WORD, own)
    return config.stash[RUN]


def _run_context(config: pytest.Config) -> RunContext:
    """Return for whom the servers of this run are."""
    from pytest_warmstack.servers.identity import Project
    from pytest_warmstack.servers.model import RunContext
    from pytest_warmstack.servers.processes import Process

    run, settings = _run(config), config.stash[SETTINGS]
    return RunContext(
        project=Project(path=os.path.realpath(config.rootpath)),
        run=run["id"],
        owner=Process.parse(run["owner"]) or Process.current(),
        keep=settings.reuse,
        start_timeout=settings.start_timeout,
    )


def _remembered(config: pytest.Config) -> RememberedServers:
    """Return where the hints of the project's kept servers are; none for a run that keeps none."""
    from pytest_warmstack.servers.remembered import RememberedServers, asked

    has_cache = config.stash[SETTINGS].reuse and config.pluginmanager.hasplugin("cacheprovider")
    cache = config.cache if has_cache else None
    return RememberedServers(
        cache.mkdir("warmstack") if cache is not None else None,
        asked(config.stash[SETTINGS], os.environ),
    )


def set_up(config: pytest.Config, say: Callable[[str], None] | None = None) -> Environment:
    """Return the set-up of this process, made when it is first asked for.

    *say* is told what takes long; without one it is written to the terminal.
    """
    if config.stash.get(MADE, None) is None:
        from pytest_warmstack.environment import Environment

        settings = config.stash[SETTINGS]
        _watch(config)
        config.stash[MADE] = Environment(
            settings=settings,
            run_context=_run_context(config),
            remembered=_remembered(config),
            say=say or (lambda line: _write(config, [line])),
            ini=config.inipath,
            worker=_worker(config),
            foreign=lambda: config.hook.pytest_warmstack_template_layers(config=config),
        )
        config.pluginmanager.register(_Warnings(config.stash[MADE]))
    return config.stash[MADE]


def _close(config: pytest.Config) -> None:
    """Close the set-up of this process; in the owner, also remove what the run leaves behind."""
    signals = config.stash.get(SIGNALS, None)
    if signals is not None:
        signals.clean_up()
    if (environment := config.stash.get(MADE, None)) is not None:
        environment.close(tidy=not _is_worker(config))
        config.stash[LEDGER] = environment.ledger
        del config.stash[MADE]
    elif config.stash[WORKERS] and config.stash.get(LEDGER, None) is None:
        from pytest_warmstack.report import Ledger

        ledger = config.stash[LEDGER] = Ledger()
        workers = _reports(config)
        for each in filter(None, workers):
            ledger.merge(Ledger.from_json(each["ledger"]))
        _tidy(config, workers)
    if signals is not None:
        signals.restore()


def _tidy(config: pytest.Config, workers: Sequence[dict[str, Any] | None]) -> None:
    """Remove the servers that workers of xdist started, wherever they may have."""
    from pytest_warmstack import cleanup
    from pytest_warmstack.report import Step

    used = {name for each in workers if each for name in each["runtimes"]}
    # One that crashed or was interrupted may have started a server anywhere.
    maybe = cleanup.OWN if None in workers else ()
    idle = config.stash[SETTINGS].max_idle
    for line in cleanup.tidy_all(used, maybe, _run_context(config), idle):
        config.stash[LEDGER].note(Step("left", 0.0, {"test": "at the end", "trouble": line}))
    if not used and not maybe and _remembered(config).is_due("upkeep"):
        cleanup.begin(idle)


def _write_header(config: pytest.Config, ledger: Ledger) -> None:
    """Write what was set up; in a quiet run only what one would not expect."""
    from pytest_warmstack import report

    if config.get_verbosity() < 0:
        _write(config, report.fallback(ledger.steps), quiet=True)
        _write(config, report.empty(ledger.steps, config.stash[SETTINGS].file), quiet=True)
        return
    settings = config.stash[SETTINGS]
    source = settings.sources.get("reuse", "")
    begun = config.stash[BEGUN]
    lines = report.header(
        ledger.steps,
        reuse=settings.reuse,
        reuse_source=source,
        begun=begun,
        file=settings.file,
    )
    _write(config, lines)


def _write(config: pytest.Config, lines: Iterable[str], *, quiet: bool = False) -> None:
    """Write *lines* to the terminal; those that are not for *quiet* runs only if it is none."""
    reporter = config.pluginmanager.getplugin("terminalreporter")
    if reporter is not None and (quiet or config.get_verbosity() >= 0):
        for line in lines:
            reporter.write_line(f"warmstack: {line}")
