"""Makes the pictures of the documentation: real runs in a terminal of 100 columns, as SVG files.

Each picture is what commands printed in the project `library` beside this file, with embedded
servers. It also has the same text in its description, which `tests/servers/test_pictures.py`
compares with new runs. Numbers that differ from run to run don't count, so a picture is written
only when its words have changed: `make pictures`.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator
from contextlib import suppress
from html import escape, unescape
from io import StringIO
from pathlib import Path
from threading import Timer
from typing import Final

HERE: Final = Path(__file__).parent
_MIGRATIONS: Final = HERE.parents[1] / "tests" / "examples" / "library"

COLUMNS: Final = 100
_LINES: Final = 50
_SECONDS: Final = 120
"""How long a command may take; then it is killed, and the picture has what it has printed."""

_SHOWN: Final = "/home/ada/library"
"""The folder of the project, as the pictures show it."""

_PYTEST: Final = "pytest --reuse-containers"

SCENES: Final = {
    "cold": f"{_PYTEST} tests/test_books.py",
    "warm": f"{_PYTEST} tests/test_books.py",
    "failure": f"{_PYTEST} --tb=short tests/test_authors.py",
    "queries": f"{_PYTEST} --tb=short tests/test_shelf.py",
    "status": "warmstack status --project .",
    "doctor": "warmstack doctor",
}
"""The command of each picture, in the order in which they run."""

_MODULES: Final = {"pytest": "pytest", "warmstack": "pytest_warmstack.cli"}

_VARIABLES: Final = {
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    # Without pytest's own header: it has versions and folders of this machine.
    "PYTEST_ADDOPTS": "-p asyncio -p warmstack --no-header",
    "PYTHONDONTWRITEBYTECODE": "1",
    "TERM": "xterm-256color",
}

_OTHERS: Final = ("WARMSTACK_", "PYTEST_", "PG", "REDIS_", "COLUMNS", "LINES", "NO_COLOR", "FORCE_")
"""Beginnings of the names of variables that would change what a command prints."""

_OF_ANY_MACHINE: Final = ("alembic", "embedded")
"""The parts of `warmstack doctor` that a picture shows; the others depend on the machine."""

_TEMPLATE: Final = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<desc>TEXT</desc>
<style>
.{unique_id}-matrix {{
  font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px;
}}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
"""The form of a picture, with the fields of `Console.export_svg`. Each viewer has its own fonts."""

_VARYING: Final = (
    (r"(under )?\b\d+(\.\d+)? ?(ms|s|min|h|d)\b", "<time>"),
    (r"<time> ago|\bnow\b", "<time>"),
    (r"\b\d+(\.\d+)? [kMG]?B\b", "<size>"),
    (r"\b(127\.0\.0\.1|localhost):\d+", "<address>"),
    (r"\bprocess \d+", "process <id>"),
    (r"\b0x[0-9a-f]+|(?<![a-z])[0-9a-f]{10,}(?![a-z])", "<id>"),
    (r"\b\d+(\.\d+)+\b", "<version>"),
    (r"\S*/(?=valkey-server|redis-server|postgres\b)", "<folder>/"),
    (
        r"([=_ ])\1+|(-)-{2,}",
        r"\1\2",
    ),  # Rulers and columns are as long as the numbers beside them let them.
)
"""What differs from run to run, from machine to machine, or from version to version."""


def scenes(folder: Path) -> Iterator[tuple[str, str]]:
    """Run all commands in a copy of the project in *folder*; yield names and what was printed.

    The servers are removed at the end, also if something fails.
    """
    shutil.copytree(_MIGRATIONS, folder, ignore=shutil.ignore_patterns("test_*", "__pycache__"))
    shutil.copytree(HERE / "library", folder, dirs_exist_ok=True)
    try:
        for name, command in SCENES.items():
            printed = run(command, folder)
            yield name, _excerpt(printed) if name == "doctor" else printed
    finally:
        run("warmstack clean --force", folder)


def run(command: str, folder: Path) -> str:
    """Return what a command prints to a terminal, after its prompt."""
    program, *arguments = command.split()
    environ = {
        name: value
        for name, value in os.environ.items()
        if name != "CI" and not name.startswith(_OTHERS)
    }
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", _LINES, COLUMNS, 0, 0))
        process = subprocess.Popen(
            [sys.executable, "-m", _MODULES[program], *arguments],
            cwd=folder,
            env=environ | _VARIABLES,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        deadline = Timer(_SECONDS, process.kill)
        deadline.start()
        output = b""
        # Linux reports an error when the last process has closed the other side.
        with suppress(OSError):
            while block := terminal.read(65536):
                output += block
    process.wait(_SECONDS)
    deadline.cancel()
    text = output.decode().replace("\r\n", "\n").replace(str(folder), _SHOWN)
    text = text.replace(sys.prefix, f"{_SHOWN}/.venv")
    return f"$ {command}\n{text.rstrip()}\n"


def _excerpt(doctor: str) -> str:
    """Return the parts of doctor's report that are the same on each machine."""
    first, *parts, last = doctor.split("\n\n")
    kept = []
    for part in parts:
        title, *rows = part.splitlines()
        if title.strip() in _OF_ANY_MACHINE:
            kept.append("\n".join([title, *(row for row in rows if row.startswith("  ok"))]))
        elif not kept or kept[-1] != "...":
            kept.append("...")
    return "\n\n".join([first, *kept, last])


def plain(printed: str) -> str:
    """Return the text of what a terminal shows after *printed*."""
    from rich.ansi import AnsiDecoder

    return "\n".join(line.plain for line in AnsiDecoder().decode(printed)).strip()


def words(text: str) -> list[str]:
    """Return the lines of *text*, without what differs from run to run."""
    for pattern, name in _VARYING:
        text = re.sub(pattern, name, text)
    return [line.rstrip() for line in text.splitlines()]


def picture(name: str) -> Path:
    """Return the file of a picture."""
    return HERE / f"{name}.svg"


def text_of(svg: Path) -> str:
    """Return the text in a picture."""
    found = re.search("<desc>(.*)</desc>", svg.read_text(encoding="utf-8"), re.DOTALL)
    return unescape(found[1]) if found is not None else ""


def drawn(name: str, printed: str) -> str:
    """Return the picture of what was printed, as SVG that refers to nothing outside of it."""
    from rich.ansi import AnsiDecoder
    from rich.console import Console
    from rich.text import Text

    console = Console(
        record=True,
        width=COLUMNS,
        file=StringIO(),
        force_terminal=True,
        color_system="truecolor",
        legacy_windows=False,
    )
    for line in AnsiDecoder().decode(printed.rstrip()):
        # A terminal breaks lines anywhere, rich between words.
        for part in line.divide(range(COLUMNS, len(line), COLUMNS)) or [Text()]:
            console.print(part, no_wrap=True, crop=False, highlight=False)
    # Braces would be fields of the template.
    text = escape(plain(printed), quote=False).replace("{", "{{").replace("}", "}}")
    template = _TEMPLATE.replace("TEXT", text)
    return console.export_svg(title="", code_format=template, unique_id=name)


def main() -> None:
    """Write the pictures whose words have changed."""
    with tempfile.TemporaryDirectory() as place:
        for name, printed in scenes(Path(os.path.realpath(place)) / "library"):
            path = picture(name)
            if path.exists() and words(text_of(path)) == words(plain(printed)):
                print(f"{path.name}: unchanged")
            else:
                path.write_text(drawn(name, printed), encoding="utf-8")
                print(f"{path.name}: written")


if __name__ == "__main__":
    main()
