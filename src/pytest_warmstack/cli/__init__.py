"""The command `warmstack`: shows what is kept, gets it ready, opens it, explains it, removes it."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NoReturn

from pytest_warmstack.cli.errors import CommandFailed, NoProject
from pytest_warmstack.errors import WarmstackError, did_you_mean
from pytest_warmstack.options import age
from pytest_warmstack.servers.identity import NAMESPACE

_AGE: Final = "AGE"
_AFTER: Final = "What stands after -- is given to it."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status.

    0: done. 1: something could not be done, or was spared. 2: it was called in a wrong way.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    # What stands after `--` is for the client that is opened.
    border = given.index("--") if "--" in given else len(given)
    options = _parser().parse_args(given[:border])
    options.only = options.project is not None
    options.project = options.project or Path()
    options.arguments = given[border + 1 :]
    try:
        return int(options.command(options))
    except NoProject as error:
        print(f"warmstack: {error.line}", file=sys.stderr)
        return 1
    except WarmstackError as error:
        print(f"warmstack: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Whoever read has had enough (`| head`); Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (OSError, subprocess.SubprocessError) as error:
        print(f"warmstack: {CommandFailed.by_system(cause=str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130  # As a shell has it for SIGINT.


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="warmstack",
        description="PostgreSQL and Redis that pytest-warmstack keeps for tests.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=version(NAMESPACE))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, text: str, more: str = "") -> argparse.ArgumentParser:
        whole = f"{text[0].upper()}{text[1:]}. {more}"
        command = commands.add_parser(
            # An option that removes servers of all projects is not to be guessed from `--a`.
            name,
            help=text,
            description=whole,
            allow_abbrev=False,
        )
        command.add_argument(
            "--project",
            type=Path,
            metavar="FOLDER",
            help="a folder of the project (default: the current one)",
        )
        command.set_defaults(command=_command(name))
        return command

    status = add(
        "status",
        "show every server of pytest-warmstack that can be seen from here, and what is on it",
        "With --project only the servers of that project. Nothing is changed, and no template is "
        "connected to.",
    )
    status.add_argument("--json", action="store_true", help="for machines")
    clean = add(
        "clean",
        "remove servers with their data, those of this project if nothing else is said",
        "Containers of anybody else are never touched, and what a run in progress uses is spared. "
        "Exit status 1 tells that something was spared or could not be removed.",
    )
    clean.add_argument("--all-projects", action="store_true", help="those of every project")
    clean.add_argument(
        "--orphans",
        action="store_true",
        help="those whose project's folder is gone, and those of runs that were killed",
    )
    clean.add_argument(
        "--older-than",
        type=_age,
        default=0.0,
        metavar=_AGE,
        help="only those not used for so long: 7d, 12h, 30min",
    )
    clean.add_argument("--dry-run", action="store_true", help="only tell what would be done")
    clean.add_argument(
        "--force", action="store_true", help="remove also what a run in progress uses"
    )
    add("up", "start servers, build the template and make clones ready, before any test")
    psql = add("psql", "open psql on this project's PostgreSQL", _AFTER)
    psql.add_argument(
        "database",
        nargs="?",
        default="",
        metavar="NAME",
        help="a test that failed, or that is at a breakpoint now: its node id, its function, or a "
        "part of these; or a part of a database's name",
    )
    add("redis-cli", "open redis-cli on this project's Redis", _AFTER)
    logs = add("logs", "show what this project's servers have written")
    logs.add_argument("service", nargs="?", choices=["postgres", "redis"])
    logs.add_argument("-n", "--lines", type=int, default=100, help="how many (default: 100)")
    logs.add_argument("-f", "--follow", action="store_true", help="go on with what is written then")
    add("doctor", "look at all that is needed to run servers here, and tell which step fails")
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser that names the command or option that was probably meant."""

    def error(self, message: str) -> NoReturn:
        """Add it to the message, print that, and exit with status 2."""
        wrong = re.search(r"(?:invalid choice: |unrecognized arguments: )'?([\w-]+)", message)
        super().error(message + (self._near(wrong[1]) if wrong else ""))

    def _near(self, word: str) -> str:
        """Return what *word* may have been meant for, or which commands take it."""
        known = [*self._option_string_actions]
        takers = []
        for action in self._actions:
            if isinstance(action.choices, dict):
                known += [*action.choices]
                for name, command in action.choices.items():
                    options = [*command._option_string_actions]  # noqa: SLF001 - no public name
                    known += options
                    takers += [f"{self.prog} {name}"] if word in options else []
        if takers:
            return f"; {word} is an option of {', '.join(takers)}"
        begun = {each for each in known if each.startswith(word)}
        return f"; did you mean {begun.pop()}?" if len(begun) == 1 else did_you_mean(word, known)


def _command(name: str) -> Callable[[argparse.Namespace], int]:
    """Return what does the command *name*; only its own module is imported."""

    def run(options: argparse.Namespace) -> int:
        import importlib

        module: Any = importlib.import_module(f"{__name__}.{_MODULES.get(name, name)}")
        do: Callable[[argparse.Namespace], int] = getattr(module, name.replace("-", "_"))
        return do(options)

    return run


_MODULES: Final = {"psql": "clients", "redis-cli": "clients"}


def _age(text: str) -> float:
    try:
        return age(text)
    except (ValueError, KeyError):
        raise argparse.ArgumentTypeError(f"{text!r} is no age such as 7d, 12h or 30min") from None
