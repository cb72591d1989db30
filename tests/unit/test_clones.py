"""Clones for tests, made and dropped by somebody who only pretends to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from pytest_warmstack.postgres.clones import DROPPING, Clone, Clones, Finding, Leak
from pytest_warmstack.postgres.errors import CloneFailed
from pytest_warmstack.servers.errors import ConnectionLost, ServerFailed
from pytest_warmstack.servers.identity import DatabaseName, State

TEMPLATE = DatabaseName(State.TEMPLATE, "0123456789abcdef")
LEAK = Leak("shop", "idle in transaction", "SELECT 1")


def done(value: Any) -> Future[Any]:
    """Return a future that has come to *value*, or to an error."""
    future: Future[Any] = Future()
    if isinstance(value, BaseException):
        future.set_exception(value)
    else:
        future.set_result(value)
    return future


class FakeMaker:
    """Makes names in place of databases, and leaves every drop unfinished until it is told."""

    def __init__(self) -> None:
        self.asked = 0
        self.fails: list[BaseException] = []
        self.waits = False
        self.futures: list[Future[Clone]] = []
        self.drops: dict[Clone, Future[list[Leak]]] = {}
        self.visited = 0
        self.stopped = False
        self.left: tuple[list[Clone], int] | None = None

    def prepare(self) -> Future[Clone]:
        """Return a new clone, an error if one is due, or, with `waits`, what is not there yet."""
        self.asked += 1
        name = DatabaseName.new(State.IN_USE, TEMPLATE.fingerprint)
        clone = Clone(name, self.asked, f"postgresql://host/{name}")
        future = Future() if self.waits else done(self.fails.pop(0) if self.fails else clone)
        self.futures.append(future)
        return future

    def drop(self, clone: Clone) -> Future[list[Leak]]:
        """Return the future of a drop that has not ended."""
        self.drops[clone] = Future()
        return self.drops[clone]

    def keep(self, clone: Clone, test: str) -> Future[Clone]:
        """Return it under another name, or an error if one is due."""
        kept = clone._replace(name=clone.name._replace(state=State.KEPT))
        return done(self.fails.pop(0) if self.fails else kept)

    def visits(self, clone: Clone) -> Future[int]:
        """Return how many connections there have been."""
        return done(self.visited)

    def stop(self) -> None:
        """Make no more."""
        self.stopped = True

    def leave(self, unused: Sequence[Clone], *, stock: int) -> Future[None]:
        """Note what was left."""
        self.left = list(unused), stock
        return done(None)


@pytest.fixture
def maker() -> FakeMaker:
    """A maker of names."""
    return FakeMaker()


@pytest.fixture
def found() -> list[Finding]:
    """What was told of tests."""
    return []


@pytest.fixture
def make(maker: FakeMaker, found: list[Finding]) -> Callable[..., Clones]:
    """A way to have clones made by it."""

    def make(ahead: int = 2, expected: int = 100, stock: int = 2, keep: int = 0) -> Clones:
        return Clones(
            maker, ahead=ahead, expected=expected, stock=stock, keep=keep, found=found.append
        )

    return make


def refusal() -> CloneFailed:
    """Return an error that a clone can come to."""
    return CloneFailed.refused(template="t", cause="no space", looked_at=["CREATE DATABASE"])


# Ahead


def test_as_many_as_asked_are_made_ahead(make: Callable[..., Clones], maker: FakeMaker) -> None:
    """Before the first test asks, and again after each one has taken its own."""
    clones = make(ahead=3)
    assert maker.asked == 3

    for taken in range(1, 5):
        clones.take()
        assert maker.asked == 3 + taken


def test_no_more_are_made_than_tests_will_ask_for(
    make: Callable[..., Clones], maker: FakeMaker
) -> None:
    """A run of one test makes one; the last tests make none for those after them."""
    clones = make(ahead=4, expected=5)

    for _ in range(5):
        clones.take()

    assert maker.asked == 5


def away(cause: Exception) -> ServerFailed:
    """Return the error that tells of a server which *cause* shows to be gone."""
    error = ServerFailed.lost(title="PostgreSQL", cause=str(cause))
    error.__cause__ = cause
    return error


def test_what_a_server_refused_while_it_was_restarted_is_asked_for_again(
    make: Callable[..., Clones], maker: FakeMaker
) -> None:
    """A clone was to be made ahead, just then; the test that takes it comes later."""
    maker.fails = [away(ConnectionRefusedError("refused"))]
    clones = make(ahead=1)

    assert clones.take() == maker.futures[-1].result()


@pytest.mark.parametrize("cause", [ConnectionRefusedError("refused"), TimeoutError("no answer")])
def test_a_server_that_is_gone_is_told(
    make: Callable[..., Clones], maker: FakeMaker, cause: Exception
) -> None:
    """It is asked once more when it refuses, and not when it keeps everybody waiting."""
    maker.fails = [away(cause) for _ in range(3)]
    clones = make(ahead=1, expected=1)

    with pytest.raises(ServerFailed):
        clones.take()

    assert maker.asked == (2 if isinstance(cause, ConnectionRefusedError) else 1)


def test_a_test_that_nobody_expected_has_a_clone_made(
    make: Callable[..., Clones], maker: FakeMaker
) -> None:
    """One that asks for the fixture as it runs can't be counted before."""
    clones = make(expected=0)
    assert maker.asked == 0

    assert clones.take() == maker.futures[0].result()
    assert maker.asked == 1


def test_each_test_takes_a_clone_of_its_own_in_the_order_made(
    make: Callable[..., Clones], maker: FakeMaker
) -> None:
    """No two are the same, and the one that was made first is given out first."""
    clones = make()

    taken = [clones.take() for _ in range(10)]

    assert taken == [future.result() for future in maker.futures[:10]]
    assert len({clone.name for clone in taken}) == 10


def test_a_clone_that_could_not_be_made_fails_the_test_that_takes_it(
    make: Callable[..., Clones], maker: FakeMaker
) -> None:
    """And no other one."""
    maker.fails = [refusal()]
    clones = make()

    with pytest.raises(CloneFailed, match="no space"):
        clones.take()
    assert clones.take() == maker.futures[1].result()


def test_a_clone_that_a_test_was_interrupted_in_waiting_for_is_not_lost(
    make: Callable[..., Clones], maker: FakeMaker
) -> None:
    """It is closed with the others."""
    clones = make(ahead=1, expected=1)
    maker.futures[0] = clones._ahead[0] = done(KeyboardInterrupt())

    with pytest.raises(KeyboardInterrupt):
        clones.take()

    assert list(clones._ahead) == [maker.futures[0]]


# Behind


def test_giving_back_does_not_wait_for_the_drop(
    make: Callable[..., Clones], maker: FakeMaker
) -> None:
    """The drop has begun, and has not ended, when the next test may begin."""
    clones = make()
    clone = clones.take()

    clones.give_back(clone, "a test")

    assert list(maker.drops) == [clone]
    assert not maker.drops[clone].done()


def test_a_clone_that_was_given_back_is_not_given_out_again(make: Callable[..., Clones]) -> None:
    """What one test left in its database, no other test finds."""
    clones = make()
    used = clones.take()
    clones.give_back(used, "a test")

    assert used not in [clones.take() for _ in range(5)]


def test_only_so_many_clones_wait_to_be_dropped(
    make: Callable[..., Clones], maker: FakeMaker
) -> None:
    """The test after them waits for the first of them, and for no other."""
    clones = make()
    given = [clones.take() for _ in range(DROPPING)]
    for clone in given:
        clones.give_back(clone, "a test")
    taken = threading.Event()
    threading.Thread(target=lambda: (clones.take(), taken.set()), daemon=True).start()

    assert not taken.wait(0.05)
    maker.drops[given[0]].set_result([])
    assert taken.wait(5)


def test_drops_that_have_ended_are_not_waited_for(
    make: Callable[..., Clones], maker: FakeMaker
) -> None:
    """Any number of tests can come one after the other."""
    clones = make()

    for _ in range(5 * DROPPING):
        clone = clones.take()
        clones.give_back(clone, "a test")
        maker.drops[clone].set_result([])

    assert len(clones._dropping) <= 1


def test_a_connection_that_a_test_left_open_is_told_with_its_name(
    make: Callable[..., Clones], maker: FakeMaker, found: list[Finding]
) -> None:
    """One line for each; a test that left none is not told of."""
    clones = make()
    for test, leaks in (("tidy", []), ("untidy", [LEAK, LEAK])):
        clone = clones.take()
        clones.give_back(clone, test)
        maker.drops[clone].set_result(leaks)

    assert found == [Finding("untidy", LEAK), Finding("untidy", LEAK)]


def test_a_clone_that_could_not_be_dropped_is_told(
    make: Callable[..., Clones], maker: FakeMaker, found: list[Finding]
) -> None:
    """In one line, with the name of its test."""
    clones = make()
    clone = clones.take()
    clones.give_back(clone, "a test")

    maker.drops[clone].set_exception(CloneFailed.kept(name="x", seconds=10, cause="a slot"))

    ((test, leak, trouble, _),) = found
    assert (test, leak) == ("a test", None)
    assert "x" in trouble
    assert "a slot" in trouble


def test_a_lost_server_is_reported_once(
    make: Callable[..., Clones], maker: FakeMaker, found: list[Finding]
) -> None:
    """Of many drops that fail for it, the first is enough."""
    clones = make()
    lost = ConnectionLost.lost(title="PostgreSQL", statement="DROP DATABASE x", cause="gone")
    for test in ("first", "second"):
        clone = clones.take()
        clones.give_back(clone, test)
        maker.drops[clone].set_exception(lost)

    assert [each.test for each in found] == ["first"]
    assert "gone" in found[0].trouble


def test_an_error_of_a_drop_is_shown_whatever_it_is(
    make: Callable[..., Clones], maker: FakeMaker, found: list[Finding]
) -> None:
    """One that this package did not foresee as well."""
    clones = make()
    clone = clones.take()
    clones.give_back(clone, "a test")

    maker.drops[clone].set_exception(ZeroDivisionError("never thought of"))

    (finding,) = found
    assert finding.test == "a test"
    assert "ZeroDivisionError: never thought of" in finding.trouble


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, pytest.fail.Exception])
def test_an_interrupted_wait_loses_no_clone(
    make: Callable[..., Clones], maker: FakeMaker, interruption: type[BaseException]
) -> None:
    """A timeout of the test's or Ctrl-C: the next test takes the one that was waited for."""
    clones = make()
    waited: list[Future[Clone]] = []

    class Interrupted(Future[Clone]):
        def result(self, timeout: float | None = None) -> Clone:
            assert timeout
            waited.append(self)
            raise interruption

    clones._ahead[0] = first = Interrupted()

    with pytest.raises(interruption):
        clones.take()

    assert waited == [first]
    assert clones._ahead[0] is first


# Shared by tests that undo what they did


def test_those_who_undo_what_they_did_share_one_clone(
    make: Callable[..., Clones], maker: FakeMaker, found: list[Finding]
) -> None:
    """As long as nobody connected to it by another way, it stays."""
    clones = make()
    first = clones.borrow()
    first.connections = maker.visited = 3

    clones.restore(first, "a test")

    assert clones.borrow() is first
    assert not maker.drops
    assert found == []


def test_connections_that_are_not_counted_yet_are_nobodys_trouble(
    make: Callable[..., Clones], maker: FakeMaker, found: list[Finding]
) -> None:
    """PostgreSQL 14 counts late, our own connection as well."""
    clones = make()
    first = clones.borrow()
    first.connections, maker.visited = 2, 1

    clones.restore(first, "a test")

    assert clones.borrow() is first
    assert found == []


def test_a_clone_with_trouble_is_replaced_at_once(
    make: Callable[..., Clones], maker: FakeMaker, found: list[Finding]
) -> None:
    """It is told whose trouble it was, and the next test gets another one."""
    clones = make()
    first = clones.borrow()
    first.trouble = "it committed"

    clones.restore(first, "a test")

    assert [(each.test, each.leak) for each in found] == [("a test", None)]
    assert found[0].trouble.startswith("it committed")
    assert list(maker.drops) == [first.clone]
    assert clones.borrow().clone != first.clone


def test_a_clone_that_somebody_else_connected_to_is_replaced(
    make: Callable[..., Clones], maker: FakeMaker, found: list[Finding]
) -> None:
    """The question is asked when the test is done, and the answer needed by the next one only."""
    clones = make()
    first = clones.borrow()
    first.connections, maker.visited = 1, 2

    clones.restore(first, "a test")
    assert found == []

    assert clones.borrow().clone != first.clone
    assert [each.test for each in found] == ["a test"]
    assert list(maker.drops) == [first.clone]


# The end


def test_what_no_test_had_is_left_for_the_next_run(
    make: Callable[..., Clones], maker: FakeMaker
) -> None:
    """With the number of those that are to stand ready; nothing is made any more."""
    clones = make(ahead=2, stock=3)
    clones.take()

    clones.close(timeout=5)

    assert maker.stopped
    assert maker.left == ([future.result() for future in maker.futures[1:]], 3)


def test_a_clone_that_failed_or_was_cancelled_is_not_left(
    make: Callable[..., Clones], maker: FakeMaker
) -> None:
    """Only what is there can be left."""
    clones = make(ahead=3)
    cancelled: Future[Clone] = Future()
    cancelled.cancel()
    clones._ahead[0], clones._ahead[1] = cancelled, done(refusal())

    clones.close(timeout=5)

    assert maker.left == ([maker.futures[2].result()], 2)


def test_the_shared_clone_is_dropped_at_the_end(
    make: Callable[..., Clones], maker: FakeMaker, found: list[Finding]
) -> None:
    """And its last test is still told of, if it did what it should not."""
    clones = make()
    shared = clones.borrow()
    clones.restore(shared, "a test")
    maker.visited = 0
    other = clones.borrow()
    maker.visited = 1
    clones.restore(other, "the last test")

    clones.close(timeout=0.05)

    assert [each.test for each in found] == ["the last test"]
    assert list(maker.drops) == [shared.clone]


def closing(clones: Clones, *, timeout: float) -> threading.Event:
    """Begin to close *clones* in a thread, and return what is set when that has ended."""
    closed = threading.Event()

    def close() -> None:
        clones.close(timeout=timeout)
        closed.set()

    threading.Thread(target=close, daemon=True).start()
    return closed


def test_closing_waits_for_the_drops_to_end(make: Callable[..., Clones], maker: FakeMaker) -> None:
    """The end of the run comes after the last drop, when that ends in time."""
    clones = make()
    clone = clones.take()
    clones.give_back(clone, "a test")

    closed = closing(clones, timeout=30)

    assert not closed.wait(0.05)
    maker.drops[clone].set_result([])
    assert closed.wait(5)


def test_closing_waits_no_longer_than_it_may(make: Callable[..., Clones], maker: FakeMaker) -> None:
    """A drop or a clone that does not end is left to the next run."""
    maker.waits = True
    clones = make()

    closed = closing(clones, timeout=0.05)

    assert closed.wait(5)
    assert maker.left == ([], 2)


# Kept


def test_the_last_ones_of_failed_tests_are_kept_and_told_at_the_end(
    make: Callable[..., Clones], maker: FakeMaker, found: list[Finding]
) -> None:
    """Those beyond are dropped, under the name that they have by then, and not told."""
    clones = make(keep=2)
    taken = [clones.take() for _ in range(4)]
    for number, clone in enumerate(taken):
        clones.keep(clone, f"test {number}")
    names = [each.name._replace(state=State.KEPT) for each in taken]
    assert [each.name for each in maker.drops] == names[:2]
    assert found == []
    for drop in maker.drops.values():
        drop.set_result([])

    clones.close(timeout=5)

    assert found == [Finding(f"test {n}", kept=str(names[n])) for n in (2, 3)]


def test_a_test_that_is_run_again_has_one_place(
    make: Callable[..., Clones], maker: FakeMaker
) -> None:
    """The last of its attempts that failed; the other tests keep theirs."""
    clones = make(keep=2)
    taken = [clones.take() for _ in range(4)]
    for test, clone in zip(["one", "two", "two", "two"], taken, strict=True):
        clones.keep(clone, test)

    names = [each.name._replace(state=State.KEPT) for each in taken]
    assert [each.name for each in maker.drops] == names[1:3]


def test_one_that_can_not_be_kept_is_told_with_the_reason(
    make: Callable[..., Clones], maker: FakeMaker, found: list[Finding]
) -> None:
    """And takes no other one's place."""
    clones = make(keep=2)
    taken = [clones.take() for _ in range(3)]
    clones.keep(taken[0], "one")
    maker.fails = [CloneFailed.not_kept(name=str(taken[1].name), cause="it is gone")]

    clones.keep(taken[1], "two")
    clones.keep(taken[2], "three")

    assert [each.test for each in found] == ["two"]
    assert found[0].trouble.endswith("could not be kept. it is gone")
    assert maker.drops == {}
