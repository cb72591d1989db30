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
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from warm import ROOT, run, standing

SUITE: Final = ROOT / "benchmarks/bookings"

KINDS: Final = {
    "a database per test, one loop": ("", "session", ()),
    "a database per test, a loop each": ("", "function", ()),
    "isolation rollback, one loop": ("", "session", ("--warmstack-isolation=rollback",)),
    "by hand, one engine": ("one engine", "session", ()),
    "by hand, an engine per test": ("engine per test", "function", ()),
}
"""Ways to run the suite: what is done by hand, the loop of the tests, options of pytest."""

BASE: Final = "by hand, one engine"

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_QUIET: Final = 0.3
_DEADLINE: Final = 30.0


class Cost(NamedTuple):
    """Seconds that a run took: on the wall, of processors in the client and in the server."""

    wall: float
    client: float
    server: float

    @property
    def cpu(self) -> float:
        """The processor time of client and server."""
        return self.client + self.server


class Server:
    """The processor time of the PostgreSQL that a project keeps, from the kernel's processes."""

    def __init__(self, folder: Path) -> None:
        self.remembered: dict[str, Any] = json.loads(
            (folder / ".pytest_cache/d/warmstack/postgres.json").read_text()
        )
        server = self.remembered["server"]
        if server["runtime"] == "docker":
            asked = ["docker", "inspect", "--format", "{{.State.Pid}}", server["id"]]
            self._pid = int(subprocess.run(asked, check=True, capture_output=True).stdout)
        else:
            self._pid = int(server["id"].split("/")[1])

    def cost(self, run: Callable[[], float]) -> Cost:
        """Return what *run* costs, which starts processes and returns its seconds."""
        before, own = self.quiet(), os.times()
        wall = run()
        now = os.times()
        client = now.children_user + now.children_system - own.children_user - own.children_system
        return Cost(wall, client, self.quiet() - before)

    def ticks(self) -> int:
        """Return the ticks of all its processes; those that have ended are in their parents'."""
        found: dict[int, tuple[int, int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:  # It has just ended.
                    continue
                # man 5 proc: ppid is field 4; utime, stime, cutime and cstime are 14 to 17.
                found[int(entry.name)] = int(fields[1]), sum(map(int, fields[11:15]))
        tree = {self._pid}
        while more := {pid for pid, (parent, _) in found.items() if parent in tree} - tree:
            tree |= more
        return sum(found[pid][1] for pid in tree)

    def quiet(self) -> float:
        """Wait until it does nothing; return the seconds of processor time until then."""
        deadline = time.monotonic() + _DEADLINE
        before = self.ticks()
        while True:
            time.sleep(_QUIET)
            if (now := self.ticks()) == before:
                return now / _TICKS
            if time.monotonic() > deadline:
                raise TimeoutError(f"PostgreSQL is still busy after {_DEADLINE:g} s")
            before = now


class Suite:
    """A copy of the suite, and ways to run it on a server that stays."""

    def __init__(self, folder: Path, runtime: str, tests: int) -> None:
        self.folder = folder
        self.tests = tests
        self._keep = ("-p", "warmstack", "--reuse-containers", f"--warmstack-runtime={runtime}")
        made = shutil.ignore_patterns("__pycache__", ".pytest_cache")
        shutil.copytree(SUITE, folder, dirs_exist_ok=True, ignore=made)

    def prepare(self) -> None:
        """Start the server, and make a migrated database on it as one has it by hand."""
        self._run("", "session", tests=12)
        self._server = Server(self.folder)
        self._url = asyncio.run(standing(self._server.remembered))

    def cost(self, kind: str) -> Cost:
        """Run the suite in one of `KINDS`; return what it cost."""
        by_hand, loop, arguments = KINDS[kind]
        url = {"BENCH_DB": self._url} if by_hand else {}
        return self._server.cost(
            lambda: self._run(by_hand, loop, *arguments, tests=self.tests, **url)
        )

    def _run(
        self, by_hand: str, loop: str, *arguments: str, tests: int, **environment: str
    ) -> float:
        return run(
            self.folder,
            *("--disable-plugin-autoload", "-p", "asyncio"),
            *(() if by_hand else self._keep),
            *("-o", f"asyncio_default_test_loop_scope={loop}", *arguments),
            **environment,
            BENCH_BY_HAND=by_hand,
            BENCH_TESTS=str(tests),
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
            clean = [sys.executable, "-m", "pytest_warmstack.cli", "clean", "--project", temporary]
            subprocess.run(clean, check=True, capture_output=True)
    if arguments.json:
        sizes = {"runtime": runtime, "tests": arguments.tests, "rounds": arguments.rounds}
        arguments.json.write_text(json.dumps({**sizes, "kinds": result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
