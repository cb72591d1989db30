"""`warmstack url` and `warmstack run`: a database and a Redis for the hours between tests."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final, NoReturn

from pytest_warmstack import placeholders, report
from pytest_warmstack.addresses import Addresses
from pytest_warmstack.cli.clients import become
from pytest_warmstack.cli.errors import CommandFailed
from pytest_warmstack.cli.project import Add, require, say
from pytest_warmstack.cli.up import Preparation
from pytest_warmstack.options import Settings
from pytest_warmstack.placeholders import lines_for
from pytest_warmstack.servers.identity import Service
from pytest_warmstack.servers.model import Endpoint, postgres_url, redis_url
from pytest_warmstack.session import Session

_NO_DRIVER: Final = "none"

_FILES: Final = {"alembic.ini", "pyproject.toml"}
"""The files that a test's folder, or one above it, has for Alembic."""

_NOT_FOUND: Final = 127
"""The exit status of a shell for a command that does not exist."""


def declare(add: Add) -> None:
    """Declare the commands and their arguments."""
    stays = (
        "The database is made from the current template, with servers that stay, and no run "
        "changes it. It stays until warmstack clean, or until its server ends."
    )
    command = add("url", url, "print the URL of a database for development", stays)
    kinds = command.add_mutually_exclusive_group()
    kinds.add_argument(
        "--driver",
        choices=("psycopg", "psycopg2", "asyncpg", _NO_DRIVER),
        default=_NO_DRIVER,
        help="the driver in the URL, for SQLAlchemy (default: none, for psql, GUI clients and "
        "drivers)",
    )
    kinds.add_argument(
        "--redis", action="store_true", help="print the URL of a Redis database instead"
    )
    _add_common(command)
    command = add(
        "run",
        run,
        "run a command with the variables of warmstack_env, for the database for development",
        f"Write the command after --. {stays}",
    )
    command.add_argument("command", nargs="*", help=argparse.SUPPRESS)
    command.set_defaults(parser=command)
    _add_common(command)


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--fresh",
        action="store_true",
        help="first drop what is in the database, and end the connections to it",
    )
    command.add_argument(
        "--alembic",
        default="",
        metavar="PATH",
        help="the folder or file of the Alembic configuration, if the project has several "
        "(default: the nearest one)",
    )


def url(options: argparse.Namespace) -> int:
    """Print the URL; everything else goes to standard error."""
    require(options.project)
    addresses = _prepare(options, {Service.REDIS if options.redis else Service.POSTGRES})
    if addresses is None:
        return 1
    if options.redis:
        assert addresses.redis is not None  # noqa: S101 - it was prepared
        print(str(redis_url(addresses.redis, addresses.redis_index)))
    else:
        driver = None if options.driver == _NO_DRIVER else options.driver
        assert addresses.postgres is not None  # noqa: S101 - it was prepared
        print(str(postgres_url(addresses.postgres, addresses.database, driver)))
    return 0


def run(options: argparse.Namespace) -> int:
    """Replace this process with the command; return 127 if it does not exist."""
    command = options.arguments
    if not command:
        example = " ".join(options.command) or "alembic upgrade head"
        options.parser.error(f"write the command after --, as in: warmstack run -- {example}")
    place = require(options.project)
    if place.failure:
        return 1
    services = _services(place.settings)
    if shutil.which(command[0]) is None:
        say(f"warmstack: {CommandFailed.no_program(program=command[0])}")
        return _NOT_FOUND
    if (addresses := _prepare(options, services)) is None:
        return 1
    own = addresses.variables(place.settings.env, os.environ)
    return become(command, {**os.environ, **own})


def _services(settings: Settings) -> set[Service]:
    """Return the services that the lines of `warmstack_env` need; raise if they need none."""
    services = {Service(each) for each in placeholders.services(settings.env)}
    if not services:
        wanted, more = {"DATABASE_URL": "{db_url}"}, bool(settings.env)
        raise CommandFailed.no_lines(advice=lines_for(wanted, file=settings.file, more=more))
    return services


# The preparation


def _prepare(options: argparse.Namespace, services: Collection[Service]) -> Addresses | None:
    """Return the addresses; None if something failed, which was printed.

    This happens in a forked process: what the project's conftest.py changes there, and the servers
    that are started there, don't belong to the command that replaces this process.
    """
    sys.stdout.flush()
    reader, writer = os.pipe()
    if not (pid := os.fork()):
        os.close(reader)
        _prepare_and_exit(_Development(options, services), options, writer)
    os.close(writer)
    try:
        with os.fdopen(reader, encoding="utf-8") as pipe:
            answer = pipe.read()
    finally:
        # Ctrl-C reaches the other process as well; it removes what it has begun.
        os.waitpid(pid, 0)
    if not answer:
        return None
    found = {
        service: (Endpoint(**endpoint), database)
        for service, (endpoint, database) in json.loads(answer).items()
    }
    postgres, database = found.get(Service.POSTGRES, (None, ""))
    redis, index = found.get(Service.REDIS, (None, 0))
    return Addresses(postgres, str(database), redis, int(index))


def _prepare_and_exit(doing: _Development, options: argparse.Namespace, writer: int) -> NoReturn:
    """Write the addresses as JSON to *writer*.

    Only a failure shows what pytest and the project print: standard output is for the address.
    """
    try:
        with tempfile.TemporaryFile() as output:
            os.dup2(output.fileno(), sys.stdout.fileno())
            if doing.run(options.project, *doing.arguments) == 0:
                with os.fdopen(writer, "w", encoding="utf-8") as pipe:
                    json.dump(doing.found, pipe)
            else:
                sys.stdout.flush()
                output.seek(0)
                sys.stderr.write(output.read().decode(errors="replace").lstrip())
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


class _Development(Preparation):
    """Prepares the databases for development of *services*.

    `arguments` are for pytest; `found` has the server and the database of each service, for JSON.
    """

    def __init__(self, options: argparse.Namespace, services: Collection[Service]) -> None:
        self._fresh = options.fresh
        self._services = services
        self._folder = Path(os.path.realpath(options.project))
        self._is_named = False
        self.arguments: list[str] = []
        self.found: dict[str, tuple[dict[str, Any], str | int]] = {}
        if options.alembic:
            self._choose(Path(options.alembic), options.alembic)

    def _choose(self, path: Path, given: str) -> None:
        """Take the configuration of a folder as its tests do; anything else as the option does."""
        if path.is_dir() or (path.name in _FILES and path.is_file()):
            self._folder = Path(os.path.realpath(path if path.is_dir() else path.parent))
            self._is_named = True
        else:
            named = os.path.realpath(path) if path.is_file() else given
            self.arguments = [f"--warmstack-alembic={named}"]

    def prepare(self, session: Session) -> int:
        """Make the databases if there are none."""
        if self._is_named:
            session.settings = session.settings.replace(alembic="")
        session.show_progress(sys.stderr.fileno())
        environment = session.open()
        remarks = []
        if Service.POSTGRES in self._services:
            configurations = environment.configurations_for(self._folder)
            folders = [each.folder for each in configurations] or [self._folder]
            if len(folders) > 1 or (self._is_named and folders != [self._folder]):
                names = [each.name for each in configurations]
                named = str(self._folder) if self._is_named else ""
                raise CommandFailed.which_configuration(names=names, folder=named)
            endpoint, name, remark = environment.development_database(folders[0], fresh=self._fresh)
            self.found["postgres"] = endpoint.fields(), name
            remarks = [remark] if remark else []
        if Service.REDIS in self._services:
            cache, number = environment.development_redis(fresh=self._fresh)
            self.found["redis"] = cache.fields(), number
        steps = environment.ledger.steps
        for line in (
            *report.fallback(steps),
            *report.empty(steps, session.settings.file),
            *remarks,
        ):
            say(f"warmstack: {line}")
        return 0
