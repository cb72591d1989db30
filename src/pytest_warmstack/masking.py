"""Secrets out of texts: what a report, an error or a log shows of passwords and keys.

Imported only where such a text is made: most runs have none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

STARS: Final = "***"
"""What stands in the place of a secret."""

_NAMED: Final = re.compile(r"(?i)key|secret|token|passw|pwd|credential|auth|salt|private|dsn")
"""Names of variables whose values are secrets."""

_IN_URL: Final = re.compile(r"(://[^\s:/?#@'\"]*:)[^\s/'\"]+(?=@)")
"""A password in a URL."""

_INPUT: Final = re.compile(r"input_value=(?=\{|[^,\]]*://).*?, input_type", re.DOTALL)
"""What pydantic shows of all variables where one is missing, and of a URL that it cuts short."""

_ELLIPSIS: Final = "..."
_PIECE: Final = 4
"""As many characters of a secret beside an ellipsis are taken for a piece of it."""

_SHORT: Final = 12
"""A word or a number shorter than that is a secret only where a password stands."""


def secrets_of(lines: Iterable[str]) -> list[str]:
    """Return the secrets in lines like NAME=VALUE: passwords in URLs, and what a name calls so.

    >>> secrets_of(["STRIPE_KEY=sk_live_1", "MODE=test", "BROKER=amqp://me:s3cret@mq/"])
    ['sk_live_1', 's3cret']
    """
    found = []
    for name, _, value in (line.partition("=") for line in lines):
        if password := password_of(value):
            found.append(password)
        elif _NAMED.search(name) and "{db_" not in value:
            found.append(value.strip())
    return found


def password_of(url: str) -> str:
    """Return the password in *url*, nothing where there is none."""
    try:
        return unquote(urlsplit(url).password or "")
    except ValueError:  # It is no URL.
        return ""


def masked(text: str, secrets: Iterable[str], *, urls: bool = False) -> str:
    """Return *text* with stars in the place of *secrets*; with *urls*, of any URL's password.

    A short word or number, such as the password `postgres`, means something else in most places.

    >>> masked("postgresql://postgres:postgres@db, 'pa%20ss1'", ["postgres", "pa ss1"])
    "postgresql://postgres:***@db, '***'"
    """
    text = str(text)  # No `MaskedUrl`: xdist sends plain texts only.
    for secret in sorted({*secrets} - {""}, key=len, reverse=True):
        for form in {secret, quote(secret, safe=""), quote(secret), secret.replace("%", "%%")}:
            if (secret.isalpha() or secret.isdigit()) and len(secret) < _SHORT:
                plain = re.escape(form)
                pattern = rf"(?<=:){plain}(?=@)|(?i:(passw\w*['\"]?\s*[=:]\s*['\"]?)){plain}\b"
                text = re.sub(pattern, rf"\g<1>{STARS}", text)
            else:
                text = _shortened(text.replace(form, STARS), form)
    if urls:
        text = _INPUT.sub(f"input_value={STARS}, input_type", text)
        text = _IN_URL.sub(rf"\1{STARS}", text)
    return text


def _shortened(text: str, secret: str) -> str:
    """Return *text* without the pieces of *secret* beside an ellipsis, as pytest shortens texts.

    >>> _shortened("assert 'redis://:46a...8d38e8@h' == 'x...'", "46a3653c8d38e8")
    "assert 'redis://:***...***@h' == 'x...'"
    """
    parts = text.split(_ELLIPSIS)
    for place, part in enumerate(parts[:-1]):
        size = next(filter(lambda n: part.endswith(secret[:n]), range(len(secret), 0, -1)), 0)
        after = parts[place + 1]
        rest = next(filter(lambda n: after.startswith(secret[-n:]), range(len(secret), 0, -1)), 0)
        # Each by itself may be chance; a piece of some length is not.
        if size + rest >= _PIECE:
            parts[place] = part[: len(part) - size] + STARS * bool(size)
            parts[place + 1] = STARS * bool(rest) + after[rest:]
    return _ELLIPSIS.join(parts)


def all_masked(value: Any, secrets: Sequence[str], *, urls: bool = False) -> Any:
    """Return *value* with every text in it `masked`; a report of pytest's is changed in place.

    What else a test gave, such as a named tuple or an object of its own, stays as it is.
    """
    if isinstance(value, str):
        return masked(value, secrets, urls=urls)
    if type(value) in {list, tuple}:
        return type(value)(all_masked(each, secrets, urls=urls) for each in value)
    if type(value) is dict:
        return {key: all_masked(each, secrets, urls=urls) for key, each in value.items()}
    if is_dataclass(value) and type(value).__module__.startswith("_pytest."):
        for each in fields(value):
            setattr(value, each.name, all_masked(getattr(value, each.name), secrets, urls=urls))
    return value
