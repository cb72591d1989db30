"""Chains compared: what is planned, what a template was built of, and what the files hold now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from pytest_warmstack.postgres.template.dependencies import ABSENT, FileState
from pytest_warmstack.postgres.template.record import (
    ALEMBIC,
    BASE,
    CONFIG,
    BuildStep,
    LayerRecord,
    Record,
    label,
    length,
)

_NEW_KEY: Final = {
    BASE: "warmstack_depends_ignore, or the version of PostgreSQL or pytest-warmstack, changed",
    ALEMBIC: "warmstack_alembic, its section or arguments, or warmstack_env changed",
    "schema": "warmstack_env changed",
    "seed": "warmstack_env changed",
}
_DECLARED: Final = {BASE: " (named in warmstack_depends)"}


class Comparison:
    """Compares with the *file_state* state of the files, each of which is looked at once."""

    def __init__(self, file_state: FileState) -> None:
        self._file_state = file_state

    def begins(self, planned: Sequence[LayerRecord], record: Record) -> int:
        """Return how many links *record* has, if *planned* has all of them, else 0."""
        links, whole = self.common(planned, record)
        return links if whole else 0

    def common(self, planned: Sequence[LayerRecord], record: Record) -> tuple[int, bool]:
        """Return how many links *planned* and *record* have in common, and if those are all."""
        shared = self._shared(planned, record)
        links = sum(map(len, shared))
        return links, (len(shared), links) == (len(record.portions), length(record.portions))

    def arranged(
        self, planned: Sequence[LayerRecord], base: Record | None, near: Record
    ) -> tuple[list[LayerRecord], int]:
        """Return *planned* in the order in which it is built on *base*, and where it leaves *near*.

        First comes what *base* has, then what is also in *near*, which lies nearest, then the rest;
        the number is that of the links before the rest. Without a base the order stays, so that a
        build from nothing does what Alembic does.
        """
        done = self._shared(planned, base) if base is not None else []
        shared = self._shared(planned, near)
        found: list[LayerRecord] = []
        reach, goes_on = 0, True
        for place, portion in enumerate(planned):
            first = done[place] if place < len(done) else set()
            same = first | (shared[place] if place < len(shared) else set())
            order = list(range(len(portion.links)))
            if base is not None:
                order.sort(key=lambda index: (index not in first, index not in same))
            found.append(portion._replace(links=tuple(portion.links[index] for index in order)))
            for index in order:
                goes_on = goes_on and index in same
                reach += goes_on
        return found, reach

    def apart(self, planned: Sequence[LayerRecord], record: Record) -> tuple[list[str], int]:
        """Return how *planned* differs from *record*, and how many links of it that one lacks."""
        there = {(each.layer, link.name) for each in record.portions for link in each.links}
        lacks = sum((each.layer, link.name) not in there for each in planned for link in each.links)
        return list(self._differences(planned, record)), lacks

    def _shared(self, planned: Sequence[LayerRecord], record: Record) -> list[set[int]]:
        """Return for each layer which of the planned links *record* has, with all before them.

        It ends with the layer in which the two differ first.
        """
        found: list[set[int]] = []
        for mine, portion in zip(planned, record.portions, strict=False):
            if (mine.layer, mine.key) != (portion.layer, portion.key):
                break
            if mine.layer == BASE and mine.needs.keys() != portion.needs.keys():
                break
            if not self.holds(portion.needs) or _configured(mine) != _configured(portion):
                break
            found.append(same := self._same(mine.links, portion.links))
            if not len(same) == len(mine.links) == len(portion.links):
                break
        return found

    def _same(self, planned: Sequence[BuildStep], recorded: Sequence[BuildStep]) -> set[int]:
        """Return the places of the planned links that were recorded with all that they follow."""
        by_name = {each.name: each for each in recorded}
        found: set[int] = set()
        names: set[str] = set()
        for place, link in enumerate(planned):
            if link.after is None:
                other = recorded[place] if place < len(recorded) else None
                is_next = len(found) == place
            else:
                other, is_next = by_name.get(link.name), names.issuperset(link.after)
            if is_next and other is not None and self._agrees(link, other):
                found.add(place)
                names.add(link.name)
        return found

    def _differences(self, planned: Sequence[LayerRecord], record: Record) -> Iterator[str]:
        """Yield the words for all that is not as it is in *record*; nothing for additions."""
        for place, portion in enumerate(record.portions):
            if place >= len(planned) or planned[place].layer != portion.layer:
                new = planned[place].layer if place < len(planned) else ""
                if new and all(each.layer != new for each in record.portions):
                    yield f"there is a {new} now"
                else:
                    yield f"there is no {portion.layer} any more"
                return  # What follows has nothing to be compared with.
            mine = planned[place]
            if mine.key != portion.key:
                yield _NEW_KEY.get(portion.layer, f"the settings of {portion.layer} changed")
            if mine.layer == BASE and mine.needs.keys() != portion.needs.keys():
                yield "warmstack_depends changed"
            elif changed := self._changed(portion.needs):
                yield f"{changed}{_DECLARED.get(portion.layer, '')}"
            elif (other := _configured(portion)) != _configured(mine):
                for key in other or _configured(mine):
                    yield f"the Config that {label(key)} returns changed"
            yield from self._changed_links(mine, portion)
            if len(mine.links) > len(portion.links) and place < len(record.portions) - 1:
                names = {link.name for link in portion.links}
                added = [link for link in mine.links if link.name not in names]
                yield f"{(added or mine.links[-1:])[0].label} is new"

    def is_apart(self, planned: Sequence[LayerRecord], record: Record) -> bool:
        """Tell whether *record* is of another Alembic configuration, which is there as well.

        In a repository of several services it tells nothing of what is planned for this one.
        """
        own, others = _configurations(planned), _configurations(record.portions)
        is_other = bool(own and others) and own.isdisjoint(others)
        return is_other and any(self._file_state.digest(key) for key in others)

    def holds(self, needs: Mapping[str, str]) -> bool:
        """Tell whether everything is as it was read."""
        return all(self._file_state.same(key, digest) for key, digest in needs.items())

    def _agrees(self, planned: BuildStep, recorded: BuildStep) -> bool:
        """Tell whether applying *planned* does what applying *recorded* has done."""
        # By content: a file that was renamed is the same revision.
        if (planned.name, planned.digest) != (recorded.name, recorded.digest):
            return False
        return planned.is_settled or (
            self.holds(recorded.others()) and self.holds(planned.others())
        )

    def _changed_links(self, mine: LayerRecord, portion: LayerRecord) -> Iterator[str]:
        """Yield what differs between the links that are planned and those that are there."""
        names = {link.name: link for link in mine.links}
        for place, link in enumerate(portion.links):
            if (now := names.get(link.name)) is None:
                yield f"{link.label} is gone"
            elif now.digest != link.digest:
                yield f"{now.label} changed"
            elif not now.is_settled and (changed := self._changed(link.others())):
                verb = "imported" if changed.split()[0].endswith(".py") else "used"
                yield f"{changed} ({verb} by {link.label})"
            elif now.after is None and mine.links[place : place + 1] not in ((), (now,)):
                new = mine.links[place]
                moved = any(each.name == new.name for each in portion.links)
                yield f"{new.label} {'now comes' if moved else 'is new'} before {link.label}"

    def _changed(self, needs: Mapping[str, str]) -> str:
        """Return the words for the first of *needs* that is not as it was."""
        for key, digest in needs.items():
            if not self._file_state.same(key, digest):
                now = self._file_state.digest(key)
                if key.startswith("package:"):
                    return f"{label(key)} is {now or 'gone'}, was {digest or 'missing'}"
                verb = "is gone" if now == ABSENT else "is new" if digest == ABSENT else "changed"
                return f"{label(key)} {verb}"
        return ""


def _configurations(portions: Sequence[LayerRecord]) -> set[str]:
    """Return the keys of Alembic's configuration files."""
    keys = (key for each in portions if each.layer == ALEMBIC for key in each.needs)
    return {key for key in keys if key.startswith(("ini:", "toml:"))}


def _configured(portion: LayerRecord) -> dict[str, str]:
    """Return the digest of the values of a configuration that a function makes."""
    return {key: digest for key, digest in portion.needs.items() if key.startswith(CONFIG)}
