"""Clones for tests, over a fake factory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.postgres import DatabaseName, State, sql
from pytest_warmstack.postgres.clones import MAX_DROPS, Clone, CloneFactory, Clones, Finding, Leak
from pytest_warmstack.postgres.errors import CloneFailed
from pytest_warmstack.servers.errors import ConnectionLost, ServerFailed, ServerFull
from pytest_warmstack.servers.model import Endpoint

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


class FakeFactory:
    """Makes names instead of databases, and leaves each drop unfinished."""

    def __init__(self) -> None:
        self.asked = 0
        self.fails: list[BaseException] = []
        self.waits = False
        self.futures: list[Future[Clone]] = []
        self.drops: dict[Clone, Future[list[Leak]]] = {}
        self.visited = 0
        self.stopped = False
        self.fresh: list[bool] = []
        self.puts_back = False
        self.returned: dict[Clone, Future[Clone]] = {}
        self.replaced: Any = None
        self.left: tuple[list[Clone], int] | None = None

    def prepare(self, *, fresh: bool = False) -> Future[Clone]:
        """Return a clone or the next error; with `waits`, a future that does not end."""
        self.asked += 1
        self.fresh.append(fresh)
        name = DatabaseName.new(State.IN_USE, TEMPLATE.fingerprint)
        clone = Clone(name, self.asked, f"postgresql://host/{name}")
        future = Future() if self.waits else done(self.fails.pop(0) if self.fails else clone)
        self.futures.append(future)
        return future

    moves = 0
    occupied_address = None

    def lead_to(self, clone: Clone) -> Clone:
        """Return it as it is: no application has read an address."""
        return clone

    def inspect(self, clone: Clone) -> None:
        """Return None: the clone is at no address."""

    def put_back(self, clone: Clone, replaced: Any) -> Future[Clone]:
        """Return a future that does not end by itself."""
        self.replaced = replaced
        self.returned[clone] = Future()
        return self.returned[clone]

    def drop(self, clone: Clone) -> Future[list[Leak]]:
        """Return the future of a drop that does not end by itself."""
        self.drops[clone] = Future()
        return self.drops[clone]

    def save(self, clone: Clone, test: str) -> Future[Clone]:
        """Return it under another name, or the next error."""
        kept = clone._replace(name=clone.name._replace(state=State.SAVED))
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
def factory() -> FakeFactory:
    """The fake factory."""
    return FakeFactory()


@pytest.fixture
def found() -> list[Finding]:
    """The findings."""
    return []


@pytest.fixture
def make(factory: FakeFactory, found: list[Finding]) -> Callable[..., Clones]:
    """Return a function that makes `Clones` over the fake factory."""

    def make(ahead: int = 2, expected: int = 100, stock: int = 2, keep: int = 0) -> Clones:
        return Clones(
            factory, ahead=ahead, expected=expected, stock=stock, keep=keep, found=found.append
        )

    return make


def refusal() -> CloneFailed:
    """Return an error of the factory."""
    return CloneFailed.refused(template="t", cause="no space", looked_at=["CREATE DATABASE"])


# Ahead


def test_a_number_of_clones_is_made_ahead(
    make: Callable[..., Clones], factory: FakeFactory
) -> None:
    """Before the first test asks for one, and again after each test."""
    clones = make(ahead=3)
    assert factory.asked == 3

    for taken in range(1, 5):
        clones.take()
        assert factory.asked == 3 + taken


def test_no_more_are_made_than_tests_will_ask_for(
    make: Callable[..., Clones], factory: FakeFactory
) -> None:
    """A run of one test makes one clone."""
    clones = make(ahead=4, expected=5)

    for _ in range(5):
        clones.take()

    assert factory.asked == 5


def away(cause: Exception) -> ServerFailed:
    """Return the error for a server that is gone because of *cause*."""
    error = ServerFailed.lost(title="PostgreSQL", cause=str(cause))
    error.__cause__ = cause
    return error


def test_a_clone_is_made_again_if_the_server_was_restarting(
    make: Callable[..., Clones], factory: FakeFactory
) -> None:
    """The server refused the clone made ahead; the test takes it later."""
    factory.fails = [away(ConnectionRefusedError("refused"))]
    clones = make(ahead=1)

    assert clones.take() == factory.futures[-1].result()


@pytest.mark.parametrize("cause", [ConnectionRefusedError("refused"), TimeoutError("no answer")])
def test_a_server_that_is_gone_fails_the_test(
    make: Callable[..., Clones], factory: FakeFactory, cause: Exception
) -> None:
    """A server that refuses is tried once more, a server that does not answer is not."""
    factory.fails = [away(cause) for _ in range(3)]
    clones = make(ahead=1, expected=1)

    with pytest.raises(ServerFailed):
        clones.take()

    assert factory.asked == (2 if isinstance(cause, ConnectionRefusedError) else 1)


def test_an_unexpected_test_gets_a_clone(make: Callable[..., Clones], factory: FakeFactory) -> None:
    """A test may ask for the fixture while it runs."""
    clones = make(expected=0)
    assert factory.asked == 0

    assert clones.take() == factory.futures[0].result()
    assert factory.asked == 1


def test_each_test_takes_its_own_clone_in_the_order_made(
    make: Callable[..., Clones], factory: FakeFactory
) -> None:
    """All are different, and the first one made is the first one taken."""
    clones = make()

    taken = [clones.take() for _ in range(10)]

    assert taken == [future.result() for future in factory.futures[:10]]
    assert len({clone.name for clone in taken}) == 10


def test_a_clone_that_could_not_be_made_fails_the_test_that_takes_it(
    make: Callable[..., Clones], factory: FakeFactory
) -> None:
    """The next test gets the next clone."""
    factory.fails = [refusal()]
    clones = make()

    with pytest.raises(CloneFailed, match="no space"):
        clones.take()
    assert clones.take() == factory.futures[1].result()


def test_a_clone_is_not_lost_if_the_wait_for_it_is_interrupted(
    make: Callable[..., Clones], factory: FakeFactory
) -> None:
    """`close` finds it."""
    clones = make(ahead=1, expected=1)
    factory.futures[0] = clones._ahead[0] = done(KeyboardInterrupt())

    with pytest.raises(KeyboardInterrupt):
        clones.take()

    assert list(clones._ahead) == [factory.futures[0]]


# Behind


def test_giving_back_does_not_wait_for_the_drop(
    make: Callable[..., Clones], factory: FakeFactory
) -> None:
    """The next test may begin while the drop goes on."""
    clones = make()
    clone = clones.take()

    clones.give_back(clone, "a test")

    assert list(factory.drops) == [clone]
    assert not factory.drops[clone].done()


def test_a_clone_is_never_reused(make: Callable[..., Clones]) -> None:
    """No test finds what another left in its database."""
    clones = make()
    used = clones.take()
    clones.give_back(used, "a test")

    assert used not in [clones.take() for _ in range(5)]


def test_only_a_few_clones_wait_to_be_dropped(
    make: Callable[..., Clones], factory: FakeFactory
) -> None:
    """The next test waits for the first drop only."""
    clones = make()
    given = [clones.take() for _ in range(MAX_DROPS)]
    for clone in given:
        clones.give_back(clone, "a test")
    taken = threading.Event()
    threading.Thread(target=lambda: (clones.take(), taken.set()), daemon=True).start()

    assert not taken.wait(0.05)
    factory.drops[given[0]].set_result([])
    assert taken.wait(5)


def test_finished_drops_are_forgotten(make: Callable[..., Clones], factory: FakeFactory) -> None:
    """There may be any number of tests."""
    clones = make()

    for _ in range(5 * MAX_DROPS):
        clone = clones.take()
        clones.give_back(clone, "a test")
        factory.drops[clone].set_result([])

    assert len(clones._drops) <= 1


def test_a_connection_that_a_test_left_open_is_reported_with_the_test(
    make: Callable[..., Clones], factory: FakeFactory, found: list[Finding]
) -> None:
    """Each connection is one finding."""
    clones = make()
    for test, leaks in (("tidy", []), ("untidy", [LEAK, LEAK])):
        clone = clones.take()
        clones.give_back(clone, test)
        factory.drops[clone].set_result(leaks)

    assert found == [Finding("untidy", LEAK), Finding("untidy", LEAK)]


def test_a_clone_that_could_not_be_dropped_is_reported(
    make: Callable[..., Clones], factory: FakeFactory, found: list[Finding]
) -> None:
    """With its test and the reason."""
    clones = make()
    clone = clones.take()
    clones.give_back(clone, "a test")

    factory.drops[clone].set_exception(
        CloneFailed.not_dropped(name="x", seconds=10, cause="a slot")
    )

    (finding,) = found
    assert (finding.test, finding.leak) == ("a test", None)
    assert "x" in finding.trouble
    assert "a slot" in finding.trouble


def test_a_lost_server_is_reported_once(
    make: Callable[..., Clones], factory: FakeFactory, found: list[Finding]
) -> None:
    """One failed drop is enough."""
    clones = make()
    lost = ConnectionLost.lost(title="PostgreSQL", statement="DROP DATABASE x", cause="gone")
    for test in ("first", "second"):
        clone = clones.take()
        clones.give_back(clone, test)
        factory.drops[clone].set_exception(lost)

    assert [each.test for each in found] == ["first"]
    assert "gone" in found[0].trouble


def test_an_unforeseen_error_of_a_drop_is_reported(
    make: Callable[..., Clones], factory: FakeFactory, found: list[Finding]
) -> None:
    """With its type and text."""
    clones = make()
    clone = clones.take()
    clones.give_back(clone, "a test")

    factory.drops[clone].set_exception(ZeroDivisionError("never thought of"))

    (finding,) = found
    assert finding.test == "a test"
    assert "ZeroDivisionError: never thought of" in finding.trouble


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, pytest.fail.Exception])
def test_an_interrupted_wait_loses_no_clone(
    make: Callable[..., Clones], factory: FakeFactory, interruption: type[BaseException]
) -> None:
    """After a timeout of the test or Ctrl-C the next test takes the clone."""
    clones = make()
    waited: list[Future[Clone]] = []

    class Interrupted(Future[Clone]):
        def result(self, timeout: float | None = None) -> Clone:
            assert timeout
            waited.append(self)
            raise interruption

    clones._ahead[0] = first = Interrupted()
    clones._ahead[1] = Future()

    with pytest.raises(interruption):
        clones.take()

    assert waited == [first]
    assert clones._ahead[0] is first


# Put back


def returning(factory: FakeFactory, clones: Clones, test: str = "a test") -> Clone:
    """Return the clone of a test that has ended and gave it back."""
    clone = clones.take()
    clones.give_back(clone, test, again=True)
    assert clone in factory.returned
    return clone


def test_a_clone_that_is_put_back_is_the_next_one(
    make: Callable[..., Clones], factory: FakeFactory
) -> None:
    """The clones that are ready beside it stay unused, and no more are made."""
    factory.puts_back = True
    clones = make()
    first = returning(factory, clones)
    made = factory.asked

    factory.returned[first].set_result(first)

    assert clones.take() is first
    assert factory.asked == made
    assert not factory.drops


def test_a_test_gets_a_ready_clone_while_another_one_is_put_back(
    make: Callable[..., Clones], factory: FakeFactory
) -> None:
    """It doesn't wait; only if none is ready it does."""
    factory.puts_back = True
    clones = make()
    first = returning(factory, clones)

    assert clones.take() is not first


def test_no_clone_is_put_back_that_no_test_will_use(
    make: Callable[..., Clones], factory: FakeFactory
) -> None:
    """Enough are ready for the tests that are left."""
    factory.puts_back = True
    clones = make(expected=3)
    clone = clones.take()

    clones.give_back(clone, "a test", again=True)

    assert not factory.returned
    assert clone in factory.drops


def test_a_fresh_clone_is_made_for_the_test(
    make: Callable[..., Clones], factory: FakeFactory
) -> None:
    """None of those ahead, which may have been put back; and it is dropped."""
    factory.puts_back = True
    clones = make()
    returned = returning(factory, clones)
    factory.returned[returned].set_result(returned)

    clone = clones.take(fresh=True)

    assert clone is not returned
    assert factory.fresh[-1]
    clones.give_back(clone, "a test")
    assert clone in factory.drops


def test_the_reason_for_a_replacement_is_found(
    make: Callable[..., Clones], factory: FakeFactory, found: list[Finding]
) -> None:
    """With the connections that the test left."""
    factory.puts_back = True
    returning(factory, make())

    factory.replaced("left a connection open", [LEAK])

    assert found == [
        Finding("a test", LEAK),
        Finding("a test", replaced="left a connection open"),
    ]


# Shared by tests that roll back


def test_tests_that_roll_back_share_a_clone(
    make: Callable[..., Clones], factory: FakeFactory, found: list[Finding]
) -> None:
    """It stays while all connections to it are known."""
    clones = make()
    first = clones.borrow()
    first.connections = factory.visited = 3

    clones.restore(first, "a test")

    assert clones.borrow() is first
    assert not factory.drops
    assert found == []


def test_connections_that_are_not_counted_yet_are_no_trouble(
    make: Callable[..., Clones], factory: FakeFactory, found: list[Finding]
) -> None:
    """PostgreSQL 14 counts late."""
    clones = make()
    first = clones.borrow()
    first.connections, factory.visited = 2, 1

    clones.restore(first, "a test")

    assert clones.borrow() is first
    assert found == []


def test_a_clone_with_trouble_is_replaced_at_once(
    make: Callable[..., Clones], factory: FakeFactory, found: list[Finding]
) -> None:
    """The finding names the test, and the next test gets another clone."""
    clones = make()
    first = clones.borrow()
    first.trouble = "it committed"

    clones.restore(first, "a test")

    assert [(each.test, each.leak) for each in found] == [("a test", None)]
    assert found[0].trouble.startswith("it committed")
    assert list(factory.drops) == [first.clone]
    assert clones.borrow().clone != first.clone


def test_a_clone_with_an_unknown_connection_is_replaced(
    make: Callable[..., Clones], factory: FakeFactory, found: list[Finding]
) -> None:
    """The query begins when the test ends; only the next test waits for the answer."""
    clones = make()
    first = clones.borrow()
    first.connections, factory.visited = 1, 2

    clones.restore(first, "a test")
    assert found == []

    assert clones.borrow().clone != first.clone
    assert [each.test for each in found] == ["a test"]
    assert list(factory.drops) == [first.clone]


# The end


def test_unused_clones_are_left_for_the_next_run(
    make: Callable[..., Clones], factory: FakeFactory
) -> None:
    """With the size of the stock, and after the last clone was made."""
    clones = make(ahead=2, stock=3)
    clones.take()

    clones.close(timeout=5)

    assert factory.stopped
    assert factory.left == ([future.result() for future in factory.futures[1:]], 3)


def test_a_clone_that_failed_or_was_cancelled_is_not_left(
    make: Callable[..., Clones], factory: FakeFactory
) -> None:
    """Only existing clones can be left."""
    clones = make(ahead=3)
    cancelled: Future[Clone] = Future()
    cancelled.cancel()
    cancelled.set_running_or_notify_cancel()  # As asyncio does.
    clones._ahead[0], clones._ahead[1] = cancelled, done(refusal())

    clones.close(timeout=5)

    assert factory.left == ([factory.futures[2].result()], 2)


def test_the_shared_clone_is_dropped_at_the_end(
    make: Callable[..., Clones], factory: FakeFactory, found: list[Finding]
) -> None:
    """A finding about its last test is still reported."""
    clones = make()
    shared = clones.borrow()
    clones.restore(shared, "a test")
    factory.visited = 0
    other = clones.borrow()
    factory.visited = 1
    clones.restore(other, "the last test")

    clones.close(timeout=0.05)

    assert [each.test for each in found] == ["the last test"]
    assert list(factory.drops) == [shared.clone]


def closing(clones: Clones, *, timeout: float) -> threading.Event:
    """Begin to close *clones* in a thread, and return what is set when that has ended."""
    closed = threading.Event()

    def close() -> None:
        clones.close(timeout=timeout)
        closed.set()

    threading.Thread(target=close, daemon=True).start()
    return closed


def test_closing_waits_for_the_drops_to_end(
    make: Callable[..., Clones], factory: FakeFactory
) -> None:
    """If they end in time."""
    clones = make()
    clone = clones.take()
    clones.give_back(clone, "a test")

    closed = closing(clones, timeout=30)

    assert not closed.wait(0.05)
    factory.drops[clone].set_result([])
    assert closed.wait(5)


def test_closing_waits_no_longer_than_its_timeout(
    make: Callable[..., Clones], factory: FakeFactory
) -> None:
    """The next run takes care of the rest."""
    factory.waits = True
    clones = make()

    closed = closing(clones, timeout=0.05)

    assert closed.wait(5)
    assert factory.left == ([], 2)


# Saved


def test_the_last_databases_of_failed_tests_are_saved_and_reported_at_the_end(
    make: Callable[..., Clones], factory: FakeFactory, found: list[Finding]
) -> None:
    """Older ones are dropped under their new names, and not reported."""
    clones = make(keep=2)
    taken = [clones.take() for _ in range(4)]
    for number, clone in enumerate(taken):
        clones.save(clone, f"test {number}")
    names = [each.name._replace(state=State.SAVED) for each in taken]
    assert [each.name for each in factory.drops] == names[:2]
    assert found == []
    for drop in factory.drops.values():
        drop.set_result([])

    clones.close(timeout=5)

    assert found == [Finding(f"test {n}", saved=str(names[n])) for n in (2, 3)]


def test_a_test_that_is_run_again_saves_one_database(
    make: Callable[..., Clones], factory: FakeFactory
) -> None:
    """That of its last attempt; the databases of other tests stay."""
    clones = make(keep=2)
    taken = [clones.take() for _ in range(4)]
    for test, clone in zip(["one", "two", "two", "two"], taken, strict=True):
        clones.save(clone, test)

    names = [each.name._replace(state=State.SAVED) for each in taken]
    assert [each.name for each in factory.drops] == names[1:3]


def test_a_database_that_can_not_be_saved_is_reported_with_the_reason(
    make: Callable[..., Clones], factory: FakeFactory, found: list[Finding]
) -> None:
    """It takes no place."""
    clones = make(keep=2)
    taken = [clones.take() for _ in range(3)]
    clones.save(taken[0], "one")
    factory.fails = [CloneFailed.not_saved(name=str(taken[1].name), cause="it is gone")]

    clones.save(taken[1], "two")
    clones.save(taken[2], "three")

    assert [each.test for each in found] == ["two"]
    assert found[0].trouble.endswith("of a failed test. it is gone")
    assert factory.drops == {}


# The factory


class FullServer:
    """A connection to a server that has no other connection to spare."""

    is_connected = True

    async def fetch(self, query: str) -> list[dict[str, Any]]:
        """Return one holder; refuse other queries."""
        if query == sql.HOLDERS:
            holder = {"database": "shop", "application": "greedy", "client": "::1"}
            return [{**holder, "connections": 99, "most": 100}]
        raise ServerFull.connections(cause="sorry, too many clients", seconds=10, holders=())


def test_a_full_server_is_reported_with_the_holders_of_its_connections() -> None:
    """And with the reason, once."""
    background = BackgroundLoop()
    databases: Any = SimpleNamespace(
        background=background,
        main=FullServer(),
        endpoint=Endpoint(host="127.0.0.1", port=1, password=""),
        may_put_back=True,
    )

    with pytest.raises(ServerFull) as caught:
        CloneFactory(databases, TEMPLATE).prepare().result(5)

    background.close()
    assert caught.value.why == "sorry, too many clients, for 10 seconds"
    assert caught.value.looked_at == ("99 of 100: greedy, from ::1, on shop",)
