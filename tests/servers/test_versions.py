"""PostgreSQL 14 to 18, Redis 6.2 to 8 and Valkey: whole runs of the example on each of them."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
from docker.errors import ImageNotFound

from projects import Bench, Images, Library, engine, left
from pytest_warmstack.options import RuntimeName
from pytest_warmstack.postgres import connections
from pytest_warmstack.redis import connections as redis_connections
from pytest_warmstack.servers.errors import ServerFailed
from saved_databases import EXPECTED, number_of, prepare

REUSE: Final = "--reuse-containers"
DOCKER, EMBEDDED = RuntimeName.DOCKER, RuntimeName.EMBEDDED

POSTGRES: Final = ("14", "15", "16", "17", "18")
SIX: Final = ("redis:6.2",) if platform.machine() == "x86_64" else ()
"""The wheel with it is for this architecture only."""

REDIS: Final = (
    *(pytest.param(DOCKER, name, marks=pytest.mark.docker) for name in SIX),
    *(pytest.param(EMBEDDED, name) for name in SIX),
    pytest.param(DOCKER, "redis:7", marks=pytest.mark.docker),
    pytest.param(DOCKER, "redis:8", marks=pytest.mark.docker),
    pytest.param(DOCKER, "valkey:8", marks=pytest.mark.docker),
)
"""Where each runs; the Valkey of the extra `embedded` is what all other tests use."""

WHEEL: Final = {"16", "18"}
"""The versions that the wheel of the extra `embedded` has; others are named by a folder."""

BUILD: Final = "tests/images/build --all"
CACHE: Final = Path(
    os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "pytest-warmstack-images"
)
"""Where that command keeps what it has downloaded."""

SEED: Final = """
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'librarian') THEN
        CREATE ROLE librarian;
        CREATE ROLE reader;
    END IF;
    EXECUTE format('ALTER DATABASE %I SET work_mem TO ''7MB''', current_database());
    EXECUTE format('ALTER ROLE reader IN DATABASE %I SET jit TO on', current_database());
    EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CREATE ON DATABASE %I TO reader', current_database());
    EXECUTE format('ALTER DATABASE %I OWNER TO librarian', current_database());
END $$;
"""

DRESSED: Final = """
from sqlalchemy import text

async def test_a_clone_is_like_its_template(db_session):
    async def ask(query):
        return await db_session.scalar(text(query))

    own = "FROM pg_database WHERE datname = current_database()"
    assert await ask("SHOW work_mem") == "7MB"
    assert await ask(f"SELECT pg_get_userbyid(datdba) {own}") == "librarian"
    grants = "has_database_privilege('reader', current_database(), '%s')"
    assert await ask("SELECT " + grants % "CREATE")
    assert not await ask("SELECT " + grants % "TEMPORARY")
    settings = "FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase"
    assert await ask(
        f"SELECT setconfig[1] {settings} JOIN pg_roles r ON r.oid = s.setrole"
        " WHERE datname = current_database() AND rolname = 'reader'"
    ) == "jit=on"
"""

ROLLED: Final = """
import pytest
from sqlalchemy import text

SEEN = set()

@pytest.mark.warmstack_isolation("rollback")
@pytest.mark.parametrize("number", range(4))
async def test_what_one_commits_no_other_sees(db_session, number):
    SEEN.add(await db_session.scalar(text("SELECT current_database()")))
    assert len(SEEN) == 1
    await db_session.execute(text("INSERT INTO author VALUES (1, 'Ursula')"))
    await db_session.commit()
"""

LEAVING: Final = """
import asyncio
import redis

LEFT = []

async def test_that_leaves_all_it_can(redis_client, redis_url, redis_container):
    assert await redis_client.dbsize() == 0
    await redis_client.set("left", "behind")
    await redis_client.config_set("maxmemory-policy", "allkeys-lru")
    await redis_client.script_load("return 1")
    if int(redis_container.version.split(".")[0]) >= 7:
        await redis_client.function_load(
            "#!lua name=left\\nredis.register_function('behind', function() return 1 end)"
        )
    waiter = redis.Connection(**redis.ConnectionPool.from_url(redis_url).connection_kwargs)
    waiter.connect()
    waiter.send_command("CLIENT", "SETNAME", "waiter")
    waiter.read_response()
    waiter.send_command("BLPOP", "queue", "0")
    LEFT.append(waiter)
    while not any("b" in each["flags"] for each in await redis_client.client_list()):
        await asyncio.sleep(0.01)

async def test_after_it(redis_client, redis_container):
    assert await redis_client.dbsize() == 0
    assert await redis_client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    assert await redis_client.script_exists("e0e1f9fabfc9d4800c877a703b823ac0578ff8db") == [False]
    if int(redis_container.version.split(".")[0]) >= 7:
        assert await redis_client.function_list() == []
    assert all("b" not in each["flags"] for each in await redis_client.client_list())
    LEFT.pop().disconnect()
"""


def missing(what: str) -> None:
    """Skip a test for want of a version; where Docker is demanded, every version is."""
    if os.environ.get("WARMSTACK_TEST_DOCKER") == "demanded":
        pytest.fail(f"{what}; to have it: {BUILD}", pytrace=False)
    pytest.skip(f"{what}; to have it: {BUILD}")


def image(images: Images, name: str) -> str:
    """Return the image of another version: a stand-in where stand-ins are used."""
    if not images.postgres.startswith("warmstack-standin-"):
        return f"{name}-alpine".replace("valkey:", "valkey/valkey:")
    reference = f"warmstack-standin-{name}"
    with engine() as client:
        try:
            client.images.get(reference)
        except ImageNotFound:
            missing(f"there is no image {reference}")
    return reference


@pytest.fixture(scope="module")
def programs() -> Iterator[Callable[[str], Path]]:
    """A function that unpacks the programs of a version, as `postgres-14`, and gives the folder."""
    # Not in pytest's own folder: as root the servers run as a user who may not enter that.
    root = Path(tempfile.mkdtemp(prefix="warmstack-programs-"))
    root.chmod(0o755)

    def unpack(name: str) -> Path:
        folder = root / name
        if not folder.exists():
            wheels = sorted(CACHE.glob(f"wheel-{name}-*/*.whl"))
            if not wheels:
                missing(f"there are no programs of {name} in {CACHE}")
            with zipfile.ZipFile(wheels[-1]) as wheel:
                wheel.extractall(folder)
            for archive in folder.glob("*/*.tar.gz"):
                shutil.unpack_archive(archive, folder, filter="data")
        (program,) = [
            each
            for each in folder.rglob("bin/*")
            if each.name in {"postgres", "redis-server"} and each.parent.parent != folder
        ]
        program.chmod(0o755)
        return program.parent

    yield unpack
    shutil.rmtree(root)


@pytest.fixture
def project_of(
    request: pytest.FixtureRequest,
    library_in: Callable[..., Library],
    programs: Callable[[str], Path],
) -> Iterator[Callable[[str, str], Library]]:
    """A function that makes a project for a runtime and a version, such as `postgres:14`."""
    made = []

    def make(runtime: str, name: str) -> Library:
        service, _, version = name.partition(":")
        request.getfixturevalue("images" if runtime == DOCKER else "embedded_programs")
        library = library_in(runtime)
        made.append(library)
        key = "postgres" if service == "postgres" else "redis"
        if runtime == DOCKER:
            assert library.images is not None
            library.images = replace(library.images, **{key: image(library.images, name)})
            library.reset()
        else:
            library.configure(f"warmstack_{key}_image = {name}")
            if service == "redis" or version not in WHEEL:
                folder = programs(f"{service}-{version}")
                library.configure(f"warmstack_{key}_bin = {folder}")
        return library

    yield make
    for library in made:
        library.end()


def file_system(project: Library, folder: str) -> str:
    """Return the kind of file system that a folder of the kept PostgreSQL lies on."""
    look = ["stat", "-f", "-c", "%T", folder]
    for each in project.containers():
        if each["Config"]["Labels"]["pytest-warmstack.service"] == "postgres":
            with engine() as client:
                output: bytes = client.containers.get(each["Id"]).exec_run(look).output
            return output.decode().strip()
    return subprocess.run(look, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("version", POSTGRES)
@pytest.mark.parametrize("runtime", [pytest.param(DOCKER, marks=pytest.mark.docker), EMBEDDED])
def test_a_project_runs_on_every_postgresql(
    project_of: Callable[[str, str], Library], runtime: str, version: str
) -> None:
    """Cold and warm; its data lies in memory, wherever the version has it, and in no volume."""
    project = project_of(runtime, f"postgres:{version}")
    project.write("seed.sql", SEED)
    project.write("test_dressed.py", DRESSED)
    project.write("test_rolled.py", ROLLED)
    project.configure("warmstack_seed = seed.sql")

    cold = project.run(REUSE)

    cold.assert_outcomes(passed=10)
    text = cold.stdout.str()
    assert re.search(rf"^warmstack: PostgreSQL {version}\.\d+ on .*: started in ", text, re.M)
    (folder,) = project.sql("SHOW data_directory")[0]
    if runtime == DOCKER or os.access("/dev/shm", os.W_OK):
        assert file_system(project, folder) == "tmpfs"
    mounts = [mount for each in project.containers() for mount in each["Mounts"]]
    assert not [mount for mount in mounts if mount["Type"] == "volume"]

    warm = project.run(REUSE)

    warm.assert_outcomes(passed=10)
    text = warm.stdout.str()
    assert re.search(rf"^warmstack: PostgreSQL {version}\.\d+ on .*: reused, ", text, re.M)
    assert re.search(r"^warmstack: template of 3 revisions.*: found in ", text, re.M)
    assert project.databases("u") == []


@pytest.mark.parametrize(("runtime", "name"), REDIS)
def test_a_project_runs_on_every_redis(
    project_of: Callable[[str, str], Library], runtime: str, name: str
) -> None:
    """What a test leaves, data, settings, scripts, functions, a client that waits, is put right."""
    project = project_of(runtime, name)
    project.write("test_leaving.py", LEAVING)

    for origin in ("started in", "reused,"):
        result = project.run(REUSE)

        result.assert_outcomes(passed=7)
        text = result.stdout.str()
        service, _, version = name.partition(":")
        shown = rf"Redis 7[\d.]+ \(Valkey {version}" if service == "valkey" else rf"Redis {version}"
        assert re.search(rf"^warmstack: {shown}\.[\d.]+\)? on .*: {origin} ", text, re.M)
        assert re.search("it left a Redis client 'waiter' that was in BLPOP", text)


@pytest.mark.parametrize(
    ("service", "room", "oldest", "wanted"),
    [
        ("postgres", connections, 99, "pytest-warmstack needs PostgreSQL 99 or newer"),
        ("redis", redis_connections, (99, 0), "pytest-warmstack needs Redis 6.2 or newer"),
    ],
)
def test_a_server_that_is_too_old_is_refused(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    service: str,
    room: object,
    oldest: object,
    wanted: str,
) -> None:
    """Whatever runs it; the error names both versions, and nothing is left."""
    monkeypatch.setattr(room, "OLDEST", oldest)

    with pytest.raises(ServerFailed) as caught:
        bench.ensure(getattr(bench, service))

    assert re.match(r"(PostgreSQL 16|Redis 7)\.\S+ is too old for this plugin\.", str(caught.value))
    assert wanted in str(caught.value)
    assert left(bench.folder) == []


@pytest.mark.parametrize("version", POSTGRES)
def test_a_saved_database_is_compared_with_its_template(
    project_of: Callable[[str, str], Library], version: str
) -> None:
    """Each version has its own catalog, and shows definitions in its own way."""
    project = project_of(EMBEDDED, f"postgres:{version}")
    prepare(project)

    result = project.warmstack("diff", number_of(project, "test_that_changes"))

    assert result.ret == 1
    assert [
        each.replace("shelf.name", "name") for each in result.outlines[3:]
    ] == EXPECTED.rstrip().splitlines()
