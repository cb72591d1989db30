"""The lines of PostgreSQL's log that belong to one database. Pure; imported by failures only."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from pytest_warmstack.structs import Struct

_LINE: Final = re.compile(
    r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+) UTC \[(\d+)\] (\S+) ([A-Z]+\d?):  (.*)"
)
"""Matches a line of a server with the `log_line_prefix` and `log_timezone` of `server.OPTIONS`."""

_MORE: Final = frozenset({"DETAIL", "HINT", "QUERY", "CONTEXT", "LOCATION", "STATEMENT"})
"""What a line begins with that adds to the line before it (PostgreSQL's elog.c)."""

_FAILED: Final = frozenset({"ERROR", "FATAL", "PANIC"})


class Message(Struct):
    """A message of the server to the connection *pid*, in *lines* such as `ERROR: no such table`.

    *statement* is the one that failed, or empty. *time* is in seconds since the epoch.
    """

    pid: int
    time: float
    level: str
    lines: list[str]
    statement: str = ""

    @property
    def is_failure(self) -> bool:
        """Whether a statement failed."""
        return self.level in _FAILED and bool(self.statement)


def messages(
    lines: Iterable[str], database: str, *, since: float = 0.0, without: int = 0
) -> list[Message]:
    """Return the messages about *database* since then, but not those to the connection *without*.

    Lines that have another form are ignored: an external server's, or those of a server for which
    the user has set another `log_line_prefix`.
    """
    found: list[Message] = []
    last: dict[int, Message] = {}
    current: tuple[Message, str] | None = None
    for line in lines:
        if line.startswith("\t"):  # The next line of the same text.
            if current is not None:
                _append(*current, f"\n{line[1:]}")
            continue
        current = None
        match = _LINE.match(line)
        if match is None or match[3] != database:
            continue
        time = datetime.fromisoformat(match[1]).replace(tzinfo=UTC).timestamp()
        pid, level, text = int(match[2]), match[4], match[5]
        if time < since or pid == without:
            continue
        if level not in _MORE:
            last[pid] = Message(pid, time, level, [])
            found.append(last[pid])
        if pid in last:
            current = last[pid], level
            if level != "STATEMENT":
                last[pid].lines.append(f"{level}: ")
            _append(*current, text)
    return found


def _append(message: Message, level: str, text: str) -> None:
    if level == "STATEMENT":
        message.statement += text
    else:
        message.lines[-1] += text
