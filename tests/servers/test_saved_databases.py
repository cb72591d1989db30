"""`warmstack failed`, `diff` and `clean --failed`: what a failed test has left, row by row."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from external_servers import Cluster, cluster
from projects import WAITING, Library, script, until
from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.options import RuntimeName
from pytest_warmstack.postgres import DatabaseName, comparison
from pytest_warmstack.postgres.databases import Databases
from saved_databases import EXPECTED, REUSE, number_of, prepare, saved

FAILS = """
async def test_{name}(db_session):
    assert False
"""


@pytest.fixture
def shop(kept: Library) -> Library:
    """A project in which tests have failed."""
    clear(kept)
    prepare(kept)
    return kept


def clear(project: Library) -> None:
    """Drop the databases that another test has saved."""
    for name in project.databases("k"):
        project.sql(f'DROP DATABASE "{name}"', "SELECT 1")


@contextmanager
def connected(project: Library, name: str) -> Iterator[Any]:
    """Yield a connection to a database of the kept server, in a transaction."""
    end = project.kept("postgres")
    with psycopg.connect(
        host=end.host, port=end.port, user="postgres", password=end.password, dbname=name
    ) as connection:
        yield connection


# diff


def test_every_kind_of_difference_is_shown(shop: Library) -> None:
    """In text of 80 columns without colours, with status 1; nothing of it is left on the server."""
    number = number_of(shop, "test_that_changes")
    before = shop.databases()

    result = shop.warmstack("diff", number)

    assert result.ret == 1
    heading, name, template, *lines = result.outlines
    assert re.fullmatch(r"test_shop\.py::test_that_changes, failed \d+ (s|min) ago", heading)
    assert re.fullmatch(rf"warmstack_k_\w+_{number}", name)
    assert template == "compared with its template of schema schema.sql"
    assert [line.replace("shelf.name", "name") for line in lines] == EXPECTED.rstrip().splitlines()
    assert max(map(len, result.outlines)) <= 80
    assert "\x1b" not in result.stdout.str()
    assert shop.databases() == before


def test_the_same_is_there_for_machines(shop: Library) -> None:
    """With the beginnings of long values, and how long they are."""
    result = shop.warmstack("diff", "test_that_changes", "--json")

    assert result.ret == 1
    found = json.loads(result.stdout.str())
    assert found["test"] == "test_shop.py::test_that_changes"
    assert found["is_same"] is False
    tables = {each["table"]: each for each in found["tables"]}
    shelf = tables["public.shelf"]
    counts = [shelf[name] for name in ("before", "after", "added", "removed", "changed")]
    assert counts == [3, 3, 1, 1, 1]
    changed, removed, added = shelf["rows"]
    assert (changed["change"], changed["key"]) == ("changed", {"id": "2"})
    assert changed["before"] == {"name": "Bob", "data": None, "price": "2.00", "shout": "BOB"}
    assert changed["after"]["data"].startswith('{"long": "xxx')
    assert changed["after"]["data"].endswith("xxx ... (3012 characters)")
    assert removed["before"]["raw"] == "\\x"
    assert added["after"]["tags"] == '{"c d",NULL}'
    (sequence,) = found["sequences"]
    assert (sequence["name"], sequence["before"], sequence["after"]) == (
        "public.shelf_id_seq",
        "3",
        "4",
    )
    assert found["unread"] == []
    assert found["same"] == 2


def test_without_a_difference_the_status_is_0(shop: Library) -> None:
    """The test only failed."""
    result = shop.warmstack("diff", "test_that_reads")

    assert result.ret == 0
    assert "no differences" in result.outlines


@pytest.mark.parametrize(("limit", "shown"), [("1", 1), ("0", 0)])
def test_the_number_of_rows_is_limited(shop: Library, limit: str, shown: int) -> None:
    """The rest is counted."""
    result = shop.warmstack("diff", "test_that_changes", "--limit", limit)

    lines = result.outlines
    assert result.ret == 1
    assert sum(line.startswith("  ~") for line in lines) == 4 * shown
    begin = lines.index("public.many: 2 changed")
    rest = "1 more row" if shown else "2 more rows"
    assert lines[begin + 1 + shown] == f"  ... {rest} (--limit 10 shows more)"


def test_too_many_differences_are_counted_only(
    shop: Library, background: BackgroundLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table in which everything differs is not held in memory."""
    monkeypatch.setattr(comparison, "_MOST_ROWS", 10)
    (name,) = [each["database"] for each in saved(shop) if "changes" in each["test"]]
    with connected(shop, name) as connection:
        connection.execute("UPDATE many SET word = 'new'")
    databases = Databases.connect(shop.kept("postgres"), "", background=background, timeout=10)
    own = DatabaseName.parse(name)
    assert own is not None
    try:
        with comparison.copy_of(databases, own._replace(state="t", serial="")) as copy:
            assert copy is not None
            found = comparison.compare(databases, copy, own, limit=5)
    finally:
        databases.close()

    (many,) = [each for each in found.tables if each.table == "public.many"]
    assert (many.before, many.after, many.added, many.rows) == (3000, 3000, None, [])


def test_what_is_locked_is_named(shop: Library) -> None:
    """The rest is compared, and the status is 2."""
    (name,) = [each["database"] for each in saved(shop) if "reads" in each["test"]]
    with connected(shop, name) as connection:
        connection.execute("LOCK TABLE many IN ACCESS EXCLUSIVE MODE")
        result = shop.warmstack("diff", "test_that_reads")

    assert result.ret == 2
    result.stdout.fnmatch_lines(["public.many: can't be read: *lock timeout"])


def test_a_template_that_is_gone_is_named_with_the_way_to_a_new_one(shop: Library) -> None:
    """The status is 2, as for a database that does not exist, and for one that is no test's."""
    (name,) = [each["database"] for each in saved(shop) if "reads" in each["test"]]
    own = DatabaseName.parse(name)
    assert own is not None
    template = f"warmstack_t_{own.fingerprint}"
    shop.sql(
        f'ALTER DATABASE "{template}" IS_TEMPLATE false', f'DROP DATABASE "{template}"', "SELECT 1"
    )

    gone = shop.warmstack("diff", "test_that_reads")
    absent = shop.warmstack("diff", "no_such_test")
    other = shop.warmstack("diff", "postgres")
    wrong = shop.warmstack("diff", "test_that_reads", "--limit", "all")

    assert [each.ret for each in (gone, absent, other, wrong)] == [2, 2, 2, 2]
    gone.stderr.fnmatch_lines(
        [f"warmstack: The template of {name} no longer exists.", "*pytest --reuse-containers *"]
    )
    absent.stderr.fnmatch_lines(["warmstack: No single database matches 'no_such_test'."])
    other.stderr.fnmatch_lines(["warmstack: The database postgres can't be compared *"])
    wrong.stderr.fnmatch_lines(["*'all' is not a number of rows*"])
    assert [each["has_template"] for each in saved(shop)] == [False, False]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_comparison_leaves_no_copy(shop: Library, number: signal.Signals) -> None:
    """Ctrl-C drops it at once; what a killed process leaves is dropped by the next run."""
    (name,) = [each["database"] for each in saved(shop) if "reads" in each["test"]]
    before = set(shop.databases("u"))
    with connected(shop, name) as connection:
        connection.execute("LOCK TABLE child IN ACCESS EXCLUSIVE MODE")
        running = shop.start("diff", name, command=("pytest_warmstack.cli",))
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        until(lambda: shop.sql(waits)[0][0], "it waits for the lock")
        (copy,) = set(shop.databases("u")) - before

        running.process.send_signal(number)

        result = running.wait()
    if number is signal.SIGKILL:
        assert copy in shop.databases("u")
        shop.run(
            REUSE, "test_library.py", "--warmstack-alembic=alembic.ini", "-owarmstack_schema="
        ).assert_outcomes(passed=5)
        until(lambda: copy not in shop.databases("u"), "the copy is dropped")
    else:
        assert result.ret == 130
        assert copy not in shop.databases("u")


def test_an_external_server_may_hide_rows(
    library_in: Callable[..., Library],
) -> None:
    """Row-level security is not passed over: the table is named, and the status is 2."""
    guest = library_in(RuntimeName.EXTERNAL)
    with cluster() as server:
        guest.configure(f"warmstack_postgres_url = {server.url()}")
        prepare(guest)

        result = guest.warmstack("diff", "test_that_changes")

        assert result.ret == 2
        result.stdout.fnmatch_lines(
            ["public.many: 2 changed", "public.secret: can't be read: *row-level security policy*"]
        )
        assert_only_own_are_dropped(guest, library_in, server)
    guest.end()


def test_the_database_of_a_test_in_progress_can_be_compared(kept: Library) -> None:
    """What it has committed; one with the name that the application has read can't be."""
    insert = (
        "import psycopg\n\n\ndef test_inserts(db_dsn):\n"
        "    with psycopg.connect(db_dsn) as connection:\n"
        "        connection.execute(\"INSERT INTO author VALUES (1, 'Ursula')\")\n"
        "    wait(db_dsn)\n\n\n"
    )
    wait = WAITING.replace("def test_that_waits(db_url, redis_url)", "def wait(db_url)")
    kept.write("test_wait.py", wait.replace(" {redis_url}", "") + insert)
    results = []
    for line in ("", "warmstack_env = URL={db_url}"):
        kept.configure(line)
        running = kept.start(REUSE, "test_wait.py")
        until((kept.folder / "running").exists, "the test runs")
        name = (kept.folder / "running").read_text().strip().rpartition("/")[2]
        results.append(kept.warmstack("diff", name))
        (kept.folder / "go").touch()
        running.wait().assert_outcomes(passed=1)
        for each in ("go", "running"):
            (kept.folder / each).unlink()

    plain, at_address = results
    assert (plain.ret, at_address.ret) == (1, 2)
    plain.stdout.fnmatch_lines(
        ["a clone in use", "public.author: 1 added", "  + id=1, name='Ursula'"]
    )
    at_address.stderr.fnmatch_lines(["warmstack: The database warmstack_u_* can't be compared *"])


# failed, and clean --failed


def assert_only_own_are_dropped(
    guest: Library, library_in: Callable[..., Library], server: Cluster
) -> None:
    """See that `clean --failed` spares the databases of another project, and the templates."""
    other = library_in(RuntimeName.EXTERNAL, "archive")
    other.configure(f"warmstack_postgres_url = {server.url()}")
    other.write("test_other.py", FAILS.format(name="other"))
    other.run("test_other.py").assert_outcomes(failed=1)
    templates = server.databases("t_")

    assert len(saved(guest)) == 2
    assert guest.warmstack("clean", "--failed").ret == 0

    assert saved(guest) == []
    assert len(saved(other)) == 1
    assert server.databases("t_") == templates
    other.end()


def test_the_saved_databases_are_listed_opened_and_dropped(
    project: Library, tmp_path: Path
) -> None:
    """With test, time and size; the servers, the templates and the clones stay."""
    project.write("test_fails.py", FAILS.format(name="one") + FAILS.format(name="two"))
    project.run(REUSE, "test_fails.py").assert_outcomes(failed=2)
    templates = project.databases("t_")

    listed = project.warmstack("failed")
    (two, one) = saved(project)
    opened = project.warmstack("psql", one["id"], PATH=script(tmp_path / "bin", "psql"))
    compared = project.warmstack("diff", one["id"])
    dry = project.warmstack("clean", "--failed", "--dry-run")
    recent = project.warmstack("clean", "--failed", "--older-than=1h")
    rest = len(saved(project))
    dropped = project.warmstack("clean", "--failed")
    again = project.warmstack("clean", "--failed")
    nothing = project.warmstack("failed")
    both = project.warmstack("clean", "--failed", "--orphans")

    assert listed.outlines[0].split() == ["ID", "FAILED", "SIZE", "TEST"]
    listed.stdout.fnmatch_lines(
        [
            f"{each['id']}  *s ago  *.* MB  test_fails.py::test_{name}"
            for each, name in ((two, "two"), (one, "one"))
        ]
    )
    assert one["bytes"] > 1_000_000
    assert one["has_template"] is True
    assert f"--dbname={one['database']}" in opened.stdout.str()
    assert compared.ret == 0
    assert rest == 2
    assert [each.ret for each in (listed, dry, recent, dropped, again, nothing)] == [0] * 6
    for result, word in ((dry, "would remove"), (dropped, "removed")):
        lines = {f"{word} database {each['database']} ({project.runtime})" for each in (one, two)}
        assert set(result.outlines) == lines
    for result in (recent, again, nothing):
        assert result.outlines == [f"no saved databases of {project.folder}"]
    assert both.ret == 2
    assert project.databases("t_") == templates
    assert len(project.servers()) == 1


def test_what_a_run_in_progress_has_saved_is_spared_unless_forced(kept: Library) -> None:
    """It is named, with status 1; the run itself does not notice."""
    clear(kept)
    kept.write(
        "test_fails.py",
        FAILS.format(name="first") + "\ndef test_second():\n"
        "    import time\n    from pathlib import Path\n"
        "    Path('running').touch()\n"
        "    deadline = time.monotonic() + 60\n"
        "    while not Path('go').exists():\n"
        "        assert time.monotonic() < deadline\n"
        "        time.sleep(0.02)\n",
    )
    running = kept.start(REUSE, "test_fails.py")
    until((kept.folder / "running").exists, "the second test runs")
    until(lambda: kept.databases("k"), "the database is saved")

    spared = kept.warmstack("clean", "--failed")
    forced = kept.warmstack("clean", "--failed", "--force")
    (kept.folder / "go").touch()

    running.wait().assert_outcomes(failed=1, passed=1)
    assert (spared.ret, forced.ret) == (1, 0)
    spared.stdout.fnmatch_lines(["spared database warmstack_k_*"])
    forced.stdout.fnmatch_lines(["removed database warmstack_k_*"])
    assert kept.databases("k") == []


def test_without_a_server_there_is_none(guest: Library) -> None:
    """That is no failure for a list; the reason is on standard error."""
    for command in (["failed"], ["clean", "--failed"]):
        result = guest.warmstack(*command, WARMSTACK_RUNTIME="embedded")

        assert result.ret == 0
        assert result.outlines == [f"no saved databases of {guest.folder}"]
        result.stderr.fnmatch_lines(["No running PostgreSQL of this project found.*"])
    assert guest.warmstack("failed", "--json", WARMSTACK_RUNTIME="embedded").outlines == ["[]"]
