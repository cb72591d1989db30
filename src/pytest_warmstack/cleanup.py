"""What is removed without being asked for: servers of killed runs, and unused servers.

A process of its own lists everything and removes what was unused for days: no run waits for it,
and a run that reuses its servers imports nothing for it.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, suppress
from typing import Final

from pytest_warmstack import originals, server_specs
from pytest_warmstack import servers as runtimes
from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.options import NEVER, RuntimeName, Settings
from pytest_warmstack.servers.errors import RuntimeUnavailable
from pytest_warmstack.servers.identity import Daemon, Label, Process, Project
from pytest_warmstack.servers.model import NotOurs, NotReady, OwnRuntime, RunContext, ServerInfo

OWN: Final = (RuntimeName.DOCKER, RuntimeName.EMBEDDED)
"""The runtimes that run servers themselves."""

RUN_CONTEXT: Final = RunContext(
    project=Project(path=""), run="", owner=Process.current(), keep=False, start_timeout=10.0
)
"""The context of a runtime that only lists and removes servers."""

REMOVE_TIMEOUT: Final = 60.0
"""Seconds that the removal of a run's servers may take at its end."""

_SWEEP_TIMEOUT: Final = 120
"""Seconds after which the process in the background is killed."""

Refused = Callable[[str, WarmstackError], None]
"""A function that takes the name of a runtime which can't be reached, and why."""


def tidy(runtime: OwnRuntime, run: str, idle: float) -> list[str]:
    """Remove the servers of *run*, and those of runs whose owner was killed.

    Returns a line for each server that could not be removed: that doesn't fail the tests. If kept
    servers may be unused for *idle* seconds, begin to look at them in the background.
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

    # All at once: an engine takes some tenths of a second to stop a server.
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
    """Call `tidy` for each runtime that the run *used*, and for those that it *maybe* used.

    Of the latter, one that can't be reached is not reported.
    """
    troubles = []
    for name in sorted({*used, *maybe}):
        try:
            runtime = runtimes.make(name, run_context)
        except RuntimeUnavailable as refusal:
            if name in used:
                troubles.append(f"could not look for servers to remove: {refusal.line}")
            continue
        with closing(runtime):
            troubles += tidy(runtime, run_context.run, idle)
    return troubles


def begin(idle: float) -> None:
    """Begin to `sweep` in a process in the background."""
    if idle != NEVER:
        with suppress(OSError):
            Daemon([sys.executable, "-P", "-m", __name__, str(idle)], cwd="/")


def sweep(idle: float) -> None:
    """Remove every server that is orphaned, or kept and not used for *idle* seconds."""
    with closing(BackgroundLoop()) as background:
        for runtime, listed in reachable(lambda _name, _refusal: None):
            for found in listed:
                # What is wrong with one server must not stop the others' removal.
                with suppress(WarmstackError):
                    if found.orphaned or (found.kept and is_idle(runtime, found, idle, background)):
                        runtime.remove(found)


def is_old(found: ServerInfo, seconds: float) -> bool:
    """Tell whether a server was made more than *seconds* ago, so that it can be unused so long."""
    return originals.now() - found.since > seconds


def is_idle(
    runtime: OwnRuntime, found: ServerInfo, seconds: float, background: BackgroundLoop
) -> bool:
    """Tell whether a kept server has no users now and had none for *seconds*.

    A server that has ended has lost its data: only its age counts. A server that runs and doesn't
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
    with closing(client):
        return not client.users() and originals.now() - (client.used() or found.since) > seconds


def is_live(runtime: OwnRuntime, found: ServerInfo, background: BackgroundLoop) -> bool:
    """Tell whether a run that may still be in progress owns the server, or uses it."""
    if not found.kept:
        return not found.orphaned
    from pytest_warmstack.servers.lifecycle import in_use

    return in_use(runtime, server_specs.make(found.service, Settings(), background), found)


def reachable(refused: Refused) -> Iterator[tuple[OwnRuntime, Sequence[ServerInfo]]]:
    """Yield each runtime that answers, with its servers; call *refused* for the others."""
    for name in OWN:
        try:
            runtime = runtimes.make(name, RUN_CONTEXT)
        except WarmstackError as refusal:
            refused(name, refusal)
            continue
        with closing(runtime):
            try:
                listed = runtime.list()
            except WarmstackError as refusal:
                refused(name, refusal)
            else:
                yield runtime, listed


def main(arguments: Sequence[str]) -> None:
    """Sweep, or end after `_SWEEP_TIMEOUT` whatever happens: nothing else watches this process."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(_SWEEP_TIMEOUT)
    sweep(float(arguments[0]))
    signal.alarm(0)


if __name__ == "__main__":
    main(sys.argv[1:])
