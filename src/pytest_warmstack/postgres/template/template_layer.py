"""The seam for layers of somebody else's; light, since annotations import it."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol


class TemplateLayer(Protocol):
    """A layer of somebody else's: what `pytest_warmstack_template_layers` returns a list of."""

    @property
    def name(self) -> str:
        """The word for it in the header and in errors."""

    def fingerprint(self) -> str:
        """Return a text that changes whenever `apply` would give another result.

        It is asked for in every run, so it should be quick.
        """

    def apply(self, url: str) -> Awaitable[None] | None:
        """Change the database at *url*, which begins `postgresql://`; leave no connection open."""
