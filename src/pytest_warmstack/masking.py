"""Masks passwords and keys in reports, errors and logs. Only a run that writes one imports it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

STARS: Final = "***"

_SENSITIVE: Final = r"(?i)key|secret|token|passw|pwd|credential|auth|salt|private|dsn"
"""Matches the names of variables whose values are secrets."""

_LOGIN_IN_URL: Final = r"(://[^\s:/?#@'\"]*:)[^\s/'\"]+(?=@)"

_PYDANTIC_INPUT: Final = r"(?s)input_value=(?=\{|[^,\]]*://).*?, input_type"
"""Matches pydantic's shortened input: a URL, or all variables if one of them is missing."""

_ELLIPSIS: Final = "..."

_MIN_PIECE: Final = 4
"""How many characters of a secret next to an ellipsis are a piece of it, not a coincidence."""

_MIN_SECRET: Final = 12
"""Shorter texts, such as `postgres`, are masked only in places where passwords are written."""


def secrets_of(lines: Iterable[str]) -> list[str]:
    """Return the secrets in lines such as NAME=VALUE, judged by the name, or a URL's password.

    >>> secrets_of(["STRIPE_KEY=sk_live_1", "MODE=test", "BROKER=amqp://me:s3cret@mq/"])
    ['sk_live_1', 's3cret']
    """
    found = []
    for name, _, value in (line.partition("=") for line in lines):
        if password := password_of(value):
            found.append(password)
        elif re.search(_SENSITIVE, name) and "{db_" not in value:
            found.append(value.strip())
    return found


def password_of(url: str) -> str:
    """Return the password in *url*, or "" if it has none."""
    try:
        return unquote(urlsplit(url).password or "")
    except ValueError:  # It isn't a URL.
        return ""


def masked(text: str, secrets: Iterable[str], *, urls: bool = False) -> str:
    """Return *text* with every spelling of *secrets* masked; with *urls*, also URLs' passwords.

    >>> masked("postgresql://postgres:postgres@db, 'pa%20ss1'", ["postgres", "pa ss1"])
    "postgresql://postgres:***@db, '***'"
    """
    text = str(text)  # Not a `MaskedUrl`: xdist sends plain texts only.
    for secret in sorted({*secrets} - {""}, key=len, reverse=True):
        for form in {secret, quote(secret, safe=""), quote(secret), secret.replace("%", "%%")}:
            if (secret.isalpha() or secret.isdigit()) and len(secret) < _MIN_SECRET:
                plain = re.escape(form)
                pattern = rf"(?<=:){plain}(?=@)|(?i:(passw\w*['\"]?\s*[=:]\s*['\"]?)){plain}\b"
                text = re.sub(pattern, rf"\g<1>{STARS}", text)
            else:
                text = _mask_pieces(text.replace(form, STARS), form)
    if urls:
        text = re.sub(_PYDANTIC_INPUT, f"input_value={STARS}, input_type", text)
        text = re.sub(_LOGIN_IN_URL, rf"\1{STARS}", text)
    return text


def _mask_pieces(text: str, secret: str) -> str:
    """Return *text* with pieces of *secret* next to an ellipsis masked: pytest shortens texts.

    >>> _mask_pieces("assert 'redis://:46a...8d38e8@h' == 'x...'", "46a3653c8d38e8")
    "assert 'redis://:***...***@h' == 'x...'"
    """
    first, *rest = text.split(_ELLIPSIS)
    parts = [first]
    for after in rest:
        before = parts[-1]
        head = next((n for n in range(len(secret), 0, -1) if before.endswith(secret[:n])), 0)
        tail = next((n for n in range(len(secret), 0, -1) if after.startswith(secret[-n:])), 0)
        if head + tail >= _MIN_PIECE:
            parts[-1] = before[: len(before) - head] + STARS * bool(head)
            after = STARS * bool(tail) + after[tail:]
        parts.append(after)
    return _ELLIPSIS.join(parts)


def all_masked(value: Any, secrets: Sequence[str], *, urls: bool = False) -> Any:
    """Return *value* with all its texts `masked`; change a report of pytest in place.

    Other objects of a test, such as named tuples, are left unchanged.
    """
    mask = partial(all_masked, secrets=secrets, urls=urls)
    if isinstance(value, str):
        return masked(value, secrets, urls=urls)
    if type(value) in {list, tuple}:
        return type(value)(map(mask, value))
    if type(value) is dict:
        return {key: mask(each) for key, each in value.items()}
    if is_dataclass(value) and type(value).__module__.startswith("_pytest."):
        for each in fields(value):
            setattr(value, each.name, mask(getattr(value, each.name)))
    return value
