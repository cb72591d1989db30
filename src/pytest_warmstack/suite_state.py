"""Distinguishes the suite's changes of a Redis server, which are kept, from those of tests.

What a fixture of a wider scope than the test sets up (settings, functions, scripts, users) is kept
until the run ends, so this module reads the server's state before and after such a fixture. pytest
also turns `setup_module`, `setup_class` and unittest's `setUpClass` into fixtures.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from pytest_warmstack.redis.leases import Leases
    from pytest_warmstack.redis.server_state import Look

_NAME: Final = "warmstack-suite-state"


def watch(config: pytest.Config, leases: Callable[[], Leases | None]) -> None:
    """Begin to watch the fixtures of this run; runs without Redis don't get these hooks.

    *leases* returns the leases of this process, or None if it has none.
    """
    if not config.pluginmanager.hasplugin(_NAME):
        config.pluginmanager.register(_Hooks(leases), _NAME)


def _sets_nothing_up(fixturedef: pytest.FixtureDef[Any]) -> bool:
    """Return whether a fixture is one of this plugin, of pytest-asyncio, or `pytestconfig`."""
    module = str(fixturedef.func.__module__)
    return module.startswith(("pytest_warmstack.", "pytest_asyncio.")) or (
        fixturedef.argname == "pytestconfig"
    )


class _Hooks:
    def __init__(self, leases: Callable[[], Leases | None]) -> None:
        self._leases = leases
        self._in_test = False
        # The last state that was read, if nothing has happened since.
        self._last: Look | None = None

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any]
    ) -> Generator[None, object, object]:
        """Keep the changes that a fixture of a wider scope makes."""
        if fixturedef.scope == "function":
            self._note(in_test=True)
            return (yield)
        if _sets_nothing_up(fixturedef):
            return (yield)
        before = self._last or self._look()
        at_end: list[Look | None] = []
        # Finalizers run in reverse order: this one runs last.
        fixturedef.addfinalizer(lambda: [self._adopt(look) for look in at_end])
        try:
            return (yield)
        finally:
            if self._adopt(before):
                # This one runs first, and only if the fixture changed something.
                fixturedef.addfinalizer(lambda: at_end.append(self._look()))
            elif not self._in_test:
                self._last = before

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self) -> None:
        """Note that a test runs now, even if it has no fixtures."""
        self._note(in_test=True)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self) -> None:
        """Note that the test has ended: now fixtures of a wider scope may end and begin."""
        self._note(in_test=False)

    def _note(self, *, in_test: bool) -> None:
        self._in_test, self._last = in_test, None

    def _look(self) -> Look | None:
        leases = self._leases()
        return leases.look(in_test=self._in_test) if leases is not None else None

    def _adopt(self, before: Look | None) -> bool:
        self._last = None
        leases = self._leases()
        return before is not None and leases is not None and leases.adopt(before)
