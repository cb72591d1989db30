"""The template is always what building anew would give, whatever happened to the project before.

The server and the layers exist in the test's mind alone: a database is a list of what was applied
to it, so that thousands of builds take no time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import pytest

from pytest_warmstack.options import Settings
from pytest_warmstack.postgres import Database, DatabaseName, State, sql
from pytest_warmstack.postgres.retention import Retention
from pytest_warmstack.postgres.template.dependencies import ABSENT, FileState
from pytest_warmstack.postgres.template.errors import TemplateFailed
from pytest_warmstack.postgres.template.layers import Layer, Target
from pytest_warmstack.postgres.template.record import ALEMBIC, MARKER, BuildStep, LayerRecord
from pytest_warmstack.postgres.template.templates import (
    Template,
    TemplateRequest,
    ensure,
)
from pytest_warmstack.servers.model import Endpoint

FOLDER = "scripts:versions"


class Server:
    """A server whose databases are lists of what was applied to them."""

    version = "16.14"
    endpoint = Endpoint(host="127.0.0.1", port=5432, password="p")

    def __init__(self) -> None:
        self.held: dict[str, list[str]] = {}
        self.comments: dict[str, str] = {}
        self.used: dict[str, float] = {}
        self.locked: set[str] = set()
        self.waited = False
        self._clock = 0.0

    def templates(self) -> list[Database]:
        """The templates that are complete."""
        return [
            Database(name, sealed=True, used=self.used[str(name)], comment=self.comments[str(name)])
            for name in map(DatabaseName.parse, self.comments)
            if name is not None
        ]

    def find_template(self, name: DatabaseName) -> bool:
        """Tell whether a template is there."""
        return str(name) in self.comments

    def try_lock(self, name: DatabaseName) -> bool:
        """Take the lock of a name, if nobody has it."""
        if str(name) in self.locked:
            return False
        self.locked.add(str(name))
        return True

    def lock(self, name: DatabaseName, *, timeout: float, say: Callable[[str], None]) -> str:
        """Wait until the other one lets go, which is at once."""
        if self.try_lock(name):
            return ""
        say(f"waiting for {timeout:g} seconds at most")
        self.waited = True
        self.locked.add(str(name))
        return ""

    def unlock(self, name: DatabaseName) -> None:
        """Let go of the lock of a name."""
        self.locked.discard(str(name))

    def share(self, name: DatabaseName) -> None:
        """Keep others from dropping a template."""

    def create(self, name: DatabaseName) -> Future[None]:
        """Make an empty database, at once."""
        assert str(name) not in self.held
        self.held[str(name)] = []
        made: Future[None] = Future()
        made.set_result(None)
        return made

    def copy(self, source: DatabaseName, name: DatabaseName) -> None:
        """Make a copy of a database."""
        assert str(name) not in self.held
        self.held[str(name)] = list(self.held[str(source)])

    def drop(self, name: DatabaseName) -> None:
        """Drop a database."""
        for each in (self.held, self.comments, self.used):
            each.pop(str(name), None)

    def now(self) -> float:
        """Tell the time of the server."""
        return self._clock

    def settle(self, draft: DatabaseName) -> None:
        """See that nobody is connected."""
        assert str(draft) in self.held

    def read(self, name: DatabaseName, query: str) -> list[str]:
        """Nobody asks."""
        raise NotImplementedError

    def activity(self, name: DatabaseName) -> list[str]:
        """Nobody asks."""
        raise NotImplementedError

    def mark(self, name: DatabaseName, comment: str) -> None:
        """Give a template another comment."""
        assert str(name) in self.comments
        self.comments[str(name)] = comment

    def seal(self, draft: DatabaseName, name: DatabaseName, comment: str, note: str) -> None:
        """Make a template of a database."""
        assert str(name) in note
        assert str(name) not in self.held
        self.held[str(name)] = self.held.pop(str(draft))
        self.comments[str(name)] = comment
        self.touch([name])

    def touch(self, names: Sequence[DatabaseName]) -> None:
        """Write down that templates were used now."""
        for name in names:
            self._clock += 1
            self.used[str(name)] = self._clock

    def sweep(self, made: Template, keep: int) -> None:
        """Drop what is not to be kept, as a run does at its end."""
        self.touch(made.used)
        self.used.update(dict.fromkeys(map(str, made.past), 0.0))
        for name in Retention(templates=keep).doomed(self.templates()):
            if name not in made.used:
                self.drop(name)


@dataclass
class Step:
    """A revision or a script: its name, its file, what it imports, and what it reads as it runs."""

    name: str
    file: str
    imports: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()


@dataclass
class Shop:
    """A project: the contents of its files, its revisions in order, the lines of its seed.

    Those of the marker that its tests have are *marked*.
    """

    files: dict[str, str] = field(default_factory=dict)
    revisions: list[Step] = field(default_factory=list)
    seed: list[Step] = field(default_factory=list)
    marked: list[Step] = field(default_factory=list)
    x: str = ""

    def layers(self) -> list[Steps]:
        """Return its layers as they are now."""
        scripts = {"seed": self.seed, MARKER: self.marked}
        found = [Steps(self, ALEMBIC, self.revisions, self.x)]
        return found + [Steps(self, name, steps, "") for name, steps in scripts.items() if steps]

    def anew(self) -> list[str]:
        """Return what building anew gives."""
        return [words for layer in self.layers() for words in map(layer.words, layer.steps)]

    def file_state(self) -> FileState:
        """Return its files as they are now."""
        return Files({**self.files, FOLDER: " ".join(sorted(each.file for each in self.revisions))})


class Files(FileState):
    """Files that exist in a test's mind alone: keys with their contents."""

    def __init__(self, files: dict[str, str]) -> None:
        super().__init__("/nowhere")
        self._files = dict(files)

    def digest(self, key: str) -> str:
        """Return the content as it is."""
        return self._files.get(key, ABSENT)

    def same(self, key: str, digest: str) -> bool:
        """Tell whether the content is this one."""
        return self.digest(key) == digest


class Steps(Layer):
    """A layer that applies steps by writing down what they would do now."""

    applied: list[str] = []  # noqa: RUF012 - what all of them applied, for the tests

    def __init__(self, shop: Shop, name: str, steps: list[Step], key: str) -> None:
        self.name = name
        self.steps = steps
        self._shop = shop
        self.key = key
        self._server: Server | None = None
        self.fails = False

    def on(self, server: Server) -> Steps:
        """Return the layer, told which server its targets are on."""
        self._server = server
        return self

    def words(self, step: Step) -> str:
        """Return what a step does to a database now: whatever it is made of decides that."""
        files = (step.file, *step.imports, *step.reads)
        return f"{step.name}({self.key}): " + "|".join(
            self._shop.files.get(each, "-") for each in files
        )

    def covers(self, record: LayerRecord) -> bool:
        """Return whether the steps are the same; for revisions, the folder tells."""
        return self.name == ALEMBIC or record.names == [each.name for each in self.steps]

    def plan(self, _target: Target) -> LayerRecord:
        """Return a BuildStep for each step, with what is known before it ran."""
        file_state = self._shop.file_state()
        folders = {FOLDER: file_state.digest(FOLDER)} if self.name == ALEMBIC else {}
        steps = tuple(self._build_step(each, (each.file, *each.imports)) for each in self.steps)
        return LayerRecord(self.name, self.key, folders=folders, steps=steps)

    def apply(self, target: Target, record: LayerRecord) -> LayerRecord:
        """Apply steps; return them with all that they needed."""
        assert self._server is not None
        by_name = {each.name: each for each in self.steps}
        last = [each.name for each in record.steps[-1:]]
        assert record.whole is (last == [each.name for each in self.steps[-1:]])
        steps = []
        for planned in record.steps:
            step = by_name[planned.name]
            if self.fails:
                raise TemplateFailed.layer_failed(layer=self.name, cause="no", kind="Steps")
            self._server.held[target.database].append(self.words(step))
            Steps.applied.append(step.name)
            steps.append(self._build_step(step, (step.file, *step.imports, *step.reads)))
        return record._replace(steps=tuple(steps))

    def _build_step(self, step: Step, keys: Sequence[str]) -> BuildStep:
        file_state = self._shop.file_state()
        return BuildStep(step.name, step.file, {key: file_state.digest(key) for key in keys})


def ensure_of(
    server: Server, layers: Sequence[Layer], file_state: FileState, **fields: Any
) -> Template:
    """Return the template of *layers*, with the settings and the run in *fields*."""
    request = TemplateRequest(
        layers=layers,
        file_state=file_state,
        say=lambda line: None,
        **{"settings": Settings(), **fields},
    )
    return ensure(server, request)  # type: ignore[arg-type]


def run(
    server: Server,
    shop: Shop,
    *,
    keep: bool = True,
    rebuild: bool = False,
    run: str = "run",
    depends: Sequence[str] = (),
) -> Template:
    """Have the template of *shop*, and see that it is what building anew gives.

    What a template on the server has done already, from its beginning, is not done again.
    """
    Steps.applied.clear()
    anew = shop.anew()
    before = [held for held in server.held.values() if held == anew[: len(held)]]
    layers = [each.on(server) for each in shop.layers()]
    settings = Settings(depends=tuple(depends), rebuild=rebuild)
    made = ensure_of(server, layers, shop.file_state(), settings=settings, keep=keep, run=run)
    assert server.held[str(made.name)] == anew
    # Without revisions nothing in a database tells with which settings of theirs it was built.
    if shop.revisions and not (rebuild or depends):
        assert len(Steps.applied) == len(anew) - max(map(len, before), default=0)
    assert server.held.keys() == server.comments.keys(), "a draft was left"
    assert server.locked == set()
    return made


def shop_of(revisions: int, *, seed: int = 0) -> Shop:
    """Return a project; its third revision imports a helper, its fourth reads data."""
    shop = Shop()
    for number in range(1, revisions + 1):
        add(shop, f"{number:04}")
    for number in range(1, seed + 1):
        step = Step(f"s{number}.sql", f"file:s{number}.sql")
        shop.files[step.file] = step.name
        shop.seed.append(step)
    return shop


def add(shop: Shop, name: str, place: int | None = None) -> None:
    """Add a revision at its end, or at *place*."""
    number = len(shop.revisions) + 1
    imports = ("file:helpers.py",) if number % 3 == 0 else ()
    reads = ("file:data.csv",) if number % 4 == 0 else ()
    step = Step(name, f"file:versions/{name}_t.py", imports, reads)
    shop.files.setdefault("file:helpers.py", "h")
    shop.files.setdefault("file:data.csv", "d")
    shop.files[step.file] = f"text of {name}"
    shop.revisions.insert(len(shop.revisions) if place is None else place, step)


def mark(shop: Shop, names: Sequence[str]) -> None:
    """Ask for the template of tests whose marker has the scripts *names*."""
    shop.marked = [Step(f"{name}.sql", f"file:{name}.sql") for name in names]
    for step in shop.marked:
        shop.files.setdefault(step.file, step.name)


def edit(shop: Shop, key: str) -> None:
    """Change what a file holds."""
    shop.files[key] = shop.files.get(key, "") + "'"


# Single steps


def test_the_first_template_is_built_and_the_second_run_finds_it() -> None:
    """Nothing is applied to what is found."""
    server, shop = Server(), shop_of(5, seed=1)

    first = run(server, shop)
    assert (first.origin, first.text, first.why) == ("built", "5 revisions, seed s1.sql", "")
    second = run(server, shop, run="another run")

    assert (second.origin, second.name, second.used) == ("found", first.name, (first.name,))
    assert Steps.applied == []


def test_new_revisions_extend_the_template() -> None:
    """Only they are applied."""
    server, shop = Server(), shop_of(14)
    first = run(server, shop)
    add(shop, "0015")
    add(shop, "0016")

    second = run(server, shop)

    assert (second.origin, second.how, second.why) == ("extended", "by 2 revisions from 14", "")
    assert second.used == (second.name, first.name)
    assert Steps.applied == ["0015", "0016"]


def test_an_edited_revision_is_built_on_nothing_once_and_then_on_its_parent() -> None:
    """Whoever edits it will edit it again: the template before it is left for the next time."""
    server, shop = Server(), shop_of(7)
    run(server, shop)
    edit(shop, "file:versions/0006_t.py")

    second = run(server, shop)
    assert (second.origin, second.why) == ("rebuilt", "0006_t.py changed")
    assert len(Steps.applied) == 7

    edit(shop, "file:versions/0006_t.py")
    third = run(server, shop)
    assert (third.origin, third.how) == ("extended", "by 2 revisions from 5")
    assert third.why == "0006_t.py changed"
    assert Steps.applied == ["0006", "0007"]


def test_a_server_that_is_not_kept_has_one_template() -> None:
    """Nobody will come back to the parents of anything."""
    server, shop = Server(), shop_of(5, seed=2)

    run(server, shop, keep=False)

    assert len(server.comments) == 1


def test_a_changed_seed_leaves_the_migrations_alone() -> None:
    """After each layer a template is left, since the next one may change without it."""
    server, shop = Server(), shop_of(5, seed=2)
    run(server, shop)
    edit(shop, "file:s2.sql")

    second = run(server, shop)

    assert (second.origin, second.why) == ("extended", "s2.sql changed")
    assert set(Steps.applied) <= {"s1.sql", "s2.sql"}


def test_the_seeds_of_markers_are_built_on_the_template_without_them() -> None:
    """Each list has a template; an edit rebuilds those that have the script, and says why.

    Also if the template without them was used later than they were.
    """
    server, shop = Server(), shop_of(3, seed=1)
    plain = run(server, shop)
    for names, how in (
        ("a", "by seed a.sql from 3 revisions, seed s1.sql"),
        ("b", "by seed b.sql from 3 revisions, seed s1.sql"),
        ("ac", "by seed c.sql from 3 revisions, seed s1.sql, seed a.sql"),
    ):
        mark(shop, names)
        made = run(server, shop)
        assert (made.origin, made.how, made.why) == ("extended", how, "")
    edit(shop, "file:a.sql")
    server.touch(plain.used)

    for names, origin, why in (
        ("a", "extended", "a.sql changed"),
        ("b", "found", ""),
        ("ac", "extended", "a.sql changed"),
        ("", "found", ""),
    ):
        mark(shop, names)
        made = run(server, shop)
        assert (made.origin, made.why) == (origin, why)


def test_of_the_states_of_a_seed_the_first_and_the_last_stay() -> None:
    """Those of other seeds, and of the template without them, are no states of it."""
    server, shop = Server(), shop_of(2)
    names = {}
    for state in range(5):
        for marked in ("", "ab", "a"):
            mark(shop, marked)
            made = run(server, shop)
            names[state, marked] = made.name
            past = {key for key, name in names.items() if name in made.past}
            assert past == ({(each, marked) for each in range(1, state - 1)} if marked else set())
        edit(shop, "file:a.sql")


def test_a_changed_helper_is_where_building_begins_anew() -> None:
    """The reason names it with the first revision that imports it."""
    server, shop = Server(), shop_of(7)
    run(server, shop)
    edit(shop, "file:helpers.py")

    assert run(server, shop).why == "helpers.py changed (imported by 0003_t.py)"
    edit(shop, "file:helpers.py")
    assert run(server, shop).how == "by 5 revisions from 2"


def test_data_that_a_revision_read_as_it_ran_counts() -> None:
    """It was not known before it ran, and is known to all later runs, also to an extension's."""
    server, shop = Server(), shop_of(5)
    run(server, shop)
    add(shop, "0006")
    run(server, shop)
    edit(shop, "file:data.csv")

    assert run(server, shop).why == "data.csv changed (used by 0004_t.py)"


def test_a_renamed_file_is_found_and_written_down() -> None:
    """Nothing is applied, and the run after it need not even ask for a plan."""
    server, shop = Server(), shop_of(3)
    run(server, shop)
    step = shop.revisions[1]
    shop.files["file:versions/0002_renamed.py"] = shop.files.pop(step.file)
    step.file = "file:versions/0002_renamed.py"

    assert run(server, shop).origin == "found"
    planned: list[Target] = []
    for layer in (layers := shop.layers()):
        layer.plan = planned.append  # type: ignore[assignment]
    made = ensure_of(server, layers, shop.file_state())
    assert (made.origin, planned) == ("found", [])
    assert Steps.applied == []


def test_going_back_to_an_older_branch_finds_its_template() -> None:
    """Several branches can be worked on in turn."""
    server, shop = Server(), shop_of(5)
    branch = deepcopy(shop)
    first = run(server, shop)
    edit(shop, "file:versions/0004_t.py")
    run(server, shop)

    assert run(server, branch).name == first.name


def test_a_branch_with_fewer_revisions_gets_a_template_of_its_own() -> None:
    """One with more can't serve; but a template that was left on the way can."""
    server, shop = Server(), shop_of(5)
    run(server, shop)
    edit(shop, "file:versions/0004_t.py")
    run(server, shop)
    del shop.revisions[3:]

    made = run(server, shop)

    assert (made.origin, made.text) == ("found", "3 revisions")
    assert Steps.applied == []


def test_a_rebuild_is_done_once_for_all_processes_of_a_run() -> None:
    """Its own templates will do, earlier ones will not."""
    server, shop = Server(), shop_of(3)
    first = run(server, shop)

    second = run(server, shop, rebuild=True, run="this")
    assert (second.origin, second.why) == ("rebuilt", "--warmstack-rebuild")
    assert len(Steps.applied) == 3
    third = run(server, shop, rebuild=True, run="this")
    assert (third.origin, third.name) == ("found", second.name)
    assert run(server, shop, rebuild=True, run="next").origin == "rebuilt"
    assert first.name != second.name


def test_rebuilt_seeds_begin_with_the_runs_own_template() -> None:
    """Which the next run finds as well."""
    server, shop = Server(), shop_of(3)
    names = []
    for run_id in ("before", "this"):
        for marked in ("", "a"):
            mark(shop, marked)
            names.append(run(server, shop, rebuild=run_id == "this", run=run_id).name)

    assert Steps.applied == ["a.sql"]
    for marked, name in (("a", names[3]), ("", names[2])):
        mark(shop, marked)
        assert run(server, shop, run="next").name == name


def test_other_declarations_and_changed_declared_files_build_anew() -> None:
    """What is declared belongs to all layers."""
    server, shop = Server(), shop_of(3)
    shop.files["glob:sql"] = "1"
    run(server, shop)

    assert run(server, shop, depends=["sql"]).why == "warmstack_depends changed"
    assert run(server, shop, depends=["sql"]).origin == "found"
    edit(shop, "glob:sql")
    assert run(server, shop, depends=["sql"]).why == "sql changed (named in warmstack_depends)"


@pytest.mark.parametrize("depends", [[], ["sql"], ["nowhere"]])
def test_a_project_without_layers_has_an_empty_database(depends: list[str]) -> None:
    """The header says so, and why; a declaration for which nothing is there is told beside it."""
    server = Server()
    for origin in ("built", "found"):
        settings = Settings(depends=tuple(depends))
        made = ensure_of(server, [], Files({"glob:sql": "1"}), settings=settings)
        assert made.origin == origin
        assert made.text.startswith("an empty database")
        assert ("no files found for nowhere" in made.text) is (depends == ["nowhere"])


def test_templates_that_say_nothing_that_we_understand_are_left_alone() -> None:
    """They may be an older version's; they serve for nothing, and end no run."""
    server, shop = Server(), shop_of(3)
    for number, comment in enumerate(["", "a note", '{"built": 1.0, "layers": "9 revisions"}']):
        name = str(DatabaseName(State.TEMPLATE, f"{number:016}"))
        server.held[name], server.comments[name], server.used[name] = ["?"], comment, 9.0

    made = run(server, shop)

    assert (made.origin, made.why) == ("built", "")


@pytest.mark.parametrize("waits", [True, False])
def test_who_comes_through_the_gate_finds_what_another_one_built(*, waits: bool) -> None:
    """The gate may have been let go of just before, so that nobody had to wait for it."""
    server, shop = Server(), shop_of(3)
    first = run(server, shop)
    template = server.comments.copy()
    gates: list[str] = []

    def lock(name: DatabaseName) -> bool:
        gates.append(str(name))
        server.comments.update(template)
        if not waits:
            server.locked.add(str(name))
        return not waits

    server.comments.clear()
    server.try_lock = lock  # type: ignore[method-assign]
    made = run(server, shop)

    assert (made.origin, made.name, server.waited) == ("found", first.name, waits)
    assert len(gates) == 1


def test_a_build_that_fails_leaves_only_what_is_whole() -> None:
    """Its draft is dropped and its locks are free; what was left on the way may serve later."""
    server, shop = Server(), shop_of(3, seed=1)
    layers = [each.on(server) for each in shop.layers()]
    layers[1].fails = True

    with pytest.raises(TemplateFailed, match="layer seed failed"):
        ensure_of(server, layers, shop.file_state())

    assert server.locked == set()
    assert list(server.held.values()) == [shop.anew()[:3]]
    made = run(server, shop)
    assert (made.origin, made.how) == ("extended", "by seed s1.sql from 3 revisions")


# Any history


CHANGES = (
    *("append", "append", "edit", "edit", "remove", "pop", "insert", "rename", "swap"),
    *("helper", "data", "seed", "seed edit", "seed swap", "no seed", "x", "back", "nothing"),
    *("marker", "marker edit", "no marker"),
)


def anything(rng: random.Random, shop: Shop, past: list[Shop], number: int) -> Shop:
    """Do something to a project that people do to theirs."""
    change = rng.choice(CHANGES)
    place = rng.randrange(len(shop.revisions)) if shop.revisions else 0
    if change == "append":
        add(shop, f"{number:04}")
    elif change == "insert":
        add(shop, f"{number:04}", place)
    elif change == "edit" and shop.revisions:
        edit(shop, shop.revisions[place].file)
    elif change == "remove" and shop.revisions:
        del shop.files[shop.revisions.pop(place).file]
    elif change == "pop" and shop.revisions:
        del shop.files[shop.revisions.pop().file]
    elif change == "rename" and shop.revisions:
        step = shop.revisions[place]
        new = f"file:versions/{step.name}_{number}.py"
        shop.files[new] = shop.files.pop(step.file)
        step.file = new
    elif change == "swap" and len(shop.revisions) > 1:
        # Their files say what they follow.
        first, second = rng.sample(shop.revisions, 2)
        places = [shop.revisions.index(each) for each in (first, second)]
        shop.revisions[places[0]], shop.revisions[places[1]] = second, first
        edit(shop, first.file)
        edit(shop, second.file)
    elif change in {"helper", "data"}:
        edit(shop, "file:helpers.py" if change == "helper" else "file:data.csv")
    elif change == "seed":
        step = Step(f"s{number}.sql", f"file:s{number}.sql", reads=("file:data.csv",))
        shop.files[step.file] = step.name
        shop.seed.insert(rng.randint(0, len(shop.seed)), step)
    elif change == "seed edit" and shop.seed:
        edit(shop, rng.choice(shop.seed).file)
    elif change == "seed swap":
        rng.shuffle(shop.seed)
    elif change == "no seed":
        shop.seed.clear()
    elif change == "marker":
        mark(shop, rng.sample("abc", rng.randint(1, 3)))
    elif change == "marker edit" and shop.marked:
        edit(shop, rng.choice(shop.marked).file)
    elif change == "no marker":
        mark(shop, "")
    elif change == "x":
        shop.x = rng.choice(["", "a"])
    elif change == "back":
        return deepcopy(rng.choice(past))
    return shop


@pytest.mark.parametrize("keep", [1, 2, 4, 9])
@pytest.mark.parametrize("seed", range(25))
def test_after_any_history_the_template_is_what_building_anew_gives(seed: int, keep: int) -> None:
    """Revisions come, go, change, move and come back; a run that changes nothing finds all."""
    rng = random.Random(f"{seed} {keep}")  # noqa: S311 - the same in every run
    server, shop = Server(), shop_of(rng.randint(0, 6))
    past = [deepcopy(shop)]
    for number in range(100, 140):
        for _ in range(rng.choice([1, 1, 2, 5])):
            shop = anything(rng, shop, past, number)
            number += 1000
        past.append(deepcopy(shop))

        made = run(server, shop, keep=rng.random() > 0.1, run=f"run {number}")
        server.sweep(made, keep)
        assert made.name in made.used
        again = run(server, shop)

        assert (again.origin, again.name) == ("found", made.name)
        assert Steps.applied == []
        left, seeded = (
            [each for each in server.comments.values() if each.startswith(start)]
            for start in (sql.LEFT, sql.SEEDED)
        )
        assert len(left) <= max(keep, len(made.used))
        assert len(seeded) <= max(keep, len(made.used))
        assert len(server.comments) - len(left) - len(seeded) <= max(keep, len(made.used))
