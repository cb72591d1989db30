"""What the last run of a selection needed begins while pytest imports the test modules."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redis import Redis

from projects import Library, processes, until
from pytest_warmstack.options import RuntimeName
from pytest_warmstack.redis.connections import USED

REUSE = "--reuse-containers"

WATCH = """
import json, os, sys, threading, time
from pathlib import Path

PORTS = {ports}
SEEN = []
PHASE = ["collection"]

def look(event, arguments):
    if event == "socket.connect" and arguments[1][1] in PORTS:
        SEEN.append((PORTS[arguments[1][1]], PHASE[0]))
    elif event == "subprocess.Popen" and "pytest_warmstack.postgres.template.child" in arguments[1]:
        SEEN.append(("child", PHASE[0]))

sys.addaudithook(look)

def seen(*wanted):
    deadline = time.monotonic() + 30
    while not set(wanted) <= {{name for name, _ in SEEN}}:
        assert time.monotonic() < deadline, SEEN
        time.sleep(0.01)

def pytest_collection_finish():
    PHASE[0] = "tests"

def pytest_unconfigure():
    name = os.environ.get("PYTEST_XDIST_WORKER", "main")
    own = [each.name for each in threading.enumerate() if "warmstack" in each.name]
    children = Path(f"/proc/self/task/{{os.getpid()}}/children").read_text().split()
    facts = {{"seen": SEEN, "threads": own, "children": children}}
    Path(f"watched-{{name}}.json").write_text(json.dumps(facts))
"""
"""A conftest.py that notes connections to the kept servers, and each child of a build."""

UNIT = "def test_nothing():\n    pass\n"

FREE = """
import os, threading
from pathlib import Path

def test_that_nothing_is_there():
    assert not [each.name for each in threading.enumerate() if "warmstack" in each.name]
    assert not Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    opened = [os.readlink(f"/proc/self/fd/{each}") for each in os.listdir("/proc/self/fd")
              if os.path.lexists(f"/proc/self/fd/{each}")]
    assert not [each for each in opened if each.startswith("socket:")]
"""
"""A test that looks for what a head start may have left in its process."""

ADDED = """
# Made at {time}: no template has it.
revision, down_revision = "0004", "0003"

def upgrade():
    from alembic import op
    op.execute("CREATE TABLE shelf (id int)")
"""

IS_THERE = """
from sqlalchemy import text

async def test_a_shelf(db_session):
    assert await db_session.scalar(text("SELECT count(*) FROM shelf")) == 0
"""

VERSIONS = "migrations/versions"
SHELF = f"{VERSIONS}/0004_shelf.py"


def added(old: str = "", new: str = "") -> str:
    """Return a revision that no template has, with *new* instead of *old*."""
    return ADDED.replace("{time}", str(time.time_ns())).replace(old or new, new)


@pytest.fixture(scope="module")
def kept_project(embedded_programs: None, library_in: Callable[..., Library]) -> Iterator[Library]:
    """A project with kept servers, for all tests of this file."""
    library = library_in(RuntimeName.EMBEDDED)
    yield library
    library.end()


@pytest.fixture
def kept(kept_project: Library) -> Iterator[Library]:
    """The same with its files as they were; a run has just used its servers."""
    kept_project.reset()
    kept_project.write(".pytest_cache/d/warmstack/cleanup.stamp", "")  # A child, once an hour.
    kept_project.run(REUSE).assert_outcomes(passed=5)
    ports = {kept_project.kept(each).port: each for each in ("postgres", "redis")}
    kept_project.write("conftest.py", WATCH.format(ports=ports))
    yield kept_project
    kept_project.quit()


def watched(project: Library, name: str = "main") -> dict[str, Any]:
    """Return what the process called *name* noted, and forget it."""
    path = project.folder / f"watched-{name}.json"
    facts: dict[str, Any] = json.loads(path.read_text())
    path.unlink()
    return facts


def seen(project: Library, name: str = "main") -> list[tuple[str, str]]:
    """Return the connections and children of a process, each with the phase of the run."""
    return [(what, phase) for what, phase in watched(project, name)["seen"]]


def uses(project: Library) -> list[Any]:
    """Return what the kept servers know about their last uses."""
    server = project.kept("redis")
    with Redis(host=server.host, port=server.port, password=server.password) as client:
        used = client.get(USED)
    return [used, *project.sql("SELECT setconfig FROM pg_db_role_setting ORDER BY 1")]


def names(project: Library) -> list[str]:
    """Return the names of the plugin's connections to both kept servers."""
    rows = project.sql("SELECT application_name FROM pg_stat_activity WHERE datname = 'postgres'")
    server = project.kept("redis")
    with Redis(host=server.host, port=server.port, password=server.password) as client:
        found = [*(row[0] for row in rows), *(each["name"] for each in client.client_list())]
    return [each for each in found if "warmstack" in each]


def test_servers_are_greeted_while_modules_are_imported(kept: Library) -> None:
    """The run uses these connections: it opens as many as it would without a head start."""
    kept.hint_file("needs").unlink()
    kept.run(REUSE).assert_outcomes(passed=5)
    without = [name for name, _ in seen(kept)]
    kept.write("test_waits.py", "from conftest import seen\nseen('postgres', 'redis')\n")

    result = kept.run(REUSE)

    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines(["*PostgreSQL *: reused*", "*Redis *: reused*", "*: found in *"])
    early = seen(kept)
    assert {("postgres", "collection"), ("redis", "collection")} <= {*early}
    assert "child" not in [name for name, _ in early]
    assert [name for name, _ in early].count("postgres") == without.count("postgres")


@pytest.mark.parametrize(
    ("name", "how"),
    [("0004_shelf.py", "extended by 1 revision"), ("0003_index_titles.py", "rebuilt")],
    ids=["added", "edited"],
)
def test_the_child_of_a_build_starts_while_modules_are_imported(
    kept: Library, name: str, how: str
) -> None:
    """It is the only one, and it makes the template."""
    path = kept.folder / VERSIONS / name
    if path.exists():
        path.write_text(path.read_text().replace("book_title", "book_titles"))
    else:
        path.write_text(added())
    before = kept.executions()
    kept.write("test_waits.py", "from conftest import seen\nseen('child')\n")

    result = kept.run(REUSE)

    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines([f"*template of *: {how}*"])
    facts = watched(kept)
    assert [each for each in facts["seen"] if each[0] == "child"] == [["child", "collection"]]
    assert (facts["threads"], facts["children"]) == ([], [])
    assert kept.executions() > before


def test_a_run_that_needs_no_database_throws_everything_away(kept: Library) -> None:
    """No line, thread, child or connection is left, no use is noted, and the next run knows."""
    kept.write("test_library.py", FREE)
    kept.write(SHELF, added())
    kept.write("test_waits.py", "from conftest import seen\nseen('child', 'redis')\n")
    before, databases = uses(kept), kept.databases()

    result = kept.run(REUSE, "-W", "error")

    result.assert_outcomes(passed=1)
    assert "warmstack:" not in str(result.stdout)
    assert result.errlines == []
    assert (uses(kept), kept.databases()) == (before, databases)
    kept.write("test_waits.py", UNIT)
    kept.run(REUSE).assert_outcomes(passed=2)
    assert seen(kept) == []


def test_a_greeted_server_has_no_user(kept: Library) -> None:
    """While modules are imported, the connections only look; then they count."""
    wait = "import time\nfrom pathlib import Path\nwhile not Path('go').exists(): time.sleep(0.01)"
    kept.write("test_waits.py", f"{wait}\n")
    running = kept.start(REUSE)
    until(lambda: len(names(kept)) == 2, "both are greeted")

    assert [each for each in names(kept) if not each.startswith("warmstack-look")] == []
    kept.write("go", "")
    running.wait().assert_outcomes(passed=5)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--collect-only",),
        ("--setup-plan",),
        ("--help",),
        ("-p", "no:cacheprovider"),
        ("--no-reuse-containers", "-k", "pages"),
        ("-k", "pages"),
    ],
    ids=" ".join,
)
def test_nothing_begins_where_nothing_is_remembered_or_runs(
    kept: Library, arguments: tuple[str, ...]
) -> None:
    """No connection before the tests, and no child, although a build is due."""
    kept.write(SHELF, added())
    reuse = () if "--no-reuse-containers" in arguments else (REUSE,)

    kept.run(*reuse, *arguments)

    assert [each for each in seen(kept) if each[1] == "collection"] == []


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("raise KeyboardInterrupt", pytest.ExitCode.INTERRUPTED),
        ("import nothing_of_this_name", pytest.ExitCode.INTERRUPTED),
    ],
    ids=["Ctrl-C", "an error"],
)
def test_a_collection_that_fails_leaves_nothing(
    kept: Library, line: str, status: pytest.ExitCode
) -> None:
    """The child ends with the run, and nothing is built."""
    kept.write(SHELF, added())
    kept.write("test_waits.py", f"from conftest import seen\nseen('child')\n{line}\n")
    before, databases = uses(kept), kept.databases()

    result = kept.run(REUSE)

    assert result.ret == status
    assert "warmstack:" not in str(result.stdout)
    facts = watched(kept)
    assert (facts["threads"], facts["children"]) == ([], [])
    assert (uses(kept), kept.databases()) == (before, databases)


def test_a_run_that_needs_no_database_does_not_wait_for_a_silent_server(kept: Library) -> None:
    """It would wait for ten minutes: here, a server may take that long to answer."""
    kept.write("test_library.py", UNIT)
    kept.write("test_waits.py", "from conftest import seen\nseen('postgres', 'redis')\n")
    with (kept.folder / "conftest.py").open("a") as file:
        file.write(
            "import pytest_warmstack.servers\npytest_warmstack.servers.CONNECT_TIMEOUT = 600\n"
        )
    servers = [int(each.partition(":")[0]) for each in processes(kept.folder)]
    for each in servers:
        os.kill(each, signal.SIGSTOP)
    try:
        result = kept.run(REUSE)
    finally:
        for each in servers:
            os.kill(each, signal.SIGCONT)

    result.assert_outcomes(passed=1)
    assert "warmstack:" not in str(result.stdout)


def test_a_server_that_ends_meanwhile_is_replaced(kept: Library) -> None:
    """The greeting is worth nothing then."""
    kept.write(
        "test_waits.py",
        "import subprocess, sys\n"
        "from conftest import seen\n"
        "seen('postgres', 'redis')\n"
        "command = [sys.executable, '-m', 'pytest_warmstack.cli', 'clean', '--force']\n"
        "subprocess.run(command, check=True, capture_output=True)\n",
    )

    result = kept.run(REUSE)

    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines(["*PostgreSQL *: started*", "*Redis *: started*", "*: built in *"])


def planned(project: Library, old: str, new: str) -> str:
    """Write a revision; return the beginning of a module that waits until a child imported it."""
    mark = project.folder / "planned"
    project.write(SHELF, f"open({str(mark)!r}, 'w')\n{added(old, new)}")
    return f"""
import os, time
from pathlib import Path

while not Path({str(mark)!r}).exists():
    time.sleep(0.01)
"""


def test_the_build_has_the_environment_of_the_tests(kept: Library) -> None:
    """A module sets a variable after the child has made its plan: another child does the work."""
    start = planned(kept, "TABLE shelf", "TABLE \" + __import__('os').environ['TABLE'] + \"")
    kept.write("test_waits.py", f"{start}os.environ['TABLE'] = 'shelf'\n{IS_THERE}")

    kept.run(REUSE).assert_outcomes(passed=6)
    first = seen(kept)
    kept.edit(SHELF, "(id int)", "(id bigint)")
    kept.run(REUSE).assert_outcomes(passed=6)

    assert [name for name, _ in first].count("child") == 2
    # The run remembers that the environment changes; its child waits for it.
    assert [name for name, _ in seen(kept)].count("child") == 1


def test_a_file_that_changes_after_the_plan_is_planned_again(kept: Library) -> None:
    """A module writes another revision, after the child has imported the first."""
    start = planned(kept, "shelf", "rack")
    change = f"Path({SHELF!r}).write_text({added()!r})\n"
    kept.write("test_waits.py", f"{start}{change}{IS_THERE}")

    kept.run(REUSE).assert_outcomes(passed=6)


def test_of_the_workers_of_xdist_one_prepares_the_build(kept: Library) -> None:
    """And that one builds; the controller doesn't greet the servers."""
    workers = (REUSE, "-n", "2")
    kept.run(*workers).assert_outcomes(passed=5)
    kept.write(SHELF, added())
    before = kept.executions()
    kept.write("test_waits.py", "from conftest import seen\nseen('postgres', 'redis')\n")

    kept.run(*workers).assert_outcomes(passed=5)

    assert kept.executions() == before + 1
    assert seen(kept) == []
    first, second = seen(kept, "gw0"), seen(kept, "gw1")
    assert [name for name, _ in first].count("child") == 1
    assert "child" not in [name for name, _ in second]
    assert {("postgres", "collection"), ("redis", "collection")} <= {*second}
