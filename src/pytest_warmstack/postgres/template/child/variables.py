"""Finds the variables that lead the project's code to its database, for the advice of an error."""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from pytest_warmstack.placeholders import LIBPQ, placeholder_of
from pytest_warmstack.postgres.template.child.failures import is_project_file

_UNSET: Final = ("KeyError", "ValidationError", "ArgumentError", "NoSuchModuleError")
"""Exceptions of code that misses a URL in the environment."""

_READS: Final = re.compile(
    r"(?:environ\s*\[|environ\.get\(|getenv\(|\benv(?:\.\w+)?\(|\bconfig\()\s*[\"']([A-Za-z]\w*)[\"']"
)
"""Matches Python code that reads a variable, even with django-environ, environs or decouple."""

_ENVIRON_MODULES: Final = frozenset({"os", "collections.abc", "_collections_abc"})
"""The modules that implement `os.environ`."""


class Variables:
    """Records the variables that code reads one by one; copying `os.environ` doesn't count."""

    def __init__(self) -> None:
        self.read: list[str] = []
        self._copied: set[str] = set()

    def watch(self) -> None:
        """Begin to record. Python encodes the name of a variable whenever code reads it."""
        environ: Any = os.environ
        encode, decode = environ.encodekey, environ.decodekey

        def encodekey(name: str) -> Any:
            if name in self._copied:
                self._copied.discard(name)
            elif name not in self.read and not (name in LIBPQ and _is_driver_reading()):
                self.read.append(name)
            return encode(name)

        def decodekey(name: Any) -> str:
            decoded: str = decode(name)
            self._copied.add(decoded)
            return decoded

        environ.encodekey, environ.decodekey = encodekey, decodekey

    def wanted(
        self, error: BaseException | None, own: Sequence[str], *, refused: bool
    ) -> dict[str, str]:
        """Return the variables that would lead the project's code to its database, with values.

        A value has the placeholders of the database, or is one that the code accepts. *error* is
        the exception of the code. If a connection was *refused*, these are the variables that name
        a database; otherwise those that are missing, according to *error*. *own* are the lines
        that already set variables.
        """
        missing = [*_missing_fields(error)]
        named = [*missing, *self.read, *_in_source(error)]
        if refused:
            found = [name for name in (*named, *_fields()) if "{" in placeholder_of(name)]
        else:
            unset = [name for name in named if name not in os.environ]
            found = [
                name for name in unset if name in missing or re.search(rf"\b{name}\b", str(error))
            ]
            if found or type(error).__name__ in _UNSET:
                found += filter(placeholder_of, unset)
        known = {line.partition("=")[0] for line in own}
        return {name: _value(name) for name in dict.fromkeys(found) if name not in known}


def _value(variable: str) -> str:
    """Return a value for *variable* that suits its name and the type of its field."""
    for model in _models():
        for name, field in model.model_fields.items():
            if variable in _names(model, name):
                found = _sample(_schema(field.annotation), variable)
                return found if isinstance(found, str) else json.dumps(found, default=str)
    return placeholder_of(variable) or "test"


def _schema(annotation: Any) -> dict[str, Any]:
    """Return the JSON schema of a type, or an empty one."""
    with suppress(Exception):  # Some types, such as functions, have none.
        schema: dict[str, Any] = sys.modules["pydantic"].TypeAdapter(annotation).json_schema()
        return schema
    return {}


def _sample(schema: dict[str, Any], name: str, defs: Any = None) -> Any:
    """Return a value that *schema* allows, for the variable or field called *name*."""
    defs = schema.get("$defs", defs)
    schema = next((each for each in schema.get("anyOf", ()) if each != {"type": "null"}), schema)
    schema = defs[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type")
    if kind in {"boolean", "array"}:
        return True if kind == "boolean" else []
    if kind == "object":
        required = schema.get("required", ())
        return {e: _sample(schema["properties"][e], f"{name}_{e}", defs) for e in required}
    if kind in {"integer", "number"}:
        return placeholder_of(name) or 1
    return placeholder_of(name) or (
        "http://localhost:1" if schema.get("format") == "uri" else "test"
    )


def _is_driver_reading() -> bool:
    """Return whether a driver, or the guard, reads the variable."""
    frame: Any = sys._getframe(2)  # noqa: SLF001 - as `traceback` does, and for a moment only
    while frame is not None and frame.f_globals.get("__name__") in _ENVIRON_MODULES:
        frame = frame.f_back
    return frame is not None and not is_project_file(frame.f_code.co_filename)


def _missing_fields(error: BaseException | None) -> Iterator[str]:
    """Yield the variables of the fields that are missing, according to pydantic."""
    errors = getattr(error, "errors", None)
    if type(error).__name__ != "ValidationError" or not callable(errors):
        return
    title = getattr(error, "title", "")
    model = next((each for each in _models() if each.__name__ == title), None)
    for each in errors():
        if str(each.get("type", "")).endswith("missing") and each.get("loc"):
            first, *rest = map(str, each["loc"])
            names = _names(model, first) if model is not None else [first.upper()]
            yield _delimiter(model).join([names[0], *map(str.upper, rest)])


def _models(base: Any = None) -> Iterator[Any]:
    """Yield the project's classes of pydantic-settings."""
    if base is None:
        base = getattr(sys.modules.get("pydantic_settings"), "BaseSettings", None)
    for each in base.__subclasses__() if base is not None else ():
        yield each
        yield from _models(each)


def _fields() -> Iterator[str]:
    """Yield all variables that these classes read, set or not."""
    for model in _models():
        # The classes in pydantic-settings itself are for command lines.
        if not model.__module__.startswith("pydantic_settings"):
            for name, field in model.model_fields.items():
                nested = getattr(field.annotation, "model_fields", {}) if _delimiter(model) else {}
                for below in nested:
                    yield f"{_names(model, name)[0]}{_delimiter(model)}{below.upper()}"
                yield from () if nested else _names(model, name)


def _names(model: Any, name: str) -> list[str]:
    """Return the variables that set the field *name* of a class of settings."""
    alias = getattr(model.model_fields.get(name), "validation_alias", None)
    choices = [str(each) for each in getattr(alias, "choices", [alias]) if isinstance(each, str)]
    if choices or name not in model.model_fields:  # pydantic's errors name a field by its alias.
        return [each.upper() for each in choices or [name]]
    return [f"{model.model_config.get('env_prefix') or ''}{name}".upper()]


def _delimiter(model: Any) -> str:
    return str((model is not None and model.model_config.get("env_nested_delimiter")) or "")


def _in_source(error: BaseException | None) -> Iterator[str]:
    """Yield the variables in the files of *error*'s traceback: more of them may be missing."""
    stack = traceback.extract_tb(error.__traceback__ if error else None)
    for file in dict.fromkeys(frame.filename for frame in stack):
        if is_project_file(file) and Path(file).is_file():
            yield from _READS.findall(Path(file).read_text(encoding="utf-8", errors="replace"))
