"""Real PostgreSQL and Redis for pytest, kept warm; each test has a migrated database of its own.

Import the public names from here, for annotations. Everything else may change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pytest_warmstack.errors import WarmstackError
    from pytest_warmstack.factory import Database, DatabaseFactory
    from pytest_warmstack.postgres import DatabaseAddress
    from pytest_warmstack.postgres.template.template_layer import TemplateLayer
    from pytest_warmstack.servers.model import ServerHandle

    __version__: str

__all__ = [
    "Database",
    "DatabaseAddress",
    "DatabaseFactory",
    "ServerHandle",
    "TemplateLayer",
    "WarmstackError",
    "__version__",
]

_MODULES: Final = {
    "Database": "factory",
    "DatabaseAddress": "postgres",
    "DatabaseFactory": "factory",
    "ServerHandle": "servers.model",
    "TemplateLayer": "postgres.template.template_layer",
    "WarmstackError": "errors",
}

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
