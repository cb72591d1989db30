"""Bars as SVG, without a library: matplotlib would bring a dozen distributions for forty lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple
from xml.sax.saxutils import escape

WIDTH: Final = 760
LABELS: Final = 215
"""The width of the column with the names."""
NOTES: Final = 130
"""The width that is free beside the longest bar."""
ROW: Final = 24
HEADING: Final = 40

STYLE: Final = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .heading { font-weight: 600 }
  .name { text-anchor: end }
  .ours { fill: #2f6feb }
  .other { fill: #afb8c1 }
  .spread { stroke: #57606a; stroke-width: 1.5 }
"""


class Bar(NamedTuple):
    """A bar with its name, and a line from the least to the most."""

    name: str
    value: float
    least: float
    most: float
    note: str
    ours: bool = False


class Panel(NamedTuple):
    """Bars with one scale, from zero."""

    heading: str
    rows: Sequence[Bar]


def bars(panels: Sequence[Panel]) -> str:
    """Return *panels* as an SVG document, one below the other."""
    lines: list[str] = []
    top = 0
    for panel in panels:
        lines.append(f'<text class="heading" x="12" y="{top + 24}">{escape(panel.heading)}</text>')
        top += HEADING
        longest = max((row.most for row in panel.rows), default=1)
        scale = (WIDTH - LABELS - NOTES) / longest
        for row in panel.rows:
            middle = top + ROW // 2
            least, end, most = (
                round(LABELS + value * scale, 1) for value in (row.least, row.value, row.most)
            )
            kind = "ours" if row.ours else "other"
            lines += [
                f'<text class="name" x="{LABELS - 8}" y="{middle + 4}">{escape(row.name)}</text>',
                f'<rect class="{kind}" x="{LABELS}" y="{middle - 7}"'
                f' width="{end - LABELS:.1f}" height="14"/>',
                f'<path class="spread" d="M{least} {middle}H{most}"/>',
                f'<text x="{max(end, most) + 8}" y="{middle + 4}">{escape(row.note)}</text>',
            ]
            top += ROW
    height = top + 12
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
        f' width="{WIDTH}" height="{height}" role="img">'
    )
    background = f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>'
    return "\n".join([head, f"<style>{STYLE}</style>", background, *lines, "</svg>"]) + "\n"
