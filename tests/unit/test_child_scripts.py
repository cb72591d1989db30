"""SQL files as the child takes them apart: statements, and rows that pg_dump wrote."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy import MetaData

from pytest_warmstack.postgres.template.child import scripts
from pytest_warmstack.postgres.template.child.arguments import Call
from pytest_warmstack.postgres.template.child.failures import BuildFailure
from pytest_warmstack.postgres.template.child.scripts import _parts, _unquoted, find, run_sql

DUMP = r'''--
-- PostgreSQL database dump
--
\restrict gZ8mS0oTqP

SET client_encoding = 'UTF8';

CREATE TABLE public.country (code text, name text);

COPY public.country (code, name) FROM stdin;
de	Germany
fr	\N
\.


COPY public."Odd ""table""" ("a, b", c) FROM stdin;
\.


COPY plain FROM stdin;
1
\\.
a\.
2
\.

SELECT 1;
\unrestrict gZ8mS0oTqP
'''


def parts(text: str) -> list[object]:
    """Return the statements of *text* as texts, its rows as a tuple with what they are for."""
    names = ("schema", "table", "columns", "rows")
    return [part if isinstance(part, str) else part.group(*names) for _, part in _parts(text)]


def test_a_file_without_rows_is_one_statement() -> None:
    """PostgreSQL itself tells where one statement of it ends and the next one begins."""
    text = "CREATE TABLE a (id int);\nINSERT INTO a VALUES (1);\n"

    assert parts(text) == [text]
    assert parts("") == [""]


def test_rows_are_told_from_statements() -> None:
    """What stands between COPY and its end is data, with its tabs and backslashes as they are."""
    text = "SELECT 1;\nCOPY a (b) FROM stdin;\n1\n2\n\\.\nSELECT 2;\n"

    assert parts(text) == ["SELECT 1;\n", (None, "a", "b", "1\n2\n"), "\nSELECT 2;\n"]


def test_a_dump_is_taken_apart() -> None:
    """Each kind of COPY that pg_dump writes: with a schema, quoted, without rows or columns."""
    tables = [part for part in parts(DUMP) if not isinstance(part, str)]

    assert tables == [
        ("public", "country", "code, name", "de\tGermany\nfr\t\\N\n"),
        ("public", '"Odd ""table"""', '"a, b", c', ""),
        (None, "plain", None, "1\n\\\\.\na\\.\n2\n"),
    ]


def test_every_part_is_told_with_where_it_begins() -> None:
    """From there an error's position counts, in the file as the reader has it."""
    for begin, part in _parts(DUMP):
        text = part if isinstance(part, str) else part[0]
        assert DUMP[begin : begin + len(text)] == text
    assert "".join(p if isinstance(p, str) else p[0] for _, p in _parts(DUMP)) == DUMP


@pytest.mark.parametrize(
    "text",
    [
        "COPY a FROM '/tmp/a.csv';\n",
        "COPY a TO stdout;\n",
        "COPY a FROM stdin;\n1\n2\n",
        "-- COPY a FROM stdin;\n1\n\\.\n",
        "  COPY a FROM stdin;\n1\n\\.\n",
        "COPY a FROM stdin;",
    ],
)
def test_what_only_looks_like_rows_is_left_to_postgresql(text: str) -> None:
    """It knows what it thinks of it, and its words are told."""
    assert parts(text) == [text]


@pytest.mark.parametrize("head", ["copy a from stdin;", "COPY a (b,c) FROM stdin;"])
def test_rows_in_another_hand_are_understood(head: str) -> None:
    """Small letters, and no blank after a comma."""
    assert len(parts(f"{head}\n1\t2\n\\.\n")) == 3


def test_hundreds_of_tables_with_many_rows_take_no_time() -> None:
    """The dump of a whole database is looked through once."""
    rows = "1\tone\n" * 1000
    text = "".join(f"COPY t{n} (id, name) FROM stdin;\n{rows}\\.\n" for n in range(300))

    found = [part for part in parts(text) if not isinstance(part, str)]

    assert len(found) == 300
    assert {rows} == {part[3] for part in found if isinstance(part, tuple)}


# Commands of psql


def without_commands(text: str) -> str:
    """Return *text* as it is run."""
    return scripts._PSQL.sub(lambda match: " " * len(match[0]), text)


def test_psqls_own_lines_of_a_dump_are_left_out() -> None:
    """pg_dump writes them since 2025, and no server understands them; every place stays."""
    run = without_commands(DUMP)

    assert "restrict" not in run
    assert len(run) == len(DUMP)
    assert run.count("\n") == DUMP.count("\n")
    assert [part for part in parts(run) if not isinstance(part, str)] == [
        part for part in parts(DUMP) if not isinstance(part, str)
    ]


@pytest.mark.parametrize(
    "text",
    [
        *("\\connect shop\n", "SELECT '\\restrict';\n", " \\restrict x\n"),
        *("\\\\restrict\n", "\\restricted\n"),
    ],
)
def test_other_lines_stay(text: str) -> None:
    """Only these two commands at the beginning of a line are known to be needed by nobody."""
    assert without_commands(text) == text


@pytest.mark.parametrize("text", ["", "\n\n", "-- nothing\n", ";\n-- a\n;", "-- a\n\n-- b"])
def test_a_part_of_comments_alone_is_nothing(text: str) -> None:
    """What stands between two blocks of rows in a dump need not be run."""
    assert scripts._COMMENT.sub("", text).strip("; \t\n\r") == ""


# Names


@pytest.mark.parametrize(
    ("name", "plain"),
    [("country", "country"), ('"Country"', "Country"), ('"a ""b"""', 'a "b"'), ('"a, b"', "a, b")],
)
def test_a_name_loses_its_quotes(name: str, plain: str) -> None:
    """The driver quotes it again by itself."""
    assert _unquoted(name) == plain


# What is run


class Raw:
    """A connection of the driver that takes down what it is to do, and refuses what it is told."""

    def __init__(self, refused: str = "", error: Exception | None = None) -> None:
        self.done: list[Any] = []
        self.begun = False
        self._refused = refused
        self._error = error

    @property
    def driver_connection(self) -> Raw:
        """The driver's own connection: this one."""
        return self

    async def get_raw_connection(self) -> Raw:
        """Return what SQLAlchemy wraps: this one."""
        return self

    async def execute(self, text: str) -> None:
        """Take down a statement; refuse it if it holds what is to be refused."""
        self.done.append(text)
        if self._error is not None and self._refused in text:
            if hasattr(self._error, "place"):
                self._error.position = str(text.index(self._refused) + 1)
            raise self._error

    async def copy_to_table(self, table: str, *, source: Any, **more: Any) -> None:
        """Take down rows."""
        rows = b"".join([each async for each in source])
        self.done.append((table, rows.decode(), more))
        if self._error is not None and self._refused in rows.decode():
            raise self._error

    def is_in_transaction(self) -> bool:
        """Tell whether a transaction was begun."""
        return self.begun


def applied(text: str, raw: Raw | None = None) -> list[Any]:
    """Return what is done for the script *text*."""
    raw = raw or Raw()
    asyncio.run(run_sql(raw, "a.sql", text))  # type: ignore[arg-type]
    return raw.done


def failed(text: str, refused: str, error: Exception, *, place: bool) -> BuildFailure:
    """Return the failure when PostgreSQL refuses a part of *text*, and maybe tells the place."""
    if place:
        error.place = True  # type: ignore[attr-defined]
    with pytest.raises(BuildFailure) as caught:
        applied(text, Raw(refused, error))
    return caught.value


def test_statements_and_rows_are_run_in_their_order() -> None:
    """With their names as PostgreSQL knows them; what is only comments is not run."""
    text = 'SELECT 1;\nCOPY s."A b" (x, "Y") FROM stdin;\n1\t2\n\\.\n-- nothing\n\nSELECT 2;\n'
    columns = {"schema_name": "s", "columns": ["x", "Y"], "format": "text"}

    first, rows, second = applied(text)

    assert (first.strip(), second.strip()) == ("SELECT 1;", "-- nothing\n\nSELECT 2;")
    assert rows == ("A b", "1\t2\n", columns)
    assert applied("-- nothing\n;\n/* at\nall */\n") == []


@pytest.mark.parametrize("how", ["(FORMAT csv)", "WITH (format CSV)", "with ( Format csv )"])
def test_rows_may_be_csv(how: str) -> None:
    """As a hand may write them into a file."""
    ((table, rows, more),) = applied(f"COPY a FROM stdin {how};\n1,2\n\\.\n")

    assert (table, rows, more["format"], more["columns"]) == ("a", "1,2\n", "csv", None)


def test_a_mistake_is_told_with_its_line_and_postgresqls_code() -> None:
    """The line counts in the file, across rows and what was left out; the code is for hints."""
    text = DUMP + "SELEC 2;\n"

    error = failed(text, "SELEC 2", asyncpg.PostgresSyntaxError("no"), place=True)

    assert (str(error), error.state) == ("PostgresSyntaxError: no", "42601")
    assert error.where == f"in a.sql, line {len(text.splitlines())}"


def test_a_broken_rule_has_no_line() -> None:
    """PostgreSQL does not tell where the statement is that broke it, and a wrong line is worse."""
    error = failed(DUMP, "SELECT 1", asyncpg.UniqueViolationError("twice"), place=False)

    assert (str(error), error.where) == ("UniqueViolationError: twice", "in a.sql")


def test_a_command_of_psql_is_told_as_one() -> None:
    """PostgreSQL itself only says that it does not understand the backslash."""
    text = "SELECT 1;\n\\connect shop\n"

    error = failed(text, "\\connect", asyncpg.PostgresSyntaxError("no"), place=True)

    assert "commands of psql are not run" in str(error)
    assert error.where == "in a.sql, line 2"


def test_a_transaction_that_is_left_open_is_told() -> None:
    """What it did would be gone without a word."""
    raw = Raw()
    raw.begun = True

    with pytest.raises(BuildFailure, match="begins a transaction and does not commit it") as caught:
        applied("BEGIN; SELECT 1;\n", raw)

    assert caught.value.where == "in a.sql"


# What a line names

MODULE = """
from sqlalchemy import MetaData

class Base:
    metadata = MetaData()

def orders(connection):
    pass

def several(connection):
    yield

async def awaited(connection):
    yield

NUMBER = 7
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of a project."""
    (tmp_path / "warmstack_demo.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "warmstack_demo", raising=False)
    return "warmstack_demo"


def test_a_line_names_a_function_or_the_metadata_of_models(module: str) -> None:
    """An attribute of a module, or of something in it."""
    assert isinstance(find(f"{module}:Base.metadata", ""), MetaData)
    # A declarative base is what one thinks of first.
    assert find(f"{module}:Base", "") is find(f"{module}:Base.metadata", "")
    orders = find(f"{module}:orders", "")
    assert isinstance(orders, Call)
    assert orders.function.__name__ == "orders"


@pytest.mark.parametrize(("name", "value"), [("NUMBER", "7"), ("__name__", "'warmstack_demo'")])
def test_a_line_that_names_something_else_is_refused(module: str, name: str, value: str) -> None:
    """The error tells what it is, and what it should be."""
    with pytest.raises(
        BuildFailure, match=f"{module}:{name} is {value}, a .*; it must be a MetaData or"
    ):
        find(f"{module}:{name}", "")


@pytest.mark.parametrize("name", ["several", "awaited"])
def test_a_line_that_names_a_generator_is_refused(module: str, name: str) -> None:
    """To call it would do nothing."""
    with pytest.raises(BuildFailure, match=f"{module}:{name} is a generator"):
        find(f"{module}:{name}", "")


def test_a_line_that_names_nothing_is_refused(module: str) -> None:
    """A misspelt module, and a misspelt attribute, whose right name is then guessed."""
    with pytest.raises((BuildFailure, ModuleNotFoundError), match="warmstack_demos"):
        find("warmstack_demos:orders", "")
    with pytest.raises(BuildFailure, match=f"{module} has no attribute order; did you mean orders"):
        find(f"{module}:order", "")
