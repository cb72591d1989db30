"""The background loop: results, errors, threads and its end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest

from pytest_warmstack.background import BackgroundLoop

NAME = "warmstack-background"


OTHERS: set[threading.Thread] = set()


def threads() -> list[threading.Thread]:
    """Return the threads of the background loops of this test."""
    return [each for each in threading.enumerate() if each.name == NAME and each not in OTHERS]


@pytest.fixture(autouse=True)
def others() -> None:
    """Note the loop of the run itself, which tests with a database use."""
    OTHERS.clear()
    OTHERS.update(threads())


@pytest.fixture
def background() -> Iterator[BackgroundLoop]:
    """A background loop; its thread is gone after the test."""
    background = BackgroundLoop()
    yield background
    background.close()
    assert threads() == []


class Rest:
    """A coroutine function that never ends by itself, and tells how it ended."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.cancelled = threading.Event()

    async def __call__(self) -> None:
        """Wait for a cancellation."""
        self.began.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


async def add(one: int, *, other: int) -> int:
    """Return the sum."""
    return one + other


async def fail() -> None:
    """Raise an error."""
    raise KeyError("that is missing")


async def here() -> tuple[str, asyncio.AbstractEventLoop]:
    """Return the name of the thread, and the loop, that this runs in."""
    return threading.current_thread().name, asyncio.get_running_loop()


def test_a_call_returns_what_the_coroutine_returned(background: BackgroundLoop) -> None:
    """Arguments go in, the result comes out."""
    assert background.call(add, 1, other=2) == 3


def test_a_call_raises_what_the_coroutine_raised(background: BackgroundLoop) -> None:
    """The error arrives as it was, and the loop goes on."""
    with pytest.raises(KeyError, match="that is missing"):
        background.call(fail)

    assert background.call(add, 1, other=2) == 3


def test_every_call_runs_on_one_loop_in_one_thread(background: BackgroundLoop) -> None:
    """A connection that one call made can be used by the next."""
    first, second = background.call(here), background.call(here)

    assert first == second
    assert first[0] == NAME
    assert len(threads()) == 1


def test_a_background_loop_that_is_not_used_has_no_thread() -> None:
    """The thread starts with the first call."""
    background = BackgroundLoop()
    assert threads() == []

    background.close()


def test_a_background_loop_can_be_used_from_inside_a_running_loop(
    background: BackgroundLoop,
) -> None:
    """An asynchronous test has a loop of its own, which is left alone."""

    async def test() -> tuple[int, bool]:
        return background.call(add, 1, other=2), background.call(here)[
            1
        ] is asyncio.get_running_loop()

    assert asyncio.run(test()) == (3, False)


def test_two_calls_run_at_the_same_time(background: BackgroundLoop) -> None:
    """Two calls that wait for each other both return."""
    barrier = asyncio.Barrier(2)

    async def meet() -> bool:
        async with asyncio.timeout(5):
            await barrier.wait()
        return True

    other: list[bool] = []
    thread = threading.Thread(target=lambda: other.append(background.call(meet)))
    thread.start()

    assert background.call(meet)
    thread.join(5)
    assert other == [True]


def test_two_threads_that_open_the_loop_together_share_one_loop(background: BackgroundLoop) -> None:
    """The first calls of two threads do not start two loops."""
    barrier = threading.Barrier(8)
    loops: list[asyncio.AbstractEventLoop] = []

    def call() -> None:
        barrier.wait(5)
        loops.append(background.call(here)[1])

    callers = [threading.Thread(target=call) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(5)

    assert len(loops) == 8
    assert len(set(loops)) == 1


def test_a_submitted_call_does_not_keep_its_caller_waiting(background: BackgroundLoop) -> None:
    """The future is there before the coroutine has ended."""
    rest = Rest()

    future = background.submit(rest)

    assert rest.began.wait(5)
    assert not future.done()


class Interrupted(BackgroundLoop):
    """A background loop whose user presses Ctrl-C while the coroutine is under way."""

    def submit(  # type: ignore[override]
        self, function: Callable[..., Coroutine[Any, Any, Any]], *args: Any, **kwargs: Any
    ) -> Future[Any]:
        """Return a future whose result is not waited for to the end."""
        future = super().submit(function, *args, **kwargs)

        def interrupt(timeout: float | None = None) -> None:
            assert isinstance(function, Rest)
            assert function.began.wait(5)
            raise KeyboardInterrupt

        future.result = interrupt  # type: ignore[method-assign, assignment]
        return future


def test_an_interrupted_call_cancels_the_coroutine() -> None:
    """It doesn't go on after Ctrl-C."""
    background, rest = Interrupted(), Rest()

    with pytest.raises(KeyboardInterrupt):
        background.call(rest)

    assert rest.cancelled.wait(5)
    background.close()


def test_closing_cancels_what_still_runs_and_ends_the_thread(background: BackgroundLoop) -> None:
    """Nothing that was submitted outlives the loop."""
    rest = Rest()
    future = background.submit(rest)
    assert rest.began.wait(5)

    background.close()

    assert rest.cancelled.is_set()
    assert future.cancelled()
    assert threads() == []


def test_closing_closes_the_loop(background: BackgroundLoop) -> None:
    """No socket pair of the loop is left open."""
    _, loop = background.call(here)

    background.close()

    assert loop.is_closed()


def test_closing_twice_is_fine(background: BackgroundLoop) -> None:
    """The second time there is nothing to do."""
    background.call(add, 1, other=2)

    background.close()
    background.close()

    assert threads() == []


def test_closing_ends_generators_that_were_left_half_way(background: BackgroundLoop) -> None:
    """An asynchronous generator on the loop gets to its end."""
    ended = threading.Event()
    kept: list[Any] = []

    async def generate() -> Any:
        try:
            yield 1
        finally:
            ended.set()

    async def begin() -> int:
        kept.append(generate())
        return int(await anext(kept[0]))

    assert background.call(begin) == 1
    background.close()

    assert ended.is_set()


def test_cancelling_ends_the_waits_of_other_threads(background: BackgroundLoop) -> None:
    """And the loop goes on."""

    async def wait() -> None:
        await asyncio.Event().wait()

    async def answer() -> int:
        return 7

    waiting = background.submit(wait)
    background.call(answer)
    background.cancel()

    with pytest.raises(CancelledError):
        waiting.result(10)
    assert background.call(answer) == 7
