"""Small projects that reproduce public bug reports: each of them works now."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from projects import Library, until

CASES: Final = Path(__file__).parents[1] / "cases"


class Case(NamedTuple):
    """How a project is run, and the outcomes that are right."""

    outcomes: dict[str, int]
    arguments: tuple[str, ...] = ()
    reuse: bool = True
    variables: Mapping[str, str] = {}


EXPECTED: Final = {
    # A frozen clock for twelve tests in a row.
    "pytest_freezer": Case({"passed": 12}, ("-p", "freezer")),
    # A test that counts its own calls of asyncio.sleep, after one that forgot a connection.
    "asyncio_sleep_patched": Case({"passed": 2}),
    # A flaky test that passes when it is run again.
    "rerunfailures": Case({"passed": 1, "rerun": 1}, ("-p", "rerunfailures")),
    # A Celery application of the session's, on the URL of redis_container.
    "celery_leftover_queue": Case({"passed": 2}),
    # CONFIG SET in a fixture of the session's, which another Redis test comes before.
    "events_after_other": Case({"passed": 4}),
    # FastAPI's TestClient with db_engine.
    "testclient": Case({"passed": 5}),
    # A module's database, seeded by a fixture of the module's, synchronous and asynchronous.
    "module_seed": Case({"passed": 3}, ("-o", "asyncio_default_fixture_loop_scope=module")),
    # SCRIPT LOAD in a fixture of the session's.
    "noscript": Case({"passed": 3}),
    # AnyIO's plugin with trio: each of these tests is refused with the line that selects asyncio.
    "anyio_trio": Case({"passed": 2, "errors": 2}, ("-p", "anyio", "-o", "asyncio_mode=strict")),
    # A timeout of a test that hits the set-up, in a run whose servers have to be started.
    "timeout_lazy": Case({"passed": 1, "errors": 1}, ("-p", "timeout"), reuse=False),
    # One URL for every driver.
    "plain_dsn": Case({"passed": 6}),
    # A search_path in the URL of alembic.ini, and a revision that makes the schema.
    "url_options": Case({"passed": 1}),
    # JSON among the variables of the migrations.
    "json_env": Case(
        {"passed": 1},
        ("-o", 'warmstack_env=FEATURES={"beta": {"url": true}}\nDATABASE_URL={db_url}'),
    ),
    # What a shell says to libpq of other servers.
    "pg_env": Case(
        {"passed": 2},
        variables={
            **dict.fromkeys(("PGSERVICE", "PGTARGETSESSIONATTRS"), "standby"),
            "PGOPTIONS": "-csearch_path=nowhere",
            "PGREQUIREAUTH": "none",
            "PGHOSTADDR": "192.0.2.1",
            "PGSSLNEGOTIATION": "direct",
            "PGPORT": "1",
        },
    ),
}


@pytest.fixture(scope="module")
def shared(runtime: str, library_in: Callable[..., Library]) -> Iterator[Library]:
    """A project whose servers all cases of a runtime share."""
    library = library_in(runtime, "cases")
    yield library
    library.end()


@pytest.fixture
def place(shared: Library) -> Library:
    """The same with the files that all cases have, and none of the example's."""
    for path in shared.folder.iterdir():
        if path.name != ".pytest_cache":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    configuration = [f"warmstack_runtime = {shared.runtime}"]
    if shared.images is not None:
        configuration.append(f"warmstack_postgres_image = {shared.images.postgres}")
        configuration.append(f"warmstack_redis_image = {shared.images.redis}")
    shutil.copytree(CASES / "base", shared.folder, dirs_exist_ok=True)
    shared.configure(*configuration)
    return shared


def test_every_case_is_run() -> None:
    """And none is run that is not there."""
    assert {each.name for each in CASES.iterdir()} - {"base"} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_case_passes(place: Library, name: str) -> None:
    """Twice, since the second run finds what the first one left."""
    case = EXPECTED[name]
    shutil.copytree(CASES / name, place.folder, dirs_exist_ok=True)
    reuse = ["--reuse-containers"] if case.reuse else []

    for _ in range(2):
        result = place.run(*reuse, *case.arguments, **case.variables)

        found = result.parseoutcomes()
        assert {key: found.get(key, 0) for key in case.outcomes} == case.outcomes
        assert found.get("failed", 0) == 0
    if case.reuse:
        until(lambda: not place.databases("u"), "all used clones are dropped", seconds=15)
