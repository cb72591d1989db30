"""SQL files as the child takes them apart: statements, and rows that pg_dump wrote."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from sqlalchemy import MetaData

from pytest_warmstack.postgres.child import scripts
from pytest_warmstack.postgres.child.scripts import _found, _parts, _plain, _see_that_it_is_sql
from pytest_warmstack.postgres.child.trouble import Trouble

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


@pytest.mark.parametrize(
    ("text", "words", "line"),
    [
        ("\\connect shop\n", "\\connect is a command of psql", 1),
        ("SELECT 1;\n\\i other.sql\n", "\\i is a command of psql", 2),
        ("SELECT 1;\n\n\\set x 1\n", "\\set is a command of psql", 3),
        ("\\copy a FROM 'a.csv'\n", "\\copy is a command of psql", 1),
    ],
)
def test_other_commands_of_psql_are_refused_with_their_line(
    text: str, words: str, line: int
) -> None:
    """PostgreSQL would only say that it does not understand the backslash."""
    with pytest.raises(Trouble, match=re.escape(words)) as caught:
        _see_that_it_is_sql(text, "a.sql", 10)

    assert caught.value.where == f"in a.sql, line {10 + line}"


@pytest.mark.parametrize(
    "text",
    ["SELECT E'\\n';\n", "SELECT 1; \\g\n", "-- \\connect\n", "\\.\n", "COPY a FROM stdin;\n\\N\n"],
)
def test_what_is_sql_is_not_refused(text: str) -> None:
    """A backslash elsewhere in a line may stand in a text; PostgreSQL judges it."""
    _see_that_it_is_sql(text, "a.sql", 0)


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
    assert _plain(name) == plain


# What a line names

MODULE = """
from sqlalchemy import MetaData

class Base:
    metadata = MetaData()

def orders(connection):
    pass

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
    assert isinstance(_found(f"{module}:Base.metadata"), MetaData)
    # A declarative base is what one thinks of first.
    assert _found(f"{module}:Base") is _found(f"{module}:Base.metadata")
    assert _found(f"{module}:orders").__name__ == "orders"


@pytest.mark.parametrize(("name", "kind"), [("NUMBER", "int"), ("__name__", "str")])
def test_a_line_that_names_something_else_is_refused(module: str, name: str, kind: str) -> None:
    """The error tells what it is, and what it should be."""
    with pytest.raises(Trouble, match=f"{module}:{name} is {kind}, and neither a MetaData nor"):
        _found(f"{module}:{name}")


def test_a_line_that_names_nothing_is_told_in_pythons_words(module: str) -> None:
    """A misspelt module, and a misspelt attribute."""
    with pytest.raises(ModuleNotFoundError, match="warmstack_demos"):
        _found("warmstack_demos:orders")
    with pytest.raises(AttributeError, match="order"):
        _found(f"{module}:order")
