"""Failures of the engine, the operating system or a folder become one-line errors of this package.

If something can't be removed at the end of a run, the tests still pass.
"""

from __future__ import annotations

import fcntl
import os
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from docker_endpoints import forwarded, short_folder
from projects import WAITING, Bench, Images, Library, engine, until, with_options
from pytest_warmstack import redis
from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.options import RuntimeName, Settings
from pytest_warmstack.postgres import server as postgres
from pytest_warmstack.servers.errors import RuntimeUnavailable
from pytest_warmstack.servers.model import NotReady, OwnRuntime, ServerInfo, ServerSpec

READER = ("-k", "reader")
COMMANDS = (["status"], ["clean"], ["doctor"], ["logs"], ["psql"], ["redis-cli"])
TMPFS = "mount -t tmpfs -o size={} none /dev/shm"
REFUSED = "The operating system refused an operation that PostgreSQL or Redis needs."
ROOT = f"/dev/shm/pytest-warmstack-{os.getuid()}"


def told(result: pytest.RunResult) -> str:
    """Return all that a run has written."""
    return "\n".join([*result.outlines, *result.errlines])


@pytest.fixture
def docker_bench(images: Images, tmp_path: Path, background: BackgroundLoop) -> Iterator[Bench]:
    """Docker at work for a project of the test's own."""
    settings = Settings(postgres_image=images.postgres, redis_image=images.redis)
    specs = postgres.spec(settings, background), redis.spec(settings)
    bench = Bench(RuntimeName.DOCKER, Path(os.path.realpath(tmp_path)), *specs)
    yield bench
    bench.end()


@pytest.fixture
def embedded_bench(
    embedded_programs: None, tmp_path: Path, background: BackgroundLoop
) -> Iterator[Bench]:
    """The same with native processes."""
    specs = postgres.spec(Settings(), background), redis.spec(Settings())
    bench = Bench(RuntimeName.EMBEDDED, Path(os.path.realpath(tmp_path)), *specs)
    yield bench
    bench.end()


def found_by(bench: Bench, spec: ServerSpec[Any]) -> tuple[OwnRuntime, ServerInfo]:
    """Return a runtime, and what it lists of the server of *spec*, which is running."""
    server = bench.ensure(spec)
    server.client.close()
    runtime: OwnRuntime = bench.runtime()  # type: ignore[assignment]
    (found,) = (each for each in runtime.list() if each.id == server.id)
    return runtime, found


# An engine that stops


@pytest.mark.docker
def test_an_engine_that_stops_between_two_calls_is_told_by_each(
    docker_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is asked of it then; what is only shown is left out."""
    spec = docker_bench.redis
    docker_bench.ensure(spec).client.close()
    with short_folder() as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "engine.sock"))
        with forwarded(listener) as door, monkeypatch.context() as patch:
            patch.setenv("DOCKER_HOST", f"unix://{folder}/engine.sock")
            runtime: Any = docker_bench.runtime()
            (found,) = (each for each in runtime.list() if each.path == str(docker_bench.folder))
            door.close()
            calls: list[Callable[[], object]] = [
                runtime.list,
                runtime.leftovers,
                runtime.facts,
                lambda: runtime.check([spec], print),
                lambda: runtime.has(spec),
                lambda: runtime.connect(spec, found),
                lambda: runtime.remove(found),
                lambda: runtime.remove(found.replace(kind="volume")),
                lambda: runtime.ensure(spec),
            ]
            for call in calls:
                with pytest.raises(RuntimeUnavailable) as caught:
                    call()
                assert caught.value.what == "The Docker engine stopped answering."
                assert f"{folder}/engine.sock" in str(caught.value)

            assert runtime.memory(found) == 0
            assert [line.partition(". ")[0] for line in runtime.log(found, 5)] == [
                "The Docker engine stopped answering"
            ]
            refusal = runtime.offer(spec)
            assert refusal is not None
            assert "Connection refused" in refusal.why
            docker_bench.leave()


@pytest.mark.docker
@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["alone", "workers"])
def test_an_engine_that_stops_during_a_run_fails_no_test(
    docker_project: Library, workers: tuple[str, ...]
) -> None:
    """That its servers could not be removed is told in one line."""
    docker_project.write("test_wait.py", WAITING)
    with short_folder() as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "engine.sock"))
        with forwarded(listener) as door:
            running = docker_project.start(
                *("-Werror", "-q", "test_wait.py", *workers),
                DOCKER_HOST=f"unix://{folder}/engine.sock",
            )
            until((docker_project.folder / "running").exists, "the test runs")
            door.close()
            (docker_project.folder / "go").touch()
            result = running.wait()

    assert "1 passed" in told(result)
    what = "Docker is not running" if workers else "The Docker engine stopped answering"
    trouble = f"warmstack: at the end: could not look for servers to remove: {what}*"
    result.stdout.fnmatch_lines([trouble])
    assert result.ret == 0
    assert "Traceback" not in told(result)
    assert len(docker_project.containers()) == 2


@pytest.mark.docker
def test_a_container_that_is_removed_under_our_hands_is_gone(docker_bench: Bench) -> None:
    """It has nothing to tell, and needs no removal."""
    runtime, found = found_by(docker_bench, docker_bench.redis)
    with engine() as client:
        client.api.remove_container(found.id, force=True)

    with pytest.raises(NotReady):
        runtime.connect(docker_bench.redis, found)
    runtime.remove(found)
    assert runtime.memory(found) == 0
    assert ["No such container" in line for line in runtime.log(found, 5)] == [True]


@pytest.mark.docker
def test_what_an_engine_refuses_is_told_in_its_words(docker_bench: Bench) -> None:
    """As an error of this package."""
    runtime, found = found_by(docker_bench, docker_bench.redis)

    with pytest.raises(RuntimeUnavailable) as caught:
        runtime.remove(found.replace(id="bridge", kind="network"))

    assert caught.value.what == "The Docker engine refused a request of pytest-warmstack."
    assert "bridge" in caught.value.why


# A folder that fails


@pytest.mark.parametrize(
    ("mounts", "what", "why", "todo"),
    [
        (
            # In a /dev/shm of its own: a mount ends when a run outside removes the folder below it.
            f"{TMPFS.format('1m')}\nmkdir {ROOT}\nmount -t tmpfs -o ro,mode=711 none {ROOT}",
            REFUSED,
            "Read-only file system",
            "give this user write access to that folder",
        ),
        (f"{TMPFS.format('1m')}\ntouch {ROOT}", REFUSED, "Not a directory", "answer above"),
    ],
    ids=["read-only", "a file"],
)
def test_a_folder_that_can_not_be_used_is_told(
    embedded_project: Library, mounts: str, what: str, why: str, todo: str
) -> None:
    """By the run, which goes on with other tests, and by every command."""
    result = embedded_project.start(mounts=mounts).wait()

    outcomes = result.parseoutcomes()
    assert outcomes["errors"] >= 2
    assert outcomes["passed"] >= 1
    assert what in told(result)
    assert why in told(result)
    assert todo in told(result)
    assert "Traceback" not in told(result)
    for command in COMMANDS:
        running = embedded_project.start(*command, command=("pytest_warmstack.cli",), mounts=mounts)
        assert "Traceback" not in told(running.wait())


def test_a_command_in_a_folder_that_is_gone_says_so(embedded_project: Library) -> None:
    """The shell is still in it."""
    gone = embedded_project.folder / "gone"
    gone.mkdir()
    embedded_project.write(
        "leave.py",
        "import os, sys\nfrom pytest_warmstack.cli import main\n"
        f"os.chdir({str(gone)!r})\nos.rmdir({str(gone)!r})\nsys.exit(main(['status']))\n",
    )

    result = embedded_project.start(command=("leave",)).wait()

    assert result.ret == 1
    assert "The operating system refused an operation of the command." in told(result)
    assert "Traceback" not in told(result)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the lock on a server's folder, as a process does that hangs in the middle."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def test_a_server_that_can_not_be_removed_fails_no_test(embedded_project: Library) -> None:
    """It is named in one line, also in a quiet run."""
    embedded_project.write("test_wait.py", WAITING)
    running = embedded_project.start("-q", "test_wait.py")
    until((embedded_project.folder / "running").exists, "the test runs")
    (folder,) = (each for each in embedded_project.folders() if "redis" in each.name)
    with held(folder):
        (embedded_project.folder / "go").touch()
        result = running.wait()

    assert result.ret == 0
    trouble = f"warmstack: at the end: could not remove {folder.name}: * by another process*"
    result.stdout.fnmatch_lines([trouble])
    assert [each for each in embedded_project.folders() if each != folder] == []


def test_an_outdated_server_that_can_not_be_removed_is_named(embedded_bench: Bench) -> None:
    """The new one is started all the same."""
    spec = embedded_bench.redis
    _, found = found_by(embedded_bench, spec)
    (folder,) = (each for each in _folders(embedded_bench) if each.name == found.name)
    with held(folder):
        server = embedded_bench.ensure(with_options(spec, another="configuration"))

    assert server.origin == "started"
    assert server.reason.startswith(f"could not remove {found.name}: ")


def _folders(bench: Bench) -> list[Path]:
    from projects import folders

    return folders(bench.folder)


# A process that lacks something


@contextmanager
def no_more_files() -> Iterator[None]:
    """Let this process open no more files than it has open."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open("/dev/null", os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("service", ["postgres", "redis"])
def test_a_server_is_not_broken_because_this_process_has_too_many_files_open(
    embedded_bench: Bench, service: str
) -> None:
    """It is neither replaced nor taken for one that is not in use, and it stays."""
    spec = getattr(embedded_bench, service)
    runtime, found = found_by(embedded_bench, spec)
    endpoint = embedded_bench.ensure(spec).endpoint.replace()
    calls: list[Callable[[], object]] = [
        runtime.list,
        runtime.leftovers,
        lambda: runtime.connect(spec, found),
        lambda: runtime.ensure(spec),
        lambda: spec.connect(endpoint, spec.fingerprint("embedded"), 3),
    ]
    for call in calls:
        with no_more_files(), pytest.raises(RuntimeUnavailable) as caught:
            call()
        assert "Too many open files" in caught.value.why
        assert "ulimit -n" in str(caught.value)

    assert embedded_bench.ensure(spec).id == found.id
