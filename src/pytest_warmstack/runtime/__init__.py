"""Where servers run: Docker, or native processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from pytest_warmstack.errors import RuntimeUnavailable
from pytest_warmstack.identity import Label
from pytest_warmstack.runtime.base import Household, Runtime, ServerSpec
from pytest_warmstack.settings import RuntimeName


def make(name: str, household: Household) -> Runtime:
    """Return the runtime called *name*, which only now is imported.

    Raises `RuntimeUnavailable` when it can't be reached at all.
    """
    if name == RuntimeName.DOCKER:
        from pytest_warmstack.runtime.docker import Docker

        return Docker(household)
    from pytest_warmstack.runtime.embedded import Embedded

    return Embedded(household)


def choose(
    name: RuntimeName,
    household: Household,
    specs: Sequence[ServerSpec[Any]],
    say: Callable[[str], None],
) -> tuple[Runtime, str]:
    """Return the runtime for *specs*, and why it is this one.

    `auto` takes Docker when its engine answers and has, or can pull, the images; else native
    processes. A runtime that was named never gives way to another: it raises
    `RuntimeUnavailable`.
    """
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


def tidy(runtime: Runtime, run: str) -> None:
    """Remove the servers of *run*, and those of runs whose owner has ended without doing so."""
    doomed = [
        found for found in runtime.list() if found.labels.get(Label.RUN) == run or found.orphaned
    ]
    # Side by side: to stop one takes an engine a few tenths of a second.
    threads = [threading.Thread(target=runtime.remove, args=(found,)) for found in doomed]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def tidy_all(names: Sequence[str], household: Household) -> None:
    """Do `tidy` for the run of *household* on each runtime in *names* that can be reached."""
    for name in names:
        with suppress(RuntimeUnavailable):
            runtime = make(name, household)
            try:
                tidy(runtime, household.run)
            finally:
                runtime.close()
