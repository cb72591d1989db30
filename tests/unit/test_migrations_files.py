"""The Alembic project of the tests, known from its files alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_warmstack.errors import TemplateFailed
from pytest_warmstack.postgres.migrations import Migrations, layers
from pytest_warmstack.settings import Settings

INI = "[alembic]\nscript_location = migrations\n"
TOML = '[project]\nname = "shop"\n'
TABLE = '[tool.alembic]\nscript_location = "migrations"\n'


def write(path: Path, text: str = "") -> Path:
    """Write *text* to *path*, making its folder, and return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with two revisions, whose pyproject.toml says nothing of Alembic."""
    root = tmp_path / "shop"
    write(root / "alembic.ini", INI)
    write(root / "pyproject.toml", TOML)
    write(root / "migrations/env.py", "run()\n")
    write(root / "migrations/script.py.mako", "${message}\n")
    write(root / "migrations/versions/0001_a.py", "revision = '1'\n")
    write(root / "migrations/versions/0002_b.py", "revision = '2'\n")
    return root


def find(root: Path, *, alembic: str = "", env: tuple[str, ...] = ()) -> Migrations:
    """Return the Alembic project in *root*, which has one."""
    settings = Settings(alembic=alembic, env=env, sources={"alembic": "pytest.ini"})
    migrations = Migrations.find(settings, root)
    assert migrations is not None
    return migrations


def fingerprint(root: Path, **choices: object) -> str:
    """Return the fingerprint of the Alembic project in *root*."""
    return find(root, **choices).fingerprint()  # type: ignore[arg-type]


# What is found


def test_a_project_without_alembic_has_no_layer(tmp_path: Path) -> None:
    """Its tests get an empty database."""
    assert Migrations.find(Settings(), tmp_path) is None
    assert layers(Settings(), tmp_path) == []


def test_a_pyproject_without_alembics_table_is_no_configuration(tmp_path: Path) -> None:
    """Every project has that file, and most have nothing for Alembic in it."""
    write(tmp_path / "pyproject.toml", TOML)

    assert Migrations.find(Settings(), tmp_path) is None


def test_the_ini_file_at_the_root_is_found(root: Path) -> None:
    """Nothing has to be configured where things are where they usually are."""
    migrations = find(root)

    assert (migrations.ini, migrations.toml) == (root / "alembic.ini", None)
    assert migrations.config == str(root / "alembic.ini")
    assert layers(Settings(), root) == [migrations]


def test_the_table_in_pyproject_is_found(root: Path) -> None:
    """Alembic's newer way needs no ini file."""
    (root / "alembic.ini").unlink()
    write(root / "pyproject.toml", TOML + TABLE)

    migrations = find(root)

    assert (migrations.ini, migrations.toml) == (None, root / "pyproject.toml")
    assert migrations.config == str(root / "pyproject.toml")
    assert migrations.fingerprint()


def test_both_are_taken_together(root: Path) -> None:
    """Alembic reads the table and the ini file, and so do we."""
    write(root / "pyproject.toml", TOML + TABLE)

    migrations = find(root)

    assert (migrations.ini, migrations.toml) == (root / "alembic.ini", root / "pyproject.toml")


@pytest.mark.parametrize("absolute", [False, True])
def test_a_named_ini_file_is_taken(root: Path, *, absolute: bool) -> None:
    """It is named relative to pytest's root, or by its whole path."""
    named = write(root / "conf/other.ini", INI)

    migrations = find(root, alembic=str(named) if absolute else "conf/other.ini")

    assert migrations.ini == named


def test_a_named_pyproject_is_taken(root: Path) -> None:
    """A part of a repository can have its own, whose table is the one that counts."""
    named = write(root / "backend/pyproject.toml", TABLE)

    migrations = find(root, alembic="backend/pyproject.toml")

    assert (migrations.ini, migrations.toml) == (None, named)


def test_what_the_settings_say_comes_along(root: Path) -> None:
    """Lines for the environment and the deadline are those of the settings."""
    settings = Settings(env=("A=1",), migrate_timeout=2.5)

    migrations = Migrations.find(settings, root)

    assert migrations is not None
    assert (migrations.root, migrations.env, migrations.timeout) == (root, ("A=1",), 2.5)


# What changes the fingerprint

Edit = Callable[[Path], object]

EDITS: dict[str, Edit] = {
    "a revision is edited": lambda root: write(
        root / "migrations/versions/0002_b.py", "revision = '2'  # now with an index\n"
    ),
    "a revision is added": lambda root: write(root / "migrations/versions/0003_c.py", ""),
    "a revision is removed": lambda root: (root / "migrations/versions/0002_b.py").unlink(),
    "a revision is renamed": lambda root: (root / "migrations/versions/0002_b.py").rename(
        root / "migrations/versions/0002_c.py"
    ),
    "two revisions swap their contents": lambda root: [
        write(root / "migrations/versions/0001_a.py", "revision = '2'\n"),
        write(root / "migrations/versions/0002_b.py", "revision = '1'\n"),
    ],
    "a revision moves into a folder": lambda root: [
        (root / "migrations/versions/old").mkdir(),
        (root / "migrations/versions/0001_a.py").rename(root / "migrations/versions/old/0001_a.py"),
    ],
    "env.py is edited": lambda root: write(root / "migrations/env.py", "run_differently()\n"),
    "a helper is added": lambda root: write(root / "migrations/helpers/views.py", "VIEWS = []\n"),
    "a data file is added": lambda root: write(root / "migrations/data/countries.csv", "de\n"),
    "alembic.ini is edited": lambda root: write(
        root / "alembic.ini", INI + "sqlalchemy.url = postgresql://localhost/shop\n"
    ),
    "pyproject gets a table": lambda root: write(root / "pyproject.toml", TOML + TABLE),
}


@pytest.mark.parametrize("name", EDITS)
def test_the_fingerprint_changes_when(root: Path, name: str) -> None:
    """What decides what the migrations do, decides the fingerprint."""
    before = fingerprint(root)

    EDITS[name](root)

    assert fingerprint(root) != before


def test_the_fingerprint_changes_with_the_table(root: Path) -> None:
    """A key of [tool.alembic] that is added, edited or removed counts."""
    prints = set()
    for more in ("", 'timezone = "UTC"\n', 'timezone = "Europe/Berlin"\n', "output = [1]\n"):
        write(root / "pyproject.toml", TOML + TABLE + more)
        prints.add(fingerprint(root))

    assert len(prints) == 4


def test_the_fingerprint_changes_with_the_environment_of_the_migrations(root: Path) -> None:
    """A line of warmstack_env that is added or edited counts."""
    prints = {fingerprint(root, env=env) for env in [(), ("A=1",), ("A=2",), ("A=1", "B=2")]}

    assert len(prints) == 4


def test_the_fingerprint_changes_with_the_versions_of_the_builders(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same scripts under another Alembic or SQLAlchemy may build something else."""
    from pytest_warmstack.postgres import migrations

    prints = set()
    for changed in ("", "alembic", "sqlalchemy"):
        monkeypatch.setattr(
            migrations, "version", lambda name, changed=changed: "2" if name == changed else "1"
        )
        prints.add(fingerprint(root))

    assert len(prints) == 3


# What does not change the fingerprint

NO_EDITS: dict[str, Edit] = {
    "nothing happens": lambda root: None,
    "files are compiled": lambda root: [
        write(root / "migrations/__pycache__/env.cpython-311.pyc", "compiled"),
        write(root / "migrations/versions/__pycache__/0001_a.cpython-311.pyc", "compiled"),
        # What the interpreter writes before it moves it to its place.
        write(root / "migrations/__pycache__/env.cpython-311.pyc.14021", "compi"),
        write(root / "migrations/versions/0001_a.pyc", "compiled"),
    ],
    "files are touched": lambda root: [
        os.utime(path, (1, 1)) for path in (root / "migrations").rglob("*.py")
    ],
    "an unrelated key of pyproject is edited": lambda root: write(
        root / "pyproject.toml", TOML.replace("shop", "bookshop") + "[tool.ruff]\n"
    ),
    "a model is edited": lambda root: write(root / "src/shop/models.py", "class Order: ...\n"),
    "a test is added": lambda root: write(root / "tests/test_shop.py", ""),
    "an empty folder is made": lambda root: (root / "migrations/versions/empty").mkdir(),
    # Emacs leaves such a link beside a file as long as it has changes that are not saved.
    "an editor locks a file": lambda root: (root / "migrations/versions/.#0002_b.py").symlink_to(
        "ada@laptop.4711:1763800000"
    ),
}


@pytest.mark.parametrize("name", NO_EDITS)
def test_the_fingerprint_does_not_change_when(root: Path, name: str) -> None:
    """What has no part in the migrations has none in the fingerprint."""
    before = fingerprint(root)

    NO_EDITS[name](root)

    assert fingerprint(root) == before


def test_an_unrelated_key_beside_the_table_does_not_change_it(root: Path) -> None:
    """Of pyproject.toml only Alembic's own table counts, in whatever order its keys stand."""
    write(root / "pyproject.toml", TOML + TABLE + 'timezone = "UTC"\n')
    before = fingerprint(root)

    write(
        root / "pyproject.toml",
        '[tool.ruff]\n[tool.alembic]\ntimezone = "UTC"  # ours\nscript_location = "migrations"\n',
    )

    assert fingerprint(root) == before


@pytest.mark.parametrize("location", ["migrations", "%(here)s/migrations"])
def test_a_copy_elsewhere_has_the_same_fingerprint(
    root: Path, tmp_path: Path, location: str
) -> None:
    """The second checkout of a project, on a kept server, finds the template of the first."""
    write(root / "alembic.ini", f"[alembic]\nscript_location = {location}\n")
    copy = shutil.copytree(root, tmp_path / "deep/er/copy")

    assert fingerprint(copy) == fingerprint(root)


# Where the scripts are


def add_revision(folder: Path) -> None:
    """Add a revision to *folder*."""
    write(folder / "0009_z.py", "revision = '9'\n")


SEPARATED: dict[str, str] = {
    "path_separator = os": os.pathsep,
    "path_separator = space": " ",
    "path_separator = newline": "\n    ",
    "path_separator = :": ":",
    "path_separator = ;": ";",
    "version_path_separator = os": os.pathsep,
    "version_path_separator = space": " ",
    "": " ",
    "# Alembic's oldest way, with commas": ", ",
}


@pytest.mark.parametrize("here", ["", "%(here)s/"])
@pytest.mark.parametrize("setting", SEPARATED)
def test_revisions_count_in_every_version_location(root: Path, setting: str, here: str) -> None:
    """Several folders of revisions are told apart as Alembic does it, in each of its ways."""
    folders = [root / "migrations/versions", root / "plugins/a", root / "plugins/b"]
    write(folders[1] / "0003_c.py")
    write(folders[2] / "0004_d.py")
    listed = SEPARATED[setting].join(
        f"{here}{folder.relative_to(root).as_posix()}" for folder in folders
    )
    write(root / "alembic.ini", f"{INI}{setting}\nversion_locations = {listed}\n")

    prints = {fingerprint(root)}
    for folder in folders:
        add_revision(folder)
        prints.add(fingerprint(root))

    assert len(prints) == 4


def test_a_list_of_version_locations_in_the_table_is_read(root: Path) -> None:
    """In TOML several folders are a list, relative to the file where they say so."""
    (root / "alembic.ini").unlink()
    write(root / "plugins/a/0003_c.py")
    write(
        root / "pyproject.toml",
        TABLE + 'version_locations = ["migrations/versions", "%(here)s/plugins/a"]\n',
    )
    before = fingerprint(root)

    add_revision(root / "plugins/a")

    assert fingerprint(root) != before


def test_here_is_the_folder_of_the_file_that_says_it(root: Path) -> None:
    """An ini file in a folder of its own can name the scripts relative to itself."""
    write(root / "conf/alembic.ini", "[alembic]\nscript_location = %(here)s/../migrations\n")
    before = fingerprint(root, alembic="conf/alembic.ini")

    add_revision(root / "migrations/versions")

    assert fingerprint(root, alembic="conf/alembic.ini") != before


def test_the_ini_file_wins_over_the_table(root: Path) -> None:
    """Where both name a folder of scripts, Alembic takes that of the ini file."""
    write(root / "pyproject.toml", '[tool.alembic]\nscript_location = "old"\n')
    before = fingerprint(root)

    add_revision(root / "migrations/versions")

    assert fingerprint(root) != before


def test_the_scripts_of_an_installed_package_are_found(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A location may be spelt `package:folder`, for a package that can be imported."""
    write(root / "lib/warmshop/__init__.py")
    shutil.copytree(root / "migrations", root / "lib/warmshop/db/migrations")
    write(root / "alembic.ini", "[alembic]\nscript_location = warmshop:db/migrations\n")
    monkeypatch.syspath_prepend(root / "lib")
    before = fingerprint(root)

    add_revision(root / "lib/warmshop/db/migrations/versions")

    assert fingerprint(root) != before


def test_a_package_that_only_alembics_own_path_holds_is_found(root: Path) -> None:
    """`prepend_sys_path` counts for where the scripts are, as it does for Alembic's command."""
    write(root / "lib/prependedshop/__init__.py")
    shutil.copytree(root / "migrations", root / "lib/prependedshop/migrations")
    write(
        root / "alembic.ini",
        "[alembic]\nscript_location = prependedshop:migrations\nprepend_sys_path = lib\n",
    )
    path = list(sys.path)

    assert fingerprint(root)
    assert sys.path == path


# What is refused


def refused(root: Path, **choices: object) -> str:
    """Return the text of the error about the Alembic project in *root*."""
    with pytest.raises(TemplateFailed) as caught:
        fingerprint(root, **choices)
    return str(caught.value)


def test_a_named_file_that_is_not_there_is_an_error(root: Path) -> None:
    """Who names a configuration does not want another one; the error says where it was named."""
    text = refused(root, alembic="conf/alembic.ini")

    assert text.startswith(f"There is no Alembic configuration at {root}/conf/alembic.ini.\n")
    assert "Looked at: warmstack_alembic, from the pytest.ini\n" in text


def test_a_named_pyproject_without_the_table_is_an_error(root: Path) -> None:
    """A configuration that was named is not silently taken for none."""
    write(root / "backend/pyproject.toml", TOML)

    text = refused(root, alembic="backend/pyproject.toml")

    assert f"{root}/backend/pyproject.toml" in text
    assert "tool.alembic" in text


@pytest.mark.parametrize("text", ["", "[alembic]\n", "[other]\nscript_location = migrations\n"])
def test_a_configuration_without_a_script_location_is_an_error(root: Path, text: str) -> None:
    """The error names the file and the key that is missing."""
    write(root / "alembic.ini", text)

    assert refused(root).startswith(
        f"The Alembic configuration {root}/alembic.ini can't be used.\n"
        "Why: it does not say script_location\n"
    )


def test_a_script_location_that_is_no_folder_is_an_error(root: Path) -> None:
    """The error names the folder that was looked for."""
    write(root / "alembic.ini", "[alembic]\nscript_location = nowhere\n")

    assert f"script_location names {root}/nowhere, which is no folder" in refused(root)


def test_a_version_location_that_is_no_folder_is_an_error(root: Path) -> None:
    """The error names the key, and the one folder of several that is missing."""
    write(root / "alembic.ini", INI + "version_locations = migrations/versions nowhere\n")

    assert f"version_locations names {root}/nowhere, which is no folder" in refused(root)


@pytest.mark.parametrize("package", ["nosuchpackage", "nosuchpackage.below", "json.nosuchmodule"])
def test_a_package_that_is_not_there_is_an_error(root: Path, package: str) -> None:
    """The error names the package."""
    write(root / "alembic.ini", f"[alembic]\nscript_location = {package}:migrations\n")

    assert f"there is no package {package}" in refused(root)


@pytest.mark.parametrize("content", [b"script_location = a\n", b"[alembic]\nkey\n", b"[x]\n\xff"])
def test_an_ini_file_that_cannot_be_read_is_an_error(root: Path, content: bytes) -> None:
    """The error names the file and tells the parser's own words."""
    (root / "alembic.ini").write_bytes(content)

    assert refused(root).startswith(
        f"The Alembic configuration {root}/alembic.ini can't be used.\nWhy:"
    )


@pytest.mark.parametrize("content", [b"[tool.alembic\n", b"\xff"])
def test_a_pyproject_that_cannot_be_read_is_an_error(root: Path, content: bytes) -> None:
    """The error names the file and tells the parser's own words."""
    (root / "alembic.ini").unlink()
    (root / "pyproject.toml").write_bytes(content)

    assert refused(root).startswith(
        f"The Alembic configuration {root}/pyproject.toml can't be used.\nWhy:"
    )


# What it costs


def test_the_fingerprint_needs_neither_alembic_nor_sqlalchemy(root: Path) -> None:
    """A warm run, which only looks whether anything changed, does not pay for their import."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, pathlib\n"
            "from pytest_warmstack.postgres.migrations import layers\n"
            "from pytest_warmstack.settings import Settings\n"
            "print([each.fingerprint() for each in layers(Settings(), pathlib.Path.cwd())])\n"
            "print({'alembic', 'sqlalchemy', 'docker', 'redis', 'pytest'} & set(sys.modules))",
        ],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert done.stdout.splitlines() == [str([fingerprint(root)]), "set()"]
