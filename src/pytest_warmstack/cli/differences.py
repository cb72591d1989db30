"""Formats the differences between a saved database and its template as text. Pure."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Final

from pytest_warmstack.postgres import sql
from pytest_warmstack.postgres.comparison import Comparison, ObjectChange, RowChange, TableChange

WIDTH: Final = 80
"""The width of lines where there is no terminal."""

_LENGTH: Final = 40
"""How many characters of a value are shown."""

_BEFORE_CHANGE: Final = 8
"""How many equal characters are shown before the first one that differs."""

_SIGNS: Final = {"added": "+", "removed": "-", "changed": "~"}
_COLOURS: Final = {"+": 32, "-": 31, "~": 33}


def lines(comparison: Comparison, *, limit: int, width: int = WIDTH) -> Iterator[str]:
    """Yield the text; rows are wrapped to *width*. *limit* is that of the comparison."""
    for table in comparison.tables:
        yield from _table(table, limit, width)
    for each in comparison.sequences:
        yield f"sequence {each.name}: {each.before} -> {each.after}"
    for each in comparison.objects:
        yield from _object(each, width)
    for table in comparison.unread:
        yield f"{table.table}: can't be read: {table.problem}"
    if comparison.is_empty:
        yield "no differences"
    if comparison.same:
        yield f"{_number(comparison.same, 'table')} with the same rows"


def coloured(line: str) -> str:
    """Return *line* with the colour of its sign, unless the user wants none."""
    colour = _COLOURS.get(line.strip()[:1]) if line.startswith("  ") else None
    # See https://no-color.org.
    return f"\x1b[{colour}m{line}\x1b[0m" if colour and not os.environ.get("NO_COLOR") else line


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _table(table: TableChange, limit: int, width: int) -> Iterator[str]:
    counts = {"added": table.added, "removed": table.removed, "changed": table.changed}
    if table.added is None:
        yield (
            f"{table.table}: {_number(table.before, 'row')} -> {table.after:,}, "
            "too many differences to compare row by row"
        )
        return
    told = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    yield f"{table.table}: {told}"
    for row in table.rows:
        yield from _row(row, table, width)
    shown = sum(each.times for each in table.rows)
    if left := sum(filter(None, counts.values())) - shown:
        yield f"  ... {_number(left, 'more row')} (--limit {max(limit, 1) * 10} shows more)"


def _row(row: RowChange, table: TableChange, width: int) -> Iterator[str]:
    def shown(values: dict[str, str | None]) -> list[str]:
        return [f"{name}={_quoted(name, text, table)}" for name, text in values.items()]

    if row.change == "changed":
        parts = [
            f"{name} {_quoted(name, old, table)} -> {_quoted(name, new, table)}"
            for name, old, new in _pairs(row)
        ]
        head = f"  ~ {', '.join(shown(dict(row.key)))}:"
    else:
        parts = shown(dict(row.after or row.before))
        head = f"  {_SIGNS[row.change]}"
    if row.times > 1:
        parts[-1:] = [f"{' '.join(parts[-1:])} ({row.times:,} times)".strip()]
    yield from _wrapped(head, parts, width)


def _pairs(row: RowChange) -> Iterator[tuple[str, str | None, str | None]]:
    """Yield what differs; of long values, the part where they begin to differ."""
    for name, old in row.before.items():
        new = row.after[name]
        yield name, *(_from_difference(old, new, _LENGTH) if old and new else (old, new))


def _from_difference(old: str, new: str, length: int) -> tuple[str, str]:
    """Return the texts; if one is longer than *length*, from shortly before they differ."""
    if max(len(old), len(new)) <= length:
        return old, new
    pairs = enumerate(zip(old, new, strict=False))
    begin = next((at for at, (one, other) in pairs if one != other), 0) - _BEFORE_CHANGE
    return (f"...{old[begin:]}", f"...{new[begin:]}") if begin > 0 else (old, new)


def _quoted(name: str, text: str | None, table: TableChange) -> str:
    if text is None:
        return "NULL"
    short = text if len(text) <= _LENGTH else f"{text[: _LENGTH - 3]}..."
    # A value must not control the terminal.
    safe = "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in short
    )
    return safe if name in table.numeric else sql.literal(safe)


def _wrapped(head: str, parts: Sequence[str], width: int) -> Iterator[str]:
    """Yield *head* and *parts* in lines of at most *width* characters, if the parts allow that."""
    line = head
    for place, part in enumerate(parts):
        text = f"{part}{',' if place + 1 < len(parts) else ''}"
        if len(line) + 1 + len(text) > width and line.strip() != head.strip():
            yield line
            line = f"     {text}"
        else:
            line = f"{line} {text}"
    yield line


def _object(each: ObjectChange, width: int) -> Iterator[str]:
    line = f"{each.kind} {each.name} {each.change}"
    before, after = (" ".join(text.split()) for text in (each.before, each.after))
    if each.change != "changed":
        definition = before or after if each.kind in {"column", "type"} else ""
        yield f"{line}{definition and ': '}{definition}"[:width]
    elif len(line) + len(before) + len(after) + 6 <= width:
        yield f"{line}: {before} -> {after}"
    else:
        yield f"{line}:"
        for sign, text in zip("-+", _from_difference(before, after, width - 4), strict=True):
            yield f"  {sign} {text}"[:width]
