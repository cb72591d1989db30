"""Errors about the options.

*name* is what the user typed: a flag, a variable, or a key in the configuration file. *source* is
that file; it is empty for a flag or a variable.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from pytest_warmstack.errors import WarmstackError, did_you_mean


class SettingsError(WarmstackError):
    """The value of an option is not valid."""

    def __init__(self, what: str, *, why: str, source: str = "", todo: Iterable[str]) -> None:
        super().__init__(what, why=why, looked_at=[source] if source else [], todo=todo)

    @classmethod
    def bad_value(cls, *, name: str, value: object, source: str, wanted: str) -> SettingsError:
        """The option takes what *wanted* describes, but has *value*."""
        words = wanted.removeprefix("one of ")
        near = "" if words == wanted else did_you_mean(str(value), words.split(", "))
        return cls(
            f"Invalid value {value!r} for {name}.",
            why=f"it takes {wanted}",
            source=source,
            todo=[f"set it to {wanted}, or remove it{near}"],
        )

    @classmethod
    def bad_type(cls, *, name: str, value: str, source: str, expected: str) -> SettingsError:
        """A TOML file has *value*, in Python's notation, instead of the *expected* type."""
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
            todo = f"write a number without quotes, such as {name} = 8"
        return cls(
            f"Invalid value {value} for {name}.",
            why=f"pytest expects {expected} here, and in TOML the notation decides the type",
            source=source,
            todo=[todo],
        )

    @classmethod
    def no_placeholder(
        cls,
        *,
        name: str,
        value: object,
        source: str,
        written: str,
        wanted: str,
        known: Iterable[str],
    ) -> SettingsError:
        """The line *value* has *written* in braces, which probably means *wanted*."""
        return cls(
            f"Unknown placeholder {{{written}}} in {name}.",
            why=f"in the line {value}; the placeholders are "
            f"{', '.join(f'{{{each}}}' for each in known)}",
            source=source,
            todo=[
                f"write {{{wanted}}}",
                f"or, if you mean the braces themselves, double them: {{{{{written}}}}}",
            ],
        )

    @classmethod
    def no_address(cls, *, name: str, source: str, file: str) -> SettingsError:
        """*name* covers tests, but no line of `warmstack_env` leads the application anywhere."""
        return cls(
            "No variable of warmstack_env leads to the databases of tests.",
            why=f"{name} is for tests that reach them only through the application, which finds "
            "them by such variables",
            source=source,
            todo=[
                f"name the variables that the application reads, in {file or 'pytest.ini'}: "
                "warmstack_env = DATABASE_URL={db_url}"
            ],
        )

    @classmethod
    def ambiguous(cls, *, name: str, value: object, source: str) -> SettingsError:
        """The password or host of the URL *value* has characters that end it too early."""
        return cls(
            f"Unescaped password in the URL of {name}.",
            why=f"characters such as @ / ? # [ ] % have another meaning in a URL: {value}",
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
        """The URL *value* begins with *scheme*, which is for another kind of server."""
        other = {"redis": "warmstack_redis_url", "rediss": "warmstack_redis_url"}
        other |= dict.fromkeys(("postgres", "postgresql"), "warmstack_postgres_url")
        return cls(
            f"Invalid URL for {name}: it begins with {scheme}://, not with {wanted}://.",
            why=f"{value} is the URL of another kind of server",
            source=source,
            todo=[
                f"use it for {other[scheme]}"
                if scheme in other
                else f"write the URL of the server: {wanted}://USER:PASSWORD@HOST:PORT"
            ],
        )

    @classmethod
    def both(cls, *, variable: str, runtime: str, setting: str) -> SettingsError:
        """*variable* is the URL of a server, and *setting* the *runtime* that starts one."""
        return cls(
            f"Conflicting settings: {variable} and {setting} are both set.",
            why="the first is the URL of a server that is running, and the runtime "
            f"{runtime} starts one",
            todo=[f"remove {variable}", f"or remove {setting}, or set it to auto"],
        )

    @classmethod
    def reserved(cls, *, name: str, value: str, source: str, cause: str) -> SettingsError:
        """A line of *name* sets *value*, which the plugin needs for itself."""
        return cls(
            f"Can't set {value!r} in {name}.",
            why=cause,
            source=source,
            todo=["remove that line"],
        )

    @classmethod
    def not_json(cls, *, name: str, value: object, source: str) -> SettingsError:
        """*name* is the place of a report, but has *value*, which may be a path of tests."""
        return cls(
            f"Invalid value {value!r} for {name}.",
            why="it takes yes, no, or a path that ends with .json",
            source=source,
            todo=[
                f"write paths of tests before the option: pytest {value} {name}"
                if name.startswith("--")
                else "set it to yes for a table on the terminal",
                f"or name a file: {name}=FILE.json",
            ],
        )

    @classmethod
    def not_writable(cls, *, name: str, path: str, cause: str) -> SettingsError:
        """*name* is the file *path* for a report, which can't be written."""
        return cls(
            f"Can't write the report to {path}.",
            why=cause,
            todo=[f"set {name} to a file in a folder that you may write to"],
        )
