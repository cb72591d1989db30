"""What is removed without being asked for: servers of runs that were killed, and unused ones.

The look at all that there is on an engine, and the removal of what nobody has used for days, is
done by a process of its own: no run waits for it, and a run that reuses its servers imports
nothing for it.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from pytest_warmstack import originals, specs
from pytest_warmstack import runtime as runtimes
from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.errors import RuntimeUnavailable, ServerFailed, ServerFull
from pytest_warmstack.identity import Label, Project
from pytest_warmstack.processes import Process
from pytest_warmstack.runtime.base import (
    Found,
    Household,
    NotOurs,
    NotReady,
    OwnRuntime,
    in_use,
)
from pytest_warmstack.settings import NEVER, RuntimeName, Settings

OWN: Final = (RuntimeName.DOCKER, RuntimeName.EMBEDDED)
"""The runtimes that run servers themselves."""

HOUSEHOLD: Final = Household(
    project=Project(path=""), run="", owner=Process.current(), keep=False, start_timeout=10.0
)
"""For whom a runtime works that only looks and removes: nobody."""

_DEADLINE: Final = 120
"""Seconds that the process in the background may take for all."""


def tidy(runtime: OwnRuntime, run: str, idle: float) -> None:
    """Remove the servers of *run*, and those of runs whose owner has ended without doing so.

    Kept servers that may have been unused for *idle* seconds are looked at in the background.
    """
    listed = runtime.list()
    doomed = [found for found in listed if found.labels.get(Label.RUN) == run or found.orphaned]
    # Side by side: to stop one takes an engine a few tenths of a second.
    threads = [originals.Thread(target=runtime.remove, args=(found,)) for found in doomed]
    for thread in threads:
        thread.start()
    if any(found.kept and is_old(found, idle) for found in listed):
        begin(idle)
    for thread in threads:
        thread.join()


def tidy_all(names: Sequence[str], household: Household, idle: float) -> None:
    """Do `tidy` for the run of *household* on each runtime in *names* that can be reached."""
    for name in names:
        with suppress(RuntimeUnavailable):
            runtime = runtimes.make(name, household)
            try:
                tidy(runtime, household.run, idle)
            finally:
                runtime.close()


def begin(idle: float) -> None:
    """Begin to remove, in the background, what is orphaned or was not used for *idle* seconds.

    The process has its own group, so that it is not interrupted with the run, and a deadline.
    """
    if idle == NEVER:
        return
    with suppress(OSError):
        _Background(
            [sys.executable, "-P", "-m", __name__, str(idle)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )


class _Background(subprocess.Popen[bytes]):
    """A process that may outlive this one."""

    def __del__(self) -> None:
        """Say nothing: the usual warning about a process that still runs is not for this one."""


def sweep(idle: float) -> None:
    """Remove every server that is orphaned, or kept and not used for *idle* seconds."""
    background = BackgroundLoop()
    try:
        for runtime in reachable(lambda _name, _refusal: None):
            for found in runtime.list():
                # The next one is not to suffer from what is wrong with this one.
                with suppress(ServerFailed, OSError):
                    if found.orphaned or (found.kept and is_idle(runtime, found, idle, background)):
                        runtime.remove(found)
    finally:
        background.close()


def is_old(found: Found, seconds: float) -> bool:
    """Tell whether a server was made more than *seconds* ago: else it can't be unused so long."""
    return originals.now() - found.since > seconds


def is_idle(runtime: OwnRuntime, found: Found, seconds: float, background: BackgroundLoop) -> bool:
    """Tell whether nobody uses a kept server, and nobody has for *seconds*.

    One that has stopped has lost its data, and is as old as it is. One that runs and does not
    answer may be in use.
    """
    if not is_old(found, seconds):
        return False
    if not found.running:
        return True
    try:
        client = runtime.connect(specs.make(found.service, Settings(), background), found)
    except (NotReady, NotOurs, ServerFull, ServerFailed):
        return False
    try:
        return not client.users() and originals.now() - (client.used() or found.since) > seconds
    finally:
        client.close()


def is_live(runtime: OwnRuntime, found: Found, background: BackgroundLoop) -> bool:
    """Tell whether a run that may still be in progress owns the server, or uses it."""
    if not found.kept:
        return not found.orphaned
    return in_use(runtime, specs.make(found.service, Settings(), background), found)


def reachable(refused: Callable[[str, RuntimeUnavailable], None]) -> Iterator[OwnRuntime]:
    """Yield each runtime of ours that can be asked here; tell *refused* of the others."""
    for name in OWN:
        try:
            runtime = runtimes.make(name, HOUSEHOLD)
        except RuntimeUnavailable as refusal:
            refused(name, refusal)
            continue
        try:
            yield runtime
        finally:
            runtime.close()


@contextmanager
def _deadline(seconds: int) -> Iterator[None]:
    """End this process, whatever it is doing, after *seconds*: nobody looks after it."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)
    yield
    signal.alarm(0)


def main(arguments: Sequence[str]) -> None:
    """Do what `begin` has begun."""
    with _deadline(_DEADLINE):
        sweep(float(arguments[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
