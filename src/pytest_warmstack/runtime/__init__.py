"""Where servers run: in Docker, as native processes, or wherever somebody else runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pytest_warmstack.errors import RuntimeUnavailable
from pytest_warmstack.runtime.base import Household, OwnRuntime, Runtime, ServerSpec
from pytest_warmstack.settings import RuntimeName


def make(name: str, household: Household) -> OwnRuntime:
    """Return the runtime called *name*, which only now is imported.

    Raises `RuntimeUnavailable` when it can't be reached at all.
    """
    if name == RuntimeName.DOCKER:
        try:
            from pytest_warmstack.runtime.docker import Docker
        except ImportError as error:
            raise RuntimeUnavailable.no_package(cause=str(error)) from error
        return Docker(household)
    from pytest_warmstack.runtime.embedded import Embedded

    return Embedded(household)


def elsewhere(household: Household, say: Callable[[str], None]) -> Runtime:
    """Return the runtime for servers that somebody else runs."""
    from pytest_warmstack.runtime.external import External

    return External(household, say)


def choose(
    name: RuntimeName,
    household: Household,
    specs: Sequence[ServerSpec[Any]],
    say: Callable[[str], None],
) -> tuple[OwnRuntime, str]:
    """Return the runtime for *specs*, none of which has a URL, and why it is this one.

    `auto` takes Docker when its engine answers and has, or can pull, the images; else native
    processes. A runtime that was named never gives way to another: it raises
    `RuntimeUnavailable`.
    """
    if name is RuntimeName.EXTERNAL:
        raise RuntimeUnavailable.no_url(title=specs[0].title, variable=specs[0].url_variable)
    names = (RuntimeName.DOCKER, RuntimeName.EMBEDDED) if name is RuntimeName.AUTO else (name,)
    refusals: list[RuntimeUnavailable] = []
    for candidate in names:
        try:
            runtime = make(candidate, household)
            try:
                runtime.check(specs, say)
            except BaseException:
                runtime.close()
                raise
        except RuntimeUnavailable as refusal:
            if name is not RuntimeName.AUTO:
                raise
            refusals.append(refusal)
        else:
            return runtime, "; ".join(refusal.brief_reason for refusal in refusals)
    raise RuntimeUnavailable.nothing(refusals)
