"""What the project's code reads while it builds, told by a process of its own.

The recorder's hooks can't be taken back, so that each test has them in a process that then ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import pytest_warmstack

Files = dict[str, str]
Needs = dict[str, dict[str, str]]
Recorded = Callable[..., Needs]

RECORD = """
import importlib.util, json, pathlib, sys, types

from pytest_warmstack.postgres.template.child.recorder import Recorder

class Guard:
    def wrap_drivers(self):
        pass

def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

def run():
    for path, module in loaded.items():
        with recorder.step(path.stem):
            getattr(module, "upgrade", lambda: None)()

root = pathlib.Path.cwd()
paths = sorted(root.glob("versions/*.py"))
sys.path.append(str(root))
sys.modules["steps"] = types.SimpleNamespace(run=run)
recorder = Recorder(str(root), json.loads(sys.argv[1]), Guard())
recorder.env = str(root / "env.py")
recorder.install()
recorder.add_revision_files([str(path) for path in paths])
loaded = {path: load(path) for path in paths}
load(root / "env.py")
told = {}
for path in paths:
    for name, step in ((path.stem, path.stem), (f"{path.stem} as loaded", "")):
        needs = recorder.needs(recorder.modules(str(path)), step)
        told[name] = recorder.digests(needs, own=recorder.key("file", str(path)))
print(json.dumps(told))
"""
"""Load and run revisions as Alembic does, below env.py, and print what each of them needed."""

FORK = """
import json, os, sys, tempfile, traceback
import pytest_warmstack.postgres.template.child.recorder

code, requests = compile(sys.argv[1], "<string>", "exec"), sys.stdin
for line in iter(requests.readline, ""):
    request = json.loads(line)
    if os.fork():
        os.wait()
        continue
    try:
        os.chdir(request["root"])
        os.environ["TMPDIR"] = request["temporary"]
        tempfile.tempdir = None
        sys.argv[1] = json.dumps(request["ignore"])
        exec(code, {"__name__": "__main__"})
    except BaseException:
        print(json.dumps(traceback.format_exc()))
    sys.stdout.flush()
    os._exit(0)
"""
"""Do what RECORD does in a fork for each line of JSON; print the traceback if that fails."""

ENV = "import steps\nsteps.run()\n"

HELPERS: Files = {"shop/__init__.py": "", "shop/helpers.py": "NAME = 'shop'\n"}
BOTH = {"file:shop/__init__.py", "file:shop/helpers.py"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of a project, beside one for temporary files."""
    (tmp_path / "tmp").mkdir()
    root = Path(os.path.realpath(tmp_path)) / "project"
    root.mkdir()
    return root


@pytest.fixture(scope="module")
def forker() -> Iterator[subprocess.Popen[str]]:
    """A process that forks for each recording: a start of Python would take far longer."""
    with subprocess.Popen(
        [sys.executable, "-P", "-c", FORK, RECORD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def forked(process: subprocess.Popen[str], request: dict[str, Any]) -> Needs:
    """Return what a fork of *process* records."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    needs: Needs | str = json.loads(process.stdout.readline())
    assert not isinstance(needs, str), needs
    return needs


@pytest.fixture
def recorded(root: Path, forker: subprocess.Popen[str]) -> Recorded:
    """Write files of a project, and return what its revisions need: keys with their digests."""

    def recorded(
        files: Files, *, ignore: Sequence[str] = (), python: str = "", **variables: str
    ) -> Needs:
        for name, text in {"env.py": ENV, **files}.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        temporary = str(root.parent / "tmp")
        if not python and not variables:
            request = {"root": str(root), "temporary": temporary, "ignore": ignore}
            return forked(forker, request)
        done = subprocess.run(
            [python or sys.executable, "-P", "-c", RECORD, json.dumps(ignore)],
            cwd=root,
            env=os.environ | {"TMPDIR": temporary} | variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        needs: Needs = json.loads(done.stdout.splitlines()[-1])
        return needs

    return recorded


def beside(needs: Needs, name: str = "0001") -> set[str]:
    """Return what the revision *name* needs besides its own file.

    With `as loaded` at its end, the name stands for what it needed before it ran.
    """
    own = f"file:versions/{name.split()[0]}.py"
    assert own in needs[name]
    return set(needs[name]) - {own}


# Modules


@pytest.mark.parametrize(
    "revision",
    [
        "import shop.helpers",
        "import shop.helpers as h",
        "from shop import helpers",
        "from shop.helpers import NAME",
        "from shop.helpers import *",
        "__import__('shop.helpers')",
        "import importlib\nimportlib.import_module('shop.helpers')",
        "from importlib import import_module\nimport_module('.helpers', 'shop')",
        "def upgrade():\n    import shop.helpers",
        "def upgrade():\n    from shop import helpers",
        "import importlib\ndef upgrade():\n    importlib.import_module('shop.helpers')",
    ],
)
def test_a_module_that_a_revision_imports_is_a_need(recorded: Recorded, revision: str) -> None:
    """In whatever way it is imported, as the file is loaded or as it runs; its package with it."""
    needs = recorded({**HELPERS, "shop/other.py": "", "versions/0001.py": revision})

    assert beside(needs) == BOTH


@pytest.mark.parametrize("where", ["", "def upgrade():\n"])
def test_a_module_that_is_not_there_is_a_need(recorded: Recorded, where: str) -> None:
    """Once somebody makes it, in either of its forms, the link would do something else."""
    text = "try:\n    import shop.faster\nexcept ImportError:\n    import shop.helpers"
    revision = indented(text) if where else text

    needs = recorded({**HELPERS, "versions/0001.py": revision})

    missing = {"there:shop/faster.py", "there:shop/faster/__init__.py"}
    assert beside(needs) == BOTH | missing
    assert {needs["0001"][key] for key in missing} == {""}


@pytest.mark.parametrize(
    "revision",
    [
        "import importlib.util as u\n"
        "s = u.spec_from_file_location('h', 'shop/helpers.py')\n"
        "m = u.module_from_spec(s)\n"
        "s.loader.exec_module(m)",
        "import runpy\nrunpy.run_path('shop/helpers.py')",
        "exec(open('shop/helpers.py').read())",
        "from alembic.util import load_python_file\nload_python_file('shop', 'helpers.py')",
        "from importlib.machinery import SourceFileLoader\n"
        "SourceFileLoader('h', 'shop/helpers.py').load_module()",
    ],
    ids=["spec", "runpy", "exec", "alembic", "loader"],
)
def test_a_file_of_code_that_is_loaded_by_its_path_is_a_need(
    recorded: Recorded, revision: str
) -> None:
    """Files beside the revisions can't always be imported: a name may begin with a digit."""
    needs = recorded({"shop/helpers.py": "NAME = 'shop'\n", "versions/0001.py": revision})

    assert "file:shop/helpers.py" in beside(needs)


def test_what_imported_modules_import_is_a_need_however_deep(recorded: Recorded) -> None:
    """A chain of modules, and a circle at its end, are followed to the last of them."""
    needs = recorded(
        {
            "a.py": "import b",
            "b.py": "import c",
            "c.py": "import d",
            "d.py": "import b",
            "versions/0001.py": "import a",
            "versions/0002.py": "import c",
            "versions/0003.py": "",
        }
    )

    assert beside(needs, "0001") == {"file:a.py", "file:b.py", "file:c.py", "file:d.py"}
    assert beside(needs, "0002") == {"file:b.py", "file:c.py", "file:d.py"}
    assert beside(needs, "0003") == set()


@pytest.mark.parametrize("where", ["", "def upgrade():\n    "])
@pytest.mark.parametrize(
    "statement",
    [
        "import shop.helpers",
        "from shop import helpers",
        "from shop.helpers import NAME",
        "import importlib; importlib.import_module('shop.helpers')",
    ],
)
def test_a_module_that_was_imported_before_is_a_need_of_the_second_importer_too(
    recorded: Recorded, where: str, statement: str
) -> None:
    """Python loads a module once; whoever asks for it later depends on it all the same."""
    needs = recorded(
        {
            **HELPERS,
            "env.py": f"import shop.helpers\n{ENV}",
            "versions/0001.py": "import shop.helpers",
            "versions/0002.py": where + statement,
            "versions/0003.py": "",
        }
    )

    assert beside(needs, "0001") == beside(needs, "0002") == BOTH
    assert beside(needs, "0003") == set()


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("from . import b", "shop/db/b.py"),
        ("from .b import x", "shop/db/b.py"),
        ("from .. import c", "shop/c.py"),
        ("from ..c import x", "shop/c.py"),
        ("from ..lib.d import x", "shop/lib/d.py"),
        ("import importlib; importlib.import_module('.b', __package__)", "shop/db/b.py"),
        ("def late():\n    from .b import x\nlate()", "shop/db/b.py"),
    ],
)
@pytest.mark.parametrize("before", ["", "import shop.db.b, shop.c, shop.lib.d\n"])
def test_a_relative_import_is_understood(
    recorded: Recorded, statement: str, found: str, before: str
) -> None:
    """What stands after the dots is told from where the statement is, loaded before or not."""
    needs = recorded(
        {
            **dict.fromkeys(("shop/__init__.py", "shop/db/__init__.py"), ""),
            **dict.fromkeys(("shop/db/b.py", "shop/c.py", "shop/lib/d.py"), "x = 1\n"),
            "shop/lib/__init__.py": "",
            "shop/db/a.py": statement,
            "versions/0000.py": before,
            "versions/0001.py": "import shop.db.a",
        }
    )

    modules = {each for each in beside(needs) if not each.endswith("__init__.py")}
    assert modules == {"file:shop/db/a.py", f"file:{found}"}


def test_a_module_of_a_folder_without_an_init_file_is_a_need(recorded: Recorded) -> None:
    """A namespace package has no file of its own, and its modules have."""
    needs = recorded({"sql/views.py": "", "versions/0001.py": "from sql import views"})

    assert beside(needs) == {"file:sql/views.py"}


def test_compiled_modules_are_needs_all_the_same(recorded: Recorded, root: Path) -> None:
    """A second process loads them from their cache, and the sources decide what it holds."""
    files = {**HELPERS, "versions/0001.py": "import shop.helpers"}

    first, second = (recorded(files, PYTHONDONTWRITEBYTECODE="") for _ in range(2))

    assert list(root.glob("shop/__pycache__/helpers.*.pyc"))
    assert first == second
    assert beside(first) == BOTH


def test_a_project_below_a_link_has_the_same_names(recorded: Recorded, root: Path) -> None:
    """A folder that is reached by another way has its own name in the keys."""
    (root / "shared").mkdir()
    (root / "shop").symlink_to("shared")

    needs = recorded({**HELPERS, "versions/0001.py": "import shop.helpers"})

    assert beside(needs) == {"file:shared/__init__.py", "file:shared/helpers.py"}


# Files and folders

READS = {
    "open": "open('data/a.csv').close()",
    "bytes": "open(b'data/a.csv', 'rb').close()",
    "path": "import pathlib; pathlib.Path('data/a.csv').read_text()",
    "absolute": "import os; open(os.path.abspath('data/a.csv')).close()",
    "from here": "import pathlib; (pathlib.Path(__file__).parents[1] / 'data/a.csv').read_bytes()",
    "descriptor": "import os; os.close(os.open('data/a.csv', os.O_RDONLY))",
    "opened twice": "import os; os.fdopen(os.open('data/a.csv', os.O_RDONLY)).close()",
    "gzip": "import gzip; gzip.open('data/a.csv').close()",
    "resources": "import importlib.resources as r; r.files('data').joinpath('a.csv').read_text()",
    "pkgutil": "import pkgutil; pkgutil.get_data('data', 'a.csv')",
    "thread": "import threading\n"
    "thread = threading.Thread(target=lambda: open('data/a.csv').close())\n"
    "thread.start()\n"
    "thread.join()",
    "asyncio": "import asyncio\n"
    "async def read():\n"
    "    await asyncio.to_thread(lambda: open('data/a.csv').close())\n"
    "asyncio.run(read())",
    "chdir": "import os\nos.chdir('data')\nopen('a.csv').close()\nos.chdir('..')",
}
"""Ways to read data/a.csv."""

DATA: Files = {"data/__init__.py": "", "data/a.csv": "1,2\n", "data/b.csv": "3,4\n"}


def indented(text: str) -> str:
    """Return the lines of *text* as the body of `upgrade`."""
    return "def upgrade():\n" + "".join(f"    {line}\n" for line in text.splitlines())


def data(needs: Needs, name: str) -> set[str]:
    """Return what the revision *name* needs of the data; who reads it may look for it first."""
    found = {each for each in beside(needs, name) if "data" in each}
    return {each for each in found if not each.startswith("there:")} - {"file:data/__init__.py"}


def test_data_below_a_link_is_named_by_the_link(recorded: Recorded, root: Path) -> None:
    """The link may lead to other data later."""
    (root / "data-1").mkdir()
    (root / "data").symlink_to("data-1")

    needs = recorded({**DATA, "versions/0001.py": "open('data/a.csv').close()"})

    assert beside(needs) == {"file:data/a.csv"}


@pytest.mark.parametrize("way", READS)
def test_a_file_that_is_read_while_a_link_runs_is_a_need_of_that_link(
    recorded: Recorded, way: str
) -> None:
    """One that runs before, and one that runs after, do not depend on it."""
    needs = recorded(
        {
            **DATA,
            "versions/0001.py": "def upgrade(): pass",
            "versions/0002.py": indented(READS[way]),
            "versions/0003.py": "def upgrade(): pass",
        }
    )

    assert data(needs, "0002") == {"file:data/a.csv"}
    assert data(needs, "0001") == data(needs, "0003") == data(needs, "0002 as loaded") == set()


@pytest.mark.parametrize("way", [way for way in READS if way not in {"thread", "asyncio"}])
def test_a_file_that_a_revision_reads_as_it_is_loaded_is_its_need(
    recorded: Recorded, way: str
) -> None:
    """Data at the top of a revision's file is its own as well."""
    needs = recorded({**DATA, "versions/0001.py": READS[way], "versions/0002.py": ""})

    assert data(needs, "0001") == {"file:data/a.csv"}
    assert data(needs, "0002") == set()


def test_data_that_a_helper_reads_as_it_is_imported_is_a_need_of_every_importer(
    recorded: Recorded,
) -> None:
    """Read once, and used by all who import the helper, directly or through another module."""
    needs = recorded(
        {
            **DATA,
            "sql.py": "TEXT = open('data/a.csv').read()",
            "views.py": "import sql",
            "env.py": f"import sql\n{ENV}",
            "versions/0001.py": "import sql",
            "versions/0002.py": "def upgrade():\n    import views",
            "versions/0003.py": "",
        }
    )

    assert beside(needs, "0001") == {"file:sql.py", "file:data/a.csv"}
    assert beside(needs, "0002") == {"file:sql.py", "file:views.py", "file:data/a.csv"}
    assert beside(needs, "0003") == set()


def test_a_file_that_a_helpers_function_reads_is_a_need_of_whoever_called(
    recorded: Recorded,
) -> None:
    """Two revisions that use one function for two files depend on one file each."""
    needs = recorded(
        {
            **DATA,
            "sql.py": "def read(name):\n    return open(f'data/{name}.csv').read()\n",
            "versions/0001.py": "import sql\ndef upgrade(): sql.read('a')",
            "versions/0002.py": "import sql\nTEXT = sql.read('b')",
            "versions/0003.py": "import sql",
        }
    )

    assert data(needs, "0001") == {"file:data/a.csv"}
    assert data(needs, "0002") == {"file:data/b.csv"}
    assert data(needs, "0003") == set()


LISTINGS = {
    "listdir": "import os; os.listdir('data')",
    "listdir of here": "import os\nos.chdir('data')\nos.listdir()\nos.chdir('..')",
    "scandir": "import os; list(os.scandir('data'))",
    "walk": "import os; list(os.walk('data'))",
    "iterdir": "import pathlib; list(pathlib.Path('data').iterdir())",
    "path's glob": "import pathlib; list(pathlib.Path('data').glob('*.csv'))",
    "glob": "import glob; glob.glob('data/*.csv')",
    "resources": "import importlib.resources as r; list(r.files('data').iterdir())",
    "pkgutil": "import pkgutil; list(pkgutil.iter_modules(['data']))",
    "walk of packages": "import pkgutil, data; list(pkgutil.walk_packages(data.__path__))",
}
"""Ways to see which files there are in data."""


@pytest.mark.parametrize("way", LISTINGS)
@pytest.mark.parametrize("late", [True, False])
def test_a_folder_that_is_listed_is_a_need(recorded: Recorded, way: str, *, late: bool) -> None:
    """A file that is added there, such as a model that is found by itself, is then noticed."""
    text = LISTINGS[way]

    needs = recorded({**DATA, "versions/0001.py": indented(text) if late else text})

    assert data(needs, "0001") == {"folder:data"}


def test_a_file_that_is_not_there_is_a_need(recorded: Recorded) -> None:
    """Once somebody makes it, the link would do something else."""
    needs = recorded(
        {
            "versions/0001.py": "import os\n"
            "def upgrade():\n"
            "    for read in (open, os.listdir):\n"
            "        try:\n"
            "            read('local.csv')\n"
            "        except OSError:\n"
            "            pass\n"
        }
    )

    assert needs["0001"]["file:local.csv"] == ""
    assert needs["0001"]["folder:local.csv"] == ""


LOOKS = {
    "exists": "import os; os.path.exists('data/a.csv')",
    "isfile": "import os; os.path.isfile('data/a.csv')",
    "isdir": "import os; os.path.isdir('data/a.csv')",
    "path's exists": "import pathlib; pathlib.Path('data/a.csv').exists()",
    "path's is_file": "import pathlib; pathlib.Path('data/a.csv').is_file()",
    "stat": "import os; os.stat('data/a.csv')",
}
"""Ways to look whether data/a.csv is there."""


@pytest.mark.parametrize("way", LOOKS)
@pytest.mark.parametrize("late", [True, False])
def test_a_file_that_is_looked_for_is_a_need_by_its_being_there(
    recorded: Recorded, way: str, *, late: bool
) -> None:
    """What it holds was not read, and may change."""
    text = LOOKS[way]

    needs = recorded({**DATA, "versions/0001.py": indented(text) if late else text})

    assert beside(needs) == {"there:data/a.csv"}
    assert needs["0001"]["there:data/a.csv"] == "a file"


@pytest.mark.parametrize(
    "text",
    [
        "open('data/a.csv', 'w').close()",
        "open('data/a.csv', 'a').close()",
        "open('data/a.csv', 'r+b').close()",
        "open('data/new.csv', 'x').close()",
        "import pathlib; pathlib.Path('data/a.csv').write_text('')",
        "import os; os.close(os.open('data/a.csv', os.O_WRONLY))",
        "import os; os.close(os.open('data/a.csv', os.O_RDWR | os.O_CREAT))",
        "open('data/new.csv', 'w').close(); open('data/new.csv').close()",
    ],
)
@pytest.mark.parametrize("late", [True, False])
def test_a_file_that_is_written_is_no_need(recorded: Recorded, text: str, *, late: bool) -> None:
    """What a build makes is not what it depends on, also when it reads it afterwards."""
    needs = recorded({**DATA, "versions/0001.py": indented(text) if late else text})

    assert data(needs, "0001") == set()


@pytest.mark.parametrize(
    "text",
    [
        "import json, pathlib; pathlib.Path(json.__file__).read_text()",
        "import pytest, pathlib; pathlib.Path(pytest.__file__).read_text()",
        "import os; os.listdir(os.path.dirname(os.__file__))",
        "import os, pytest; os.listdir(os.path.dirname(pytest.__file__))",
        "import os, pytest; os.listdir(os.path.dirname(os.path.dirname(pytest.__file__)))",
        "import os; os.listdir('/etc'); os.listdir('/usr')",
        "open('/etc/hostname').close()",
        "open('/dev/null').close()",
        "open('/proc/self/status').close()",
        "import tempfile; tempfile.TemporaryFile().close(); tempfile.mkdtemp()",
        "import os, tempfile\nf = os.path.join(tempfile.gettempdir(), 'x')\n"
        "open(f, 'w').close()\nopen(f).close()\nos.listdir(tempfile.gettempdir())",
        "import os\ntry:\n    open(os.path.expanduser('~/.pgpass'))\nexcept OSError:\n    pass",
        "import logging, decimal, email.message, xml.dom.minidom",
        "import traceback\ntry:\n    1 / 0\nexcept ZeroDivisionError:\n    traceback.format_exc()",
        "import inspect\ninspect.getsource(inspect)",
    ],
)
@pytest.mark.parametrize("late", [True, False])
def test_what_belongs_to_python_or_to_the_machine_is_no_need(
    recorded: Recorded, text: str, *, late: bool
) -> None:
    """Libraries count by their versions; the machine's own files are no part of a project."""
    needs = recorded({"versions/0001.py": indented(text) if late else text})

    assert beside(needs) - {"package:pytest"} == set()


def test_folders_that_tools_keep_in_a_project_are_no_need(recorded: Recorded) -> None:
    """Git's, pytest's and Python's own change all the time; a hidden file may be the project's."""
    names = [".git/HEAD", ".venv/a/b.txt", "shop/__pycache__/a.txt", "shop/.env", ".local.csv"]
    reads = "".join(f"    open({name!r}).close()\n" for name in names)

    needs = recorded(
        {
            **dict.fromkeys(names, ""),
            "versions/0001.py": f"import os\ndef upgrade():\n{reads}    os.listdir('.git')\n",
        }
    )

    assert beside(needs) == {"file:shop/.env", "file:.local.csv"}


def test_a_file_outside_of_the_project_is_a_need(recorded: Recorded, root: Path) -> None:
    """A folder beside the project may hold what several of them share."""
    (root.parent / "shared").mkdir()
    (root.parent / "shared/tax.csv").write_text("19\n")
    (root.parent / "shared/tax.py").write_text("RATE = 19\n")

    needs = recorded(
        {
            "versions/0001.py": "import sys\nsys.path.append('../shared')\nimport tax\n"
            "def upgrade():\n    open('../shared/tax.csv').close()\n"
        }
    )

    assert beside(needs) == {"file:../shared/tax.csv", "file:../shared/tax.py"}


def test_a_file_that_changes_while_it_is_read_never_fits(recorded: Recorded) -> None:
    """What was read may have been either, so that the next run builds anew."""
    needs = recorded(
        {
            **HELPERS,
            "versions/0001.py": "import os, shop.helpers\n"
            "os.utime('shop/helpers.py')\n"
            "os.utime('shop/__init__.py', (2**32, 2**32))",  # a clock that goes wrong
        }
    )

    digests = needs["0001"]
    assert digests["file:shop/helpers.py"] == "changed while it was read"
    assert len(digests["file:shop/__init__.py"]) == 16


# What env.py reads


@pytest.mark.parametrize("where", ["before", "after"])
def test_what_env_py_reads_is_a_need_of_nobody(recorded: Recorded, where: str) -> None:
    """It reads its settings in every run; the application's models are not the migrations."""
    reads = (
        "import os, shop.helpers\nopen('data/a.csv').close()\nos.listdir('data')\n"
        "def read():\n    open('data/b.csv').close()\nread()\n"
    )
    needs = recorded(
        {
            **DATA,
            **HELPERS,
            "env.py": reads + ENV if where == "before" else ENV + reads,
            "versions/0001.py": "def upgrade(): pass",
        }
    )

    assert beside(needs) == beside(needs, "0001 as loaded") == set()


def test_what_a_link_reads_below_env_py_is_its_own(recorded: Recorded) -> None:
    """Env.py is at work all the time; what runs below it decides, also in an event loop."""
    needs = recorded(
        {
            **DATA,
            "env.py": "import asyncio, steps\n"
            "async def main():\n    steps.run()\nasyncio.run(main())\n",
            "sql.py": "def read():\n    open('data/b.csv').close()\n",
            "versions/0001.py": "import sql\n"
            "def upgrade():\n    open('data/a.csv').close()\n    sql.read()",
        }
    )

    assert data(needs, "0001") == {"file:data/a.csv", "file:data/b.csv"}


# Packages


def test_a_package_that_project_code_imports_counts_by_its_version(recorded: Recorded) -> None:
    """Directly or in a helper, under the name that it is installed by; Python's own never."""
    needs = recorded(
        {
            "sql.py": "import json, psycopg.sql",
            "versions/0001.py": "from alembic import op\nimport sqlalchemy as sa, re",
            "versions/0002.py": "import sql",
            "versions/0003.py": "def upgrade():\n    from mako.template import Template",
            "versions/0004.py": "",
        }
    )

    assert beside(needs, "0001") == {"package:alembic", "package:sqlalchemy"}
    assert beside(needs, "0002") == {"file:sql.py", "package:psycopg"}
    assert beside(needs, "0003") == {"package:mako"}
    assert beside(needs, "0004") == set()
    assert all(digest[0].isdigit() for key, digest in needs["0001"].items() if "package" in key)


def test_libraries_are_known_where_the_environment_lies_below_a_link(
    recorded: Recorded, root: Path
) -> None:
    """A home folder may be one, and the path in the interpreter's own words is then no real one."""
    venv = root.parent / "venv"
    venv.symlink_to(sys.prefix)

    needs = recorded({"versions/0001.py": "import sqlalchemy"}, python=f"{venv}/bin/python")

    assert beside(needs) == {"package:sqlalchemy"}


def test_pythons_own_modules_are_known_where_python_lies_below_a_link(
    recorded: Recorded, root: Path
) -> None:
    """Homebrew and uv make environments of a Python whose folder is a link to one version."""
    base, venv = root.parent / "base", root.parent / "venv"
    base.symlink_to(sys.base_prefix)
    (venv / "bin").mkdir(parents=True)
    (venv / "bin/python").symlink_to(f"{base}/bin/python{sys.version_info.major}")
    (venv / "pyvenv.cfg").write_text(f"home = {base}/bin\n")

    needs = recorded(
        {"versions/0001.py": "import email.message"},
        python=f"{venv}/bin/python",
        PYTHONPATH=str(Path(pytest_warmstack.__file__).parents[1]),
    )

    assert beside(needs) == set()


def test_the_plugins_own_modules_are_no_files_of_the_project(recorded: Recorded) -> None:
    """Also where it is installed as an editable, so that they lie outside of site-packages."""
    needs = recorded({"versions/0001.py": "import pytest_warmstack.options"})

    assert not {key for key in beside(needs) if key.startswith("file:")}


# What is to be left out

EVERYTHING = {
    *("file:shop/__init__.py", "file:shop/types.py", "file:shop/models.py"),
    *("file:shop/settings.py", "file:attributes.py", "file:data/a.csv"),
}


@pytest.mark.parametrize(
    ("ignore", "left"),
    [
        (["shop/models.py"], {"file:shop/__init__.py", "file:shop/types.py"}),
        (["*/models.py"], {"file:shop/__init__.py", "file:shop/types.py"}),
        (["shop/*"], set()),
        (["shop/"], set()),
        (["sh*"], set()),
        (["*"], set()),
        (["versions/*"], EVERYTHING),
        (["shop"], EVERYTHING),
        (["nowhere/*.py"], EVERYTHING),
    ],
)
def test_what_is_to_be_left_out_is_no_need_nor_is_what_is_behind_it(
    recorded: Recorded, ignore: list[str], left: set[str]
) -> None:
    """A pattern cuts a module with all that only this one imports and reads.

    A revision's own file always counts, whatever the patterns say.
    """
    needs = recorded(
        {
            **DATA,
            "shop/__init__.py": "",
            "shop/types.py": "",
            "shop/models.py": "import shop.types, shop.settings, attributes\n"
            "open('data/a.csv').close()\n",
            "shop/settings.py": "",
            "attributes.py": "",
            "versions/0001.py": "import shop.models, shop.types",
        },
        ignore=ignore,
    )

    assert beside(needs) == left


def test_a_data_file_can_be_left_out_alone(recorded: Recorded) -> None:
    """A pattern names files as the keys do, from the project's root, folders and packages too."""
    needs = recorded(
        {
            **DATA,
            "versions/0001.py": "import os, mako\nos.listdir('data')\n"
            "open('data/a.csv').close()\nopen('data/b.csv').close()",
        },
        ignore=["data/a.*", "data"],
    )

    assert beside(needs) == {"file:data/b.csv", "package:mako"}


def test_a_warning_names_the_line_that_imports(root: Path, recorded: Recorded) -> None:
    """As without us: a deprecated module tells who uses it."""
    old = "import warnings\nwarnings.warn('use new', DeprecationWarning, stacklevel=2)\n"
    text = (
        "import warnings\nseen = []\n"
        "warnings.showwarning = lambda text, kind, file, line, *_: seen.append((file, line))\n"
        "warnings.simplefilter('always')\nimport shop.old\n"
        "assert seen == [(__file__, 5)], seen\n"
    )

    recorded({**HELPERS, "shop/old.py": old, "versions/0001.py": text})
