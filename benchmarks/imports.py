"""What a warm run takes to import the plugin's modules, with pytest's import hook and without.

    python benchmarks/imports.py [RUNS]

Also what a class with seven fields takes to define, as a dataclass and as a `Struct`. Each process
imports what the project under test imports as well before the clock starts. Prints the least of all
runs: everything else is the machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

CHILD = """
import dataclasses, gc, importlib, json, sys, time
import asyncpg, pytest, pytest_asyncio.plugin, redis.asyncio
from _pytest.assertion import install_importhook
from _pytest.config import get_config

gc.disable()
hook = install_importhook(get_config())
hook.mark_rewrite("pytest_warmstack")
import pytest_warmstack

if sys.argv[1] == "hook":
    sys.meta_path[:] = [each for each in sys.meta_path if each is not pytest_warmstack._Finder]

def timed(work):
    begin = time.perf_counter()
    work()
    return (time.perf_counter() - begin) * 1000

def import_all():
    for name in ("plugin", "fixtures", "environment", "guard", "signals", "suite_state", "masking",
                 "redis.leases", "postgres.server", "postgres.clones", "postgres.retention",
                 "postgres.template.layers", "postgres.template.templates"):
        importlib.import_module(f"pytest_warmstack.{name}")

fields = "; ".join(f"{name}: str" for name in "abcdefg")
found = {"import": timed(import_all)}
from pytest_warmstack.structs import Struct
found["modules"] = sum(name.startswith("pytest_warmstack") for name in sys.modules)
for name, text in (("dataclass", f"@dataclasses.dataclass(frozen=True)\\nclass A: {fields}"),
                   ("Struct", f"class A(Struct): {fields}")):
    code = compile(text, name, "exec")
    found[name] = timed(lambda: exec(code, globals()))
print(json.dumps(found))
"""


def least(runs: int, how: str) -> dict[str, float]:
    """Return the least of each figure, in milliseconds, of *runs* processes."""
    # As on a developer's machine: bytecode is cached.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, "-c", CHILD, how]
    found = []
    for _ in range(runs + 1):
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        found.append(json.loads(done.stdout))
    return {name: min(each[name] for each in found) for name in found[0]}


def main() -> None:
    """Measure and print."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    for how in ("hook", "own finder"):
        figures = least(runs, how)
        count = int(figures["modules"])
        print(f"{how:12} {figures['import']:6.1f} ms for {count} modules")
    print(f"a class of seven fields: dataclass {figures['dataclass']:.2f} ms,", end="")
    print(f" Struct {figures['Struct']:.2f} ms")


if __name__ == "__main__":
    main()
