"""The example in the README works as it is written."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_example_passes_in_a_project_with_migrations(
    pytester: pytest.Pytester, run: Callable[..., pytest.RunResult]
) -> None:
    """The README's first block of Python is a whole test file, and it passes."""
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    for folder in ("migrations", "tests/integration/shop"):
        shutil.copytree(ROOT / folder, pytester.path / folder)
    shutil.copy(ROOT / "alembic.ini", pytester.path)
    pytester.path.joinpath("test_example.py").write_text(block[1])

    result = run("test_example.py")

    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["warmstack: template of 9 revisions: built in *"])
