"""`warmstack clean`: removes the servers and databases that pytest-warmstack made."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pytest_warmstack import cleanup, server_specs
from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.cli.clients import connected
from pytest_warmstack.cli.errors import CommandFailed, NoProject
from pytest_warmstack.cli.project import Add, Place, find, name, say, unchecked
from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.options import Settings, age
from pytest_warmstack.postgres import DatabaseName, State
from pytest_warmstack.servers.external import External
from pytest_warmstack.servers.identity import Label, Process, Project, Service
from pytest_warmstack.servers.model import OwnRuntime, ServerInfo


def declare(add: Add) -> None:
    """Declare the command and its arguments."""
    clean = add(
        "clean",
        run,
        "remove servers with their data; by default those of this project",
        "Containers that pytest-warmstack didn't make are never touched, and servers that a run "
        "in progress uses are spared. The exit status is 1 if something was spared or could not be "
        "removed.",
    )
    clean.add_argument(
        "--all-projects", action="store_true", help="include the servers of every project"
    )
    clean.add_argument(
        "--orphans",
        action="store_true",
        help="remove the servers of deleted project folders and of killed runs instead",
    )
    clean.add_argument(
        "--older-than",
        type=_age,
        default=0.0,
        metavar="AGE",
        help="remove only servers that were not used for this long: 7d, 12h, 30min",
    )
    clean.add_argument(
        "--failed",
        action="store_true",
        help="drop only the saved databases of this project's failed tests; the servers stay",
    )
    clean.add_argument("--dry-run", action="store_true", help="only show what would be removed")
    clean.add_argument(
        "--force", action="store_true", help="also remove what a run in progress uses"
    )
    clean.set_defaults(parser=clean)


def _age(text: str) -> float:
    try:
        return age(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not an age such as 7d, 12h or 30min") from (
            error
        )


def run(options: argparse.Namespace) -> int:
    """Remove servers, and the plugin's databases on external servers; 1 if anything is left."""
    if options.failed and (options.all_projects or options.orphans):
        options.parser.error("--failed is for one project: leave out --all-projects and --orphans")
    place = _place(options)
    tally = _Tally(options.dry_run)
    background = BackgroundLoop()
    try:
        if options.failed:
            _drop_saved(place, options, tally, background)
            return tally.status
        for runtime, listed in cleanup.reachable(lambda name, error: say(unchecked(name, error))):
            _clean_managed(runtime, listed, options, place.project, tally, background)
        if not options.orphans:
            _clean_external(place, options, tally, background)
    finally:
        background.close()
    if not (tally.removed or tally.spared or tally.failed):
        _explain_nothing(place, options, tally)
    return tally.status


@dataclass
class _Tally:
    """Counts what was removed and spared, and prints a line about each."""

    is_dry: bool
    removed: int = 0
    spared: int = 0
    failed: int = 0
    others: set[str] = field(default_factory=set)

    @property
    def status(self) -> int:
        """The exit status of the command."""
        return 1 if self.spared or self.failed else 0

    def remove(self, name: str, action: Callable[[], object]) -> None:
        """Call *action* to remove the thing called *name*; in a dry run, only say so."""
        try:
            if not self.is_dry:
                action()
        except (WarmstackError, OSError) as error:
            self.failed += 1
            text = error.why if isinstance(error, WarmstackError) else str(error)
            print(f"could not remove {name}: {text}")
        else:
            self.removed += 1
            print(f"{'would remove' if self.is_dry else 'removed'} {name}")

    def spare(self, name: str) -> None:
        """Say that the thing called *name* is spared, since a run uses it."""
        self.spared += 1
        print(
            f"spared {name}: a run in progress uses it, or a client of its development database "
            "(to remove it nevertheless: --force)"
        )


def _place(options: argparse.Namespace) -> Place:
    """Return the project; if its folder was deleted, its servers may still exist."""
    try:
        return find(options.project)
    except CommandFailed:
        path = os.path.realpath(options.project)
        for _, listed in cleanup.reachable(lambda _name, _error: None):
            if any(found.path == path for found in listed):
                return Place(Project(path=path), Settings())
        raise


def _explain_nothing(place: Place, options: argparse.Namespace, tally: _Tally) -> None:
    is_everywhere = options.all_projects or options.orphans
    if not (place.is_project or is_everywhere):
        raise NoProject.here(folder=place.project.path)
    print(f"nothing to remove{'' if is_everywhere else f' for {place.project.path}'}")
    if tally.others and not options.orphans:
        count = len(tally.others)
        print(f"servers of {count} other project{'s' * (count > 1)}: warmstack status")


def _clean_managed(
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
        if found.kind == "server":
            if not _is_old_enough(runtime, found, options.older_than, background):
                continue
            if not options.force and cleanup.is_live(runtime, found, background):
                tally.spare(name(found))
                continue
        tally.remove(name(found), partial(runtime.remove, found))


def _is_meant(found: ServerInfo, options: argparse.Namespace, project: Project) -> bool:
    if options.orphans:
        return found.orphaned or found.kind == "folder" or _has_lost_its_folder(found)
    return options.all_projects or found.path == project.path


def _has_lost_its_folder(found: ServerInfo) -> bool:
    """Return whether a project's folder was deleted, as far as this machine can see."""
    owner = Process.parse(found.labels.get(Label.OWNER, ""))
    return owner is not None and owner.is_near and not Path(found.path).is_dir()


def _is_old_enough(
    runtime: OwnRuntime, found: ServerInfo, seconds: float, background: BackgroundLoop
) -> bool:
    if not seconds or found.orphaned:
        return True
    return cleanup.is_idle(runtime, found, seconds, background)


def _drop_saved(
    place: Place, options: argparse.Namespace, tally: _Tally, background: BackgroundLoop
) -> None:
    """Drop the saved databases of the project, on each of its servers."""
    try:
        for server in connected(place, Service.POSTGRES, background):
            with closing(server.client) as databases:
                for database, is_free in _drop_unused(databases, place.project, options):
                    what = f"database {database} ({server.found.runtime})"
                    if is_free:
                        tally.remove(what, lambda: None)
                    elif options.force:
                        tally.remove(what, partial(databases.drop, database))
                    else:
                        tally.spare(what)
    except CommandFailed as error:
        # Without a server there are no databases.
        say(error.line)
    if not (tally.removed or tally.spared or tally.failed):
        print(f"no saved databases of {place.project.path}")


def _clean_external(
    place: Place, options: argparse.Namespace, tally: _Tally, background: BackgroundLoop
) -> None:
    """Drop the plugin's databases on an external PostgreSQL, and those for development in Redis."""
    _release_external(place, options, tally)
    spec = server_specs.make(Service.POSTGRES, place.settings, background)
    if not spec.url:
        return
    server = External(cleanup.RUN_CONTEXT, say).ensure(spec)
    project = None if options.all_projects else place.project
    try:
        for database, is_dropped in _drop_unused(server.client, project, options):
            what = f"database {database} (external, {server.endpoint.place})"
            if is_dropped:
                tally.remove(what, lambda: None)
            else:
                tally.spare(what)
    finally:
        server.client.close()


def _release_external(place: Place, options: argparse.Namespace, tally: _Tally) -> None:
    """Empty the project's databases for development on an external Redis.

    They have no time of their last use, so an age spares them.
    """
    spec = server_specs.make(Service.REDIS, place.settings)
    if not spec.url or options.older_than:
        return
    from pytest_warmstack.redis.leases import release, reserved

    server = External(cleanup.RUN_CONTEXT, say).ensure(spec)
    try:
        for index, project in reserved(server.client).items():
            if options.all_projects or project == place.project.id:
                what = f"Redis database {index} for development (external, {server.endpoint.place})"
                tally.remove(what, partial(release, server.client, index))
    finally:
        server.client.close()


def _drop_unused(
    databases: Any, project: Project | None, options: argparse.Namespace
) -> Iterator[tuple[DatabaseName, bool]]:
    """Drop the databases, except in a dry run; yield each, and whether no run uses it."""
    from pytest_warmstack.postgres.retention import unused

    wanted = unused(databases.all(), project, options.older_than)
    if options.failed:
        wanted = [name for name in wanted if name.state is State.SAVED]
    if options.dry_run:
        locked = databases.locked()
        gone = [name for name in wanted if name.lock_key not in locked]
    else:
        gone = databases.drop_unlocked(wanted)
    for each in sorted(wanted, key=lambda each: (each.state is not State.TEMPLATE, str(each))):
        yield each, each in gone
