"""Names and fingerprints: what a thing of ours is called and how it is recognised.

Pure: nothing here reads or writes anything.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Final, NamedTuple, Self

from pytest_warmstack import originals

NAMESPACE: Final = "pytest-warmstack"
"""Prefix of every label of ours."""

SERVER_FORMAT: Final = "4"
"""Raised when a server that an older version of this package started must not be reused."""

BUILD_FORMAT: Final = "5"
"""Raised when a template that an older version of this package built must not be reused.

A fingerprint of files alone once let a broken builder pass unnoticed (pgtestdb, changelog 0.1.1).
"""


class Service(StrEnum):
    """The kinds of server that we run."""

    POSTGRES = "postgres"
    REDIS = "redis"


class Label(StrEnum):
    """Keys of the labels on a server of ours: on its container, or in its folder's record."""

    PROJECT = f"{NAMESPACE}.project"
    PATH = f"{NAMESPACE}.path"
    SERVICE = f"{NAMESPACE}.service"
    NUMBER = f"{NAMESPACE}.number"
    FINGERPRINT = f"{NAMESPACE}.fingerprint"
    CONFIG = f"{NAMESPACE}.config"
    VERSION = f"{NAMESPACE}.version"
    RUN = f"{NAMESPACE}.run"
    OWNER = f"{NAMESPACE}.owner"


KEPT: Final = "kept"
"""Value of `Label.RUN` on a server that survives its run."""


def fingerprint(*parts: str | bytes) -> str:
    """Return 16 hexadecimal digits that stand for *parts*, in order and with their borders."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()


VARIABLE: Final = "env."
"""What the key of a variable begins with, whose value may be a secret: only a digest is kept."""


def digest(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the entries of a configuration that stand for *variables*, without their values."""
    return {f"{VARIABLE}{name}": fingerprint(name, value)[:8] for name, value in variables.items()}


def changes(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Return a phrase for each key whose value differs, such as `image: a -> b`."""
    return [
        _change(key, old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _change(key: str, old: str | None, new: str | None) -> str:
    if key.startswith(VARIABLE):
        return f"{key}: {'set' if old is None else 'unset' if new is None else 'changed'}"
    return f"{key}: {'unset' if old is None else old} -> {'unset' if new is None else new}"


def random_password() -> str:
    """Return 32 letters and digits.

    No other characters: real `env.py` files write URLs into ConfigParser unescaped.
    """
    return originals.urandom(16).hex()


class Project(NamedTuple):
    """A checkout, known by the real path of its root."""

    path: str

    @property
    def id(self) -> str:
        """12 hexadecimal digits, the same for every run in this checkout."""
        return fingerprint(self.path)[:12]

    @property
    def slug(self) -> str:
        """The folder's name, as far as a container's name may hold it."""
        return re.sub(r"[^a-z0-9]+", "-", self.path.rsplit("/", 1)[-1].lower()).strip("-")[:24]


class State(StrEnum):
    """What a database of ours is for; the letter is part of its name."""

    BUILDING = "b"
    TEMPLATE = "t"
    READY = "r"
    IN_USE = "u"
    KEPT = "k"


class DatabaseName(NamedTuple):
    """The name of a database of ours: its state, its template's fingerprint, its serial.

    A template has no serial. The owner of the others is whoever holds the advisory lock with
    the number `lock_key`, which does not change when the state does.
    """

    state: State
    fingerprint: str
    serial: str = ""

    @classmethod
    def new(cls, state: State, fingerprint: str) -> Self:
        """Return a name that no other database has."""
        return cls(state, fingerprint, originals.urandom(5).hex())

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the name that *text* spells, or None when it is not one of ours."""
        match = re.fullmatch(r"warmstack_([btruk])_([0-9a-f]{16})(?:_([0-9a-f]{10}))?", text)
        if match is None or (match[1] == State.TEMPLATE) != (match[3] is None):
            return None
        return cls(State(match[1]), match[2], match[3] or "")

    def __str__(self) -> str:
        serial = f"_{self.serial}" if self.serial else ""
        return f"warmstack_{self.state}_{self.fingerprint}{serial}"

    @property
    def lock_key(self) -> int:
        """A signed 64-bit number, as pg_advisory_lock takes it."""
        digest = hashlib.blake2b(f"{self.fingerprint}_{self.serial}".encode(), digest_size=8)
        return int.from_bytes(digest.digest(), "big", signed=True)
