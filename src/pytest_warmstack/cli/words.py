"""Facts to words, for the commands. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_warmstack import originals
from pytest_warmstack.servers.identity import Service
from pytest_warmstack.servers.model import ServerInfo

_TITLES = {Service.POSTGRES: "PostgreSQL", Service.REDIS: "Redis"}


def title(found: ServerInfo) -> str:
    """Return what a reader calls the service of a server."""
    return _TITLES.get(Service(found.service), found.service) if found.service else found.kind


def name(found: ServerInfo) -> str:
    """Return a server's name, for a line that tells what was done with it."""
    return f"{found.service or found.kind} {found.name} ({found.runtime})"


def duration(seconds: float) -> str:
    """Return an age in its largest whole unit.

    >>> duration(7300)
    '2 h'
    """
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(seconds, 0) // 1:.0f} s"


def ago(moment: float) -> str:
    """Return how long ago a moment was, in epoch seconds; a dash when it is not known."""
    return f"{duration(originals.now() - moment)} ago" if moment else "-"


def size(count: int) -> str:
    """Return a number of bytes in a unit that fits; a dash when it is not known.

    >>> size(8_500_000)
    '8.5 MB'
    """
    if not count:
        return "-"
    for unit, many in (("GB", 1e9), ("MB", 1e6)):
        if count >= many:
            return f"{count / many:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table, each column as wide as it has to be.

    >>> table(["A", "B"], [["1", "22"]])
    ['A  B', '1  22']
    """
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    ]
