"""The build history of a template, stored as JSON in the comment of the database."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple, Self

BASE: Final = "base"
"""The name of the lowest layer, which has no steps."""

ALEMBIC: Final = "alembic"
"""The name of the layer whose steps are revisions."""

DDL: Final = "ddl:"
"""Prefix of the key of a `MetaData`. Its digest covers the statements that create its tables."""

MARKER: Final = "marker warmstack_seed"
"""The name of the layer with the scripts that this marker adds to the template of a test."""

CONFIG: Final = "config:"
"""Prefix of the key of a `Config` that a function returns. Its digest covers its values."""


class BuildStep(NamedTuple):
    """One step of a build, such as a revision or a script.

    *source* is the key of the step's own file or `MetaData`, or empty. *needs* maps the keys of
    everything that the step read, including its own file, to digests. *after* names the steps that
    must run first; None means all previous ones.
    """

    name: str
    source: str
    needs: Mapping[str, str]
    after: tuple[str, ...] | None = None

    @property
    def label(self) -> str:
        """The name for users: the name of the step's file, or else its own."""
        return label(self.source) or self.name

    @property
    def digest(self) -> str | None:
        """The digest of the step's own file."""
        return self.needs.get(self.source)

    @property
    def is_settled(self) -> bool:
        """Whether the digest alone decides what the step does, whatever files it came from."""
        return self.source.startswith(DDL)

    def other_needs(self) -> dict[str, str]:
        """Return what the step needs besides its own file."""
        return {key: digest for key, digest in self.needs.items() if key != self.source}


class LayerRecord(NamedTuple):
    """The part of a template's record about one layer.

    *key* is the key of the layer. All steps depend on *needs*. If *folders* change, the layer must
    be planned again, because there may be a new step. *remark* is a warning for the header. The
    record is *whole* if it has all steps of the layer.
    """

    layer: str
    key: str
    needs: Mapping[str, str] = {}
    folders: Mapping[str, str] = {}
    steps: tuple[BuildStep, ...] = ()
    remark: str = ""
    whole: bool = True

    def describe(self) -> str:
        """Return the contents for the header, such as `9 revisions` or `seed demo.sql`."""
        count = len(self.steps)
        if self.layer == MARKER:
            return f"seed {' + '.join(self.names)}"
        if self.layer != ALEMBIC:
            if count > 1:
                return f"{count} {self.layer} scripts"
            return " ".join([self.layer, *self.names]).rstrip()
        if [step.source for step in self.steps] == [""]:
            return f"the migrations of {self.names[0]}{self.remark}"
        return f"{count} revision{'' if count == 1 else 's'}{self.remark}"

    @property
    def names(self) -> list[str]:
        """The names of the steps, in order."""
        return [step.name for step in self.steps]

    def part(self, first: int, last: int) -> Self:
        """Return the record of the steps from *first* up to *last*, which is not included."""
        whole = self.whole and last == len(self.steps)
        return self._replace(steps=self.steps[first:last], whole=whole)

    def with_needs_of(self, recorded: LayerRecord) -> Self:
        """Return this plan, with the needs that *recorded* has for the same steps."""
        known = {step.name: step.other_needs() for step in recorded.steps}
        steps = tuple(
            step
            if step.is_settled
            else step._replace(needs=known.get(step.name, {}) | {**step.needs})
            for step in self.steps
        )
        return self._replace(needs={**recorded.needs, **self.needs}, steps=steps)

    def with_applied(self, first: int, applied: LayerRecord) -> Self:
        """Return this plan, with the steps from *first* on replaced by the *applied* ones."""
        steps = list(self.steps)
        steps[first : first + len(applied.steps)] = applied.steps
        return self._replace(
            needs={**self.needs, **applied.needs},
            folders={**self.folders, **applied.folders},
            steps=tuple(steps),
            remark=applied.remark or self.remark,
        )


def label(key: str) -> str:
    """Return the name, for users, of the item with this *key*.

    >>> label("file:shop/helpers.py"), label("file:shop/__init__.py"), label("package:pgvector")
    ('helpers.py', 'shop/__init__.py', 'pgvector')
    """
    kind, _, name = key.partition(":")
    if kind not in {"file", "there", "ini", "toml"}:
        return name
    return "/".join(name.split("/")[-2 if name.endswith("__init__.py") else -1 :])


def count_steps(layers: Iterable[LayerRecord]) -> int:
    """Return how many steps *layers* have together."""
    return sum(len(each.steps) for each in layers)


def marked(layers: Iterable[LayerRecord]) -> list[str]:
    """Return the scripts in *layers* that the marker `warmstack_seed` names."""
    return [name for each in layers if each.layer == MARKER for name in each.names]


class Record(NamedTuple):
    """The contents of a template's comment.

    *built* is in seconds since the epoch, *run* is the id of the run that built the template. If
    *left*, the template is an intermediate one, saved for later builds to start from.
    """

    built: float
    run: str
    layers: tuple[LayerRecord, ...]
    left: bool = False

    @property
    def text(self) -> str:
        """The contents of all layers, for the header."""
        remarks = "".join(each.remark for each in self.layers if each.layer == BASE)
        contents = [each.describe() for each in self.layers if each.layer != BASE]
        return ", ".join(contents or ["an empty database"]) + remarks

    def describe_growth(self, base: Record) -> str:
        """Return what was added to *base*, such as `by 2 revisions from 14`."""
        before = {each.layer: len(each.steps) for each in base.layers}
        added = [
            each.part(first, len(each.steps))._replace(remark="").describe()
            for each in self.layers
            if len(each.steps) > (first := before.get(each.layer, 0))
        ]
        starts_with_revisions = added and added[0].endswith(("revision", "revisions"))
        start = before[ALEMBIC] if ALEMBIC in before and starts_with_revisions else base.text
        return f"by {', '.join(added)} from {start}"

    def write(self) -> str:
        """Return the comment. It has each key only once: a thousand steps may share a helper."""
        table: dict[tuple[str, str], int] = {}

        def numbers(needs: Mapping[str, str]) -> list[int]:
            return [table.setdefault(each, len(table)) for each in needs.items()]

        def own(step: BuildStep) -> int | None:
            return [*step.needs].index(step.source) if step.source else None

        layers = [
            [
                *(each.layer, each.key, numbers(each.needs), numbers(each.folders)),
                [[step.name, own(step), numbers(step.needs), step.after] for step in each.steps],
                *(each.remark, each.whole),
            ]
            for each in self.layers
        ]
        plain = {
            # First, because the comment must begin with sql.SIGNATURE, sql.LEFT or sql.SEEDED.
            "warmstack": "left" if self.left else "seed" if marked(self.layers) else "template",
            "built": self.built,
            "run": self.run,
            "layers": layers,
            "table": list(table),
        }
        return json.dumps(plain, separators=(",", ":"))

    @classmethod
    def read(cls, comment: str) -> Self | None:
        """Return the record in *comment*, or None if this version can't read it."""
        try:
            plain = json.loads(comment)
            table = [(str(key), str(digest)) for key, digest in plain["table"]]

            def needs(numbers: list[int]) -> dict[str, str]:
                return dict([table[number] for number in numbers])

            def step(name: str, own: int | None, numbers: list[int], after: Any) -> BuildStep:
                source = "" if own is None else table[numbers[own]][0]
                return BuildStep(
                    name, source, needs(numbers), None if after is None else tuple(after)
                )

            layers = tuple(
                LayerRecord(
                    *(layer, key, needs(common), needs(folders)),
                    *(tuple(step(*each) for each in steps), remark, whole),
                )
                for layer, key, common, folders, steps, remark, whole in plain["layers"]
            )
            built, run, left = float(plain["built"]), str(plain["run"]), plain["warmstack"]
            return cls(built, run, layers, left == "left")
        except (ValueError, TypeError, KeyError, IndexError):
            return None
