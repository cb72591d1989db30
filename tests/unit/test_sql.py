"""The texts of our SQL."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pytest_warmstack.postgres import DatabaseName, State, sql

TEMPLATE = DatabaseName(State.TEMPLATE, "0123456789abcdef")
US = "postgres"
CLONE = DatabaseName(State.IN_USE, "0123456789abcdef", "00aa11bb22")


@pytest.mark.parametrize(
    ("name", "quoted"),
    [("a", '"a"'), ('a"b', '"a""b"'), ('"', '""""'), ("a'b", '"a\'b"'), ("A b", '"A b"')],
)
def test_a_name_is_quoted(name: str, quoted: str) -> None:
    """Whatever it holds, it stays one name."""
    assert sql.quote(name) == quoted


@pytest.mark.parametrize(
    ("text", "quoted"), [("a", "'a'"), ("it's", "'it''s'"), ("'", "''''"), ('"', "'\"'")]
)
def test_a_text_is_quoted(text: str, quoted: str) -> None:
    """Whatever it holds, it stays one text."""
    assert sql.literal(text) == quoted


@pytest.mark.parametrize("by_file", [True, False])
def test_a_copy_is_one_of_files_where_that_is_said(by_file: bool) -> None:
    """Before PostgreSQL 15 there is no other, and no word for it."""
    statement = sql.copy(TEMPLATE, CLONE, by_file=by_file)

    assert statement.startswith(f'CREATE DATABASE "{CLONE}" TEMPLATE "{TEMPLATE}" ')
    assert ("STRATEGY FILE_COPY" in statement) is by_file


def test_every_database_is_born_with_our_mark() -> None:
    """One that is killed on before it could be marked would be nobody's for ever."""
    for statement in (sql.create(CLONE, "template0"), sql.copy(TEMPLATE, CLONE, by_file=True)):
        assert f"CONNECTION LIMIT {sql.MARK}" in statement
    assert sql.MARK.to_bytes(4, "big") == b"wrms"


def test_the_stock_is_asked_for_by_the_whole_name() -> None:
    """An underscore in a pattern would stand for any character."""
    assert r"LIKE 'warmstack\_r\_0123456789abcdef%'" in sql.stock(TEMPLATE)


def test_a_database_may_be_missing_when_it_is_dropped_or_not() -> None:
    """Who has to know whether it was there is told."""
    assert sql.drop("a") == 'DROP DATABASE IF EXISTS "a" WITH (FORCE)'
    assert sql.drop("a", missing_ok=False) == 'DROP DATABASE "a" WITH (FORCE)'


def row(**facts: Any) -> dict[str, Any]:
    """Return a row of `properties`, of a database that nobody has changed."""
    plain = {"owner": US, "datconnlimit": sql.MARK, "grants": None, "settings": None}
    return {**plain, **facts}


def test_a_plain_template_gives_its_copies_nothing_more() -> None:
    """Then a clone costs no other statement."""
    noted = json.dumps([[US, [f"application_name={sql.USED}1.5 shop"]]])

    assert sql.apply_properties(row(settings=noted), CLONE, US) == []


def test_a_copy_gets_the_settings_grants_owner_and_limit() -> None:
    """Each with the name of the copy in it, and in an order in which PostgreSQL takes them."""
    statements = sql.apply_properties(
        row(
            owner="o'hara",
            datconnlimit=7,
            settings=json.dumps([["", ["app.tenant=it's"]], ["reader", ["search_path=a, b"]]]),
            grants=json.dumps([["", "CONNECT", False], ["reader", "TEMPORARY", True]]),
        ),
        CLONE,
        US,
    )
    name = f'"{CLONE}"'

    assert statements == [
        f'ALTER DATABASE {name} OWNER TO "o\'hara"',
        f"COMMENT ON DATABASE {name} IS '{sql.DRAFT}'",
        f"ALTER DATABASE {name} CONNECTION LIMIT 7",
        f"""ALTER DATABASE {name} SET "app"."tenant" TO 'it''s'""",
        f'ALTER ROLE "reader" IN DATABASE {name} SET "search_path" TO a, b',
        f'REVOKE ALL ON DATABASE {name} FROM PUBLIC, "o\'hara"',
        f"GRANT CONNECT ON DATABASE {name} TO PUBLIC",
        f'GRANT TEMPORARY ON DATABASE {name} TO "reader" WITH GRANT OPTION',
    ]
