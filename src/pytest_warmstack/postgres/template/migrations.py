"""Alembic as one layer: which configuration, and what the child process reports of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pytest_warmstack.postgres.sql import quote
from pytest_warmstack.postgres.template.builder import DATABASE_URL, Builder
from pytest_warmstack.postgres.template.configurations import Configuration
from pytest_warmstack.postgres.template.errors import TemplateFailed
from pytest_warmstack.postgres.template.record import ALEMBIC, BuildStep, LayerRecord
from pytest_warmstack.postgres.template.templates import Layer, Target
from pytest_warmstack.servers.identity import fingerprint
from pytest_warmstack.settings import Settings

_WITHOUT_URL = ("KeyError", "ArgumentError", "ValidationError", "NoSuchModuleError")
"""How an error begins of code that looks for a URL in the environment, and finds none."""


@dataclass(kw_only=True)
class Migrations(Layer):
    """The Alembic project of the tests.

    *ini* is its alembic.ini and *toml* its pyproject.toml, of which one may be missing; or else
    *function* names what gives the configuration, as `package.module:function`. *section* and *x*
    are what the command `alembic` takes as `-n` and `-x`; *source* tells where the user named it.
    """

    builder: Builder
    ini: Path | None = None
    toml: Path | None = None
    function: str = ""
    section: str = "alembic"
    x: Sequence[str] = ()
    env: Sequence[str] = field(default=(), repr=False)
    source: str = ""

    name = ALEMBIC

    @classmethod
    def make(cls, configuration: Configuration, settings: Settings, builder: Builder) -> Self:
        """Return the project of *configuration*."""
        return cls(
            builder=builder,
            ini=configuration.ini,
            toml=configuration.toml,
            function=configuration.function,
            section=settings.alembic_section,
            x=settings.alembic_x,
            env=settings.env,
            source=settings.sources.get("alembic", ""),
        )

    @property
    def config(self) -> str:
        """The configuration, for an error's text."""
        return self.function or str(self.ini or self.toml)

    @property
    def _home(self) -> Path | None:
        """The folder of the configuration, if it is a file."""
        file = self.ini or self.toml
        return file.parent if file else None

    @property
    def _own(self) -> str:
        """The name of the one link of a project that can't be planned, but only run."""
        return self.function or "alembic upgrade heads"

    def described(self) -> dict[str, Any]:
        """Return what the child has to know of the configuration."""
        return {
            "home": self._home and str(self._home),
            "ini": self.ini and str(self.ini),
            "toml": self.toml and str(self.toml),
            "section": self.section,
            "x": list(self.x),
            "callable": self.function,
        }

    def key(self) -> str:
        """Return the fingerprint of what is said about the project outside of its files."""
        files = [os.path.relpath(each, self.builder.root) for each in (self.ini, self.toml) if each]
        which = [self.function, *files]
        said = ["section", self.section, *self.x, "env", *self.env]
        # What is left out shows in the needs of all portions, and in the remark.
        return fingerprint(*which, *said, "ignore", *self.builder.ignore)

    def prepare(self) -> None:
        """Start the child process: it imports Alembic while the server starts, and then waits."""
        self.builder.prepare()

    def discard(self) -> None:
        """End the child process."""
        self.builder.discard()

    def heads(self, target: Target) -> tuple[int, list[str]]:
        """Return how many revisions there are, and their heads; nothing if only a run can tell.

        Nothing is asked of *target*. Raises `TemplateFailed` when they can't be read.
        """
        try:
            report = self._asked(target, "plan")
        finally:
            self.builder.discard()
        return len(report.get("links", ())), report.get("heads", [])

    def plan(self, target: Target) -> LayerRecord:
        """Return the revisions in the order in which Alembic applies them to an empty database."""
        report = self._asked(target, "plan")
        if report["own"]:
            # It was made to connect to nothing; what it began is of no use.
            self.builder.discard()
            return LayerRecord(self.name, self.key(), links=(BuildStep(self._own, "", {}, ()),))
        return LayerRecord(
            self.name,
            self.key(),
            needs=report["needs"],
            folders=report["folders"],
            links=_links(report),
            remark=report["remark"],
        )

    def apply(self, target: Target, portion: LayerRecord) -> LayerRecord:
        """Run what `alembic upgrade heads` runs, as far as *portion* goes.

        At the end of the chain the database has to be at the heads.
        """
        names = [link.name for link in portion.links]
        own = names == [self._own]
        report = self._asked(target, "upgrade", links=[] if own else names, own=own)
        if portion.whole:
            self._see_that_heads_are_reached(target, report)
        links = _links(report)
        if own:
            needs = {key: digest for each in links for key, digest in each.needs.items()}
            # What it runs is not known before: a new revision is a change of this one link.
            links = (BuildStep(self._own, "", needs | report["needs"] | report["folders"], ()),)
        return portion._replace(
            needs=report["needs"],
            folders=report["folders"],
            links=links,
            remark=report["remark"],
        )

    def _asked(self, target: Target, do: str, **request: Any) -> dict[str, Any]:
        """Return the child's report; raise `TemplateFailed` for the error that it tells of."""
        report = self.builder.ask(target, do, **request)
        if not (error := report.get("error")):
            return report
        where, output, kind = report.get("where", ""), report["output"], report.get("kind")
        hints = report.get("hints", [])
        if not hints and where.startswith("in env.py") and error.startswith(_WITHOUT_URL):
            hints = self.builder.hints(DATABASE_URL)
        if kind == "config" and self.function:
            raise TemplateFailed.bad_function(
                function=self.function,
                where=where,
                cause=error,
                source=self.source,
                output=output,
                hints=hints,
            )
        if kind == "config":
            raise TemplateFailed.bad_alembic(config=self.config, cause=error, output=output)
        if kind == "revisions" and not where and not hints:
            raise TemplateFailed.bad_revisions(
                config=self.config, cause=error, unseen=report.get("unseen", ()), output=output
            )
        raise TemplateFailed.migration_failed(
            where=where,
            cause=error,
            config=self.config,
            output=output,
            state=report.get("state", ""),
            first=report.get("first", False),
            hints=hints,
        )

    def _see_that_heads_are_reached(self, target: Target, report: dict[str, Any]) -> None:
        for schema, table in report["tables"] or [["", "alembic_version"]]:
            name = ".".join(quote(part) for part in (schema, table) if part)
            found = target.read(f"SELECT version_num FROM {name}")
            if set(found) != set(report["heads"]):
                raise TemplateFailed.not_at_head(
                    found=found,
                    heads=report["heads"],
                    table=".".join(part for part in (schema, table) if part),
                    output=report["output"],
                )


def _links(report: dict[str, Any]) -> tuple[BuildStep, ...]:
    return tuple(
        BuildStep(name, source, needs, tuple(after))
        for name, source, needs, after in report["links"]
    )
