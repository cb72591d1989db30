"""The base of all errors of this package, and the layout of a message.

Each error has four parts: what failed, why, what was looked at, what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class WarmstackError(Exception):
    """Base of all errors of this package; `str()` of one is the text for the user.

    *what* failed and *why* are sentences, *looked_at* is a list of places or facts that were
    examined, *todo* a list of ways out.
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
        """Return the line for a reader who has met the whole of it before."""
        return f"{self.what} (Same error as above; see its first occurrence for details.)"

    @property
    def line(self) -> str:
        """What failed, and why, on one line."""
        return " ".join(f"{self.what} {self.why}".split())

    def __str__(self) -> str:
        parts = [self.what, _titled("Why:", [self.why])]
        if self.looked_at:
            parts.append(_titled("Looked at:", self.looked_at))
        parts.append(_titled("What to do:", self.todo))
        return "\n".join(parts)


def did_you_mean(word: str, known: Iterable[str], *, after: str = "") -> str:
    """Return the end of a sentence that names the one of *known* most like *word*, if any is.

    Only what comes *after* that beginning is compared: it makes no word more like another.
    """
    from difflib import get_close_matches

    rest = {each.removeprefix(after): each for each in known}
    near = get_close_matches(word.removeprefix(after), rest, n=1)
    return f"; did you mean {rest[near[0]]}?" if near else ""


def line_of(name: str, value: str, file: str) -> str:
    """Return the line for the configuration *file* of pytest that gives *name* the text *value*.

    >>> line_of("warmstack_alembic", "none", "pyproject.toml")
    'warmstack_alembic = "none"'
    """
    return f'{name} = "{value}"' if file.endswith(".toml") else f"{name} = {value}"


def _titled(title: str, entries: Sequence[str]) -> str:
    """Return *entries* under *title*; one short entry stays on the title's own line."""
    if len(entries) == 1 and "\n" not in entries[0]:
        return f"{title} {entries[0]}"
    indented = ("\n    ".join(entry.splitlines()) for entry in entries)
    return "\n".join([title, *(f"  - {entry}" for entry in indented)])


def listed(names: Iterable[str]) -> str:
    """Return *names* as a readable list."""
    return ", ".join(sorted(names)) or "nothing"
