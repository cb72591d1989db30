"""What the plugin costs a run that does not use it: it imports nothing heavy and starts nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HEAVY = {"docker", "testcontainers", "sqlalchemy", "asyncpg", "psycopg", "psycopg2", "redis"}
HEAVY |= {"alembic", "requests"}

WATCH = """
import json, os, pathlib, sys, threading

import pytest

# As pytest does it for an installed plugin; it does not for one that is installed editable.
pytest.register_assert_rewrite("pytest_warmstack")

seen = []

def look(event, arguments):
    if event in {"subprocess.Popen", "os.fork", "os.posix_spawn", "os.system", "os.exec",
                 "socket.connect", "socket.bind"}:
        seen.append(event)

class Thread(threading.Thread):
    def start(self):
        seen.append(f"thread {self.name}")
        super().start()

sys.addaudithook(look)
threading.Thread = Thread

def pytest_unconfigure(config):
    told = {"modules": sorted(sys.modules), "seen": seen,
            "rewritten": [name for name, module in sys.modules.items()
                          if "AssertionRewritingHook" in repr(getattr(module, "__loader__", ""))],
            "plugins": sorted(name for name, _ in config.pluginmanager.list_name_plugin())}
    pathlib.Path(os.environ["TOLD"]).write_text(json.dumps(told))
"""
"""A plugin that pytest loads first, and that writes at the end what happened since."""

UNIT_TEST = """
import pytest

@pytest.fixture
def number():
    return 1

def test_one(number, tmp_path):
    assert number == 1
"""


def python(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a clean environment; it must succeed."""
    environ = {key: value for key, value in os.environ.items() if "PYTEST" not in key}
    environ = {
        key: value
        for key, value in environ.items()
        if not key.startswith(("WARMSTACK_", "COV_", "COVERAGE_")) and key != "CI"
    }
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environ | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a pytest run of one unit test did, with pytest-asyncio and this plugin only."""
    folder = tmp_path_factory.mktemp("light")
    (folder / "watch.py").write_text(WATCH)
    (folder / "test_unit.py").write_text(UNIT_TEST)
    plugins = ("watch", "asyncio", "warmstack", "no:cacheprovider")
    done = python(
        *["-m", "pytest", *(part for name in plugins for part in ("-p", name))],
        cwd=folder,
        PYTEST_DISABLE_PLUGIN_AUTOLOAD="1",
        TOLD=str(folder / "told.json"),
    )
    told: dict[str, Any] = json.loads((folder / "told.json").read_text())
    return {**told, "output": done.stdout}


def packages(modules: list[str]) -> set[str]:
    """Return the packages at the top of *modules*."""
    return {name.partition(".")[0] for name in modules}


def test_the_plugin_was_there(run: dict[str, Any]) -> None:
    """The run had the plugin loaded, and its test passed."""
    assert "warmstack" in run["plugins"]
    assert "pytest_warmstack.plugin" in run["modules"]
    assert "1 passed" in run["output"]


def test_a_run_that_uses_no_fixture_imports_no_driver(run: dict[str, Any]) -> None:
    """Drivers, Docker and Alembic are imported when they are needed."""
    assert packages(run["modules"]) & HEAVY == set()


def test_a_run_that_uses_no_fixture_imports_no_package_below(run: dict[str, Any]) -> None:
    """Only the modules that declare options, hooks and fixtures are imported."""
    below = {"environment", "background", "servers", "postgres", "redis", "cli"}

    loaded = {name.split(".")[1] for name in run["modules"] if name.startswith("pytest_warmstack.")}
    assert loaded & below == set()


def test_a_run_that_uses_no_fixture_imports_few_modules(run: dict[str, Any]) -> None:
    """Every pytest run on the machine pays for them."""
    own = [name for name in run["modules"] if name.partition(".")[0] == "pytest_warmstack"]

    assert len(own) <= 7, own


def test_pytest_does_not_rewrite_the_modules(run: dict[str, Any]) -> None:
    """It would take half a millisecond for each, and compile all of them after an update."""
    rewritten = [name for name in run["rewritten"] if name.startswith("pytest_warmstack")]

    assert rewritten == ["pytest_warmstack"]  # The package installs what spares the others.


def test_a_run_that_uses_no_fixture_starts_nothing(run: dict[str, Any]) -> None:
    """No thread, no process, no connection."""
    assert run["seen"] == []


def test_a_run_that_uses_no_fixture_prints_nothing(run: dict[str, Any]) -> None:
    """The plugin is only in pytest's own line of plugins."""
    assert "warmstack:" not in run["output"]


def test_the_package_alone_imports_nothing_and_its_public_names_are_there(tmp_path: Path) -> None:
    """`import pytest_warmstack` is free, and each public name is found when it is asked for."""
    done = python(
        "-c",
        "import json, sys; import pytest_warmstack as package; light = sorted(sys.modules)\n"
        "found = {name: getattr(package, name) for name in package.__all__}\n"
        "from pytest_warmstack import *\n"
        "print(json.dumps([light, sorted(sys.modules), sorted(found), found['__version__']]))",
        cwd=tmp_path,
    )
    light, later, found, version = json.loads(done.stdout)

    assert [name for name in light if name.startswith("pytest_warmstack")] == ["pytest_warmstack"]
    assert packages(light) & (HEAVY | {"pytest", "asyncio"}) == set()
    assert packages(later) & HEAVY == set()
    assert found == [
        *("Database", "DatabaseAddress", "DatabaseFactory", "Queries", "Query", "ServerHandle"),
        *("TemplateLayer", "WarmstackError"),
        "__version__",
    ]
    assert version[0].isdigit()


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    """The error is that of any module."""
    import pytest_warmstack

    with pytest.raises(AttributeError, match="'pytest_warmstack' has no attribute 'Serverhandle'"):
        _ = pytest_warmstack.Serverhandle
