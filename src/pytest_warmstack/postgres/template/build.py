"""Builds a template under a private name, starting from the most similar known template."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import wait
from contextlib import contextmanager, suppress

from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.postgres import DatabaseName, State, sql
from pytest_warmstack.postgres.template.build_history import Comparison
from pytest_warmstack.postgres.template.layers import Target
from pytest_warmstack.postgres.template.record import LayerRecord, Record, count_steps, marked
from pytest_warmstack.postgres.template.templates import KnownTemplate, Search, Template
from pytest_warmstack.servers.identity import fingerprint


class Build:
    """A build of the template that *search* did not find."""

    def __init__(self, search: Search) -> None:
        self._search = search
        self._request = search.request
        self._rebuild = search.request.settings.rebuild
        self._known = search.known
        self._comparison = Comparison(search.request.file_state)
        self._databases = databases = search.databases
        name = search.request.draft or DatabaseName.new(State.BUILDING, search.key)
        self._draft = draft = name
        self._target = Target(
            databases.endpoint,
            str(draft),
            lambda query: databases.read(draft, query),
            lambda: databases.activity(draft),
            search.request.say,
        )

    def run(self) -> Template:
        """Extend the nearest template or build a new one; then forget outdated states."""
        with self._hold_lock(self._draft):
            # Without a template to start from, create the database while the plan is made.
            empty = None if self._bases else self._databases.create(self._draft)
            try:
                plan = self._plan()
                base = self._nearest_base(plan)
                if base is not None and _sizes(base.record.layers) == _sizes(plan):
                    return self._refresh(base, plan)
                if base is not None:
                    self._databases.copy(base.name, self._draft)
                else:
                    (empty or self._databases.create(self._draft)).result()
                record = self._apply(plan, base)
                name = self._seal(self._draft, record)
                if self._rebuild:
                    self._retire(plan)
            finally:
                for layer in self._search.layers:
                    layer.discard()
                if empty is not None:
                    wait([empty])
        why, past = self._compare(plan)
        why = "--warmstack-rebuild" if self._rebuild else why
        if base is None:
            made = self._search.template(name, record, "rebuilt" if why else "built")
            return made._replace(why=why, past=past)
        made = self._search.template(name, record, "extended")
        # A base of another project keeps that project's note.
        used = (name, base.name) if base.project in {"", self._request.project} else (name,)
        how = record.describe_growth(base.record)
        return made._replace(used=used, how=how, why=why, past=past)

    @contextmanager
    def _hold_lock(self, name: DatabaseName) -> Iterator[None]:
        """Hold the lock of a database while it is built; drop the database if that fails."""
        self._databases.try_lock(name)
        try:
            yield
        except BaseException:
            # Raise the error of the build, even if the server is lost as well.
            with suppress(WarmstackError):
                self._databases.drop(name)
            raise
        finally:
            with suppress(WarmstackError):
                self._databases.unlock(name)

    @property
    def _bases(self) -> list[KnownTemplate]:
        """Return the templates that the build may start from."""
        return [each for each in self._known if not self._rebuild or self._is_of_this_run(each)]

    def _is_of_this_run(self, known: KnownTemplate) -> bool:
        return known.record.run == self._request.run

    def _plan(self) -> list[LayerRecord]:
        """Return what the build must contain; forget templates of other Alembic projects."""
        recorded = [record for each in self._bases for record in each.record.layers]
        is_current = self._search.is_layer_current
        plan = [
            next((each for each in recorded if is_current(layer, each)), None)
            or layer.plan(self._target)
            for layer in self._search.layers
        ]
        is_of_another = self._comparison.is_of_another_project
        self._known = [each for each in self._known if not is_of_another(plan, each.record)]
        return plan

    def _nearest_base(self, plan: Sequence[LayerRecord]) -> KnownTemplate | None:
        """Return the largest template whose steps are all in *plan*, and hold its lock."""
        common = [(*self._comparison.common(plan, each.record), each) for each in self._bases]
        whole = [(count, each) for count, is_whole, each in common if is_whole and count]
        for _, each in sorted(whole, key=lambda pair: pair[0], reverse=True):
            if self._databases.find_template(each.name):
                return each
        return None

    def _apply(self, plan: Sequence[LayerRecord], base: KnownTemplate | None) -> Record:
        """Apply the steps that *base* lacks to the draft, and save intermediate templates."""
        known = base.record.layers if base else ()
        plan, reach = self._arrange(plan, base)
        done = count_steps(known)
        stops = self._stops(plan, done, reach)
        built: list[LayerRecord] = []
        begin = 0
        for place, (layer, planned) in enumerate(zip(self._search.layers, plan, strict=True)):
            if place < len(known):
                planned = planned.with_needs_of(known[place])
            size = len(planned.steps)
            first = max(done - begin, 0)
            for last in sorted(
                {each - begin for each in stops if 0 < each - begin < size} | {size}
            ):
                if last <= first and size:
                    continue  # The base has these steps already.
                applied = layer.apply(self._target, planned.part(first, last))
                planned, first = planned.with_applied(first, applied), last
                if begin + last in stops:
                    self._save([*built, planned.part(0, last)])
            built.append(planned)
            begin += size
        self._databases.settle(self._draft)
        return Record(self._databases.now(), self._request.run, tuple(built))

    def _arrange(
        self, plan: Sequence[LayerRecord], base: KnownTemplate | None
    ) -> tuple[Sequence[LayerRecord], int]:
        """Return *plan* in the order of the build, and the number of steps before the edits."""
        records = [each.record for each in self._bases]
        if not records:
            return plan, 0
        nearest = max(records, key=lambda record: self._comparison.common(plan, record)[0])
        return self._comparison.arrange(plan, base.record if base else None, nearest)

    def _stops(self, plan: Sequence[LayerRecord], done: int, reach: int) -> set[int]:
        """Return the numbers of steps after which to save a template for later builds.

        These are the ends of layers, because the next layer may change alone, and the place before
        the first edited step, because you will probably edit that step again.
        """
        if not self._request.keep:
            return set()
        ends = [count_steps(plan[:place]) for place in range(1, len(plan) + 1)]
        return {each for each in (reach, *ends) if done < each < ends[-1]}

    def _save(self, layers: Sequence[LayerRecord]) -> None:
        """Save a copy of the draft as a template of *layers*."""
        self._databases.settle(self._draft)
        copy = DatabaseName.new(State.BUILDING, self._search.key)
        with self._hold_lock(copy):
            self._databases.copy(self._draft, copy)
            now, run = self._databases.now(), self._request.run
            self._seal(copy, Record(now, run, tuple(layers), left=True))

    def _seal(self, draft: DatabaseName, record: Record) -> DatabaseName:
        """Turn *draft* into a template that no other process can drop while this one runs."""
        comment = record.write()
        name = DatabaseName(State.TEMPLATE, fingerprint(comment, str(draft)))
        self._databases.share(name)
        note = sql.note(name, used=record.built, project=self._request.project)
        self._databases.seal(draft, name, comment, note)
        return name

    def _refresh(self, known: KnownTemplate, plan: Sequence[LayerRecord]) -> Template:
        """Update the record of a template that has all planned steps, and return it.

        This is needed if a file was renamed, or if a file that isn't a revision was added.
        """
        layers = tuple(map(LayerRecord.with_needs_of, plan, known.record.layers))
        record = Record(known.record.built, self._request.run, layers)
        self._databases.mark(known.name, record.write())
        return self._search.template(known.name, record)

    def _retire(self, plan: Sequence[LayerRecord]) -> None:
        """Keep later builds from starting from older templates of the same configuration."""
        own = [(each.layer, each.key) for each in plan[:2]]
        for each in self._known:
            recorded = [(layer.layer, layer.key) for layer in each.record.layers[:2]]
            if recorded == own and not self._is_of_this_run(each):
                self._databases.mark(each.name, sql.RETIRED)

    def _compare(self, plan: Sequence[LayerRecord]) -> tuple[str, tuple[DatabaseName, ...]]:
        """Return the first difference from the nearest known template, and the outdated ones.

        The nearest template need not be the last used, which may have an edit that was undone.
        """
        compared = [
            (self._comparison.differences(plan, each.record), each)
            for each in self._known
            # Another marker's seeds are no earlier state of these.
            if each.record.layers and marked(each.record.layers) in ([], marked(plan))
        ]
        if not compared:
            return "", ()
        # An intermediate template need not be a state that the project was ever in. Of two equally
        # near ones, that with all steps tells more: one without the seeds never differs in them.
        nearest = min(
            compared,
            key=lambda pair: (len(pair[0][0]) + pair[0][1] + pair[1].record.left, pair[0][1]),
        )[0]
        if not nearest[0]:
            return "", ()
        project = self._request.project
        states = [e for found, e in compared if found == nearest and e.project == project]
        states.sort(key=lambda each: each.record.built)
        return nearest[0][0], tuple(each.name for each in states[1:-1])


def _sizes(layers: Sequence[LayerRecord]) -> list[int]:
    return [len(each.steps) for each in layers]
