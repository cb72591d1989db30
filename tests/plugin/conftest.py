"""Helpers for tests of whole pytest runs: a clean environment, and a check of what is left."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from forked_runs import ForkedProcess
from pytest_warmstack.servers.embedded import Embedded
from pytest_warmstack.servers.folders import root as _root
from pytest_warmstack.servers.identity import Label, Process, Project
from pytest_warmstack.servers.model import RunContext, ServerInfo

Run = Callable[..., pytest.RunResult]

FOREIGN = (
    *("WARMSTACK_", "CI", "BUILD_NUMBER", "DATABASE_URL", "REDIS_URL", "DOCKER_", "PG"),
    *("PYTEST_ADDOPTS", "PYTEST_PLUGINS", "PYTEST_DISABLE", "PYTEST_XDIST", "PYTEST_DEBUG"),
    *("PYTHONWARNINGS", "PYTHONASYNCIODEBUG"),
)
"""Beginnings of variables that would change what an inner run does."""


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment in which nothing speaks of the outer run, of CI, or of our settings.

    Of the plugins that happen to be installed, an inner run has those that it names.
    """
    for name in list(os.environ):
        if name.startswith(FOREIGN):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


@pytest.fixture(autouse=True)
def nothing_is_left(pytester: pytest.Pytester) -> Iterator[None]:
    """Fail the test whose runs leave a server's folder, or a server's process, behind."""
    before = left_behind(pytester.path)
    yield
    after = left_behind(pytester.path)
    remove_servers(pytester.path)
    assert after == before == set()


@pytest.fixture
def servers(
    nothing_is_left: None, pytester: pytest.Pytester
) -> Iterator[Callable[[], list[ServerInfo]]]:
    """Tell which servers of the test's project there are; the test may keep some, until its end."""
    yield lambda: found_servers(pytester.path)
    remove_servers(pytester.path)


@pytest.fixture
def run(pytester: pytest.Pytester) -> Run:
    """Run pytest in the test's project, in a process of its own, with embedded servers.

    Plugins beside pytest-asyncio and ours are loaded when they are named, before or after these.
    """

    def run(
        *arguments: str,
        before: Sequence[str] = (),
        plugins: Sequence[str] = (),
        runtime: str = "embedded",
    ) -> Any:
        chosen = [f"--warmstack-runtime={runtime}"] if runtime else []
        names = (*before, "asyncio", "warmstack", *plugins)
        loaded = [part for name in names for part in ("-p", name)]
        return _run_forked(pytester.path, [*loaded, *chosen, *map(str, arguments)])

    return run


def _run_forked(folder: Path, arguments: Sequence[str]) -> pytest.RunResult:
    """Return the result of pytest in the current folder, as `runpytest_subprocess` gives it."""
    files = [folder / "stdout", folder / "stderr"]
    begin = time.monotonic()
    with files[0].open("wb") as out, files[1].open("wb") as err:
        process = ForkedProcess(
            "pytest",
            arguments,
            cwd=Path.cwd(),
            env=os.environ,
            stdout=out.fileno(),
            stderr=err.fileno(),
        )
        status = process.wait(60)
    lines = [file.read_text("utf-8").splitlines() for file in files]
    print("\n".join(line for each in lines for line in each))
    return pytest.RunResult(status, *lines, time.monotonic() - begin)


def found_servers(root: Path) -> list[ServerInfo]:
    """Return the embedded servers of the projects in *root*."""
    inside = os.path.realpath(root)
    return [
        found
        for found in _runtime(root).list()
        if Path(found.labels[Label.PATH]).is_relative_to(inside)
    ]


def left_behind(root: Path) -> set[str]:
    """Return the folders of servers of the project in *root*, and processes that run in them."""
    mark = f"-{Project(path=os.path.realpath(root)).id}-"
    folders = _root().iterdir() if _root().is_dir() else []
    names = {found.name for found in found_servers(root)}
    names |= {folder.name for folder in folders if mark in folder.name}
    for process in Path("/proc").glob("[0-9]*/cwd"):
        try:
            place = str(process.readlink())
        except OSError:
            # It has ended, or it is not ours.
            continue
        if mark in place and place.startswith(str(_root())):
            names.add(f"process {process.parent.name} in {place}")
    return names


def remove_servers(root: Path) -> None:
    """Remove the embedded servers of the projects in *root*."""
    for found in found_servers(root):
        _runtime(root).remove(found)


def _runtime(root: Path) -> Embedded:
    """Return the runtime for the project in *root*."""
    return Embedded(
        RunContext(
            project=Project(path=os.path.realpath(root)),
            run="",
            owner=Process.current(),
            keep=False,
            start_timeout=10,
        )
    )


ENV_PY = """
import asyncio
import os

from alembic import context
from sqlalchemy.ext.asyncio import create_async_engine

URL = context.config.get_main_option("sqlalchemy.url")


def migrate(connection):
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()


async def main():
    engine = create_async_engine(URL)
    async with engine.connect() as connection:
        await connection.run_sync(migrate)
    await engine.dispose()


asyncio.run(main())
"""

REVISION = """
from alembic import op

revision = "{number:04}"
down_revision = {before!r}


def upgrade():
    op.execute("CREATE TABLE t{number} (id serial PRIMARY KEY, name text)")
"""


@pytest.fixture
def alembic(pytester: pytest.Pytester) -> Path:
    """An Alembic project of two revisions, t1 and t2, in the folder `migrations`."""
    folder = pytester.mkdir("migrations")
    (folder / "env.py").write_text(ENV_PY)
    (folder / "script.py.mako").write_text("")
    versions = folder / "versions"
    versions.mkdir()
    for number in (1, 2):
        before = f"{number - 1:04}" if number > 1 else None
        text = REVISION.format(number=number, before=before)
        (versions / f"{number:04}_t.py").write_text(text)
    (pytester.path / "alembic.ini").write_text(
        "[alembic]\nscript_location = %(here)s/migrations\npath_separator = os\n"
    )
    return folder
