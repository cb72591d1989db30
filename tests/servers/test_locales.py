"""Letters, order and patterns in both runtimes are the same as in the official image."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import pytest

from projects import Bench, query
from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.options import RuntimeName, Settings
from pytest_warmstack.postgres import native
from pytest_warmstack.postgres import server as postgres
from pytest_warmstack.servers.errors import ServerFailed
from pytest_warmstack.servers.model import Server

PROMISES = {
    "SELECT lower('ÄÖÜ ИВАН ΑΘΗΝΑ')": "äöü иван αθηνα",
    "SELECT upper('äöü иван é')": "ÄÖÜ ИВАН É",
    "SELECT initcap('éric ärger иван')": "Éric Ärger Иван",
    "SELECT 'Иван' ILIKE 'иВАН'": True,
    "SELECT 'Äpfel' ~* '^äpf'": True,
    r"SELECT 'é' ~ '^\w$'": True,
    "SELECT 'Ж' ~ '^[[:upper:]]$'": True,
    r"SELECT regexp_replace('Übung 7', '\W', '', 'g')": "Übung7",
    "SELECT length('Ärger') || '/' || octet_length('Ärger')": "5/6",
    # The order of code points, which is that of the bytes.
    "SELECT string_agg(n, ' ' ORDER BY n) FROM unnest(ARRAY['é','z','Z','a','Ä','_','я']) n": (
        "Z _ a z Ä é я"
    ),
    "SELECT 'Zebra' < 'apfel' AND 'apfel' < 'Ärger'": True,
    "SELECT to_tsvector('Die Äpfel')::text": "'die':1 'äpfel':2",
    "SELECT current_setting('default_text_search_config')": "pg_catalog.english",
    "SELECT current_setting('server_encoding')": "UTF8",
    "SELECT to_char(date '2024-03-01', 'TMMonth') || to_char(12.5, ' FM99D0')": "March 12.5",
}
"""Statements, and what the official `-alpine` images answer."""


@pytest.fixture(scope="module")
def database(standing: Bench) -> Iterator[Server[Any]]:
    """A PostgreSQL that a whole file looks at."""
    yield standing.ensure(standing.postgres)
    standing.leave()


@pytest.mark.parametrize("origin", ["the database itself", "made from template0"])
def test_text_is_treated_alike_in_both_runtimes(database: Server[Any], origin: str) -> None:
    """Letters of all languages count as such, and text sorts by code point."""
    name = "postgres"
    if origin != "the database itself":
        name = "from_nothing"
        create = f"CREATE DATABASE {name} TEMPLATE template0"
        asyncio.run(query(database.endpoint, f"DROP DATABASE IF EXISTS {name}"))
        asyncio.run(query(database.endpoint, create))

    said = {
        each: asyncio.run(query(database.endpoint, each, database=name))[0][0] for each in PROMISES
    }

    assert said == PROMISES


def embedded(bench: Bench, background: BackgroundLoop, major: int, *env: str) -> Server[Any]:
    """Return an embedded PostgreSQL of a version, with variables of the user's."""
    spec = postgres.spec(Settings(postgres_env=env, postgres_image=f"postgres:{major}"), background)
    return bench.ensure(spec.replace(number=major))


def locale(server: Server[Any]) -> list[str]:
    """Return the provider, the order and the kinds of letters of the server's databases."""
    statement = "SELECT datlocprovider, datcollate, datctype, lower('Ä') FROM pg_database"
    rows = {tuple(row) for row in asyncio.run(query(server.endpoint, statement))}
    assert len(rows) == 1
    provider, *others = rows.pop()
    # asyncpg gives a "char" as bytes.
    return [provider.decode(), *others]


only_embedded = pytest.mark.parametrize("runtime", [RuntimeName.EMBEDDED], indirect=True)


@only_embedded
def test_the_users_own_locale_wins(bench: Bench, background: BackgroundLoop) -> None:
    """Arguments for initdb count more than the plugin's, and are no reason for a remark."""
    server = embedded(bench, background, 16, "POSTGRES_INITDB_ARGS=--locale=C")

    assert locale(server) == ["c", "C", "C", "Ä"]
    assert server.reason == ""


@only_embedded
def test_without_the_locale_the_servers_own_tables_serve(
    bench: Bench, background: BackgroundLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL 17 and later know letters by themselves."""
    monkeypatch.setattr(native, "LOCALE", "xx_XX.UTF-8")

    server = embedded(bench, background, 18)

    assert locale(server) == ["b", "C", "C", "ä"]
    assert server.reason == ""


@only_embedded
def test_a_machine_without_any_such_locale_says_so(
    bench: Bench, background: BackgroundLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What older versions then do not know is said, also by the next run."""
    none = [["--locale=xx_XX.UTF-8"], [native._NO_LOCALE]]
    monkeypatch.setattr(native.NativePostgres, "_locales", lambda *_: none)

    first = embedded(bench, background, 16)
    second = embedded(bench, background, 16)

    assert locale(first) == ["c", "C", "C", "Ä"]
    for server in (first, second):
        assert re.fullmatch(r"this machine has no locale .+ only ASCII letters", server.reason)


@only_embedded
def test_a_locale_that_the_machine_lacks_is_named(bench: Bench, background: BackgroundLoop) -> None:
    """What the user asks for is not replaced by something else."""
    with pytest.raises(ServerFailed, match="invalid locale name") as caught:
        embedded(bench, background, 16, "POSTGRES_INITDB_ARGS=--locale=xx_XX.UTF-8")

    assert "xx_XX.UTF-8" in str(caught.value)
