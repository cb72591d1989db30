"""`warmstack logs`: what the project's servers have written."""

from __future__ import annotations

import argparse

from pytest_warmstack import cleanup
from pytest_warmstack.cli import words
from pytest_warmstack.cli.errors import CommandFailed
from pytest_warmstack.cli.project import needed, owned


def logs(options: argparse.Namespace) -> int:
    """Print the last lines of each; to follow, only one can be chosen."""
    project = needed(options.project).project
    refused: list[str] = []
    told = 0
    for runtime, listed in cleanup.reachable(
        lambda name, error: refused.append(f"{name}: {error.why}")
    ):
        for found in owned(listed, project):
            if options.service in {None, found.service}:
                told += 1
                print(f"==> {words.name(found)} <==", flush=True)
                for line in runtime.log(found, options.lines, follow=options.follow):
                    print(line, flush=options.follow)
    if not told:
        title = options.service or "server"
        raise CommandFailed.no_server(title=title, project=project.path, looked_at=refused)
    return 0
