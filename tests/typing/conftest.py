"""Implements each hook as a user's conftest.py does; the checkers compare it with the protocol."""

from __future__ import annotations

from typing import assert_type

import pytest

from pytest_warmstack import TemplateLayer, WarmstackError, __version__


class Extensions:
    """A layer whose work is synchronous."""

    name = "extensions"

    def fingerprint(self) -> str:
        """Return what changes with `apply`."""
        return "1"

    def apply(self, url: str) -> None:
        """Change the database."""


class Countries:
    """A layer whose work is asynchronous, and whose name is not an attribute of the class."""

    def __init__(self, countries: list[str]) -> None:
        self._countries = countries

    @property
    def name(self) -> str:
        """The name in the header."""
        return f"{len(self._countries)} countries"

    def fingerprint(self) -> str:
        """Return what changes with `apply`."""
        return ", ".join(self._countries)

    async def apply(self, url: str) -> None:
        """Change the database."""


class Nameless:
    """A layer that lacks its name."""

    def fingerprint(self) -> str:
        """Return what changes with `apply`."""
        return ""

    def apply(self, url: str) -> None:
        """Change the database."""


wrong: TemplateLayer = Nameless()  # type: ignore[assignment]


def pytest_warmstack_template_layers(config: pytest.Config) -> list[TemplateLayer] | None:
    """Return layers of both kinds."""
    return [Extensions(), Countries(["Norway", "Kenya"])]


def explain(error: WarmstackError) -> None:
    """Read each part of an error."""
    assert_type(error.what, str)
    assert_type(error.why, str)
    assert_type(list(error.looked_at), list[str])
    assert_type(list(error.todo), list[str])
    assert_type(__version__, str)
