"""Gives `db_url`, `db_engine` and the like the scope of the database behind them.

With the isolation `class`, `module` or `session` they have that scope, so a fixture that seeds the
shared database can request them. pytest fixes the scope of a fixture when it is declared, so this
module declares them again for each class or module that shares a database. For the scope `session`
these are several fixtures of one name, so what they share is made by `fixtures.once`.
"""

from __future__ import annotations

from typing import Any, Final

import pytest

from pytest_warmstack import fixtures

_SCOPE: Final = pytest.StashKey[str]()
"""The key of the scope that these fixtures have in a class or module."""

_FIXTURES: Final[dict[str, dict[str, Any]]] = {
    scope: {
        "db_url": url,
        "db_dsn": fixtures.plain_db_url,
        "db_address": fixtures.address_of_db_url,
        "db_engine": fixtures.clone_engine,
        "db_sync_engine": fixtures.clone_sync_engine,
        "db_factory": fixtures.database_factory,
    }
    for scope, url in (("class", fixtures.class_db_url), ("module", fixtures.module_db_url))
}
_FIXTURES["session"] = {
    **_FIXTURES["class"],
    "db_url": fixtures.session_db_url,
    "db_engine": fixtures.session_engine,
    "db_sync_engine": fixtures.session_sync_engine,
}
_FIXTURES["function"] = {
    **_FIXTURES["class"],
    "db_url": fixtures.function_db_url,
    "db_engine": fixtures.function_db_engine,
    "db_sync_engine": fixtures.function_db_sync_engine,
}


def declare(collector: pytest.Collector, isolation: str) -> None:
    """Declare the fixtures for a class or module if they have another scope in it.

    *isolation* is the value of the setting; a marker overrides it. If you override one of the
    fixtures, this declares nothing.
    """
    if _SCOPE in collector.stash:
        return
    around = next(
        (each.stash[_SCOPE] for each in collector.iter_parents() if _SCOPE in each.stash),
        "function",
    )
    marker = collector.get_closest_marker("warmstack_isolation")
    scope = isolation if marker is None else "".join(map(str, marker.args))
    if scope not in _FIXTURES:
        scope = "function"
    if scope == "class" and not isinstance(collector, pytest.Class):
        scope = around  # Tests outside a class share nothing.
    if scope != around and not _are_overridden(collector):
        for name, function in _FIXTURES[scope].items():
            _register(collector, name, function, scope)
    collector.stash[_SCOPE] = scope


def narrow(item: pytest.Item) -> None:
    """Give a test that has its own marker the fixtures of the scope `function`.

    These check the marker, which the shared fixtures of its class or module can't. pytest has no
    public API to replace a fixture for one item.
    """
    if not isinstance(item, pytest.Function):
        return
    # The fixtures that pytest found for each name; the closest one is last.
    declared: dict[str, Any] = item._fixtureinfo.name2fixturedefs  # noqa: SLF001 - see above
    for name in declared.keys() & _FIXTURES["function"].keys():
        if len({each.scope for each in declared[name]}) > 1:
            declared[name] = [each for each in declared[name] if each.scope == "function"]
    item._initrequest()  # noqa: SLF001 - before pytest 9 the request has a copy


def _are_overridden(collector: pytest.Collector) -> bool:
    manager: Any = collector.session._fixturemanager  # noqa: SLF001 - pytest has no public name
    found = [manager.getfixturedefs(name, collector) for name in _FIXTURES["function"]]
    return not all(each and each[-1].func.__module__ == fixtures.__name__ for each in found)


def _register(collector: pytest.Collector, name: str, function: Any, scope: Any) -> None:
    if hasattr(pytest, "register_fixture"):  # Since pytest 9.1.
        pytest.register_fixture(name=name, func=function, node=collector, scope=scope)
        return
    manager: Any = collector.session._fixturemanager  # noqa: SLF001
    manager._register_fixture(name=name, func=function, nodeid=collector.nodeid, scope=scope)  # noqa: SLF001
