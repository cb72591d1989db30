"""No text that is shown has a secret in it, however it is written there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest

from pytest_warmstack.masking import all_masked, masked, secrets_of

SECRET = "p@ss%1"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"took {SECRET}.", "took ***."),
        ("postgresql://ci:p%40ss%251@db/a", "postgresql://ci:***@db/a"),
        # As `sqlalchemy.url` is written in an ini file.
        ("url = ci:p@ss%%1@db", "url = ci:***@db"),
        ("nothing", "nothing"),
    ],
)
def test_a_secret_is_masked_in_each_spelling(text: str, shown: str) -> None:
    """As it is, as a URL has it, and as ConfigParser has it."""
    assert masked(text, ["", SECRET]) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://postgres:postgres@postgres/postgres", "postgresql://postgres:***@{}/{}"),
        ("{'user': 'postgres', 'password': 'postgres'}", "{{'user': '{}', 'password': '***'}}"),
        ("connect(password='postgres', user='postgres')", "connect(password='***', user='{}')"),
        ("password=postgres", "password=***"),
        ("password=postgresql", "password=postgresql"),
        ("tests/test_postgres.py", "tests/test_{}.py"),
    ],
)
def test_a_common_word_is_masked_only_where_a_password_stands(text: str, shown: str) -> None:
    """CI services are called that, with users, databases and passwords."""
    assert masked(text, ["postgres"]) == shown.format("postgres", "postgres")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("'46a3653c8bd8...f37a4bb5d38e8' == 'nope'", "'***...***' == 'nope'"),
        ("'redis://:46a...38e8@h:1/0'", "'redis://:***...***@h:1/0'"),
        ("'xredis://:46a3...'", "'xredis://:***...'"),
        ("'...d38e8@h'", "'...***@h'"),
        ("'to 4...8 of 46'", "'to 4...8 of 46'"),
    ],
)
def test_what_pytest_leaves_of_a_secret_is_masked(text: str, shown: str) -> None:
    """It shortens a text in the middle, before there is a report."""
    assert masked(text, ["46a3653c8bd8af37a4bb5d38e8"]) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("to postgresql://me:geheim@prod/shop, said me@home", ":***@prod/shop, said me@home"),
        ("'redis://:a@b' and 'amqp://u:v@w'", "'redis://:***@b' and 'amqp://u:***@w'"),
        ("http://localhost:8000/a@b", "http://localhost:8000/a@b"),
        (
            "[type=missing, input_value={'key': 'sk_l...e'}, input_type=dict]",
            "[type=missing, input_value=***, input_type=dict]",
        ),
        (
            "[type=url, input_value='mysql://me:geh...m@db', input_type=str]",
            "[type=url, input_value=***, input_type=str]",
        ),
        (
            "[type=int, input_value='abc', input_type=str]",
            "[type=int, input_value='abc', input_type=str]",
        ),
    ],
)
def test_of_a_url_that_is_not_known_the_password_is_masked_too(text: str, shown: str) -> None:
    """Where the project's own code writes: it may print its whole environment."""
    assert masked(text, [], urls=True).endswith(shown)
    assert masked(text, []) == text


def test_everything_in_a_report_is_masked() -> None:
    """However deep it lies."""
    found: Any = all_masked({"a": [f"x{SECRET}", (1, SECRET, None)]}, [SECRET])

    assert found == {"a": ["x***", (1, "***", None)]}


def test_secrets_are_told_by_the_names_of_variables_and_by_urls() -> None:
    """What stands for the template's own password is no secret to look for."""
    lines = (
        *(
            "STRIPE_KEY=sk1",
            "APP_TOKEN= t ",
            "DB_PASSWORD={db_password}",
            "MODE=test",
            "EMPTY_KEY=",
        ),
        *("BROKER=amqp://me:p%40ss%251@mq/", "SENTRY_DSN=https://abc@sentry/1", "X=http://[x"),
    )

    assert secrets_of(lines) == ["sk1", "t", "", SECRET, "https://abc@sentry/1"]


class Place(NamedTuple):
    """What a test may give to a warning, or record as a property."""

    url: str


@dataclass(frozen=True)
class Order:
    """The same, as an object that can't be changed."""

    url: str


@pytest.mark.parametrize("value", [Place("a"), Order("a"), Order, {"a"}, None])
def test_what_a_test_gave_stays_as_it_is(value: object) -> None:
    """A report may hold anything: it is neither changed nor made again."""
    assert all_masked([value], ["a"])[0] is value
