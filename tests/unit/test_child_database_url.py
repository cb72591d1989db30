"""The template's URL, in the driver that the project wants and in the variables that it reads."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from psycopg import pq
from sqlalchemy import URL, make_url

from pytest_warmstack.placeholders import CERTIFICATES, LIBPQ
from pytest_warmstack.postgres.template.child import database_url

PARTS = {
    "username": "postgres",
    "password": "p%40ss",
    "host": "127.0.0.1",
    "port": 54321,
    "database": "warmstack_b_1",
}
OURS = URL.create("postgresql+psycopg", **PARTS)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path of modules that a test may add to."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PGSSLMODE", "verify-full")


def alembic(folder: Path, url: str = "", env: str | None = None, **more: Any) -> dict[str, Any]:
    """Write a project whose configuration has *url*, and whose env.py is *env*."""
    (folder / "migrations").mkdir(exist_ok=True)
    if env is not None:
        (folder / "migrations/env.py").write_text(env)
    line = f"sqlalchemy.url = {url}\n" if url else ""
    ini = folder / "alembic.ini"
    ini.write_text(f"[alembic]\nscript_location = %(here)s/migrations\n{line}")
    usual = {
        "home": str(ini.parent),
        "ini": str(ini),
        "toml": None,
        "section": "alembic",
        "x": [],
        "callable": "",
    }
    return usual | more


# The driver


@pytest.mark.parametrize(
    ("own", "driver"),
    [
        ("postgresql+asyncpg://u:p@db/prod", "postgresql+asyncpg"),
        ("postgresql+psycopg2://u:p@db/prod", "postgresql+psycopg2"),
        ("postgresql://u:p@db/prod", "postgresql"),
        ("postgresql+psycopg://", "postgresql+psycopg"),
        # What env.py fills in is not there yet.
        ("postgresql+asyncpg://%(SHOP_USER)s@db/prod", "postgresql+asyncpg"),
    ],
)
def test_the_driver_is_the_one_of_the_projects_own_url(
    tmp_path: Path, own: str, driver: str
) -> None:
    """Of that URL nothing else is taken over."""
    url = database_url.url(alembic(tmp_path, own), PARTS)

    assert url == OURS.set(drivername=driver)


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "postgresql+psycopg2", "postgresql"])
@pytest.mark.parametrize(
    ("query", "kept"),
    [
        ("options=-csearch_path%%3Dshop,public", {"options": "-csearch_path=shop,public"}),
        ("application_name=shop&connect_timeout=", {"application_name": "shop"}),
        ("options=-ca%%3Db&options=-cc%%3Dd", {"options": ("-ca=b", "-cc=d")}),
        # What is about the project's own server does not hold for another one.
        ("host=/run/pg&port=1&user=me&password=x&dbname=a&service=b&hostaddr=::1", {}),
        ("sslmode=verify-full&sslrootcert=/ca.pem&target_session_attrs=standby", {}),
        ("passfile=/x&channel_binding=require&require_auth=none&gssencmode=require", {}),
    ],
)
def test_the_options_of_the_projects_own_url_are_kept(
    tmp_path: Path, driver: str, query: str, kept: dict[str, Any]
) -> None:
    """In an ini file, where ConfigParser has a word in it, and in a variable."""
    own = f"{driver}://u:p@db/prod?{query}"

    url = database_url.url(alembic(tmp_path, own), PARTS)

    assert url.query == {**({"connect_timeout": ""} if "connect_timeout" in query else {}), **kept}
    assert url.set(query={}) == OURS.set(drivername=driver)
    assert database_url.like(own.replace("%%", "%"), OURS) == url


def test_the_options_of_a_url_for_libpq_are_kept(tmp_path: Path) -> None:
    """`postgres://`, as hosting services write it; asyncpg takes other options."""
    own = "postgres://u:p@db/prod?options=-csearch_path%%3Dshop,public&sslmode=require"

    url = database_url.url(alembic(tmp_path, own), PARTS)

    assert url == OURS.set(
        drivername=url.drivername, query={"options": "-csearch_path=shop,public"}
    )
    asyncpg = OURS.set(drivername="postgresql+asyncpg")
    assert database_url.like(own, asyncpg) == asyncpg


@pytest.mark.parametrize("own", ["", "driver://user:pass@localhost/dbname", "no url", "mysql://db"])
@pytest.mark.parametrize(
    ("env", "driver"),
    [
        ("from sqlalchemy.ext.asyncio import async_engine_from_config", "postgresql+asyncpg"),
        ("from sqlalchemy.ext.asyncio import create_async_engine", "postgresql+asyncpg"),
        ("from sqlalchemy import engine_from_config", "postgresql+psycopg"),
        (None, "postgresql+psycopg"),
    ],
)
def test_without_a_url_env_py_tells_whether_it_waits(
    tmp_path: Path, own: str, env: str | None, driver: str
) -> None:
    """Alembic's templates have a placeholder; a synchronous engine needs another driver."""
    assert database_url.url(alembic(tmp_path, own, env), PARTS).drivername == driver


@pytest.mark.parametrize(
    ("installed", "driver"),
    [
        ({"psycopg", "psycopg2"}, "postgresql+psycopg"),
        ({"psycopg2"}, "postgresql+psycopg2"),
        (set(), "postgresql+asyncpg"),
    ],
)
def test_a_synchronous_driver_is_one_that_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: set[str], driver: str
) -> None:
    """Where there is none, the error tells what to install."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: find(name) if name in installed or "psycopg" not in name else None,
    )

    assert database_url.url(alembic(tmp_path, env=""), PARTS).drivername == driver
    assert database_url.url(alembic(tmp_path, callable="shop:make"), PARTS).drivername == driver


def test_scripts_alone_have_the_driver_that_we_bring() -> None:
    """Without Alembic there is nobody to ask."""
    assert database_url.url(None, PARTS).drivername == "postgresql+asyncpg"


def test_the_section_that_was_named_is_the_one_that_is_asked(tmp_path: Path) -> None:
    """Each database of a project may have a driver of its own."""
    project = alembic(tmp_path, "postgresql+psycopg2://db/a", section="shop")
    with Path(project["ini"]).open("a") as file:
        file.write("[shop]\nsqlalchemy.url = postgresql+asyncpg://db/b\n")

    assert database_url.url(project, PARTS).drivername == "postgresql+asyncpg"


@pytest.mark.parametrize("text", ["", "alembic", "[alembic]\nsqlalchemy.url = %(absent)s\n"])
def test_a_configuration_that_cannot_be_read_is_no_error_yet(tmp_path: Path, text: str) -> None:
    """What is wrong with it is told by Alembic, when it is used."""
    project = alembic(tmp_path)
    Path(project["ini"]).write_text(text)

    assert database_url.url(project, PARTS).database == "warmstack_b_1"


def test_env_py_is_found_in_a_package_on_alembics_own_path(tmp_path: Path) -> None:
    """`prepend_sys_path` counts for where the scripts are, as it does for Alembic's command."""
    project = alembic(tmp_path)
    package = tmp_path / "lib/warmstack_wired"
    (package / "migrations").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "migrations/env.py").write_text("create_async_engine()")
    Path(project["ini"]).write_text(
        "[alembic]\nscript_location = warmstack_wired:migrations\n"
        "prepend_sys_path = %(here)s/lib\npath_separator = os\n"
    )

    assert database_url.url(project, PARTS).drivername == "postgresql+asyncpg"


@pytest.mark.parametrize(
    ("own", "query"),
    [
        ("postgresql+asyncpg://db/a", {"ssl": "require"}),
        ("postgresql+psycopg://db/a", {"sslmode": "require"}),
        ("postgresql+psycopg2://db/a", {"sslmode": "require"}),
        ("postgresql://db/a", {"sslmode": "require"}),
        # It takes no word for it, only an object.
        ("postgresql+pg8000://db/a", {}),
    ],
)
def test_each_driver_is_told_about_tls_by_its_own_name_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, query: dict[str, str]
) -> None:
    """In the URL that Alembic gets, and in a variable whose URL names the driver."""
    parts = PARTS | {"query": {"sslmode": "require"}}
    monkeypatch.setenv("SHOP_URL", own)

    database_url.set_environment(["SHOP_URL={db_url}"], database_url.url(None, parts))

    assert database_url.url(alembic(tmp_path, own), parts).query == query
    assert make_url(os.environ["SHOP_URL"]).query == query


# The environment


def values(monkeypatch: pytest.MonkeyPatch, *lines: str, **before: str) -> dict[str, str]:
    """Return what the variables that *lines* name are set to."""
    names = [line.partition("=")[0] for line in lines]
    for name in names:
        # Set first, so that it is taken away again at the end.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    database_url.set_environment(lines, OURS)
    return {name: os.environ[name] for name in names}


@pytest.mark.parametrize(("query", "mode"), [({}, "prefer"), ({"ssl": "require"}, "require")])
def test_what_the_machine_says_to_libpq_does_not_count(
    monkeypatch: pytest.MonkeyPatch, query: dict[str, str], mode: str
) -> None:
    """It is about other servers, but for certificates, which no URL can name for every driver."""
    known = {each.envvar.decode() for each in pq.Conninfo.get_defaults() if each.envvar}
    for name in (*known, *LIBPQ, *CERTIFICATES):
        monkeypatch.setenv(name, "nonsense")

    database_url.set_environment([], OURS.set(query=query))

    left = {name: value for name, value in os.environ.items() if value == "nonsense"}
    assert set(left) == (set(CERTIFICATES) if query else set())
    assert os.environ["PGSSLMODE"] == mode


def test_a_line_of_the_projects_own_about_tls_counts() -> None:
    """Whoever writes it means it."""
    database_url.set_environment(["PGSSLMODE=allow"], OURS)

    assert os.environ["PGSSLMODE"] == "allow"


def test_what_stands_in_braces_is_the_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The URL in one piece, or in its parts."""
    found = values(
        monkeypatch,
        "SHOP_URL={db_url}?application_name=shop",
        "SHOP_PARTS={db_host}:{db_port}/{db_name} {db_user} {db_password}",
        "SHOP_PLAIN=a=b",
        "SHOP_EMPTY=",
        "SHOP_BRACES={{}}",
    )

    assert make_url(found["SHOP_URL"]).set(query={}) == OURS
    assert found["SHOP_PARTS"] == "127.0.0.1:54321/warmstack_b_1 postgres p%40ss"
    assert (found["SHOP_PLAIN"], found["SHOP_EMPTY"]) == ("a=b", "")
    assert found["SHOP_BRACES"] == "{}"


@pytest.mark.parametrize(
    ("before", "driver"),
    [
        ("postgresql+asyncpg://u:p@db/prod", "postgresql+asyncpg"),
        ("postgresql://u:p@db/prod", "postgresql"),
        ("mysql://u:p@db/prod", "postgresql+psycopg"),
        ("nonsense", "postgresql+psycopg"),
        ("", "postgresql+psycopg"),
    ],
)
def test_a_url_that_stands_there_already_tells_the_driver(
    monkeypatch: pytest.MonkeyPatch, before: str, driver: str
) -> None:
    """The application may want another one than env.py; of the rest its options are kept."""
    found = values(monkeypatch, "SHOP_URL={db_url}", SHOP_URL=before)

    assert make_url(found["SHOP_URL"]) == OURS.set(drivername=driver)


def test_a_line_may_add_options_to_a_url_that_has_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second question mark would be part of a value."""
    before = "postgresql+psycopg://u:p@db/prod?options=-cx%3Dy"

    found = values(monkeypatch, "SHOP_URL={db_url}?application_name=shop", SHOP_URL=before)

    assert make_url(found["SHOP_URL"]).query == {"options": "-cx=y", "application_name": "shop"}
