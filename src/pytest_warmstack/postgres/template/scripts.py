"""SQL files and functions of the project as layers: a schema without Alembic, and the seed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pytest_warmstack.postgres.template.builder import Builder
from pytest_warmstack.postgres.template.dependencies import FileState, place
from pytest_warmstack.postgres.template.errors import TemplateFailed
from pytest_warmstack.postgres.template.record import DDL, BuildStep, LayerRecord
from pytest_warmstack.postgres.template.templates import Target
from pytest_warmstack.servers.identity import fingerprint
from pytest_warmstack.settings import is_attribute

_DUMPED_BY: Final = re.compile(r"^-- Dumped by pg_dump version (\d[\w.]*)", re.MULTILINE)
"""A line at the head of what pg_dump writes."""


@dataclass(kw_only=True)
class Scripts:
    """The lines of one setting, each a link of the chain: `file.sql` or `package.module:name`.

    *name* is `schema` or `seed`; *source* tells where the lines stood.
    """

    name: str
    lines: Sequence[str]
    source: str
    root: Path
    env: Sequence[str] = field(repr=False)
    builder: Builder
    file_state: FileState

    def key(self) -> str:
        """Return the fingerprint of the environment that the functions get."""
        return fingerprint(*self.env)

    def covers(self, portion: LayerRecord) -> bool:
        """Tell whether *portion* has the same lines."""
        return [link.name for link in portion.links] == list(self.lines)

    def prepare(self) -> None:
        """Start the child process, if no other layer has."""
        self.builder.prepare()

    def discard(self) -> None:
        """End the child process."""
        self.builder.discard()

    def plan(self, target: Target) -> LayerRecord:
        """Return a link for each line.

        Raises `TemplateFailed` when a file is not there, or what a line names can't be imported.
        """
        links = tuple(self._link(target, line) for line in self.lines)
        return LayerRecord(self.name, self.key(), links=links)

    def apply(self, target: Target, portion: LayerRecord) -> LayerRecord:
        """Run the scripts, one after the other."""
        links = []
        for link in portion.links:
            report = self._ask(target, "script", link.name)
            links.append(link._replace(needs={**link.needs, **report["needs"]}))
        return portion._replace(links=tuple(links))

    def _ask(self, target: Target, do: str, line: str) -> dict[str, Any]:
        report = self.builder.ask(target, do, who=f"The {self.name} {line}", line=line)
        if error := report.get("error"):
            if report.get("kind") == "signature":
                from pytest_warmstack.postgres.template.child.arguments import understood

                raise TemplateFailed.bad_signature(
                    layer=self.name,
                    line=line,
                    cause=error,
                    source=self.source,
                    understood=understood(),
                )
            raise TemplateFailed.script_failed(
                layer=self.name,
                line=line,
                where=report.get("where", ""),
                cause=error,
                source=self.source,
                output=report["output"],
                state=report.get("state", ""),
                dump=self._dumped_by(line),
            )
        return report

    def _dumped_by(self, line: str) -> str:
        """Return the version of pg_dump that a file says it was written by; nothing without."""
        if is_attribute(line):
            return ""
        with (self.root / line).open(encoding="utf-8", errors="replace") as file:
            match = _DUMPED_BY.search(file.read(2000))
        return match[1] if match else ""

    def _link(self, target: Target, line: str) -> BuildStep:
        if is_attribute(line):
            report = self._ask(target, "describe", line)
            if digest := report["ddl"]:
                return BuildStep(line, f"{DDL}{line}", {f"{DDL}{line}": digest, **report["needs"]})
            return BuildStep(line, "", {})
        path = self.root / line
        if not path.is_file():
            raise TemplateFailed.no_script(layer=self.name, file=str(path), source=self.source)
        source = f"file:{place(str(path.resolve()), str(self.root))}"
        return BuildStep(line, source, {source: self.file_state.digest(source)})
