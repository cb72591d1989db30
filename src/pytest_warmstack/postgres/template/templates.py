"""The template: found if building it again would give the same, else built from the nearest one.

A template carries in its comment what it was built of: for each layer the links of its chain (the
revisions, the seed's scripts), in order, each with the digests of all that it read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import wait
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.postgres import DatabaseName, State, sql
from pytest_warmstack.postgres.databases import Databases
from pytest_warmstack.postgres.template.build_history import Comparison
from pytest_warmstack.postgres.template.dependencies import FileState
from pytest_warmstack.postgres.template.record import (
    BASE,
    LayerRecord,
    Record,
    carried,
    extended,
    length,
    merged,
)
from pytest_warmstack.servers.identity import BUILD_FORMAT, fingerprint
from pytest_warmstack.servers.model import Endpoint


class Target(NamedTuple):
    """The database that a layer is to change, and ways to ask about it.

    `read` takes a query with one text column and returns its values; none when there is no such
    table. `activity` tells what its connections are doing.
    """

    endpoint: Endpoint
    database: str
    read: Callable[[str], list[str]]
    activity: Callable[[], list[str]]


class Layer(Protocol):
    """A part of the build. Whoever changes the content also names it."""

    name: str
    """The word for it in the header."""

    def key(self) -> str:
        """Return the fingerprint of what decides the layer and stands in no file it names."""

    def covers(self, portion: LayerRecord) -> bool:
        """Tell whether *portion* has all the links that the layer has now, from files alone."""
        return True  # Where a key or a digest tells it already.

    def prepare(self) -> None:
        """Begin what takes long and needs no database: a server is being started, so it is empty.

        Then `plan` follows, or else `discard`.
        """
        return  # Most have nothing to begin.

    def discard(self) -> None:
        """Undo `prepare`, if nothing came of it; make it end soon, if it is at work."""
        return

    def plan(self, target: Target) -> LayerRecord:
        """Return all links in the order in which they are applied; *target* may not exist yet.

        Their needs are those that are known before they ran. Raises `TemplateFailed`.
        """

    def apply(self, target: Target, portion: LayerRecord) -> LayerRecord:
        """Apply the links of *portion*; return it with all that they needed.

        Raises `TemplateFailed`; the database is then dropped.
        """


class Base(Layer):
    """What everything stands on: the server's version, our own, and the paths that are declared."""

    name = BASE

    def __init__(
        self, version: str, depends: Sequence[str], ignore: Sequence[str], file_state: FileState
    ) -> None:
        self._key = fingerprint(BUILD_FORMAT, version, *ignore)
        self._needs = {f"glob:{each}": file_state.digest(f"glob:{each}") for each in depends}

    def key(self) -> str:
        """Return the fingerprint of the versions, and of what is not to be noted."""
        return self._key

    def covers(self, portion: LayerRecord) -> bool:
        """Tell whether the same paths were declared."""
        return portion.needs.keys() == self._needs.keys()

    def plan(self, _target: Target) -> LayerRecord:
        """Return a portion without links."""
        nothing = [key.partition(":")[2] for key, digest in self._needs.items() if not digest]
        remark = f" (warmstack_depends: nothing is there for {', '.join(nothing)})"
        return LayerRecord(self.name, self._key, self._needs, remark=remark if nothing else "")

    def apply(self, _target: Target, portion: LayerRecord) -> LayerRecord:
        """Do nothing."""
        return portion


class Template(NamedTuple):
    """A sealed template: clones of it can be made, and nobody can connect to it.

    *origin* is `found`, `extended`, `rebuilt` or `built`; *text* tells what its layers hold, *how*
    from where it was extended, *why* what made a build necessary. *used* names the templates that
    this one was made from, and itself, *now* when that was, by the server's clock in seconds since
    the epoch; *project* is the one it is for. *past* names templates that no run will use again:
    of the states of one edit, those between the first and the last.
    """

    name: DatabaseName
    origin: str
    text: str
    used: tuple[DatabaseName, ...]
    now: float
    how: str = ""
    why: str = ""
    project: str = ""
    past: tuple[DatabaseName, ...] = ()

    def notes(self) -> list[str]:
        """Return the statements that note that it, and what it was made from, was just used."""
        # The one it was made from a moment earlier, so that they have an order.
        times = [(name, self.now - place / 1000) for place, name in enumerate(self.used)]
        times += [(name, 0.0) for name in self.past]
        return [sql.note(name, used=used, project=self.project) for name, used in times]


@dataclass
class _Known:
    """A template that is there; what its *comment* says is read when it is asked for."""

    name: DatabaseName
    comment: str
    project: str

    @cached_property
    def record(self) -> Record:
        """What it says of itself; a record of nothing when that can't be understood."""
        return Record.read(self.comment) or Record(0.0, "", ())


def ensure(
    admin: Databases,
    layers: Sequence[Layer],
    *,
    file_state: FileState,
    depends: Sequence[str] = (),
    ignore: Sequence[str] = (),
    keep: bool = True,
    rebuild: bool = False,
    run: str = "",
    project: str = "",
    timeout: float,
    say: Callable[[str], None],
) -> Template:
    """Return the template of *layers*, building it if nobody has.

    *depends* and *ignore* are patterns of files, beside those that a build is seen to read. Only
    one process builds; the others wait up to *timeout* seconds and then find it. With *keep*
    the build leaves templates where a later one will want to begin; with *rebuild* only one that
    the run called *run* has built will do. *project* is what a reader knows the template by. What a
    build left that died is not a template: it has no seal.
    """
    bench = _Bench(
        admin,
        [Base(admin.version, depends, ignore, file_state), *layers],
        file_state,
        keep=keep,
        rebuild=rebuild,
        run=run,
        project=project,
    )
    if (found := bench.find(bench.known())) is not None:
        return found
    # Held by the one who builds, and for no longer. The template's own lock can't serve for that:
    # everybody who uses it shares that one, to the end of the run.
    gate = DatabaseName(State.BUILDING, bench.key(), "gate")
    admin.lock(gate, timeout=timeout, say=say)
    try:
        # Again: another process may have built it just before the gate was ours.
        known = bench.known()
        return bench.find(known) or bench.build(known)
    finally:
        with suppress(WarmstackError):
            admin.unlock(gate)


class _Bench:
    """One attempt to have the template: what is asked for, and the server on which to find it."""

    def __init__(
        self,
        admin: Databases,
        layers: Sequence[Layer],
        file_state: FileState,
        *,
        keep: bool,
        rebuild: bool,
        run: str,
        project: str,
    ) -> None:
        self._admin = admin
        self._layers = layers
        self._chains = Comparison(file_state)
        self._keep = keep
        self._rebuild = rebuild
        self._run = run
        self._project = project

    def key(self) -> str:
        """Return what all builds of the same configuration share."""
        return fingerprint(*(part for each in self._layers for part in (each.name, each.key())))

    def known(self) -> list[_Known]:
        """Return the templates on the server, the last used one first."""
        listed = sorted(self._admin.templates(), key=lambda each: each.used, reverse=True)
        return [_Known(each.name, each.comment, each.project) for each in listed]

    def find(self, known: Sequence[_Known]) -> Template | None:
        """Return the first of *known* that building anew would only repeat."""
        for each in known:
            if self._rebuild and each.record.run != self._run:
                continue
            if self._is_current(each.record) and self._admin.find_template(each.name):
                return self._template(each.name, "found", each.record)
        return None

    def build(self, known: Sequence[_Known]) -> Template:
        """Build the template under a private name, from the nearest of *known*."""
        admin = self._admin
        draft = DatabaseName.new(State.BUILDING, self.key())
        target = Target(
            admin.endpoint,
            str(draft),
            lambda query: admin.read(draft, query),
            lambda: admin.activity(draft),
        )
        admin.try_lock(draft)
        usable = () if self._rebuild else known
        # Where there is nothing to begin at, the database can be made while the plan is.
        empty = None if usable else admin.create(draft)
        try:
            planned = [
                self._known_portion(each, usable) or each.plan(target) for each in self._layers
            ]
            known = [each for each in known if not self._chains.is_apart(planned, each.record)]
            usable = () if self._rebuild else known
            base = self._nearest(planned, usable)
            if base is not None and _sizes(base.record.portions) == _sizes(planned):
                return self._refresh(base, planned)
            ordered, reach = self._arranged(planned, base, usable)
            if base is None:
                (empty or admin.create(draft)).result()
            else:
                admin.copy(base.name, draft)
            name, record = self._build_on(target, draft, ordered, base, reach)
            if self._rebuild:
                self._retire(known, planned)
        except BaseException:
            # The build's own error is the one to tell, also when the server is lost.
            with suppress(WarmstackError):
                if empty is not None:
                    wait([empty])
                admin.drop(draft)
            raise
        finally:
            for layer in self._layers:
                layer.discard()
            with suppress(WarmstackError):
                admin.unlock(draft)
        why, past = self._compared(planned, known)
        why = "--warmstack-rebuild" if self._rebuild else why
        if base is not None:
            how = extended(base.record, record)
            made = self._template(name, "extended", record)
            # That of another project stays the other's.
            mine = base.project in {"", self._project}
            used = (name, base.name) if mine else (name,)
            return made._replace(used=used, how=how, why=why, past=past)
        made = self._template(name, "rebuilt" if why else "built", record)
        return made._replace(why=why, past=past)

    def _arranged(
        self, planned: Sequence[LayerRecord], base: _Known | None, known: Sequence[_Known]
    ) -> tuple[Sequence[LayerRecord], int]:
        """Return *planned* in the order of the build, and after how many links edits begin."""
        near = max(
            (each.record for each in known),
            key=lambda record: self._chains.common(planned, record)[0],
            default=None,
        )
        if near is None:
            return planned, 0
        return self._chains.arranged(planned, None if base is None else base.record, near)

    def _compared(
        self, planned: Sequence[LayerRecord], known: Sequence[_Known]
    ) -> tuple[str, tuple[DatabaseName, ...]]:
        """Return what differs first from the nearest of *known*, and which of them are past.

        The nearest need not be the last used one, which may hold an edit that was undone since.
        """
        compared = [
            (each, self._chains.apart(planned, each.record))
            for each in known
            if each.record.portions
        ]

        def distance(pair: tuple[_Known, tuple[list[str], int]]) -> int:
            each, (differences, lacks) = pair
            # What was left on the way need not be a state that the project was ever in.
            return len(differences) + lacks + each.record.left

        if not compared:
            return "", ()
        nearest = min(compared, key=distance)[1]
        if not nearest[0]:
            return "", ()
        states = [e for e, apart in compared if apart == nearest and e.project == self._project]
        states.sort(key=lambda each: each.record.built)
        return nearest[0][0], tuple(each.name for each in states[1:-1])

    def _template(self, name: DatabaseName, origin: str, record: Record) -> Template:
        return Template(
            name, origin, record.text, (name,), now=self._admin.now(), project=self._project
        )

    def _build_on(
        self,
        target: Target,
        draft: DatabaseName,
        planned: Sequence[LayerRecord],
        base: _Known | None,
        reach: int,
    ) -> tuple[DatabaseName, Record]:
        """Apply to *draft* what is planned and not in *base*; return the sealed template."""
        done = 0 if base is None else length(base.record.portions)
        stops = self._stops(planned, done, reach)
        built: list[LayerRecord] = []
        end = 0
        for place, (layer, portion) in enumerate(zip(self._layers, planned, strict=True)):
            begin, end = end, end + len(portion.links)
            if base is not None and place < len(base.record.portions):
                portion = carried(portion, base.record.portions[place])
            first = max(done, begin) - begin
            for stop in sorted({each for each in stops if begin < each < end} | {end}):
                last = stop - begin
                if stop <= done and portion.links:
                    continue
                part = portion._replace(links=portion.links[first:last], whole=stop == end)
                portion = merged(portion, first, layer.apply(target, part))
                first = last
                if stop in stops:
                    part = portion._replace(links=portion.links[:last], whole=stop == end)
                    self._leave(draft, [*built, part])
            built.append(portion)
        record = Record(self._admin.now(), self._run, tuple(built))
        self._admin.settle(draft)
        # Last on purpose: the seal is what makes the build count.
        return self._seal(draft, record), record

    def _stops(self, planned: Sequence[LayerRecord], done: int, reach: int) -> set[int]:
        """Return after how many links a template is left, for later builds to begin at.

        After each layer, since the next one may change without it, and at the parent of what was
        edited, since that will be edited again.
        """
        if not self._keep:
            return set()
        stops, end = {reach}, 0
        for portion in planned:
            end += len(portion.links)
            stops.add(end)
        return {each for each in stops if done < each < end}

    def _leave(self, draft: DatabaseName, portions: Sequence[LayerRecord]) -> None:
        """Leave a template of what *draft* holds so far."""
        admin = self._admin
        admin.settle(draft)
        copy = DatabaseName.new(State.BUILDING, self.key())
        admin.try_lock(copy)
        try:
            admin.copy(draft, copy)
            self._seal(copy, Record(admin.now(), self._run, tuple(portions), left=True))
        except BaseException:
            with suppress(WarmstackError):
                admin.drop(copy)
            raise
        finally:
            with suppress(WarmstackError):
                admin.unlock(copy)

    def _seal(self, draft: DatabaseName, record: Record) -> DatabaseName:
        """Turn *draft* into a template that nobody can drop while this process lives."""
        comment = record.write()
        name = DatabaseName(State.TEMPLATE, fingerprint(comment, str(draft)))
        self._admin.share(name)
        note = sql.note(name, used=record.built, project=self._project)
        self._admin.seal(draft, name, comment, note)
        return name

    def _refresh(self, known: _Known, planned: Sequence[LayerRecord]) -> Template:
        """Write down that a template which has all that is planned is what is asked for now.

        So it is when a file was renamed, or one that is no revision came to the revisions.
        """
        portions = map(carried, planned, known.record.portions)
        record = Record(known.record.built, self._run, tuple(portions))
        self._admin.mark(known.name, record.write())
        return self._template(known.name, "found", record)

    def _retire(self, known: Sequence[_Known], planned: Sequence[LayerRecord]) -> None:
        """See that nothing is built on templates of the same configuration any more."""
        mine = [(each.layer, each.key) for each in planned[:2]]
        for each in known:
            if [(part.layer, part.key) for part in each.record.portions[:2]] == mine:
                self._admin.mark(each.name, sql.RETIRED)

    def _known_portion(self, layer: Layer, known: Sequence[_Known]) -> LayerRecord | None:
        """Return what *layer* has in a known template, if that is what it would have now."""
        for each in known:
            for portion in each.record.portions:
                if self._is_portion_current(layer, portion):
                    return portion
        return None

    def _is_current(self, record: Record) -> bool:
        """Tell whether building a template anew would give what *record* tells of."""
        return len(record.portions) == len(self._layers) and all(
            map(self._is_portion_current, self._layers, record.portions)
        )

    def _is_portion_current(self, layer: Layer, portion: LayerRecord) -> bool:
        holds = self._chains.holds
        return (
            portion.whole
            and portion.layer == layer.name
            and portion.key == layer.key()
            and holds(portion.folders)
            and holds(portion.needs)
            and all(holds(link.needs) for link in portion.links)
            and layer.covers(portion)
        )

    def _nearest(self, planned: Sequence[LayerRecord], known: Sequence[_Known]) -> _Known | None:
        """Return the template with the longest chain that *planned* begins with; it stays."""
        begun = [(self._chains.begins(planned, each.record), each) for each in known]
        for links, each in sorted(begun, key=lambda pair: pair[0], reverse=True):
            if links > 0 and self._admin.find_template(each.name):
                return each
        return None


def _sizes(portions: Sequence[LayerRecord]) -> list[int]:
    return [len(each.links) for each in portions]
