"""Real PostgreSQL and Redis for pytest, kept warm; each test has a migrated database of its own.

Import the public names from here, for annotations. Everything else may change.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec

    from pytest_warmstack.errors import WarmstackError
    from pytest_warmstack.factory import Database, DatabaseFactory
    from pytest_warmstack.postgres import DatabaseAddress
    from pytest_warmstack.postgres.template.template_layer import TemplateLayer
    from pytest_warmstack.queries import Queries, Query
    from pytest_warmstack.servers.model import ServerHandle

    __version__: str

__all__ = [
    "Database",
    "DatabaseAddress",
    "DatabaseFactory",
    "Queries",
    "Query",
    "ServerHandle",
    "TemplateLayer",
    "WarmstackError",
    "__version__",
]

_MODULES: Final = {
    "Database": "factory",
    "DatabaseAddress": "postgres",
    "DatabaseFactory": "factory",
    "Queries": "queries",
    "Query": "queries",
    "ServerHandle": "servers.model",
    "TemplateLayer": "postgres.template.template_layer",
    "WarmstackError": "errors",
}


class _Finder:
    """Finds the modules of this package before pytest's own import hook does.

    pytest rewrites the assertions in all modules of an installed plugin (its documentation,
    "Assertion Rewriting"). Here no test sees one, and the hook takes 0.5 ms for each module. It
    would also compile every module again in the first run after an installation, and in each run
    if the folder of installed packages is read-only.
    """

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, target: object = None
    ) -> ModuleSpec | None:
        """Return what Python's own finder finds for a module of this package, else None."""
        if not fullname.startswith(f"{__name__}."):
            return None
        from importlib.machinery import PathFinder

        return PathFinder.find_spec(fullname, path)


if "_pytest.assertion.rewrite" in sys.modules:
    sys.meta_path.insert(0, _Finder)


if not TYPE_CHECKING:  # Type checkers would take every misspelt name for an attribute.

    def __getattr__(name: str) -> Any:
        """Import a public name when it is first used: every pytest run imports this module."""
        if name == "__version__":
            from importlib.metadata import version

            return version("pytest-warmstack")
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)

    def __dir__() -> list[str]:
        """Return the public names too, for shells and editors that ask the running module."""
        return sorted({*globals(), *__all__})
