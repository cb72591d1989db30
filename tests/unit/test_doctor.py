"""`warmstack doctor` ends with one sentence: fit, or what to do first."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_warmstack.cli.doctor import verdict
from pytest_warmstack.options import RuntimeName, Settings

URLS = {"postgres_url": "postgresql://a@b/c", "redis_url": "redis://b"}
DOCKER, EMBEDDED, EXTERNAL = RuntimeName.DOCKER, RuntimeName.EMBEDDED, RuntimeName.EXTERNAL


@pytest.mark.parametrize(
    ("settings", "own", "broken", "text"),
    [
        ({}, [], {}, "fit: a run would use docker"),
        ({}, [], {DOCKER: ["start Docker"]}, "fit: a run would use embedded"),
        ({"runtime": EMBEDDED}, [], {DOCKER: ["x"]}, "fit: a run would use embedded"),
        (URLS, [], {DOCKER: ["x"], EMBEDDED: ["y"]}, "fit: a run would use the external servers"),
        ({}, ["correct it:\n  here", "y"], {}, "not fit: first correct it: here"),
        (URLS, [], {EXTERNAL: ["start it", "z"]}, "not fit: first start it"),
        (URLS, ["pip install alembic"], {EXTERNAL: ["x"]}, "not fit: first pip install alembic"),
        ({"runtime": DOCKER}, [], {DOCKER: ["start it"]}, "not fit: first start it"),
        (
            {},
            [],
            {DOCKER: ["start Docker", "x"], EMBEDDED: ["install it"]},
            "not fit: first start Docker, or install it",
        ),
        (
            {"runtime": EXTERNAL, "postgres_url": URLS["postgres_url"]},
            [],
            {},
            "not fit: first set WARMSTACK_REDIS_URL=URL, or use another runtime than external",
        ),
        (
            {"runtime": EXTERNAL},
            [],
            {},
            "not fit: first set WARMSTACK_POSTGRES_URL=URL, or use another runtime than external",
        ),
    ],
)
def test_the_last_line_is_one_sentence(
    settings: dict[str, Any], own: list[str], broken: dict[RuntimeName, list[str]], text: str
) -> None:
    """Whatever was found; what is wrong in the project comes before what the machine lacks."""
    ways = {each: broken.get(each, []) for each in (EXTERNAL, DOCKER, EMBEDDED)}

    assert verdict(Settings(**settings), own, ways) == (text, int(text.startswith("not")))
