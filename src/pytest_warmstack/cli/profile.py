"""The lines and the JSON of `warmstack up --profile`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from pytest_warmstack.postgres.template.profile import MeasuredStep, Profile
from pytest_warmstack.report import counted, duration

VERSION: Final = 1
"""The version of the JSON. A new key doesn't change it; a changed or removed one does."""

_MAX_STEPS: Final = 20
_MAX_STATEMENTS: Final = 3
"""How many steps, and statements of each, are shown; the JSON has all that were measured."""

_MIN_SECONDS: Final = 0.001
"""Statements that took less are not shown."""


def document(profiles: Mapping[str, Profile]) -> dict[str, Any]:
    """Return *profiles*, by the names of Alembic's configurations, as JSON has them."""
    return {
        "version": VERSION,
        "templates": [
            {
                "configuration": name,
                "seconds": profile.seconds,
                "steps": [each._asdict() for each in _sorted(profile)],
            }
            for name, profile in profiles.items()
        ],
    }


def lines(name: str, profile: Profile) -> Iterator[str]:
    """Yield the lines about the template of the configuration *name*, the slowest step first."""
    of = f" of {name}" if name else ""
    yield (
        f"profile{of}: {counted(len(profile.steps), 'step')} in {duration(profile.seconds)}"
        " (a throw-away build; kept templates stay as they are)"
    )
    steps = _sorted(profile)
    for step in steps[:_MAX_STEPS]:
        file = f" ({step.file})" if step.file else ""
        many = f", {counted(step.statements, 'statement')}" if step.statements else ""
        yield f"{duration(step.seconds):>10}  {step.name}{file}{many}"
        for each in step.slowest[:_MAX_STATEMENTS]:
            if each["seconds"] >= _MIN_SECONDS:
                times = f"{each['count']} times: " if each["count"] > 1 else ""
                yield f"{duration(each['seconds']):>22}  {times}{each['text']}"
    if rest := steps[_MAX_STEPS:]:
        seconds = sum(step.seconds for step in rest)
        yield f"{duration(seconds):>10}  {counted(len(rest), 'other step')}"
    rest_seconds = max(profile.seconds - sum(step.seconds for step in steps), 0.0)
    yield f"{duration(rest_seconds):>10}  imports, env.py, connections and commits"


def _sorted(profile: Profile) -> list[MeasuredStep]:
    return sorted(profile.steps, key=lambda step: -step.seconds)
