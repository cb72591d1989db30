"""Alembic's configuration for migrations in the tests' own process, as pytest-alembic runs them.

It is what a build would use; but nothing is recorded, and no connection is blocked.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_warmstack import originals
from pytest_warmstack.options import Settings
from pytest_warmstack.postgres.template.builder import describe, search_path, url_parts
from pytest_warmstack.postgres.template.configurations import Configuration
from pytest_warmstack.servers.model import Endpoint

if TYPE_CHECKING:
    from alembic.config import Config


@dataclass(frozen=True)
class InProcess:
    """The migrations of *configuration* on a *database* at *endpoint*; *root* is the project's."""

    configuration: Configuration
    settings: Settings
    root: str
    endpoint: Endpoint = field(repr=False)
    database: str

    @property
    def path(self) -> list[str]:
        """Where the migrations find modules."""
        return search_path(self.root, describe(self.configuration, self.settings)["home"])

    def make(self) -> tuple[Config, dict[str, str]]:
        """Return the configuration, and the variables of `warmstack_env`, with the database's URL.

        Call it when the configuration's folder is the current one, and `path` is in place; it may
        change both. Raises `TemplateFailed` if there is no such configuration.
        """
        from pytest_warmstack.postgres.template.child import database_url
        from pytest_warmstack.postgres.template.child.configuration import Configuration as Made
        from pytest_warmstack.postgres.template.child.failures import BuildFailure
        from pytest_warmstack.postgres.template.child.recorder import Recorder
        from pytest_warmstack.postgres.template.errors import Failure, TemplateFailed

        alembic = describe(self.configuration, self.settings)
        url = database_url.url(alembic, url_parts(self.endpoint, self.database))
        try:
            config = Made(alembic, url, Recorder(self.root, [], guard=None)).make()
        except BuildFailure as error:
            name = self.configuration.name
            raise TemplateFailed.bad_alembic(Failure(str(error)), config=name) from error
        if config is None:
            raise TemplateFailed.no_config(function=self.configuration.function)
        return config, database_url.variables(
            self.settings.env, url, {**os.environ, **originals.variables}
        )
