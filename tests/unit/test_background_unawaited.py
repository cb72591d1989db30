"""Coroutines of a test's clients that the test never awaited."""

from __future__ import annotations

import asyncio
import inspect

import pytest

from pytest_warmstack.background import Begun, watch


class Client:
    """A client with one asynchronous method."""

    async def ask(self) -> int:
        """Return an answer."""
        return 42

    def name(self) -> str:
        """Return what needs no loop."""
        return "client"


@pytest.fixture
def begun() -> Begun:
    """The coroutines of a test's client."""
    return Begun()


def test_a_coroutine_that_is_not_awaited_is_reported_once(begun: Begun) -> None:
    """It is closed, so that Python doesn't warn of it."""
    coroutine = watch(Client(), "it", begun).ask()

    assert begun.forgotten() == ["it.ask()"]
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
    assert begun.forgotten() == []


def test_an_awaited_coroutine_is_not_kept(begun: Begun) -> None:
    """After a thousand statements, one coroutine is left."""
    client = watch(Client(), "it", begun)

    assert [asyncio.run(client.ask()) for _ in range(1000)] == [42] * 1000
    assert len(begun._all) == 1
    assert begun.forgotten() == []


def test_a_coroutine_of_a_task_is_not_reported(begun: Begun) -> None:
    """Its loop may run again, as a loop of a wider scope does."""
    client = watch(Client(), "it", begun)
    loop = asyncio.new_event_loop()
    task = loop.create_task(client.ask())

    assert begun.forgotten() == []
    assert loop.run_until_complete(task) == 42
    loop.close()


def test_a_client_stays_what_it_is(begun: Begun) -> None:
    """A watched client is an instance of its class, and its coroutine functions are recognised."""
    client = watch(Client(), "it", begun)

    assert isinstance(client, Client)
    assert repr(type(client)) == repr(Client)
    assert type(client) is type(watch(Client(), "other", begun))
    assert asyncio.iscoroutinefunction(client.ask)
    assert not asyncio.iscoroutinefunction(client.name)
    assert client.name() == "client"
