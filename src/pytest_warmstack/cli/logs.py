"""`warmstack logs`: shows the logs of the project's servers."""

from __future__ import annotations

import argparse

from pytest_warmstack.cli.errors import CommandFailed
from pytest_warmstack.cli.project import Add, name, require, servers_of


def declare(add: Add) -> None:
    """Declare the command and its arguments."""
    logs = add("logs", run, "show the logs of this project's servers")
    logs.add_argument("service", nargs="?", choices=["postgres", "redis"])
    logs.add_argument("-n", "--lines", type=int, default=100, help="number of lines (default: 100)")
    logs.add_argument("-f", "--follow", action="store_true", help="wait for new lines")


def run(options: argparse.Namespace) -> int:
    """Print the last lines of each server's log; only one service can be followed."""
    project = require(options.project).project
    refused: list[str] = []
    is_found = False
    for runtime, found in servers_of(project, refused):
        if options.service in {None, found.service}:
            is_found = True
            print(f"==> {name(found)} <==", flush=True)
            for line in runtime.log(found, options.lines, follow=options.follow):
                print(line, flush=options.follow)
    if not is_found:
        title = options.service or "server"
        raise CommandFailed.no_server(title=title, project=project.path, looked_at=refused)
    return 0
