"""Names and fingerprints: what stands for what, and what can't be mistaken for it."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest

from pytest_warmstack.servers.identity import (
    DatabaseName,
    Label,
    Project,
    State,
    changes,
    fingerprint,
    random_password,
    write_private,
)

PRINT = "0123456789abcdef"
NAMES = [
    (DatabaseName(State.TEMPLATE, PRINT), f"warmstack_t_{PRINT}"),
    (DatabaseName(State.BUILDING, PRINT, "00aa11bb22"), f"warmstack_b_{PRINT}_00aa11bb22"),
    (DatabaseName(State.IN_USE, PRINT, "fffffffff0"), f"warmstack_u_{PRINT}_fffffffff0"),
    (DatabaseName(State.READY, PRINT, "0000000000"), f"warmstack_r_{PRINT}_0000000000"),
]


# Fingerprints


def test_a_fingerprint_is_16_hexadecimal_digits() -> None:
    """That is what a database's name has room for."""
    assert re.fullmatch(r"[0-9a-f]{16}", fingerprint("anything", b"else"))


def test_the_same_parts_have_the_same_fingerprint() -> None:
    """A fingerprint depends on nothing but its parts: it is the same in every process, for ever."""
    assert fingerprint("a", "b") == fingerprint("a", "b") == "235870420603e322"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["ab", "c"], ["a", "bc"]),
        (["abc"], ["ab", "c"]),
        (["a", "b"], ["b", "a"]),
        (["a"], ["a", ""]),
        ([], [""]),
        (["", "a"], ["a", ""]),
        (["a\0b"], ["a", "b"]),
        # A part that spells what a border might look like.
        (["a", "b"], ["a" + "\0" * 7 + "\1" + "b"]),
        ([b"\xff"], ["\xff"]),
    ],
)
def test_other_parts_have_another_fingerprint(
    one: list[str | bytes], other: list[str | bytes]
) -> None:
    """Order and borders of the parts count."""
    assert fingerprint(*one) != fingerprint(*other)


def test_text_and_its_bytes_are_the_same_part() -> None:
    """Text counts as its UTF-8."""
    assert fingerprint("\u00e9") == fingerprint(b"\xc3\xa9")


# Names of databases


@pytest.mark.parametrize(("name", "text"), NAMES)
def test_a_name_is_spelt_and_read_back(name: DatabaseName, text: str) -> None:
    """Each state has its letter, and the text tells all that the name held."""
    assert str(name) == text
    assert DatabaseName.parse(text) == name


@pytest.mark.parametrize("state", State)
def test_a_new_name_can_be_read_back(state: State) -> None:
    """A new name is one of ours and different each time, whatever its state."""
    names = [DatabaseName.new(state, PRINT) for _ in range(20)]

    assert len({str(name) for name in names}) == 20
    if state is not State.TEMPLATE:
        assert [DatabaseName.parse(str(name)) for name in names] == names


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
def test_a_foreign_name_is_not_ours(text: str) -> None:
    """What is not spelt exactly as we spell it is somebody else's database."""
    assert DatabaseName.parse(text) is None


@pytest.mark.parametrize("state", State)
def test_every_name_fits_into_postgresql(state: State) -> None:
    """PostgreSQL cuts names after 63 bytes, silently."""
    assert len(str(DatabaseName.new(state, fingerprint("x"))).encode()) <= 63


def test_a_lock_key_survives_a_change_of_state() -> None:
    """The lock of a database is the same one before and after it is renamed."""
    keys = {DatabaseName(state, PRINT, "00aa11bb22").lock_key for state in State}

    assert len(keys) == 1


def test_two_databases_have_two_lock_keys() -> None:
    """Neither a serial nor a template shares its lock with another."""
    names = [DatabaseName.new(State.IN_USE, PRINT) for _ in range(100)]
    names += [DatabaseName(State.TEMPLATE, PRINT), DatabaseName(State.TEMPLATE, "f" * 16)]

    assert len({name.lock_key for name in names}) == len(names)


def test_a_lock_key_is_a_signed_64_bit_number() -> None:
    """That is what pg_advisory_lock takes; about half of them are negative."""
    keys = [DatabaseName.new(State.IN_USE, PRINT).lock_key for _ in range(200)]

    assert all(-(2**63) <= key < 2**63 for key in keys)
    assert min(keys) < 0 < max(keys)


# Projects


def test_a_project_is_known_by_its_path_alone() -> None:
    """One path has one id, and another path has another."""
    shop = Project(path="/home/ada/shop")

    assert shop.id == Project(path="/home/ada/shop").id
    assert re.fullmatch(r"[0-9a-f]{12}", shop.id)
    assert shop.id != Project(path="/home/bob/shop").id


@pytest.mark.parametrize(
    ("path", "slug"),
    [
        ("/home/ada/shop", "shop"),
        ("/home/ada/My Shop (2)", "my-shop-2"),
        ("/srv/__app__", "app"),
        ("/srv/caf\u00e9", "caf"),
        ("/srv/\u5e97", ""),
        ("/", ""),
        ("/srv/" + "a" * 40, "a" * 24),
    ],
)
def test_a_slug_is_what_a_container_name_may_hold(path: str, slug: str) -> None:
    """The folder's name is reduced to small letters, digits and single hyphens between them."""
    assert Project(path=path).slug == slug


# What is left


def test_a_password_is_made_of_32_letters_and_digits() -> None:
    """No character of a password means anything in a URL, a ConfigParser file or a shell."""
    passwords = {random_password() for _ in range(50)}

    assert len(passwords) == 50
    assert all(re.fullmatch(r"[A-Za-z0-9]{32}", password) for password in passwords)


@pytest.mark.parametrize(
    ("old", "new", "phrases"),
    [
        ({}, {}, []),
        ({"image": "a"}, {"image": "a"}, []),
        ({"image": "a"}, {"image": "b"}, ["image: a -> b"]),
        ({}, {"fsync": "off"}, ["fsync: unset -> off"]),
        ({"fsync": "off"}, {}, ["fsync: off -> unset"]),
        (
            {"b": "1", "a": "1", "c": "1"},
            {"b": "2", "a": "2", "c": "1"},
            ["a: 1 -> 2", "b: 1 -> 2"],
        ),
    ],
)
def test_changes_are_told_key_by_key(
    old: dict[str, str], new: dict[str, str], phrases: list[str]
) -> None:
    """Each key whose value differs has a phrase, in alphabetical order, and no other key has."""
    assert changes(old, new) == phrases


def test_every_label_bears_our_prefix() -> None:
    """No label of ours can be mistaken for another tool's."""
    assert all(label.startswith("pytest-warmstack.") for label in Label)
    assert len(set(Label)) == 9


def test_a_private_file_replaces_the_old_one_as_a_whole(tmp_path: Path) -> None:
    """Who has the old file open reads it to its end, and only the owner can read the new one."""
    path = tmp_path / "server.json"
    path.write_text("the old text")
    path.chmod(0o644)
    with path.open() as reader:
        write_private(path, "new \u00e9")

        assert reader.read() == "the old text"
    assert path.read_text(encoding="utf-8") == "new \u00e9"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_private_file_that_cannot_be_written_leaves_no_draft(tmp_path: Path) -> None:
    """Neither where a folder is in its place, nor for a text that is none."""
    (tmp_path / "folder").mkdir()

    with pytest.raises(IsADirectoryError):
        write_private(tmp_path / "folder", "text")
    with pytest.raises(UnicodeEncodeError):
        write_private(tmp_path / "file", "\ud800")

    assert [each.name for each in tmp_path.iterdir()] == ["folder"]
