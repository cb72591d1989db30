"""What the project's code reads of its environment, and which lines would help it."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_warmstack.placeholders import lines_for, placeholder_of
from pytest_warmstack.postgres.template.child.variables import Variables

SETTINGS = (
    "import os\nfrom pydantic import AliasChoices, BaseModel, Field\n"
    "from pydantic_settings import BaseSettings\n"
)


@pytest.fixture
def environment() -> Iterator[Variables]:
    """The environment, listened to."""
    before = dict(vars(os.environ))
    made = Variables()
    made.watch()
    yield made
    vars(os.environ).update(before)


def failed(folder: Path, text: str) -> BaseException | None:
    """Run *text* as a file of a project; return what it raises."""
    path = folder / "settings.py"
    path.write_text(text)
    try:
        runpy.run_path(str(path))
    except Exception as error:
        return error
    return None


def wanted(text: str, folder: Path, *own: str, refused: bool = False) -> list[str]:
    """Return what is wanted after *text* was run in a process of its own."""
    (folder / "settings.py").write_text(text)
    code = (
        "import runpy, sys\n"
        "from pytest_warmstack.postgres.template.child.variables import Variables\n"
        "made = Variables(); made.watch(); found = None\n"
        "try: runpy.run_path(sys.argv[1])\n"
        "except Exception as error: found = error\n"
        f"print(*made.wanted(found, {own!r}, refused={refused}))\n"
    )
    command = [sys.executable, "-c", code, str(folder / "settings.py")]
    variables = {**os.environ, "SHOP_DB_HOST": "set"}
    found = subprocess.run(
        command, check=True, capture_output=True, text=True, cwd=folder, env=variables
    )
    return found.stdout.split()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("os.environ['SHOP_KEY']", "SHOP_KEY"),
        ("x = os.getenv('DB_HOST'), os.environ['DB_NAME']", "DB_NAME DB_HOST"),
        ("x = os.environ['DB_HOST'] + os.environ['DB_PORT']", "DB_HOST DB_PORT"),
        ("os.environ['DATABASE_URL'], os.getenv('REDIS_URL')", "DATABASE_URL REDIS_URL"),
        ("raise RuntimeError('set %s' % os.environ.get('SHOP_KEY', 'SHOP_KEY'))", "SHOP_KEY"),
        ("import sqlalchemy; sqlalchemy.create_engine(os.getenv('DATABASE_URL'))", "DATABASE_URL"),
        ("{}['DB_HOST']", ""),
        ("os.getenv('DATABASE_URL'); raise RuntimeError('no such table')", ""),
        ("os.environ.get('DB_HOST')", ""),
        (
            "class S(BaseSettings):\n    database_url: str\n    redis_url: str\n    key: str\nS()",
            "DATABASE_URL REDIS_URL KEY",
        ),
        (
            "class S(BaseSettings, env_prefix='shop_'):\n    db_name: str\n    port: int = 1\nS()",
            "SHOP_DB_NAME",
        ),
        (
            "class S(BaseSettings):\n    url: str = Field(validation_alias='PG_DSN')\n"
            "    host: str = Field(validation_alias=AliasChoices('DB_HOST', 'HOST'))\nS()",
            "PG_DSN DB_HOST",
        ),
        (
            "class D(BaseModel):\n    host: str\n    port: int\n"
            "class S(BaseSettings, env_nested_delimiter='__'):\n    db: D\n"
            "os.environ['DB__PORT'] = '1'\nS()",
            "DB__HOST",
        ),
        ("class S(BaseModel):\n    db_host: str\nS()", "DB_HOST"),
        ("class S(BaseSettings):\n    port: int = 'x'\n    db_port: int\nS(db_port='y')", ""),
    ],
)
def test_what_code_says_that_it_misses_is_wanted(tmp_path: Path, text: str, names: str) -> None:
    """With what its file names besides; and nothing where something else is wrong."""
    assert wanted(SETTINGS + text, tmp_path) == names.split()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("os.getenv('DB_HOST', 'x'), os.getenv('DB_ECHO'), os.getenv('HOME')", "DB_HOST"),
        ("os.environ['PGUSER'] = 'me'; os.environ['PGUSER']", "PGUSER"),
        # A copy of everything reads nothing.
        ("import psycopg; psycopg.conninfo.conninfo_attempts({'host': 'x'})", ""),
        ("dict(os.environ), os.environ.copy(), {**os.environ}", ""),
        (
            "class S(BaseSettings, env_prefix='shop_'):\n    db_server: str = 'x'\n"
            "    db_password: str = ''\n    echo: bool = False\nS()",
            "SHOP_DB_SERVER SHOP_DB_PASSWORD",
        ),
        (
            "class D(BaseModel):\n    host: str = 'x'\n    name: str = ''\n"
            "class S(BaseSettings, env_nested_delimiter='__'):\n    db: D = D()\nS()",
            "DB__HOST DB__NAME",
        ),
    ],
)
def test_what_leads_elsewhere_is_wanted_where_the_connection_was_refused(
    tmp_path: Path, text: str, names: str
) -> None:
    """Also what has a default, or is set for another server."""
    assert wanted(SETTINGS + text, tmp_path, refused=True) == names.split()


def test_what_a_line_sets_already_is_not_wanted_again(tmp_path: Path) -> None:
    """It is there, and not what is missing."""
    text = SETTINGS + "os.getenv('DB_HOST'), os.getenv('DB_PORT')"

    assert wanted(text, tmp_path, "DB_HOST={db_host}", refused=True) == ["DB_PORT"]


def test_reading_goes_on_as_before(environment: Variables, tmp_path: Path) -> None:
    """What is read is the same, whichever way."""
    os.environ["SHOP_A"] = "1"

    assert (os.environ["SHOP_A"], os.getenv("SHOP_A"), "SHOP_A" in os.environ) == ("1", "1", True)
    assert dict(os.environ)["SHOP_A"] == "1"
    assert failed(tmp_path, "import os; os.environ['SHOP_NONE']") is not None
    assert environment.read.count("SHOP_NONE") == 1
    del os.environ["SHOP_A"]


@pytest.mark.parametrize(
    ("names", "placeholder"),
    [
        ("DATABASE_URL POSTGRES_DSN SQLALCHEMY_DATABASE_URI APP_DB_URL DATABASE_URL_ASYNC", "url"),
        ("PGHOST DB_HOST POSTGRES_SERVER DATABASE_HOSTNAME DB__HOST db_host", "host"),
        ("PGPORT DB_PORT POSTGRES_PORT", "port"),
        ("PGUSER DB_USERNAME POSTGRES_USER", "user"),
        ("PGPASSWORD DB_PASS POSTGRES_PASSWORD DATABASE_PWD", "password"),
        ("PGDATABASE POSTGRES_DB DB_NAME DATABASE_NAME", "name"),
        ("HOME MONGODB_URL MONGO_DB MYSQL_HOST PGADMIN_PASSWORD DB_ECHO API_URL PORT USER", ""),
    ],
)
def test_the_name_of_a_variable_tells_what_it_is_for(names: str, placeholder: str) -> None:
    """Those of other databases are not ours."""
    found = {placeholder_of(name) for name in names.split()}

    assert found == {placeholder and f"{{db_{placeholder}}}"}


def test_a_value_is_one_that_the_settings_take(tmp_path: Path) -> None:
    """What a pasted line gives is read without an error, whatever the type of the field."""
    text = (
        f"{SETTINGS}"
        "import enum, typing, pydantic\n"
        "class Mode(enum.Enum):\n    FAST = 'fast'\n"
        "class Database(BaseModel):\n    url: pydantic.PostgresDsn\n"
        "    pool: int\n    echo: bool = 0\n"
        "class Shop(BaseSettings, env_prefix='shop_'):\n"
        "    database: Database\n    db_port: int\n    redis_port: int\n    debug: bool\n"
        "    hosts: list[str]\n    extra: dict[str, str] | None\n    mode: Mode\n"
        "    kind: typing.Literal['a', 'b']\n    api: pydantic.HttpUrl\n"
        "    key: pydantic.SecretStr\n    ratio: float\n"
        "    count: typing.Annotated[int, 'how many'] | None\n"
        "Shop()\n"
    )
    code = (
        "import os, runpy, sys\n"
        "from pytest_warmstack.postgres.template.child.variables import Variables\n"
        "from pytest_warmstack.placeholders import filled\n"
        "try: runpy.run_path(sys.argv[1])\n"
        "except Exception as error: found = Variables().wanted(error, (), refused=False)\n"
        "for name, value in found.items(): print(name, value)\n"
        "place = {'db_url': 'postgresql://u:p@h/d', 'db_port': '1', 'redis_port': '2'}\n"
        "os.environ.update({name: filled(value, place) for name, value in found.items()})\n"
        "runpy.run_path(sys.argv[1])\n"
    )
    (tmp_path / "settings.py").write_text(text)
    command = [sys.executable, "-c", code, str(tmp_path / "settings.py")]

    found = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)

    assert found.stdout.splitlines()[:3] == [
        'SHOP_DATABASE {"url": "{db_url}", "pool": 1}',
        "SHOP_DB_PORT {db_port}",
        "SHOP_REDIS_PORT {redis_port}",
    ]


@pytest.mark.parametrize(
    ("file", "more", "text"),
    [
        (
            "tox.ini",
            False,
            "write in tox.ini, in the section of pytest:\nwarmstack_env =\n    A=test"
            "\n    PGPORT={db_port}",
        ),
        ("tox.ini", True, "add to warmstack_env in tox.ini:\n    A=test\n    PGPORT={db_port}"),
        (
            "",
            False,
            "write in a new file pytest.ini:\n[pytest]\nwarmstack_env =\n    A=test"
            "\n    PGPORT={db_port}",
        ),
        (
            "pyproject.toml",
            False,
            "write in pyproject.toml, in the table of pytest:\nwarmstack_env = [\n"
            '    "A=test",\n    "PGPORT={db_port}",\n]',
        ),
        (
            "pytest.toml",
            True,
            'add to warmstack_env in pytest.toml:\n    "A=test",\n    "PGPORT={db_port}",',
        ),
    ],
)
def test_lines_are_in_the_syntax_of_the_file(file: str, more: bool, text: str) -> None:
    """They can be copied as they are."""
    assert lines_for({"A": "test", "PGPORT": "{db_port}"}, file=file, more=more) == text
