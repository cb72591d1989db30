"""The automatic clean-up runs in the background, and never removes what is in use.

The servers in these tests look ten years old, and the age limit is nearly as long, so that no other
kept server on this machine is affected.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from projects import Bench, Library, query, until
from pytest_warmstack import cleanup
from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.options import RuntimeName
from pytest_warmstack.postgres import sql
from pytest_warmstack.redis.connections import USED
from pytest_warmstack.servers.model import Server, ServerInfo, redis_url

REUSE = "--reuse-containers"
READER = ("-k", "reader")
DAY = 86400.0
LONG = 3600 * DAY
"""Seconds, nearly ten years."""

OLD = f"--warmstack-max-idle={LONG / DAY:.0f}d"
LONG_AGO = time.time() - LONG - DAY


@pytest.fixture
def old_project(embedded_programs: None, library_in: Callable[..., Library]) -> Iterator[Library]:
    """A project whose kept Redis was made, and used, long ago."""
    library = library_in(RuntimeName.EMBEDDED, "old")
    library.run(REUSE, *READER).assert_outcomes(passed=1, deselected=4)
    age(library)
    yield library
    library.end()


def age(library: Library, moment: float = LONG_AGO) -> None:
    """Make the project's kept Redis look as if nobody had used it for long."""
    (folder,) = library.folders()
    path = folder / "server.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "since": moment}))
    with Redis.from_url(redis_url(library.kept("redis"), 0)) as client:
        client.set(USED, moment)


def test_a_server_that_nobody_used_is_removed_by_another_projects_run(
    old_project: Library, embedded_project: Library
) -> None:
    """In the background: the run itself tells nothing and waits for nothing."""
    result = embedded_project.run(OLD, *READER)

    result.assert_outcomes(passed=1, deselected=4)
    until(lambda: not old_project.folders(), "the unused server is gone", seconds=20)


@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "workers"])
def test_a_run_that_reuses_its_servers_looks_as_well(
    old_project: Library, embedded_project: Library, workers: tuple[str, ...]
) -> None:
    """Once in an hour, by a process of its own: it asks no engine anything."""
    project = embedded_project
    project.run(REUSE, *READER).assert_outcomes(passed=1, deselected=4)
    stamp = project.folder / ".pytest_cache" / "d" / "warmstack" / "cleanup.stamp"
    assert not stamp.exists()

    project.run(REUSE, OLD, *READER, *workers).assert_outcomes(passed=1)

    until(lambda: not old_project.folders(), "the unused server is gone", seconds=20)
    assert stamp.exists()
    assert len(project.folders()) == 1


def test_within_the_hour_no_process_is_started(embedded_project: Library) -> None:
    """A thousand runs a day start it as often as a day has hours."""
    project = embedded_project
    project.write(
        "conftest.py",
        "import subprocess\n"
        "original = subprocess.Popen.__init__\n"
        "def noted(self, words, *rest, **named):\n"
        "    with open('started.log', 'a') as log:\n"
        "        log.write(f'{words}\\n')\n"
        "    original(self, words, *rest, **named)\n"
        "subprocess.Popen.__init__ = noted\n",
    )
    for _ in range(4):
        project.run(REUSE, *READER).assert_outcomes(passed=1, deselected=4)

    started = [line for line in project.lines("started.log") if "pytest_warmstack.cleanup" in line]
    assert len(started) == 1


def test_never_removes_nothing(old_project: Library, embedded_project: Library) -> None:
    """Who wants to keep servers for ever can."""
    age(old_project, time.time() - 3 * DAY)  # Runs of other tests remove what is older than 7.
    embedded_project.run("--warmstack-max-idle=never", *READER).assert_outcomes(
        passed=1, deselected=4
    )

    swept(LONG * 2)
    assert len(old_project.folders()) == 1


def swept(idle: float) -> None:
    """Do in the foreground what a run begins in the background."""
    subprocess.run(
        [sys.executable, "-P", "-m", "pytest_warmstack.cleanup", str(idle)], check=True, timeout=60
    )


def test_one_that_is_used_at_this_moment_stays(old_project: Library) -> None:
    """However long ago its last run ended: a connection of ours is a user."""
    with Redis.from_url(
        redis_url(old_project.kept("redis"), 0), client_name="pytest-warmstack:lease:1-1:process-1"
    ) as client:
        client.ping()
        swept(LONG)
        assert len(old_project.folders()) == 1

    swept(LONG)
    assert old_project.folders() == []


def test_one_that_was_used_since_stays(old_project: Library) -> None:
    """Its age is not when it was made, but when a run was done with it."""
    with Redis.from_url(redis_url(old_project.kept("redis"), 0)) as client:
        client.set(USED, time.time())
        swept(LONG)
        assert len(old_project.folders()) == 1
        # Without a note of it, as after a FLUSHALL, it counts from when it was made.
        client.delete(USED)
    swept(LONG)
    assert old_project.folders() == []


def test_one_that_does_not_answer_stays(old_project: Library) -> None:
    """It may be busy with somebody's test."""
    (folder,) = old_project.folders()
    process = int(json.loads((folder / "server.json").read_text())["id"].split("/")[1])
    os.kill(process, signal.SIGSTOP)
    try:
        swept(LONG)
        assert old_project.folders() == [folder]
    finally:
        os.kill(process, signal.SIGCONT)


def test_one_that_has_ended_is_removed(old_project: Library) -> None:
    """Its data is gone with it; what is left only takes memory."""
    old_project.stop("redis", signal.SIGKILL)

    swept(LONG)

    assert old_project.folders() == []


@pytest.mark.parametrize("idle", ["7d", "never"])
def test_what_a_killed_run_left_is_removed_at_once(
    embedded_project: Library, kept: Library, idle: str
) -> None:
    """Whatever its age, and however long kept servers may be unused: no run can use it again."""
    project = embedded_project
    project.write(
        "test_wait.py",
        "import time\nfrom pathlib import Path\n\n"
        "def test_that_waits(redis_url):\n    Path('running').touch()\n    time.sleep(60)\n",
    )
    running = project.start("test_wait.py")
    until((project.folder / "running").exists, "the test runs")
    running.kill()
    assert len(project.folders()) == 1
    stamp = kept.hint_file("redis").with_name("cleanup.stamp")
    stamp.unlink(missing_ok=True)

    kept.run(REUSE, f"--warmstack-max-idle={idle}", *READER).assert_outcomes(passed=1, deselected=4)

    until(lambda: not project.folders(), "the server of the killed run is gone", seconds=20)


def found(bench: Bench, server: Server[Any]) -> ServerInfo:
    """Return what the runtime lists of a server, made to look old."""
    listed = bench.runtime().list()
    (each,) = [
        each for each in listed if each.path == str(bench.folder) and each.service == server.service
    ]
    return each.replace(since=LONG_AGO)


NAME = "warmstack_t_0123456789abcdef"


def note(server: Server[Any], moment: float, *before: str) -> None:
    """Note on a PostgreSQL that its one template was used at a moment."""
    to = f"SET application_name TO '{sql.USED}{moment} old'"
    statement = f"ALTER ROLE CURRENT_USER IN DATABASE {NAME} {to}"
    asyncio.run(query(server.endpoint, *before, statement, "SELECT 1"))


def test_postgresql_tells_by_its_templates_when_it_was_used(bench: Bench) -> None:
    """In Docker and embedded: a note of long ago, none at all, and a connection of ours."""
    server = bench.ensure(bench.postgres)
    background = BackgroundLoop()
    runtime = bench.runtime()
    old = found(bench, server)
    assert not cleanup.is_idle(runtime, old, LONG, background), "it is connected to"
    server.client.close()

    until(lambda: cleanup.is_idle(runtime, old, LONG, background), "it is unused since it was made")
    assert not cleanup.is_idle(runtime, old.replace(since=time.time()), LONG, background)
    note(server, time.time(), f"CREATE DATABASE {NAME} CONNECTION LIMIT {sql.MARK}")
    assert not cleanup.is_idle(runtime, old, LONG, background)
    note(server, LONG_AGO)
    assert cleanup.is_idle(runtime, old, LONG, background)
    background.close()


def test_a_connection_of_a_living_run_keeps_a_server(bench: Bench) -> None:
    """Another run's, which is known by the name that our connections have."""
    server = bench.ensure(bench.postgres)
    background = BackgroundLoop()
    runtime = bench.runtime()
    old = found(bench, server)
    other = bench.ensure(bench.postgres)
    server.client.close()

    assert not cleanup.is_idle(runtime, old, LONG, background)
    other.client.close()
    until(lambda: cleanup.is_idle(runtime, old, LONG, background), "nobody uses it any more")
    background.close()


def test_the_background_process_ends_by_itself(tmp_path: Path) -> None:
    """It has a deadline, whatever it waits for: an engine that accepts and never answers, say."""
    import socket

    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "engine.sock"))
        silent.listen()
        process = subprocess.run(
            [
                *(sys.executable, "-c"),
                "import pytest_warmstack.cleanup as u, sys; u._SWEEP_TIMEOUT = 2; u.main(['1e12'])",
            ],
            env={**os.environ, "DOCKER_HOST": f"unix://{tmp_path}/engine.sock"},
            check=False,
            timeout=50,
        )

    assert process.returncode == -signal.SIGALRM
