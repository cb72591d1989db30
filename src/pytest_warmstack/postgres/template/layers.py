"""The layers of a project's template, in the order in which they are applied."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Iterator, Sequence
from concurrent.futures import Future, wait
from pathlib import Path

from pytest_warmstack import originals
from pytest_warmstack.masking import masked
from pytest_warmstack.postgres.template.builder import Builder
from pytest_warmstack.postgres.template.configurations import Configuration
from pytest_warmstack.postgres.template.dependencies import FileState
from pytest_warmstack.postgres.template.errors import TemplateFailed
from pytest_warmstack.postgres.template.migrations import Migrations
from pytest_warmstack.postgres.template.record import BuildStep, LayerRecord
from pytest_warmstack.postgres.template.scripts import Scripts
from pytest_warmstack.postgres.template.template_layer import TemplateLayer
from pytest_warmstack.postgres.template.templates import Layer, Target
from pytest_warmstack.servers.identity import fingerprint
from pytest_warmstack.servers.model import postgres_url
from pytest_warmstack.settings import Settings


class Foreign(Layer):
    """A `TemplateLayer` in its place among ours. It runs in the process of the tests."""

    def __init__(self, layer: TemplateLayer, timeout: float) -> None:
        self._layer = layer
        self._timeout = timeout
        self._kind = f"{type(layer).__module__}.{type(layer).__qualname__}"
        try:
            self.name = layer.name
            mark = layer.fingerprint()
        except Exception as error:
            cause = f"{type(error).__name__}: {error}"
            raise TemplateFailed.bad_layer(kind=self._kind, cause=cause) from error
        if not (isinstance(self.name, str) and isinstance(mark, str) and self.name):
            cause = f"its name is {self.name!r} and its fingerprint() is {mark!r}"
            raise TemplateFailed.bad_layer(kind=self._kind, cause=cause)
        self._key = fingerprint(mark)

    def key(self) -> str:
        """Return the fingerprint of its own."""
        return self._key

    def plan(self, _target: Target) -> LayerRecord:
        """Return its one link."""
        return LayerRecord(self.name, self._key, links=(BuildStep("", "", {}),))

    def apply(self, target: Target, portion: LayerRecord) -> LayerRecord:
        """Apply it, in a thread that nobody waits for longer than the migrations may take."""
        address = postgres_url(target.endpoint, target.database, driver=None)
        done: Future[None] = Future()

        def work() -> None:
            try:
                made: object = self._layer.apply(address)
                if inspect.isawaitable(made):
                    asyncio.run(_awaited(made))
                done.set_result(None)
            except BaseException as error:
                done.set_exception(error)

        thread = originals.Thread(target=work, name=f"warmstack-{self.name}", daemon=True)
        thread.start()
        wait([done], self._timeout)
        if not done.done():
            raise TemplateFailed.too_slow(
                who=f"The layer {self.name}",
                seconds=self._timeout,
                place=f"in {self._kind}",
                doing=[f"PostgreSQL: {each}" for each in target.activity()],
                output="",
            )
        if (error := done.exception()) is not None:
            cause = masked(
                f"{type(error).__name__}: {error}", [target.endpoint.password], urls=True
            )
            raise TemplateFailed.layer_failed(
                layer=self.name, cause=cause, kind=self._kind
            ) from error
        return portion


async def _awaited(made: Awaitable[object]) -> None:
    await made


def _listed(results: Sequence[object]) -> Iterator[TemplateLayer]:
    """Yield the layers that the hook's implementations returned, each a list of them."""
    for each in results:
        if not isinstance(each, (list, tuple)):
            raise TemplateFailed.bad_layer(
                kind=type(each).__name__, cause="the hook is to return a list of layers"
            )
        yield from each


def make(
    settings: Settings,
    root: Path,
    file_state: FileState,
    configuration: Configuration | None,
    foreign: Sequence[object] = (),
) -> list[Layer]:
    """Return the layers: the schema, the migrations, those of somebody else, the seed.

    *configuration* is Alembic's, if there is one; *foreign* is what the implementations of
    `pytest_warmstack_template_layers` returned.
    """
    builder = Builder(
        root=root,
        folder=configuration.folder if configuration else root,
        env=settings.env,
        file=settings.file,
        ignore=settings.depends_ignore,
        timeout=settings.migrate_timeout,
    )
    migrations = Migrations.make(configuration, settings, builder) if configuration else None
    builder.alembic = migrations.described() if migrations else None
    schema, seed = (
        Scripts(
            name=name,
            lines=lines,
            source=settings.sources.get(name, ""),
            root=root,
            env=settings.env,
            builder=builder,
            file_state=file_state,
        )
        for name, lines in (("schema", settings.schema), ("seed", settings.seed))
    )
    return [
        *([schema] if schema.lines else []),
        *([migrations] if migrations else []),
        *(Foreign(each, settings.migrate_timeout) for each in _listed(foreign)),
        *([seed] if seed.lines else []),
    ]
