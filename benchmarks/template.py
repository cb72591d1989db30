"""What a template costs: built whole, one revision added, the last one edited, found unchanged.

    python benchmarks/template.py [ROUNDS [STATEMENTS]]

A project of 200 revisions of two (or STATEMENTS) statements each on an embedded server. Each round
takes all sides in turn, so that a machine whose speed drifts slows them alike: quote the ratios.
Timed is what a run does between having the server and having the template.
"""

from __future__ import annotations

import gc
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pytest_warmstack import cleanup
from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.options import Settings
from pytest_warmstack.postgres import server
from pytest_warmstack.postgres.clones import CloneFactory
from pytest_warmstack.postgres.databases import Databases
from pytest_warmstack.postgres.retention import Retention
from pytest_warmstack.postgres.template import layers, templates
from pytest_warmstack.postgres.template.configurations import Configurations
from pytest_warmstack.postgres.template.dependencies import FileState
from pytest_warmstack.servers.embedded import Embedded
from pytest_warmstack.servers.identity import Process, Project
from pytest_warmstack.servers.model import RunContext

REVISIONS = 200
FILES = 1000

ENV = """
import asyncio
from alembic import context
from sqlalchemy.ext.asyncio import create_async_engine

def migrate(connection):
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()

async def main():
    engine = create_async_engine(context.config.get_main_option("sqlalchemy.url"))
    async with engine.connect() as connection:
        await connection.run_sync(migrate)
    await engine.dispose()

asyncio.run(main())
"""


class Shop:
    """A project of many small revisions, in a folder of its own."""

    def __init__(self, folder: Path, revisions: int, statements: int) -> None:
        self.folder = folder
        self.revisions, self.statements = revisions, statements
        self.edits = 0
        (folder / "migrations/versions").mkdir(parents=True)
        (folder / "migrations/env.py").write_text(ENV)
        (folder / "alembic.ini").write_text("[alembic]\nscript_location = %(here)s/migrations\n")
        for number in range(1, revisions + 1):
            self.write(number)

    def path(self, number: int) -> Path:
        """Return the file of a revision."""
        return self.folder / f"migrations/versions/{number:04}_step.py"

    def write(self, number: int) -> None:
        """Write a revision, unlike any that was written before."""
        self.edits += 1
        before = repr(f"{number - 1:04}") if number > 1 else None
        lines = [
            "import sqlalchemy as sa",
            "from alembic import op",
            f"revision, down_revision = '{number:04}', {before}",
            "def upgrade():",
            f"    op.create_table('t{number}', sa.Column('id', sa.Integer, primary_key=True),",
            f"        sa.Column('name', sa.String({self.edits + 50})))",
            f"    op.create_index('ix{number}', 't{number}', ['name'])",
            *(
                f"    op.add_column('t{number}', sa.Column('c{more}', sa.Integer))"
                for more in range(self.statements - 2)
            ),
        ]
        self.path(number).write_text("\n".join(lines) + "\n")


@contextmanager
def running(folder: Path) -> Iterator[Databases]:
    """Yield the connection to a PostgreSQL of the benchmark's own; it is removed at the end."""
    background = BackgroundLoop()
    run_context = RunContext(
        project=Project(path=str(folder)),
        run=os.urandom(5).hex(),
        owner=Process.current(),
        keep=False,
        start_timeout=60,
    )
    runtime = Embedded(run_context)
    try:
        found = runtime.ensure(server.spec(Settings(), background))
        yield found.client
        found.client.close()
    finally:
        cleanup.tidy(runtime, run_context.run, Settings().max_idle)
        runtime.close()
        background.close()


def ensured(admin: Databases, shop: Shop, expected: str, *, rebuild: bool = False) -> float:
    """Return the seconds that a run needs to have the template."""
    gc.collect()
    begin = time.perf_counter()
    file_state = FileState(str(shop.folder))
    settings = Settings(rebuild=rebuild, migrate_timeout=300)
    alembic = Configurations(settings, shop.folder).of(shop.folder)
    request = templates.TemplateRequest(
        layers=layers.make(settings, shop.folder, file_state, alembic),
        settings=settings,
        file_state=file_state,
        say=print,
        run=os.urandom(5).hex(),
    )
    made = templates.ensure(admin, request)
    seconds = time.perf_counter() - begin
    assert f"{made.origin} {made.how}".strip() == expected, made
    # As the sweep of a run does: the last used ones stay.
    clone_factory = CloneFactory(admin, made.name)
    clone_factory.sweep(Retention(templates=4), notes=made.notes()).result()
    clone_factory.leave([], stock=0).result()
    return seconds


def started() -> float:
    """Return the seconds that the child needs before it can do anything."""
    begin = time.perf_counter()
    child = [
        sys.executable,
        "-P",
        "-m",
        "pytest_warmstack.postgres.template.child",
        "alembic.command",
    ]
    subprocess.run(child, stdin=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin


def main() -> None:
    """Measure and print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    statements = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    home = Path(os.path.realpath(tempfile.mkdtemp()))
    try:
        shop = Shop(home / "shop", REVISIONS, statements)
        many = Shop(home / "many", FILES, 3)
        with running(home) as admin:
            measure(admin, shop, rounds, statements)
            ensured(admin, many, "rebuilt", rebuild=True)
            times = [ensured(admin, many, "found") for _ in range(max(rounds, 9))]
            print(f"\n{FILES} unchanged revision files checked: {show(times)} (budget 50 ms)")
    finally:
        shutil.rmtree(home)


def measure(admin: Databases, shop: Shop, rounds: int, statements: int) -> None:
    """Measure what a changed history costs, against building all of it."""

    def add() -> float:
        shop.path(REVISIONS + 1).unlink(missing_ok=True)
        shop.write(REVISIONS + 1)
        return ensured(admin, shop, f"extended by 1 revision from {REVISIONS}")

    def edit() -> float:
        shop.path(REVISIONS + 1).unlink(missing_ok=True)
        shop.write(REVISIONS)
        return ensured(admin, shop, "rebuilt")

    def edit_again() -> float:
        shop.write(REVISIONS)
        return ensured(admin, shop, f"extended by 1 revision from {REVISIONS - 1}")

    ensured(admin, shop, "built")
    sides: dict[str, Callable[[], float]] = {
        "all of it, from nothing": lambda: ensured(admin, shop, "rebuilt", rebuild=True),
        "the last one edited": edit,
        "the last one edited again": edit_again,
        "one added": add,
        "unchanged": lambda: ensured(admin, shop, "found"),
        "(the child's start alone)": started,
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        shop.path(REVISIONS + 1).unlink(missing_ok=True)
        for name, side in sides.items():
            times[name].append(side())
    print(f"{REVISIONS} revisions of {statements} statements, {rounds} rounds, embedded")
    whole = times["all of it, from nothing"]
    for name, taken in times.items():
        ratio = statistics.median(one / all_ for one, all_ in zip(taken, whole, strict=True))
        print(f"  {name:28} {show(taken):>10}   x {ratio:.3f}")


def show(times: list[float]) -> str:
    """Return the median of *times* as one reads it."""
    return f"{statistics.median(times) * 1000:.0f} ms"


if __name__ == "__main__":
    main()
