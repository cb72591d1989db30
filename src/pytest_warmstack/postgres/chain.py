"""Chains compared: what is planned, what a template was built of, and what the files hold now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pytest_warmstack.postgres.dependencies import ABSENT, Present
from pytest_warmstack.postgres.record import ALEMBIC, BASE, Link, Portion, Record, label

_NEW_KEY: Final = {
    BASE: "warmstack_depends_ignore, or the version of PostgreSQL or pytest-warmstack, changed",
    ALEMBIC: "warmstack_alembic, its section or arguments, or warmstack_env changed",
    "schema": "warmstack_env changed",
    "seed": "warmstack_env changed",
}
_DECLARED: Final = {BASE: " (named in warmstack_depends)"}


class Comparison:
    """Compares with the *present* state of the files, each of which is looked at once."""

    def __init__(self, present: Present) -> None:
        self._present = present

    def begins(self, planned: Sequence[Portion], record: Record) -> int:
        """Return how many links *record* has, if *planned* begins with all of them, else 0."""
        links, whole = self.common(planned, record)
        return links if whole else 0

    def common(self, planned: Sequence[Portion], record: Record) -> tuple[int, bool]:
        """Return how many links *planned* and *record* have in common, and if those are all."""
        links = 0
        for place, portion in enumerate(record.portions):
            mine = planned[place] if place < len(planned) else None
            if mine is None or (mine.layer, mine.key) != (portion.layer, portion.key):
                return links, False
            if mine.layer == BASE and mine.needs.keys() != portion.needs.keys():
                return links, False
            if not self.holds(portion.needs):
                return links, False
            for one, other in zip(mine.links, portion.links, strict=False):
                if not self._agrees(one, other):
                    return links, False
                links += 1
            if len(mine.links) != len(portion.links):
                ends = len(mine.links) > len(portion.links) and place == len(record.portions) - 1
                return links, ends
        return links, True

    def why(self, planned: Sequence[Portion], record: Record) -> str:
        """Return what differs first between what is planned and *record*; nothing for additions."""
        if self.begins(planned, record):
            return ""
        for place, portion in enumerate(record.portions):
            if place >= len(planned) or planned[place].layer != portion.layer:
                new = planned[place].layer if place < len(planned) else ""
                if new and all(each.layer != new for each in record.portions):
                    return f"there is a {new} now"
                return f"there is no {portion.layer} any more"
            mine = planned[place]
            if mine.key != portion.key:
                return _NEW_KEY.get(portion.layer, f"the settings of {portion.layer} changed")
            if mine.layer == BASE and mine.needs.keys() != portion.needs.keys():
                return "warmstack_depends changed"
            if changed := self._changed(portion.needs):
                return f"{changed}{_DECLARED.get(portion.layer, '')}"
            if changed := self._changed_link(mine, portion):
                return changed
            if len(mine.links) > len(portion.links) and place < len(record.portions) - 1:
                return f"{mine.links[len(portion.links)].label} is new"
        return ""

    def is_apart(self, planned: Sequence[Portion], record: Record) -> bool:
        """Tell whether *record* is of another Alembic configuration, which is there as well.

        In a repository of several services it tells nothing of what is planned for this one.
        """
        own, others = _configurations(planned), _configurations(record.portions)
        is_other = bool(own and others) and own.isdisjoint(others)
        return is_other and any(self._present.digest(key) for key in others)

    def holds(self, needs: Mapping[str, str]) -> bool:
        """Tell whether everything is as it was read."""
        return all(self._present.same(key, digest) for key, digest in needs.items())

    def _agrees(self, planned: Link, recorded: Link) -> bool:
        """Tell whether applying *planned* does what applying *recorded* has done."""
        # By content: a file that was renamed is the same revision.
        if (planned.name, planned.digest) != (recorded.name, recorded.digest):
            return False
        return planned.is_settled or (
            self.holds(recorded.others()) and self.holds(planned.others())
        )

    def _changed_link(self, mine: Portion, portion: Portion) -> str:
        """Return what differs first between the links that are planned and those that are there."""
        names = {link.name: link for link in mine.links}
        for place, link in enumerate(portion.links):
            if (now := names.get(link.name)) is None:
                return f"{link.label} is gone"
            if now.digest != link.digest:
                return f"{now.label} changed"
            if not now.is_settled and (changed := self._changed(link.others())):
                verb = "imported" if changed.split()[0].endswith(".py") else "used"
                return f"{changed} ({verb} by {link.label})"
            if place < len(mine.links) and (new := mine.links[place]).name != link.name:
                moved = any(each.name == new.name for each in portion.links)
                return f"{new.label} {'now comes' if moved else 'is new'} before {link.label}"
        return ""

    def _changed(self, needs: Mapping[str, str]) -> str:
        """Return the words for the first of *needs* that is not as it was."""
        for key, digest in needs.items():
            if not self._present.same(key, digest):
                now = self._present.digest(key)
                if key.startswith("package:"):
                    return f"{label(key)} is {now or 'gone'}, was {digest or 'missing'}"
                verb = "is gone" if now == ABSENT else "is new" if digest == ABSENT else "changed"
                return f"{label(key)} {verb}"
        return ""


def _configurations(portions: Sequence[Portion]) -> set[str]:
    """Return the keys of Alembic's configuration files."""
    keys = (key for each in portions if each.layer == ALEMBIC for key in each.needs)
    return {key for key in keys if key.startswith(("ini:", "toml:"))}
