"""What a build read, as keys with digests, compared with what the files hold now."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_warmstack import originals
from pytest_warmstack.postgres.template import dependencies
from pytest_warmstack.postgres.template.dependencies import (
    ABSENT,
    FileState,
    distribution,
    matching,
    place,
    python_files,
)

Edit = Callable[[Path], object]

INI = """\
# The migrations of the shop
[alembic]
script_location = %(here)s/migrations
sqlalchemy.url = driver://user:pass@localhost/dbname
file_template = %%(rev)s_%%(slug)s
prepend_sys_path = .

[post_write_hooks]
hooks = ruff

[shop]
tenant = a

[loggers]
keys = root

[logger_root]
level = WARNING

[handler_console]
class = StreamHandler

[formatter_generic]
format = %(message)s
"""

TOML = """\
[project]
name = "shop"

[tool.alembic]
script_location = "%(here)s/migrations"
timezone = "UTC"
version_locations = ["a", "b"]

[[tool.alembic.post_write_hooks]]
name = "ruff"

[tool.ruff]
line-length = 100
"""

INSTALLED = ("Some_Thing-1.2.dist-info", "zope.interface-7.0.dist-info", "old-0.9-py3.11.egg-info")


def write(path: Path, text: str = "") -> Path:
    """Write *text* to *path*, making its folder, and return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project, beside a folder of installed packages."""
    root, site = tmp_path / "shop", tmp_path / "site"
    write(root / "alembic.ini", INI)
    write(root / "pyproject.toml", TOML)
    write(root / "sql/views.sql", "CREATE VIEW v AS SELECT 1;\n")
    write(root / "sql/old/roles.sql", "CREATE ROLE r;\n")
    write(root / "migrations/env.py", "run()\n")
    write(root / "migrations/versions/0001_a.py", "revision = '1'\n")
    write(root / "migrations/versions/old/0000_z.py", "revision = '0'\n")
    write(site / "thing/migrations/0001.py", "revision = 't1'\n")
    for name in INSTALLED:
        (site / name).mkdir(parents=True)
    monkeypatch.setattr(dependencies, "site", lambda: (str(site), str(tmp_path / "other")))
    monkeypatch.setattr(sys, "path", [str(root), "", str(site), str(tmp_path / "nowhere")])
    return root


KEYS = [
    "file:sql/views.sql",
    "there:sql/views.sql",
    "folder:sql",
    "scripts:migrations/versions",
    "glob:sql/*.sql",
    "ini:alembic.ini",
    "toml:pyproject.toml",
    "package:some-thing",
    "file:<site>/thing/migrations/0001.py",
    "scripts:<site>/thing/migrations",
]
"""A key of each kind, for something that is there."""


def digests(root: Path) -> dict[str, str]:
    """Return the digests of all keys, looked at now."""
    file_state = FileState(str(root))
    return {key: file_state.digest(key) for key in KEYS}


def changed(root: Path, edit: Edit) -> set[str]:
    """Return the keys that are not the same after *edit*."""
    before = digests(root)
    edit(root)
    file_state = FileState(str(root))
    return {key for key, digest in before.items() if not file_state.same(key, digest)}


# What is the same


def test_each_kind_of_key_has_an_example_here() -> None:
    """A kind that is added has to be added to these tests."""
    kinds = re.findall(r"_(\w+)_digest", " ".join(vars(FileState)))

    assert {key.partition(":")[0] for key in KEYS} == {*kinds} - {"parsed"}


def test_what_is_there_has_a_digest_of_its_own(root: Path) -> None:
    """Nothing that is there is taken for absent, nor for something else."""
    found = digests(root)

    assert ABSENT not in found.values()
    assert len(set(found.values())) == len(KEYS)


NO_EDITS: dict[str, Edit] = {
    "nothing happens": lambda root: None,
    "files are touched": lambda root: [os.utime(path, (1, 1)) for path in root.rglob("*.*")],
    "files are compiled": lambda root: [
        write(root / "sql/__pycache__/a.cpython-311.pyc", "compiled"),
        write(root / "migrations/versions/__pycache__/0001_a.cpython-311.pyc", "compiled"),
        # What the interpreter writes before it moves it to its place.
        write(root / "migrations/versions/__pycache__/0001_a.cpython-311.pyc.14021", "compi"),
        write(root / "migrations/versions/0001_a.pyc", "compiled"),
    ],
    "a system leaves its notes": lambda root: [
        write(root / "sql/.DS_Store"),
        write(root / "migrations/versions/.hidden.py"),
    ],
    # Emacs leaves such a link beside a file as long as it has changes that are not saved.
    "an editor locks a file": lambda root: [
        (root / "migrations/versions/.#0001_a.py").symlink_to("ada@laptop.4711:1763800000"),
        (root / "sql/.#views.sql").symlink_to("ada@laptop.4711:1763800000"),
    ],
    "a note comes to the revisions": lambda root: write(root / "migrations/versions/README.md"),
    "a revision's text changes, as the list sees it": lambda root: write(
        root / "migrations/versions/0001_a.py", "revision = '1'  # now with an index\n"
    ),
    "another package is installed": lambda root: (root.parent / "site/new-1.dist-info").mkdir(),
    "a package further back is another version": lambda root: write(
        root.parent / "nowhere/some_thing-9.9.dist-info/METADATA"
    ),
}


@pytest.mark.parametrize("name", NO_EDITS)
def test_everything_is_the_same_when(root: Path, name: str) -> None:
    """What decides nothing about a build does not count."""
    assert changed(root, NO_EDITS[name]) == set()


EDITS: dict[str, tuple[Edit, set[str]]] = {
    "a file is edited": (
        lambda root: write(root / "sql/views.sql", "CREATE VIEW v AS SELECT 2;\n"),
        {"file:sql/views.sql", "glob:sql/*.sql"},
    ),
    "a file is emptied": (
        lambda root: write(root / "sql/views.sql"),
        {"file:sql/views.sql", "glob:sql/*.sql"},
    ),
    "a file is removed": (
        lambda root: (root / "sql/views.sql").unlink(),
        {"there:sql/views.sql", "file:sql/views.sql", "folder:sql", "glob:sql/*.sql"},
    ),
    "a file becomes a folder": (
        lambda root: [(root / "sql/views.sql").unlink(), (root / "sql/views.sql").mkdir()],
        {"there:sql/views.sql", "file:sql/views.sql", "glob:sql/*.sql"},
    ),
    "a file is added": (
        lambda root: write(root / "sql/more.sql"),
        {"folder:sql", "glob:sql/*.sql"},
    ),
    "a file is added that the pattern does not name": (
        lambda root: write(root / "sql/notes.txt"),
        {"folder:sql"},
    ),
    "a file is renamed": (
        lambda root: (root / "sql/views.sql").rename(root / "sql/view.sql"),
        {"there:sql/views.sql", "file:sql/views.sql", "folder:sql", "glob:sql/*.sql"},
    ),
    "a revision is added": (
        lambda root: write(root / "migrations/versions/0002_b.py"),
        {"scripts:migrations/versions"},
    ),
    "a revision is added deeper": (
        lambda root: write(root / "migrations/versions/old/0002_b.py"),
        {"scripts:migrations/versions"},
    ),
    "a revision moves": (
        lambda root: (root / "migrations/versions/0001_a.py").rename(
            root / "migrations/versions/old/0001_a.py"
        ),
        {"scripts:migrations/versions"},
    ),
    "a revision is removed": (
        lambda root: (root / "migrations/versions/0001_a.py").unlink(),
        {"scripts:migrations/versions"},
    ),
    "a package's revision is edited": (
        lambda root: write(root.parent / "site/thing/migrations/0001.py", "revision = 't'\n"),
        {"file:<site>/thing/migrations/0001.py"},
    ),
    "a package's revision is added": (
        lambda root: write(root.parent / "site/thing/migrations/0002.py"),
        {"scripts:<site>/thing/migrations"},
    ),
    "a package is upgraded": (
        lambda root: (root.parent / "site" / INSTALLED[0]).rename(
            root.parent / "site/some_thing-1.3.dist-info"
        ),
        {"package:some-thing"},
    ),
    "a package is removed": (
        lambda root: (root.parent / "site" / INSTALLED[0]).rmdir(),
        {"package:some-thing"},
    ),
    "a package further in front is another version": (
        lambda root: (root / "some_thing-2.0.dist-info").mkdir(),
        {"package:some-thing"},
    ),
    "alembic.ini is removed": (
        lambda root: (root / "alembic.ini").unlink(),
        {"ini:alembic.ini"},
    ),
    "pyproject.toml is removed": (
        lambda root: (root / "pyproject.toml").unlink(),
        {"toml:pyproject.toml"},
    ),
    "a folder is removed": (
        lambda root: shutil.rmtree(root / "sql"),
        {"there:sql/views.sql", "file:sql/views.sql", "folder:sql", "glob:sql/*.sql"},
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_only_what_it_is_about_changes_when(root: Path, name: str) -> None:
    """An edit is seen by the keys that name what was edited, and by no others."""
    edit, expected = EDITS[name]

    assert changed(root, edit) == expected


@pytest.mark.parametrize("key", KEYS)
def test_what_is_not_there_is_absent_and_is_the_same_until_it_comes(root: Path, key: str) -> None:
    """A file that was looked for in vain counts from the moment that somebody makes it."""
    kind, _, _ = key.partition(":")
    name = {"scripts": "later", "package": "later", "glob": "later*"}.get(kind, "later")
    missing = f"{kind}:{name}"

    absent = FileState(str(root)).digest(missing)
    assert FileState(str(root)).same(missing, absent)
    if kind != "scripts":
        assert absent == ABSENT

    if kind in {"folder", "scripts"}:
        write(root / "later/x.py")
    elif kind == "package":
        (root / "later-1.0.dist-info").mkdir()
    else:
        write(root / "later")
    assert not FileState(str(root)).same(missing, absent)


def test_an_empty_file_is_not_absent(root: Path) -> None:
    """It is there, and that may be what was asked."""
    for name in ("e.sql", "e.ini", "e.toml"):
        write(root / name)
    (root / "empty").mkdir()

    for key in ("file:e.sql", "glob:e.sql", "ini:e.ini", "toml:e.toml", "folder:empty"):
        assert FileState(str(root)).digest(key) != ABSENT, key


def test_a_copy_elsewhere_has_the_same_digests(root: Path, tmp_path: Path) -> None:
    """The second checkout of a project, on a kept server, finds the template of the first."""
    copy = shutil.copytree(root, tmp_path / "deep/er/copy")

    assert digests(copy) == digests(root)


def test_another_environment_has_the_same_names(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies in an installed package is found in whichever folder this one is installed."""
    before = digests(root)
    (tmp_path / "site").rename(tmp_path / "elsewhere")
    monkeypatch.setattr(
        dependencies, "site", lambda: (str(tmp_path / "empty"), str(tmp_path / "elsewhere"))
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path / "elsewhere")])

    assert digests(root) == before


# Alembic's configuration files

INI_NO_EDITS = {
    "a comment": ("# The migrations of the shop", "# Ours\n; and yours"),
    "a blank line": ("\nprepend_sys_path", "\n\nprepend_sys_path"),
    "another spelling of the same": ("tenant = a", "tenant:a"),
    "the url, which is replaced": ("driver://user:pass@localhost/dbname", "postgresql:///shop"),
    "names of new files": ("%%(rev)s_%%(slug)s", "%%(slug)s"),
    "what formats new files": ("hooks = ruff", "hooks = black\nblack.type = exec"),
    "the level of a logger": ("level = WARNING", "level = DEBUG"),
    "the list of loggers": ("keys = root", "keys = root,alembic"),
    "a new logger": ("[logger_root]", "[logger_alembic]\nlevel = INFO\n\n[logger_root]"),
    "a handler": ("StreamHandler", "NullHandler"),
    "a format": ("format = %(message)s", "format = %(name)s %(message)s"),
    "options in another order": (
        "prepend_sys_path = .\n",
        "prepend_sys_path = .\ntruncate_slug_length = 40\ntimezone = UTC\n",
    ),
}

INI_EDITS = {
    "the scripts": ("%(here)s/migrations", "%(here)s/schema"),
    "a new option": ("prepend_sys_path = .", "prepend_sys_path = .\nversion_table = v"),
    "an option that is gone": ("prepend_sys_path = .\n", ""),
    "a section of env.py's own": ("tenant = a", "tenant = b"),
    "a new section": ("[shop]", "[other]\ntenant = c\n\n[shop]"),
    "what all sections have": ("[alembic]", "[DEFAULT]\ntenant = d\n\n[alembic]"),
    "an option of the engine": (
        "prepend_sys_path = .",
        "prepend_sys_path = .\nsqlalchemy.echo = 1",
    ),
    "a section that only looks like logging": ("[loggers]", "[loggers_of_ours]"),
    "something that can't be read": ("[alembic]", "alembic"),
}


def same_after(root: Path, key: str, old: str, new: str) -> bool:
    """Tell whether what *key* names is the same after *old* was replaced in it."""
    before = FileState(str(root)).digest(key)
    path = root / key.partition(":")[2]
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return FileState(str(root)).same(key, before)


@pytest.mark.parametrize("name", INI_NO_EDITS)
def test_an_ini_file_is_the_same_after_a_change_of(root: Path, name: str) -> None:
    """Its logging, and what only `alembic revision` reads, decide nothing about a database."""
    assert same_after(root, "ini:alembic.ini", *INI_NO_EDITS[name])


@pytest.mark.parametrize("name", INI_EDITS)
def test_an_ini_file_is_another_after_a_change_of(root: Path, name: str) -> None:
    """All the rest counts: env.py may read any of it."""
    assert not same_after(root, "ini:alembic.ini", *INI_EDITS[name])


TOML_NO_EDITS = {
    "another tool": ("line-length = 100", "line-length = 80"),
    "the project's name": ('name = "shop"', 'name = "bookshop"'),
    "a comment": ("[tool.alembic]", "[tool.alembic]  # ours"),
    "the layout": ('["a", "b"]', '[\n  "a",\n  "b",\n]'),
    "the time zone of new files": ('"UTC"', '"Europe/Berlin"'),
    "what formats new files": ('name = "ruff"', 'name = "black"'),
}

TOML_EDITS = {
    "the scripts": ("%(here)s/migrations", "%(here)s/schema"),
    "the order of a list": ('["a", "b"]', '["b", "a"]'),
    "a new key": ("timezone", "recursive_version_locations = true\ntimezone"),
    "a table of env.py's own": ("[tool.ruff]", "[tool.alembic.shop]\nx = 1979-05-27\n[tool.ruff]"),
    "something that can't be read": ("[tool.alembic]", "[tool.alembic"),
    "a table that is gone": ("[tool.alembic]", "[tool.other]"),
}


@pytest.mark.parametrize("name", TOML_NO_EDITS)
def test_a_toml_file_is_the_same_after_a_change_of(root: Path, name: str) -> None:
    """Of pyproject.toml only Alembic's own table counts, and not all of this one."""
    assert same_after(root, "toml:pyproject.toml", *TOML_NO_EDITS[name])


@pytest.mark.parametrize("name", TOML_EDITS)
def test_a_toml_file_is_another_after_a_change_of(root: Path, name: str) -> None:
    """A key of Alembic's table that is added, edited or removed counts."""
    if name == "a table that is gone":
        write(root / "pyproject.toml", TOML.replace("[[tool.alembic.", "[[tool.other."))
    assert not same_after(root, "toml:pyproject.toml", *TOML_EDITS[name])


@pytest.mark.parametrize("name", ["ini:alembic.ini", "toml:pyproject.toml"])
def test_a_configuration_that_is_not_text_is_another(root: Path, name: str) -> None:
    """Whatever it holds, it is not what was read; the error is told by whoever needs it."""
    before = FileState(str(root)).digest(name)

    (root / name.partition(":")[2]).write_bytes(b"\xff\xfe[alembic]")

    assert not FileState(str(root)).same(name, before)


# Packages


@pytest.mark.parametrize(
    ("name", "version"),
    [("some-thing", "1.2"), ("zope-interface", "7.0"), ("old", "0.9"), ("nothing", ABSENT)],
)
def test_the_version_of_a_package_is_read_off_its_folder(
    root: Path, name: str, version: str
) -> None:
    """Wheels and old eggs say it in the name; which of the spellings stands there is the same."""
    assert FileState(str(root)).digest(f"package:{name}") == version


def test_the_versions_are_those_that_python_itself_knows() -> None:
    """In this very environment, for what every build depends on."""
    from importlib.metadata import version

    file_state = FileState(".")

    for name in ("alembic", "SQLAlchemy", "asyncpg", "pytest-asyncio", "typing_extensions"):
        assert file_state.digest(f"package:{distribution(name)}") == version(name)


@pytest.mark.parametrize(
    "name", ["Zope.Interface", "zope_interface", "ZOPE--interface", "zope._interface"]
)
def test_spellings_of_one_distribution_are_one(name: str) -> None:
    """As the packaging standard has it: case does not count, and separators are one dash."""
    assert distribution(name) == "zope-interface"


# Names


def test_a_path_has_a_name_that_begins_at_the_root_or_at_the_packages(root: Path) -> None:
    """Below the root, beside it, or in the folder of installed packages; and back to the path."""
    site = str(root.parent / "site")
    other = str(root.parent / "other")
    names = {
        str(root / "sql/views.sql"): "sql/views.sql",
        str(root): ".",
        str(root.parent / "shared/a.sql"): "../shared/a.sql",
        f"{site}/thing/migrations/0001.py": "<site>/thing/migrations/0001.py",
        f"{other}/thing.py": "<site>/thing.py",
        f"{site}-too/thing.py": "../site-too/thing.py",
    }
    write(Path(f"{other}/thing.py"))

    assert {path: place(path, str(root)) for path in names} == names
    for path, name in names.items():
        assert os.path.normpath(FileState(str(root)).path(name)) == path


# Patterns


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("sql/views.sql", ["sql/views.sql"]),
        ("./sql/../sql/views.sql", ["sql/views.sql"]),
        ("sql/*.sql", ["sql/views.sql"]),
        ("sql/**/*.sql", ["sql/old/roles.sql", "sql/views.sql"]),
        ("*/views.sql", ["sql/views.sql"]),
        ("sql", ["sql/old/roles.sql", "sql/views.sql"]),
        ("sql/", ["sql/old/roles.sql", "sql/views.sql"]),
        ("sq?", ["sql/old/roles.sql", "sql/views.sql"]),
        ("sql/**", ["sql/old/roles.sql", "sql/views.sql"]),
        ("sql/*", ["sql/old/roles.sql", "sql/views.sql"]),
        (".env", [".env"]),
        ("data[1].csv", ["data[1].csv"]),
        ("data[12].csv", ["data1.csv"]),
        ("../site/thing", ["../site/thing/migrations/0001.py"]),
        ("nowhere", []),
        ("nowhere/*.sql", []),
    ],
)
def test_a_line_names_a_file_a_folder_or_a_pattern(
    root: Path, pattern: str, found: list[str]
) -> None:
    """A folder stands for all below it; a name that exists is itself, whatever stands in it."""
    for name in (".env", "data[1].csv", "data1.csv", "sql/.hidden.sql"):
        write(root / name)
    write(root / "sql/__pycache__/a.cpython-311.pyc", "compiled")
    write(root / "sql/__pycache__/a.cpython-311.pyc.14021", "compi")

    assert matching(pattern, str(root)) == found


def test_an_absolute_path_is_a_line_as_good_as_any(root: Path) -> None:
    """What lies elsewhere can be named from the root of the file system."""
    path = str(root.parent / "site/thing")

    names = matching(path, str(root))

    assert [os.path.normpath(root / each) for each in names] == [f"{path}/migrations/0001.py"]


def test_python_files_come_in_a_stable_order(root: Path) -> None:
    """Those below a folder, without hidden and compiled ones; of no folder there are none."""
    folder = str(root / "migrations")
    write(root / "migrations/.hidden.py")
    write(root / "migrations/__pycache__/x.py")

    assert [each.removeprefix(folder) for each in python_files(folder)] == [
        "/env.py",
        "/versions/0001_a.py",
        "/versions/old/0000_z.py",
    ]
    assert list(python_files(str(root / "nowhere"))) == []


# What it costs


def test_each_file_is_read_once_even_if_a_thousand_steps_need_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A helper that every revision imports costs a warm run one look."""
    keys = ["file:sql/views.sql", "folder:sql", "glob:sql/*.sql", "scripts:migrations"]
    before = {key: FileState(str(root)).digest(key) for key in keys}
    looks: list[object] = []
    read, listed, walked = dependencies._read, os.listdir, os.scandir
    monkeypatch.setattr(dependencies, "_read", lambda path: [looks.append(path), read(path)][1])
    monkeypatch.setattr(os, "listdir", lambda path: [looks.append(path), listed(path)][1])
    monkeypatch.setattr(os, "scandir", lambda path: [looks.append(path), walked(path)][1])

    file_state = FileState(str(root))
    for _ in range(1000):
        assert file_state.holds(before)

    sql = f"{root}/sql/views.sql"
    # By its own name and by the pattern's, which is another question.
    assert looks.count(sql) == 2
    assert looks.count(f"{root}/migrations") == 1
    assert len(looks) < 12


def test_what_was_looked_at_stays_as_it_was_seen(root: Path) -> None:
    """One run has one answer, also when somebody edits a file meanwhile."""
    file_state = FileState(str(root))
    before = {key: file_state.digest(key) for key in KEYS}
    for edit, _ in EDITS.values():
        try:
            edit(root)
        except FileNotFoundError:
            continue

    assert {key: file_state.digest(key) for key in KEYS} == before


def test_the_check_of_unchanged_files_imports_neither_alembic_nor_sqlalchemy(root: Path) -> None:
    """A warm run, which only looks whether anything changed, does not pay for their import."""
    before = {key: digest for key, digest in digests(root).items() if "<site>" not in key}
    del before["package:some-thing"]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import json, pathlib, sys\n"
            "from pytest_warmstack.postgres.template import layers, templates\n"
            "from pytest_warmstack.postgres.template.configurations import Configurations\n"
            "from pytest_warmstack.postgres.template.dependencies import FileState\n"
            "from pytest_warmstack.options import Settings\n"
            "root = pathlib.Path.cwd()\n"
            "present = FileState(str(root))\n"
            "settings = Settings(seed=('sql/views.sql',))\n"
            "alembic = Configurations(settings, root).of(root)\n"
            "for layer in layers.make(settings, root, present, alembic):\n"
            "    layer.key\n"
            "print(present.holds(json.loads(sys.argv[1])))\n"
            "print({'alembic', 'sqlalchemy', 'docker', 'redis', 'pytest'} & set(sys.modules))",
            json.dumps(before),
        ],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert done.stdout.splitlines() == ["True", "set()"]


def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list of the files that are read from now on."""
    found: list[str] = []
    original = dependencies._read

    def read(path: str) -> bytes | None:
        found.append(path)
        return original(path)

    monkeypatch.setattr(dependencies, "_read", read)
    return found


@pytest.fixture
def old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that was changed long before it is read."""
    path = tmp_path / "a.sql"
    path.write_text("SELECT 1")
    later = originals.now() + 60
    monkeypatch.setattr(originals, "now", lambda: later)
    return path


def test_a_file_that_was_read_early_is_not_read_again(
    old_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time of change is enough."""
    early = FileState(str(old_file.parent), is_early=True)
    digest = early.digest("file:a.sql")
    found = opened(monkeypatch)

    assert FileState(str(old_file.parent), earlier=early).digest("file:a.sql") == digest
    assert found == []


def test_a_file_that_changes_after_it_was_read_early_is_read_again(old_file: Path) -> None:
    """Even if its size and its time of modification are the same."""
    early = FileState(str(old_file.parent), is_early=True)
    digest, before = early.digest("file:a.sql"), old_file.stat()
    old_file.write_text("SELECT 2")
    os.utime(old_file, ns=(before.st_atime_ns, before.st_mtime_ns))

    later = FileState(str(old_file.parent), earlier=early)

    assert later.digest("file:a.sql") not in {digest, ABSENT}
    old_file.unlink()
    assert FileState(str(old_file.parent), earlier=early).digest("file:a.sql") == ABSENT


def test_a_file_that_was_just_changed_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its next change may have the same time."""
    (tmp_path / "a.sql").write_text("SELECT 1")
    early = FileState(str(tmp_path), is_early=True)
    early.digest("file:a.sql")
    found = opened(monkeypatch)

    FileState(str(tmp_path), earlier=early).digest("file:a.sql")

    assert found == [str(tmp_path / "a.sql")]
