"""What the set-up did and what it cost, as plain facts that another process can read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Self

from pytest_warmstack import originals


@dataclass(frozen=True)
class Step:
    """One thing that the set-up did: its *name*, the *seconds* it took, and *facts* about it."""

    name: str
    seconds: float
    facts: dict[str, str] = field(default_factory=dict)


@dataclass
class Ledger:
    """The steps of one process, and how often and how long the repeated ones ran.

    `steps` holds what happened once, `times` the seconds of each clone and each flush.
    """

    steps: list[Step] = field(default_factory=list)
    times: dict[str, list[float]] = field(default_factory=dict)

    def note(self, step: Step) -> None:
        """Enter a step that happened once."""
        self.steps.append(step)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Measure what runs inside as one more repetition of *name*."""
        begin = originals.monotonic()
        yield
        self.times.setdefault(name, []).append(originals.monotonic() - begin)

    def repeated(self, name: str) -> tuple[int, float]:
        """Return how often *name* ran, and the median of its seconds."""
        # Not the statistics module: its import costs more than most of our set-up.
        times = sorted(self.times.get(name, []))
        middle = times[(len(times) - 1) // 2 : len(times) // 2 + 1]
        return len(times), sum(middle) / len(middle) if middle else 0.0

    def to_json(self) -> str:
        """Return this ledger as a text that another process can read."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the ledger that `to_json` gave."""
        plain = json.loads(text)
        return cls([Step(**step) for step in plain["steps"]], plain["times"])

    def merge(self, other: Ledger) -> None:
        """Take in the ledger of another process."""
        self.steps += other.steps
        for name, times in other.times.items():
            self.times.setdefault(name, []).extend(times)
