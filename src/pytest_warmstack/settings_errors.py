"""What is wrong with a setting, and how to write it."""

from __future__ import annotations

import re

from pytest_warmstack.errors import WarmstackError, did_you_mean


class SettingsError(WarmstackError):
    """A choice has a value that can't be used."""

    @classmethod
    def bad_value(cls, *, name: str, value: object, source: str, wanted: str) -> SettingsError:
        """*value*, read from *source*, is not what the choice called *name* takes."""
        words = wanted.removeprefix("one of ")
        near = "" if words == wanted else did_you_mean(str(value), words.split(", "))
        return cls(
            f"{value!r} is no value for {name}.",
            why=f"it takes {wanted}",
            looked_at=[source],
            todo=[f"give it {wanted}, or leave it out{near}"],
        )

    @classmethod
    def bad_type(cls, *, name: str, value: str, source: str, expected: str) -> SettingsError:
        """*value*, as Python writes it, is of another type in a TOML file than *expected*."""
        plain = value.strip("'\"")
        if expected.startswith("a list"):
            right = f'["{plain}"]'
        else:
            right = f'"{plain}"' if expected == "a string" else plain
        if expected.startswith("a bool"):
            right = "false" if plain.lower() in {"false", "no", "off", "0"} else "true"
        todo = f"write it as {expected.partition(' for ')[0]}: {name} = {right}"
        if expected.startswith(("an int", "a float")) and not re.fullmatch(r"-?[\d.]+", plain):
            todo = f"write a number, without quotes, such as {name} = 8"
        return cls(
            f"Invalid value {value} for {name}.",
            why=f"pytest expects {expected} here, and TOML tells the types apart by how they are "
            "written",
            looked_at=[source],
            todo=[todo],
        )

    @classmethod
    def no_placeholder(
        cls, *, name: str, value: object, source: str, written: str, wanted: str
    ) -> SettingsError:
        """A line has *written* in braces, which is none of the names that *name* knows."""
        return cls(
            f"Unknown name {{{written}}} in {name}.",
            why=f"in the line {value}; the names that stand for the template's database are "
            "{db_url}, {db_host}, {db_port}, {db_user}, {db_password} and {db_name}",
            looked_at=[source],
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
            f"The password in the URL of {name} has to be escaped.",
            why=f"characters such as @ / ? # [ ] mean something else in a URL: {value}",
            looked_at=[source],
            todo=[
                "write @ as %40, / as %2F, ? as %3F, # as %23, [ as %5B, ] as %5D and % as %25; "
                "Python does it with urllib.parse.quote(password, safe='')"
            ],
        )

    @classmethod
    def wrong_scheme(
        cls, *, name: str, value: object, source: str, scheme: str, wanted: str
    ) -> SettingsError:
        """The URL *value* begins with *scheme*, as that of something else."""
        other = {"redis": "warmstack_redis_url", "rediss": "warmstack_redis_url"}
        other |= dict.fromkeys(("postgres", "postgresql"), "warmstack_postgres_url")
        return cls(
            f"The URL of {name} begins with {scheme}://, and not with {wanted}://.",
            why=f"{value} does not lead to a server that this setting can use",
            looked_at=[source],
            todo=[
                f"give it to {other[scheme]}"
                if scheme in other
                else f"name the server itself: {wanted}://USER:PASSWORD@HOST:PORT"
            ],
        )

    @classmethod
    def both(cls, *, variable: str, runtime: str, setting: str) -> SettingsError:
        """*variable* gives the URL of a server, and *setting* the *runtime* that starts one."""
        return cls(
            f"Conflicting settings: {variable} and {setting} are both set.",
            why=f"the first is the URL of a server that runs, and the runtime {runtime} starts one",
            todo=[f"leave {variable} out", f"or {setting}, or make it auto"],
        )

    @classmethod
    def reserved(cls, *, name: str, value: str, source: str, cause: str) -> SettingsError:
        """*name* can't set what is called *value*, which the plugin needs for itself."""
        return cls(
            f"{value!r} can't be set by {name}.",
            why=cause,
            looked_at=[source],
            todo=["leave that line out"],
        )
