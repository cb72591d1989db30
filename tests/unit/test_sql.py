"""SQL texts."""

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
    """Whatever characters it has, it stays one name."""
    assert sql.quote(name) == quoted


@pytest.mark.parametrize(
    ("text", "quoted"), [("a", "'a'"), ("it's", "'it''s'"), ("'", "''''"), ('"', "'\"'")]
)
def test_a_text_is_quoted(text: str, quoted: str) -> None:
    """Whatever characters it has, it stays one text."""
    assert sql.literal(text) == quoted


@pytest.mark.parametrize("by_file", [True, False])
def test_a_copy_by_file_says_so(by_file: bool) -> None:
    """Before PostgreSQL 15 there is no other way, and no word for it."""
    statement = sql.copy(TEMPLATE, CLONE, by_file=by_file)

    assert statement.startswith(f'CREATE DATABASE "{CLONE}" TEMPLATE "{TEMPLATE}" ')
    assert ("STRATEGY FILE_COPY" in statement) is by_file


def test_create_database_sets_the_mark() -> None:
    """Otherwise a killed run would leave a database without it."""
    for statement in (sql.create(CLONE, "template0"), sql.copy(TEMPLATE, CLONE, by_file=True)):
        assert f"CONNECTION LIMIT {sql.MARK}" in statement
    assert sql.MARK.to_bytes(4, "big") == b"wrms"


def test_the_query_for_the_stock_escapes_underscores() -> None:
    """An underscore in a pattern stands for any character."""
    assert r"LIKE 'warmstack\_r\_0123456789abcdef%'" in sql.stock(TEMPLATE)


def test_a_drop_may_demand_that_the_database_exists() -> None:
    """Then PostgreSQL refuses to drop a missing one."""
    assert sql.drop("a") == 'DROP DATABASE IF EXISTS "a" WITH (FORCE)'
    assert sql.drop("a", missing_ok=False) == 'DROP DATABASE "a" WITH (FORCE)'


def row(**facts: Any) -> dict[str, Any]:
    """Return a row of `properties`, of an unchanged database."""
    plain = {"owner": US, "datconnlimit": sql.MARK, "grants": None, "settings": None}
    return {**plain, **facts}


def test_a_plain_template_has_no_properties_to_apply() -> None:
    """Then a clone costs no further statement."""
    noted = json.dumps([[US, [f"application_name={sql.USED}1.5 shop"]]])

    assert sql.apply_properties(row(settings=noted), CLONE, US) == []


def test_a_copy_gets_the_settings_grants_owner_and_limit() -> None:
    """In an order that PostgreSQL accepts."""
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
