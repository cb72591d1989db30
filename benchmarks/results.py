"""What `compare.py` found: medians and ratios, as tables, JSON and plots."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

from entrants import CASES, ENTRANTS
from plots import Bar, Panel, bars
from processes import ROOT

BEGIN: Final = "<!-- written by `make bench-docs`: begin -->"
END: Final = "<!-- written by `make bench-docs`: end -->"
PLOTS: Final = {
    "one-test.svg": ("warm", "cold"),
    "200-tests.svg": ("session-loop", "function-loop", "workers"),
}


class Sample(NamedTuple):
    """What one run took, in seconds."""

    wall: float
    client: float
    """Processor time of pytest and the processes that it waited for."""
    server: float | None
    """Processor time of servers that stood before the run, until they were idle after it."""
    span: float | None
    """From the begin of the first test to the end of the last one."""


class Spread(NamedTuple):
    """A median, with the least and the most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread | None:
        """Return the spread of *values*; None if there is none."""
        numbers = [each for each in values if each is not None]
        return cls(median(numbers), min(numbers), max(numbers)) if numbers else None


@dataclass
class Outcome:
    """The runs of a case: one of each entrant in each round."""

    case: str
    tests: int
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    own: dict[str, list[Sample]] = field(default_factory=dict)
    """Runs to compare with, where an entrant is compared with itself."""
    floors: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The title of the case."""
        return CASES[self.case].title.format(tests=self.tests)

    def floor(self, name: str) -> list[Sample]:
        """Return the runs that those of an entrant are compared with; none for a floor."""
        if CASES[self.case].own_floor:
            return self.own.get(name, [])
        return [] if self.floors[name] == name else self.samples.get(self.floors[name], [])

    def spread(self, name: str, of: Callable[[Sample], float | None]) -> Spread | None:
        """Return the spread of a number of each run."""
        return Spread.of([of(each) for each in self.samples[name]])

    def ratio(self, name: str, of: Callable[[Sample], float | None]) -> Spread | None:
        """Return how many times as much a run takes as the floor, in the same round."""
        return Spread.of([one / other for one, other in self._pairs(name, of)])

    def difference(self, name: str) -> Spread | None:
        """Return how much longer a run takes than the floor, in the same round."""
        return Spread.of([one - other for one, other in self._pairs(name, wall)])

    def _pairs(self, name: str, of: Callable[[Sample], float | None]) -> list[tuple[float, float]]:
        pairs = zip(self.samples[name], self.floor(name), strict=False)
        numbers = [(of(one), of(other)) for one, other in pairs]
        return [(one, other) for one, other in numbers if one and other]


def wall(sample: Sample) -> float:
    """Return the wall time of a run."""
    return sample.wall


def client(sample: Sample) -> float:
    """Return the processor time of pytest."""
    return sample.client


def server(sample: Sample) -> float | None:
    """Return the processor time of the servers, if it is known."""
    return sample.server


def processor(sample: Sample) -> float | None:
    """Return the processor time of pytest and the servers, if both are known."""
    return None if sample.server is None else sample.client + sample.server


def span(sample: Sample) -> float | None:
    """Return the time of all tests."""
    return sample.span


def table(outcome: Outcome) -> str:
    """Return a case as a table in Markdown."""
    head = [outcome.title, "s", "least, most", "x floor", "ms over floor"]
    head += ["client s", "server s", "x floor"]
    spans = CASES[outcome.case].span
    if spans:
        head += ["ms a test", "x floor"]
    rows = [head, ["---"] + ["--:"] * (len(head) - 1)]
    for name in outcome.samples:
        times = outcome.spread(name, wall)
        if times is None:
            continue
        over = outcome.difference(name)
        row = [
            ENTRANTS[name].title,
            f"{times.median:.2f}",
            f"{times.least:.2f}, {times.most:.2f}",
            shown(outcome.ratio(name, wall)),
            f"{over.median * 1000:+.0f}" if over else "",
            *(shown(outcome.spread(name, of)) for of in (client, server)),
            shown(outcome.ratio(name, processor)),
        ]
        if spans:
            tests = outcome.spread(name, span)
            row.append(f"{tests.median * 1000 / outcome.tests:.1f}" if tests else "")
            row.append(shown(outcome.ratio(name, span)))
        rows.append(row)
    lines = ["| " + " | ".join(row) + " |" for row in rows] if outcome.samples else [outcome.title]
    reasons: dict[str, list[str]] = {}
    for name, reason in outcome.left_out.items():
        reasons.setdefault(reason.splitlines()[-1], []).append(ENTRANTS[name].title)
    for reason, names in reasons.items():
        lines.append(f"\nLeft out: {'; '.join(names)} ({reason}).")
    return "\n".join(lines) + "\n"


def shown(spread: Spread | None) -> str:
    """Return a median as one reads it; nothing for what was not measured."""
    return f"{spread.median:.2f}" if spread else ""


def machine() -> dict[str, Any]:
    """Describe the machine."""
    info = Path("/proc/cpuinfo")
    models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
    describe = ["git", "describe", "--always", "--dirty"]
    revision = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "revision": revision.stdout.strip(),
        "processor": models[0].partition(": ")[2] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def described(machine: Mapping[str, Any], versions: Mapping[str, Mapping[str, str]]) -> str:
    """Return where and with which versions the numbers were measured, in Markdown."""
    images = ", ".join(machine.get("images", {})) or "none"
    lines = [
        f"Measured on {machine['date']} at {machine['revision']}: {machine['processor']},"
        f" {machine['cores']} cores, {machine['memory_gb']} GB, {machine['kernel']},"
        f" Python {machine['python']}, Docker {machine['docker'] or '-'} (images: {images}).\n"
    ]
    every = [set(each.items()) for each in versions.values()]
    common = set.intersection(*every) if every else set()
    own = {name: set(each.items()) - common for name, each in versions.items()}
    for name, pairs in {"all": common, **own}.items():
        if pairs:
            in_order = sorted(pairs, key=lambda pair: pair[0].lower())
            lines.append(f"- {name}: " + ", ".join(" ".join(pair) for pair in in_order))
    return "\n".join(lines) + "\n"


def as_json(
    outcomes: Sequence[Outcome],
    machine: Mapping[str, Any],
    versions: Mapping[str, Mapping[str, str]],
    asked: Mapping[str, Any],
) -> str:
    """Return everything that was measured."""
    cases = {
        outcome.case: {
            "title": outcome.title,
            "left_out": outcome.left_out,
            "entrants": {
                name: {
                    "floor": outcome.floors[name] or "itself",
                    "runs": [each._asdict() for each in samples],
                    "floor_runs": [each._asdict() for each in outcome.own.get(name, [])],
                    "difference": outcome.difference(name),
                    "ratio": outcome.ratio(name, wall),
                    "processor_ratio": outcome.ratio(name, processor),
                    "span_ratio": outcome.ratio(name, span),
                }
                for name, samples in outcome.samples.items()
            },
        }
        for outcome in outcomes
    }
    options = {
        name: value for name, value in asked.items() if name in {"rounds", "tests", "test_seconds"}
    }
    all_of_it = {"machine": machine, "options": options, "cases": cases, "versions": versions}
    return json.dumps(all_of_it, indent=1) + "\n"


def plot(outcomes: Sequence[Outcome], folder: Path) -> None:
    """Write the plots of the cases that were measured."""
    found = {outcome.case: outcome for outcome in outcomes}
    folder.mkdir(parents=True, exist_ok=True)
    for name, cases in PLOTS.items():
        panels = [panel(found[case]) for case in cases if case in found]
        if panels:
            (folder / name).write_text(bars(panels))


def panel(outcome: Outcome) -> Panel:
    """Return a case as bars: how long a run takes."""
    rows = []
    for name in outcome.samples:
        if times := outcome.spread(name, wall):
            ratio = outcome.ratio(name, wall)
            note = f"{times.median:.2f} s" + (f", x {ratio.median:.2f}" if ratio else "")
            rows.append(Bar(ENTRANTS[name].title, *times, note, ours=ENTRANTS[name].ours))
    return Panel(f"{outcome.title} (seconds)", rows)


def write(
    outcomes: Sequence[Outcome],
    machine: Mapping[str, Any],
    versions: Mapping[str, Mapping[str, str]],
    document: Path,
) -> None:
    """Put the tables into a document, between its marks."""
    before, _, rest = document.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    tables = [table(outcome) for outcome in outcomes]
    parts = [BEGIN, *tables, described(machine, versions), END]
    document.write_text(before + "\n\n".join(part.strip("\n") for part in parts) + after)
