"""What is on a PostgreSQL of ours, for whoever wants to see it: read off the maintenance database.

No template is connected to, and nothing is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from pytest_warmstack.postgres import DatabaseName, State, sql
from pytest_warmstack.postgres.admin import Admin
from pytest_warmstack.postgres.connections import APPLICATION
from pytest_warmstack.postgres.template.record import Record

_WORDS: Final = {
    State.READY: "ready",
    State.IN_USE: "in use",
    State.BUILDING: "being built",
    State.SAVED: "kept",
}


@dataclass(frozen=True)
class TemplateFacts:
    """A template: for which project, what it holds, its bytes, when it was used (epoch seconds)."""

    name: str
    project: str
    holds: str
    bytes: int
    used: float


@dataclass(frozen=True)
class CloneFacts:
    """Another database of ours: what it is for, and by whom it is held, if by anybody.

    One that should be held by a process and is not, is `left behind`. One that is `kept` is that
    of a *test* which failed.
    """

    name: str
    state: str
    holder: str
    bytes: int
    test: str = ""


@dataclass(frozen=True)
class Overview:
    """The databases of ours on one server."""

    templates: list[TemplateFacts] = field(default_factory=list)
    clones: list[CloneFacts] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """Return it as what JSON can hold."""
        return asdict(self)

    def lines(self, ago: Any, size: Any) -> list[str]:
        """Return it in words; *ago* and *size* write a time and a number of bytes."""
        told = [
            f"template of {each.holds}, {size(each.bytes)}, used {ago(each.used)}"
            for each in self.templates
        ] or ["no template yet"]
        groups: dict[str, list[CloneFacts]] = {}
        kept = [each for each in self.clones if each.test]
        for each in self.clones:
            if each.test:
                continue
            groups.setdefault(each.state, []).append(each)
        told += [
            f"{len(group)} {'clone' if len(group) == 1 else 'clones'} {state}{_by(group)},"
            f" {size(sum(each.bytes for each in group))}"
            for state, group in groups.items()
        ]
        told += [f"{each.name} kept, {size(each.bytes)}, of {each.test}" for each in kept]
        return told


def look(admin: Admin) -> Overview:
    """Return what is on the server that *admin* is connected to."""
    rows = admin.ask(sql.OVERVIEW)
    holders: dict[int, str] = {}
    for row in admin.ask(sql.HELD_BY):
        holders[row["key"]] = row["application"].removeprefix(f"{APPLICATION} ")
    return overview(rows, holders)


def overview(rows: Sequence[Any], holders: dict[int, str]) -> Overview:
    """Return what *rows* of `sql.OVERVIEW` tell; *holders* tells who holds which lock."""
    found = Overview()
    for row in rows:
        name = DatabaseName.parse(row["datname"])
        if name is None:
            continue
        if name.state is State.TEMPLATE:
            if row["sealed"] and (record := Record.read(row["comment"])) is not None:
                facts = sql.noted(row["note"])
                found.templates.append(
                    TemplateFacts(
                        str(name),
                        facts.get("project", ""),
                        record.text,
                        row["bytes"] or 0,
                        facts.get("used", record.built),
                    )
                )
            continue
        holder = holders.get(name.lock_key, "")
        state = _WORDS[name.state]
        if not holder and name.state in {State.IN_USE, State.BUILDING}:
            state = "left behind"
        test = sql.test_of(row["comment"]) if name.state is State.SAVED else ""
        found.clones.append(CloneFacts(str(name), state, holder, row["bytes"] or 0, test))
    found.templates.sort(key=lambda each: each.used, reverse=True)
    return found


def _by(group: Sequence[CloneFacts]) -> str:
    """Return who holds the clones of a *group*."""
    holders = sorted({each.holder for each in group if each.holder})
    return f" by process {', '.join(holders)}" if holders else ""
