"""Finds what a test began with an asynchronous client, and never awaited.

Such a test passes although nothing of it happened: Python only warns of the coroutine.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Begun:
    """The coroutines of a test's clients that have not begun to run."""

    def __init__(self) -> None:
        self._all: list[tuple[str, Coroutine[Any, Any, Any]]] = []

    def note(self, name: str, coroutine: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        """Return *coroutine*, which calling *name* has made."""
        self._all = [each for each in self._all if _is_new(each[1])]
        self._all.append((name, coroutine))
        return coroutine

    def forgotten(self) -> list[str]:
        """Return the names of those that nothing awaits, and close these."""
        names = []
        for name, coroutine in self._all:
            if _is_new(coroutine) and not _is_scheduled(coroutine):
                names.append(name)
                coroutine.close()
        self._all.clear()
        return names


def watch(client: T, name: str, begun: Begun) -> T:
    """Have *client*, which the test knows as *name*, tell *begun* of the coroutines it makes."""
    # A class, since functions on the client itself would keep it alive in a circle.
    cls: type[Any] = type(client)
    client.__class__ = _watched(cls)  # type: ignore[arg-type] # a class has a hash
    vars(client)["_warmstack_begun"] = name, begun
    return client


@functools.cache
def _watched(cls: type[Any]) -> type[Any]:
    """Return a class like *cls* whose public methods tell of the coroutines that they make."""
    methods = {
        name: _noted(name, method)
        for name in dir(cls)
        if not name.startswith("_") and inspect.iscoroutinefunction(method := getattr(cls, name))
    }
    own = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return type(cls.__name__, (cls,), own | methods)


def _noted(method: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def noted(self: Any, *args: Any, **kwargs: Any) -> Any:
        name, begun = self._warmstack_begun
        shown = f"{method}()"
        if method == "execute_command" and args:
            # All commands of Redis pass through this one.
            command = str(args[0]).lower()
            shown = f"{command}()" if hasattr(self, command) else f"{method}({args[0]!r})"
        return begun.note(f"{name}.{shown}", original(self, *args, **kwargs))

    # Who makes a mock of the client asks which of its methods are asynchronous.
    if sys.version_info >= (3, 12):
        inspect.markcoroutinefunction(noted)
    else:
        noted._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]  # noqa: SLF001
    return noted


def _is_new(coroutine: Coroutine[Any, Any, Any]) -> bool:
    return inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED


def _is_scheduled(coroutine: Coroutine[Any, Any, Any]) -> bool:
    """Tell whether a task has *coroutine*, and its loop ended before the task began."""
    return any(isinstance(each, asyncio.Task) for each in gc.get_referrers(coroutine))
