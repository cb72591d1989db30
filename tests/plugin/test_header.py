"""What the user reads before and after the tests, and when nothing is shown."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from pytest_warmstack.servers.model import ServerInfo

Run = Callable[..., pytest.RunResult]

TESTS = """
import pytest

def test_unit(): pass

@pytest.mark.parametrize("turn", range(2))
def test_database(db_url, turn): pass

def test_redis(redis_url): pass
"""

WATCH = """
import sys

started = []

def look(event, arguments):
    if event in {"subprocess.Popen", "os.posix_spawn", "_thread.start_new_thread",
                 "socket.connect"}:
        started.append(event)

sys.addaudithook(look)

def pytest_unconfigure():
    print("started:", started)
"""
"""A conftest.py that tells at the end what was started since it was loaded."""


def ours(result: pytest.RunResult) -> list[str]:
    """Return the lines that the plugin wrote, but for what took long on a slow machine."""
    slow = r"warmstack: (gw\d.*: )?(starting|planning|reading|running|revision|waiting|removing) .*"
    lines = [line for line in result.outlines if "warmstack:" in line]
    return [line for line in lines if not re.fullmatch(slow, line)]


@pytest.fixture(autouse=True)
def quiet_asyncio(pytester: pytest.Pytester) -> None:
    """Tell pytest-asyncio what it would warn about."""
    pytester.makefile(".ini", pytest="[pytest]\nasyncio_default_fixture_loop_scope = function\n")


@pytest.mark.usefixtures("alembic")
def test_a_run_tells_what_it_set_up_before_the_tests_and_what_that_cost_after(
    pytester: pytest.Pytester, run: Run
) -> None:
    """Both servers, the template, and one closing line, at their places in pytest's output."""
    pytester.makepyfile(test_shop=TESTS)

    result = run()

    result.assert_outcomes(passed=4)
    result.stdout.re_match_lines(
        [
            r"collected 4 items",
            r"warmstack: PostgreSQL 16\.\d+ on 127\.0\.0\.1:\d+, embedded,"
            r" process \d+ of \S+/bin/postgres: started in [\d.]+ m?s$",
            r"warmstack: Redis 7\.[\d.]+ \(Valkey [\d.]+\) on 127\.0\.0\.1:\d+, embedded,"
            r" process \d+ of \S+: started in [\d.]+ m?s$",
            r"warmstack: template of 2 revisions: built in [\d.]+ m?s$",
            r"test_shop.py \.\.\.\. +\[100%\]",
            r"warmstack: set-up: servers [\d.]+ m?s, template [\d.]+ m?s,"
            r" 2 clones of [\d.]+ m?s, 1 flush of (under 1 ms|[\d.]+ m?s), end [\d.]+ m?s$",
            r"=+ 4 passed in .*",
        ]
    )
    assert len(ours(result)) == 4


def test_a_run_of_kept_servers_tells_that_they_stay_and_that_they_were_found(
    pytester: pytest.Pytester, run: Run, servers: Callable[[], list[ServerInfo]]
) -> None:
    """The first run starts them and builds the template; the second one finds all of it."""
    pytester.makepyfile(TESTS)

    first = run("--reuse-containers")
    assert [found.kept for found in servers()] == [True, True]
    second = run("--reuse-containers")

    stay = (
        "warmstack: the servers stay (command line option --reuse-containers);"
        " to remove them: warmstack clean"
    )
    first.stdout.fnmatch_lines(
        [
            "warmstack: PostgreSQL *: started in *",
            "warmstack: Redis *: started in *",
            "warmstack: template of an empty database: built in *",
            stay,
        ]
    )
    second.stdout.fnmatch_lines(
        [
            "warmstack: PostgreSQL *: reused, * s old",
            "warmstack: Redis *: reused, * s old",
            "warmstack: template of an empty database: found in *",
            stay,
            "warmstack: set-up: servers * ms, template *, 2 clones *, 1 flush *",
        ]
    )


def test_a_quiet_run_reads_nothing_of_ours(pytester: pytest.Pytester, run: Run) -> None:
    """`-q` is for those who want to see the tests alone."""
    pytester.makepyfile(TESTS)

    result = run("-q", "-o", "warmstack_alembic=none")

    result.assert_outcomes(passed=4)
    assert ours(result) == []


@pytest.mark.parametrize("arguments", [["-q"], [], ["-q", "-n2"]], ids=["quiet", "usual", "xdist"])
def test_an_empty_database_is_told_unless_the_project_wants_one(
    pytester: pytest.Pytester, run: Run, arguments: list[str]
) -> None:
    """Also to those who want to see the tests alone, with the line that says that it is right."""
    pytester.makepyfile(TESTS)

    result = run(*arguments, plugins=["xdist"])

    empty = [line for line in ours(result) if "the databases are empty" in line]
    assert len(empty) == 1
    assert empty[0].endswith("(if this is right, say so: warmstack_alembic = none)")
    said = run(*arguments, "-o", "warmstack_alembic=none", plugins=["xdist"])
    said.stdout.no_fnmatch_line("*the databases are empty*")


@pytest.mark.parametrize("arguments", [["-q"], []], ids=["quiet", "usual"])
def test_the_line_to_write_is_in_the_syntax_of_the_file_in_use(
    pytester: pytest.Pytester, run: Run, arguments: list[str]
) -> None:
    """TOML needs the quotes."""
    (pytester.path / "pytest.ini").unlink()
    pytester.makepyprojecttoml(
        '[tool.pytest.ini_options]\nasyncio_default_fixture_loop_scope = "function"\n'
    )
    pytester.makepyfile(TESTS)

    (line,) = [line for line in ours(run(*arguments)) if "the databases are empty" in line]
    assert line.endswith('(if this is right, say so: warmstack_alembic = "none")')


def test_a_database_that_something_else_fills_is_not_called_empty(
    pytester: pytest.Pytester, run: Run
) -> None:
    """A schema, a seed, or a layer of the project's own makes its tables."""
    pytester.makepyfile(TESTS)
    (pytester.path / "some.sql").write_text("CREATE TABLE a (id int);")

    for name in ("schema", "seed"):
        result = run("-q", "-o", f"warmstack_{name}=some.sql")
        result.assert_outcomes(passed=4)
        assert ours(result) == []


def test_a_quiet_run_reads_of_a_fall_back(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    """That the servers are not where one expects them is told even then, and why."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    pytester.makepyfile(TESTS)

    result = run("-q", "-o", "warmstack_alembic=none", runtime="auto")

    result.assert_outcomes(passed=4)
    assert ours(result) == [
        "warmstack: servers are embedded (Docker is not running at unix:///nowhere/docker.sock)"
    ]


def test_a_run_that_reuses_a_fall_back_tells_why_it_was_one(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
    servers: Callable[[], list[ServerInfo]],
) -> None:
    """The servers stay where they are while they last; why they are there is not forgotten."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    pytester.makepyfile(TESTS)
    assert servers() == []

    why = "Docker is not running at unix:///nowhere/docker.sock"
    for state in ("started in", "reused,"):
        result = run("--reuse-containers", runtime="auto")
        result.stdout.fnmatch_lines(
            [f"warmstack: PostgreSQL * embedded (auto: {why}), *: {state} *"]
        )


def test_the_controller_tells_what_the_workers_of_xdist_did(
    pytester: pytest.Pytester, run: Run
) -> None:
    """Workers have no terminal: header and cost are in the summary, once, for all of them."""
    pytester.makepyfile(TESTS)

    result = run("-n", "2", plugins=["xdist"])

    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(
        [
            "warmstack: PostgreSQL *: started in *",
            "warmstack: Redis *: started in *",
            "warmstack: template of an empty database: built in *",
            "warmstack: the databases are empty: *",
            "warmstack: set-up by 2 workers: servers *, template *, 2 clones *, 1 flush *, end *",
        ]
    )
    assert len(ours(result)) == 5


@pytest.mark.parametrize("reuse", [[], ["--reuse-containers"]], ids=["removed", "kept"])
@pytest.mark.usefixtures("servers")
def test_a_server_that_a_dead_worker_has_started_is_not_reused(
    pytester: pytest.Pytester, run: Run, reuse: list[str]
) -> None:
    """The worker that takes its place finds the server of this very run."""
    pytester.makepyfile(
        "import os\ndef test_1_ends(redis_url): os._exit(1)\ndef test_2_goes_on(redis_url): pass\n"
    )

    result = run("-n", "1", *reuse, plugins=["xdist"])

    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["warmstack: Redis *: started * s ago by another process"])


def test_a_run_of_xdist_without_our_fixtures_tells_nothing(
    pytester: pytest.Pytester, run: Run
) -> None:
    """Workers that set nothing up have nothing to tell."""
    pytester.makepyfile("def test_unit(): pass")

    result = run("-n", "2", plugins=["xdist"])

    result.assert_outcomes(passed=1)
    assert ours(result) == []


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--collect-only"], id="collecting only"),
        pytest.param(["-k", "unit"], id="unit tests only"),
        pytest.param(["--fixtures"], id="listing fixtures"),
        pytest.param(["--fixtures-per-test"], id="listing fixtures of tests"),
        pytest.param(["--setup-plan"], id="planning"),
        pytest.param(["--version"], id="telling the version"),
    ],
)
def test_a_run_that_needs_no_server_starts_and_tells_nothing(
    pytester: pytest.Pytester, run: Run, arguments: list[str]
) -> None:
    """No process, no thread, no connection, and no line, whatever else is in the files."""
    pytester.makepyfile(TESTS)
    pytester.makeconftest(WATCH)

    result = run(*arguments)

    assert result.ret == 0
    assert ours(result) == []
    if "--version" not in arguments:
        result.stdout.fnmatch_lines(["started: []"])


def test_a_run_that_ends_with_its_collection_starts_and_tells_nothing(
    pytester: pytest.Pytester, run: Run
) -> None:
    """A file that can't be imported ends the run before its first test, and before our servers."""
    pytester.makepyfile(test_good=TESTS, test_broken="import no_such_module")
    pytester.makeconftest(WATCH)

    result = run()

    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert ours(result) == []
    result.stdout.fnmatch_lines(["started: []"])


def test_only_the_server_that_is_needed_is_started(pytester: pytest.Pytester, run: Run) -> None:
    """A selection that uses Redis alone has no PostgreSQL."""
    pytester.makepyfile(TESTS)

    result = run("-k", "redis or unit")

    result.assert_outcomes(passed=2, deselected=2)
    assert [line.split()[1] for line in ours(result)] == ["Redis", "set-up:"]


def test_a_run_without_a_terminal_has_its_servers(pytester: pytest.Pytester, run: Run) -> None:
    """`-p no:terminal` takes away where we would write, and nothing else."""
    pytester.makepyfile(
        """
        def test_redis(redis_url, tmp_path):
            (tmp_path.parent.parent / "ran").write_text(redis_url)
        """
    )

    result = run("-p", "no:terminal", f"--basetemp={pytester.path}/base")

    assert result.ret == 0
    assert ours(result) == []
    assert (pytester.path / "ran").read_text().startswith("redis://")


def test_kept_servers_are_found_without_pytests_cache(
    pytester: pytest.Pytester, run: Run, servers: Callable[[], list[ServerInfo]]
) -> None:
    """With no place for a hint, a kept server is found by its labels."""
    pytester.makepyfile("def test_redis(redis_url): pass")
    arguments = ["--reuse-containers", "-p", "no:cacheprovider"]

    first = run(*arguments)
    second = run(*arguments)

    first.stdout.fnmatch_lines(["warmstack: Redis *: started in *"])
    second.stdout.fnmatch_lines(["warmstack: Redis *: reused, * s old"])
    assert len(servers()) == 1
    assert not (pytester.path / ".pytest_cache").exists()


def test_a_hint_lies_in_pytests_cache_and_is_the_owners_alone(
    pytester: pytest.Pytester, run: Run, servers: Callable[[], list[ServerInfo]]
) -> None:
    """Runs that keep servers leave a hint with the password, and other runs leave none."""
    pytester.makepyfile("def test_redis(redis_url): pass")

    run()
    assert not list(pytester.path.glob(".pytest_cache/**/redis.json"))
    run("--reuse-containers")

    assert len(servers()) == 1
    (hint,) = pytester.path.glob(".pytest_cache/**/redis.json")
    assert hint.stat().st_mode & 0o777 == 0o600
