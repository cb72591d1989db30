"""Finds the template for a run, or builds it.

The comment of a template has its build history: each layer with its steps in order, and the digests
of everything that they read. A template matches if building it again would give the same database.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Final, NamedTuple

from pytest_warmstack import originals
from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.options import Settings
from pytest_warmstack.postgres import DatabaseName, State, sql
from pytest_warmstack.postgres.databases import Databases
from pytest_warmstack.postgres.template.dependencies import FileState
from pytest_warmstack.postgres.template.layers import Base, Layer
from pytest_warmstack.postgres.template.record import LayerRecord, Record
from pytest_warmstack.servers.identity import fingerprint
from pytest_warmstack.structs import Struct

YIELD_TIMEOUT: Final = 1.0
"""Seconds that a process waits for another one to begin a build that it has prepared."""


class TemplateRequest(Struct, frozen=True, kw_only=True):
    """The template that a run needs: made of *layers*, given the current *file_state*.

    With *keep*, a build also saves templates for later builds to start from. *run* is the id of the
    run, *project* is shown to users as the template's project, *say* shows a line to the user.
    *draft* is the name for the database of a build, if its child process knows that already. With
    *yields*, another process of the run has such a child, and should build.
    """

    layers: Sequence[Layer]
    settings: Settings
    file_state: FileState
    say: Callable[[str], None]
    keep: bool = True
    run: str = ""
    project: str = ""
    draft: DatabaseName | None = None
    yields: bool = False


class Template(NamedTuple):
    """A complete template: it can be copied, and accepts no connections.

    *origin* is `found`, `extended`, `rebuilt` or `built`; *text* describes its layers, *how* says
    what was extended, *why* is the reason for a build. *used* has the names of the template and of
    the one that it was extended from, *now* is the time of that use, by the server's clock, in
    seconds since the epoch. *past* has templates that no run will use again: all states of an edit
    except for the first and the last.
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
        """Return the statements that note when the template, and its base, were last used."""
        # The base gets a slightly earlier time, so that the two have an order.
        times = [(name, self.now - place / 1000) for place, name in enumerate(self.used)]
        times += [(name, 0.0) for name in self.past]
        return [sql.note(name, used=used, project=self.project) for name, used in times]


class KnownTemplate(Struct):
    """A template on the server. Its comment is parsed when it is first needed."""

    name: DatabaseName
    comment: str
    project: str

    @cached_property
    def record(self) -> Record:
        """The record in the comment, or an empty record if this version can't read it."""
        return Record.read(self.comment) or Record(0.0, "", ())


def ensure(databases: Databases, request: TemplateRequest) -> Template:
    """Return the requested template; build it if it doesn't exist.

    One process builds; the others wait up to `migrate_timeout` seconds and then find the result.
    With the setting `rebuild`, only a template of the same run matches. A build that was killed
    leaves no template, because sealing is the last step. Raises `TemplateFailed`.
    """
    search = Search(databases, request)
    if (found := search.find()) is not None:
        return found
    from pytest_warmstack.postgres.template.build import Build

    # Only the building process holds this lock. It can't be the template's own lock: all users of
    # the template share that until the end of their runs.
    gate = DatabaseName(State.BUILDING, search.key, "gate")
    timeout = request.settings.migrate_timeout
    deadline = originals.monotonic() + YIELD_TIMEOUT
    while request.yields and originals.monotonic() < deadline:
        if gate.lock_key in databases.locked():
            break
        originals.sleep(0.05)
        if (found := search.find()) is not None:
            return found
    if holder := databases.lock(gate, timeout=timeout, say=request.say):
        from pytest_warmstack.postgres.template.errors import TemplateFailed

        raise TemplateFailed.locked(seconds=timeout, holder=holder)
    try:
        # Search again: another process may just have finished.
        return search.find() or Build(search).run()
    finally:
        with suppress(WarmstackError):
            databases.unlock(gate)


class Search:
    """A search for the requested template among those on the server."""

    def __init__(self, databases: Databases, request: TemplateRequest) -> None:
        self.databases = databases
        self.request = request
        base = Base(databases.version, request.settings, request.file_state)
        self.layers = [base, *request.layers]
        self.key = fingerprint(*(part for each in self.layers for part in (each.name, each.key)))
        """The same for all builds of this configuration."""
        self.known: list[KnownTemplate] = []
        """The templates on the server; the last used one is first."""

    def _list(self) -> None:
        listed = sorted(self.databases.templates(), key=lambda each: each.used, reverse=True)
        self.known = [KnownTemplate(each.name, each.comment, each.project) for each in listed]

    def outdated(self) -> list[Layer]:
        """Return the layers that no known template has as they would be now. Uses nothing."""
        self._list()
        request = self.request
        recorded = [
            record
            for each in self.known
            if not request.settings.rebuild or each.record.run == request.run
            for record in each.record.layers
        ]
        return [
            layer
            for layer in self.layers
            if not any(self.is_layer_current(layer, each) for each in recorded)
        ]

    def find(self) -> Template | None:
        """Return the first known template that a new build would only repeat, and use it."""
        self._list()
        for each in self.known:
            if self.request.settings.rebuild and each.record.run != self.request.run:
                continue
            if self._is_current(each.record) and self.databases.find_template(each.name):
                return self.template(each.name, each.record)
        return None

    def template(self, name: DatabaseName, record: Record, origin: str = "found") -> Template:
        """Return the template called *name*, and mark it as used now."""
        now, project = self.databases.now(), self.request.project
        return Template(name, origin, record.text, (name,), now, project=project)

    def is_layer_current(self, layer: Layer, record: LayerRecord) -> bool:
        """Return whether applying *layer* now would do what *record* describes."""
        holds = self.request.file_state.holds
        return (
            record.whole
            and (record.layer, record.key) == (layer.name, layer.key)
            and holds(record.folders)
            and holds(record.needs)
            and all(holds(step.needs) for step in record.steps)
            and layer.covers(record)
        )

    def _is_current(self, record: Record) -> bool:
        return len(record.layers) == len(self.layers) and all(
            map(self.is_layer_current, self.layers, record.layers)
        )
