"""The advice for migrations that don't find their database works as it is written."""

from __future__ import annotations

import re

import pytest

from projects import Library

PARTS = """
import os
from alembic import context
from sqlalchemy import URL, create_engine

url = URL.create(
    "postgresql+psycopg",
    username=os.environ.get("POSTGRES_USER", "shop"),
    password=os.environ.get("POSTGRES_PASSWORD"),
    host=os.environ.get("POSTGRES_HOST", "db.invalid"),
    port=int(os.getenv("POSTGRES_PORT", "5432")),
    database=os.environ.get("POSTGRES_DB", "shop"),
)
with create_engine(url).connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
"""
READ = 'os.environ.get("POSTGRES_HOST", "db.invalid")'
STRICT = PARTS.replace(READ, 'os.environ["POSTGRES_HOST"]')
SETTINGS = """
from pydantic_settings import BaseSettings

class Settings(BaseSettings):
    postgres_server: str = "localhost"
    postgres_port: int = 5432
    postgres_user: str = "shop"
    postgres_password: str = "shop"
    postgres_db: str = "shop"

settings = Settings()
url = (
    f"postgresql+psycopg://{settings.postgres_user}:{settings.postgres_password}"
    f"@{settings.postgres_server}:{settings.postgres_port}/{settings.postgres_db}"
)
"""
DEMANDING = """
from pydantic_settings import BaseSettings

class Settings(BaseSettings):
    database_url: str
    redis_url: str
    secret_key: str

url = Settings().database_url
"""
HEAD = "from alembic import context\nfrom app_settings import url\n"
HEAD += "from sqlalchemy import create_engine\n"
APPLICATION = HEAD + PARTS[PARTS.index("with create_engine") :]
FIVE = ["HOST", "PORT", "USER", "PASSWORD", "DB"]


def advice(result: pytest.RunResult) -> list[str]:
    """Return the lines of the first advice in what a run printed, without their first one."""
    text = result.stdout.str()
    found = re.search(r"What to do:\n  - (?:write|add) .*\n((?:    .*\n)+)", text)
    assert found is not None, text
    return [line[4:] for line in found[1].splitlines()]


@pytest.mark.parametrize(
    ("env", "settings", "names"),
    [
        (PARTS, "", [f"POSTGRES_{each}" for each in FIVE]),
        (STRICT, "", [f"POSTGRES_{each}" for each in FIVE]),
        (APPLICATION, SETTINGS, [f"POSTGRES_{each}" for each in ("SERVER", *FIVE[1:])]),
        (APPLICATION, DEMANDING, ["DATABASE_URL", "REDIS_URL", "SECRET_KEY"]),
    ],
    ids=["parts", "parts without a default", "settings", "settings that demand"],
)
@pytest.mark.parametrize("file", ["pytest.ini", "pyproject.toml"])
def test_the_lines_that_the_error_names_are_the_cure(
    kept: Library, env: str, settings: str, names: list[str], file: str
) -> None:
    """All of them at once, in the syntax of the file, whichever way the application reads them."""
    kept.write("migrations/env.py", env)
    kept.write("app_settings.py", settings)
    kept.write("alembic.ini", "[alembic]\nscript_location = migrations\nprepend_sys_path = .\n")
    if file == "pyproject.toml":
        (kept.folder / "pytest.ini").unlink()
        lines = ["[tool.pytest.ini_options]", 'asyncio_mode = "auto"']
        kept.write(file, "\n".join([*lines, 'warmstack_runtime = "embedded"', ""]))

    refused = kept.run("--reuse-containers", "-k", "book")
    refused.assert_outcomes(errors=1, deselected=4)
    lines = advice(refused)

    with (kept.folder / file).open("a") as configuration:
        configuration.writelines(f"{line}\n" for line in lines)
    assert {name for name in names if f"{name}=" in "\n".join(lines)} == set(names)
    assert sum("=" in line for line in lines) == len(names) + 1  # warmstack_env itself
    kept.run("--reuse-containers", "-k", "book").assert_outcomes(passed=1, deselected=4)
