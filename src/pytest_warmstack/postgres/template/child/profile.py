"""Measures the steps of a build and their statements; only `warmstack up --profile` imports it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import Engine, event

from pytest_warmstack.postgres.template.child.recorder import Recorder

_MAX_SHOWN: Final = 5
"""How many statements of a step are reported: those that took the longest, in all their calls."""

_MAX_KNOWN: Final = 1000
"""How many different statements of a step are counted; a loop may write a value into each."""

_MAX_TEXT: Final = 200
"""How many characters of a statement are reported."""

_PASSWORD: Final = re.compile(r"(PASSWORD\s+)'(?:[^']|'')*'", re.IGNORECASE)


class ProfilingRecorder(Recorder):
    """A recorder that also measures each step, and what SQLAlchemy executes in it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._measured: list[dict[str, Any]] = []
        self._statements: dict[str, list[float]] = {}
        self._count = 0
        self._begin = 0.0
        # The engine of an AsyncEngine is one of these, too.
        event.listen(Engine, "before_cursor_execute", self._before)
        event.listen(Engine, "after_cursor_execute", self._after)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Do what `Recorder.step` does, and measure it."""
        self._statements, self._count = {}, 0
        begin = time.perf_counter()
        with super().step(name):
            yield
        self._measured.append(
            {
                "name": name,
                "seconds": time.perf_counter() - begin,
                "statements": self._count,
                "slowest": self._slowest(_MAX_SHOWN),
            }
        )

    def profile(self) -> list[dict[str, Any]]:
        """Return what was measured since the last call."""
        measured, self._measured = self._measured, []
        return measured

    def _before(self, *_: object) -> None:
        self._begin = time.perf_counter()

    def _after(self, _connection: object, _cursor: object, statement: str, *_: object) -> None:
        seconds = time.perf_counter() - self._begin
        text = _PASSWORD.sub(r"\1'***'", " ".join(statement.split()))
        if len(text) > _MAX_TEXT:
            text = f"{text[:_MAX_TEXT]}..."
        self._count += 1
        known = self._statements.setdefault(text, [0, 0.0])
        known[0] += 1
        known[1] += seconds
        if len(self._statements) > _MAX_KNOWN:
            kept = self._slowest(_MAX_KNOWN // 10)
            self._statements = {each["text"]: [each["count"], each["seconds"]] for each in kept}

    def _slowest(self, limit: int) -> list[dict[str, Any]]:
        slowest = sorted(self._statements.items(), key=lambda each: -each[1][1])[:limit]
        return [
            {"text": text, "count": count, "seconds": seconds} for text, (count, seconds) in slowest
        ]
