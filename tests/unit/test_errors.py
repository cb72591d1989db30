"""Every text that a user may have to read, read here first."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

import pytest

import pytest_warmstack
from pytest_warmstack import redis
from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.options import OPTIONS, Settings
from pytest_warmstack.postgres.template.errors import Failure, TemplateFailed
from pytest_warmstack.servers.docker.errors import NOT_RUNNING, ContainerFailed
from pytest_warmstack.servers.errors import RuntimeUnavailable, ServerFailed
from pytest_warmstack.servers.identity import Label, Service
from pytest_warmstack.servers.model import Container, Endpoint, Server

SAMPLES: dict[str, Any] = {
    "answer": "OOM command not allowed when used memory > 'maxmemory'",
    "address": "ssh://me@build.example.com",
    "advice": "write in pytest.ini:\nwarmstack_env = DATABASE_URL={db_url}",
    "allowed": "127.0.0.1:54321/warmstack_b_1",
    "cause": "the engine said no",
    "command": "CONFIG SET requirepass ***",
    "config": "/srv/shop/alembic.ini",
    "count": 5,
    "databases": 256,
    "driver": "asyncpg",
    "entry": "write in pytest.ini:\nwarmstack_allow = 127.0.0.1:54321",
    "development": 2,
    "doing": ["Python: 0002_b.py, line 7, in upgrade", "PostgreSQL: SELECT pg_sleep(99)"],
    "dump": "17.2",
    "expected": "an int",
    "fault": NOT_RUNNING,
    "failure": Failure(
        "the engine said no",
        where="in revision 0002 (0002_b.py, line 7)",
        output="running 0001\nrunning 0002",
        state="42601",
    ),
    "file": "/srv/shop/sql/orders.sql",
    "folder": "/dev/shm/ours",
    "found": ["0001"],
    "function": "shop.db:make_config",
    "heads": ["0002", "0003"],
    "hints": ["free memory: redis-cli FLUSHALL"],
    "host": "db.example.com",
    "holder": "backend 7 of 127.0.0.1",
    "holders": ["5-9:process-7@host", "10-14:process-8@host"],
    "how": "exit status 1",
    "image": "postgres:99",
    "index": 7,
    "isolation": "module",
    "kind": "shop.conftest.SearchIndex",
    "variables": "DATABASE_URL",
    "known": ["db_url", "redis_url"],
    "reserved": "127.0.0.1:20123",
    "layer": "seed",
    "leased": 3,
    "line": "shop.demo:orders",
    "lines": "write in pytest.ini:\nwarmstack_env = DATABASE_URL={db_url}",
    "log": "FATAL: no\nLOG: ended",
    "looked_at": ["the server's answer", "its log"],
    "matching": ["warmstack_k_12", "warmstack_k_13"],
    "name": "warmstack_reuse",
    "needed": "128 MB",
    "names": ["postgres", "warmstack_k_12", "warmstack_k_13"],
    "named": "/srv/shop/conf/alembic.ini",
    "node": "tests/test_orders.py::test_refund",
    "number": 28,
    "others": ["tests/sql/big.sql", "sql/big.sql"],
    "output": "running 0001\nrunning 0002",
    "path": "/srv/shop/costs.json",
    "place": "/dev/shm/ours/one",
    "process": 4711,
    "program": "psql",
    "project": "/srv/shop",
    "refusals": [
        WarmstackError("First way is shut.", why="no key", looked_at=["door"], todo=["knock"]),
        WarmstackError("Second way is shut.", why="no lock", looked_at=["wall"], todo=["dig"]),
    ],
    "refusal": RuntimeUnavailable("No engine answers.", why="refused", todo=["wait"]),
    "role": "ci",
    "root": "/srv",
    "runtime": "docker",
    "scheme": "rediss",
    "seconds": 2.5,
    "servers": 64,
    "setting": "WARMSTACK_REDIS_BIN",
    "source": "pyproject.toml",
    "spec": redis.spec(Settings()),
    "state": "42601",
    "statement": "CREATE DATABASE shop",
    "table": "alembic_version",
    "template": "warmstack_t_0123",
    "test": "tests/test_orders.py::test_refund",
    "title": "PostgreSQL",
    "understood": ["session, db: sqlalchemy.orm.Session", "url: a URL as text"],
    "tried": "postgresql://db.example.com:5432/prod",
    "unseen": ["migrations/versions/mysql/*"],
    "url_variable": "WARMSTACK_POSTGRES_URL",
    "user": "ada",
    "usual": "write in pytest.ini: warmstack_env = DATABASE_URL={db_url}",
    "value": "maybe",
    "variable": "WARMSTACK_POSTGRES_IMAGE",
    "version": "WARMSTACK_POSTGRES_IMAGE",
    "wanted": "version 16",
    "who": "The migrations",
    "wider": "tests/test_orders.py",
    "written": "db_ulr",
}
"""An example for each parameter of a named constructor; one that is new needs its own here."""

SHOWN_OTHERWISE = {
    *("databases", "failure", "fault", "number", "refusal", "refusals", "seconds", "spec", "state"),
}
"""Parameters whose value is not in the text as it stands: counted, rounded, or picked apart."""

HINTS = {
    "a role that is there": ("42710", 'role "reader" already exists', "warmstack clean"),
    "an extension that is not built": ("0A000", 'extension "vector" is not available', "_IMAGE="),
    "an extension without its file": ("58P01", "no extension control file", "_BIN=FOLDER"),
    "a server that is not the template's": ("refused", "10.0.0.1:6379 is not", "nothing else"),
    "a setting of a newer version": (
        "42704",
        'unrecognized configuration parameter "transaction_timeout"',
        "PostgreSQL 17 and later know transaction_timeout",
    ),
    "a driver that waits": ("", "MissingGreenlet: greenlet_spawn", "pip install 'psycopg[binary]'"),
}
"""For each trouble that has a hint: its SQLSTATE, its words, and a part of the hint."""


for _module in pkgutil.walk_packages(pytest_warmstack.__path__, "pytest_warmstack."):
    if not _module.name.endswith("__main__"):
        importlib.import_module(_module.name)


def classes(base: type[WarmstackError] = WarmstackError) -> Iterator[type[WarmstackError]]:
    """Yield every class of error."""
    yield base
    for each in base.__subclasses__():
        yield from classes(each)


CONSTRUCTORS = {
    f"{each.__name__}.{name}": getattr(each, name)
    for each in classes()
    for name, member in vars(each).items()
    if isinstance(member, classmethod)
}


def arguments(name: str) -> dict[str, Any]:
    """Return the samples for the constructor called *name*; some take several where others one."""
    samples = {}
    for parameter in inspect.signature(CONSTRUCTORS[name]).parameters.values():
        sample = SAMPLES[parameter.name]
        several = parameter.annotation == "Iterable[str]" and isinstance(sample, str)
        samples[parameter.name] = [sample, f"{sample} again"] if several else sample
    return samples


def made(name: str) -> WarmstackError:
    """Return the error that the constructor called *name* makes of the samples."""
    error: WarmstackError = CONSTRUCTORS[name](**arguments(name))
    return error


def failed(constructor: str, cause: str, *, dump: str = "", **facts: Any) -> WarmstackError:
    """Return the error of the constructor for a failure with *cause* and *facts*."""
    given = arguments(constructor) | {"failure": Failure(cause, **facts)}
    error: WarmstackError = CONSTRUCTORS[constructor](**given | ({"dump": dump} if dump else {}))
    return error


def options(text: str) -> list[str]:
    """Return the options, ini keys and variables that *text* names; a hook is none of them."""
    return re.findall(
        r"--warmstack-[a-z-]+|WARMSTACK_[A-Z_]+|(?<!pytest_)warmstack_(?!b_|t_|k_)[a-z_]+", text
    )


def test_a_full_disk_of_the_engine_comes_with_what_frees_it() -> None:
    """Another refusal does not."""
    full, other = (
        ContainerFailed.refused(title="Redis", cause=cause)
        for cause in ("mkdir /var/lib/docker/x: no space left on device", "no such network")
    )

    assert "docker system prune" in full.todo[0]
    assert "docker system prune" not in str(other)


def test_every_error_has_named_constructors() -> None:
    """No class of error is empty, so that these tests read what users read."""
    named = {name.partition(".")[0] for name in CONSTRUCTORS}

    # A `ConnectionLost` is made as every `ServerFailed.lost` is.
    named |= {"ConnectionLost"}
    assert named == {each.__name__ for each in classes()} - {"WarmstackError"}
    assert len(CONSTRUCTORS) >= 20


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_a_text_begins_with_one_sentence_that_says_what_failed(name: str) -> None:
    """The first line stands alone: a capital or a quoted value first, and a full stop last."""
    what = made(name).what

    assert "\n" not in what
    assert what[0].isupper() or what.startswith("'maybe' ")
    assert what.endswith(".")
    assert not what.endswith("..")


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_a_text_has_its_parts_in_order(name: str) -> None:
    """What failed, why, what was looked at where there is anything, and what to do."""
    error = made(name)
    titles = re.findall(r"^(Why|Looked at|What to do):", str(error), re.MULTILINE)

    assert str(error).startswith(f"{error.what}\nWhy: ")
    assert titles == ["Why", *(["Looked at"] if error.looked_at else []), "What to do"]
    assert error.why.strip()
    assert error.todo
    assert all(entry.strip() for entry in (*error.looked_at, *error.todo))


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_a_text_holds_everything_that_it_was_given(name: str) -> None:
    """No fact that the caller knew is kept from the reader."""
    text = re.sub(r"\n +(- )?", "\n", str(made(name)))

    given = arguments(name)
    if "failure" in given:
        failure = given["failure"]
        # Where a connection was blocked, the address tells more than the exception.
        cause = [] if "tried" in given else [failure.cause]
        given |= {"cause": cause, "output": failure.output.splitlines()}
    for parameter, value in given.items():
        if parameter not in SHOWN_OTHERWISE:
            for each in value if isinstance(value, list) else [value]:
                assert str(each) in text, parameter


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_a_text_has_nothing_unformatted_in_it(name: str) -> None:
    """No brace that a missing `f` left, no `None`, no object's address, no doubled space."""
    # What a user has to write literally.
    text = re.sub(r"\{+((?:db|redis)_\w+|version 16)\}+", "_", str(made(name)))

    assert not re.search(r"[{}]|\bNone\b|object at 0x|<class", text)
    assert "  " not in re.sub(r"^ +", "", text, flags=re.MULTILINE)
    assert ".." not in text


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_every_option_and_variable_that_a_text_names_exists(name: str) -> None:
    """Advice can be followed: what it says to set can be set."""
    text = str(made(name))
    known = {choice.flag for choice in OPTIONS.values()}
    known |= {choice.variable for choice in OPTIONS.values()}
    known |= {choice.ini for choice in OPTIONS.values()}

    assert set(options(text)) <= known


def test_no_docker_is_said_in_the_words_that_were_promised() -> None:
    """The first line is what people are told to look for."""
    text = str(made("DockerUnavailable.by_engine"))

    assert text.splitlines()[0] == "Docker is not running. Please start Docker first."


def test_when_nothing_runs_every_refusal_is_told() -> None:
    """What each way said, why, and where it looked is in the one text."""
    text = str(made("RuntimeUnavailable.nothing"))

    for words in ("First way is shut.", "no key", "door", "Second way is shut.", "no lock", "wall"):
        assert words in text


def test_the_number_of_databases_that_can_be_leased_leaves_out_ours() -> None:
    """Database 0 holds the leases, and is nobody's."""
    assert "2 running processes hold the 255 databases" in str(made("LeaseFailed.none_free"))


def test_a_server_that_wrote_nothing_is_told_as_such() -> None:
    """An empty log is no empty line."""
    died = ServerFailed.died(title="Redis", how="exit status 1", log="")
    slow = ServerFailed.too_slow(title="Redis", seconds=1, cause="no answer", log="")

    assert "(empty)" in str(died)
    assert "(empty)" in str(slow)
    assert "within 1 seconds" in str(slow)


@pytest.mark.parametrize("constructor", ["migration_failed", "script_failed"])
@pytest.mark.parametrize("trouble", HINTS)
def test_known_trouble_comes_with_what_helps_first(constructor: str, trouble: str) -> None:
    """What PostgreSQL's code for the error stands for decides the first advice; it can be taken."""
    state, cause, hint = HINTS[trouble]
    error = failed(f"TemplateFailed.{constructor}", cause, state=state)

    assert hint in " ".join(error.todo[:-1])
    assert "run again" in error.todo[-1]
    known = {choice.ini for choice in OPTIONS.values()}
    known |= {choice.variable for choice in OPTIONS.values()}
    assert set(options(str(error))) <= known


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        ("", "ValueError: no"),
        ("42601", "syntax error"),
        ("42710", 'object "reader" already exists'),
        ("0A000", "cannot do this"),
        ("", "ValueError: 42P01"),
    ],
)
def test_other_trouble_has_no_hint(state: str, cause: str) -> None:
    """Nobody is sent after something that is not the cause."""
    assert len(failed("TemplateFailed.migration_failed", cause, state=state).todo) == 1


@pytest.mark.parametrize("name", ["migration_failed", "bad_function", "other_database"])
def test_the_lines_for_the_variables_that_are_missing_come_first(name: str) -> None:
    """They are the likeliest cure, and make a guess at one unnecessary."""
    line = "write in tox.ini:\nwarmstack_env = PGHOST={db_host}"
    error = failed(f"TemplateFailed.{name}", "no", hints=[line])

    assert error.todo[0] == line
    assert SAMPLES["usual"] not in " ".join(error.todo)


@pytest.mark.parametrize(
    ("cause", "advice"),
    [
        ("NoEventLoopError: Not running inside an AnyIO worker thread", "asyncio.run("),
        ("RuntimeError: no running event loop", "asyncio.run("),
        ("RuntimeError: There is no current event loop in thread 'MainThread'.", "asyncio.run("),
        ("RuntimeError: asyncio.run() cannot be called from a running event loop", "to_thread("),
        ("RuntimeError: This event loop is already running", "to_thread("),
    ],
)
@pytest.mark.parametrize("name", ["migration_failed", "bad_function"])
def test_an_env_py_that_needs_another_loop_is_told_what_to_write(
    name: str, cause: str, advice: str
) -> None:
    """Its revisions have no fault."""
    error = failed(f"TemplateFailed.{name}", cause)

    assert advice in error.todo[0]
    assert "fix the migration" not in str(error)


def test_sql_of_a_newer_pg_dump_names_its_version() -> None:
    """Also for a setting, or words, that no table here knows; other trouble is not laid to it."""

    def told(state: str, cause: str, dump: str = "19.1") -> str:
        given = arguments("TemplateFailed.script_failed") | {"dump": dump}
        given["failure"] = Failure(cause, state=state)
        return " ".join(TemplateFailed.script_failed(**given).todo)

    unknown = 'unrecognized configuration parameter "new_limit"'
    assert "PostgreSQL 19 and later know new_limit; pg_dump 19.1 wrote" in told("42704", unknown)
    assert "run PostgreSQL 19: WARMSTACK_POSTGRES_IMAGE=postgres:19-" in told("42704", unknown)
    assert "the server may be older; pg_dump 19.1 wrote" in told("42601", "syntax error")
    assert "pg_dump" not in told("42704", unknown, dump="")
    assert "pg_dump" not in told("23505", "duplicate key")


@pytest.mark.parametrize(
    ("state", "cause", "first"),
    [
        ("42704", 'role "shop" does not exist', "pg_dump --no-owner --no-privileges"),
        ("42704", 'collation "public.de-x-icu" for encoding "UTF8" does not', "ICU, such as"),
        ("42704", 'collation "pg_catalog.pg_c_utf8" for', "PostgreSQL 17 and later know pg_c_utf8"),
        ("42601", "at \\ (commands of psql are not run)", "remove the command"),
        ("0A000", "FeatureNotSupported: ICU is not supported in this build", "in Docker"),
    ],
)
def test_what_a_server_lacks_is_not_laid_to_its_version(state: str, cause: str, first: str) -> None:
    """Roles, collations and libraries are missing in a newer PostgreSQL as well."""
    error = failed("TemplateFailed.script_failed", cause, state=state)

    assert first in error.todo[0]
    assert "may be older" not in str(error)


def test_the_configuration_to_name_is_written_as_the_file_in_use_needs_it() -> None:
    """TOML needs quotes, and an ini file takes none."""
    given = {"found": ["a/alembic.ini"], "root": "/r"}

    toml = TemplateFailed.elsewhere(**given, file="pyproject.toml")
    ini = TemplateFailed.elsewhere(**given, file="tox.ini")

    assert toml.todo[0] == 'in pyproject.toml, choose it: warmstack_alembic = "a/alembic.ini"'
    assert toml.todo[1].endswith('warmstack_alembic = "none"')
    assert ini.todo[0].endswith("warmstack_alembic = a/alembic.ini")


def test_a_role_that_migrations_miss_is_answered_with_the_statement_that_makes_it() -> None:
    """Projects grant to a role that their servers have."""
    cause = 'UndefinedObject: role "o\'neil" does not exist'

    error = failed("TemplateFailed.migration_failed", cause, state="42704")

    assert "rolname = 'o''neil') THEN CREATE ROLE \"o'neil\"; END IF" in error.todo[0]
    assert "warmstack_schema" in error.todo[0]


def test_a_first_revision_that_misses_a_table_hints_at_the_schema() -> None:
    """Later ones miss what an earlier one should have made; the first one what was there before."""
    name = "TemplateFailed.migration_failed"
    first, later, other = (
        failed(name, "no", state=state, first=first)
        for state, first in (("42P01", True), ("42P01", False), ("42703", True))
    )

    assert "warmstack_schema = schema.sql" in first.todo[0]
    assert len(later.todo) == len(other.todo) == 1


def test_a_process_that_did_not_say_what_it_does_is_told_as_such() -> None:
    """An empty list is no empty line."""
    given = arguments("TemplateFailed.too_slow") | {"doing": []}

    assert "(unknown: it did not answer)" in str(TemplateFailed.too_slow(**given))


@pytest.mark.parametrize("name", ["migration_failed", "script_failed", "too_slow", "bad_function"])
def test_a_place_that_is_not_known_leaves_no_gap(name: str) -> None:
    """Without a place the sentence ends where it would have stood."""
    given = arguments(f"TemplateFailed.{name}")
    given |= {"place": ""} if "place" in given else {"failure": Failure("no")}

    text = str(getattr(TemplateFailed, name)(**given))

    assert "  " not in re.sub(r"^ +", "", text, flags=re.MULTILINE)
    assert " ." not in text
    assert ",\n" not in text


@pytest.mark.parametrize(
    "name", [name for name in CONSTRUCTORS if {"output", "failure"} & arguments(name).keys()]
)
def test_without_output_there_is_no_empty_entry(name: str) -> None:
    """Code that wrote nothing is not said to have written something."""
    given = {"output": "", "failure": Failure("no")}
    error = CONSTRUCTORS[name](**{key: given.get(key, it) for key, it in arguments(name).items()})

    assert "the last lines that " in str(made(name))
    assert "the last lines that " not in str(error)


def test_the_layout_of_a_text() -> None:
    """A single short entry stays on its title's line; several, or long ones, are a list."""
    error = WarmstackError(
        "It failed.",
        why="of this",
        looked_at=["one place", "its log:\nline 1\nline 2"],
        todo=["do that"],
    )

    assert str(error).splitlines() == [
        "It failed.",
        "Why: of this",
        "Looked at:",
        "  - one place",
        "  - its log:",
        "    line 1",
        "    line 2",
        "What to do: do that",
    ]


def test_without_places_there_is_no_such_title() -> None:
    """Where nothing was looked at, nothing is said about it."""
    assert str(WarmstackError("It failed.", why="of this", todo=["do that"])).splitlines() == [
        "It failed.",
        "Why: of this",
        "What to do: do that",
    ]


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_every_error_is_caught_by_the_public_name(name: str) -> None:
    """`pytest_warmstack.WarmstackError` is the base of all."""
    import pytest_warmstack

    with pytest.raises(pytest_warmstack.WarmstackError):
        raise made(name)


class Client:
    """A connection to a server that is not there."""

    version = "16.14"
    endpoint = Endpoint(host="127.0.0.1", port=5432, password="hunter2")
    also = ""

    def users(self) -> int:
        """Nobody else is connected."""
        return 0

    def used(self) -> float:
        """Nobody has used it."""
        return 0.0

    def close(self) -> None:
        """There is nothing to close."""


def test_no_password_is_in_what_a_traceback_may_print() -> None:
    """The representations of an address, a server, its handle and a container's plan hide it."""
    endpoint = Client.endpoint
    server = Server(
        runtime="docker",
        id="1",
        name="one",
        labels={Label.SERVICE: Service.POSTGRES},
        endpoint=endpoint,
        title="PostgreSQL",
        client=Client(),
        origin="started",
    )
    container = Container(
        environment={"POSTGRES_PASSWORD": "hunter2"},
        arguments=["-c"],
        contract="",
        data="/d",
        shm_size=1,
    )

    assert "127.0.0.1" in repr(endpoint)
    for each in (endpoint, server, server.handle(), container):
        assert "hunter2" not in f"{each!r} {each}"
