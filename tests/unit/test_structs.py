"""`Struct`: a dataclass that is quick to define."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from pytest_warmstack.structs import Struct


class Place(Struct, frozen=True):
    """An address."""

    host: str
    password: str = ""
    tags: Mapping[str, str] = {}

    secret = frozenset({"password"})


class Numbered(Place, frozen=True, kw_only=True):
    """An address with a number."""

    number: int


class Own(Struct, eq=False):
    """A thing that is only equal to itself."""

    name: str
    length: int = 0

    def __post_init__(self) -> None:
        self.length = len(self.name)


def test_fields_are_given_by_position_or_name_and_have_defaults() -> None:
    """A subclass adds its own to those of its base."""
    place = Numbered(host="db", number=2)

    assert (place.host, place.password, place.number) == ("db", "", 2)
    assert Place("db", "x") == Place(host="db", password="x")
    assert Numbered.field_names == ("host", "password", "tags", "number")


def test_instances_are_equal_if_their_class_and_fields_are() -> None:
    """As those of a dataclass; `eq=False` compares identities."""
    assert Place("db") == Place("db")
    assert Place("db") != Place("cache")
    assert Place("db") != Numbered(host="db", number=0)
    assert Own("a") != Own("a")
    assert len({Own("a"), Own("a")}) == 2


def test_a_default_is_not_shared() -> None:
    """A dict is copied for each instance."""
    assert Place("db").tags is not Place("db").tags


def test_a_copy_has_other_values_for_some_fields() -> None:
    """The original stays as it was."""
    place = Place("db", "x")

    assert place.replace(host="cache") == Place("cache", "x")
    assert place == Place("db", "x")


def test_repr_shows_no_secret() -> None:
    """Pytest shows it for local variables."""
    assert repr(Place("db", "hunter2")) == "Place(host='db', tags={})"


def test_post_init_sees_the_fields() -> None:
    """It is called last."""
    assert Own("abc").length == 3


@pytest.mark.parametrize("named", [{}, {"host": "db", "port": 1}], ids=["missing", "unknown"])
def test_a_missing_or_unknown_field_is_a_type_error(named: dict[str, object]) -> None:
    """Files with remembered servers may come from another version."""
    with pytest.raises(TypeError, match=r"missing or unknown fields of Place: \['(host|port)'\]"):
        Place(**named)  # type: ignore[arg-type]


def test_too_many_fields_are_a_type_error() -> None:
    """Nothing is silently dropped."""
    with pytest.raises(TypeError, match="Place"):
        Place("db", "x", {}, "more")  # type: ignore[call-arg]
