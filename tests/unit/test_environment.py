"""What is made once, by whom, and what is remembered of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest

from pytest_warmstack import originals
from pytest_warmstack.environment import ConfiguredTemplate, Environment, Forked, Lazy
from pytest_warmstack.options import Settings
from pytest_warmstack.postgres import Database, DatabaseName, State
from pytest_warmstack.postgres.retention import Retention
from pytest_warmstack.postgres.template.configurations import Configuration
from pytest_warmstack.postgres.template.templates import Template
from pytest_warmstack.progress import Wait
from pytest_warmstack.servers import RememberedServers
from pytest_warmstack.servers.identity import Process, Project, fingerprint
from pytest_warmstack.servers.model import RunContext


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
        waiting=lambda _: nullcontext(Wait("")),
    )
    yield environment
    environment.close(tidy=False)


def test_a_thread_that_waits_tries_itself_when_the_other_one_is_interrupted() -> None:
    """It gets no interruption of another."""
    begun, end = threading.Event(), threading.Event()
    makes: list[Callable[[], str]] = []

    def interrupted() -> str:
        begun.set()
        assert end.wait(10)
        raise SystemExit

    makes += [lambda: "made", interrupted]
    lazy = Lazy("thing", lambda: makes.pop()())
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(lazy.get)
        assert begun.wait(10)
        second = pool.submit(lazy.get)
        end.set()

        assert second.result(10) == "made"
        assert isinstance(first.exception(10), SystemExit)
    assert lazy.get() == lazy.value == "made"


def test_what_has_begun_is_waited_for_and_not_begun_again() -> None:
    """However many tests wait for it, one after the other or side by side."""
    end = threading.Event()
    times: list[int] = []

    def make() -> str:
        times.append(1)
        assert end.wait(10)
        return "made"

    lazy = Lazy("thing", make)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(lazy.get) for _ in range(2)]
        assert lazy.value is None
        end.set()

        assert [each.result(10) for each in waiting] == ["made", "made"]
    assert lazy.get() == "made"
    assert times == [1]


def test_an_exception_is_remembered() -> None:
    """It is raised for each test that asks, and nothing is tried again."""
    times: list[int] = []

    def fail() -> None:
        times.append(1)
        raise ZeroDivisionError

    lazy = Lazy("thing", fail)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            lazy.get()
    assert times == [1]
    assert isinstance(lazy.error, ZeroDivisionError)
    assert lazy.value is None


@pytest.mark.parametrize("does_run", [True, False])
def test_a_start_that_is_interrupted_is_waited_for_only_if_its_thread_runs(
    monkeypatch: pytest.MonkeyPatch, does_run: bool
) -> None:
    """Otherwise the next test begins again."""
    times: list[int] = []
    lazy = Lazy("thing", lambda: times.append(1))

    class Interrupted(threading.Thread):
        def start(self) -> None:
            if does_run:
                super().start()
                self.join()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(originals, "Thread", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            lazy.get()

    assert times == [1] * does_run
    lazy.get()
    assert times == [1]


def test_a_forked_process_gets_nothing_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connections would be used by both."""
    lazy = Lazy("thing", lambda: "made")
    lazy.get()
    monkeypatch.setattr(originals, "getpid", lambda: -1)

    with pytest.raises(Forked):
        lazy.get()


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

    for name in (names[5], names[4]):
        configuration = Configuration(str(name), Path("/"))
        environment._templates[configuration, ()] = ConfiguredTemplate(
            configuration,
            Lazy("layers", list),
            Lazy("clones", list),  # type: ignore[arg-type]
            template=Template(name, "found", "", (name,), now=1.0),
            factory=Sweeping(),  # type: ignore[arg-type]
        )
    environment.settings = Settings(keep_templates=1)

    environment._begin_sweep()

    ((dropped, notes),) = swept
    own = {name.fingerprint for name in names[4:]}
    assert {each.fingerprint for each in dropped} == {each.fingerprint for each in names[:4]}
    assert all(any(each in note for note in notes) for each in own)
