"""`warmstack status`: shows every server of the plugin, and what it holds."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any, Final

from pytest_warmstack import inventory, originals, report
from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.cli.errors import NoProject
from pytest_warmstack.cli.project import Add, find, say, title, unchecked
from pytest_warmstack.inventory import Entry
from pytest_warmstack.options import RuntimeName
from pytest_warmstack.servers.identity import Label
from pytest_warmstack.servers.model import ServerInfo

_HEAD: Final = ("SERVER", "VERSION", "RUNTIME", "STATE", "AGE", "LAST USED", "MEMORY")


def declare(add: Add) -> None:
    """Declare the command and its arguments."""
    status = add(
        "status",
        run,
        "show the servers of pytest-warmstack that can be seen from here, and what is on them",
        "With --project, only the servers of that project. The command changes nothing and "
        "connects to no template.",
    )
    status.add_argument(
        "--json", action="store_true", help="print a list of JSON objects instead of a table"
    )


def run(options: argparse.Namespace) -> int:
    """Show the servers, grouped by project; with `--json` as a list of objects."""
    place = find(options.project)
    only = place.project.path if options.only else ""
    if not place.is_project:
        say(NoProject.here(folder=place.project.path).line)
    refused: list[str] = []
    background = BackgroundLoop()
    try:
        entries = [
            *inventory.entries(
                background, lambda name, error: refused.append(unchecked(name, error)), only
            ),
            *inventory.external(place.settings, background, say),
        ]
    finally:
        background.close()
    if options.json:
        print(json.dumps([_plain(each) for each in entries], indent=2))
        return 0
    for line in lines(entries):
        print(line)
    for each in refused:
        say(each)
    return 0


def lines(entries: Sequence[Entry]) -> list[str]:
    """Return a table of the servers; below each server is what it holds."""
    if not entries:
        return ["no warmstack servers found"]
    rows = _align([_HEAD, *map(_row, entries)])
    table: list[str] = []
    heading = ""
    for each, row in sorted(
        zip(entries, rows[1:], strict=True),
        key=lambda pair: (pair[0].found.path, pair[0].found.runtime, pair[1]),
    ):
        if _heading(each.found) != heading:
            heading = _heading(each.found)
            table += ["", heading, f"  {rows[0]}"]
        table.append(f"  {row}")
        if each.inside is not None:
            table += [f"    {line}" for line in each.inside.lines(report.ago, report.size)]
        if each.trouble:
            table.append(f"    it does not answer: {each.trouble}")
    return table[1:]


def _heading(found: ServerInfo) -> str:
    if found.runtime == RuntimeName.EXTERNAL:
        return "external servers"
    return found.path or "servers without a project"


def _row(entry: Entry) -> list[str]:
    found = entry.found
    return [
        title(found),
        f"{entry.version or '-'} ({found.what or found.name})",
        found.runtime,
        _state(found, entry.users),
        report.age(originals.now() - found.since) if found.since else "-",
        "now" if entry.users else report.ago(entry.used),
        report.size(entry.memory),
    ]


def _state(found: ServerInfo, users: int) -> str:
    life = "" if found.kept or not found.labels.get(Label.RUN) else " for one run"
    if found.orphaned:
        life = " left behind"
    return f"{found.state}{life}{f', used by {users}' if users else ''}"


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return *rows* as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _plain(entry: Entry) -> dict[str, Any]:
    """Return *entry* for JSON; times are in seconds since the epoch, sizes in bytes."""
    found = entry.found
    return {
        "project": found.path,
        "service": found.service,
        "runtime": found.runtime,
        "name": found.name,
        "id": found.id,
        "what": found.what,
        "version": entry.version,
        "state": found.state,
        "kept": found.kept,
        "left_behind": found.orphaned,
        "made": found.since,
        "last_used": entry.used,
        "connections": entry.users,
        "memory": entry.memory,
        "trouble": entry.trouble,
        **({"inside": entry.inside.plain()} if entry.inside is not None else {}),
    }
