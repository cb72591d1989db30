"""Compares build histories: the steps of a plan, the steps of a template, and the current files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from pytest_warmstack.postgres.template.dependencies import ABSENT, FileState
from pytest_warmstack.postgres.template.record import (
    ALEMBIC,
    BASE,
    CONFIG,
    MARKER,
    BuildStep,
    LayerRecord,
    Record,
    count_steps,
    label,
)

_KEY_CHANGES: Final = {
    BASE: "warmstack_depends_ignore, or the version of PostgreSQL or pytest-warmstack, changed",
    ALEMBIC: "warmstack_alembic, its section or arguments, or warmstack_env changed",
    "schema": "warmstack_env changed",
    "seed": "warmstack_env changed",
    MARKER: "warmstack_env changed",
}
"""The reason why the key of a layer may differ."""


class Comparison:
    """Compares plans with the records of templates, given the current *file_state*."""

    def __init__(self, file_state: FileState) -> None:
        self._file_state = file_state

    def common(self, plan: Sequence[LayerRecord], record: Record) -> tuple[int, bool]:
        """Return how many steps *plan* and *record* share, and whether *record* has no others."""
        shared = self._shared(plan, record)
        count = sum(map(len, shared))
        return count, (len(shared), count) == (len(record.layers), count_steps(record.layers))

    def arrange(
        self, plan: Sequence[LayerRecord], base: Record | None, nearest: Record
    ) -> tuple[list[LayerRecord], int]:
        """Return *plan* in the order of a build on *base*, and the number of steps before the rest.

        The steps of *base* come first, then those that *nearest* also has, then the rest. Without a
        base the order doesn't change, so that a new build does what Alembic does.
        """
        done = self._shared(plan, base) if base is not None else []
        shared = self._shared(plan, nearest)
        arranged: list[LayerRecord] = []
        reach, continues = 0, True
        for place, layer in enumerate(plan):
            first = done[place] if place < len(done) else set()
            same = first | (shared[place] if place < len(shared) else set())
            order = list(range(len(layer.steps)))
            if base is not None:
                order.sort(key=lambda index: (index not in first, index not in same))
            arranged.append(layer._replace(steps=tuple(layer.steps[index] for index in order)))
            for index in order:
                continues = continues and index in same
                reach += continues
        return arranged, reach

    def differences(self, plan: Sequence[LayerRecord], record: Record) -> tuple[list[str], int]:
        """Return how *plan* differs from *record*, and how many of its steps *record* lacks."""
        there = {(each.layer, name) for each in record.layers for name in each.names}
        lacks = sum((each.layer, name) not in there for each in plan for name in each.names)
        return list(self._differences(plan, record)), lacks

    def is_of_another_project(self, plan: Sequence[LayerRecord], record: Record) -> bool:
        """Return whether *record* has another Alembic configuration that still exists.

        It then belongs to another service of the repository, and has nothing to do with the plan.
        """
        own, others = _configurations(plan), _configurations(record.layers)
        is_other = bool(own and others) and own.isdisjoint(others)
        return is_other and any(self._file_state.digest(key) for key in others)

    def _shared(self, plan: Sequence[LayerRecord], record: Record) -> list[set[int]]:
        """Return, for each layer, the planned steps that *record* has with all their predecessors.

        The list ends with the first layer that differs.
        """
        found: list[set[int]] = []
        for planned, recorded in zip(plan, record.layers, strict=False):
            if (planned.layer, planned.key) != (recorded.layer, recorded.key):
                break
            if _declares_other_files(planned, recorded) or _configs(planned) != _configs(recorded):
                break
            if not self._file_state.holds(recorded.needs):
                break
            found.append(same := self._same(planned.steps, recorded.steps))
            if not len(same) == len(planned.steps) == len(recorded.steps):
                break
        return found

    def _same(self, planned: Sequence[BuildStep], recorded: Sequence[BuildStep]) -> set[int]:
        """Return the indexes of the planned steps recorded with all their predecessors."""
        by_name = {each.name: each for each in recorded}
        found: set[int] = set()
        names: set[str] = set()
        for place, step in enumerate(planned):
            if step.after is None:
                other = recorded[place] if place < len(recorded) else None
                follows = len(found) == place
            else:
                other, follows = by_name.get(step.name), names.issuperset(step.after)
            if follows and other is not None and self._agrees(step, other):
                found.add(place)
                names.add(step.name)
        return found

    def _agrees(self, planned: BuildStep, recorded: BuildStep) -> bool:
        """Return whether applying *planned* does what applying *recorded* did."""
        # Compare by content: a renamed file is the same revision.
        if (planned.name, planned.digest) != (recorded.name, recorded.digest):
            return False
        holds = self._file_state.holds
        return planned.is_settled or (
            holds(recorded.other_needs()) and holds(planned.other_needs())
        )

    def _differences(self, plan: Sequence[LayerRecord], record: Record) -> Iterator[str]:
        """Yield a phrase for each difference from *record*, except for additions at the end."""
        names = [each.layer for each in record.layers]
        for place, recorded in enumerate(record.layers):
            planned = plan[place] if place < len(plan) else None
            if planned is None or planned.layer != recorded.layer:
                if planned is not None and planned.layer not in names:
                    yield f"the layer {planned.layer} was added"
                else:
                    yield f"the layer {recorded.layer} was removed"
                return  # The later layers can't be compared.
            yield from self._layer_differences(planned, recorded)
            if len(planned.steps) > len(recorded.steps) and place < len(names) - 1:
                added = [each for each in planned.steps if each.name not in recorded.names]
                yield f"{(added or planned.steps[-1:])[0].label} is new"

    def _layer_differences(self, planned: LayerRecord, recorded: LayerRecord) -> Iterator[str]:
        if planned.key != recorded.key:
            yield _KEY_CHANGES.get(recorded.layer, f"the settings of {recorded.layer} changed")
        if _declares_other_files(planned, recorded):
            yield "warmstack_depends changed"
        elif change := self._first_change(recorded.needs):
            yield f"{change}{' (named in warmstack_depends)' if recorded.layer == BASE else ''}"
        elif _configs(planned) != _configs(recorded):
            for key in _configs(recorded) or _configs(planned):
                yield f"the Config that {label(key)} returns changed"
        steps = {step.name: step for step in planned.steps}
        for place, step in enumerate(recorded.steps):
            now, instead = steps.get(step.name), planned.steps[place : place + 1]
            if now is None:
                yield f"{step.label} is gone"
            elif now.digest != step.digest:
                yield f"{now.label} changed"
            elif not now.is_settled and (change := self._first_change(step.other_needs())):
                verb = "imported" if change.split()[0].endswith(".py") else "used"
                yield f"{change} ({verb} by {step.label})"
            elif now.after is None and instead not in ((), (now,)):
                verb = "now comes" if instead[0].name in recorded.names else "is new"
                yield f"{instead[0].label} {verb} before {step.label}"

    def _first_change(self, needs: Mapping[str, str]) -> str:
        """Return a phrase for the first of *needs* that changed, empty if none did."""
        for key, digest in needs.items():
            if not self._file_state.same(key, digest):
                now = self._file_state.digest(key)
                if key.startswith("package:"):
                    return f"{label(key)} is {now or 'gone'}, was {digest or 'missing'}"
                verb = "is gone" if now == ABSENT else "is new" if digest == ABSENT else "changed"
                return f"{label(key)} {verb}"
        return ""


def _declares_other_files(planned: LayerRecord, recorded: LayerRecord) -> bool:
    return planned.layer == BASE and planned.needs.keys() != recorded.needs.keys()


def _configurations(layers: Iterable[LayerRecord]) -> set[str]:
    """Return the keys of Alembic's configuration files."""
    keys = (key for each in layers if each.layer == ALEMBIC for key in each.needs)
    return {key for key in keys if key.startswith(("ini:", "toml:"))}


def _configs(layer: LayerRecord) -> dict[str, str]:
    """Return the digests of the configurations that functions return."""
    return {key: digest for key, digest in layer.needs.items() if key.startswith(CONFIG)}
