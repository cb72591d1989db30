"""What the plugin costs a run: loaded and unused, warm, cold. Prints medians and ratios.

    python benchmarks/warm.py [RUNS]

Each comparison runs its two sides in turn (A B A B ...) as whole pytest processes, so that a
machine whose speed drifts slows both alike: quote the ratios, and the difference of the medians.
Servers are embedded ones, or, with WARMSTACK_RUNTIME=docker, containers.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg

ROOT = Path(__file__).parent.parent

UNIT = "def test_nothing() -> None:\n    pass\n"

TEST = """
import pytest
from sqlalchemy import text

@pytest.mark.asyncio
async def test_a_row_and_a_key(db_session, redis_client):
    await db_session.execute(
        text("INSERT INTO customers (name, email) VALUES ('Ada', 'ada@example.org')")
    )
    await db_session.commit()
    await redis_client.set("key", "value")
    assert await redis_client.get("key") == b"value"
"""

BY_HAND = """
import os
import pytest_asyncio
from redis.asyncio import Redis
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

@pytest_asyncio.fixture
async def redis_client():
    client = Redis.from_url(os.environ["BENCH_REDIS"])
    await client.flushdb()
    yield client
    await client.aclose()
"""

INI = "[pytest]\nasyncio_default_fixture_loop_scope = function\n"


def run(folder: Path, *arguments: str, **environment: str) -> float:
    """Return the seconds that a pytest process takes in *folder*; it must pass."""
    # As on a developer's machine: bytecode is cached, and nothing of the shell interferes.
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in {"PYTHONDONTWRITEBYTECODE", "CI"}
    }
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *arguments],
        cwd=folder,
        env=clean | environment,
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - begin


def compare(name: str, runs: int, a: Callable[[], float], b: Callable[[], float]) -> None:
    """Print the medians of *a* and *b*, run in turn, and of the ratio and difference of a pair."""
    a(), b()
    pairs = [(a(), b()) for _ in range(runs)]
    first, second = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(one / other for one, other in pairs)
    difference = statistics.median(one - other for one, other in pairs)
    print(
        f"{name:44} {first * 1000:7.0f} ms {second * 1000:7.0f} ms"
        f"   x {ratio:.3f}   {difference * 1000:+7.1f} ms"
    )


def project(folder: Path, **files: str) -> Path:
    """Make a project of *files*, with the migrations of this repository."""
    folder.mkdir()
    shutil.copytree(ROOT / "migrations", folder / "migrations")
    shutil.copytree(ROOT / "tests/integration/shop", folder / "tests/integration/shop")
    shutil.copy(ROOT / "alembic.ini", folder)
    for name, text in {"pytest_ini": INI, **files}.items():
        (folder / name.replace("_ini", ".ini").replace("_py", ".py")).write_text(text)
    return folder


async def standing(hint: dict[str, Any]) -> str:
    """Return the URL of a migrated database on the kept server, as one has it by hand."""
    endpoint = hint["server"]["endpoint"]
    place = f"postgres:{endpoint['password']}@{endpoint['host']}:{endpoint['port']}"
    connection = await asyncpg.connect(f"postgresql://{place}/postgres", ssl=False)
    template = await connection.fetchval("SELECT datname FROM pg_database WHERE datname ~ '_t_'")
    await connection.execute(f'CREATE DATABASE standing TEMPLATE "{template}"')
    await connection.close()
    return f"postgresql+asyncpg://{place}/standing"


def main() -> None:
    """Measure and print."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    runtime = os.environ.get("WARMSTACK_RUNTIME", "embedded")
    ours = ("-p", "no:cacheprovider", "--warmstack-runtime", runtime)
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        home.chmod(0o755)  # The server runs as another user, when we are root.
        unit = project(home / "unit", test_unit_py=UNIT)
        warm = project(home / "warm", test_warm_py=TEST)
        hand = project(home / "hand", test_hand_py=TEST, conftest_py=BY_HAND)
        print(f"{runtime}, {runs} pairs{'':28}      this     other    ratio   difference")
        try:
            compare(
                "loaded and not used : not loaded",
                runs,
                lambda: run(unit),
                lambda: run(unit, "-p", "no:warmstack"),
            )
            keep = ("--reuse-containers", "--warmstack-runtime", runtime)
            run(warm, *keep)
            remembered = warm / ".pytest_cache/d/warmstack"
            postgres, redis = (
                json.loads((remembered / f"{name}.json").read_text())
                for name in ("postgres", "redis")
            )
            cache = redis["server"]["endpoint"]
            by_hand = {
                "BENCH_DB": asyncio.run(standing(postgres)),
                "BENCH_REDIS": f"redis://:{cache['password']}@{cache['host']}:{cache['port']}/99",
            }
            compare(
                "warm : by hand, on the same servers",
                runs,
                lambda: run(warm, *keep),
                lambda: run(hand, "-p", "no:warmstack", **by_hand),
            )
            compare(
                "cold : by hand, on the same servers",
                max(runs // 3, 3),
                lambda: run(warm, *ours),
                lambda: run(hand, "-p", "no:warmstack", **by_hand),
            )
        finally:
            clean = [sys.executable, "-m", "pytest_warmstack.cli", "clean", "--project", str(warm)]
            subprocess.run(clean, check=True, capture_output=True)


if __name__ == "__main__":
    main()
