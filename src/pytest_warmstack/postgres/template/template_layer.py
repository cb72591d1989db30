"""The protocol of custom layers. The module is small because annotations of hooks import it."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol


class TemplateLayer(Protocol):
    """A custom layer; the hook `pytest_warmstack_template_layers` returns a list of them."""

    @property
    def name(self) -> str:
        """The name in the header and in errors."""

    def fingerprint(self) -> str:
        """Return a text that changes whenever the result of `apply` would change.

        Every run calls this, so it should be fast.
        """

    def apply(self, url: str) -> Awaitable[None] | None:
        """Change the database at *url*, a `postgresql://` URL; leave no connection open."""
