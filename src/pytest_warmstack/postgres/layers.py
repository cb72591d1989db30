"""The layers of a project's template, in the order in which they are applied."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pytest_warmstack.errors import TemplateFailed, WarmstackError
from pytest_warmstack.identity import fingerprint
from pytest_warmstack.postgres.admin import url
from pytest_warmstack.postgres.builder import Builder
from pytest_warmstack.postgres.dependencies import Present
from pytest_warmstack.postgres.migrations import Migrations
from pytest_warmstack.postgres.record import Link, Portion
from pytest_warmstack.postgres.scripts import Scripts
from pytest_warmstack.postgres.template import Layer, Target
from pytest_warmstack.postgres.template_layer import TemplateLayer
from pytest_warmstack.settings import Settings


class Foreign:
    """A `TemplateLayer` in its place among ours. It runs in the process of the tests."""

    def __init__(self, layer: TemplateLayer) -> None:
        self._layer = layer
        self.name = layer.name
        self._key = fingerprint(layer.fingerprint())

    def key(self) -> str:
        """Return the fingerprint of its own."""
        return self._key

    def covers(self, _portion: Portion) -> bool:
        """Return true: it is one link, and its key tells all."""
        return True

    def prepare(self) -> None:
        """Do nothing: whoever wrote it expects to be called when there is a database."""

    def discard(self) -> None:
        """Do nothing."""

    def plan(self, _target: Target) -> Portion:
        """Return its one link."""
        return Portion(self.name, self._key, links=(Link("", "", {}),))

    def apply(self, target: Target, portion: Portion) -> Portion:
        """Apply it."""
        try:
            self._layer.apply(url(target.endpoint, target.database, driver=None))
        except WarmstackError:
            raise
        except Exception as error:
            raise TemplateFailed.layer_failed(
                layer=self.name,
                cause=f"{type(error).__name__}: {error}".replace(target.endpoint.password, "***"),
                kind=f"{type(self._layer).__module__}.{type(self._layer).__qualname__}",
            ) from error
        return portion


def make(
    settings: Settings, root: Path, present: Present, foreign: Sequence[TemplateLayer] = ()
) -> list[Layer]:
    """Return the layers: the schema, the migrations, those of somebody else, the seed."""
    builder = Builder(
        root=root,
        env=settings.env,
        ignore=settings.depends_ignore,
        timeout=settings.migrate_timeout,
    )
    migrations = Migrations.find(settings, root, builder, present)
    builder.alembic = migrations is not None
    schema, seed = (
        Scripts(
            name=name,
            lines=lines,
            source=settings.sources.get(name, ""),
            root=root,
            env=settings.env,
            builder=builder,
            present=present,
        )
        for name, lines in (("schema", settings.schema), ("seed", settings.seed))
    )
    return [
        *([schema] if schema.lines else []),
        *([migrations] if migrations else []),
        *map(Foreign, foreign),
        *([seed] if seed.lines else []),
    ]
