"""Clones for tests, made and dropped by somebody who only pretends to."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest

from pytest_warmstack.identity import DatabaseName, State
from pytest_warmstack.postgres.clones import Clone, Clones

TEMPLATE = DatabaseName(State.TEMPLATE, "0123456789abcdef")


class FakeMaker:
    """Makes names in place of databases, and leaves every drop unfinished until it is told."""

    def __init__(self) -> None:
        self.templates: list[DatabaseName] = []
        self.going: dict[DatabaseName, Future[None]] = {}

    def clone(self, template: DatabaseName) -> DatabaseName:
        """Return a new name."""
        self.templates.append(template)
        return DatabaseName.new(State.IN_USE, template.fingerprint)

    def drop_later(self, name: DatabaseName) -> Future[None]:
        """Return the future of a drop that has not ended."""
        self.going[name] = Future()
        return self.going[name]


@pytest.fixture
def maker() -> FakeMaker:
    """A maker of names."""
    return FakeMaker()


@pytest.fixture
def clones(maker: FakeMaker) -> Clones:
    """Clones made by it."""
    return Clones(maker, TEMPLATE, lambda name: f"postgresql://host/{name}")


def test_each_test_takes_a_clone_of_its_own(clones: Clones, maker: FakeMaker) -> None:
    """No two clones have the same name, and all are made of the template."""
    taken = [clones.take() for _ in range(10)]

    assert len({clone.name for clone in taken}) == 10
    assert all(clone.name.state is State.IN_USE for clone in taken)
    assert maker.templates == [TEMPLATE] * 10


def test_a_clone_that_was_given_back_is_not_given_out_again(clones: Clones) -> None:
    """What one test left in its database, no other test finds."""
    used = clones.take()
    clones.give_back(used)

    assert clones.take().name != used.name


def test_a_clone_has_the_url_of_its_own_database(clones: Clones) -> None:
    """The URL leads to the database that the clone names."""
    clone = clones.take()

    assert clone == Clone(clone.name, f"postgresql://host/{clone.name}")


def test_giving_back_does_not_wait_for_the_drop(clones: Clones, maker: FakeMaker) -> None:
    """The drop has begun, and has not ended, when the next test may begin."""
    clone = clones.take()

    clones.give_back(clone)

    assert list(maker.going) == [clone.name]
    assert not maker.going[clone.name].done()


def closing(clones: Clones, *, timeout: float) -> threading.Event:
    """Begin to close *clones* in a thread, and return what is set when that has ended."""
    closed = threading.Event()

    def close() -> None:
        clones.close(timeout=timeout)
        closed.set()

    threading.Thread(target=close, daemon=True).start()
    return closed


def test_closing_waits_for_the_drops_to_end(clones: Clones, maker: FakeMaker) -> None:
    """The end of the run comes after the last drop, when that ends in time."""
    clone = clones.take()
    clones.give_back(clone)

    closed = closing(clones, timeout=30)

    assert not closed.wait(0.02)
    maker.going[clone.name].set_result(None)
    assert closed.wait(5)


def test_closing_waits_no_longer_than_it_may(clones: Clones) -> None:
    """A drop that does not end is left to the next run."""
    clones.give_back(clones.take())

    closed = closing(clones, timeout=0.05)

    assert not closed.wait(0.02)
    assert closed.wait(5)


def test_a_drop_that_failed_does_not_fail_the_close(clones: Clones, maker: FakeMaker) -> None:
    """A server that is gone has no clones to drop."""
    clone = clones.take()
    clones.give_back(clone)
    maker.going[clone.name].set_exception(OSError("gone"))

    clones.close(timeout=1)


def test_closing_without_a_clone_returns_at_once(clones: Clones) -> None:
    """A run that took none has none to wait for."""
    clones.close(timeout=30)
