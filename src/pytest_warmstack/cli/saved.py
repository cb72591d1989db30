"""`warmstack failed` and `warmstack diff`: the databases that failed tests have left."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, Final, NamedTuple

from pytest_warmstack import report
from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.cli import differences
from pytest_warmstack.cli.clients import connected, find_database
from pytest_warmstack.cli.errors import CommandFailed
from pytest_warmstack.cli.project import Add, Place, align, require, say
from pytest_warmstack.postgres import DatabaseName, State, sql
from pytest_warmstack.servers.identity import Service

_LIMIT: Final = 20
_USE_TIMEOUT: Final = 10.0


def declare(add: Add) -> None:
    """Declare the commands and their arguments."""
    failed = add(
        "failed",
        list_saved,
        "list the saved databases of failed tests",
        "warmstack diff shows what a test changed, warmstack psql opens its database, and "
        "warmstack clean --failed drops them all.",
    )
    failed.add_argument(
        "--json", action="store_true", help="print a list of JSON objects instead of a table"
    )
    diff = add(
        "diff",
        diff_saved,
        "show what a failed test changed in its database",
        "It compares the saved database with the template that it was a copy of: the rows of each "
        "table (found again by primary key, or by a unique index without NULL), the values of "
        "sequences, and the definitions of tables, columns, views, types and functions. Both "
        "databases stay as they are. The exit status is 0 if there is no difference, 1 if there "
        "is one, and 2 if something failed or can't be read.",
    )
    diff.add_argument(
        "database",
        metavar="ID",
        help="the number that the run or warmstack failed shows, or the test: its node id, its "
        "function, or a part of these",
    )
    diff.add_argument(
        "--limit",
        type=_count,
        default=_LIMIT,
        metavar="N",
        help="show at most N added, N removed and N changed rows of each table "
        f"(default: {_LIMIT})",
    )
    diff.add_argument(
        "--json", action="store_true", help="print a JSON object with the same limits instead"
    )
    diff.set_defaults(trouble=2)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rows")
    return int(text)


# failed


class _Saved(NamedTuple):
    """A saved database; *failed* is in seconds since the epoch."""

    id: str
    test: str
    failed: float
    bytes: int
    database: str
    has_template: bool
    server: str


def list_saved(options: argparse.Namespace) -> int:
    """Print the saved databases of the project, the newest one first."""
    place = require(options.project)
    found = sorted(_saved(place), key=lambda each: each.failed, reverse=True)
    if options.json:
        print(json.dumps([each._asdict() for each in found], indent=2))
    elif not found:
        print(f"no saved databases of {place.project.path}")
    else:
        rows = [
            [each.id, report.ago(each.failed), report.size(each.bytes), each.test] for each in found
        ]
        print("\n".join(align([["ID", "FAILED", "SIZE", "TEST"], *rows])))
    return 0


def _saved(place: Place) -> Iterator[_Saved]:
    background = BackgroundLoop()
    try:
        for server in connected(place, Service.POSTGRES, background):
            with closing(server.client):
                rows = server.client.ask(sql.OVERVIEW)
            yield from _saved_in(rows, place.project.slug, server.found.name)
    except CommandFailed as error:
        # Without a server there are no databases.
        for line in [error.line, *error.looked_at[1:]]:
            say(line)
    finally:
        background.close()


def _saved_in(rows: Sequence[Any], project: str, server: str) -> Iterator[_Saved]:
    names = {row["datname"] for row in rows if row["sealed"]}
    for row in rows:
        name, (saved, whose) = DatabaseName.parse(row["datname"]), sql.parse_note(row["note"])
        # An external server may have those of other projects too.
        if name is not None and name.state is State.SAVED and whose == project:
            has_template = str(_template_of(name)) in names
            test, size = sql.test_of(row["comment"]), row["bytes"] or 0
            yield _Saved(name.serial, test, saved, size, str(name), has_template, server)


def _template_of(name: DatabaseName) -> DatabaseName:
    return DatabaseName(State.TEMPLATE, name.fingerprint)


# diff


def diff_saved(options: argparse.Namespace) -> int:
    """Print how the database differs from its template; return 1 if it does."""
    place = require(options.project)
    background = BackgroundLoop()
    refusals = []
    try:
        for server in connected(place, Service.POSTGRES, background):
            with closing(server.client) as databases:
                try:
                    name = find_database(databases, options.database, "diff")
                except CommandFailed as refusal:
                    refusals.append(refusal)
                    continue
                return _diff(databases, name, options)
    finally:
        background.close()
    raise refusals[0]


def _diff(databases: Any, database: str, options: argparse.Namespace) -> int:
    # `warmstack psql` and the other commands don't need this module.
    from pytest_warmstack.postgres.comparison import compare, copy_of
    from pytest_warmstack.postgres.template.record import Record

    name = DatabaseName.parse(database)
    if name is None or name.state not in {State.SAVED, State.IN_USE}:
        raise CommandFailed.not_of_a_test(name=database)
    databases.use(_USE_TIMEOUT)
    databases.share(name)  # No sweep drops it meanwhile. A run in progress may hold it already.
    comments = {row["datname"]: (row["comment"], row["note"]) for row in databases.ask(sql.NAMES)}
    test = sql.test_of(comments[database][0])
    template = _template_of(name)
    with copy_of(databases, template) as copy:
        if copy is None and name.state is State.IN_USE:
            raise CommandFailed.not_of_a_test(name=database)
        if copy is None:
            raise CommandFailed.no_template(name=database, test=test)
        comparison = compare(databases, copy, name, limit=options.limit)
    record = Record.read(comments[str(template)][0])
    holds = record.text if record else ""
    if options.json:
        values = {
            "id": name.serial,
            "test": test,
            "database": database,
            "template": str(template),
            "template_holds": holds,
            "is_same": comparison.is_empty,
            **comparison.plain(),
        }
        print(json.dumps(values, indent=2))
    else:
        saved = sql.parse_note(comments[database][1])[0]
        when = f", failed {report.ago(saved)}" if name.state is State.SAVED else ""
        heading = [
            f"{test or 'a clone in use'}{when}",
            database,
            f"compared with its template of {holds}",
        ]
        is_terminal = sys.stdout.isatty()
        width = shutil.get_terminal_size().columns if is_terminal else differences.WIDTH
        lines = differences.lines(comparison, limit=options.limit, width=width)
        for line in [*heading, "", *lines]:
            print(differences.coloured(line) if is_terminal else line)
    if comparison.unread:
        return 2
    return 0 if comparison.is_empty else 1
