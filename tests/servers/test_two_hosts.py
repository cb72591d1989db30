"""Two machines that share one PostgreSQL and one Redis, like the hosts of a CI system."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from redis import Redis

import external_servers
from external_servers import Cluster
from projects import until
from pytest_warmstack.postgres.native import NativePostgres

CHECKOUT: Final = Path(__file__).parents[2]

HBA: Final = "host all all all scram-sha-256\n"
"""Roles are let in from every address, with their passwords."""


@dataclass(frozen=True)
class Host:
    """A machine, as far as its network goes: a namespace of its own, with an *address*."""

    name: str
    address: str

    def start(self, folder: Path, *arguments: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start pytest in *folder* on this machine, with its output in a file beside it."""
        own = {
            name: value
            for name, value in os.environ.items()
            if name != "CI" and not name.startswith(("WARMSTACK_", "PYTEST_", "PG"))
        }
        with folder.with_suffix(".out").open("wb") as out:
            return subprocess.Popen(
                [ip(), "netns", "exec", self.name, sys.executable, "-m", "pytest", *arguments],
                cwd=folder,
                env={**own, **variables},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


def ip() -> str:
    """Return the program that makes networks."""
    return external_servers.program("ip")


def made(*words: str) -> None:
    """Have `ip` do something."""
    subprocess.run([ip(), *words], check=True, capture_output=True, text=True, timeout=30)


@pytest.fixture(scope="module")
def network() -> Iterator[tuple[str, list[Host]]]:
    """The address of this machine on a bridge, and two hosts that are connected to it."""
    if os.geteuid() != 0:
        external_servers.missing("only root can make network namespaces")
    mark = os.getpid() % 65536
    # Addresses that no real network has (RFC 2544).
    home = f"198.19.{mark % 256}"
    bridge = f"wsb{mark}"
    hosts = [Host(f"warmstack-{mark}-{number}", f"{home}.{number + 1}") for number in (1, 2)]
    with ExitStack() as undo:
        try:
            made("link", "add", bridge, "type", "bridge")
        except subprocess.CalledProcessError as refusal:
            external_servers.missing(f"no bridge can be made: {refusal.stderr.strip()}")
        undo.callback(made, "link", "delete", bridge)
        made("address", "add", f"{home}.1/24", "dev", bridge)
        made("link", "set", bridge, "up")
        for number, host in enumerate(hosts):
            # With a namespace goes its end of the cable, and with that the other one.
            made("netns", "add", host.name)
            undo.callback(made, "netns", "delete", host.name)
            cable = f"wsv{mark}-{number}"
            inside = ("-n", host.name)
            made("link", "add", cable, "type", "veth", "peer", "eth0", "netns", host.name)
            made("link", "set", cable, "master", bridge, "up")
            made(*inside, "address", "add", f"{host.address}/24", "dev", "eth0")
            made(*inside, "link", "set", "eth0", "up")
            made(*inside, "link", "set", "lo", "up")
        yield f"{home}.1", hosts


@pytest.fixture(scope="module")
def postgres(network: tuple[str, list[Host]]) -> Iterator[Cluster]:
    """A PostgreSQL of the version that the integration tests are about, open to both hosts."""
    native = NativePostgres(major=16, named="", arguments=[])
    with external_servers.open_folder() as folder:
        hba = external_servers.write(folder / "pg_hba.conf", HBA)
        with external_servers.cluster(
            f"hba_file={hba}", f"listen_addresses=127.0.0.1,{network[0]}", native=native
        ) as server:
            yield server


@pytest.fixture(scope="module")
def redis(network: tuple[str, list[Host]]) -> Iterator[Redis]:
    """A Redis that is open to both hosts."""
    with external_servers.redis_server(
        f"bind 127.0.0.1 {network[0]}",
        "requirepass secret",
        "databases 64",
        connect={"password": "secret"},
    ) as client:
        yield client


def checkout(folder: Path) -> Path:
    """Return a copy of what the integration tests need, as another machine checks it out."""
    for name in ("migrations", "tests/integration"):
        shutil.copytree(
            CHECKOUT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".*")
        )
    for name in ("alembic.ini", "pyproject.toml"):
        shutil.copy(CHECKOUT / name, folder / name)
    return folder


def test_two_hosts_run_the_integration_tests_on_one_postgresql_and_one_redis(
    tmp_path: Path, network: tuple[str, list[Host]], postgres: Cluster, redis: Redis
) -> None:
    """At the same time, from two places: one builds, both pass, and nothing is left in use."""
    home, hosts = network
    folders = [checkout(tmp_path / str(number) / "bookshop") for number in (1, 2)]
    port = redis.connection_pool.connection_kwargs["port"]
    variables = {
        "WARMSTACK_POSTGRES_URL": f"postgresql://ci:ci@{home}:{postgres.endpoint.port}",
        "WARMSTACK_REDIS_URL": f"redis://:secret@{home}:{port}",
    }
    arguments = ("tests/integration", "-n2", "-p", "no:cacheprovider")

    runs = [
        host.start(folder, *arguments, **variables)
        for host, folder in zip(hosts, folders, strict=True)
    ]
    try:
        seen: set[str] = set()
        until(lambda: _ended(runs, postgres, seen), "both runs have ended", seconds=240)
    finally:
        for run in runs:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
                run.wait()

    outputs = [folder.with_suffix(".out").read_text() for folder in folders]
    print("\n".join(outputs))
    assert [run.returncode for run in runs] == [0, 0]
    passed = [re.findall(r"^=+ (\d+) passed in .*$", output, re.MULTILINE) for output in outputs]
    assert passed[0] == passed[1]
    assert int(passed[0][0]) > 50
    assert seen == {host.address for host in hosts}
    # Of each run and of each worker the summary tells which it was.
    origins = re.findall(r"template of \d+ revisions?: (\w+)", "\n".join(outputs))
    assert origins.count("built") == 1
    assert set(origins) <= {"built", "found"}
    assert len(postgres.databases("t")) == 1
    until(lambda: not postgres.databases("u"), "no clone is in use", seconds=5)
    assert postgres.databases("b") == []
    assert redis.info("keyspace") == {}
    assert not [each for each in redis.client_list() if "lease" in each["name"]]


def _ended(runs: list[subprocess.Popen[bytes]], postgres: Cluster, seen: set[str]) -> bool:
    """Tell whether all runs have ended; note where our connections come from meanwhile."""
    rows = postgres.sql(
        "SELECT DISTINCT host(client_addr) FROM pg_stat_activity"
        " WHERE application_name LIKE 'pytest-warmstack%'"
    )
    seen.update(row[0] for row in rows)
    return all(run.poll() is not None for run in runs)
