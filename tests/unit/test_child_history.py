"""Revision files: what their texts declare, and which of them Alembic does not load."""

from __future__ import annotations

import shutil
from pathlib import Path

import alembic.templates
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from pytest_warmstack.postgres.template.child.failures import BuildFailure
from pytest_warmstack.postgres.template.child.history import History, declared, misfits, patterns
from pytest_warmstack.postgres.template.child.recorder import Recorder


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("revision = 'b'\ndown_revision = 'a'", ("b", {"a"})),
        ("revision: str = 'b'\ndown_revision: str | None = None", ("b", set())),
        ("revision = 'c'\ndown_revision = ('a', 'b')", ("c", {"a", "b"})),
        ("revision, down_revision = 'b', 'a'", ("b", {"a"})),
        ("revision = name()\ndown_revision = 'a'", ("", set())),
        ("down_revision = 'a'", ("", set())),
        ("revision: str\ndown_revision = 'a'", ("", set())),
        ("revision = 'b'\ndown_revision = (", ("", set())),
        ("revision = 'b'", ("", set())),
    ],
)
def test_a_revision_file_declares_its_id_and_those_before_it(
    text: str, found: tuple[str, set[str]]
) -> None:
    """Its text is enough; a file that is not a revision declares nothing."""
    assert declared(text) == found


def test_patterns_name_whole_folders_where_no_file_is_loaded() -> None:
    """A file beside one that is loaded is named alone."""
    paths = ["/a/v/mysql/1.py", "/a/v/mysql/old/0.py", "/a/v/2.py"]

    assert patterns(paths, ["/a/v/1.py"]) == ["/a/v/2.py", "/a/v/mysql/*"]


def project(folder: Path, **files: str) -> History:
    """Write revision files, with the ids that they come after, and return their history."""
    (folder / "versions").mkdir(parents=True)
    shutil.copy(Path(alembic.templates.__path__[0], "generic/script.py.mako"), folder)
    for name, before in files.items():
        path = folder / "versions" / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(exist_ok=True)
        id = name.rpartition("_")[2]
        path.write_text(f"revision = {id!r}\ndown_revision = {before or None!r}\n")
    config = Config()
    config.set_main_option("script_location", str(folder))
    return History(ScriptDirectory.from_config(config))


def test_revisions_have_the_order_in_which_alembic_applies_them(tmp_path: Path) -> None:
    """With what has to be applied before each, and the heads that Alembic writes down."""
    history = project(tmp_path / "migrations", _c="b", _a="", _b="a")

    assert [each.revision for each in history.order] == ["a", "b", "c"]
    assert history.after(history.order[2]) == ["b"]
    assert history.heads == ["c"]


def test_a_file_that_follows_a_loaded_one_is_missing(tmp_path: Path) -> None:
    """Alembic does not look into the folder below versions, and the table would be missing."""
    history = project(tmp_path / "migrations", _a="", late___b="a", late___x="y")

    with pytest.raises(BuildFailure, match="loads 1 of 3 revision files, and not: mig") as error:
        history.check_complete(Recorder(str(tmp_path), [], None))

    assert error.value.kind == "revisions"
    assert error.value.unseen == ["migrations/versions/late/*"]


def test_files_that_were_put_aside_are_remarked_on(tmp_path: Path) -> None:
    """They follow no revision that Alembic loads; a pattern may leave them out."""
    history = project(tmp_path / "migrations", _a="", aside___y="x")

    remark = history.check_complete(Recorder(str(tmp_path), [], None))

    assert remark == " (1 revision file that Alembic does not load)"
    assert history.check_complete(Recorder(str(tmp_path), ["*/aside/"], None)) == ""


def test_a_warning_about_revisions_that_do_not_fit_names_their_files(tmp_path: Path) -> None:
    """Those with one id, or those that come after an id which is not there."""
    project(tmp_path / "migrations", one_a="", two_a="", _c="b")
    paths = [str(each) for each in sorted((tmp_path / "migrations/versions").glob("*.py"))]
    twice, absent = "Revision a is present more than once", "Revision b is not present"

    found = misfits([twice, absent, "something else"], paths)

    assert found == f"{twice} (one_a.py, two_a.py)\n{absent} (_c.py)"
