"""URLs of no server, or of another kind: reported at once, unless the server may still start."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import external_servers
from external_servers import LOOPBACK
from projects import Library, Running, until

BOOKS = ("-k", "book or shelves")
READERS = ("-k", "read")
TITLES = {"POSTGRES": "PostgreSQL", "REDIS": "Redis"}


def told(result: pytest.RunResult) -> str:
    """Return all that a run has written."""
    return "\n".join([*result.outlines, *result.errlines])


def refused(guest: Library, place: str, *, scheme: str = "redis", name: str = "") -> str:
    """Return what a run says whose two URLs lead to *place*; it gives up at once.

    With a *name*, only the URL of that service does. The secret that both URLs hold is not shown.
    """
    urls = {"POSTGRES": f"postgresql://ci:hunter2@{place}", "REDIS": f"{scheme}://:hunter2@{place}"}
    names = [name] if name else list(urls)
    only = {"POSTGRES": BOOKS, "REDIS": READERS}.get(name, ())
    running = guest.start(*only, **{f"WARMSTACK_{each}_URL": urls[each] for each in names})
    # It would be waited for a minute.
    result = running.wait(seconds=30)

    assert result.parseoutcomes()["errors"] == 2 * len(names)
    assert "waiting up to" not in told(result)
    assert "hunter2" not in told(result)
    for each in names:
        assert f"WARMSTACK_{each}_URL" in told(result)
    return told(result)


class Answers(BaseHTTPRequestHandler):
    """What an HTTP server says to everybody."""

    def do_GET(self) -> None:
        """Say that nothing is here."""
        self.send_error(404)

    def log_message(self, *_: object) -> None:
        """Write no log."""


@contextmanager
def http_server() -> Iterator[str]:
    """Yield where an HTTP server answers."""
    with ThreadingHTTPServer((LOOPBACK, 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"{LOOPBACK}:{server.server_port}"
        finally:
            server.shutdown()
            thread.join(10)


# Nothing is there


def test_a_port_that_refuses_is_told_with_what_to_wait_for(guest: Library) -> None:
    """A service that is still starting is waited for by whoever starts it, before pytest."""
    with socket.socket() as closed:
        closed.bind((LOOPBACK, 0))
        place = f"{LOOPBACK}:{closed.getsockname()[1]}"

        text = refused(guest, place)

    for title in TITLES.values():
        assert f"Could not connect to {title} at {place}.\nWhy: Connection refused\n" in joined(
            text
        )
    assert "wait for it before pytest" in text
    assert "pg_isready" in text


def test_a_port_that_hangs_up_is_told_as_one_where_nothing_listens(guest: Library) -> None:
    """As the proxy of a container does in which no server listens."""
    with external_servers.talker(stays=False) as place:
        text = refused(guest, place)

    for title in TITLES.values():
        assert f"Could not connect to {title} at {place}.\n" in joined(text)
    assert "it accepts connections, and closes them without an answer" in text


@pytest.mark.parametrize("host", ["nowhere.invalid", "300.1.1.1", "a..b"])
def test_a_host_that_is_not_known_is_named(guest: Library, host: str) -> None:
    """Also one that could not be the name of any."""
    text = refused(guest, host)

    for title in TITLES.values():
        assert f"Could not resolve the host of {title} at {host}:" in text


def joined(text: str) -> str:
    """Return *text* without what pytest sets before the lines of an error."""
    return re.sub(r"^E? +", "", text, flags=re.MULTILINE)


# Something else is there


@pytest.mark.parametrize(
    ("words", "found", "stays"),
    [
        (b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", "an SSH server", True),
        (b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", "an SSH server", False),
        (b"J\0\0\0\n8.0.36\0", r"a server that says 'J\x00\x00\x00\n8.0.36\x00'", True),
        (b"S", "a server that says 'S'", True),
    ],
    ids=["ssh", "ssh that hangs up", "mysql", "one letter"],
)
def test_a_server_that_speaks_first_is_told_by_what_it_says(
    guest: Library, words: bytes, found: str, stays: bool
) -> None:
    """Whether it waits for an answer or not."""
    with external_servers.talker(words, stays=stays) as place:
        text = refused(guest, place)

    for title in TITLES.values():
        assert f"Expected {title} at {place}, but found {found}." in text


def test_an_http_server_is_told_as_one(guest: Library) -> None:
    """It speaks when it is asked."""
    with http_server() as place:
        text = refused(guest, place)

    for title in TITLES.values():
        assert f"Expected {title} at {place}, but found an HTTP server." in text


def test_postgresql_is_no_redis(guest: Library) -> None:
    """Nor one with TLS."""
    with external_servers.cluster() as server:
        place = server.endpoint.place
        for scheme in ("redis", "rediss"):
            text = refused(guest, place, name="REDIS", scheme=scheme)

            assert f"Expected Redis at {place}, but found PostgreSQL." in text


@pytest.mark.parametrize(
    ("role", "database", "words"),
    [
        ("ci:hunter2", "*", "authentication failed"),
        ("nobody:hunter2", "*", "authentication failed"),
        ("ci:ci", "shop", "no such database: postgres"),
    ],
)
def test_what_a_pooler_refuses_is_told_in_its_own_words(
    guest: Library, role: str, database: str, words: str
) -> None:
    """Its code for that is the same as where its server is down, which may pass."""
    with (
        external_servers.cluster() as server,
        external_servers.bouncer(server, "session", database=database) as place,
    ):
        result = guest.run(*BOOKS, WARMSTACK_POSTGRES_URL=f"postgresql://{role}@{place}")

    result.assert_outcomes(errors=2, deselected=3)
    assert f"PostgreSQL at {place} rejected the connection." in told(result)
    assert words in told(result)
    assert "waiting up to" not in told(result)
    assert "hunter2" not in told(result)


def test_redis_is_no_postgresql_and_speaks_no_tls(guest: Library) -> None:
    """It would take the first bytes of either for a command that is not complete."""
    with external_servers.redis_server(
        "requirepass secret", connect={"password": "secret"}
    ) as client:
        place = f"{LOOPBACK}:{client.connection_pool.connection_kwargs['port']}"

        postgres = refused(guest, place, name="POSTGRES")
        redis = refused(guest, place, name="REDIS", scheme="rediss")

    assert f"Expected PostgreSQL at {place}, but found Redis." in postgres
    assert f"Redis at {place} does not speak TLS." in redis
    assert "begin WARMSTACK_REDIS_URL with redis://" in redis


@pytest.mark.parametrize("clients", ["no", "yes"], ids=["a server's", "both sides'"])
def test_a_redis_that_demands_tls_is_told_so(guest: Library, clients: str) -> None:
    """Whether it wants to see a certificate or only shows its own."""
    path = external_servers.program("redis-server")
    with external_servers.open_folder() as folder:
        crt = external_servers.certificate(folder)
        key = crt.with_suffix(".key")
        port = external_servers.free_port()
        lines = (
            *("port 0", f"tls-port {port}", f"tls-auth-clients {clients}"),
            *(f"tls-cert-file {crt}", f"tls-key-file {key}", f"tls-ca-cert-file {crt}"),
        )
        trust = {"ssl": True, "ssl_ca_certs": str(crt), "port": port}
        own = {"ssl_certfile": str(crt), "ssl_keyfile": str(key)}
        with external_servers.redis_server(*lines, path=path, connect={**trust, **own}):
            place = f"{LOOPBACK}:{port}"
            text = refused(guest, place, name="REDIS")
            missing = guest.run(
                *READERS, WARMSTACK_REDIS_URL=f"rediss://{place}?ssl_ca_certs=/nonexistent.crt"
            )
            bare = guest.run(*READERS, WARMSTACK_REDIS_URL=f"rediss://{place}?ssl_ca_certs={crt}")

    assert f"Redis at {place} demands TLS." in text
    assert "begin WARMSTACK_REDIS_URL with rediss://" in text
    missing.assert_outcomes(errors=2, deselected=3)
    assert "could not use the address, or open a file that the URL names: No such file" in told(
        missing
    )
    if clients == "yes":
        bare.assert_outcomes(errors=2, deselected=3)
        assert f"Redis at {place} rejected the connection." in told(bare)
        assert "it requires a client certificate" in told(bare)
    for result in (missing, bare):
        assert "waiting up to" not in told(result)


@pytest.mark.parametrize("query", ["foo=bar", "socket_timeout=soon", "ssl_cert_reqs=perhaps"])
def test_an_option_that_redis_py_does_not_know_is_told(guest: Library, query: str) -> None:
    """In its own words, and not as its traceback."""
    scheme = "rediss" if query.startswith("ssl") else "redis"
    with external_servers.redis_server() as client:
        place = f"{LOOPBACK}:{client.connection_pool.connection_kwargs['port']}"
        result = guest.run(*READERS, WARMSTACK_REDIS_URL=f"{scheme}://{place}?{query}")

    result.assert_outcomes(errors=2, deselected=3)
    assert "Traceback" not in told(result)
    assert "WARMSTACK_REDIS_URL" in told(result)
    if scheme == "redis":
        assert "redis-py rejects the options of the URL: " in told(result)


def test_a_server_that_says_yes_to_everything_is_no_redis(guest: Library) -> None:
    """Its answers look like those of Redis, and tell nothing."""
    with external_servers.talker(b"+OK\r\n" * 50) as place:
        text = refused(guest, place, name="REDIS")

    assert f"Redis at {place} rejected the connection." in text
    assert "its INFO has no version of Redis: 'OK'" in text


# Servers that may still come


def waits(running: Running) -> None:
    """Wait until a run says that it waits."""
    out = running.stem.with_suffix(".out")
    until(lambda: b"waiting up to 60 s for" in out.read_bytes(), "the run waits")


def test_a_server_that_accepts_and_is_silent_may_come(guest: Library) -> None:
    """The kernel takes connections for a server that is busy."""
    with external_servers.cluster() as server, external_servers.redis_server() as client:
        place = f"{LOOPBACK}:{client.connection_pool.connection_kwargs['port']}"
        pids = [server.process.pid if server.process else 0, client.info()["process_id"]]
        for pid, only, variable in zip(
            pids,
            (BOOKS, READERS),
            (
                {"WARMSTACK_POSTGRES_URL": server.url()},
                {"WARMSTACK_REDIS_URL": f"redis://{place}"},
            ),
            strict=True,
        ):
            os.kill(pid, signal.SIGSTOP)
            try:
                running = guest.start(*only, **variable)
                waits(running)
            finally:
                os.kill(pid, signal.SIGCONT)
            running.wait().assert_outcomes(passed=2, deselected=3)


def test_a_postgresql_that_is_starting_may_come(guest: Library) -> None:
    """It says so by itself, here until it is told to be a primary."""
    with external_servers.cluster("hot_standby=off") as server:
        server.stop()
        external_servers.write(server.folder / "data/standby.signal", "")
        server.answers = lambda: external_servers.listens(server.endpoint.port)
        server.start()
        running = guest.start(*BOOKS, WARMSTACK_POSTGRES_URL=server.url())
        waits(running)

        external_servers.write(server.folder / "data/promote", "")
        assert server.process is not None
        server.process.send_signal(signal.SIGUSR1)

        running.wait().assert_outcomes(passed=2, deselected=3)


def test_a_redis_that_is_loading_may_come(guest: Library) -> None:
    """It reads its data, slowly until the run waits, and refuses most commands meanwhile."""
    port = external_servers.free_port()
    lines = ("loading-process-events-interval-bytes 1024", f"port {port}")
    with external_servers.open_folder() as folder:
        with external_servers.redis_server(
            *lines, f"dir {folder}", connect={"port": port}
        ) as client:
            client.mset({f"key:{number}": "x" * 100 for number in range(2000)})
            client.save()
        slow = ("key-load-delay 20000", f"dir {folder}")
        with external_servers.redis_server(
            *lines, *slow, connect={"port": port}, loading=True
        ) as client:
            running = guest.start(*READERS, WARMSTACK_REDIS_URL=f"redis://{LOOPBACK}:{port}")
            waits(running)
            client.config_set("key-load-delay", 0)
            running.wait().assert_outcomes(passed=2, deselected=3)


def test_a_name_that_can_not_be_looked_up_now_may_come(guest: Library, tmp_path: Path) -> None:
    """The server of names does not answer; the message has the seconds."""
    resolv = tmp_path / "resolv.conf"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as names:
        names.bind(("127.77.77.77", 53))
        resolv.write_text("nameserver 127.77.77.77\noptions timeout:1 attempts:1\n")
        running = guest.start(
            mounts=f"mount --bind {resolv} /etc/resolv.conf",
            WARMSTACK_POSTGRES_URL="postgresql://ci:ci@db.example.com",
            WARMSTACK_REDIS_URL="redis://db.example.com",
            WARMSTACK_START_TIMEOUT="3",
        )
        result = running.wait(seconds=30)

    result.assert_outcomes(passed=1, errors=4)
    for port, title in ((5432, "PostgreSQL"), (6379, "Redis")):
        assert f"{title} at db.example.com:{port} did not answer within 3 seconds." in told(result)
        assert f"waiting up to 3 s for {title}" in told(result)
