"""An overview of a PostgreSQL server, read from the maintenance database. Changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from pytest_warmstack.postgres import DatabaseName, State, sql
from pytest_warmstack.postgres.connections import APPLICATION
from pytest_warmstack.postgres.databases import Databases
from pytest_warmstack.postgres.template.record import Record

_WORDS: Final = {
    State.READY: "ready",
    State.IN_USE: "in use",
    State.BUILDING: "being built",
    State.SAVED: "saved",
    State.DEVELOPMENT: "for development",
}


@dataclass(frozen=True)
class TemplateFacts:
    """A template: project, contents, size in bytes, last use in seconds since the epoch."""

    name: str
    project: str
    holds: str
    bytes: int
    used: float


@dataclass(frozen=True)
class CloneFacts:
    """A database that is not a template: its state, and the process that holds it.

    The state is `left behind` if a process should hold the database and none does. A `saved`
    database belongs to a *test* that failed, one for development to the Alembic *configuration*.
    """

    name: str
    state: str
    holder: str
    bytes: int
    test: str = ""
    configuration: str = ""


@dataclass(frozen=True)
class Overview:
    """The databases of this package on one server."""

    templates: list[TemplateFacts] = field(default_factory=list)
    clones: list[CloneFacts] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """Return the overview for JSON."""
        return asdict(self)

    def lines(self, ago: Any, size: Any) -> list[str]:
        """Return the overview as text; *ago* formats a time, *size* a number of bytes."""
        lines = [
            f"template of {each.holds}, {size(each.bytes)}, used {ago(each.used)}"
            for each in self.templates
        ] or ["no template yet"]
        groups: dict[str, list[CloneFacts]] = {}
        development = _WORDS[State.DEVELOPMENT]
        for each in self.clones:
            if each.state == development:
                of = f" of {each.configuration}" if each.configuration else ""
                lines.append(f"{each.name} {development}{of}, {size(each.bytes)}")
            elif not each.test:
                groups.setdefault(each.state, []).append(each)
        for state, group in groups.items():
            clones = "1 clone" if len(group) == 1 else f"{len(group)} clones"
            holders = ", ".join(sorted({each.holder for each in group} - {""}))
            by = f" by process {holders}" if holders else ""
            lines.append(f"{clones} {state}{by}, {size(sum(each.bytes for each in group))}")
        return lines + [
            f"{each.name} saved, {size(each.bytes)}, of {each.test}"
            for each in self.clones
            if each.test
        ]


def look(databases: Databases) -> Overview:
    """Return the overview of the server of *databases*."""
    holders = {
        row["key"]: row["application"].removeprefix(f"{APPLICATION} ")
        for row in databases.ask(sql.LOCKS)
    }
    return overview(databases.ask(sql.OVERVIEW), holders)


def overview(rows: Sequence[Any], holders: dict[int, str]) -> Overview:
    """Return the overview in *rows* of `sql.OVERVIEW`; *holders* maps lock keys to holders."""
    found = Overview()
    for row in rows:
        name, size = DatabaseName.parse(row["datname"]), row["bytes"] or 0
        if name is None:
            continue
        if name.state is State.TEMPLATE:
            if row["sealed"] and (record := Record.read(row["comment"])) is not None:
                used, project = sql.parse_note(row["note"])
                found.templates.append(
                    TemplateFacts(str(name), project, record.text, size, used or record.built)
                )
            continue
        holder, state = holders.get(name.lock_key, ""), _WORDS[name.state]
        if not holder and name.state in {State.IN_USE, State.BUILDING}:
            state = "left behind"
        test = sql.test_of(row["comment"]) if name.state is State.SAVED else ""
        configuration = ""
        if name.state is State.DEVELOPMENT:
            configuration = sql.read_development(row["comment"]).get("of", "")
        found.clones.append(CloneFacts(str(name), state, holder, size, test, configuration))
    found.templates.sort(key=lambda each: each.used, reverse=True)
    return found
