"""Real PostgreSQL and Redis for pytest, kept warm: a migrated database and an empty Redis a test.

The public names are here, for annotations; all else may move.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_warmstack.errors import WarmstackError
    from pytest_warmstack.postgres.template.template_layer import TemplateLayer
    from pytest_warmstack.servers.model import ServerHandle

__all__ = ["ServerHandle", "TemplateLayer", "WarmstackError", "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for: this module is loaded in every pytest run."""
    if name == "ServerHandle":
        from pytest_warmstack.servers.model import ServerHandle

        return ServerHandle
    if name == "TemplateLayer":
        from pytest_warmstack.postgres.template.template_layer import TemplateLayer

        return TemplateLayer
    if name == "WarmstackError":
        from pytest_warmstack.errors import WarmstackError

        return WarmstackError
    if name == "__version__":
        from importlib.metadata import version

        return version("pytest-warmstack")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
