"""How a process handles SIGTERM and SIGHUP: the first one, the next ones, and other handlers."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from pytest_warmstack import signals
from pytest_warmstack.signals import SignalWatch, Terminated


@pytest.fixture(autouse=True)
def _defaults() -> Iterator[None]:
    """Begin with the default handlers, and end with those of the run."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in signals.ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: signal.Signals) -> None:
    """Send this process a signal; its handler runs before this returns."""
    os.kill(os.getpid(), number)
    time.sleep(0)


def ignore(_name: str, _number: int) -> None:
    """Do nothing when a signal comes."""


@pytest.mark.parametrize("number", signals.ENDING)
def test_a_signal_stops_and_interrupts_the_run(number: signal.Signals) -> None:
    """As a KeyboardInterrupt, which event loops let pass; the status is that of a shell."""
    stops: list[object] = []
    watch = SignalWatch(lambda *given: stops.append(given))

    with pytest.raises(Terminated, match=f"{number.name} ends the run") as caught:
        send(number)

    assert isinstance(caught.value, KeyboardInterrupt)
    assert stops == [(number.name, number)]
    assert watch.status == 128 + number


def test_it_interrupts_even_if_stop_fails() -> None:
    """The run ends all the same."""
    SignalWatch(lambda *_: 1 / 0)

    with pytest.raises(Terminated):
        send(signal.SIGTERM)


def test_a_closed_terminal_sends_two_signals_that_are_one() -> None:
    """The shell sends one, and the kernel another; the clean-up goes on."""
    SignalWatch(ignore)
    with pytest.raises(Terminated):
        send(signal.SIGHUP)

    send(signal.SIGHUP)


def test_a_patient_process_ignores_all_but_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker gets it from the terminal, and from its controller later."""
    monkeypatch.setattr(signals, "REPEAT_WINDOW", -1)
    SignalWatch(ignore, patient=True)
    with pytest.raises(Terminated):
        send(signal.SIGTERM)

    send(signal.SIGTERM)


def test_a_signal_during_the_clean_up_is_noted() -> None:
    """It interrupts nothing, and the status has it."""
    watch = SignalWatch(ignore)
    assert watch.status == 0
    watch.clean_up()

    send(signal.SIGTERM)

    assert watch.status == 128 + signal.SIGTERM


def test_only_default_handlers_are_replaced_and_put_back() -> None:
    """One that is there, or that came later, stays."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    watch = SignalWatch(ignore)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL

    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    watch.pytest_runtest_logfinish()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL

    watch.restore()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_handler_that_came_later_stays() -> None:
    """Between tests and at the end."""
    watch = SignalWatch(ignore)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

    watch.pytest_runtest_logfinish()
    watch.restore()

    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_another_thread_than_the_main_one_installs_nothing() -> None:
    """Python refuses that."""
    thread = threading.Thread(target=SignalWatch, args=(ignore,))
    thread.start()
    thread.join()

    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_forked_process_has_the_default_handlers() -> None:
    """And gets a signal that comes before Python runs in it: until then, it is blocked."""
    masks: list[set[signal.Signals]] = []
    look = masks.append
    os.register_at_fork(before=lambda: look(signal.pthread_sigmask(signal.SIG_BLOCK, [])))
    SignalWatch(ignore)
    child = os.fork()
    if child == 0:
        is_default = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        os._exit(0 if is_default and not signal.pthread_sigmask(signal.SIG_BLOCK, []) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert masks == [set(signals.ENDING)]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL


def test_the_second_signal_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the default handler, so that the exit status has it."""
    monkeypatch.setattr(signals, "REPEAT_WINDOW", -1)
    child = os.fork()
    if child == 0:
        SignalWatch(ignore)
        with contextlib.suppress(Terminated):
            send(signal.SIGTERM)
        send(signal.SIGTERM)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
