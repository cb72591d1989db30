"""The user's settings and variables reach PostgreSQL, and a change replaces the server."""

from __future__ import annotations

import json
import re

import pytest

from projects import Bench, Library
from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.options import RuntimeName, Settings
from pytest_warmstack.postgres import DatabaseName, State
from pytest_warmstack.postgres import server as postgres
from pytest_warmstack.servers.identity import Label

REUSE = "--reuse-containers"
ONE = ("test_library.py", "-k", "author")


def configure(project: Library, *, args: tuple[str, ...] = (), env: tuple[str, ...] = ()) -> None:
    """Bring the project back to its own files, with settings and variables of PostgreSQL."""
    project.reset()
    for name, lines in (("args", args), ("env", env)):
        if lines:
            project.configure(f"warmstack_postgres_{name} =", *(f"    {line}" for line in lines))


def header(project: Library) -> str:
    """Return the line that a run of one test prints of PostgreSQL."""
    result = project.run(REUSE, *ONE)
    result.assert_outcomes(passed=1, deselected=4)
    (line,) = [each for each in result.outlines if each.startswith("warmstack: PostgreSQL ")]
    return line


def shown(project: Library, name: str) -> str:
    """Return what the kept PostgreSQL shows for a setting."""
    return str(project.sql(f"SHOW {name}")[0][0])


def variable(project: Library, name: str) -> str:
    """Return what a variable is in the environment of the kept PostgreSQL."""
    rows = project.sql(
        "CREATE TEMPORARY TABLE words (word text)",
        f"COPY words FROM PROGRAM 'printenv {name}'",
        "SELECT word FROM words",
    )
    return str(rows[0][0])


def configuration(project: Library) -> dict[str, str]:
    """Return what the kept PostgreSQL's label says that it was made from."""
    labels = [each["Config"]["Labels"] for each in project.containers()]
    records = [json.loads((each / "server.json").read_text()) for each in project.folders()]
    labels += [each["labels"] for each in records]
    (own,) = [each for each in labels if each[Label.SERVICE] == "postgres"]
    configuration: dict[str, str] = json.loads(own[Label.CONFIG])
    return configuration


def test_the_users_settings_arrive_and_a_change_replaces_the_server(project: Library) -> None:
    """PostgreSQL shows them, also in the place of ours; only another value makes another server."""
    args = ("max_connections = 77", "timezone=Europe/Berlin", "statement_timeout=45s")
    configure(project, args=args)
    assert ": started in " in header(project)
    assert shown(project, "max_connections") == "77"
    assert shown(project, "timezone") == "Europe/Berlin"
    assert shown(project, "statement_timeout") == "45s"
    assert shown(project, "fsync") == "off"

    assert ": reused, " in header(project)

    configure(project, args=("max_connections = 78", *args[1:2]))
    line = header(project)
    assert ": replaced " in line
    assert "max_connections: 77 -> 78, statement_timeout: 45s -> unset" in line
    assert shown(project, "max_connections") == "78"
    assert len(project.servers()) == 1

    configure(project)
    assert "max_connections: 78 -> 300, timezone: Europe/Berlin -> UTC" in header(project)
    assert shown(project, "max_connections") == "300"


def test_the_users_variables_arrive_and_are_told_to_nobody(project: Library) -> None:
    """The server and initdb have them; neither label nor header has any of their values."""
    args = "POSTGRES_INITDB_ARGS=--data-checksums --wal-segsize='2'"
    configure(project, env=("TZ=Europe/Berlin", args, "TOKEN=hunter2"))
    assert ": started in " in header(project)
    assert shown(project, "data_checksums") == "on"
    assert shown(project, "wal_segment_size") == "2MB"
    assert variable(project, "TZ") == "Europe/Berlin"
    # What initdb has found in its environment is not what tests get.
    assert shown(project, "log_timezone") == shown(project, "timezone") == "UTC"
    assert variable(project, "TOKEN") == "hunter2"
    told = json.dumps(configuration(project))
    assert "env.TOKEN" in told
    assert not re.search("hunter2|checksums|Berlin", told)

    assert ": reused, " in header(project)

    configure(project, env=("TZ=Europe/Berlin", args, "TOKEN=swordfish"))
    line = header(project)
    assert ": replaced " in line
    assert "env.TOKEN: changed" in line
    assert not re.search("hunter2|swordfish", line)
    assert variable(project, "TOKEN") == "swordfish"
    assert len(project.servers()) == 1


def test_the_locale_is_chosen_by_a_variable(project: Library) -> None:
    """`LANG` decides what initdb makes of a cluster, as it does for the official image."""
    configure(project, env=("LANG=C.UTF-8",))
    header(project)
    assert shown(project, "lc_messages") == "C.UTF-8"

    configure(project, env=("LANG=C",))
    assert "env.LANG: changed" in header(project)
    assert shown(project, "lc_messages") == "C"


def test_a_server_that_does_not_take_a_setting_tells_so(project: Library) -> None:
    """The error has PostgreSQL's own words, and nothing is left."""
    configure(project, args=("no_such_setting=1",))

    result = project.run(*ONE)

    assert result.ret != pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*PostgreSQL ended while it was starting.*"])
    result.stdout.fnmatch_lines(['*unrecognized configuration parameter "no_such_setting"*'])
    assert project.servers() == []


def test_a_refused_setting_ends_the_run_before_anything_starts(embedded_project: Library) -> None:
    """What the plugin needs for itself is told with the reason, as a mistake of usage."""
    configure(embedded_project, args=("port=5433",))

    result = embedded_project.run(*ONE)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    text = result.stderr.str()
    assert "Can't set 'port' in warmstack_postgres_args." in text
    assert "Why: the plugin chooses it" in text
    assert "Looked at: pytest.ini" in text
    assert embedded_project.servers() == []


@pytest.mark.parametrize("runtime", [RuntimeName.EMBEDDED], indirect=True)
def test_connections_of_ours_do_not_mind_the_users_limits(
    bench: Bench, settings: Settings, background: BackgroundLoop
) -> None:
    """Limits that are meant for the application neither end them nor keep them from writing."""
    limits = {
        "statement_timeout": "1ms",
        "lock_timeout": "1ms",
        "default_transaction_read_only": "on",
    }
    lines = tuple(f"{name}={value}" for name, value in limits.items())
    spec = postgres.spec(settings.replace(postgres_args=lines), background)

    admin = bench.ensure(spec).client

    shown = [background.call(admin.main.fetchval, f"SHOW {name}") for name in limits]
    assert shown == ["0", "0", "off"]
    admin.create(DatabaseName.new(State.BUILDING, "0123456789abcdef")).result(60)
    assert len(admin.all()) == 1
