"""The conversation with the process that builds; here a stand-in, which does what it is told."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_warmstack.options import Settings
from pytest_warmstack.postgres.template import builder as module
from pytest_warmstack.postgres.template.builder import Builder
from pytest_warmstack.postgres.template.configurations import Configuration
from pytest_warmstack.postgres.template.dependencies import FileState
from pytest_warmstack.postgres.template.errors import TemplateFailed
from pytest_warmstack.postgres.template.layers import BuildContext, Target
from pytest_warmstack.servers.model import Endpoint

STAND_IN = """
import faulthandler, json, os, signal, sys, time

faulthandler.register(signal.SIGUSR1, all_threads=True)

def tell(**message):
    print(json.dumps(message), flush=True)

def wait():
    time.sleep(60)

project = json.loads(sys.stdin.readline())
for line in sys.stdin:
    request = json.loads(line)
    sys.stderr.write(request.get("write", ""))
    sys.stderr.flush()
    if "at" in request:
        tell(at=request["at"])
    if request["do"] == "wait":
        wait()
    elif request["do"] == "end":
        sys.exit(request["status"])
    elif request["do"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif request["do"] == "report":
        tell(**request["report"])
    else:
        known = {"arguments": sys.argv, "environment": dict(os.environ)}
        tell(pid=os.getpid(), project=project, request=request, known=known, where=os.getcwd())
"""
PASSWORD = "hunter2"


@pytest.fixture
def target() -> Target:
    """A database under construction, in which somebody waits for a lock."""
    endpoint = Endpoint(host="127.0.0.1", port=54321, password=PASSWORD)
    return Target(endpoint, "warmstack_b_1", lambda _: [], lambda: ["LOCK TABLE a (waits)"])


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Builder]]:
    """A function that makes a builder; its process is a stand-in in the project's folder."""
    (tmp_path / "warmstack_stand_in.py").write_text(STAND_IN)
    monkeypatch.setattr(module, "_CHILD", "warmstack_stand_in")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    made: list[Builder] = []

    def make(configuration: Configuration | None = None, **choices: Any) -> Builder:
        settings = Settings(**{"migrate_timeout": 30, **choices})
        context = BuildContext(settings, tmp_path, FileState(str(tmp_path)), configuration)
        made.append(context.builder)
        return made[-1]

    yield make
    for each in made:
        each.discard()


def is_running(pid: int) -> bool:
    """Tell whether a process is there."""
    return Path(f"/proc/{pid}").exists()


Make = Callable[..., Builder]


def test_the_process_is_told_about_the_project_and_the_database(
    builder: Make, target: Target, tmp_path: Path
) -> None:
    """First about the project, and then what to do, in the project's folder."""
    made = builder(env=("A={db_url}",), depends_ignore=("data/*",))

    told = made.ask(target, "echo", line="demo.sql")

    project = told["project"]
    assert (project["root"], project["env"], project["ignore"]) == (
        str(tmp_path),
        ["A={db_url}"],
        ["data/*"],
    )
    assert project["url"] | {"password": ""} == {
        "username": "postgres",
        "password": "",
        "host": "127.0.0.1",
        "port": 54321,
        "database": "warmstack_b_1",
        "query": {},
    }
    assert told["request"] == {"do": "echo", "line": "demo.sql"}
    assert Path(told["where"]) == tmp_path


def test_the_password_stands_where_nobody_else_can_read_it(builder: Make, target: Target) -> None:
    """It comes over standard input; arguments and environment are seen by other users."""
    report = {"arguments": [PASSWORD], "deep": {"er": [f"a {PASSWORD}"]}, "number": 7, "none": None}
    made = builder()

    known = made.ask(target, "echo")["known"]
    assert PASSWORD not in str(known)
    assert "***" not in str(known)
    told = made.ask(target, "report", report=report, write=f"at {PASSWORD}@127.0.0.1\n")
    assert told == {
        "arguments": ["***"],
        "deep": {"er": ["a ***"]},
        "number": 7,
        "none": None,
        "output": "at ***@127.0.0.1",
    }


def test_one_process_does_all_that_is_asked(builder: Make, target: Target) -> None:
    """It is told about the project once, and starts when it is first needed, or before."""
    made = builder()
    made.prepare()
    made.prepare()

    first, second = (made.ask(target, "echo", number=number) for number in (1, 2))

    assert first["pid"] == second["pid"]
    assert (first["request"]["number"], second["request"]["number"]) == (1, 2)


@pytest.mark.parametrize("has_alembic", [False, True])
def test_what_is_imported_ahead_of_time_is_what_will_be_needed(
    builder: Make, target: Target, tmp_path: Path, *, has_alembic: bool
) -> None:
    """Alembic only where the project has it."""
    ini = tmp_path / "alembic.ini"
    made = builder(Configuration("alembic.ini", tmp_path, ini) if has_alembic else None)
    made.prepare()

    arguments = made.ask(target, "echo")["known"]["arguments"]

    assert any(each.startswith("alembic") for each in arguments) is has_alembic


def test_the_last_lines_that_it_wrote_are_told(builder: Make, target: Target) -> None:
    """Of a thousand lines the last ones, which are about the end."""
    text = "".join(f"line {number}\n" for number in range(1000))

    output = builder().ask(target, "echo", write=text)["output"]

    assert output.splitlines() == [f"line {number}" for number in range(970, 1000)]


def test_what_it_wrote_before_its_answer_is_never_missed(
    builder: Make, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes through another pipe, whose reader may be later than that of the answer."""
    read = module._read_output

    def slowly(pipe: Iterable[str]) -> Iterator[str]:
        for line in pipe:
            time.sleep(0.1)
            yield line

    monkeypatch.setattr(module, "_read_output", lambda pipe, *rest: read(slowly(pipe), *rest))  # type: ignore[arg-type]
    made = builder()

    for number in range(3):
        output = made.ask(target, "echo", write=f"line {number}\n")["output"]
        assert output.splitlines()[-1:] == [f"line {number}"]


@pytest.mark.parametrize(
    ("do", "how"),
    [
        ({"do": "end", "status": 3}, " with exit status 3"),
        ({"do": "end", "status": 0}, " with exit status 0"),
        ({"do": "kill"}, " by SIGKILL"),
    ],
)
def test_a_process_that_ends_before_its_time_is_told_with_how_and_where(
    builder: Make, target: Target, do: dict[str, Any], how: str
) -> None:
    """The project's code may call sys.exit, or use up the memory."""
    at = "in revision 0002 (0002_b.py)"

    told = builder().ask(target, at=at, write="the last word\n", **do)

    assert told == {
        "error": f"the process ended early{how}",
        "where": at,
        "output": "the last word",
    }


def test_where_an_earlier_request_was_is_not_told_of_a_later_one(
    builder: Make, target: Target
) -> None:
    """Each begins anew."""
    made = builder()
    made.ask(target, "echo", at="in revision 0002 (0002_b.py)")

    assert made.ask(target, "kill")["where"] == ""


@pytest.mark.parametrize("where", ["", "in env.py, line 9"])
def test_a_refusal_is_an_error_also_when_it_was_swallowed(
    builder: Make, target: Target, where: str
) -> None:
    """The report may be that of a success."""
    tried = "postgresql://db.example.com:5432/prod"

    with pytest.raises(TemplateFailed) as caught:
        builder().ask(
            target,
            "report",
            who="The seed demo.sql",
            at="in revision 0002",
            report={"refused": tried, "where": where},
        )

    text = str(caught.value)
    assert text.startswith(f"The seed demo.sql tried to connect to {tried}; the connection was")
    assert "127.0.0.1:54321/warmstack_b_1" in text
    assert f"where it happened: {where or 'in revision 0002'}" in text


def test_a_process_that_is_late_is_ended_and_told_with_what_it_was_doing(
    builder: Make, target: Target, tmp_path: Path
) -> None:
    """The line of the project's code, what its connection does, and what it wrote before."""
    made = builder(migrate_timeout=0.5)
    pid = made.ask(target, "echo")["pid"]

    with pytest.raises(TemplateFailed) as caught:
        made.ask(target, "wait", at="in revision 0002", write=f"waiting with {PASSWORD}\n")

    line = STAND_IN.splitlines().index("    time.sleep(60)") + 1
    text = str(caught.value)
    assert text.startswith("The migrations did not finish within 0.5 seconds.\n")
    assert "still running in revision 0002, and was stopped" in text
    assert "PostgreSQL: LOCK TABLE a (waits)" in text
    assert f"Python: {tmp_path}/warmstack_stand_in.py, line {line}, in wait" in text
    assert "waiting with ***" in text
    assert not is_running(pid)


def test_a_request_that_is_given_up_ends_at_once(builder: Make, target: Target) -> None:
    """Whoever waits for an answer is told that there will be none."""
    made = builder()
    pid = made.ask(target, "echo")["pid"]
    told: list[dict[str, Any]] = []
    waiting = threading.Thread(target=lambda: told.append(made.ask(target, "wait")))
    waiting.start()
    time.sleep(0.1)

    made.discard()
    waiting.join(10)

    assert [each["error"] for each in told] == ["the process ended early by SIGKILL"]
    assert not is_running(pid)


def test_a_builder_can_be_discarded_at_any_time_and_used_again(
    builder: Make, target: Target
) -> None:
    """Before it began, twice, and after its process has ended by itself."""
    made = builder()
    made.discard()
    made.discard()
    first = made.ask(target, "echo")
    made.discard()
    made.prepare()
    made.ask(target, "kill")
    made.discard()

    second = made.ask(target, "echo")

    assert first["pid"] != second["pid"]
    assert second["project"] == first["project"]


def test_a_server_without_a_password_leaves_reports_as_they_are(
    builder: Make, target: Target
) -> None:
    """An external one may trust who connects; and secrets are those of the lines."""
    open_ = Target(target.endpoint.replace(password=""), target.database, *target[2:])
    made = builder(env=("SHOP_KEY=sk_live_1",))

    told = made.ask(open_, "report", report={"error": "at sk_live_1"}, write="amqp://a:b@c\n")

    assert told == {"error": "at ***", "output": "amqp://a:***@c"}


def ahead(made: Builder, target: Target) -> int:
    """Start the process, let it plan ahead, and return its number."""
    made.plan_ahead(target.endpoint, target.database, sys.path)
    assert made.is_ahead
    assert made._process is not None
    return made._process.pid


def test_a_plan_that_was_made_ahead_is_not_made_again(builder: Make, target: Target) -> None:
    """The process that has it answers, and then does its other work."""
    made = builder()
    pid = ahead(made, target)

    plan = made.ask(target, "plan")
    later = made.ask(target, "echo")

    assert (plan["pid"], plan["request"]) == (pid, {"do": "plan"})
    assert (later["pid"], later["request"]) == (pid, {"do": "echo"})
    assert not made.is_ahead


def change_environment(monkeypatch: pytest.MonkeyPatch, target: Target) -> tuple[Target, str]:
    """Set a variable, as a test module may."""
    monkeypatch.setenv("WARMSTACK_TEST_LATE", "1")
    return target, "plan"


def change_path(monkeypatch: pytest.MonkeyPatch, target: Target) -> tuple[Target, str]:
    """Add a folder, as pytest does for a test module."""
    monkeypatch.syspath_prepend("/somewhere")
    return target, "plan"


def change_database(_: pytest.MonkeyPatch, target: Target) -> tuple[Target, str]:
    """Ask for another database."""
    return target._replace(database="warmstack_b_2"), "plan"


def change_task(_: pytest.MonkeyPatch, target: Target) -> tuple[Target, str]:
    """Ask for something else first."""
    return target, "echo"


@pytest.mark.parametrize(
    "change",
    [change_environment, change_path, change_database, change_task],
    ids=lambda f: f.__name__,
)
def test_a_plan_for_other_facts_is_made_by_another_process(
    builder: Make,
    target: Target,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[pytest.MonkeyPatch, Target], tuple[Target, str]],
) -> None:
    """The first process has imported the project's code, so it can't forget what it knew."""
    made = builder()
    pid = ahead(made, target)
    asked, do = change(monkeypatch, target)

    told = made.ask(asked, do)

    assert told["pid"] != pid
    assert not is_running(pid)
    assert told["project"]["environ"] == dict(os.environ)
    assert told["project"]["url"]["database"] == asked.database


@pytest.mark.parametrize(("name", "is_same"), [("ORDINARY", True), ("PYTHONHASHSEED", False)])
def test_a_prepared_process_gets_the_environment_later(
    builder: Make, target: Target, monkeypatch: pytest.MonkeyPatch, name: str, is_same: bool
) -> None:
    """Except for what Python reads when it starts."""
    made = builder()
    monkeypatch.setattr(module, "_ASYNC", ())
    made.prepare()
    assert made._process is not None
    pid = made._process.pid
    monkeypatch.setenv(name, "1")

    told = made.ask(target, "plan")

    assert (told["pid"] == pid) is is_same
    assert told["project"]["environ"][name] == "1"
