"""Property test: a layered build gives the same database as a new build, whatever edits came first.

The header must also be right: it reports as many revisions as are run. To try more and different
examples, set WARMSTACK_TEST_EXAMPLES=200.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from migration_projects import ENV, INI, VERSIONS, Project, Shelf, promised
from projects import Bench
from pytest_warmstack.options import RuntimeName

pytestmark = pytest.mark.parametrize("runtime", [RuntimeName.EMBEDDED], indirect=True)

EXAMPLES: Final = int(os.environ.get("WARMSTACK_TEST_EXAMPLES", "0"))


@dataclass
class Text:
    """What the file of a revision holds, and its name, by which Alembic orders branches."""

    name: str
    after: tuple[str, ...]
    depends: tuple[str, ...] = ()
    column: int = 0

    @property
    def needs(self) -> tuple[str, ...]:
        """The revisions that are applied before it."""
        return self.after + self.depends


@dataclass
class State:
    """The files of the project.

    Some revisions import a helper, others read a data file as they run: that is known afterwards.
    """

    revisions: dict[str, Text] = field(default_factory=dict)
    helper: int = 0
    data: int = 0
    seed: int = 0

    def heads(self) -> list[str]:
        """Return the revisions that none follows."""
        followed = {id for text in self.revisions.values() for id in text.needs}
        return [id for id in self.revisions if id not in followed]

    def is_ordered(self) -> bool:
        """Tell whether the revisions can be applied in some order."""
        done: set[str] = set()
        for _ in self.revisions:
            done |= {id for id, text in self.revisions.items() if done.issuperset(text.needs)}
        return len(done) == len(self.revisions)

    def followers(self, id: str) -> list[Text]:
        """Return the revisions that follow one."""
        return [text for text in self.revisions.values() if id in text.after]

    def write(self, project: Project) -> None:
        """Write all of it."""
        project.write("alembic.ini", INI)
        project.write("migrations/env.py", ENV)
        project.write("helpers.py", f"LENGTH = {self.helper + 1}\n")
        project.write("data.sql", f"CREATE TABLE IF NOT EXISTS data{self.data} (a integer)")
        project.write("seed.sql", f"CREATE TABLE seed (c{self.seed} integer);\n")
        project.options["seed"] = ("seed.sql",) if self.seed else ()
        for path in (project.folder / VERSIONS).glob("*.py"):
            path.unlink()
        for id, text in self.revisions.items():
            body = [f'op.execute("ALTER TABLE t{id} ADD COLUMN c{text.column} integer")']
            # Fails where one of them was not applied before.
            body += [f'op.execute("SELECT FROM t{each}")' for each in text.needs]
            imports = []
            if int(id) % 2:
                imports = ["from helpers import LENGTH"]
                body += [f'op.execute(f"ALTER TABLE t{id} ADD COLUMN b varchar({{LENGTH}})")']
            if int(id) % 3 == 0:
                body.append('op.execute(Path("data.sql").read_text())')
            one = text.after[0] if text.after else None
            after = text.after if len(text.after) > 1 else one
            project.revise(id, after, *body, imports=imports, depends=text.depends, name=text.name)


class History:
    """The state of the project now, all that were before, and what can be done to it.

    Each edit takes a number, which picks one of what can be edited.
    """

    def __init__(self) -> None:
        self.now = State()
        self.before: list[State] = []
        self.count = 0
        for _ in range(4):
            self.append(0)

    def edit(self, name: str, number: int) -> None:
        """Do the edit *name*, if it can be done."""
        self.before.append(copy.deepcopy(self.now))
        getattr(self, name)(number)
        if not self.now.is_ordered():
            self.now = self.before.pop()

    def append(self, number: int) -> None:
        """Add a revision after a head."""
        heads = self.now.heads()
        self._add((heads[number % len(heads)],) if heads else ())

    def branch(self, number: int) -> None:
        """Add a revision after any, or after none."""
        ids = list(self.now.revisions)
        place = number % (len(ids) + 1)
        self._add((ids[place],) if place < len(ids) else ())

    def insert(self, number: int) -> None:
        """Add a revision between one and those that follow it."""
        before = self._picked(number)
        followers = self.now.followers(before)
        new = self._add((before,))
        for text in followers:
            text.after = tuple(new if each == before else each for each in text.after)

    def merge(self, _number: int) -> None:
        """Add a revision after all heads."""
        if len(heads := self.now.heads()) > 1:
            self._add(tuple(heads))

    def depend(self, number: int) -> None:
        """Add a revision after a head, or after none, which also needs another one."""
        heads = ((id,) for id in self.now.heads())
        after = [*heads, ()][number % (len(self.now.heads()) + 1)]
        other = self._picked(number * 7)
        new = self._add(after)
        self.now.revisions[new].depends = (other,)

    def change(self, number: int) -> None:
        """Edit a revision."""
        self.count += 1
        self.now.revisions[self._picked(number)].column = self.count

    def change_last(self, number: int) -> None:
        """Edit a head, which is what one edits most."""
        heads = self.now.heads()
        self.count += 1
        self.now.revisions[heads[number % len(heads)]].column = self.count

    def delete(self, number: int) -> None:
        """Remove a head."""
        heads = self.now.heads()
        if len(self.now.revisions) > 1:
            del self.now.revisions[heads[number % len(heads)]]

    def swap(self, number: int) -> None:
        """Let two revisions that follow each other change places."""
        one = self._picked(number)
        for text in self.now.followers(one)[:1]:
            (other,) = (id for id, each in self.now.revisions.items() if each is text)
            names = {one: other, other: one}
            for each in self.now.revisions.values():
                each.after = tuple(names.get(id, id) for id in each.after)
            first, second = self.now.revisions[one], self.now.revisions[other]
            first.after, second.after = second.after, first.after

    def squash(self, number: int) -> None:
        """Remove a revision that one other follows, which takes its place."""
        one = self._picked(number)
        followers = self.now.followers(one)
        depended = any(one in text.depends for text in self.now.revisions.values())
        if len(followers) == 1 and len(followers[0].after) == 1 and not depended:
            followers[0].after = self.now.revisions.pop(one).after

    def rename(self, number: int) -> None:
        """Give a revision's file a name that comes before or after all others."""
        text = self.now.revisions[self._picked(number)]
        text.name = f"{'az'[number % 2]}{text.name}"

    def help(self, _number: int) -> None:
        """Edit the helper."""
        self.now.helper += 1

    def feed(self, _number: int) -> None:
        """Edit the data file."""
        self.now.data += 1

    def sow(self, number: int) -> None:
        """Edit the seed, or take it away."""
        self.count += 1
        self.now.seed = self.count if number % 4 else 0

    def back(self, number: int) -> None:
        """Go back to how it was some time before, as a switch between branches does."""
        self.now = copy.deepcopy(self.before[number % len(self.before)])

    def _picked(self, number: int) -> str:
        ids = list(self.now.revisions)
        return ids[number % len(ids)]

    def _add(self, after: tuple[str, ...]) -> str:
        self.count += 1
        new = f"{self.count:03}"
        self.now.revisions[new] = Text(f"m{new}", after)
        return new


EDITS: Final = (
    # The first ones twice: they are what extends a template, and what an extended one must notice.
    *("append", "branch", "depend", "feed"),
    *("append", "branch", "depend", "insert", "merge", "change", "change_last", "delete"),
    *("swap", "squash", "rename", "help", "feed", "sow", "back"),
)


@pytest.fixture(scope="module")
def shelf(
    standing: Bench, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Shelf, Project]]:
    """A server with the templates of the history as it begins, and a project to write it to."""
    shelf = Shelf(standing.ensure(standing.postgres), standing.postgres)
    project = Project(Path(os.path.realpath(tmp_path_factory.mktemp("project"))))
    with pytest.MonkeyPatch.context() as patch:
        # Python takes a compiled file for current when it has the second and the size right.
        patch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        History().now.write(project)
        shelf.ensure(project)
        shelf.remember()
        yield shelf, project
    standing.leave()


@settings(
    max_examples=EXAMPLES or 10,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    report_multiple_bugs=False,
    # Without shrinking, which would take minutes: an example is short.
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    runs=st.lists(
        st.lists(st.tuples(st.sampled_from(EDITS), st.integers(0, 11)), min_size=1, max_size=2),
        min_size=2,
        max_size=4,
    )
)
def test_what_is_built_upon_a_template_is_what_is_built_from_nothing(
    shelf: tuple[Shelf, Project], runs: list[list[tuple[str, int]]]
) -> None:
    """After any edits of a history, in settings, schema and rows; and as much is run as is told."""
    kept, project = shelf
    kept.reset()
    project.taken("ran.log")
    history = History()
    for edits in runs:
        for name, number in edits:
            history.edit(name, number)
        history.now.write(project)
        note(f"after {edits}:\n{project.listing()}")

        made = kept.ensure(project)

        note(f"{made.text}: {made.origin} {made.how} ({made.why})")
        ran = project.taken("ran.log")
        assert len(ran) == promised(made)
        total = len(history.now.revisions)
        assert int(made.text.split()[0]) == total
        if below := re.search(r" from (\d+)", made.how):
            assert int(below[1]) + len(ran) == total
        else:
            assert len(ran) in {0, total}
        assert kept.dump(made.name) == kept.from_nothing(project)
        assert kept.leftovers() == []
        assert kept.ensure(project).name == made.name
        assert project.taken("ran.log") == []
