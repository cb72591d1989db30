"""Names and fingerprints: what stands for what, and what can't be mistaken for it."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest

from pytest_warmstack.servers.identity import (
    Label,
    Project,
    changes,
    fingerprint,
    random_password,
    write_private,
)

PRINT = "0123456789abcdef"


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
