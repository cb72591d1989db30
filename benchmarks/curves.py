"""How time grows with a project: revisions, tables, workers, megabytes of seed.

    python benchmarks/curves.py [ROUNDS] [--curve NAME ...] [--quick] [--json FILE]

`revisions`: a warm run of one test. `tables`, `workers` and `seed`: a suite of tests that each
insert ten rows in two tables by SQLAlchemy's ORM, commit, and count them, with a database per test.
Each size is a project of its own with a server that stays; what is measured is the whole pytest
process, with template and ready clones found there, all sizes in turn (A B C A B C ...), after a
run that isn't measured. For each test, the median of wall time and of processor time is printed:
that of the pytest processes, and that of the server, until it is idle again.

The servers are embedded ones, or, with WARMSTACK_RUNTIME=docker, containers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

import processes
from template import ENV

from bookings import Project

TABLES: Final = 20

INI: Final = """
[pytest]
asyncio_mode = auto
asyncio_default_fixture_loop_scope = session
asyncio_default_test_loop_scope = session
"""

TEST: Final = """
import os

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

class Base(DeclarativeBase):
    pass

class First(Base):
    __tablename__ = "thing_first"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]

class Last(Base):
    __tablename__ = "thing_last"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]

@pytest.mark.parametrize("number", range(int(os.environ["BENCH_TESTS"])))
async def test_ten_rows(db_session, number):
    for kind in (First, Last):
        db_session.add_all(kind(name=f"{number} {row}") for row in range(5))
    await db_session.commit()
    for kind in (First, Last):
        assert await db_session.scalar(select(func.count()).select_from(kind)) == 5
"""


def tables(names: Iterable[object]) -> str:
    """Return SQL that creates tables."""
    return "".join(
        f"CREATE TABLE thing_{name} (id serial PRIMARY KEY, name text NOT NULL,"
        f" made timestamptz DEFAULT now());\nCREATE INDEX ON thing_{name} (name);\n"
        for name in names
    )


def with_tables(folder: Path, count: int) -> None:
    """Let the project have as many tables; the tests write to the first and the last one."""
    names = ["first", *range(count - 2), "last"]
    (folder / "schema.sql").write_text(tables(names))
    with (folder / "pytest.ini").open("a") as file:
        file.write("warmstack_schema = schema.sql\n")


def with_revisions(folder: Path, count: int) -> None:
    """Let the project have as many revisions; none but the first changes much."""
    versions = folder / "migrations/versions"
    versions.mkdir(parents=True)
    (folder / "migrations/env.py").write_text(ENV)
    (folder / "alembic.ini").write_text("[alembic]\nscript_location = %(here)s/migrations\n")
    for number in range(1, count + 1):
        before = repr(f"{number - 1:04}") if number > 1 else None
        sql = tables(["first", "last"]) if number == 1 else ""
        sql += f"COMMENT ON TABLE thing_first IS '{number}';\n"
        (versions / f"{number:04}_step.py").write_text(
            "from alembic import op\n"
            f"revision, down_revision = '{number:04}', {before}\n"
            "def upgrade():\n"
            f"    for statement in {sql!r}.split(';\\n')[:-1]:\n"
            "        op.execute(statement)\n"
        )


def with_seed(folder: Path, megabytes: int) -> None:
    """Let the project have as many megabytes of rows, in one table that no test reads."""
    with_tables(folder, TABLES)
    rows = megabytes * 1024
    (folder / "seed.sql").write_text(
        "CREATE TABLE history AS SELECT id, repeat(md5(id::text), 30) AS text"
        f" FROM generate_series(1, {rows}) AS id;\n"
    )
    with (folder / "pytest.ini").open("a") as file:
        file.write("warmstack_seed = seed.sql\n")


class Curve(NamedTuple):
    """What grows, and by which sizes."""

    what: str
    sizes: tuple[int, ...]
    prepare: Callable[[Path, int], None]
    tests: int = 100
    workers: bool = False


CURVES: Final = {
    "revisions": Curve("revisions", (1, 10, 100, 1000), with_revisions, tests=1),
    "tables": Curve("tables", (2, 20, 100, 400), with_tables),
    "workers": Curve(
        "workers",
        (1, 2, 4, 8),
        lambda folder, _: with_tables(folder, TABLES),
        tests=400,
        workers=True,
    ),
    "seed": Curve("MB of seed", (10, 100, 1000), with_seed, tests=50),
}


def project(folder: Path, curve: Curve, size: int, runtime: str) -> Project:
    """Make a project of one size in *folder*."""
    folder.mkdir()
    (folder / "pytest.ini").write_text(INI)
    (folder / "test_rows.py").write_text(TEST)
    curve.prepare(folder, size)
    return Project(
        folder,
        *("--disable-plugin-autoload", "-p", "asyncio", "-p", "warmstack"),
        *("--reuse-containers", f"--warmstack-runtime={runtime}"),
        *(("-p", "xdist", "-n", str(size)) if curve.workers else ()),
    )


def measure(curve: Curve, sizes: tuple[int, ...], rounds: int, runtime: str) -> list[Any]:
    """Print what a test costs at each size; return it."""
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        home.chmod(0o755)  # The server runs as another user, when we are root.
        projects = [project(home / f"size-{size}", curve, size, runtime) for size in sizes]
        tests = str(curve.tests)
        try:
            for each in projects:
                each.prepare(BENCH_TESTS=tests)
            turns = [[each.cost(BENCH_TESTS=tests) for each in projects] for _ in range(rounds)]
        finally:
            for each in projects:
                processes.clean(each.folder)
    what = "a warm run of one test" if curve.tests == 1 else f"a test of {curve.tests}"
    print(f"\n{what}, by {curve.what} (ms, median of {rounds}; least, most)")
    print(f"{curve.what:>12}{'wall':>10}{'':20}{'client':>8}{'server':>8}   ratio: wall")
    points = []
    for place, size in enumerate(sizes):
        costs = [turn[place] for turn in turns]
        wall, client, server = (
            [seconds * 1000 / curve.tests for seconds in each] for each in zip(*costs, strict=True)
        )
        point = {
            "size": size,
            "wall_ms": statistics.median(wall),
            "least_ms": min(wall),
            "most_ms": max(wall),
            "client_ms": statistics.median(client),
            "server_ms": statistics.median(server),
            "wall_ratio": statistics.median(turn[place].wall / turn[0].wall for turn in turns),
        }
        points.append(point)
        spread = f"({min(wall):.1f}, {max(wall):.1f})"
        print(
            f"{size:12}{point['wall_ms']:10.1f}  {spread:18}"
            f"{point['client_ms']:8.1f}{point['server_ms']:8.1f}   x {point['wall_ratio']:.2f}"
        )
    return points


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rounds", type=int, nargs="?", default=5)
    parser.add_argument("--curve", choices=CURVES, action="append", help="this curve only")
    parser.add_argument("--quick", action="store_true", help="one round of the two least sizes")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    arguments = parser.parse_args()
    runtime = os.environ.get("WARMSTACK_RUNTIME", "embedded")
    rounds = 1 if arguments.quick else arguments.rounds
    print(runtime)
    curves = {}
    for name in arguments.curve or CURVES:
        curve = CURVES[name]
        sizes = curve.sizes[:2] if arguments.quick else curve.sizes
        points = measure(curve, sizes, rounds, runtime)
        curves[name] = {"what": curve.what, "tests": curve.tests, "points": points}
    if arguments.json:
        result = {"runtime": runtime, "rounds": rounds, "curves": curves}
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
