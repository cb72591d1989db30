"""The automatic clean-up: it removes servers of killed runs, and servers that are no longer used.

A background process lists all servers and removes those that were unused for days. No run waits
for it, and a run that reuses its servers imports nothing for it.
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
from pytest_warmstack.options import RuntimeName, Settings
from pytest_warmstack.servers.errors import RuntimeUnavailable
from pytest_warmstack.servers.identity import Daemon, Label, Process, Project
from pytest_warmstack.servers.model import NotOurs, NotReady, OwnRuntime, RunContext, ServerInfo

OWN: Final = (RuntimeName.DOCKER, RuntimeName.EMBEDDED)
"""The runtimes that run servers themselves."""

RUN_CONTEXT: Final = RunContext(
    project=Project(path=""), run="", owner=Process.current(), keep=False, start_timeout=10.0
)
"""The context of runtimes that only list and remove servers."""

REMOVE_TIMEOUT: Final = 60.0
"""Seconds that the removal of servers may take at the end of a run."""

_SWEEP_TIMEOUT: Final = 120
"""Seconds after which the background process is killed."""

Refused = Callable[[str, WarmstackError], None]
"""A function that gets the name of a runtime that can't be reached, and the error."""


def tidy(runtime: OwnRuntime, run: str, idle: float) -> list[str]:
    """Remove the servers of *run*, and those of runs whose owner was killed.

    Returns a line for each server that could not be removed: that doesn't fail the tests. If a kept
    server may have been unused for *idle* seconds, start the background clean-up.
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

    # All at once: an engine takes a few tenths of a second to stop a server.
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

    If a runtime of the second kind can't be reached, that is not reported.
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
    """Start a background process that calls `sweep`."""
    with suppress(OSError):
        Daemon([sys.executable, "-P", "-m", __name__, str(idle)], cwd="/")


def sweep(idle: float) -> None:
    """Remove every orphaned server, and every kept server that was unused for *idle* seconds."""
    with closing(BackgroundLoop()) as background:
        for runtime, listed in reachable(lambda _name, _refusal: None):
            for found in listed:
                # A problem with one server must not keep the others from being removed.
                with suppress(WarmstackError):
                    if found.orphaned or (found.kept and is_idle(runtime, found, idle, background)):
                        runtime.remove(found)


def is_old(found: ServerInfo, seconds: float) -> bool:
    """Return whether a server is older than *seconds*, and so can have been unused for so long."""
    return originals.now() - found.since > seconds


def is_idle(
    runtime: OwnRuntime, found: ServerInfo, seconds: float, background: BackgroundLoop
) -> bool:
    """Return whether a kept server has no users now and had none for *seconds*.

    If the server has ended, its data is lost, and only its age counts. If it runs but doesn't
    answer, it may be in use.
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
    """Return whether a run that may still be in progress owns or uses the server."""
    if not found.kept:
        return not found.orphaned
    from pytest_warmstack.servers.lifecycle import in_use

    return in_use(runtime, server_specs.make(found.service, Settings(), background), found)


def reachable(refused: Refused) -> Iterator[tuple[OwnRuntime, Sequence[ServerInfo]]]:
    """Yield each runtime that answers, with its servers; call *refused* for each other one."""
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
    """Sweep; end after `_SWEEP_TIMEOUT` in any case, because nothing else watches this process."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(_SWEEP_TIMEOUT)
    sweep(float(arguments[0]))
    signal.alarm(0)


if __name__ == "__main__":
    main(sys.argv[1:])
