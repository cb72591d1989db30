"""Errors about the options. *name* is what the user typed: a flag, a variable or a key of *source*.

*source* is the configuration file, and empty for a flag or a variable.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from pytest_warmstack.errors import WarmstackError, did_you_mean


class SettingsError(WarmstackError):
    """An option has a value that can't be used."""

    def __init__(self, what: str, *, why: str, source: str = "", todo: Iterable[str]) -> None:
        super().__init__(what, why=why, looked_at=[source] if source else [], todo=todo)

    @classmethod
    def bad_value(cls, *, name: str, value: object, source: str, wanted: str) -> SettingsError:
        """The option takes what *wanted* describes, and not *value*."""
        words = wanted.removeprefix("one of ")
        near = "" if words == wanted else did_you_mean(str(value), words.split(", "))
        return cls(
            f"Invalid value {value!r} for {name}.",
            why=f"it takes {wanted}",
            source=source,
            todo=[f"give it {wanted}, or leave it out{near}"],
        )

    @classmethod
    def bad_type(cls, *, name: str, value: str, source: str, expected: str) -> SettingsError:
        """A TOML file has *value*, as Python writes it, where the type is *expected*."""
        plain = value.strip("'\"")
        right = plain
        if expected.startswith("a list"):
            right = f'["{plain}"]'
        elif expected == "a string":
            right = f'"{plain}"'
        elif expected.startswith("a bool"):
            right = "false" if plain.lower() in {"false", "no", "off", "0"} else "true"
        todo = f"write it as {expected.partition(' for ')[0]}: {name} = {right}"
        if expected.startswith(("an int", "a float")) and not re.fullmatch(r"-?[\d.]+", plain):
            todo = f"write a number, without quotes, such as {name} = 8"
        return cls(
            f"Invalid value {value} for {name}.",
            why=f"pytest expects {expected} here, and TOML tells types apart by how they are "
            "written",
            source=source,
            todo=[todo],
        )

    @classmethod
    def no_placeholder(
        cls, *, name: str, value: object, source: str, written: str, wanted: str
    ) -> SettingsError:
        """The line *value* has *written* in braces, which probably means *wanted*."""
        return cls(
            f"Unknown name {{{written}}} in {name}.",
            why=f"in the line {value}; the names that stand for the template's database are "
            "{db_url}, {db_host}, {db_port}, {db_user}, {db_password} and {db_name}",
            source=source,
            todo=[
                "migrations can't connect to Redis: write any URL, such as redis://localhost"
                if written.lower().startswith("redis")
                else f"write {{{wanted}}}",
                f"or, if the braces themselves are meant, double them: {{{{{written}}}}}",
            ],
        )

    @classmethod
    def ambiguous(cls, *, name: str, value: object, source: str) -> SettingsError:
        """The URL *value* has characters that end its password, or the host, too early."""
        return cls(
            f"Unescaped password in the URL of {name}.",
            why=f"characters such as @ / ? # [ ] have another meaning in a URL: {value}",
            source=source,
            todo=[
                "write @ as %40, / as %2F, ? as %3F, # as %23, [ as %5B, ] as %5D and % as %25; "
                "in Python: urllib.parse.quote(password, safe='')"
            ],
        )

    @classmethod
    def wrong_scheme(
        cls, *, name: str, value: object, source: str, scheme: str, wanted: str
    ) -> SettingsError:
        """The URL *value* begins with *scheme*, as that of another kind of server."""
        other = {"redis": "warmstack_redis_url", "rediss": "warmstack_redis_url"}
        other |= dict.fromkeys(("postgres", "postgresql"), "warmstack_postgres_url")
        return cls(
            f"Invalid URL for {name}: it begins with {scheme}://, not with {wanted}://.",
            why=f"{value} is not the URL of a server that this setting can use",
            source=source,
            todo=[
                f"give it to {other[scheme]}"
                if scheme in other
                else f"name the server itself: {wanted}://USER:PASSWORD@HOST:PORT"
            ],
        )

    @classmethod
    def both(cls, *, variable: str, runtime: str, setting: str) -> SettingsError:
        """*variable* is the URL of a server, and *setting* the *runtime* that starts one."""
        return cls(
            f"Conflicting settings: {variable} and {setting} are both set.",
            why="the first is the URL of a server that is running, and the runtime "
            f"{runtime} starts one",
            todo=[f"leave {variable} out", f"or {setting}, or make it auto"],
        )

    @classmethod
    def reserved(cls, *, name: str, value: str, source: str, cause: str) -> SettingsError:
        """A line of *name* sets *value*, which the plugin needs for itself."""
        return cls(
            f"Can't set {value!r} in {name}.",
            why=cause,
            source=source,
            todo=["leave that line out"],
        )
