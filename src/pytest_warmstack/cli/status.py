"""`warmstack status`: every server of ours, and what is on it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any, Final

from pytest_warmstack import inventory, originals
from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.cli import words
from pytest_warmstack.cli.errors import NoProject
from pytest_warmstack.cli.project import here, known
from pytest_warmstack.inventory import Entry
from pytest_warmstack.options import RuntimeName
from pytest_warmstack.servers.identity import Label
from pytest_warmstack.servers.model import ServerInfo

_HEAD: Final = ("SERVER", "VERSION", "RUNTIME", "STATE", "AGE", "LAST USED", "MEMORY")


def status(options: argparse.Namespace) -> int:
    """Show them, grouped by project; with `--json` as a list of objects."""
    place = known(here(options.project))
    only = place.project.path if options.only else ""
    if not place.is_project:
        print(NoProject.here(folder=place.project.path).line, file=sys.stderr)
    background = BackgroundLoop()
    refused = []

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    try:
        entries = [
            *inventory.entries(
                background, lambda name, error: refused.append(f"{name} ({error.why})"), only
            ),
            *inventory.external(place.settings, background, say),
        ]
    finally:
        background.close()
    if options.json:
        print(json.dumps([plain(each) for each in entries], indent=2))
        return 0
    for line in lines(entries):
        print(line)
    for each in refused:
        say(f"not looked at: {each}")
    return 0


def _place(found: ServerInfo) -> str:
    """Return what a server is listed under."""
    if found.runtime == RuntimeName.EXTERNAL:
        return "servers that somebody else runs"
    return found.path or "servers that name no project"


def lines(entries: Sequence[Entry]) -> list[str]:
    """Return the table with, below each server, what is on it."""
    if not entries:
        return ["no servers found"]
    told: list[str] = []
    rows = words.table(_HEAD, [_row(each) for each in entries])
    place = ""
    for each, row in sorted(
        zip(entries, rows[1:], strict=True),
        key=lambda pair: (pair[0].found.path, pair[0].found.runtime, pair[1]),
    ):
        if _place(each.found) != place:
            place = _place(each.found)
            told += ["", place, f"  {rows[0]}"]
        told.append(f"  {row}")
        details = each.inside.lines(words.ago, words.size) if each.inside is not None else []
        told += [f"    {detail}" for detail in details]
        if each.trouble:
            told.append(f"    it does not answer: {each.trouble}")
    return told[1:]


def _row(entry: Entry) -> list[str]:
    found = entry.found
    since = found.since
    return [
        words.title(found),
        f"{entry.version or '-'} ({found.what or found.name})",
        found.runtime,
        _state(found, entry.users),
        words.duration(originals.now() - since) if since else "-",
        "now" if entry.users else words.ago(entry.used),
        words.size(entry.memory),
    ]


def _state(found: ServerInfo, users: int) -> str:
    life = "" if found.kept or not found.labels.get(Label.RUN) else " for one run"
    if found.orphaned:
        life = " left behind"
    return f"{found.state}{life}{f', used by {users}' if users else ''}"


def plain(entry: Entry) -> dict[str, Any]:
    """Return what there is to know of a server as JSON can hold it; times in epoch seconds."""
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
