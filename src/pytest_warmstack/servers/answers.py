"""Finds out what answers at an address: PostgreSQL, Redis, or another kind of server.

After a first attempt to connect has failed, this distinguishes a server that is starting from one
that is not what the URL says.
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
"""Every connection is closed without an answer."""

UNKNOWN: Final = ""
"""Nothing answers yet, or the host can't be reached."""

_HTTP_REQUEST: Final = b"GET / HTTP/1.0\r\n\r\n"
"""HTTP servers answer it, Redis refuses it, PostgreSQL reads it as a length and disconnects."""

_SSL_REQUEST: Final = struct.pack("!ii", 8, 80877103)
"""PostgreSQL answers it with one letter (its documentation, "Message Formats", SSLRequest)."""

_ALERT_TIMEOUT: Final = 0.3
"""Seconds to wait for an alert after a TLS handshake."""

_ANSWER_SIZE: Final = 60
"""How many bytes of an answer are read."""


def who(host: str, port: int, seconds: float) -> str:
    """Return what answers at *host* and *port*, as a noun; each of three requests has *seconds*.

    Returns `NONE` if every connection is closed without an answer, and `UNKNOWN` if a later attempt
    may find out more.
    """
    silent = False
    for ask in (_ask_http, _ask_postgres, _ask_tls):
        try:
            connection = originals.create_connection(host, port, seconds)
        except OSError:
            return UNKNOWN
        with connection:
            try:
                if found := ask(connection):
                    return found
            except TimeoutError:
                silent = True
            except OSError:  # The server disconnected.
                pass
    return UNKNOWN if silent else NONE


def _ask_http(connection: originals.Socket) -> str:
    return _name_of(_exchange(connection.sendall, connection.recv))


def _ask_postgres(connection: originals.Socket) -> str:
    connection.sendall(_SSL_REQUEST)
    return POSTGRES if connection.recv(_ANSWER_SIZE) in {b"S", b"N"} else ""


def _ask_tls(connection: originals.Socket) -> str:
    # Any certificate will do: this only finds out what is there.
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        secure = context.wrap_socket(connection)
    except ssl.SSLError as error:
        # Only a TLS server sends an alert.
        if "ALERT" not in (error.reason or ""):
            raise
        return TLS
    with secure:
        try:
            return _ask_inside(secure)
        except ssl.SSLError as error:
            # RFC 8446, section 6.2: certificate_required.
            return TLS_BOTH if "CERTIFICATE_REQUIRED" in (error.reason or "") else TLS
        except OSError:
            return TLS


def _ask_inside(secure: ssl.SSLSocket) -> str:
    seconds = secure.gettimeout()
    # A server that requires a certificate says so now. After a request, its alert would be lost.
    secure.settimeout(_ALERT_TIMEOUT)
    with suppress(TimeoutError):
        return _name_of(secure.recv(_ANSWER_SIZE)) or TLS
    secure.settimeout(seconds)
    found = _name_of(_exchange(secure.sendall, secure.recv))
    return TLS_REDIS if found == REDIS else found or TLS


def _exchange(send: Callable[[bytes], object], receive: Callable[[int], bytes]) -> bytes:
    send(_HTTP_REQUEST)
    return receive(_ANSWER_SIZE)


def _name_of(answer: bytes) -> str:
    """Return the server that gives such an *answer*; "" if it disconnects, or requires TLS."""
    if answer.startswith((b"+", b"-")):
        return REDIS
    # PgBouncer answers invalid messages with an ErrorResponse: a letter, a length, a field S.
    if answer.startswith(b"E\0\0") and answer[5:6] == b"S":
        return POSTGRES
    if answer.startswith((b"HTTP/", b"<")):
        return "an HTTP server"
    if answer.startswith(b"SSH-"):
        return "an SSH server"
    # A TLS alert (RFC 8446, section 5.1: its type is 21, and versions begin with 3).
    if not answer or answer.startswith(b"\x15\x03"):
        return ""
    return f"a server that says {answer.decode(errors='replace').strip()!r}"
