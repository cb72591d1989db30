"""The pytest hooks. Every pytest run imports this module, so it imports nothing heavy."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Generator
from contextlib import suppress
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_warmstack import options, originals
from pytest_warmstack.options import Isolation, Settings
from pytest_warmstack.session import REQUESTS, SESSION, Session, session_of

if TYPE_CHECKING:
    import argparse

    from pytest_warmstack.postgres.template.template_layer import TemplateLayer

_WIDER: Final = {Isolation.CLASS, Isolation.MODULE, Isolation.SESSION}
"""The isolations in which several tests share a database and commit to it."""


class HookSpecs:
    """The hooks that you can implement in a conftest.py or a plugin."""

    @pytest.hookspec
    def pytest_warmstack_template_layers(self, config: pytest.Config) -> list[TemplateLayer] | None:
        """Return layers to apply to the template after the migrations and before the seed."""


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Declare the hooks of `HookSpecs`."""
    pluginmanager.add_hookspecs(HookSpecs)


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Declare the options."""
    options.add(parser)
    pluginmanager.register(_Exporter(), "warmstack-exporter")


class _Exporter:
    """Sets the variables of `warmstack_env`, before conftest files.

    Plugins such as pytest-env set theirs earlier (`tryfirst`), so `warmstack_env` wins.
    """

    def pytest_load_initial_conftests(
        self, early_config: pytest.Config, parser: pytest.Parser, args: list[str]
    ) -> None:
        """Set them, unless no conftest file is loaded; then `pytest_configure` does it."""
        if early_config.getini("warmstack_env"):
            line = parser.parse_known_args(args, namespace=copy(early_config.option))
            if not line.noconftest:
                _open_session(early_config, line)


def _open_session(config: pytest.Config, line: argparse.Namespace) -> Session:
    """Return the session of *config*; make it, and set its variables, if there is none yet."""
    if SESSION not in config.stash:
        try:
            config.stash[SESSION] = Session(config, line)
            _export(config, line)
        except Exception as error:
            from pytest_warmstack.settings_errors import SettingsError

            if not isinstance(error, SettingsError):
                raise
            raise pytest.UsageError(str(error)) from None
    return config.stash[SESSION]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> Generator[None]:
    """Declare `--reuse-containers`, unless another plugin did: now all plugins are loaded.

    If a conftest file imports an application that lacks variables, write how to set them.
    """
    options.add_reuse(parser, early_config.pluginmanager)
    options.refuse_unknown(args)
    _add_alembic_fixtures(early_config.pluginmanager)
    early_config.pluginmanager.register(_Quiet(), "warmstack-quiet")
    try:
        return (yield)
    except Exception as error:
        from pytest_warmstack import advice

        file = early_config.inipath.name if early_config.inipath else ""
        session = early_config.stash.get(SESSION, None)
        settings = session.settings if session is not None else Settings(file=file)
        if text := advice.missing_variables(error, settings):
            sys.stderr.write(f"warmstack: {text}\n")
        raise


def _add_alembic_fixtures(manager: pytest.PytestPluginManager) -> None:
    """Replace two fixtures of pytest-alembic's plugin, if it is loaded.

    Plugins that conftest files name are loaded later, and their fixtures replace these.
    """
    plugin = sys.modules.get("pytest_alembic.plugin")
    if plugin is not None and manager.is_registered(plugin):
        from pytest_warmstack import alembic_fixtures

        manager.register(alembic_fixtures, "warmstack-alembic-fixtures")


class _Quiet:
    """Suppresses a warning of pytest-asyncio, a dependency, for users who don't use it."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Ignore its warning about an option that is not set, if its mode is the default."""
        has = config.pluginmanager.hasplugin("asyncio")
        if has and (config.option.asyncio_mode or config.getini("asyncio_mode")) == "strict":
            warnings.filterwarnings("ignore", '.*"asyncio_default_fixture_loop_scope" is unset')


def pytest_configure(config: pytest.Config) -> None:
    """Read the settings, and register the fixtures now that pytest-asyncio is loaded."""
    from pytest_warmstack import fixtures

    _watch_terminal(_open_session(config, config.option))
    config.addinivalue_line(
        "markers",
        "warmstack_isolation(word): how the test's database is kept from other tests:"
        " clone, fresh-clone, class, module, session or rollback",
    )
    config.addinivalue_line(
        "markers", "warmstack: the test uses the databases that the variables of warmstack_env name"
    )
    config.addinivalue_line(
        "markers",
        "warmstack_seed(*scripts): fill the test's database: files like big.sql, and functions like"
        " package.module:function, run once for all tests with the same scripts",
    )
    config.pluginmanager.register(fixtures, "warmstack-fixtures")


def _watch_terminal(session: Session) -> None:
    """Give *session* a descriptor of the terminal. Now pytest captures nothing."""
    if not session.is_worker:
        with suppress(OSError):  # Standard output is closed.
            session.terminal = os.dup(1)
            session.config.add_cleanup(partial(os.close, session.terminal))


def _export(config: pytest.Config, line: argparse.Namespace) -> None:
    """Set the variables of `warmstack_env`, if there are any."""
    session = session_of(config)
    if session.settings.env or session.settings.autouse:
        from pytest_warmstack.exports import EXPORTS, Exports

        # The workers of xdist get the controller's command line too.
        has_workers = not session.is_worker and any(
            getattr(line, name, None) for name in ("numprocesses", "tx")
        )
        exports = config.stash[EXPORTS] = Exports(session, has_workers=has_workers)
        config.add_cleanup(exports.end)
        exports.begin()


@pytest.hookimpl(wrapper=True)
def pytest_sessionstart(session: pytest.Session) -> Generator[None, object, object]:
    """Write misspelt settings below pytest's header."""
    session_of(session.config).check_report()
    result = yield
    if not session_of(session.config).is_worker:
        session_of(session.config).write(options.unknown(session.config), quiet=True)
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Begin with what the last run needed, before pytest imports the test modules."""
    option = session.config.option
    if not (option.collectonly or getattr(option, "setupplan", False)):
        session_of(session.config).begin_early()


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Collector) -> None:
    """Declare the fixtures for a shared database of a class or module before it has tests."""
    # pytest calls this for every name in a module; the first call is enough.
    session = session_of(collector.config)
    if session.collector is collector:
        return
    session.collector = collector
    isolation = session.settings.isolation
    if isolation in _WIDER or collector.get_closest_marker("warmstack_isolation") is not None:
        from pytest_warmstack import scopes

        scopes.declare(collector, isolation)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let a test's marker override that of its class or module; request the exported databases."""
    if session_of(item.config).reserved is not None:
        from pytest_warmstack import fixtures
        from pytest_warmstack.exports import EXPORTS

        fixtures.cover(item, item.config.stash[EXPORTS])
    elif item.get_closest_marker("warmstack") is not None:
        from pytest_warmstack.settings_errors import SettingsError

        file = session_of(item.config).settings.file
        name = "the marker warmstack"
        raise pytest.UsageError(str(SettingsError.no_address(name=name, source="", file=file)))
    if any(each.name == "warmstack_isolation" for each in item.own_markers):
        from pytest_warmstack import scopes

        scopes.narrow(item)


@pytest.hookimpl(tryfirst=True)
def pytest_exception_interact(
    node: pytest.Item | pytest.Collector, call: pytest.CallInfo[Any], report: object
) -> None:
    """Explain, once, how to set the variables of an application that can't be imported.

    With `--pdb`, write what a failed test did before the debugger opens: pytest doesn't.
    """
    if isinstance(report, pytest.TestReport) and node.config.getoption("usepdb", default=False):
        from pytest_warmstack import failure_report

        failure_report.show(node.config, report)
    if not isinstance(report, pytest.CollectReport) or call.excinfo is None:
        return
    from pytest_warmstack import advice

    session = session_of(node.config)
    text = advice.missing_variables(call.excinfo.value, session.settings)
    if text and not session.has_advised:
        session.has_advised = True
        report.sections.append(("warmstack: missing variables", text))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config) -> None:
    """Give the workers of xdist, which start now, the id of their run and the addresses."""
    session_of(config).send_early()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Send each worker of xdist the id of its run."""
    session_of(node.config).add_worker(node)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Start what the selected tests need before the first test, whose time doesn't include it."""
    option = session.config.option
    gives_up = session.testsfailed and not option.continue_on_collection_errors
    if option.collectonly or getattr(option, "setupplan", False) or gives_up:
        return
    from pytest_warmstack import fixtures

    own = session_of(session.config)
    if own.reserved is not None and not own.is_worker:
        from pytest_warmstack.exports import EXPORTS

        own.write(session.config.stash[EXPORTS].unmatched(), quiet=True)
    services, tests = fixtures.needs(session.items)
    own.end_early(services, tests)
    if services:
        own.start(services, tests)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a test whose marker `warmstack_seed` can't be used; lead the address to its database."""
    own = session_of(item.config)
    own.test_begun = originals.monotonic()
    if own.reserved is not None:
        from pytest_warmstack import fixtures
        from pytest_warmstack.exports import EXPORTS

        if not fixtures.is_covered(item):
            item.config.stash[EXPORTS].leave_redis()
        else:
            fixtures.return_address(item)
    if item.get_closest_marker("warmstack_seed") is not None:
        from pytest_warmstack import fixtures

        fixtures.check_seeds(item)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Make pytest forget that a timeout or a similar exception interrupted a fixture.

    Otherwise all tests in the fixture's scope get the same exception. Meanwhile, the fixture's
    request is the last one of `REQUESTS`.
    """
    REQUESTS.append(request)
    try:
        return (yield)
    except BaseException as error:
        is_own = str(fixturedef.func.__module__).startswith(f"{__package__}.")
        cause = error
        while cause.__cause__ is not None:  # Python 3.11 wraps what interrupts `__set_name__`.
            cause = cause.__cause__
        if is_own and not isinstance(cause, Exception):
            # pytest finishes only fixtures with a result, and records none for a SystemExit.
            fixturedef.cached_result = fixturedef.cached_result or (None, None, (error, None))
            fixturedef.finish(request)  # type: ignore[arg-type]
        raise
    finally:
        REQUESTS.pop()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Record which tests failed, before their databases are given back, and explain the failures.

    Each attempt of a rerun counts separately. The report's passwords are masked, because it may be
    printed or written for a CI system.
    """
    session = session_of(item.config)
    failed = session.failed
    if call.when == "setup" and item in failed:  # It is run again.
        from pytest_warmstack import failure_report

        failed.discard(item)
        failure_report.forget(item)
    was_failed = item in failed
    if call.excinfo is not None:
        from pytest_warmstack.fixtures import shorten

        shorten(session, item, call.excinfo.value)
        if call.when != "teardown":
            # pytest-retry tears the attempt down before it makes a report.
            failed.add(item)
    report = yield
    if report.failed and call.when != "teardown":
        failed.add(item)
    elif not was_failed:
        failed.discard(item)
    if call.excinfo is not None:
        from pytest_warmstack import advice

        report.sections += advice.sections(item, call.excinfo.value, session.environment)
    if report.failed and call.when != "teardown" and session.environment is not None:
        from pytest_warmstack import failure_report

        failure_report.add(item, report, session)
    has_text = report.longrepr or report.sections or report.user_properties
    if has_text and (secrets := session.secrets()):
        from pytest_warmstack.masking import all_masked

        for name in ("longrepr", "sections", "user_properties"):
            setattr(report, name, all_masked(getattr(report, name), secrets))
    return report


def pytest_enter_pdb(config: pytest.Config) -> None:
    """Note on the database of a test at a breakpoint which test it is."""
    # pytest sets this to the test's id and phase (its documentation, "Examples").
    session_of(config).name_clone(os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" (")[0])


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, object, object]:
    """Release everything, even if other plugins raise an exception as the session ends."""
    own = session_of(session.config)
    try:
        return (yield)
    except KeyboardInterrupt:
        if not own.status:
            raise
        return None
    finally:
        own.close()
        own.write_report()
        session.exitstatus = own.status or session.exitstatus


def pytest_terminal_summary(config: pytest.Config) -> None:
    """Write what tests left behind, and how long the set-up took."""
    session_of(config).write_summary()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Release everything if pytest ended before the session began."""
    if (session := config.stash.get(SESSION, None)) is not None:
        session.close()
