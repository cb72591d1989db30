"""Decides which databases a kept server keeps, and which ones a sweep may drop. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import chain

from pytest_warmstack.options import NEVER
from pytest_warmstack.postgres import Database, DatabaseName, State, sql
from pytest_warmstack.servers.identity import Project
from pytest_warmstack.structs import Struct


class Retention(Struct, frozen=True, kw_only=True):
    """How many databases a server keeps for each project, and for how many *idle* seconds.

    *templates* is the number of templates. *stock* is the number of ready clones of each *current*
    template, that is, of each template that this run uses. *saved* is the number of databases of
    failed tests; all those of this *run* are kept, because each worker of xdist may save as many.
    """

    templates: int
    current: Collection[DatabaseName] = ()
    stock: int = 0
    saved: int = 0
    run: str = ""
    idle: float = NEVER

    def doomed(self, databases: Sequence[Database]) -> list[DatabaseName]:
        """Return the names of databases that a sweep may drop if no process holds their locks."""
        templates = list(self._templates_that_stay(databases))
        # A sweep can drop a build or a clone in use only if its owner has ended.
        staying = chain(
            templates,
            self._stock_that_stays(databases, templates),
            self._saved_that_stay(databases),
            # What is in a development database is the user's: only `warmstack clean` drops it.
            (each for each in databases if each.name.state is State.DEVELOPMENT),
        )
        names = {each.name for each in staying}
        return [each.name for each in databases if each.name not in names]

    def _templates_that_stay(self, databases: Sequence[Database]) -> Iterator[Database]:
        """Keep the current templates, and the templates that each project used last.

        Intermediate templates, and those with the seeds of markers, are counted separately, so that
        they don't displace states that the project was in.
        """
        counts: Counter[tuple[str, str]] = Counter()
        for each in sorted(
            databases, key=lambda each: (each.name in self.current, each.used), reverse=True
        ):
            if each.name.state is not State.TEMPLATE or not each.sealed:
                continue
            starts = (sql.LEFT, sql.SEEDED)
            kind = each.project, next(filter(each.comment.startswith, starts), "")
            is_recent = each.unused <= self.idle and counts[kind] < self.templates
            if is_recent or each.name in self.current:
                counts[kind] += 1
                yield each

    def _stock_that_stays(
        self, databases: Sequence[Database], templates: Sequence[Database]
    ) -> Iterator[Database]:
        """Keep the stock of the current templates, and of all templates of other projects.

        A clone that had a connection may be changed, so it is not part of a stock.
        """
        own = next((each.project for each in databases if each.name in self.current), None)
        room = {
            each.name.fingerprint: self.stock
            for each in templates
            if each.name in self.current or each.project != own
        }
        for each in databases:
            fingerprint = each.name.fingerprint
            if each.name.state is State.READY and not each.visits and room.get(fingerprint, 0):
                room[fingerprint] -= 1
                yield each

    def _saved_that_stay(self, databases: Sequence[Database]) -> Iterator[Database]:
        """Keep the databases that this run saved, and the last ones that each project saved."""
        counts: Counter[str] = Counter()
        for each in sorted(databases, key=lambda each: each.used, reverse=True):
            if each.name.state is State.SAVED:
                is_recent = each.unused <= self.idle and counts[each.project] < self.saved
                counts[each.project] += each.unused <= self.idle
                if is_recent or (self.run and sql.run_of(each.comment) == self.run):
                    yield each


def unused(
    databases: Sequence[Database], project: Project | None, idle: float
) -> list[DatabaseName]:
    """Return the databases of *project*, or of all, that were not used for *idle* seconds.

    A clone belongs to the project of its template, or to no project if the template is missing. A
    development database belongs to one checkout, and everything else to all with the same name.
    """
    development = DatabaseName.development(project.path).fingerprint if project else ""
    templates = {
        each.name.fingerprint: each for each in databases if each.name.state is State.TEMPLATE
    }

    def is_unused(each: Database) -> bool:
        if each.name.state is State.DEVELOPMENT:
            return development in {"", each.name.fingerprint} and each.unused >= idle
        origin = each if each.used else templates.get(each.name.fingerprint)
        whose, seconds = (origin.project, origin.unused) if origin else (None, math.inf)
        return (project is None or project.slug == whose) and seconds >= idle

    return [each.name for each in databases if is_unused(each)]
