"""The template's URL, in the ways in which the project may ask for it."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs

from sqlalchemy import URL

from pytest_warmstack.placeholders import CERTIFICATES, LIBPQ, filled

_TLS: Final = {
    "postgresql": "sslmode",
    "postgresql+asyncpg": "ssl",
    "postgresql+psycopg": "sslmode",
    "postgresql+psycopg_async": "sslmode",
    "postgresql+psycopg2": "sslmode",
}
"""What the parameter is called that tells a driver whether to use TLS."""

_PLACE: Final = re.compile(
    r"ssl|gss|krbsrvname|host|port$|user|password|passfile|dbname|database|service|require"
    r"|channel_binding|target_session_attrs|load_balance_hosts|direct_tls"
)
"""Beginnings of the parameters of a URL that are about its own server, and who connects to it."""


def url(alembic: dict[str, Any] | None, parts: dict[str, Any]) -> URL:
    """Return the template's URL with the driver and the options of the project's own URL.

    The stock templates have a placeholder there; then env.py tells whether it is asynchronous.
    """
    if alembic is None:
        return _made("postgresql+asyncpg", parts)
    if alembic["callable"]:
        return _made(_synchronous() or "postgresql+asyncpg", parts)
    from alembic.config import Config

    try:
        config = Config(alembic["ini"], toml_file=alembic["toml"], ini_section=alembic["section"])
        own = own_url(config)
        location = config.get_alembic_option("script_location") or ""
        # A relative one is written for the current folder; of a file that the user named, we know
        # no other than the root, or the file's own.
        if not Path(location).exists() and Path(alembic["home"], location).is_dir():
            os.chdir(alembic["home"])
        sys.path[:0] = config.get_prepend_sys_paths_list() or []
    except Exception:
        own, location = "", ""  # What is wrong with it is told when it is used.
    return like(own, _made(_driver(own) or _guessed(location), parts))


def own_url(config: Any) -> str:
    """Return what Alembic's *config* has as the project's own URL."""
    section = config.config_ini_section
    # Raw: what env.py fills in is not there yet.
    found = config.file_config.get(section, "sqlalchemy.url", raw=True, fallback="")
    return str(found).replace("%%", "%")


def like(own: str, url: URL) -> URL:
    """Return *url* with the driver and the options of the project's *own* URL, if it is one.

    What that says about its server, and who connects to it, does not hold for another server.
    A URL of `postgres://` names no driver of SQLAlchemy's: its options are those of libpq.
    """
    driver = _driver(own)
    if own.startswith("postgres://") and "asyncpg" not in url.drivername:
        driver = url.drivername
    if not driver:
        return url
    options = parse_qs(own.partition("?")[2], keep_blank_values=True)
    kept = {
        name: values[0] if len(values) == 1 else values
        for name, values in options.items()
        if not _PLACE.match(name)
    }
    return _with_driver(url, driver).update_query_dict(kept)


def for_code(url: URL, driver: str = "") -> URL:
    """Return *url* for code that connects by itself: with *driver*, or a synchronous one."""
    return _with_driver(url, driver or _synchronous() or "postgresql+asyncpg")


def set_environment(lines: Sequence[str], url: URL) -> None:
    """Set the variables that *lines* name, such as `DATABASE_URL={db_url}`.

    A URL that stands there already tells the driver and the options that the application wants.
    """
    before = dict(os.environ)
    mode = _mode(url)
    for name in LIBPQ if mode else (*LIBPQ, *CERTIFICATES):
        os.environ.pop(name, None)
    # Every driver reads it where a URL says nothing.
    os.environ["PGSSLMODE"] = mode or "prefer"
    for line in lines:
        name, _, value = line.partition("=")
        filled_in = like(before.get(name, ""), url)
        if filled_in.query:
            value = value.replace("{db_url}?", "{db_url}&")
        os.environ[name] = filled(value, _values(filled_in))


def _made(driver: str, parts: dict[str, Any]) -> URL:
    return _with_driver(URL.create("postgresql", **parts), driver)


def _with_driver(url: URL, driver: str) -> URL:
    """Return *url* for *driver*; what it says about TLS, each of them calls by another name."""
    mode = _mode(url)
    name = _TLS.get(driver, "")
    return url.set(drivername=driver, query={name: mode} if name and mode else {})


def _mode(url: URL) -> str:
    """Return what *url* says about TLS, if anything."""
    return str(url.query.get("sslmode") or url.query.get("ssl") or "")


def _values(url: URL) -> dict[str, Any]:
    """Return what the names in braces stand for."""
    return {
        "db_url": url.render_as_string(hide_password=False),
        "db_host": url.host,
        "db_port": url.port,
        "db_user": url.username,
        "db_password": url.password,
        "db_name": url.database,
    }


def _driver(text: str) -> str:
    """Return the driver that a PostgreSQL URL names, nothing for any other text."""
    found = re.match(r"(postgresql(?:\+\w+)?)://", text)
    return found[1] if found else ""


def _guessed(location: str) -> str:
    """Return a driver that env.py can use: an asynchronous one if it makes such an engine."""
    package, colon, rest = location.partition(":")
    home = Path(location)
    if colon and not home.is_absolute():
        spec = importlib.util.find_spec(package)
        folders = list(spec.submodule_search_locations or ()) if spec else []
        home = Path(folders[0], rest) if folders else home
    env = home / "env.py"
    if env.is_file() and "async_engine" in env.read_text(encoding="utf-8", errors="replace"):
        return "postgresql+asyncpg"
    return _synchronous() or "postgresql+asyncpg"


def _synchronous() -> str:
    """Return a synchronous driver that is installed."""
    for driver in ("psycopg", "psycopg2"):
        if importlib.util.find_spec(driver) is not None:
            return f"postgresql+{driver}"
    return ""
