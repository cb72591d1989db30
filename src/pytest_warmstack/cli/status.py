"""`warmstack status`: shows every server of the plugin, and what it holds."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final

from pytest_warmstack import inventory, originals, report
from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.cli.errors import NoProject
from pytest_warmstack.cli.project import Add, Place, align, find, say, title, unchecked
from pytest_warmstack.inventory import Entry
from pytest_warmstack.options import RuntimeName
from pytest_warmstack.servers.identity import Label
from pytest_warmstack.servers.model import ServerInfo

_INTERVAL: Final = 2.0
_SHORTEST: Final = 0.1
_LONGEST: Final = 3600.0
"""Seconds between two blocks of `--watch`."""

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
    kinds = status.add_mutually_exclusive_group()
    kinds.add_argument(
        "--json", action="store_true", help="print a list of JSON objects instead of a table"
    )
    kinds.add_argument(
        "--watch",
        type=_seconds,
        nargs="?",
        const=_INTERVAL,
        metavar="SECONDS",
        help="show it again and again until Ctrl-C, with a pause of so many seconds "
        f"(default: {_INTERVAL:g})",
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not _SHORTEST <= seconds <= _LONGEST:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of seconds from {_SHORTEST:g} to {_LONGEST:g}"
        )
    return seconds


def run(options: argparse.Namespace) -> int:
    """Show the servers, grouped by project; with `--json` as a list of objects."""
    place = find(options.project)
    only = place.project.path if options.only else ""
    if not place.is_project:
        say(NoProject.here(folder=place.project.path).line)
    background = BackgroundLoop()
    try:
        if options.watch:
            _watch(lambda: _look(place, only, background, say=None), options.watch)
            return 0
        entries, refused = _look(place, only, background, say=say)
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


def _look(
    place: Place, only: str, background: BackgroundLoop, *, say: Callable[[str], None] | None
) -> tuple[list[Entry], list[str]]:
    """Return the servers, and a line for each runtime that could not be checked.

    Without *say*, what it would say is among these lines.
    """
    refused: list[str] = []
    entries = [
        *inventory.entries(
            background, lambda name, error: refused.append(unchecked(name, error)), only
        ),
        *inventory.external(place.settings, background, say or refused.append),
    ]
    return entries, refused


def _watch(look: Callable[[], tuple[list[Entry], list[str]]], interval: float) -> None:
    """Show what *look* returns, every *interval* seconds, until Ctrl-C.

    On a terminal, each block replaces the one before; lines and blocks are cut to fit.
    """
    shown = 0
    is_terminal = sys.stdout.isatty()
    try:
        while True:
            entries, refused = look()
            block = [f"{datetime.now():%H:%M:%S}", "", *lines(entries), *refused]
            if is_terminal:
                width, height = shutil.get_terminal_size()
                if len(block) >= height:
                    block[height - 2 :] = [f"... {len(block) - height + 2} more lines"]
                # ECMA-48: to the first line of the last block; erase to the end of a line, and of
                # the screen.
                up = f"\x1b[{shown}F" if shown else ""
                text = "".join(f"{line[: width - 1]}\x1b[K\n" for line in block)
                sys.stdout.write(f"{up}{text}\x1b[J")
                shown = len(block)
            else:
                sys.stdout.write("\n".join([*block, "", ""]))
            sys.stdout.flush()
            originals.sleep(interval)
    except KeyboardInterrupt:
        return


def lines(entries: Sequence[Entry]) -> list[str]:
    """Return a table of the servers; below each server is what it holds."""
    if not entries:
        return ["no warmstack servers found"]
    rows = align([_HEAD, *map(_row, entries)])
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
