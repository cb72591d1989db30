"""The guard: the project's code connects to the template, and to nothing else.

Its hooks can't be taken back, so that a process of its own does what is to be refused, all in turn.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest

from pytest_warmstack.postgres.template.child.guard import _host, _place

ATTEMPT = """
import json, sys

from sqlalchemy import URL

from pytest_warmstack.postgres.template.child.guard import Guard
from pytest_warmstack.postgres.template.child.recorder import Recorder

ours, theirs, attempts = json.loads(sys.argv[1])
guard = Guard(URL.create("postgresql+psycopg", "u", "p", "127.0.0.1", ours, "template"))
recorder = Recorder("/nowhere", [], guard)
guard.install()
recorder.install()
told = {}
for name, text in attempts.items():
    guard.refused, raised = "", []
    try:
        exec(text.replace("OURS", str(ours)).replace("THEIRS", str(theirs)), {"guard": guard})
    except BaseException as error:
        while error is not None:
            raised.append(error)
            error = error.__cause__ or error.__context__
    refusals = [str(each) for each in raised if type(each).__name__ == "ForbiddenConnection"]
    told[name] = [(refusals or [repr(each) for each in raised] or [""])[0], guard.refused]
print(json.dumps(told))
"""
"""Try each of several things, and print for each the refusal, if there was one."""

ENGINE = """
from sqlalchemy import create_engine
create_engine("postgresql+{driver}://u:p@127.0.0.1:{port}/{database}").connect()
"""

ASYNC_ENGINE = """
import asyncio
from sqlalchemy.ext.asyncio import create_async_engine

async def main():
    async with create_async_engine("postgresql+{driver}://u:p@127.0.0.1:{port}/{database}").connect():
        pass

asyncio.run(main())
"""

DATABASES = {
    **{
        f"an engine of {driver} {place}": form.format(driver=driver, port=port, database=database)
        for driver, form in (
            ("psycopg", ENGINE),
            ("psycopg2", ENGINE),
            ("asyncpg", ASYNC_ENGINE),
        )
        for place, port, database in (
            ("to another server", "THEIRS", "prod"),
            ("to another server's database of that name", "THEIRS", "template"),
            ("to another database", "OURS", "prod"),
        )
    },
    "an engine whose url says it twice": "from sqlalchemy import create_engine\n"
    "create_engine('postgresql+psycopg://u:p@127.0.0.1:OURS/template?port=THEIRS').connect()",
    "an engine with arguments": "from sqlalchemy import create_engine\n"
    "create_engine('postgresql+psycopg://u:p@127.0.0.1:OURS/template',"
    " connect_args={'port': 'THEIRS'}).connect()",
    "an engine with a function": "import psycopg, sqlalchemy\n"
    "sqlalchemy.create_engine('postgresql+psycopg://', creator=lambda:"
    " psycopg.connect('postgresql://u:p@127.0.0.1:THEIRS/prod')).connect()",
    "psycopg with a url": "import psycopg\n"
    "psycopg.connect('postgresql://u:p@127.0.0.1:THEIRS/prod')",
    "psycopg with names": "from psycopg import connect\n"
    "connect(host='127.0.0.1', port=OURS, dbname='prod')",
    "psycopg by its class": "from psycopg import Connection\n"
    "Connection.connect('host=127.0.0.1 port=THEIRS dbname=template')",
    "psycopg in a loop": "import asyncio, psycopg\n"
    "asyncio.run(psycopg.AsyncConnection.connect('host=127.0.0.1 port=THEIRS dbname=prod'))",
    "psycopg with an address": "import psycopg\n"
    "psycopg.connect('host=127.0.0.1 hostaddr=127.0.0.9 port=OURS dbname=template')",
    "psycopg with several hosts": "import psycopg\n"
    "psycopg.connect('host=127.0.0.1,127.0.0.9 port=OURS dbname=template')",
    "psycopg with variables": "import os, psycopg\n"
    "os.environ.update(PGHOST='127.0.0.1', PGPORT='THEIRS', PGDATABASE='prod')\n"
    "try:\n    psycopg.connect()\nfinally:\n    [os.environ.pop(n) for n in"
    " ('PGHOST', 'PGPORT', 'PGDATABASE')]",
    "psycopg with a variable for the address": "import os, psycopg\n"
    "os.environ['PGHOSTADDR'] = '127.0.0.9'\n"
    "try:\n    psycopg.connect('host=127.0.0.1 port=OURS dbname=template')\n"
    "finally:\n    del os.environ['PGHOSTADDR']",
    "psycopg with a socket's folder": "import psycopg\n"
    "psycopg.connect('host=/var/run/postgresql port=OURS dbname=template')",
    "psycopg with nothing": "import psycopg\npsycopg.connect()",
    "psycopg2 with a text": "import psycopg2\n"
    "psycopg2.connect('host=127.0.0.1 port=THEIRS dbname=prod')",
    "psycopg2 with names": "from psycopg2 import connect\n"
    "connect(host='127.0.0.1', port=OURS, dbname='prod')",
    "psycopg2 with an address": "import psycopg2\n"
    "psycopg2.connect('host=127.0.0.1 hostaddr=127.0.0.9 port=OURS dbname=template')",
    "asyncpg to another server": "import asyncio, asyncpg\n"
    "asyncio.run(asyncpg.connect('postgresql://u:p@127.0.0.1:THEIRS/prod'))",
    "asyncpg to another database": "import asyncio, asyncpg\n"
    "asyncio.run(asyncpg.connect('postgresql://u:p@127.0.0.1:OURS/prod'))",
    "another kind of database": "from sqlalchemy import create_engine\n"
    "create_engine('sqlite:///prod.db').connect()",
}
"""Ways to reach a database that is not the template."""

OTHERS = {
    "a socket": "import socket\nsocket.create_connection(('127.0.0.1', THEIRS))",
    "a socket by its name": "import socket\nsocket.create_connection(('localhost', THEIRS))",
    "a socket without waiting": "import socket\nsocket.socket().connect_ex(('127.0.0.1', THEIRS))",
    "a socket to another address": "import socket\nsocket.create_connection(('127.0.0.9', OURS))",
    "a unix socket": "import socket\nsocket.socket(socket.AF_UNIX).connect('/var/run/docker.sock')",
    "redis": "import redis\nredis.Redis(port=THEIRS, retry=None).ping()",
    "a web page": "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:THEIRS/')",
    "a loop": "import asyncio\nasyncio.run(asyncio.open_connection('127.0.0.1', THEIRS))",
}
"""Ways to reach something else."""

ALLOWED = {
    "the template's server": "import socket\nsocket.create_connection(('127.0.0.1', OURS)).close()",
    "the template's server by its name": "import socket\n"
    "socket.create_connection(('localhost', OURS)).close()",
    "a question for a name": "import socket\nsocket.getaddrinfo('localhost', 80)",
    "a datagram": "import socket\n"
    "with socket.socket(type=socket.SOCK_DGRAM) as s:\n    s.connect(('127.0.0.1', THEIRS))",
    "a pair of sockets": "import socket\n[each.close() for each in socket.socketpair()]",
    "a file": "open('/dev/null').close()",
}
"""What nobody is kept from."""

CLOSED = {
    "the template when it is closed": "guard.closed = True\n"
    "try:\n    import psycopg\n"
    "    psycopg.connect('host=127.0.0.1 port=OURS dbname=template')\n"
    "finally:\n    guard.closed = False",
    "an engine of the template when it is closed": "guard.closed = True\n"
    "from sqlalchemy import create_engine\n"
    "try:\n    create_engine('postgresql+psycopg2://u:p@127.0.0.1:OURS/template').connect()\n"
    "finally:\n    guard.closed = False",
}
"""What is refused only while nothing at all may be reached."""


class Tried(NamedTuple):
    """What became of an attempt: the words of what was raised, and what the guard wrote down."""

    raised: str
    refused: str


class Outcome(NamedTuple):
    """What became of all attempts, and how many connections came to a server that is not ours."""

    tried: dict[str, Tried]
    reached: int
    theirs: int


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    """What became of every attempt, made in one process that has the guard."""
    attempts = DATABASES | OTHERS | ALLOWED | CLOSED
    with ExitStack() as stack:
        ours, theirs = (
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)
        )
        ports = [each.getsockname()[1] for each in (ours, theirs)]
        done = subprocess.run(
            [sys.executable, "-P", "-c", ATTEMPT, json.dumps([*ports, attempts])],
            cwd=tmp_path_factory.mktemp("guard"),
            env={key: value for key, value in os.environ.items() if not key.startswith("PG")},
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        assert done.returncode == 0, done.stderr
        theirs.setblocking(False)
        reached = 0
        while True:
            try:
                theirs.accept()[0].close()
            except BlockingIOError:
                break
            reached += 1
        told = json.loads(done.stdout.splitlines()[-1])
        yield Outcome({name: Tried(*told[name]) for name in attempts}, reached, ports[1])


@pytest.mark.parametrize("name", DATABASES)
def test_a_database_that_is_not_the_template_is_refused(outcome: Outcome, name: str) -> None:
    """In whatever way it is tried; the build fails even if somebody swallows the refusal."""
    raised, refused = outcome.tried[name]

    assert raised.endswith(" is not the template")
    assert refused == raised.removesuffix(" is not the template")


def test_nothing_has_reached_another_server(outcome: Outcome) -> None:
    """Not even a connection without a byte: it was refused before."""
    assert outcome.reached == 0


def test_a_refusal_names_what_was_tried(outcome: Outcome) -> None:
    """Server, port and database, without the password; or the socket."""

    def refused(name: str) -> str:
        return outcome.tried[name].refused.replace(str(outcome.theirs), "THEIRS")

    assert refused("an engine of psycopg to another server") == (
        "postgresql://127.0.0.1:THEIRS/prod"
    )
    assert refused("an engine of asyncpg to another server") == (
        "postgresql://127.0.0.1:THEIRS/prod"
    )
    assert refused("asyncpg to another server") == "postgresql://127.0.0.1:THEIRS/prod"
    assert refused("psycopg with variables") == "postgresql://127.0.0.1:THEIRS/prod"
    assert "the Unix socket /var/run/postgresql" in refused("psycopg with a socket's folder")
    assert "  " not in refused("psycopg with nothing")
    assert "prod.db" in refused("another kind of database")


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_database_is_refused_too(outcome: Outcome, name: str) -> None:
    """A migration must not empty the real Redis; but whoever swallows it may go on.

    It may be someone who reports in the background, which is not the build's failure.
    """
    raised, refused = outcome.tried[name]

    assert raised.endswith(" is not the template's server")
    assert refused == ""


@pytest.mark.parametrize("name", ALLOWED)
def test_what_leads_nowhere_else_is_not_refused(outcome: Outcome, name: str) -> None:
    """The template's own server, and what is no connection."""
    assert outcome.tried[name] == Tried("", "")


@pytest.mark.parametrize("name", CLOSED)
def test_the_template_itself_is_refused_as_long_as_nothing_may_be_reached(
    outcome: Outcome, name: str
) -> None:
    """A function that gives the configuration is asked first whether it connects by itself."""
    raised, refused = outcome.tried[name]

    assert raised.endswith(" is not the template")
    assert refused.endswith("/template")


# Places


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_the_names_of_this_machine_are_one(host: str) -> None:
    """A URL that says localhost is the template's, wherever a socket then goes."""
    assert _host(host) == "127.0.0.1"


@pytest.mark.parametrize("host", ["db.example.com", "127.0.0.2", "10.0.0.1", "/var/run/postgresql"])
def test_other_names_stay_what_they_are(host: str) -> None:
    """Nobody else's machine is taken for ours."""
    assert _host(host) == host


@pytest.mark.parametrize(
    ("given", "place"),
    [
        (("localhost", 5432, "shop"), ("127.0.0.1", "5432", "shop")),
        (("127.0.0.1", "5432", "shop"), ("127.0.0.1", "5432", "shop")),
        (("db.example.com", None, "shop"), ("db.example.com", "", "shop")),
        ((None, None, None), ("", "", "")),
        (("a,b", "1,2", "shop"), ("a,b", "1,2", "shop")),
    ],
)
def test_an_address_has_one_form(
    given: tuple[object, object, object], place: tuple[str, str, str]
) -> None:
    """Drivers give numbers, texts, or nothing where there is a default, which is not ours."""
    assert _place(*given) == place
