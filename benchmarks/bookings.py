"""What a suite of 553 tests with much ORM work costs: with clones, and with rollbacks by hand.

    python benchmarks/bookings.py [ROUNDS [TESTS]] [--json FILE]

The suite is `benchmarks/bookings`: 32 tables, enums, arrays, documents, eager loading, some 50
statements a test over one or two connections. Five ways to run it take turns, A B C D E A B ..., as
whole pytest processes on one server: with a database per test, in one event loop and in a loop for
each test; with the isolation `rollback`; and by hand, with rollbacks on one engine and on an engine
for each test. For each test, the median of wall time and of processor time is printed: that of the
pytest process with its children, and that of the server, until it is idle again. The ratios are to
"one engine" (the goal is 1.2).

The server is an embedded one, or, with WARMSTACK_RUNTIME=docker, a container.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final, NamedTuple

import processes

SUITE: Final = processes.ROOT / "benchmarks/bookings"

KINDS: Final = {
    "a database per test, one loop": ("", "session", ()),
    "a database per test, a loop each": ("", "function", ()),
    "isolation rollback, one loop": ("", "session", ("--warmstack-isolation=rollback",)),
    "by hand, one engine": ("one engine", "session", ()),
    "by hand, an engine per test": ("engine per test", "function", ()),
}
"""Ways to run the suite: what is done by hand, the loop of the tests, options of pytest."""

BASE: Final = "by hand, one engine"


class Cost(NamedTuple):
    """Seconds that a run took: on the wall, of processors in the client and in the server."""

    wall: float
    client: float
    server: float

    @property
    def cpu(self) -> float:
        """The processor time of client and server."""
        return self.client + self.server


class Project:
    """A project whose PostgreSQL stays between runs, and what its runs cost."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self._options = options

    def prepare(self, *arguments: str, **variables: str) -> dict[str, Any]:
        """Run it once, so that server and template are there; return where the server is."""
        self.run(*arguments, **variables)
        hint: dict[str, Any] = processes.remembered(self.folder)["postgres"]
        server = hint["server"]
        if server["runtime"] == "docker":
            asked = ["docker", "inspect", "--format", "{{.State.Pid}}", server["id"]]
            pid = subprocess.run(asked, check=True, capture_output=True).stdout
        else:
            pid = server["id"].split("/")[1]
        self._servers = [int(pid)]
        return hint

    def run(self, *arguments: str, **variables: str) -> processes.Cost:
        """Run its tests; return what that cost without the server."""
        command = [sys.executable, "-m", "pytest", "-q", *self._options, *arguments]
        return processes.measure([command], self.folder, variables)

    def cost(self, *arguments: str, **variables: str) -> Cost:
        """Run its tests; return what that cost, until the server is idle again."""
        before = processes.settled(self._servers)
        wall, client = self.run(*arguments, **variables)
        return Cost(wall, client, processes.settled(self._servers) - before)


class Suite:
    """A copy of the suite, and ways to run it."""

    def __init__(self, folder: Path, runtime: str, tests: int) -> None:
        made = shutil.ignore_patterns("__pycache__", ".pytest_cache")
        shutil.copytree(SUITE, folder, dirs_exist_ok=True, ignore=made)
        self.tests = tests
        self._project = Project(folder, "--disable-plugin-autoload", "-p", "asyncio")
        self._keep = ("-p", "warmstack", "--reuse-containers", f"--warmstack-runtime={runtime}")

    def prepare(self) -> None:
        """Start the server, and make a migrated database on it as one has it by hand."""
        self._url = asyncio.run(processes.standing(self._project.prepare(*self._keep)))

    def cost(self, kind: str) -> Cost:
        """Run the suite in one of `KINDS`; return what it cost."""
        by_hand, loop, options = KINDS[kind]
        return self._project.cost(
            *(() if by_hand else self._keep),
            *("-o", f"asyncio_default_test_loop_scope={loop}", *options),
            BENCH_BY_HAND=by_hand,
            BENCH_TESTS=str(self.tests),
            BENCH_DB=self._url,
        )


def compare(suite: Suite, rounds: int) -> dict[str, dict[str, float]]:
    """Print what a test costs in each way; return it."""
    costs: dict[str, list[Cost]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind in KINDS:
            costs[kind].append(suite.cost(kind))
    print(f"ms a test ({suite.tests} tests, median of {rounds})")
    print(f"{'':36}{'wall':>8}{'client':>8}{'server':>8}   ratios: wall  processors")
    result = {}
    for kind, each in costs.items():
        pairs = list(zip(each, costs[BASE], strict=True))
        wall, client, server = (
            statistics.median(one) * 1000 / suite.tests for one in zip(*each, strict=True)
        )
        row = {
            "wall_ms": wall,
            "client_ms": client,
            "server_ms": server,
            "wall_ratio": statistics.median(one.wall / other.wall for one, other in pairs),
            "cpu_ratio": statistics.median(one.cpu / other.cpu for one, other in pairs),
        }
        print(
            f"  {kind:34}{wall:8.1f}{client:8.1f}{server:8.1f}"
            f"        x {row['wall_ratio']:5.2f}     x {row['cpu_ratio']:5.2f}"
        )
        result[kind] = row
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rounds", type=int, nargs="?", default=5)
    parser.add_argument("tests", type=int, nargs="?", default=553)
    parser.add_argument("--json", type=Path, help="write the result to this file")
    arguments = parser.parse_args()
    runtime = os.environ.get("WARMSTACK_RUNTIME", "embedded")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)  # The server runs as another user, when we are root.
        try:
            suite = Suite(folder, runtime, arguments.tests)
            suite.prepare()
            print(runtime)
            result = compare(suite, arguments.rounds)
        finally:
            processes.clean(folder)
    if arguments.json:
        sizes = {"runtime": runtime, "tests": arguments.tests, "rounds": arguments.rounds}
        arguments.json.write_text(json.dumps({**sizes, "kinds": result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
