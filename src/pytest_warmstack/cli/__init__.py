"""The command `warmstack`: shows, prepares, opens, checks and removes the servers of tests."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from pytest_warmstack.cli import clean, clients, development, doctor, logs, saved, status, up
from pytest_warmstack.cli.errors import CommandFailed, NoProject
from pytest_warmstack.cli.project import Command
from pytest_warmstack.errors import WarmstackError, did_you_mean
from pytest_warmstack.servers.identity import NAMESPACE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status.

    The status is 0 for success, 1 if something failed or was spared, and 2 for wrong arguments.
    `warmstack diff` returns 1 for a difference, and 2 if something failed.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    # The arguments after `--` are for another program.
    border = given.index("--") if "--" in given else len(given)
    options = _parser().parse_args(given[:border])
    options.only = options.project is not None
    options.project = options.project or Path()
    options.arguments = given[border + 1 :]
    try:
        return int(options.run(options))
    except BrokenPipeError:
        # The reader has ended (`| head`). Without this, Python would fail again as it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130  # What a shell returns after SIGINT.
    except (OSError, subprocess.SubprocessError, WarmstackError) as error:
        text: object = error
        if isinstance(error, NoProject):
            text = error.line
        elif not isinstance(error, WarmstackError):
            text = CommandFailed.by_system(cause=str(error))
        print(f"warmstack: {text}", file=sys.stderr)
        return int(options.trouble)


def _parser() -> argparse.ArgumentParser:
    # No abbreviations: `--a` must not select an option that removes servers.
    parser = _Parser(
        prog="warmstack",
        description="Manage the PostgreSQL and Redis that pytest-warmstack keeps for tests.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=version(NAMESPACE))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Command, text: str, details: str = "") -> argparse.ArgumentParser:
        description = f"{text[0].upper()}{text[1:]}. {details}"
        command = commands.add_parser(name, help=text, description=description, allow_abbrev=False)
        command.add_argument(
            "--project",
            type=Path,
            metavar="FOLDER",
            help="a folder of the project (default: the current one)",
        )
        command.set_defaults(run=run, trouble=1)
        return command

    for module in (status, clean, up, development, clients, saved, logs, doctor):
        module.declare(add)
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser whose errors suggest the command or option that the user probably meant."""

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"(?:invalid choice: |unrecognized arguments: )'?([\w-]+)", message)
        super().error(message + (self._advice(wrong[1]) if wrong else ""))

    def _advice(self, word: str) -> str:
        # argparse has no public API for the options of a parser.
        known = [*self._option_string_actions]
        takers = []
        for action in self._actions:
            if isinstance(action.choices, dict):
                known += [*action.choices]
                for name, command in action.choices.items():
                    known += command._option_string_actions  # noqa: SLF001
                    if word in command._option_string_actions:  # noqa: SLF001
                        takers.append(f"{self.prog} {name}")
        if takers:
            return f"; {word} is an option of {', '.join(takers)}"
        begun = {each for each in known if each.startswith(word)}
        return f"; did you mean {begun.pop()}?" if len(begun) == 1 else did_you_mean(word, known)
