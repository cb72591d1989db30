"""What answers at an address: PostgreSQL, Redis, or something else.

Asked when a first attempt to connect has failed, to tell a server that is starting from one that
is not what the URL says.
"""

from __future__ import annotations

import ssl
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from pytest_warmstack import originals

POSTGRES: Final = "PostgreSQL"
REDIS: Final = "Redis"
TLS_REDIS: Final = "Redis with TLS"
TLS: Final = "a server that speaks TLS"
TLS_BOTH: Final = "a server that demands a certificate"
NONE: Final = "nothing"
"""Whoever is there closes every connection without a word."""

UNKNOWN: Final = ""
"""Whoever is there says nothing yet, or can't be reached."""

_GET: Final = b"GET / HTTP/1.0\r\n\r\n"
"""What an HTTP server answers, and Redis refuses; PostgreSQL takes it for a length and hangs up."""

_SSL_REQUEST: Final = struct.pack("!ii", 8, 80877103)
"""What PostgreSQL answers with one letter (its documentation, "Message Formats", SSLRequest)."""

_OBJECTION: Final = 0.3
"""Seconds that an objection to what has been shown over TLS may take."""

_MOST: Final = 60
"""Bytes of an answer that are shown."""


def who(host: str, port: int, seconds: float) -> str:
    """Return what answers at *host* and *port*, as a noun; each of three questions has *seconds*.

    Returns `NONE` when every connection is closed without an answer, `UNKNOWN` when that may
    change.
    """
    silent = False
    for ask in (_plainly, _as_postgres, _with_tls):
        try:
            connection = originals.create_connection(host, port, seconds)
        except OSError:
            return UNKNOWN
        with connection:
            try:
                found = ask(connection)
            except TimeoutError:
                silent = True
            except OSError:  # It hung up.
                pass
            else:
                if found:
                    return found
    return UNKNOWN if silent else NONE


def _plainly(connection: originals.Socket) -> str:
    return _named(_answer(connection.sendall, connection.recv))


def _as_postgres(connection: originals.Socket) -> str:
    connection.sendall(_SSL_REQUEST)
    return POSTGRES if connection.recv(_MOST) in {b"S", b"N"} else ""


def _with_tls(connection: originals.Socket) -> str:
    # Whom to trust does not matter for the question who is there.
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        secure = context.wrap_socket(connection)
    except ssl.SSLError as error:
        # Only who speaks TLS sends an alert of it.
        if "ALERT" not in (error.reason or ""):
            raise
        return TLS
    with secure:
        try:
            return _inside(secure)
        except ssl.SSLError as error:
            # RFC 8446, section 6.2: certificate_required.
            return TLS_BOTH if "CERTIFICATE_REQUIRED" in (error.reason or "") else TLS
        except OSError:
            return TLS


def _inside(secure: ssl.SSLSocket) -> str:
    """Return what answers over TLS; raise OSError for one that does not."""
    seconds = secure.gettimeout()
    # Who misses a certificate says so now, and it would be lost with what we had sent.
    secure.settimeout(_OBJECTION)
    with suppress(TimeoutError):
        return _named(secure.recv(_MOST)) or TLS
    secure.settimeout(seconds)
    found = _named(_answer(secure.sendall, secure.recv))
    return TLS_REDIS if found == REDIS else found or TLS


def _answer(send: Callable[[bytes], object], receive: Callable[[int], bytes]) -> bytes:
    send(_GET)
    return receive(_MOST)


def _named(answer: bytes) -> str:
    """Return which server gives such an answer; nothing if it closes, or speaks TLS only."""
    if answer.startswith((b"+", b"-")):
        return REDIS
    # PgBouncer refuses what is no greeting of PostgreSQL's: an ErrorResponse, a length, a field S.
    if answer.startswith(b"E\0\0") and answer[5:6] == b"S":
        return POSTGRES
    if answer.startswith((b"HTTP/", b"<")):
        return "an HTTP server"
    if answer.startswith(b"SSH-"):
        return "an SSH server"
    # An alert of TLS (RFC 8446, section 5.1: its type is 21, and versions begin with 3).
    if not answer or answer.startswith(b"\x15\x03"):
        return ""
    return f"a server that says {answer.decode(errors='replace').strip()!r}"
