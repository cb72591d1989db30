"""The names and addresses of databases."""

from __future__ import annotations

import pytest

from pytest_warmstack.postgres import DatabaseAddress, DatabaseName, State
from pytest_warmstack.servers.identity import fingerprint

PRINT = "0123456789abcdef"
NAMES = [
    (DatabaseName(State.TEMPLATE, PRINT), f"warmstack_t_{PRINT}"),
    (DatabaseName(State.BUILDING, PRINT, "00aa11bb22"), f"warmstack_b_{PRINT}_00aa11bb22"),
    (DatabaseName(State.IN_USE, PRINT, "fffffffff0"), f"warmstack_u_{PRINT}_fffffffff0"),
    (DatabaseName(State.READY, PRINT, "0000000000"), f"warmstack_r_{PRINT}_0000000000"),
    (DatabaseName(State.DEVELOPMENT, PRINT, "00aa11bb22"), f"warmstack_dev_{PRINT}_00aa11bb22"),
]


@pytest.mark.parametrize(("name", "text"), NAMES)
def test_a_name_is_spelt_and_read_back(name: DatabaseName, text: str) -> None:
    """Each state has its letter, and no part of the name is lost."""
    assert str(name) == text
    assert DatabaseName.parse(text) == name


@pytest.mark.parametrize("state", State)
def test_a_new_name_can_be_read_back(state: State) -> None:
    """New names are all different."""
    names = [DatabaseName.new(state, PRINT) for _ in range(20)]

    assert len({str(name) for name in names}) == 20
    if state is not State.TEMPLATE:
        assert [DatabaseName.parse(str(name)) for name in names] == names


def test_the_name_for_development_depends_on_the_project_and_the_configuration() -> None:
    """And on nothing else, so that it stays."""
    shop = DatabaseName.development("/srv/shop", "alembic.ini")
    others = [
        DatabaseName.development("/srv/blog", "alembic.ini"),
        DatabaseName.development("/srv/shop", "users/alembic.ini"),
    ]

    assert str(shop) == "warmstack_dev_cd8d2ae2f324812e_8fe4e792be"
    assert DatabaseName.parse(str(shop)) == shop
    assert shop not in others
    assert [str(each).startswith(shop.prefix) for each in others] == [False, True]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "postgres",
        "warmstack",
        "warmstack_u",
        "warmstack_prod",
        f"warmstack_x_{PRINT}_00aa11bb22",
        f"warmstack_u_{PRINT}",
        f"warmstack_b_{PRINT}",
        f"warmstack_t_{PRINT}_00aa11bb22",
        f"warmstack_u_{PRINT[1:]}_00aa11bb22",
        f"warmstack_u_{PRINT}_00aa11bb2",
        f"warmstack_u_{PRINT}_00aa11bb223",
        f"warmstack_u_{PRINT.upper()}_00aa11bb22",
        f"my_warmstack_t_{PRINT}",
        f"warmstack_t_{PRINT}_old",
        f"warmstack_t_{PRINT}\n",
        f" warmstack_t_{PRINT}",
        f"warmstack_t_{PRINT};",
    ],
)
def test_other_names_are_not_parsed(text: str) -> None:
    """Only exact names are those of this package."""
    assert DatabaseName.parse(text) is None


@pytest.mark.parametrize("state", State)
def test_every_name_fits_into_postgresql(state: State) -> None:
    """PostgreSQL silently cuts names after 63 bytes."""
    assert len(str(DatabaseName.new(state, fingerprint("x"))).encode()) <= 63


def test_a_lock_key_survives_a_change_of_state() -> None:
    """A renamed database keeps its lock."""
    keys = {DatabaseName(state, PRINT, "00aa11bb22").lock_key for state in State}

    assert len(keys) == 1


def test_two_databases_have_two_lock_keys() -> None:
    """Whether they are clones or templates."""
    names = [DatabaseName.new(State.IN_USE, PRINT) for _ in range(100)]
    names += [DatabaseName(State.TEMPLATE, PRINT), DatabaseName(State.TEMPLATE, "f" * 16)]

    assert len({name.lock_key for name in names}) == len(names)


def test_a_lock_key_is_a_signed_64_bit_number() -> None:
    """As pg_advisory_lock takes it; about half of them are negative."""
    keys = [DatabaseName.new(State.IN_USE, PRINT).lock_key for _ in range(200)]

    assert all(-(2**63) <= key < 2**63 for key in keys)
    assert min(keys) < 0 < max(keys)


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("postgresql+asyncpg://ci:p%40ss@[::1]:5433/shop", ("::1", 5433, "ci", "p@ss", "shop")),
        ("postgresql://db/shop?ssl=require", ("db", 5432, "", "", "shop")),
    ],
)
def test_an_address_has_the_parts_of_a_url(url: str, parts: tuple[object, ...]) -> None:
    """Without quotes and brackets; its `repr` masks the password."""
    address = DatabaseAddress.parse(url)

    assert (address.host, address.port, address.user, address.password, address.name) == parts
    assert "password='***'" in repr(address)
    assert "p@ss" not in repr(address)
