"""Where the processor time of a test goes in the test process, with the plugin and by hand.

    python benchmarks/hotspots.py [ROUNDS [TESTS]] [--also FOLDER] [--modules N] [--only WORD]

The suite is that of `compare.py`: five inserts by the ORM, a commit, a count, a key written and
read in Redis. Whole pytest processes run in turn on embedded servers, A B C A B C ...: with a
database per test, in one event loop and in a loop for each test; with the isolation `rollback`; and
by hand, with rollbacks on one engine and on an engine for each test. Printed is the processor time
of the test process, from the begin of the first test to the end of the last one, for each test, as
the median of all rounds; and the ratio to what is done by hand in loops of the same kind.

Then each runs once more under cProfile, which says which package spends the time (in its own
functions, not in those that they call) and how many function calls a test takes. cProfile makes
calls dear, so compare its figures with each other only. The number of calls hardly varies.

With `--also FOLDER`, the plugin in another checkout takes part too.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import os
import pstats
import shutil
import statistics
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final

import processes
import pytest

PROJECTS: Final = processes.ROOT / "benchmarks/projects"
REVISIONS: Final = 20
HAND: Final = "by hand"

KINDS: Final = {
    "one loop": ("session", ()),
    "a loop each": ("function", ()),
    "rollback, one loop": ("session", ("--warmstack-isolation=rollback",)),
    "rollback, a loop each": ("function", ("--warmstack-isolation=rollback",)),
}
"""Ways to run the suite: the loop of the tests, options of the plugin."""


# In the measured process: this file is a plugin of pytest there.


class Meter:
    """Notes the processor time from the first test to the last one, and profiles it if asked."""

    def __init__(self, file: Path, *, profiles: bool) -> None:
        self._file = file
        self._profile = cProfile.Profile(time.thread_time) if profiles else None
        self._begin: float | None = None
        self._end = 0.0

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self) -> Generator[None, Any, Any]:
        """Begin with the second test, since the first one imports what all use; note the end."""
        if self._begin is None:
            result = yield
            self._begin = self._end = time.process_time()
            if self._profile is not None:
                self._profile.enable()
            return result
        result = yield
        self._end = time.process_time()
        return result

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """Write what was found."""
        found: dict[str, Any] = {"seconds": self._end - (self._begin or 0.0)}
        if self._profile is not None:
            self._profile.disable()
            found |= spent(self._profile)
        self._file.write_text(json.dumps(found))


def spent(profile: cProfile.Profile) -> dict[str, Any]:
    """Return the seconds that each package spends in its own functions, and its calls."""
    seconds, calls = Counter[str](), Counter[str]()
    for (file, _, _), (_, count, own, _, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        name = package(file)
        seconds[name] += own
        calls[name] += count
    return {"spent": seconds, "calls": calls}


def package(file: str) -> str:
    """Return the package that *file* belongs to; for the plugin, its module."""
    path = Path(file)
    parts = path.with_suffix("").parts
    for name in ("pytest_warmstack", "site-packages"):
        if name in parts:
            rest = parts[parts.index(name) + 1 :]
            return ".".join((name, *rest)) if name == "pytest_warmstack" else rest[0].lstrip("_")
    if file.startswith(sysconfig.get_path("stdlib")):
        return f"python: {path.relative_to(sysconfig.get_path('stdlib')).parts[0]}"
    return "python: built in" if file == "~" else "the suite"


def pytest_configure(config: pytest.Config) -> None:
    """Measure this process, if `main` has started it."""
    if (file := os.environ.get("BENCH_METER")) is not None:
        meter = Meter(Path(file), profiles="BENCH_PROFILES" in os.environ)
        config.pluginmanager.register(meter, "meter")


# In the process that starts the others.


class Suite:
    """Two copies of the suite, one with the plugin and one by hand, on the same servers."""

    def __init__(self, home: Path, tests: int, sources: dict[str, Path]) -> None:
        self.tests = tests
        self.sources = sources
        self._folders = {name: home / name.replace(" ", "-") for name in ("ours", HAND)}
        self._meter = home / "meter.json"
        self._variables = {"BENCH_TESTS": str(tests), "BENCH_SECONDS": "0"}
        for folder in self._folders.values():
            shutil.copytree(PROJECTS / "suite", folder)
            write_revisions(folder / "migrations/versions")
        shutil.copy(PROJECTS / "hand/conftest.py", self._folders[HAND])

    def prepare(self) -> None:
        """Start the servers, and make a migrated database as one has it by hand."""
        self.run(next(iter(self.sources)), next(iter(KINDS)))
        hints = processes.remembered(self._folders["ours"])
        url = asyncio.run(processes.standing(hints["postgres"]))
        redis = f"redis://{processes.address(hints['redis'])}"
        self._variables |= {"BENCH_DATABASE": url, "BENCH_REDIS": redis}

    def run(self, who: str, kind: str, *, profiles: bool = False) -> dict[str, Any]:
        """Run the suite in one of `KINDS`; return what the process found."""
        loop, options = KINDS[kind]
        by_hand = who == HAND
        arguments = ["--disable-plugin-autoload", "-p", "asyncio", "-p", "hotspots", "-q"]
        for each in ("fixture", "test"):
            arguments += ["-o", f"asyncio_default_{each}_loop_scope={loop}"]
        if not by_hand:
            arguments += ["-p", "warmstack", "--reuse-containers", "--warmstack-runtime=embedded"]
            arguments += options
        path = [*([] if by_hand else [str(self.sources[who])]), str(Path(__file__).parent)]
        variables = {
            **self._variables,
            "BENCH_LOOP": loop,
            "BENCH_METER": str(self._meter),
            "PYTHONPATH": os.pathsep.join(path),
            **({"BENCH_PROFILES": "yes"} if profiles else {}),
        }
        command = [sys.executable, "-m", "pytest", *arguments]
        processes.measure([command], self._folders[HAND if by_hand else "ours"], variables)
        found: dict[str, Any] = json.loads(self._meter.read_text())
        return found

    def remove(self) -> None:
        """Remove the servers."""
        processes.clean(self._folders["ours"])


def write_revisions(folder: Path) -> None:
    """Write revisions of Alembic that make one table each."""
    from compare import REVISION

    folder.mkdir()
    for number in range(1, REVISIONS + 1):
        before = repr(f"{number - 1:04}") if number > 1 else None
        text = REVISION.format(number=number, before=before)
        (folder / f"{number:04}.py").write_text(text)


def entrants(suite: Suite, only: str) -> list[tuple[str, str]]:
    """Return who runs in which way."""
    own = [(who, kind) for kind in KINDS for who in suite.sources if only in kind]
    floors = {floor(kind) for _, kind in own}
    return [*own, *((HAND, kind) for kind in KINDS if kind in floors)]


def floor(kind: str) -> str:
    """Return what is done by hand in a loop of the same kind."""
    return kind.removeprefix("rollback, ")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rounds", type=int, nargs="?", default=5)
    parser.add_argument("tests", type=int, nargs="?", default=200)
    parser.add_argument("--also", type=Path, help="another checkout of the plugin")
    parser.add_argument("--modules", type=int, default=20, help="how many lines a profile has")
    parser.add_argument("--only", default="", metavar="WORD", help="the ways that have this word")
    asked = parser.parse_args()
    sources = {"here": processes.ROOT / "src"}
    if asked.also is not None:
        sources[asked.also.name] = asked.also.absolute() / "src"
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        home.chmod(0o755)  # The servers run as another user, when we are root.
        suite = Suite(home, asked.tests, sources)
        try:
            suite.prepare()
            measure(suite, asked.rounds, asked.only)
            for who, kind in entrants(suite, asked.only):
                if asked.modules:
                    show(suite, who, kind, asked.modules)
        finally:
            suite.remove()


def measure(suite: Suite, rounds: int, only: str) -> None:
    """Print the processor time of a test in each way."""
    found: dict[tuple[str, str], list[float]] = {each: [] for each in entrants(suite, only)}
    for _ in range(rounds):
        for each, times in found.items():
            times.append(suite.run(*each)["seconds"] * 1000 / (suite.tests - 1))
    print(f"ms of processor time a test ({suite.tests} tests, {rounds} rounds in turn)")
    print(f"{'':36}{'median':>8}{'least':>8}{'most':>8}   by hand")
    for (who, kind), times in found.items():
        pairs = zip(times, found[HAND, floor(kind)], strict=True)
        ratio = statistics.median(one / other for one, other in pairs)
        row = f"{statistics.median(times):8.2f}{min(times):8.2f}{max(times):8.2f}"
        print(f"  {f'{kind}: {who}':34}{row}   x {ratio:5.2f}")


def show(suite: Suite, who: str, kind: str, lines: int) -> None:
    """Print which packages spend the time."""
    found = suite.run(who, kind, profiles=True)
    number = suite.tests - 1
    seconds, calls = found["spent"], found["calls"]
    print(f"\n{kind}: {who}, a test under cProfile")
    print(f"  {'ms':>6}{'calls':>8}")
    total = sum(seconds.values()) * 1000 / number
    print(f"  {total:6.2f}{sum(calls.values()) / number:8.0f}  all")
    for name in sorted(seconds, key=lambda each: -seconds[each])[:lines]:
        print(f"  {seconds[name] * 1000 / number:6.2f}{calls[name] / number:8.0f}  {name}")


if __name__ == "__main__":
    main()
