"""The values of a Config that is made in code: the same in another build, another when changed."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic.config import Config
from sqlalchemy import make_url

from pytest_warmstack.postgres.template.child.configuration import digest

ONE = "postgresql+psycopg://postgres:s3cret@127.0.0.1:5001/warmstack_b_1"
TWO = "postgresql+psycopg://postgres:t0psecret@127.0.0.1:5002/warmstack_b_2"

Change = Callable[[Config, str], object]


def made(change: Change, url: str) -> str:
    """Return the digest of a configuration that *change* was made to."""
    config = Config()
    config.set_main_option("script_location", str(Path.cwd() / "migrations"))
    change(config, url)
    return digest(config, url)


def nothing(_config: Config, _url: str) -> None:
    """Change nothing."""


def attribute(value: Any) -> Change:
    """Return a change of an attribute."""
    return lambda config, _url: config.attributes.update(shop=value)


@pytest.mark.parametrize(
    "change",
    [
        nothing,
        lambda config, url: config.set_main_option("sqlalchemy.url", url),
        lambda config, url: config.set_main_option("shop.url", url.replace("+psycopg", "")),
        lambda config, url: config.attributes.update(url=url),
        lambda config, url: config.attributes.update(url=make_url(url)),
        lambda config, _url: config.set_section_option("logger_root", "level", "INFO"),
    ],
)
def test_another_build_with_another_url_has_the_same_values(change: Change) -> None:
    """Nor does it matter where the URL of the template stands."""
    assert made(change, ONE) == made(change, TWO) != ""


def test_another_checkout_has_the_same_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths below the project's folder are the project's."""
    here = made(nothing, ONE)
    monkeypatch.chdir(tmp_path)

    assert made(nothing, ONE) == here


def test_each_value_counts() -> None:
    """Of whatever kind it is, and wherever it stands."""
    plain = [1, 2, True, None, "1", "a", ["a"], ["a", "b"], {"a": 1}, {"a": 2}, {"a", "b"}, 1.5]
    changes: list[Change] = [
        nothing,
        *map(attribute, plain),
        *(attribute(Path(each)) for each in "ab"),
        lambda config, _url: config.set_main_option("tenant", "a"),
        lambda config, _url: config.set_main_option("tenant", "b"),
        lambda config, _url: config.set_section_option("shop", "tenant", "a"),
        lambda config, _url: setattr(config, "config_ini_section", "shop"),
        lambda config, _url: setattr(config, "cmd_opts", Namespace(x=["a=1"])),
        lambda config, _url: setattr(config, "cmd_opts", Namespace(x=["a=2"], cmd=made)),
    ]

    digests = [made(each, ONE) for each in changes]

    assert len(set(digests)) == len(digests)
    assert "" not in digests


@pytest.mark.parametrize("value", [object(), made, Path, [object()], {"a": {"b": made}}, {made}])
def test_what_holds_more_than_values_has_none(value: Any) -> None:
    """Whether such a thing has changed can't be seen."""
    assert made(attribute(value), ONE) == ""


def test_a_configuration_of_another_class_has_none() -> None:
    """It may answer in other ways than by its values."""
    assert digest(type("Special", (Config,), {})(), ONE) == ""
