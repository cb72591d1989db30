"""What a `Config` that was made in code says, so that two of them can be compared."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from alembic.config import Config
from sqlalchemy import URL, make_url

from pytest_warmstack.postgres.template.dependencies import related_options, sections
from pytest_warmstack.servers.identity import fingerprint


def digest(config: Config, url: str) -> str:
    """Return the digest of all values in *config*, empty if it holds more than values.

    Whatever is of the template's *url* or of the project's folder counts as that, since another
    build has others.
    """
    if type(config) is not Config:
        return ""
    said = {
        "file": config.config_file_name,
        "section": config.config_ini_section,
        "ini": sections(config.file_config),
        # Alembic 1.16 and later.
        "toml": related_options(getattr(config, "toml_alembic_config", {})),
        "attributes": config.attributes,
        # Its command is a function; it is not the one that is run.
        "options": {**vars(config.cmd_opts), "cmd": ""} if config.cmd_opts else {},
    }
    place = make_url(url)
    own = (url, place.password, place.database, f"{place.host}:{place.port}", str(Path.cwd()))
    own_text = re.compile("|".join(re.escape(str(each)) for each in own if each))
    try:
        return fingerprint(json.dumps(_plain(said, own_text), sort_keys=True))
    except TypeError:
        return ""


def _plain(value: Any, own: re.Pattern[str]) -> Any:
    """Return *value* as JSON can hold it, apart from other kinds; raise TypeError for objects."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, URL):
        value = value.render_as_string(hide_password=False)
    if isinstance(value, str | PurePath):
        return [type(value).__name__, own.sub("\0", str(value))]
    if isinstance(value, Mapping):
        return {str(key): _plain(each, own) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, own) for each in value]
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(_plain(each, own)) for each in value)
    raise TypeError(type(value))
