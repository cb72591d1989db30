"""Builds a template once more and drops it, to measure each step, for `warmstack up --profile`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from pytest_warmstack import originals
from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.options import Settings
from pytest_warmstack.postgres.databases import Databases
from pytest_warmstack.postgres.template import layers
from pytest_warmstack.postgres.template.build import Build
from pytest_warmstack.postgres.template.builder import Builder
from pytest_warmstack.postgres.template.configurations import Configuration
from pytest_warmstack.postgres.template.dependencies import FileState
from pytest_warmstack.postgres.template.layers import Target
from pytest_warmstack.postgres.template.templates import Search, TemplateRequest


class MeasuredStep(NamedTuple):
    """A revision, a script or a custom layer of the template's layer *layer*, and its *seconds*.

    *file* is that of a revision. *statements* is how many SQLAlchemy executed; *slowest* has the
    `text`, `count` and `seconds` of those that took the longest. Both are empty for SQL files.
    """

    layer: str
    name: str
    file: str
    seconds: float
    statements: int = 0
    slowest: Sequence[dict[str, Any]] = ()


class Profile(NamedTuple):
    """How long a build took in all, without the creation of its database, and its *steps*."""

    seconds: float
    steps: Sequence[MeasuredStep]


def measure(
    databases: Databases,
    settings: Settings,
    root: Path,
    file_state: FileState,
    configuration: Configuration | None,
    custom: Sequence[object],
) -> Profile:
    """Build the template beside the kept ones, from nothing, and drop it.

    Raises `TemplateFailed`.
    """
    context = layers.BuildContext(settings, root, file_state, configuration)
    builder = _ProfilingBuilder(context)
    made = layers.make(settings, root, file_state, configuration, custom, (), builder)
    request = TemplateRequest(
        layers=made, settings=settings, file_state=file_state, say=lambda _: None
    )
    return _ThrowAwayBuild(Search(databases, request)).measure(builder)


class _ProfilingBuilder(Builder):
    """A child process that measures its steps; they are in `measured` after each task."""

    def __init__(self, context: layers.BuildContext) -> None:
        super().__init__(context)
        self.measured: list[dict[str, Any]] = []
        self.files: dict[str, str] = {}

    def _facts(self, *args: Any) -> dict[str, Any]:
        return {**super()._facts(*args), "profile": True}

    def ask(self, target: Target, do: str, **request: Any) -> dict[str, Any]:
        """Do what `Builder.ask` does, and keep what was measured."""
        begin = originals.monotonic()
        report = super().ask(target, do, **request)
        seconds = originals.monotonic() - begin
        measured = report.pop("profile", [])
        if do == "script" and not measured:  # An SQL file, which SQLAlchemy doesn't see.
            measured = [{"name": request["line"], "seconds": seconds}]
        self.measured += measured
        # A link begins with a revision and the key of its file.
        self.files |= {name: key.partition(":")[2] for name, key, *_ in report.get("links", ())}
        return report


class _ThrowAwayBuild(Build):
    """A build whose database is dropped."""

    def measure(self, builder: _ProfilingBuilder) -> Profile:
        """Apply all layers, and return what *builder* has measured."""
        with self._hold_lock(self._draft):
            try:
                self._databases.create(self._draft).result()
                begin = originals.monotonic()
                steps = [step for layer in self._search.layers for step in self._do(layer, builder)]
                return Profile(originals.monotonic() - begin, steps)
            finally:
                builder.discard()
                with suppress(WarmstackError):  # The next run sweeps it.
                    self._databases.drop(self._draft)

    def _do(self, layer: layers.Layer, builder: _ProfilingBuilder) -> list[MeasuredStep]:
        planned = layer.plan(self._target)
        begin = originals.monotonic()
        layer.apply(self._target, planned)
        seconds = originals.monotonic() - begin
        if isinstance(layer, layers.Custom):
            return [MeasuredStep(layer.name, layer.name, "", seconds)]
        measured, builder.measured = builder.measured, []
        return [
            MeasuredStep(layer.name, file=builder.files.get(each["name"], ""), **each)
            for each in measured
        ]
