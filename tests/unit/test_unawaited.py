"""Coroutines that a client made, and what became of them."""

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
    """What the client of a test has begun."""
    return Begun()


def test_what_is_not_awaited_is_forgotten_once(begun: Begun) -> None:
    """It is closed, so that Python warns of nothing."""
    coroutine = watch(Client(), "it", begun).ask()

    assert begun.forgotten() == ["it.ask()"]
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
    assert begun.forgotten() == []


def test_what_is_awaited_is_not_kept(begun: Begun) -> None:
    """A test of a thousand statements has one coroutine to look at."""
    client = watch(Client(), "it", begun)

    assert [asyncio.run(client.ask()) for _ in range(1000)] == [42] * 1000
    assert len(begun._all) == 1
    assert begun.forgotten() == []


def test_what_a_task_has_is_not_forgotten(begun: Begun) -> None:
    """The loop may run again, as one of a wider scope does."""
    client = watch(Client(), "it", begun)
    loop = asyncio.new_event_loop()
    task = loop.create_task(client.ask())

    assert begun.forgotten() == []
    assert loop.run_until_complete(task) == 42
    loop.close()


def test_a_client_stays_what_it_is(begun: Begun) -> None:
    """Its class has the same name and can be recognised; its methods are asynchronous or not."""
    client = watch(Client(), "it", begun)

    assert isinstance(client, Client)
    assert repr(type(client)) == repr(Client)
    assert type(client) is type(watch(Client(), "other", begun))
    assert asyncio.iscoroutinefunction(client.ask)
    assert not asyncio.iscoroutinefunction(client.name)
    assert client.name() == "client"
