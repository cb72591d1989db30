"""Whole processes and what they cost, and the servers that the plugin keeps for a project."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import asyncpg

ROOT: Final = Path(__file__).parent.parent

STOP_TIMEOUT: Final = 60.0
"""Seconds that an interrupted process has to remove its servers before it is killed."""

SETTLE_TIMEOUT: Final = 10.0
"""Seconds that servers have to become idle after a run."""

QUIET: Final = 0.2
"""Seconds in which a server must use no processor time to count as idle."""

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_FOREIGN: Final = ("WARMSTACK_", "PYTEST_", "POSTGRES_", "REDIS_", "PG", "BENCH_")
_KEPT: Final = {"WARMSTACK_POSTGRES_IMAGE", "WARMSTACK_REDIS_IMAGE"}
_EXACT: Final = {"PYTHONDONTWRITEBYTECODE", "CI", "DATABASE_URL"}


class ProcessFailed(Exception):
    """A measured process ended with an error; the text is the end of its output."""


class Cost(NamedTuple):
    """What one or more processes took, in seconds."""

    wall: float
    client: float
    """Processor time of the processes and of those that they waited for."""


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a developer's machine: bytecode is cached, no setting interferes."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT or (name not in _EXACT and not name.startswith(_FOREIGN))
    } | dict(extra)


def measure(
    commands: Iterable[Sequence[str]],
    folder: Path,
    variables: Mapping[str, str],
) -> Cost:
    """Run *commands* in *folder*, one after the other, and return what they took together.

    Ctrl-C is passed on, and waited for. Raises ProcessFailed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    for command in commands:
        with subprocess.Popen(
            command,
            cwd=folder,
            env=environment(variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Ctrl-C in a terminal comes to this process alone.
            start_new_session=True,
        ) as process:
            try:
                output, _ = process.communicate()
            except BaseException:
                _stop(process)
                raise
        if process.returncode:
            raise ProcessFailed("\n".join(output.splitlines()[-40:]))
    wall = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(wall, used)


def _stop(process: subprocess.Popen[str]) -> None:
    for number in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.communicate(timeout=STOP_TIMEOUT)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
        return


def run(folder: Path, *arguments: str, **variables: str) -> float:
    """Return the seconds that a pytest process of this Python takes in *folder*; it must pass."""
    command = [sys.executable, "-m", "pytest", "-q", *arguments]
    return measure([command], folder, variables).wall


def processor_time(roots: Iterable[int]) -> float:
    """Return the seconds of processor time of the processes *roots* and of all below them.

    A process that has ended counts in its parent, once that has waited for it.
    """
    children: dict[int, list[int]] = {}
    times: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name is in brackets, and may hold spaces.
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # It has ended.
        pid = int(path.parent.name)
        children.setdefault(int(fields[1]), []).append(pid)
        times[pid] = sum(int(each) for each in fields[11:15])
    waiting = list(roots)
    ticks = 0
    while waiting:
        pid = waiting.pop()
        ticks += times.get(pid, 0)
        waiting.extend(children.get(pid, ()))
    return ticks / _TICKS


def settled(roots: Sequence[int]) -> float:
    """Wait until the servers are idle, so that no run pays for what another left to them.

    Return their processor time.
    """
    deadline = time.monotonic() + SETTLE_TIMEOUT
    used, since = processor_time(roots), time.monotonic()
    while time.monotonic() - since < QUIET and time.monotonic() < deadline:
        time.sleep(QUIET / 4)
        now = processor_time(roots)
        if now != used:
            used, since = now, time.monotonic()
    return used


def remembered(folder: Path) -> dict[str, Any]:
    """Return what the plugin remembers of the kept servers of a project, by service."""
    hints = (folder / ".pytest_cache/d/warmstack").glob("*.json")
    found = {hint.stem: json.loads(hint.read_text()) for hint in hints}
    return {service: found[service] for service in ("postgres", "redis") if service in found}


def address(hint: Mapping[str, Any], user: str = "") -> str:
    """Return the part of a URL that leads to a kept server."""
    endpoint = hint["server"]["endpoint"]
    return f"{user}:{endpoint['password']}@{endpoint['host']}:{endpoint['port']}"


async def copy_template(hint: Mapping[str, Any], *names: str) -> str:
    """Make migrated databases on a kept PostgreSQL.

    Return the URL of the server, without a driver and without a database's name.
    """
    url = f"postgresql://{address(hint, 'postgres')}"
    connection = await asyncpg.connect(f"{url}/postgres", ssl=False)
    template = await connection.fetchval("SELECT datname FROM pg_database WHERE datname ~ '_t_'")
    for name in names:
        await connection.execute(f'CREATE DATABASE {name} TEMPLATE "{template}" STRATEGY FILE_COPY')
    await connection.close()
    return url


async def standing(hint: Mapping[str, Any]) -> str:
    """Return the URL of a migrated database on a kept PostgreSQL, as one has it by hand."""
    url = await copy_template(hint, "standing")
    return f"{url.replace('postgresql', 'postgresql+asyncpg', 1)}/standing"


def clean(folder: Path, python: str = sys.executable) -> None:
    """Remove the servers that the plugin keeps for the project in *folder*."""
    command = [python, "-m", "pytest_warmstack.cli", "clean", "--project", str(folder)]
    subprocess.run(command, env=environment({}), check=True, capture_output=True)
