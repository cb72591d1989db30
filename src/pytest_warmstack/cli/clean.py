"""`warmstack clean`: removes what our labels, and the marks on our databases, say is ours."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_warmstack import cleanup, server_specs
from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.cli import words
from pytest_warmstack.cli.errors import CommandFailed, NoProject
from pytest_warmstack.cli.project import Place, here, known
from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.postgres import State
from pytest_warmstack.servers.external import External
from pytest_warmstack.servers.identity import Label, Process, Project, Service
from pytest_warmstack.servers.model import OwnRuntime, ServerInfo


@dataclass
class _Tally:
    """What was done, told line by line as it is done."""

    dry: bool
    removed: int = 0
    spared: int = 0
    failed: int = 0
    others: set[str] = field(default_factory=set)

    def remove(self, name: str, do: Callable[[], object]) -> None:
        """Remove a thing, or, in a dry run, tell that it would be."""
        try:
            if not self.dry:
                do()
        except (WarmstackError, OSError) as error:
            self.failed += 1
            text = error.why if isinstance(error, WarmstackError) else str(error)
            print(f"not removed: {name}: {text}")
        else:
            self.removed += 1
            print(f"{'would remove' if self.dry else 'removed'} {name}")

    def spare(self, name: str, why: str) -> None:
        """Tell that a thing stays."""
        self.spared += 1
        print(f"spared {name}: {why}")


def clean(options: argparse.Namespace) -> int:
    """Remove servers, and on those of somebody else our databases; 1 if anything was spared."""
    place = _place(options)
    tally = _Tally(options.dry_run)
    background = BackgroundLoop()
    try:
        for runtime, listed in cleanup.reachable(
            lambda name, refusal: print(f"not looked at: {name} ({refusal.why})", file=sys.stderr)
        ):
            _clean_own(runtime, listed, options, place.project, tally, background)
        if not options.orphans:
            _clean_external(place, options, tally, background)
    finally:
        background.close()
    if not (tally.removed or tally.spared or tally.failed):
        everywhere = options.all_projects or options.orphans
        if not (place.is_project or everywhere):
            raise NoProject.here(folder=place.project.path)
        print(f"nothing to remove{'' if everywhere else f' for {place.project.path}'}")
        if tally.others and not options.orphans:
            count = len(tally.others)
            print(f"servers of {count} other project{'s' * (count > 1)}: warmstack status")
    return 1 if tally.spared or tally.failed else 0


def _place(options: argparse.Namespace) -> Place:
    """Return the project; one whose folder is gone may have left servers all the same."""
    try:
        return known(here(options.project))
    except CommandFailed:
        path = os.path.realpath(options.project)
        for _, listed in cleanup.reachable(lambda _name, _refusal: None):
            if any(found.path == path for found in listed):
                from pytest_warmstack.options import Settings

                return Place(Project(path=path), Settings())
        raise


def _clean_own(
    runtime: OwnRuntime,
    listed: Sequence[ServerInfo],
    options: argparse.Namespace,
    project: Project,
    tally: _Tally,
    background: BackgroundLoop,
) -> None:
    for found in (*listed, *runtime.leftovers()):
        if not _is_meant(found, options, project):
            tally.others.add(found.path)
            continue
        name = words.name(found)
        if found.kind == "server":
            # One that is in use is not unused for long, and so not what was asked for.
            if not _is_old_enough(runtime, found, options.older_than, background):
                continue
            if not options.force and cleanup.is_live(runtime, found, background):
                tally.spare(name, "a run in progress uses it")
                continue
        tally.remove(name, _removal(runtime, found))


def _removal(runtime: OwnRuntime, found: ServerInfo) -> Callable[[], None]:
    return lambda: runtime.remove(found)


def _is_meant(found: ServerInfo, options: argparse.Namespace, project: Project) -> bool:
    if options.orphans:
        return found.orphaned or found.kind == "folder" or _has_lost_its_folder(found)
    return options.all_projects or found.path == project.path


def _has_lost_its_folder(found: ServerInfo) -> bool:
    """Tell whether a server's project is no longer there.

    Of one that another machine, or another container, has made, that can't be seen from here.
    """
    owner = Process.parse(found.labels.get(Label.OWNER, ""))
    return owner is not None and owner.is_near and not Path(found.path).is_dir()


def _is_old_enough(
    runtime: OwnRuntime, found: ServerInfo, seconds: float, background: BackgroundLoop
) -> bool:
    if not seconds or found.orphaned:
        return True
    return cleanup.is_idle(runtime, found, seconds, background)


def _clean_external(
    place: Place, options: argparse.Namespace, tally: _Tally, background: BackgroundLoop
) -> None:
    """Drop the databases of ours on a PostgreSQL that somebody else runs."""
    spec = server_specs.make(Service.POSTGRES, place.settings, background)
    if not spec.url:
        return
    server = External(cleanup.RUN_CONTEXT, lambda text: print(text, file=sys.stderr)).ensure(spec)
    project = None if options.all_projects else place.project.slug
    try:
        for name, dropped in _dropped(server.client, project, options):
            what = f"database {name} (external, {server.endpoint.place})"
            if dropped:
                tally.remove(what, lambda: None)
            else:
                tally.spare(what, "a run in progress uses it")
    finally:
        server.client.close()


def _dropped(
    databases: Any, project: str | None, options: argparse.Namespace
) -> Iterator[tuple[str, bool]]:
    """Drop what is meant, unless in a dry run; yield each with whether it was free."""
    from pytest_warmstack.postgres.retention import unused

    wanted = unused(databases.all(), project, options.older_than)
    if options.dry_run:
        locked = databases.locked()
        gone = [name for name in wanted if name.lock_key not in locked]
    else:
        gone = databases.drop_unlocked(wanted)
    for name in sorted(wanted, key=lambda each: (each.state is not State.TEMPLATE, str(each))):
        yield str(name), name in gone
