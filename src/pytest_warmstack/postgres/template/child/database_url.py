"""The template's URL, in every form that the project may need."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

from sqlalchemy import URL

from pytest_warmstack.placeholders import (
    CERTIFICATES,
    LIBPQ,
    NO_REDIS,
    SERVER_PARAMETERS,
    filled,
)

if TYPE_CHECKING:
    from alembic.config import Config

ASYNCPG: Final = "postgresql+asyncpg"

_TLS_PARAMETERS: Final = {
    "postgresql": "sslmode",
    ASYNCPG: "ssl",
    "postgresql+psycopg": "sslmode",
    "postgresql+psycopg_async": "sslmode",
    "postgresql+psycopg2": "sslmode",
}
"""The parameter of a URL that controls TLS, for each driver."""


def url(alembic: dict[str, Any] | None, parts: dict[str, Any]) -> URL:
    """Return the template's URL with the driver and the options of the project's own URL.

    Alembic's own templates have a placeholder instead of a URL; then env.py decides whether the
    driver is asynchronous.
    """
    made = URL.create("postgresql", **parts)
    if alembic is None:
        return _with_driver(made, ASYNCPG)
    if alembic["callable"]:
        return for_code(made)
    try:
        config, database = read(alembic)
        own = own_url(config, database)
        location = config.get_alembic_option("script_location") or ""
        # A relative path begins at the current folder, which is not known for a file that the user
        # named: it is the root or the folder of the file.
        if not Path(location).exists() and Path(alembic["home"], location).is_dir():
            os.chdir(alembic["home"])
        sys.path[:0] = config.get_prepend_sys_paths_list() or []
    except Exception:
        own, location = "", ""  # Alembic reports the error when it uses the configuration.
    return like(own, for_code(made, _driver(own) or (ASYNCPG if _is_async(location) else "")))


def read(alembic: dict[str, Any]) -> tuple[Config, str]:
    """Return Alembic's configuration, and the database that the section chooses.

    The database is "" unless the section is one of those that the line `databases` lists, as in
    Alembic's template multidb: such a section has a URL, and all else is in the main section.
    """
    from alembic.config import Config

    section = alembic["section"]
    config = Config(alembic["ini"], toml_file=alembic["toml"])
    if section in databases(config):
        return config, section
    return Config(alembic["ini"], toml_file=alembic["toml"], ini_section=section), ""


def databases(config: Config) -> list[str]:
    """Return the databases that Alembic's *config* lists, as in its template multidb."""
    return (config.get_main_option("databases") or "").replace(",", " ").split()


def own_url(config: Config, section: str = "") -> str:
    """Return the project's own URL in Alembic's *config*, or "" if there is none."""
    section = section or config.config_ini_section
    # Raw, since env.py may fill in values that are not there yet.
    found = config.file_config.get(section, "sqlalchemy.url", raw=True, fallback="")
    return str(found).replace("%%", "%")


def like(own: str, url: URL) -> URL:
    """Return *url* with the driver and the options of the project's *own* URL, if it is one.

    Options that describe the project's own server are left out. `postgres://` is not a name of
    SQLAlchemy: such a URL has options of libpq, which asyncpg doesn't accept.
    """
    driver = _driver(own)
    if own.startswith("postgres://") and url.drivername != ASYNCPG:
        driver = url.drivername
    if not driver:
        return url
    options = parse_qs(own.partition("?")[2], keep_blank_values=True)
    return _with_driver(url, driver).update_query_dict(
        {
            name: values[0] if len(values) == 1 else values
            for name, values in options.items()
            if not SERVER_PARAMETERS.match(name)
        }
    )


def for_code(url: URL, driver: str = "") -> URL:
    """Return *url* with *driver*; without one, with a synchronous driver if it is installed."""
    for name in ("psycopg", "psycopg2"):
        if not driver and importlib.util.find_spec(name) is not None:
            driver = f"postgresql+{name}"
    return _with_driver(url, driver or ASYNCPG)


def set_environment(
    lines: Sequence[str], url: URL, before: Mapping[str, str | None] | None = None
) -> None:
    """Set the variables of *lines*, such as `DATABASE_URL={db_url}`; unset those of libpq.

    *before* has the values of variables that this package set in the parent process.
    """
    made = variables(lines, url, {**os.environ, **(before or {})})
    mode = _tls_mode(url)
    for name in LIBPQ if mode else (*LIBPQ, *CERTIFICATES):
        os.environ.pop(name, None)
    # Every driver reads this if the URL has no TLS option.
    os.environ["PGSSLMODE"] = mode or "prefer"
    os.environ.update(made)


def variables(lines: Sequence[str], url: URL, before: Mapping[str, str | None]) -> dict[str, str]:
    """Return the variables of *lines*, such as `DATABASE_URL={db_url}`, with the parts of *url*.

    If a variable has a URL in *before*, its driver and options are kept.
    """
    made = {}
    for line in lines:
        name, _, value = line.partition("=")
        own = like(before.get(name) or "", url)
        if own.query:
            value = value.replace("{db_url}?", "{db_url}&")
        values = {
            **NO_REDIS,
            "db_url": own.render_as_string(hide_password=False),
            "db_dsn": _with_driver(url, "postgresql").render_as_string(hide_password=False),
            "db_host": own.host,
            "db_port": own.port,
            "db_user": own.username,
            "db_password": own.password,
            "db_name": own.database,
        }
        made[name] = filled(value, values)
    return made


def _with_driver(url: URL, driver: str) -> URL:
    """Return *url* for *driver*, with the driver's own name for the TLS parameter."""
    name, mode = _TLS_PARAMETERS.get(driver, ""), _tls_mode(url)
    return url.set(drivername=driver, query={name: mode} if name and mode else {})


def _tls_mode(url: URL) -> str:
    return str(url.query.get("sslmode") or url.query.get("ssl") or "")


def _driver(text: str) -> str:
    """Return the driver in a PostgreSQL URL, or "" for any other text."""
    found = re.match(r"(postgresql(?:\+\w+)?)://", text)
    return found[1] if found else ""


def _is_async(location: str) -> bool:
    """Return whether the env.py in Alembic's script *location* makes an asynchronous engine."""
    package, colon, rest = location.partition(":")
    home = Path(location)
    if colon and not home.is_absolute():
        spec = importlib.util.find_spec(package)
        folders = list(spec.submodule_search_locations or ()) if spec else []
        home = Path(folders[0], rest) if folders else home
    env = home / "env.py"
    return env.is_file() and "async_engine" in env.read_text(encoding="utf-8", errors="replace")
