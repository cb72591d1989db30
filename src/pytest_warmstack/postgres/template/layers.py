"""The layers of a template, in the order in which they are applied.

They are the schema, the migrations, custom layers, the seed, and the seeds of a marker. The
project's own code runs in a child process (see `builder`); custom layers run in the process of the
tests.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pytest_warmstack import originals
from pytest_warmstack.options import Settings, is_attribute
from pytest_warmstack.postgres.template.configurations import Configuration
from pytest_warmstack.postgres.template.dependencies import FileState, place
from pytest_warmstack.postgres.template.record import (
    ALEMBIC,
    BASE,
    DDL,
    MARKER,
    BuildStep,
    LayerRecord,
)
from pytest_warmstack.servers.identity import BUILD_FORMAT, fingerprint
from pytest_warmstack.servers.model import Endpoint, postgres_url
from pytest_warmstack.structs import Struct

if TYPE_CHECKING:
    from pytest_warmstack.postgres.template.builder import Builder
    from pytest_warmstack.postgres.template.template_layer import TemplateLayer

_SCRIPT_LAYERS: Final = ("schema", "seed")


class Target(NamedTuple):
    """The database that a layer changes.

    `read` returns the values of a query's only column, a text; none if its table does not exist.
    `activity` returns what each connection to the database is doing. `say` shows the user what
    happens to it now.
    """

    endpoint: Endpoint
    database: str
    read: Callable[[str], list[str]]
    activity: Callable[[], list[str]]
    say: Callable[[str], None] = lambda _: None


class BuildContext(Struct, frozen=True):
    """What all layers of a template share: the project, and the process that runs its code."""

    settings: Settings
    root: Path
    file_state: FileState
    configuration: Configuration | None = None
    early: Builder | None = None

    secret = frozenset({"file_state"})

    @cached_property
    def builder(self) -> Builder:
        """The child process, which starts when it is first needed; *early* if it has started."""
        from pytest_warmstack.postgres.template.builder import Builder

        return self.early or Builder(self)

    def discard(self) -> None:
        """End the child process, if there is one."""
        if self.early or "builder" in vars(self):
            self.builder.discard()


class Layer:
    """A part of a template that is planned and applied in steps.

    *name* is shown in the header. *key* is the fingerprint of everything that affects the layer,
    except for the needs of its record.
    """

    name: str
    key: str

    def covers(self, _record: LayerRecord) -> bool:
        """Return whether the record has the layer's current steps, judged by files alone."""
        return True  # For most layers, comparing the key or digests is enough.

    def prepare(self) -> None:
        """Begin slow work that needs no database, while the server starts.

        A call of `plan` or `discard` follows.
        """

    def discard(self) -> None:
        """Stop what `prepare` or `apply` began, without waiting long."""

    def plan(self, target: Target) -> LayerRecord:
        """Return all steps in the order to apply them; *target* may not exist yet.

        Each step has the needs that are known before it runs. Raises `TemplateFailed`.
        """
        raise NotImplementedError

    def apply(self, target: Target, planned: LayerRecord) -> LayerRecord:
        """Apply the steps of *planned*, and return them with everything that they needed.

        If this raises `TemplateFailed`, the database is dropped.
        """
        raise NotImplementedError


class Base(Layer):
    """The lowest layer: the versions, and the files in `warmstack_depends`."""

    name = BASE

    def __init__(self, version: str, settings: Settings, file_state: FileState) -> None:
        self.key = fingerprint(BUILD_FORMAT, version, *settings.depends_ignore)
        keys = [f"glob:{each}" for each in settings.depends]
        self._needs = {key: file_state.digest(key) for key in keys}

    def covers(self, record: LayerRecord) -> bool:
        """Return whether the same files were declared."""
        return record.needs.keys() == self._needs.keys()

    def plan(self, _target: Target) -> LayerRecord:
        """Return a record without steps."""
        absent = [key.partition(":")[2] for key, digest in self._needs.items() if not digest]
        remark = f" (warmstack_depends: no files found for {', '.join(absent)})"
        return LayerRecord(self.name, self.key, self._needs, remark=remark if absent else "")

    def apply(self, _target: Target, planned: LayerRecord) -> LayerRecord:
        """Do nothing."""
        return planned


class _ProjectLayer(Layer):
    """A layer that the project's own code applies, in the child process."""

    def __init__(self, context: BuildContext) -> None:
        self._context = context

    def prepare(self) -> None:
        """Start the child process: it imports what it needs while the server starts."""
        self._context.builder.prepare()

    def discard(self) -> None:
        """End the child process."""
        self._context.discard()


class Migrations(_ProjectLayer):
    """The migrations of an Alembic project."""

    name = ALEMBIC

    def __init__(self, context: BuildContext, configuration: Configuration) -> None:
        super().__init__(context)
        settings, function = context.settings, configuration.function
        files = [each for each in (configuration.ini, configuration.toml) if each]
        # The needs of all layers, and the remark, show what depends_ignore leaves out.
        self.key = fingerprint(
            *(function, *(os.path.relpath(each, context.root) for each in files)),
            *("section", settings.alembic_section, *settings.alembic_x, "env", *settings.env),
            *("ignore", *settings.depends_ignore),
        )
        self._function = function
        self._config = function or str(files[0])
        # The only step of a project whose migrations can't be planned.
        self._whole_run = function or "alembic upgrade heads"

    def heads(self, target: Target) -> tuple[int, list[str]]:
        """Return the number of revisions, and their heads; no heads if they can't be planned.

        Does not connect to *target*. Raises `TemplateFailed` if the revisions can't be read.
        """
        try:
            report = self._ask(target, "plan")
        finally:
            self.discard()
        return len(report.get("links", ())), report.get("heads", [])

    def plan(self, target: Target) -> LayerRecord:
        """Return the revisions in the order in which Alembic applies them to an empty database."""
        report = self._early_plan(target) or self._ask(target, "plan")
        if report["own"]:
            # The child can no longer connect, and its work is not needed.
            self.discard()
            steps = (BuildStep(self._whole_run, "", {}, ()),)
            return LayerRecord(self.name, self.key, steps=steps)
        return _with_report(LayerRecord(self.name, self.key), report)

    def _early_plan(self, target: Target) -> dict[str, Any] | None:
        """Return the plan that the child has made early, if no file has changed since."""
        early = self._context.early
        if early is None or not early.is_ahead:
            return None
        report, holds = early.ask(target, "plan"), self._context.file_state.holds
        if "error" not in report and not report["own"]:
            needs = [link[2] for link in report["links"]]
            if all(map(holds, (report["needs"], report["folders"], *needs))):
                return report
        self.discard()
        return None

    def apply(self, target: Target, planned: LayerRecord) -> LayerRecord:
        """Do what `alembic upgrade heads` does, for the planned revisions.

        If *planned* is whole, the database must be at the heads afterwards.
        """
        own = planned.names == [self._whole_run]
        names = [] if own else planned.names
        report = self._ask(target, "upgrade", links=names, own=own)
        if planned.whole:
            self._check_heads(target, report)
        applied = _with_report(planned, report)
        if own:
            # What it runs is not known in advance: each new revision changes this only step.
            needs = {key: digest for step in applied.steps for key, digest in step.needs.items()}
            needs |= {**applied.needs, **applied.folders}
            applied = applied._replace(steps=(BuildStep(self._whole_run, "", needs, ()),))
        return applied

    def _ask(self, target: Target, do: str, **request: Any) -> dict[str, Any]:
        """Return the child's report; raise `TemplateFailed` for an error in it."""
        target.say(f"{'planning' if do == 'plan' else 'running'} the migrations")
        report = self._context.builder.ask(target, do, **request)
        if "error" in report:
            from pytest_warmstack.postgres.template import builder

            source = self._context.settings.sources.get("alembic", "")
            raise builder.migration_error(report, self._function, self._config, source)
        return report

    def _check_heads(self, target: Target, report: dict[str, Any]) -> None:
        from pytest_warmstack.postgres.sql import quote
        from pytest_warmstack.postgres.template.errors import TemplateFailed

        for schema, table in report["tables"] or [["", "alembic_version"]]:
            parts = [part for part in (schema, table) if part]
            found = target.read(f"SELECT version_num FROM {'.'.join(map(quote, parts))}")
            if set(found) != set(report["heads"]):
                raise TemplateFailed.not_at_head(
                    found=found,
                    heads=report["heads"],
                    table=".".join(parts),
                    output=report["output"],
                )


class Scripts(_ProjectLayer):
    """The lines of `warmstack_schema` or `warmstack_seed`, one step each.

    A line is the path of an SQL file or `package.module:attribute`. The *seeds* are those of the
    marker `warmstack_seed`, which have a layer of their own.
    """

    def __init__(self, context: BuildContext, name: str, seeds: tuple[str, ...] = ()) -> None:
        super().__init__(context)
        self.name = MARKER if seeds else name
        self.key = fingerprint(*context.settings.env)
        self._setting = name
        self._source = "marker" if seeds else context.settings.sources.get(name, "")
        self._lines: tuple[str, ...] = seeds or getattr(context.settings, name)

    def covers(self, record: LayerRecord) -> bool:
        """Return whether *record* has the same lines."""
        return record.names == [*self._lines]

    def plan(self, target: Target) -> LayerRecord:
        """Return a step for each line.

        Raises `TemplateFailed` if a file does not exist, or a name can't be imported.
        """
        _check_files(self._setting, self._lines, self._source, self._context.root)
        steps = tuple(self._plan_line(target, line) for line in self._lines)
        return LayerRecord(self.name, self.key, steps=steps)

    def apply(self, target: Target, planned: LayerRecord) -> LayerRecord:
        """Run the scripts, one after the other."""
        steps = []
        for step in planned.steps:
            report = self._ask(target, "script", step.name)
            steps.append(step._replace(needs={**step.needs, **report["needs"]}))
        return planned._replace(steps=tuple(steps))

    def _plan_line(self, target: Target, line: str) -> BuildStep:
        context = self._context
        if not is_attribute(line):
            source = f"file:{place(str((context.root / line).resolve()), str(context.root))}"
            return BuildStep(line, source, {source: context.file_state.digest(source)})
        report = self._ask(target, "describe", line)
        if digest := report["ddl"]:
            source = f"{DDL}{line}"
            return BuildStep(line, source, {source: digest, **report["needs"]})
        return BuildStep(line, "", {})

    def _ask(self, target: Target, do: str, line: str) -> dict[str, Any]:
        """Return the child's report; raise `TemplateFailed` for an error in it."""
        who = f"The {self._setting} {line}"
        target.say(f"{'reading' if do == 'describe' else 'running'} the {self._setting} {line}")
        report = self._context.builder.ask(target, do, who=who, line=line)
        if "error" in report:
            from pytest_warmstack.postgres.template import builder

            raise builder.script_error(
                report, self._setting, line, self._source, self._context.root
            )
        return report


class Custom(Layer):
    """A `TemplateLayer` of a plugin or a conftest.py."""

    def __init__(self, layer: TemplateLayer, timeout: float) -> None:
        self._layer = layer
        self._timeout = timeout
        self._kind = f"{type(layer).__module__}.{type(layer).__qualname__}"
        try:
            self.name, text = layer.name, layer.fingerprint()
        except Exception as error:
            raise _bad_layer(self._kind, f"{type(error).__name__}: {error}") from error
        if not (isinstance(self.name, str) and isinstance(text, str) and self.name):
            cause = f"its name is {self.name!r} and its fingerprint() is {text!r}"
            raise _bad_layer(self._kind, cause)
        self.key = fingerprint(text)

    def plan(self, _target: Target) -> LayerRecord:
        """Return the layer's one step."""
        return LayerRecord(self.name, self.key, steps=(BuildStep("", "", {}),))

    def apply(self, target: Target, planned: LayerRecord) -> LayerRecord:
        """Apply the layer in a thread, with the timeout of the migrations."""
        target.say(f"applying the layer {self.name}")
        url = postgres_url(target.endpoint, target.database, driver=None)
        done: Future[None] = Future()

        def work() -> None:
            try:
                result: object = self._layer.apply(url)
                if inspect.isawaitable(result):
                    asyncio.run(_wait_for(result))
                done.set_result(None)
            except BaseException as error:
                done.set_exception(error)

        originals.Thread(target=work, name=f"warmstack-{self.name}", daemon=True).start()
        wait([done], self._timeout)
        error = done.exception() if done.done() else None
        if error is not None or not done.done():
            raise self._failure(target, error) from error
        return planned

    def _failure(self, target: Target, error: BaseException | None) -> Exception:
        from pytest_warmstack.masking import masked
        from pytest_warmstack.postgres.template.errors import TemplateFailed

        if error is None:
            return TemplateFailed.too_slow(
                who=f"The layer {self.name}",
                seconds=self._timeout,
                place=f"in {self._kind}",
                doing=[f"PostgreSQL: {each}" for each in target.activity()],
                output="",
            )
        cause = f"{type(error).__name__}: {error}"
        cause = masked(cause, [target.endpoint.password], urls=True)
        return TemplateFailed.layer_failed(layer=self.name, cause=cause, kind=self._kind)


async def _wait_for(awaitable: Awaitable[object]) -> None:
    await awaitable


def _bad_layer(kind: str, cause: str) -> Exception:
    from pytest_warmstack.postgres.template.errors import TemplateFailed

    return TemplateFailed.bad_layer(kind=kind, cause=cause)


def _custom_layers(results: Sequence[object]) -> Iterator[TemplateLayer]:
    """Yield the layers in *results*, the lists that implementations of the hook returned."""
    for each in results:
        if not isinstance(each, (list, tuple)):
            raise _bad_layer(type(each).__name__, "the hook must return a list of layers")
        yield from each


def check_scripts(settings: Settings, root: Path) -> None:
    """Raise `TemplateFailed` if `warmstack_schema` or `warmstack_seed` names a missing file."""
    for name in _SCRIPT_LAYERS:
        _check_files(name, getattr(settings, name), settings.sources.get(name, ""), root)


def _check_files(layer: str, lines: Sequence[str], source: str, root: Path) -> None:
    for line in lines:
        if not is_attribute(line) and not (root / line).is_file():
            from pytest_warmstack.postgres.template.errors import TemplateFailed

            raise TemplateFailed.no_file(layer=layer, file=str(root / line), source=source)


def make(
    settings: Settings,
    root: Path,
    file_state: FileState,
    configuration: Configuration | None,
    custom: Sequence[object] = (),
    seeds: tuple[str, ...] = (),
    early: Builder | None = None,
) -> list[Layer]:
    """Return the layers: the schema, the migrations, custom layers, the seed, a marker's *seeds*.

    *configuration* is Alembic's, if there is one; *custom* is what the implementations of
    `pytest_warmstack_template_layers` returned. *early* is a child process that has started.
    """
    context = BuildContext(settings, root, file_state, configuration, early)
    return [
        *([Scripts(context, "schema")] if settings.schema else []),
        *([Migrations(context, configuration)] if configuration else []),
        *(Custom(each, settings.migrate_timeout) for each in _custom_layers(custom)),
        *([Scripts(context, "seed")] if settings.seed else []),
        *([Scripts(context, "seed", seeds)] if seeds else []),
    ]


def _with_report(record: LayerRecord, report: dict[str, Any]) -> LayerRecord:
    """Return *record* with the revisions that the child process reports."""
    steps = tuple(
        BuildStep(name, source, needs, tuple(after))
        for name, source, needs, after in report["links"]
    )
    fields = {name: report[name] for name in ("needs", "folders", "remark")}
    return record._replace(steps=steps, **fields)
