"""What a changed revision adds to a run whose collection takes a second. Prints differences.

    python benchmarks/revision.py [RUNS [REVISIONS]]

A project of 200 revisions on a kept embedded server. Its test modules work for a second, together,
when they are imported. Each round runs all cases in turn, as whole pytest processes: the test by
hand on a standing, migrated database; nothing changed; a revision added; the last one edited; and
again nothing changed in a run without tests that need a database. Shown are the medians of the wall
time, of the processor time of pytest and its children, and of the differences within a round.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from processes import standing
from template import Shop

MODULES = 10
SECONDS = 1.0

TEST = """
import pytest
from sqlalchemy import text

@pytest.mark.asyncio
async def test_a_row(db_session):
    await db_session.execute(text("INSERT INTO t1 (id, name) VALUES (1, 'Ada')"))
    await db_session.commit()
"""

BY_HAND = """
import os
import pytest_asyncio
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

@pytest_asyncio.fixture
async def db_session():
    engine = create_async_engine(os.environ["BENCH_DB"], connect_args={"ssl": False})
    async with engine.connect() as connection:
        outer = await connection.begin()
        async with AsyncSession(connection, join_transaction_mode="create_savepoint") as session:
            yield session
        await outer.rollback()
    await engine.dispose()
"""

UNIT = """
from pathlib import Path
import argparse

SOURCE = Path(argparse.__file__).read_text()
for _ in range({times}):
    compile(SOURCE, "argparse.py", "exec")  # What an import without cached bytecode does.

def test_nothing():
    pass
"""

INI = "[pytest]\nasyncio_default_fixture_loop_scope = function\n"


class Cost(NamedTuple):
    """The wall time and the processor time of a run, in seconds."""

    wall: float
    processor: float


def run(folder: Path, *arguments: str, **environment: str) -> Cost:
    """Return what a pytest process in *folder* takes; it must pass."""
    # As on a developer's machine: bytecode is cached, and nothing of the shell interferes.
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in {"PYTHONDONTWRITEBYTECODE", "CI"}
    }
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *arguments],
        cwd=folder,
        env=clean | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(wall, used)


def compilations() -> int:
    """Return how often a module must compile its source, so that all together take `SECONDS`."""
    code = compile(UNIT.format(times=20), "work", "exec")
    begin = time.perf_counter()
    exec(code, {})  # noqa: S102
    return max(round(SECONDS / MODULES / (time.perf_counter() - begin) * 20), 1)


def project(folder: Path, revisions: int, times: int, conftest: str = "") -> Shop:
    """Make a project of *revisions* in *folder*, whose modules compile their source *times*."""
    folder.mkdir()
    shop = Shop(folder, revisions, 2)
    (folder / "pytest.ini").write_text(INI)
    (folder / "conftest.py").write_text(conftest)
    for number in range(1, MODULES + 1):
        (folder / f"test_{number:02}.py").write_text(UNIT.format(times=times))
    (folder / "test_row.py").write_text(TEST)
    return shop


def main() -> None:
    """Measure and print."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    revisions = int(sys.argv[2]) if len(sys.argv) > 2 else 200
    keep = ("--reuse-containers", "--warmstack-runtime", "embedded")
    times = compilations()
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(os.path.realpath(temporary))
        home.chmod(0o755)  # The server runs as another user, when we are root.
        shop = project(home / "shop", revisions, times)
        hand = project(home / "hand", 1, times, BY_HAND)
        try:
            run(shop.folder, *keep)
            hint = shop.folder / ".pytest_cache/d/warmstack/postgres.json"
            by_hand = {"BENCH_DB": asyncio.run(standing(json.loads(hint.read_text())))}
            measure(shop, hand, runs, keep, by_hand)
        finally:
            clean = [sys.executable, "-m", "pytest_warmstack.cli", "clean", "--project"]
            subprocess.run([*clean, str(shop.folder)], check=True, capture_output=True)


def measure(
    shop: Shop, hand: Shop, runs: int, keep: tuple[str, ...], by_hand: dict[str, str]
) -> None:
    """Run all cases in turn, and print."""
    last = shop.revisions

    def added() -> Cost:
        shop.path(last + 1).unlink(missing_ok=True)
        shop.write(last + 1)
        return run(shop.folder, *keep)

    def edited() -> Cost:
        shop.path(last + 1).unlink(missing_ok=True)
        shop.write(last)
        return run(shop.folder, *keep)

    unit = [f"test_{number:02}.py" for number in range(1, MODULES + 1)]
    cases: dict[str, Callable[[], Cost]] = {
        "by hand": lambda: run(hand.folder, "-p", "no:warmstack", **by_hand),
        "nothing changed": lambda: run(shop.folder, *keep),
        "one revision added": added,
        "the last revision edited": edited,
        "no test with a database": lambda: run(shop.folder, *keep, *unit),
    }
    costs: dict[str, list[Cost]] = {name: [] for name in cases}
    for each in range(runs + 1):
        for name, case in cases.items():
            cost = case()
            if each:  # The first round fills caches.
                costs[name].append(cost)
    print(f"{last} revisions, {runs} rounds, embedded; medians, with quartiles of the differences")
    print(f"{'':28} {'wall':>8} {'processor':>10}   wall - by hand            - nothing changed")
    for name, found in costs.items():
        wall, processor = (statistics.median(each) for each in zip(*found, strict=True))
        both = [difference(found, costs[other]) for other in ("by hand", "nothing changed")]
        print(f"  {name:26} {wall * 1000:5.0f} ms {processor * 1000:7.0f} ms   {'   '.join(both)}")


def difference(own: list[Cost], other: list[Cost]) -> str:
    """Return the median and the quartiles of the difference in wall time, in milliseconds."""
    over = [(one.wall - two.wall) * 1000 for one, two in zip(own, other, strict=True)]
    if len(over) < 2:
        return f"{over[0]:+.0f}"
    first, _, third = statistics.quantiles(over, n=4)
    return f"{statistics.median(over):+5.0f} ({first:+5.0f} to {third:+5.0f})"


if __name__ == "__main__":
    main()
