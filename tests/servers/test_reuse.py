"""With --reuse-containers, the next run finds the servers and the template of the last one."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator

import pytest

from projects import Library
from pytest_warmstack.options import RuntimeName

REUSE = "--reuse-containers"
IMPORTS = """
import sys
from pathlib import Path

def pytest_unconfigure():
    heavy = {"docker", "testcontainers", "alembic"}.intersection(sys.modules)
    Path("imports.log").write_text(" ".join(["none", *sorted(heavy)]))
    own = sorted(name for name in sys.modules if name.startswith("pytest_warmstack"))
    Path("own.log").write_text(chr(10).join(own))
"""


@pytest.fixture(scope="module")
def kept_project(runtime: str, library_in: Callable[..., Library]) -> Iterator[Library]:
    """A project with kept servers, for all tests of this file that leave some behind."""
    library = library_in(runtime)
    yield library
    library.end()


@pytest.fixture
def kept(kept_project: Library) -> Iterator[Library]:
    """The same, with its files as they were, and servers and template that are there."""
    kept_project.reset()
    if len(kept_project.servers()) != 2 or not kept_project.hint_file("redis").exists():
        kept_project.run(REUSE).assert_outcomes(passed=5)
        (kept_project.folder / "executions.log").unlink(missing_ok=True)
        (kept_project.folder / "servers.log").unlink(missing_ok=True)
    yield kept_project
    kept_project.quit()


def test_a_second_run_starts_and_builds_nothing(project: Library) -> None:
    """The same servers, the same template, no migration; and the header says so."""
    first = project.run(REUSE)
    first.assert_outcomes(passed=5)
    first.stdout.fnmatch_lines(
        [
            "warmstack: PostgreSQL *: started in *",
            "warmstack: Redis *: started in *",
            "warmstack: template of 3 revisions: built in *",
            "warmstack: the servers stay (command line*); to remove them: warmstack clean",
        ]
    )
    servers = project.servers()
    assert len(servers) == 2
    assert project.executions() == 1

    second = project.run(REUSE)

    second.assert_outcomes(passed=5)
    second.stdout.fnmatch_lines(
        [
            "warmstack: PostgreSQL *: reused, * old",
            "warmstack: Redis *: reused, * old",
            "warmstack: template of 3 revisions: found in *",
        ]
    )
    assert project.servers() == servers
    assert set(project.lines("servers.log")) == set(servers)
    assert project.executions() == 1
    assert len(project.databases("t")) == 1


def test_a_hint_saves_every_question_to_the_engine(kept: Library) -> None:
    """None of the packages that could ask one is imported, and the kept servers are used."""
    servers = kept.servers()
    kept.write("conftest.py", IMPORTS)

    result = kept.run(REUSE)

    result.assert_outcomes(passed=5)
    assert set(kept.lines("servers.log")) == set(servers)
    assert kept.lines("imports.log") == ["none"]
    assert kept.executions() == 0


def test_a_warm_run_imports_few_modules_of_the_plugin(kept: Library) -> None:
    """None for errors, builds and runtimes; an import costs each of a thousand runs a day."""
    kept.write("conftest.py", IMPORTS)
    kept.run(REUSE).assert_outcomes(passed=5)  # The clean-up of this hour.

    kept.run(REUSE).assert_outcomes(passed=5)

    own = kept.lines("own.log")
    assert len(own) <= 42, own
    assert not [name for name in own if name.rpartition(".")[2] in {"build", "builder", "docker"}]


def test_without_a_hint_the_servers_are_found_by_their_labels(kept: Library) -> None:
    """A fresh checkout of the cache folder costs neither servers nor template."""
    servers = kept.servers()
    for service in ("postgres", "redis"):
        kept.hint_file(service).unlink()

    result = kept.run(REUSE)

    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines(["warmstack: PostgreSQL *: reused, *", "*: found in *"])
    assert kept.servers() == servers
    assert kept.executions() == 0
    assert kept.hint_file("postgres").stat().st_mode & 0o077 == 0


def test_a_stale_hint_is_not_believed(kept: Library) -> None:
    """A hint whose port now answers as something else, or not at all, is passed over."""
    servers = kept.servers()
    redis_port = kept.kept("redis").port
    for service, port in (("postgres", redis_port), ("redis", 9)):
        path = kept.hint_file(service)
        hint = json.loads(path.read_text())
        hint["server"]["endpoint"]["port"] = port
        path.write_text(json.dumps(hint))

    kept.run(REUSE).assert_outcomes(passed=5)

    assert kept.servers() == servers
    assert kept.kept("redis").port == redis_port
    assert kept.executions() == 0


def test_a_run_without_the_flag_has_its_own_servers_and_spares_the_kept(kept: Library) -> None:
    """The kept servers stay and are not used; those of the run are gone."""
    servers = kept.servers()

    kept.run("-k", "reader or author").assert_outcomes(passed=2, deselected=3)

    assert kept.servers() == servers
    assert len(kept.lines("servers.log")) == 2
    assert not set(kept.lines("servers.log")).intersection(servers)


def test_ci_switches_off_what_the_ini_file_asks_for(kept: Library) -> None:
    """With CI set nothing new is kept; the command line still wins."""
    servers = kept.servers()
    kept.configure("warmstack_reuse = true")

    kept.run("-k", "reader", CI="1").assert_outcomes(passed=1, deselected=4)
    assert not set(kept.lines("servers.log")).intersection(servers)
    assert kept.servers() == servers

    kept.run("-k", "reader", REUSE, CI="1").assert_outcomes(passed=1, deselected=4)
    assert kept.lines("servers.log")[-1] in servers


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["stopped", "killed"])
def test_ended_servers_are_healed_with_their_template(
    kept: Library, number: signal.Signals
) -> None:
    """After both servers ended between two runs the next one has them, and a new template."""
    for service in ("postgres", "redis"):
        kept.stop(service, number)

    result = kept.run(REUSE)

    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines(
        [
            "warmstack: PostgreSQL *: started again in * (*)",
            "warmstack: Redis *: started again in * (*)",
            "warmstack: template of 3 revisions: built in *",
        ]
    )
    assert kept.executions() == 1
    assert len(kept.servers()) == 2


def test_a_server_with_another_configuration_is_replaced_and_the_change_is_named(
    kept: Library,
) -> None:
    """Another image, or another folder of programs, makes a new server and removes the old one."""
    (before,) = (server for server in kept.servers() if server in _redis_ids(kept))
    if kept.runtime == RuntimeName.DOCKER:
        assert kept.images is not None
        # The same image by another name: only what was asked for counts.
        image = f"docker.io/library/{kept.images.redis}"
        option, words = f"--warmstack-redis-image={image}", f"image: {kept.images.redis} -> {image}"
    else:
        (folder,) = (each for each in kept.folders() if "-redis-" in each.name)
        program = json.loads((folder / "server.json").read_text())["what"]
        place = program.rpartition("/")[0]
        option, words = f"--warmstack-redis-bin={place}", f"programs: unset -> {place}"

    result = kept.run(REUSE, "-k", "reader", option)

    result.assert_outcomes(passed=1, deselected=4)
    line = next(line for line in result.outlines if line.startswith("warmstack: Redis"))
    assert ": replaced in " in line
    assert line.endswith(f"({words})")
    assert before not in kept.servers()
    assert len(kept.servers()) == 2


def _redis_ids(project: Library) -> list[str]:
    """Return the ids of the project's Redis servers."""
    records = [
        json.loads((each / "server.json").read_text())
        for each in project.folders()
        if "-redis-" in each.name
    ]
    ids = [each["Id"] for each in project.containers() if "-redis-" in each["Name"]]
    return [*ids, *(each["id"] for each in records)]


def test_a_copied_checkout_has_servers_of_its_own(kept: Library, other_project: Library) -> None:
    """Who copies a checkout copies pytest's cache, and with it the way to the servers."""
    shutil.copytree(kept.folder / ".pytest_cache", other_project.folder / ".pytest_cache")

    other_project.run(REUSE).assert_outcomes(passed=5)

    assert len(other_project.servers()) == 2
    assert set(other_project.servers()).isdisjoint(kept.servers())


def test_two_projects_never_share_a_server(kept: Library, other_project: Library) -> None:
    """The same configuration in another folder is another server."""
    servers = kept.servers()

    other_project.run(REUSE, "-k", "reader").assert_outcomes(passed=1, deselected=4)

    assert len(other_project.servers()) == 1
    assert not set(other_project.servers()).intersection(servers)
    assert kept.servers() == servers


def test_variables_of_the_machine_do_not_reach_a_server(project: Library) -> None:
    """What images, libpq and applications read from the environment is not meant for tests."""
    ambient = {
        "POSTGRES_USER": "somebody",
        "POSTGRES_PASSWORD": "hunter2",
        "POSTGRES_DB": "other",
        "POSTGRES_HOST_AUTH_METHOD": "trust",
        "POSTGRES_HOST": "nowhere.invalid",
        "PGHOST": "nowhere.invalid",
        "PGPORT": "1",
        "PGUSER": "somebody",
        "PGPASSWORD": "hunter2",
        "PGDATA": "/nonexistent",
        "PGSSLMODE": "verify-full",
        "REDIS_PASSWORD": "hunter2",
        "REDIS_URL": "redis://nowhere.invalid",
        "DATABASE_URL": "postgresql://somebody:hunter2@nowhere.invalid/other",
    }

    project.run(**ambient).assert_outcomes(passed=5)


def test_a_kept_server_starts_on_the_same_port_each_time(project: Library) -> None:
    """A GUI client and a saved `warmstack url` find it again; another project has other ports."""
    ports = []
    for _ in range(2):
        project.run(REUSE).assert_outcomes(passed=5)
        ports.append([project.kept(each).port for each in ("postgres", "redis")])
        project.warmstack("clean")

    assert ports[0] == ports[1]
    project.run().assert_outcomes(passed=5)
    assert project.folders() == project.containers() == []
