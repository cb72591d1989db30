"""What is removed without being asked for: servers of runs that were killed, and unused ones.

The look at all that there is on an engine, and the removal of what nobody has used for days, is
done by a process of its own: no run waits for it, and a run that reuses its servers imports
nothing for it.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from pytest_warmstack import originals, server_specs
from pytest_warmstack import servers as runtimes
from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.servers.errors import RuntimeUnavailable
from pytest_warmstack.servers.identity import Label, Project
from pytest_warmstack.servers.model import (
    NotOurs,
    NotReady,
    OwnRuntime,
    RunContext,
    ServerInfo,
    in_use,
)
from pytest_warmstack.servers.processes import Process
from pytest_warmstack.settings import NEVER, RuntimeName, Settings

OWN: Final = (RuntimeName.DOCKER, RuntimeName.EMBEDDED)
"""The runtimes that run servers themselves."""

RUN_CONTEXT: Final = RunContext(
    project=Project(path=""), run="", owner=Process.current(), keep=False, start_timeout=10.0
)
"""For whom a runtime works that only looks and removes: nobody."""

REMOVE_TIMEOUT: Final = 60.0
"""Seconds that the servers of a run may take to be removed at its end."""

_DEADLINE: Final = 120
"""Seconds that the process in the background may take for all."""


def tidy(runtime: OwnRuntime, run: str, idle: float) -> list[str]:
    """Remove the servers of *run*, and those of runs whose owner has ended without doing so.

    Returns a line for each that could not be removed: that is no failure of the tests. Kept servers
    that may have been unused for *idle* seconds are looked at in the background.
    """
    try:
        listed = runtime.list()
    except WarmstackError as error:
        return [f"could not look for servers to remove: {error.line}"]
    doomed = [found for found in listed if found.labels.get(Label.RUN) == run or found.orphaned]
    silent = f"no answer within {REMOVE_TIMEOUT:g} seconds"
    troubles = {found.name: silent for found in doomed}

    def remove(found: ServerInfo) -> None:
        try:
            runtime.remove(found)
        except WarmstackError as error:
            troubles[found.name] = error.line
        else:
            del troubles[found.name]

    # Side by side: to stop one takes an engine a few tenths of a second.
    threads = [originals.Thread(target=remove, args=(found,), daemon=True) for found in doomed]
    for thread in threads:
        thread.start()
    if any(found.kept and is_old(found, idle) for found in listed):
        begin(idle)
    deadline = originals.monotonic() + REMOVE_TIMEOUT
    for thread in threads:
        thread.join(max(deadline - originals.monotonic(), 0))
    return [f"could not remove {name}: {why}" for name, why in sorted({**troubles}.items())]


def tidy_all(
    used: Collection[str], maybe: Collection[str], run_context: RunContext, idle: float
) -> list[str]:
    """Do `tidy` for the run of *run_context* on each runtime that it *used*, or *maybe* has.

    Of the latter, one that can't be reached is no trouble.
    """
    troubles = []
    for name in sorted({*used, *maybe}):
        try:
            runtime = runtimes.make(name, run_context)
        except RuntimeUnavailable as refusal:
            if name in used:
                troubles.append(f"could not look for servers to remove: {refusal.line}")
            continue
        try:
            troubles += tidy(runtime, run_context.run, idle)
        finally:
            runtime.close()
    return troubles


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
        for runtime, listed in reachable(lambda _name, _refusal: None):
            for found in listed:
                # The next one is not to suffer from what is wrong with this one.
                with suppress(WarmstackError):
                    if found.orphaned or (found.kept and is_idle(runtime, found, idle, background)):
                        runtime.remove(found)
    finally:
        background.close()


def is_old(found: ServerInfo, seconds: float) -> bool:
    """Tell whether a server was made more than *seconds* ago: else it can't be unused so long."""
    return originals.now() - found.since > seconds


def is_idle(
    runtime: OwnRuntime, found: ServerInfo, seconds: float, background: BackgroundLoop
) -> bool:
    """Tell whether nobody uses a kept server, and nobody has for *seconds*.

    One that has stopped has lost its data, and is as old as it is. One that runs and does not
    answer may be in use.
    """
    if not is_old(found, seconds):
        return False
    if not found.running:
        return True
    try:
        client = runtime.connect(server_specs.make(found.service, Settings(), background), found)
    except (NotReady, NotOurs, WarmstackError):
        return False
    try:
        return not client.users() and originals.now() - (client.used() or found.since) > seconds
    finally:
        client.close()


def is_live(runtime: OwnRuntime, found: ServerInfo, background: BackgroundLoop) -> bool:
    """Tell whether a run that may still be in progress owns the server, or uses it."""
    if not found.kept:
        return not found.orphaned
    return in_use(runtime, server_specs.make(found.service, Settings(), background), found)


def reachable(
    refused: Callable[[str, WarmstackError], None],
) -> Iterator[tuple[OwnRuntime, Sequence[ServerInfo]]]:
    """Yield each runtime that can be asked here, with its servers; tell *refused* of the others."""
    for name in OWN:
        try:
            runtime = runtimes.make(name, RUN_CONTEXT)
        except WarmstackError as refusal:
            refused(name, refusal)
            continue
        try:
            try:
                listed = runtime.list()
            except WarmstackError as refusal:
                refused(name, refusal)
                continue
            yield runtime, listed
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
