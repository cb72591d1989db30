"""What a test's connections cost, new and kept: the processor time of the client and of the server.

    python benchmarks/connections.py [COUNT]

Each line is the median of five rounds, all lines in turn, of COUNT repetitions in this process, on
embedded servers. Quote the ratios.
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
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import asyncpg
from redis.asyncio import Redis

from pytest_warmstack.background import Begun
from pytest_warmstack.postgres.driver_connections import connection_class
from pytest_warmstack.redis.connections import open_client
from pytest_warmstack.redis.kept import KeptSocket

ROUNDS: Final = 5
TICKS: Final = os.sysconf("SC_CLK_TCK")
SCHEMA: Final = """
CREATE TYPE mood AS ENUM ('glad', 'sad');
CREATE TABLE thing (id serial PRIMARY KEY, name text, mood mood, moods mood[]);
"""
TEST: Final = "async def test(db_session, redis_client): pass"
INI: Final = "[pytest]\nwarmstack_schema = schema.sql\nasyncio_mode = auto\n"


def ticks(pid: int) -> int:
    """Return the processor time of a process and of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15]))


class Server:
    """A server that a run has kept."""

    def __init__(self, folder: Path, service: str) -> None:
        hint = json.loads((folder / f".pytest_cache/d/warmstack/{service}.json").read_text())
        self.endpoint: Any = hint["server"]["endpoint"]
        self._pid = int(hint["server"]["id"].split("/")[1])

    def seconds(self) -> float:
        """Return the processor time that it has taken, with all its processes."""
        children = Path(f"/proc/{self._pid}/task/{self._pid}/children").read_text().split()
        return (ticks(self._pid) + sum(map(ticks, map(int, children)))) / TICKS


def own_seconds() -> float:
    """Return the processor time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def measure(folder: Path, count: int) -> None:
    """Measure and print."""
    postgres, redis = Server(folder, "postgres"), Server(folder, "redis")
    place = f"127.0.0.1:{postgres.endpoint['port']}"
    server = f"postgresql://postgres:{postgres.endpoint['password']}@{place}"
    admin = await asyncpg.connect(f"{server}/postgres", ssl=False)
    query = "SELECT datname FROM pg_database WHERE datname ~ '^warmstack_t_'"
    await admin.execute(f'CREATE DATABASE c TEMPLATE "{await admin.fetchval(query)}"')
    await admin.close()
    url = f"redis://:{redis.endpoint['password']}@127.0.0.1:{redis.endpoint['port']}/3"
    kept_socket = KeptSocket()

    async def connect(kind: Any = asyncpg.Connection) -> Any:
        return await asyncpg.connect(f"{server}/c", ssl=False, connection_class=kind)

    async def work(connection: Any) -> None:
        for _ in range(5):
            await connection.fetch("INSERT INTO thing (name) VALUES ($1) RETURNING id", "a")
        await connection.execute("TRUNCATE thing")

    async def look_up(connection: Any) -> None:
        await connection.fetch("SELECT moods FROM thing WHERE mood = $1", "glad")

    async def new(kind: Any, *steps: Callable[[Any], Awaitable[None]]) -> None:
        connection = await connect(kind)
        for step in steps:
            await step(connection)
        connection.terminate()

    async def by_hand() -> None:
        redis_client: Any = Redis.from_url(url)
        await redis_client.set("a", 1)
        await redis_client.aclose()

    async def ours() -> None:
        redis_client, close = open_client(url, Begun(), kept_socket)
        await redis_client.set("a", 1)
        await close()

    sharing = connection_class("benchmark")
    kept = await connect(sharing)

    async def cleaned() -> None:
        await work(kept)
        await kept.clean()

    cases: dict[str, tuple[Server, Callable[[], Awaitable[None]]]] = {
        "PostgreSQL: a new connection": (postgres, lambda: new(asyncpg.Connection)),
        "  with 5 inserts": (postgres, lambda: new(asyncpg.Connection, work)),
        "  5 inserts on one that stays, cleaned": (postgres, cleaned),
        "  a new one with an enum and an array of it": (
            postgres,
            lambda: new(asyncpg.Connection, look_up),
        ),
        "  the same, looked up before": (postgres, lambda: new(sharing, look_up)),
        "Redis: a client by hand, with SET": (redis, by_hand),
        "  redis_client, with SET": (redis, ours),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for _ in range(ROUNDS):
        for name, (of, act) in cases.items():
            begin = own_seconds(), of.seconds()
            for _ in range(count):
                await act()
            await asyncio.sleep(0.1)  # Backends that end are counted when they have ended.
            client_ms = (own_seconds() - begin[0]) * 1000 / count
            found[name].append((client_ms, (of.seconds() - begin[1]) * 1000 / count))
    kept.terminate()
    kept_socket.close()
    print(f"ms of processor time, median of {ROUNDS} rounds of {count}   client  server")
    for name, each in found.items():
        medians = (statistics.median(one) for one in zip(*each, strict=True))
        print(f"  {name:48}" + "".join(f"{one:8.2f}" for one in medians))


def main() -> None:
    """Start servers, measure, and remove them."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)  # The server runs as another user, when we are root.
        files = {"schema.sql": SCHEMA, "test_it.py": TEST, "pytest.ini": INI}
        for name, text in files.items():
            (folder / name).write_text(text)
        run = [sys.executable, "-m", "pytest", "-q", "--reuse-containers"]
        try:
            embedded = "--warmstack-runtime=embedded"
            subprocess.run([*run, embedded], cwd=folder, check=True, capture_output=True)
            asyncio.run(measure(folder, count))
        finally:
            clean = [sys.executable, "-m", "pytest_warmstack.cli", "clean", "--project", temporary]
            subprocess.run(clean, check=True, capture_output=True)


if __name__ == "__main__":
    main()
