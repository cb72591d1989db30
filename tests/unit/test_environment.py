"""What is made once, by whom, and what is remembered of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from pytest_warmstack.environment import Environment
from pytest_warmstack.postgres import Database, DatabaseName, State
from pytest_warmstack.postgres.retention import Retention
from pytest_warmstack.postgres.template.templates import Template
from pytest_warmstack.servers import RememberedServers
from pytest_warmstack.servers.identity import Process, Project, fingerprint
from pytest_warmstack.servers.model import RunContext
from pytest_warmstack.settings import Settings


@pytest.fixture
def environment() -> Iterator[Environment]:
    """The set-up of a run that has no servers yet."""
    run_context = RunContext(
        project=Project(path="/"), run="", owner=Process.current(), keep=False, start_timeout=1
    )
    environment = Environment(
        settings=Settings(),
        run_context=run_context,
        remembered=RememberedServers(None),
        say=lambda _: None,
    )
    yield environment
    environment.close(tidy=False)


def test_a_thread_that_waits_tries_itself_when_the_other_one_is_interrupted(
    environment: Environment,
) -> None:
    """It gets no interruption of another."""
    begun, end = threading.Event(), threading.Event()

    def interrupted() -> str:
        begun.set()
        assert end.wait(10)
        raise SystemExit

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(environment._once, "thing", interrupted)
        assert begun.wait(10)
        second = pool.submit(environment._once, "thing", lambda: "made")
        end.set()

        assert second.result(10) == "made"
        assert isinstance(first.exception(10), SystemExit)
    assert environment._once("thing", lambda: "again") == "made"


def test_what_has_begun_is_waited_for_and_not_begun_again(environment: Environment) -> None:
    """However many tests wait for it, one after the other or side by side."""
    end = threading.Event()
    times: list[int] = []

    def make() -> str:
        times.append(1)
        assert end.wait(10)
        return "made"

    def once() -> str:
        return environment._once("thing", make)

    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(environment._get, "thing", once) for _ in range(2)]
        end.set()

        assert [each.result(10) for each in waiting] == ["made", "made"]
    assert environment._get("thing", once) == "made"
    assert times == [1]


def test_an_exception_is_remembered(environment: Environment) -> None:
    """It is raised for whoever asks, and nothing is tried again."""
    times: list[int] = []

    def fail() -> None:
        times.append(1)
        raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            environment._get("thing", lambda: environment._once("thing", fail))
    assert times == [1]


def test_a_sweep_spares_the_templates_of_all_services_of_the_run(environment: Environment) -> None:
    """It notes that each was used, and drops neither them nor what stands ready for them."""
    names = [DatabaseName(State.TEMPLATE, fingerprint(str(number))) for number in range(6)]
    listed = [Database(name, sealed=True, used=9.0 - place) for place, name in enumerate(names)]
    listed += [
        Database(DatabaseName(State.READY, name.fingerprint, "0" * 10), sealed=False, visits=0)
        for name in names
    ]
    swept: list[tuple[Sequence[DatabaseName], Sequence[str]]] = []

    class Sweeping:
        """A keeper that writes down what it is to drop, and the notes."""

        def sweep(self, retention: Retention, *, notes: Sequence[str]) -> None:
            swept.append((retention.doomed(listed), notes))

    environment._templates = [
        (Template(name, "found", "", (name,), now=1.0), Sweeping())  # type: ignore[misc]
        for name in (names[5], names[4])
    ]
    environment.settings = Settings(keep_templates=1)

    environment._sweep_again()

    ((dropped, notes),) = swept
    own = {name.fingerprint for name in names[4:]}
    assert {each.fingerprint for each in dropped} == {each.fingerprint for each in names[:4]}
    assert all(any(each in note for note in notes) for each in own)
