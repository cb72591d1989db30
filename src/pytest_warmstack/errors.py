"""The base class of all errors of this package, and the layout of a message.

A message has four parts: what failed, why, what was looked at, what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class WarmstackError(Exception):
    """The base class of all errors of this package; `str()` returns the text for the user.

    *what* and *why* are sentences. *looked_at* is a list of places or facts that the user could not
    guess. *todo* is a list of cures, the likeliest one first.
    """

    def __init__(
        self,
        what: str,
        *,
        why: str,
        looked_at: Iterable[str] = (),
        todo: Iterable[str],
    ) -> None:
        self.what = what
        self.why = why
        self.looked_at = tuple(looked_at)
        self.todo = tuple(todo)
        super().__init__(what)

    def brief(self) -> str:
        """Return one line, for a report that shows the full text elsewhere."""
        return f"{self.what} (Same error as above; see its first occurrence for details.)"

    @property
    def line(self) -> str:
        """What failed and why, on one line."""
        return " ".join(f"{self.what} {self.why}".split())

    def __str__(self) -> str:
        parts = [self.what, _titled("Why:", [self.why])]
        if self.looked_at:
            parts.append(_titled("Looked at:", self.looked_at))
        parts.append(_titled("What to do:", self.todo))
        return "\n".join(parts)


def did_you_mean(word: str, known: Iterable[str], *, after: str = "") -> str:
    """Return the end of a sentence that suggests the one of *known* that is most like *word*.

    It is empty if none is similar. *after* is a prefix that all words share; it is not compared,
    because it would make all of them look similar.
    """
    from difflib import get_close_matches

    rest = {each.removeprefix(after): each for each in known}
    near = get_close_matches(word.removeprefix(after), rest, n=1)
    return f"; did you mean {rest[near[0]]}?" if near else ""


def line_of(name: str, value: str, file: str) -> str:
    """Return the line that sets *name* to the text *value* in pytest's configuration *file*.

    >>> line_of("warmstack_alembic", "none", "pyproject.toml")
    'warmstack_alembic = "none"'
    """
    return f'{name} = "{value}"' if file.endswith(".toml") else f"{name} = {value}"


def _titled(title: str, entries: Sequence[str]) -> str:
    """Return *entries* below *title*; a single short entry is on the same line."""
    if len(entries) == 1 and "\n" not in entries[0]:
        return f"{title} {entries[0]}"
    indented = ("\n    ".join(entry.splitlines()) for entry in entries)
    return "\n".join([title, *(f"  - {entry}" for entry in indented)])


def listed(names: Iterable[str]) -> str:
    """Return *names* as a readable list."""
    return ", ".join(sorted(names)) or "nothing"
