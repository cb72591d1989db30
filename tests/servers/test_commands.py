"""The command `warmstack`: what it shows, prepares, opens and explains."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from projects import PATH, WAITING, Library, engine, script, until
from pytest_warmstack.options import RuntimeName
from pytest_warmstack.postgres import sql

REUSE = "--reuse-containers"
READER = ("-k", "reader")


def told(result: pytest.RunResult) -> str:
    """Return all that a command has written."""
    return "\n".join([*result.outlines, *result.errlines])


def passwords(project: Library) -> list[str]:
    """Return the passwords of the project's kept servers."""
    return [project.kept(service).password for service in ("postgres", "redis")]


def facts(project: Library) -> list[Any]:
    """Return what `status --json` tells of the project's servers."""
    result = project.warmstack("status", "--json")
    assert result.ret == 0
    everything = json.loads("\n".join(result.outlines))
    return [each for each in everything if each["project"] == str(project.folder)]


# up


def test_up_makes_everything_ready_for_the_first_test(project: Library) -> None:
    """The servers, the template and the stock are there, and the run after it finds them."""
    result = project.warmstack("up")

    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "warmstack: PostgreSQL *: started in *",
            "warmstack: Redis *: started in *",
            "warmstack: template of 3 revisions: built in *",
            "warmstack: the servers stay (warmstack up); to remove them: warmstack clean",
        ]
    )
    until(lambda: len(project.databases("r")) == 2, "two clones stand ready")
    servers = project.servers()

    run = project.run(REUSE)
    run.assert_outcomes(passed=5)
    run.stdout.fnmatch_lines(["warmstack: template of 3 revisions: found in *"])
    assert project.servers() == servers
    assert project.executions() == 1

    again = project.warmstack("up")
    assert again.ret == 0
    again.stdout.fnmatch_lines(
        ["warmstack: PostgreSQL *: reused, *", "warmstack: template of 3 revisions: found in *"]
    )


def test_up_tells_of_a_broken_migration_and_of_nothing_else(embedded_project: Library) -> None:
    """Status 1, the error once, and no traceback of ours; the Redis is there all the same."""
    project = embedded_project
    project.edit("migrations/env.py", "run_migrations()", "run_the_migrations()")

    result = project.warmstack("up")

    assert result.ret == 1
    assert told(result).count("The migrations failed in env.py") == 1
    assert "pytest_warmstack/" not in told(result)
    assert len(project.folders()) == 2


def test_up_does_what_the_settings_say_and_spreads_nothing(embedded_project: Library) -> None:
    """Workers, reports and warnings that the project wants of a run do not get in its way."""
    project = embedded_project
    project.configure("filterwarnings = error")
    path = project.folder / "pytest.ini"
    path.write_text(path.read_text().replace("addopts = ", "addopts = -n 2 -v "))

    result = project.warmstack("up")

    assert result.ret == 0, told(result)
    assert "worker" not in told(result)


# status


def test_status_shows_what_is_there_and_who_uses_it(project: Library) -> None:
    """Before, during and after a run, as text and for machines; nothing of it changes anything."""
    project.run(REUSE).assert_outcomes(passed=5)
    until(lambda: len(project.databases("r")) == 2, "two clones stand ready")
    project.write("test_wait.py", WAITING)
    running = project.start("test_wait.py", REUSE)
    until((project.folder / "running").exists, "the test runs")
    text = project.warmstack("status")
    during = {each["service"]: each for each in facts(project)}
    (project.folder / "go").touch()
    running.wait().assert_outcomes(passed=1)
    until(lambda: len(project.databases("r")) == 2, "two clones stand ready")
    before = project.databases()
    after = {each["service"]: each for each in facts(project)}

    (clone, url) = (project.folder / "running").read_text().split()
    pid = running.process.pid
    inside = during["postgres"]["inside"]
    used = {each["name"]: each for each in inside["clones"] if each["state"] == "in use"}
    assert clone.rpartition("/")[2] in used
    assert all(each["holder"].startswith(f"{pid}@") for each in used.values())
    (lease,) = during["redis"]["inside"]["leases"]
    assert lease["databases"] == url.rpartition("/")[2]
    assert lease["holder"].startswith(f"process {pid}@")
    for each in (*during.values(), *after.values()):
        assert each["runtime"] == project.runtime
        assert each["state"] == "running"
        assert each["kept"] is True
        assert each["memory"] > 1_000_000
        assert each["made"] <= each["last_used"] or each["service"] == "redis"
    assert during["postgres"]["connections"] > 0
    assert after["postgres"]["connections"] == 0
    assert after["redis"]["last_used"] > after["redis"]["made"]
    (template,) = after["postgres"]["inside"]["templates"]
    assert template["holds"] == "3 revisions"
    assert template["bytes"] > 1_000_000
    assert {each["state"] for each in after["postgres"]["inside"]["clones"]} == {"ready"}
    assert project.databases() == before
    text.stdout.fnmatch_lines(
        [
            str(project.folder),
            "  SERVER *VERSION *RUNTIME *STATE *AGE *LAST USED *MEMORY",
            f"  PostgreSQL *{project.runtime} *running, used by * now *",
            "    template of 3 revisions, *",
            f"    * in use by process {pid}@*",
        ]
    )
    for password in passwords(project):
        assert password not in json.dumps([*during.values(), *after.values()]) + told(text)


def test_status_does_not_connect_to_a_template(kept: Library) -> None:
    """PostgreSQL has counted no connection to it: not even one that it refused."""
    count = "SELECT sum(sessions) FROM pg_stat_database WHERE datname LIKE 'warmstack_t_%'"
    (before,) = kept.sql(count)

    assert kept.warmstack("status").ret == 0

    (after,) = kept.sql(count)
    assert after == before


def test_status_shows_a_server_that_has_stopped(embedded_project: Library) -> None:
    """It is named with its state, and nothing is asked of it."""
    project = embedded_project
    project.run(REUSE, *READER).assert_outcomes(passed=1, deselected=4)
    project.stop("redis", signal.SIGKILL)

    (found,) = facts(project)

    assert (found["service"], found["state"], found["version"]) == ("redis", "ended", "")


def test_status_without_an_engine_names_what_it_could_not_ask(kept: Library) -> None:
    """The embedded servers are shown, with status 0."""
    result = kept.warmstack("status", DOCKER_HOST="unix:///nonexistent.sock")

    assert result.ret == 0
    result.stdout.fnmatch_lines([str(kept.folder)])
    result.stderr.fnmatch_lines(["could not check the runtime docker: Docker is not running.*"])


# clean


def test_a_dry_run_removes_nothing(project: Library) -> None:
    """It names what would be removed, in the words of the real thing."""
    project.run(REUSE, *READER).assert_outcomes(passed=1, deselected=4)
    servers = project.servers()

    result = project.warmstack("clean", "--dry-run")

    assert result.ret == 0
    result.stdout.fnmatch_lines([f"would remove redis warmstack-library-* ({project.runtime})"])
    assert project.servers() == servers


def test_clean_spares_what_was_used_since(kept: Library) -> None:
    """With --older-than only what nobody has used for so long is removed."""
    result = kept.warmstack("clean", "--older-than=1h")

    assert result.ret == 0
    result.stdout.fnmatch_lines(["nothing to remove for *"])
    assert len(kept.folders()) == 2


@pytest.mark.parametrize("text", ["soon", "7", "-1d", "d"])
def test_an_age_that_is_none_is_refused(kept: Library, text: str) -> None:
    """Before anything is removed, with the status of a wrong call."""
    result = kept.warmstack("clean", f"--older-than={text}")

    assert result.ret == 2
    assert f"'{text}' is not an age such as 7d, 12h or 30min" in told(result)
    assert len(kept.folders()) == 2


def test_orphans_are_servers_of_a_folder_that_is_gone(
    project: Library, library_in: Callable[..., Library]
) -> None:
    """Only those; --orphans is for all that no `clean` in their own folder can reach."""
    lost = library_in(project.runtime, "lost")
    folder = lost.folder
    for each in (project, lost):
        each.run(REUSE, *READER).assert_outcomes(passed=1, deselected=4)
    servers = project.servers()
    folder.rename(folder.with_name("elsewhere"))

    result = project.warmstack("clean", "--orphans")

    assert result.ret == 0
    result.stdout.fnmatch_lines([f"removed redis warmstack-lost-* ({project.runtime})"])
    assert lost.servers() == []
    assert project.servers() == servers


def test_what_another_machine_has_made_is_no_orphan(
    embedded_project: Library, library_in: Callable[..., Library]
) -> None:
    """On an engine that many use, the folders of others are not here to be seen."""
    lost = library_in(RuntimeName.EMBEDDED, "lost")
    lost.run(REUSE, *READER).assert_outcomes(passed=1, deselected=4)
    (folder,) = lost.folders()
    path = folder / "server.json"
    record = json.loads(path.read_text())
    owner = record["labels"]["pytest-warmstack.owner"]
    record["labels"]["pytest-warmstack.owner"] = f"elsewhere{owner}"
    path.write_text(json.dumps(record))
    lost.folder.rename(lost.folder.with_name("gone"))

    assert embedded_project.warmstack("clean", "--orphans").ret == 0

    assert lost.folders() == [folder]
    assert embedded_project.warmstack("clean", "--project", str(lost.folder)).ret == 0


def test_clean_for_a_folder_that_is_gone_and_one_that_never_was(
    embedded_project: Library, library_in: Callable[..., Library]
) -> None:
    """The first one's servers are removed; the second is a mistake, and told as one."""
    lost = library_in(RuntimeName.EMBEDDED, "lost")
    lost.run(REUSE, *READER).assert_outcomes(passed=1, deselected=4)
    lost.folder.rename(lost.folder.with_name("elsewhere"))

    gone = embedded_project.warmstack("clean", "--project", str(lost.folder))
    never = embedded_project.warmstack("clean", "--project", "/nowhere")

    assert gone.ret == 0
    gone.stdout.fnmatch_lines(["removed redis warmstack-lost-* (embedded)"])
    assert never.ret == 1
    assert "The folder /nowhere does not exist." in told(never)


@pytest.mark.docker
def test_volumes_and_networks_with_our_labels_are_removed(docker_project: Library) -> None:
    """We make none; whoever gives them our labels has them cleaned with the rest."""
    project = docker_project
    labels = {"pytest-warmstack.project": "x", PATH: str(project.folder)}
    with engine() as client:
        client.volumes.create("warmstack-test-volume", labels=labels)
        client.networks.create("warmstack-test-network", labels=labels)

        result = project.warmstack("clean")

        assert result.ret == 0
        result.stdout.fnmatch_lines_random(
            [
                "removed volume warmstack-test-volume (docker)",
                "removed network warmstack-test-network (docker)",
            ]
        )
        assert client.api.volumes(filters={"name": "warmstack-test-volume"})["Volumes"] in (
            [],
            None,
        )
        assert client.networks.list(names=["warmstack-test-network"]) == []


# psql, redis-cli, logs


def test_psql_is_opened_on_the_kept_server(kept: Library, tmp_path: Path) -> None:
    """With the password in its environment, and never among its arguments."""
    endpoint = kept.kept("postgres")

    path = script(tmp_path / "bin", "psql")
    result = kept.warmstack("psql", "--", "-c", "select 1", PATH=path, PGSERVICE="theirs")

    assert result.ret == 0
    assert "service: " in result.outlines
    words = f"--host={endpoint.host} --port={endpoint.port} --username=postgres --dbname=postgres"
    assert f"arguments: {words} -c select 1" in result.outlines
    assert f"password: {endpoint.password}" in result.outlines


def test_psql_opens_a_database_by_a_part_of_its_name(kept: Library, tmp_path: Path) -> None:
    """One that is kept, or any other, but no template; what fits several is asked back."""
    path = script(tmp_path / "bin", "psql")
    kept.sql("CREATE DATABASE shelf_one", "SELECT 1")
    kept.sql("CREATE DATABASE shelf_two", "SELECT 1")
    (template,) = kept.databases("t")
    try:
        one = kept.warmstack("psql", "_one", PATH=path)
        both = kept.warmstack("psql", "shelf", PATH=path)
        sealed = kept.warmstack("psql", template, PATH=path)
    finally:
        for name in ("shelf_one", "shelf_two"):
            kept.sql(f"DROP DATABASE {name}", "SELECT 1")

    assert "--dbname=shelf_one" in told(one)
    assert (both.ret, sealed.ret) == (1, 1)
    assert "it matches shelf_one, shelf_two" in told(both)
    assert "templates accept no connections" in told(sealed)


def test_psql_itself_runs_against_the_server(project: Library) -> None:
    """An installed one, else the one that lies where the server does; no other tool is needed."""
    project.run(REUSE).assert_outcomes(passed=5)
    database = project.databases("t")[0]
    # Without an installed one: Docker's own command is all that is on the PATH then.
    path = project.folder / "bin"
    path.mkdir()
    for name in ("docker", "sh"):
        found = shutil.which(name)
        if found is not None:
            (path / name).symlink_to(found)
    query_ = f"SELECT 'it is ' || datistemplate FROM pg_database WHERE datname = '{database}'"

    result = project.warmstack("psql", "--", "-At", "-c", query_, PATH=str(path))

    if result.ret == 1 and "Could not find psql" in told(result):
        # The embedded binaries have none.
        assert project.runtime == RuntimeName.EMBEDDED
        assert "where warmstack-library" in told(result)
    else:
        assert "it is true" in result.outlines


def test_redis_cli_is_opened_on_the_kept_server(kept: Library, tmp_path: Path) -> None:
    """With the password in its environment, too."""
    endpoint = kept.kept("redis")

    result = kept.warmstack("redis-cli", "--", "ping", PATH=script(tmp_path / "bin", "redis-cli"))

    assert f"arguments: -h {endpoint.host} -p {endpoint.port} -n 1 ping" in result.outlines
    assert f"password: {endpoint.password}" in result.outlines


def test_without_a_server_the_commands_say_how_to_start_one(embedded_project: Library) -> None:
    """Status 1, and the next command to type."""
    for name in ("psql", "redis-cli", "logs"):
        result = embedded_project.warmstack(name)

        assert result.ret == 1
        assert "warmstack up" in told(result)


def test_logs_show_the_last_lines_without_the_password(project: Library) -> None:
    """Of both servers, or of one."""
    project.run(REUSE).assert_outcomes(passed=5)
    (password, _) = passwords(project)
    project.sql(f"DO $$ BEGIN RAISE LOG 'the password is {password}'; END $$", "SELECT 1")

    both = project.warmstack("logs", "-n", "20")
    one = project.warmstack("logs", "redis", "--lines=1")

    assert both.ret == one.ret == 0
    both.stdout.fnmatch_lines_random(
        ["==> postgres *", "==> redis *", "*the password is [*][*][*]*"]
    )
    assert password not in told(both)
    assert len(one.outlines) == 2


# doctor


def test_the_doctor_names_the_step_that_fails(embedded_project: Library) -> None:
    """Docker that is not there, binaries that are refused and why, and what a run would do."""
    project = embedded_project
    project.configure("warmstack_clones_ahead = 3")

    result = project.warmstack("doctor", DOCKER_HOST="unix:///nonexistent.sock")

    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "pytest-warmstack *",
            "versions",
            "*python *3.*",
            "*asyncpg *",
            f"settings of {project.folder}",
            "*runtime *embedded  (pytest.ini)",
            "*clones_ahead *3  (pytest.ini)",
            "docker",
            "  NO  engine *",
            "*unix:///nonexistent.sock*",
            "embedded",
            "  ok  PostgreSQL *PostgreSQL 16.*",
            "  ok  Redis *",
            "fit: a run would use embedded",
        ]
    )


def test_the_doctor_fails_where_a_run_would(embedded_project: Library) -> None:
    """A folder without programs and no engine: status 1, and where it looked."""
    result = embedded_project.warmstack(
        "doctor", DOCKER_HOST="unix:///nonexistent.sock", WARMSTACK_POSTGRES_BIN="/nonexistent"
    )

    assert result.ret == 1
    result.stdout.fnmatch_lines(
        [
            "*PostgreSQL *No such file or directory  (/nonexistent)",
            "  NO  PostgreSQL *",
            "not fit: first correct WARMSTACK_POSTGRES_BIN, which names /nonexistent, *",
        ]
    )


@pytest.mark.docker
def test_the_doctor_knows_the_engine(docker_project: Library) -> None:
    """Its version, whether it is rootless, how it is reached, and whether it has the images."""
    result = docker_project.warmstack("doctor")

    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "docker",
            "  ok  engine *",
            "  ok  rootless *",
            "  ok  image *: in the engine",
            "fit: a run would use docker",
        ]
    )


def test_no_secret_is_told_by_the_doctor(embedded_project: Library) -> None:
    """Neither of a URL nor of the server's own environment."""
    project = embedded_project
    project.configure("warmstack_postgres_env = TOKEN=hunter3")

    result = project.warmstack(
        "doctor",
        WARMSTACK_RUNTIME="auto",
        WARMSTACK_POSTGRES_URL="postgresql://ci:hunter2@127.0.0.1:1",
        WARMSTACK_START_TIMEOUT="1",
    )

    assert result.ret == 1
    assert "postgresql://ci:***@127.0.0.1:1" in told(result)
    assert "hunter" not in told(result)


NO_ENGINE = {"DOCKER_HOST": "unix:///nonexistent.sock"}

REVISION = """
revision = "{name}"
down_revision = "{after}"

def upgrade():
    pass
"""


def test_the_doctor_looks_at_alembic(embedded_project: Library) -> None:
    """The configuration, the revisions and their heads: of two it says what is odd about them."""
    project = embedded_project
    ini = project.folder / "alembic.ini"

    one = project.warmstack("doctor", **NO_ENGINE)
    text = REVISION.format(name="other", after="0002")
    project.write("migrations/versions/other.py", text)
    two = project.warmstack("doctor", **NO_ENGINE)
    ini.unlink()
    none = project.warmstack("doctor", **NO_ENGINE)

    assert (one.ret, two.ret, none.ret) == (0, 0, 0)
    one.stdout.fnmatch_lines(
        [
            "*max_idle *9999d*pytest.ini*",
            "alembic",
            "  ok  configuration *alembic.ini",
            "  ok  revisions *3, with 1 head",
        ]
    )
    two.stdout.fnmatch_lines(["  ok  revisions *4, with 2 heads", "      heads *"])
    assert {"0003", "other"} <= set(two.stdout.str().replace(",", " ").split())
    none.stdout.fnmatch_lines(["      configuration *none: the tests have an empty database"])


def test_the_doctor_fails_where_the_migrations_would(embedded_project: Library) -> None:
    """A revision that can't be loaded, a file that is not there, a package that is missing."""
    project = embedded_project
    broken = project.write(
        "migrations/versions/broken.py",
        REVISION.format(name="broken", after="absent"),
    )
    revision = project.warmstack("doctor", **NO_ENGINE)
    broken.unlink()
    project.write("without/sitecustomize.py", "import sys\nsys.modules['alembic'] = None\n")
    package = project.warmstack("doctor", PYTHONPATH=str(project.folder / "without"), **NO_ENGINE)
    named = project.warmstack("doctor", WARMSTACK_ALEMBIC="absent.ini", **NO_ENGINE)

    assert (revision.ret, package.ret, named.ret) == (1, 1, 1)
    revision.stdout.fnmatch_lines(["  NO  revisions *", "*absent*"])
    package.stdout.fnmatch_lines(["  NO  package *pip install alembic"])
    named.stdout.fnmatch_lines(["  NO  configuration *absent.ini*"])
    firsts = [result.outlines[-1] for result in (revision, package, named)]
    assert firsts[1] == "not fit: first pip install alembic"
    assert firsts[2].startswith("not fit: first correct the path; ")
    assert firsts[0].startswith("not fit: first ")


def test_the_doctor_imports_what_the_tests_can(embedded_project: Library) -> None:
    """A revision that imports from a folder of `pythonpath`."""
    project = embedded_project
    project.write("lib/shelf_names.py", "NAMES = ()\n")
    project.configure("pythonpath = lib")
    text = REVISION.format(name="names", after="0003")
    project.write("migrations/versions/names.py", f"import shelf_names\n{text}")

    result = project.warmstack("doctor", **NO_ENGINE)

    assert result.ret == 0
    result.stdout.fnmatch_lines(["  ok  revisions *4, with 1 head"])


def test_the_doctor_names_what_is_mistyped(embedded_project: Library) -> None:
    """A variable and a key; neither stops a run, so the status is that of the rest."""
    project = embedded_project
    project.configure("warmstack_runtim = docker")

    result = project.warmstack("doctor", WARMSTACK_CLONE_AHEAD="3", **NO_ENGINE)

    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "  [?][?]  misspelt *warmstack_runtim; did you mean warmstack_runtime[?]",
            "  [?][?]  misspelt *WARMSTACK_CLONE_AHEAD; did you mean WARMSTACK_CLONES_AHEAD[?]",
        ]
    )


def test_a_command_works_where_the_project_is_broken(embedded_project: Library) -> None:
    """A conftest that can't be imported, or settings that can't be read, keep nobody from them."""
    project = embedded_project
    project.run(REUSE, *READER).assert_outcomes(passed=1, deselected=4)
    project.write("conftest.py", "raise RuntimeError('broken')")
    assert len(facts(project)) == 1

    project.configure("warmstack_runtime = podman")
    result = project.warmstack("clean")

    assert result.ret == 0
    assert "the project's settings can't be read:" in told(result)
    assert project.folders() == []


def test_the_commands_help_themselves(kept: Library) -> None:
    """Each is listed with what it does, and has a help of its own."""
    whole = kept.warmstack("--help")

    assert whole.ret == 0
    for name in ("status", "clean", "up", "psql", "redis-cli", "logs", "doctor"):
        assert name in told(whole)
        assert kept.warmstack(name, "--help").ret == 0
    assert kept.warmstack("stop").ret == 2


# psql by the name of a test

FAILING = """
import pytest

@pytest.mark.parametrize("number", ["one", "two"])
def test_refund(db_url, number):
    assert False

def test_refund_of_all(db_url):
    assert False
"""

SHARED = """
import pytest

pytestmark = pytest.mark.warmstack_isolation("module")

def test_first(db_url):
    assert False

def test_second(db_url):
    assert False

def test_third(db_url):
    pass
"""

AT_A_BREAKPOINT = """
import pdb
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.warmstack_isolation("{isolation}")

class Debugger(pdb.Pdb):
    def set_trace(self, frame, *args):
        Path("waiting").touch()
        deadline = time.monotonic() + 60
        while not Path("go").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)

def test_that_stops(db_url, redis_url):
    Path("name").write_text(f"{db_url} {redis_url}")
    breakpoint()

def test_that_follows(db_url):
    pass
"""
"""Its debugger waits for the file `go`, where another one asks its user."""


def opened(result: pytest.RunResult) -> str:
    """Return the database that psql was opened on."""
    assert result.ret == 0, told(result)
    (word,) = (each for each in result.stdout.str().split() if each.startswith("--dbname="))
    return word.removeprefix("--dbname=")


def saved(project: Library) -> list[tuple[str, str]]:
    """Return the saved databases, oldest first, and the tests that they are saved for."""
    rows = [row for row in project.sql(sql.NAMES) if row["datname"].startswith("warmstack_k_")]
    # Not by their numbers in PostgreSQL: clones are made beside each other, ahead of the tests.
    rows.sort(key=lambda row: sql.parse_note(row["note"])[0])
    return [(row["datname"], json.loads(row["comment"])["test"]) for row in rows]


def test_psql_opens_the_newest_database_of_a_test(
    embedded_project: Library, tmp_path: Path
) -> None:
    """By its id, its function or a part of these; what fits best counts, the others are listed."""
    project, path = embedded_project, script(tmp_path / "bin", "psql")
    project.write("test_fails.py", FAILING)
    project.configure("warmstack_keep_failed = 8")
    for _ in range(2):
        project.run(REUSE, "test_fails.py").assert_outcomes(failed=3)
    names = [name for name, _ in saved(project)]
    whose = dict(saved(project))
    ids = [f"test_fails.py::{each}" for each in ("test_refund[one]", "test_refund[two]")]
    assert [whose[name] for name in names] == [*ids, "test_fails.py::test_refund_of_all"] * 2

    by_id = project.warmstack("psql", ids[0], PATH=path)
    by_function = project.warmstack("psql", "test_refund", PATH=path)
    by_variant = project.warmstack("psql", "test_refund[two]", PATH=path)
    by_part = project.warmstack("psql", "refund_of", PATH=path)
    by_number = project.warmstack("psql", names[0].rpartition("_")[2], PATH=path)
    by_name = project.warmstack("psql", names[1], PATH=path)
    unknown = project.warmstack("psql", "test_payment", PATH=path)

    assert opened(by_id) == names[3]
    assert by_id.errlines[1:] == [
        f"  warmstack psql {names[0].rpartition('_')[2]}: {ids[0]} ({line_age(by_id)} ago)"
    ]
    assert opened(by_function) == names[4]
    assert len(by_function.errlines) == 4
    assert not any("test_refund_of_all" in line for line in by_function.errlines)
    assert opened(by_variant) == names[4]
    assert opened(by_part) == names[5]
    assert (opened(by_number), by_number.errlines) == (names[0], [])
    assert (opened(by_name), by_name.errlines) == (names[1], [])
    assert unknown.ret == 1
    assert f"{names[0]} ({ids[0]})" in told(unknown)


def line_age(result: pytest.RunResult) -> str:
    """Return how old the second line on standard error says that its database is."""
    return result.errlines[1].rpartition("(")[2].removesuffix(" ago)")


def test_the_saved_database_of_a_module_names_the_tests_that_failed(
    embedded_project: Library, tmp_path: Path
) -> None:
    """In the run's report, in `status`, and for `psql`."""
    project, path = embedded_project, script(tmp_path / "bin", "psql")
    project.write("test_shared.py", SHARED)
    failed = "test_shared.py::test_first, test_shared.py::test_second"

    run = project.run(REUSE, "test_shared.py")

    run.assert_outcomes(failed=2, passed=1)
    run.stdout.fnmatch_lines([f"warmstack: {failed}: its database is saved: *"])
    assert [test for _, test in saved(project)] == [failed]
    ((name, _),) = saved(project)
    for wanted in ("test_shared.py::test_second", "test_first", "shared"):
        assert opened(project.warmstack("psql", wanted, PATH=path)) == name
    project.warmstack("status").stdout.fnmatch_lines([f"*{name} saved, * of {failed}"])


@pytest.mark.parametrize("isolation", ["clone", "module", "rollback"])
def test_psql_and_redis_cli_find_a_test_at_a_breakpoint(
    embedded_project: Library, tmp_path: Path, isolation: str
) -> None:
    """While it waits in a debugger; the test after it is not taken for it."""
    project, path = embedded_project, script(tmp_path / "bin", "psql")
    script(tmp_path / "redis", "redis-cli")
    project.write("test_stops.py", AT_A_BREAKPOINT.replace("{isolation}", isolation))
    running = project.start(
        REUSE, "test_stops.py", "--pdbcls=test_stops:Debugger", PYTHONPATH=str(project.folder)
    )
    until((project.folder / "waiting").exists, "the test waits")
    try:
        psql = project.warmstack("psql", "test_that_stops", PATH=path)
        redis_cli = project.warmstack("redis-cli", PATH=f"{tmp_path / 'redis'}:{path}")
    finally:
        (project.folder / "go").touch()
        running.wait().assert_outcomes(passed=2)
    after = project.warmstack("psql", "test_that_stops", PATH=path)

    database, cache = (project.folder / "name").read_text().split()
    assert opened(psql) == database.rpartition("/")[2]
    assert f" -n {cache.rpartition('/')[2]}" in told(redis_cli)
    assert after.ret == 1


def test_redis_cli_opens_the_database_of_the_last_run(kept: Library, tmp_path: Path) -> None:
    """Where the last test has left its keys, and not the one that holds the plugin's marks."""
    path = script(tmp_path / "bin", "redis-cli")
    kept.write(
        "test_keys.py",
        "from redis import Redis\ndef test_it(redis_url):\n"
        "    open('index', 'w').write(redis_url.rpartition('/')[2])\n"
        "    client = Redis.from_url(redis_url)\n    client.set('a', 1)\n    client.close()\n",
    )
    kept.run(REUSE, "test_keys.py").assert_outcomes(passed=1)

    result = kept.warmstack("redis-cli", "--", "-n", "0", PATH=path)

    (index,) = kept.lines("index")
    assert told(result).splitlines()[0].endswith(f" -n {index} -n 0")
