"""The hooks that others may implement, in a conftest.py or in a plugin of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_warmstack.postgres.template.template_layer import TemplateLayer


@pytest.hookspec
def pytest_warmstack_template_layers(config: pytest.Config) -> list[TemplateLayer] | None:
    """Return layers to be applied to the template, after the migrations and before the seed."""
