"""What an unchanged application costs its tests, against one that is wired for them by hand.

    python benchmarks/application.py [ROUNDS [TESTS]]

The application is `examples/fastapi_orders`: each test orders something over HTTP, a background
task confirms it, and the test reads it twice. Three suites run in turn, A B C A B ..., as whole
pytest processes on the same servers: with the plugin and nothing but its ini lines, with a loop for
each test and with one loop; and by hand as it is usually done, with dependency overrides and a
rollback, on one engine in one loop. What is compared is the time from the begin of the first test
to the end of the last one, and that of the whole process: quote the ratios.

The servers are embedded ones, or, with WARMSTACK_RUNTIME=docker, containers.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Final

from processes import ROOT, address, clean, remembered, run, standing

EXAMPLE: Final = ROOT / "examples/fastapi_orders"

CONFTEST: Final = """
import asyncio
import os
import time

import pytest

if "BENCH_BY_HAND" in os.environ:
    import pytest_asyncio
    from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

    from orders import main
    from orders.database import cache, get_session
    from orders.settings import settings

    @pytest_asyncio.fixture(scope="session", loop_scope="session")
    async def engine():
        engine = create_async_engine(settings.database_url, connect_args={"ssl": False})
        yield engine
        await engine.dispose()

    @pytest_asyncio.fixture(autouse=True, loop_scope="session")
    async def wired(engine, monkeypatch):
        await cache.flushdb()
        async with engine.connect() as connection:
            around = await connection.begin()
            factory = async_sessionmaker(
                connection, join_transaction_mode="create_savepoint", expire_on_commit=False
            )

            async def session():
                async with factory() as made:
                    yield made

            main.app.dependency_overrides[get_session] = session
            # What no override reaches: the background task.
            monkeypatch.setattr(main, "Session", factory)
            yield
            main.app.dependency_overrides.clear()
            await around.rollback()
"""

TEST: Final = """
import asyncio
import os

import pytest
from httpx import ASGITransport, AsyncClient

from orders.main import app


@pytest.mark.parametrize("number", range(int(os.environ["BENCH_TESTS"])))
async def test_an_order(number):
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        created = (await client.post("/orders", json={"item": str(number)})).json()
        read = (await client.get(f"/orders/{created['id']}")).json()
        assert read == created | {"status": "confirmed"}
        assert (await client.get("/orders")).json() == {"orders": 1}
"""

OURS: Final = "unchanged, a loop each"
ONE_LOOP: Final = "unchanged, one loop"
BY_HAND: Final = "by hand, one engine, one loop"


class Suite:
    """The example with its tests replaced, in *folder*, and ways to run it."""

    def __init__(self, folder: Path, runtime: str, tests: int) -> None:
        self.folder = folder
        self.tests = tests
        self._keep = ("-p", "warmstack", "--reuse-containers", f"--warmstack-runtime={runtime}")
        self._by_hand: dict[str, str] = {}
        shutil.copytree(EXAMPLE, folder, dirs_exist_ok=True)
        shutil.rmtree(folder / "tests")
        (folder / "tests").mkdir()
        shutil.copy(ROOT / "benchmarks/projects/suite/span.py", folder)
        (folder / "tests/conftest.py").write_text(CONFTEST)
        (folder / "tests/test_many.py").write_text(TEST)

    def prepare(self) -> None:
        """Start the servers, and make a migrated database on them as one has it by hand."""
        self.run(OURS)
        hints = remembered(self.folder)
        self._by_hand = {
            "BENCH_BY_HAND": "yes",
            "ORDERS_DATABASE_URL": asyncio.run(standing(hints["postgres"])),
            "ORDERS_REDIS_URL": f"redis://{address(hints['redis'])}/99",
        }

    def run(self, name: str) -> tuple[float, float]:
        """Return the milliseconds of a test, and the seconds of the whole process."""
        result = self.folder / "result"
        loop = "function" if name == OURS else "session"
        seconds = run(
            self.folder,
            *("--disable-plugin-autoload", "-p", "asyncio", "-p", "span"),
            *(() if name == BY_HAND else self._keep),
            *("-o", f"asyncio_default_test_loop_scope={loop}"),
            **(self._by_hand if name == BY_HAND else {}),
            BENCH_SPAN=str(result),
            BENCH_TESTS=str(self.tests),
        )
        return float(result.read_text()) * 1000 / self.tests, seconds


def compare(suite: Suite, rounds: int) -> None:
    """Print what a test and a run cost in each suite, and the ratios."""
    names = (OURS, ONE_LOOP, BY_HAND)
    costs: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            costs[name].append(suite.run(name))
    print(f"{suite.tests} tests, median of {rounds} (least, most)")
    for name, each in costs.items():
        tests, runs = ([pair[place] for pair in each] for place in (0, 1))
        print(
            f"  {name:32}{statistics.median(tests):7.2f} ms a test"
            f" ({min(tests):.2f}, {max(tests):.2f}){statistics.median(runs):8.2f} s the run"
        )
    for name in (OURS, ONE_LOOP):
        pairs = list(zip(costs[name], costs[BY_HAND], strict=True))
        ratios = [statistics.median(a[place] / b[place] for a, b in pairs) for place in (0, 1)]
        print(f"  {name} : {BY_HAND}   x {ratios[0]:.2f}, the run x {ratios[1]:.2f}")


def main() -> None:
    """Measure and print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    tests = int(sys.argv[2]) if len(sys.argv) > 2 else 200
    runtime = os.environ.get("WARMSTACK_RUNTIME", "embedded")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)  # The server runs as another user, when we are root.
        suite = Suite(folder, runtime, tests)
        try:
            suite.prepare()
            print(f"{runtime}, {EXAMPLE.name}")
            compare(suite, rounds)
        finally:
            clean(folder)


if __name__ == "__main__":
    main()
