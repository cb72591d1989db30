"""What went wrong in the project's code, as the child tells the parent."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import sqlalchemy
from sqlalchemy.exc import ProgrammingError

from pytest_warmstack.postgres.template.child.failures import (
    BuildFailure,
    ForbiddenConnection,
    message,
    print_traceback,
    report,
    sqlstate,
    where,
)


class Revisions:
    """What the report of a failure asks about the revisions."""

    is_first = False

    def __init__(self, home: Path | None = None, stage: str = "upgrade", **files: str) -> None:
        self.home = home
        self.stage = stage
        self.alembic_warnings: list[str] = []
        self._files = {(home or Path()) / name.replace("__", "."): id for name, id in files.items()}

    def by_path(self) -> dict[Path, str]:
        """The ids of the revisions by their files."""
        return self._files


def raised(path: Path, text: str, function: str = "") -> BaseException:
    """Write *text* to *path*, load it, call its *function*, and return what was raised."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        getattr(module, function)()
    except BaseException as error:
        return error
    raise AssertionError("it raised nothing")


def sql_error(kind: type[Exception], words: str, **attributes: str) -> ProgrammingError:
    """Return the error of SQLAlchemy about the error *kind* of a driver."""
    error = kind(words)
    for name, value in attributes.items():
        setattr(error, name, value)
    return ProgrammingError("SELECT * FROM a", {}, error)


# In its own words


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("no"), "ValueError: no"),
        (KeyError("SHOP"), "KeyError: 'SHOP'"),
        (RuntimeError("first\nsecond"), "RuntimeError: first\nsecond"),
        (SystemExit(3), "SystemExit: 3"),
        (
            asyncpg.UndefinedTableError('relation "a" does not exist'),
            'UndefinedTableError: relation "a" does not exist',
        ),
    ],
)
def test_an_error_is_told_in_its_own_words(error: BaseException, words: str) -> None:
    """With its kind first, and with all its lines."""
    assert message(error) == words


def test_a_refusal_of_ours_is_told_without_its_kind() -> None:
    """It is a sentence, and the name of a class of ours tells nobody anything."""
    assert message(ForbiddenConnection("the database prod is not the template")) == (
        "the database prod is not the template"
    )


@pytest.mark.parametrize("error", [ValueError(), AssertionError(""), KeyboardInterrupt()])
def test_an_error_without_words_is_told_by_its_kind(error: BaseException) -> None:
    """Nothing hangs at the end of the line."""
    assert message(error).rstrip(": ") == type(error).__name__


def test_a_long_error_is_cut() -> None:
    """A statement of a thousand lines hides nothing of ours."""
    text = message(ValueError("\n".join(f"line {number}" for number in range(1000))))

    assert len(text.splitlines()) == 20
    assert text.splitlines()[-1] == "line 19"


# PostgreSQL's code


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (asyncpg.UndefinedTableError("no"), "42P01"),
        (sql_error(Exception, "asyncpg's and psycopg's", sqlstate="42P01"), "42P01"),
        (sql_error(Exception, "psycopg2's", pgcode="42710"), "42710"),
        (sql_error(Exception, "none"), ""),
        (ValueError("42P01"), ""),
    ],
)
def test_the_code_of_postgresql_is_found_whichever_driver_raised(
    error: BaseException, state: str
) -> None:
    """SQLAlchemy keeps the driver's error, and every driver has its name for the code."""
    assert sqlstate(error) == state
    assert report(error, None)["state"] == state


def test_the_code_is_found_behind_the_error_that_was_raised() -> None:
    """What the project's code raised instead has the database's error behind it."""

    def outer(explicit: bool) -> None:
        try:
            raise asyncpg.DuplicateObjectError('role "reader" already exists')
        except asyncpg.PostgresError as error:
            if explicit:
                raise RuntimeError("no role") from error
            raise RuntimeError("no role")  # noqa: B904 - as it happens

    for explicit in (False, True):
        with pytest.raises(RuntimeError) as caught:
            outer(explicit)
        assert sqlstate(caught.value) == "42710"


def test_the_code_of_a_real_driver_is_found() -> None:
    """Those of psycopg have it by their class."""
    import psycopg.errors

    error = ProgrammingError("SELECT 1", {}, psycopg.errors.UndefinedTable("no"))

    assert sqlstate(error) == "42P01"


# Where


def test_a_revision_that_was_running_is_named_with_its_line(tmp_path: Path) -> None:
    """Its id, its file, and the line in it, however deep in a library the error came up."""
    error = raised(
        tmp_path / "versions/0002_b.py",
        "import json\n\ndef upgrade():\n    json.loads('{')\n",
        "upgrade",
    )
    revisions = Revisions(tmp_path.resolve(), **{"versions/0002_b__py": "0002"})

    assert where(error, revisions) == "in revision 0002 (0002_b.py, line 4)"


def test_a_revision_is_named_also_when_a_helper_failed(tmp_path: Path) -> None:
    """The revision is what was running; the helper stands in the traceback."""
    sys.modules["warmstack_helper"] = helper = types.ModuleType("warmstack_helper")
    path = tmp_path / "helper.py"
    path.write_text("def fail():\n    raise ValueError('no')\n")
    exec(compile(path.read_text(), str(path), "exec"), vars(helper))  # noqa: S102
    error = raised(
        tmp_path / "versions/0002_b.py",
        "import warmstack_helper\n\ndef upgrade():\n    warmstack_helper.fail()\n",
        "upgrade",
    )
    del sys.modules["warmstack_helper"]
    revisions = Revisions(tmp_path.resolve(), **{"versions/0002_b__py": "0002"})

    assert where(error, revisions) == "in revision 0002 (0002_b.py, line 4)"


def test_a_file_beside_the_revisions_is_named(tmp_path: Path) -> None:
    """env.py most of all, from the folder of the scripts."""
    home = tmp_path.resolve() / "migrations"
    error = raised(home / "env.py", "def run():\n    raise KeyError('SHOP')\n", "run")

    assert where(error, Revisions(home)) == "in env.py, line 2"
    assert where(raised(home / "lib/a.py", "1 / 0\n"), Revisions(home)) == "in lib/a.py, line 1"


def test_another_file_of_the_project_is_named(tmp_path: Path) -> None:
    """A seed, or a function that makes the configuration."""
    error = raised(tmp_path / "demo.py", "\n1 / 0\n")

    assert where(error, None) == "in demo.py, line 2"
    assert report(error, None)["where"] == "in demo.py, line 2"


def test_a_file_that_cannot_be_parsed_is_named(tmp_path: Path) -> None:
    """No line of it ran, and its line is told all the same."""
    error = raised(tmp_path / "versions/0002_b.py", "x = 1\ndef upgrade(:\n")

    assert where(error, Revisions(tmp_path.resolve())) == "in versions/0002_b.py, line 2"


def test_what_caused_an_error_is_looked_through_too(tmp_path: Path) -> None:
    """A library may raise its own error where the project's frames are behind another one."""
    inner = raised(tmp_path / "versions/0002_b.py", "1 / 0\n")
    error = RuntimeError("a library's")
    error.__cause__ = inner
    revisions = Revisions(tmp_path.resolve(), **{"versions/0002_b__py": "0002"})

    assert where(error, revisions) == "in revision 0002 (0002_b.py, line 1)"


@pytest.mark.parametrize("revisions", [None, Revisions()])
def test_an_error_of_libraries_alone_has_no_place(revisions: Any) -> None:
    """Nobody is sent into a library."""
    with pytest.raises(sqlalchemy.exc.ArgumentError) as caught:
        sqlalchemy.make_url("no url")

    entry = caught.value.__traceback__
    error = caught.value.with_traceback(entry.tb_next if entry else None)
    assert where(error, revisions) == ""


def test_an_error_of_ours_has_the_place_that_it_was_given() -> None:
    """It knows better than its traceback."""
    error = BuildFailure("revisions", "there are two of 0002", "in 0002_b.py", state="42P01")

    told = report(error, Revisions())

    assert (told["error"], told["kind"]) == ("there are two of 0002", "revisions")
    assert (told["where"], told["state"]) == ("in 0002_b.py", "42P01")


def test_the_report_has_the_stage_and_what_alembic_warned_of(tmp_path: Path) -> None:
    """A warning before the error is often its cause."""
    revisions = Revisions(tmp_path, "config")
    revisions.alembic_warnings = ["Revision 0009 is not present"]

    told = report(KeyError("0009"), revisions)

    assert told["kind"] == "config"
    assert told["error"] == "KeyError: '0009'\nBefore that, a warning: Revision 0009 is not present"


# What is printed


def test_of_a_traceback_the_projects_own_frames_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of libraries are many, and well."""
    error = raised(tmp_path / "demo.py", "import json\n\ndef run():\n    json.loads('{')\n", "run")

    print_traceback(error)

    shown = capsys.readouterr().err
    assert f'File "{tmp_path}/demo.py", line 4, in run' in shown
    assert "json/decoder.py" not in shown
    assert "importlib" not in shown
    assert shown.count("JSONDecodeError") == 1


def test_of_an_error_of_ours_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Its words are all there is to it."""
    print_traceback(BuildFailure("config", "no"))

    assert capsys.readouterr().err == ""
