"""Advice for failures with a known cause. Only a failure imports this module."""

from __future__ import annotations

import re
from collections.abc import Iterator
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Final

from pytest_warmstack.errors import line_of
from pytest_warmstack.options import Settings
from pytest_warmstack.placeholders import lines_for, placeholder_of
from pytest_warmstack.report import (
    NO_CONNECTION,
    NO_SPACE,
    OWN_DATABASE,
    PLAIN_URL,
    has_state,
    wider_scope,
)

if TYPE_CHECKING:
    import pytest

    from pytest_warmstack.environment import Environment


_SCOPE_MISMATCH: Final = re.compile(
    r"ScopeMismatch: .* fixture (db_(?:url|dsn|address|(?:sync_)?(?:engine|session)|factory))"
    r" with a (\w+) scoped"
)
"""Matches pytest's message that a fixture of a wider scope requests one of this plugin."""


def sections(
    item: pytest.Item, error: BaseException, environment: Environment | None
) -> Iterator[tuple[str, str]]:
    """Yield a title and a text for each section of the report that explains why *item* failed."""
    text = str(error)
    if found := _SCOPE_MISMATCH.match(text):
        file = environment.settings.file if environment else ""
        is_set = environment is not None and environment.settings.isolation == found[2]
        advice = OWN_DATABASE if is_set else wider_scope(found[1], found[2], file)
        yield "warmstack: how to share a database", advice
    if environment is None:
        return
    if _wants_plain_url(item, type(error).__name__, text):
        yield "warmstack: which URL a driver takes", PLAIN_URL
    if has_state(error, NO_CONNECTION) and (holders := environment.holders()):
        yield "warmstack: who holds the connections", "\n".join(holders)
    if has_state(error, NO_SPACE) and (full := environment.no_space(error)) is not None:
        yield "warmstack: no space left", str(full)


def _wants_plain_url(item: pytest.Item, name: str, text: str) -> bool:
    """Return whether `db_url` went to a driver, or to an engine that is not asynchronous."""
    if name == "MissingGreenlet":
        function = getattr(item, "function", None)
        return "db_url" in getattr(item, "fixturenames", ()) and not iscoroutinefunction(function)
    return "got 'postgresql+asyncpg'" in text or 'missing "=" after "postgresql+asyncpg:' in text


def missing_variables(error: BaseException, settings: Settings) -> str:
    """Return advice to set variables if *error* says that an application needs them on import.

    The text is empty unless one of the variables is for a database or for Redis: other variables
    have nothing to do with this plugin.
    """
    from pytest_warmstack.postgres.template.child.variables import Variables

    # pytest wraps the exceptions of conftest files.
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        error = cause
    missing = Variables().wanted(error, (), refused=False)
    if not any(placeholder_of(name) for name in missing):
        return ""
    lines = lines_for(missing, file=settings.file, more=bool(settings.env))
    text = f"The application reads {', '.join(missing)} when it is imported. Before that, {lines}"
    if settings.autouse:
        return text
    example = line_of("warmstack_autouse", "tests/api", settings.file)
    return (
        f"{text}\nAlso name the tests that reach a database only through the application, as in"
        f" {example}. Those that request a fixture such as db_url need no line."
    )
