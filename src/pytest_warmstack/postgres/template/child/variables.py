"""Which variables the project's code reads, for the advice when it can't reach its database."""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pytest_warmstack.placeholders import LIBPQ, placeholder_of
from pytest_warmstack.postgres.template.child.failures import is_own

_UNSET: Final = ("KeyError", "ValidationError", "ArgumentError", "NoSuchModuleError")
"""What code raises that looks for a URL in the environment and finds none."""

_NAMED: Final = re.compile(
    r"(?:environ\s*\[|environ\.get\(|getenv\(|\benv(?:\.\w+)?\(|\bconfig\()\s*[\"']([A-Za-z]\w*)[\"']"
)
"""A variable's name in Python code that reads it, with the libraries that are made for it."""


_SAMPLES: Final[tuple[tuple[Any, Any], ...]] = (
    (bool, True),
    ((list, tuple, set, frozenset), []),
    (dict, {}),
)
"""A value for each type that has no use for a text."""

_PYTHONS: Final = frozenset({"os", "collections.abc", "_collections_abc"})
"""The modules that `os.environ` is made of."""


class Variables:
    """What is read of `os.environ` from now on, one name at a time; a copy of all is no read."""

    def __init__(self) -> None:
        self.read: list[str] = []
        self._copied: set[str] = set()

    def watch(self) -> None:
        """Begin to listen. Every way to read a variable encodes its name first."""
        environ: Any = os.environ
        encode, decode = environ.encodekey, environ.decodekey

        def encodekey(name: str) -> Any:
            if name in self._copied:
                self._copied.discard(name)
            elif name not in self.read and not (name in LIBPQ and _is_drivers()):
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

        A value has the database's placeholders, or is one that the code can take.
        *error* is what it raised. If it was *refused*, since it was about to connect elsewhere,
        they are those that say where; else those that it missed, if that is what it says.
        *own* are the lines that set some already.
        """
        named = [*_missing_fields(error), *self.read, *_in_source(error)]
        if refused:
            found = [name for name in (*named, *_fields()) if "{" in placeholder_of(name)]
        else:
            found = self._missing(error, named)
        known = {line.partition("=")[0] for line in own}
        return {name: _value(name) for name in dict.fromkeys(found) if name not in known}

    def _missing(self, error: BaseException | None, named: Sequence[str]) -> list[str]:
        if error is None:
            return []
        fields, text = set(_missing_fields(error)), str(error)
        said = [
            name
            for name in named
            if name not in os.environ and (name in fields or re.search(rf"\b{name}\b", text))
        ]
        if not said and type(error).__name__ not in _UNSET:
            return []
        return [*said, *(each for each in named if each not in os.environ and placeholder_of(each))]


def _value(variable: str) -> str:
    """Return what to write for *variable*, as far as its name and the settings' types tell."""
    for model in _models():
        for name, field in model.model_fields.items():
            if variable in _names(model, name):
                found = _sample(field.annotation, variable)
                return found if isinstance(found, str) else json.dumps(found, default=str)
    return placeholder_of(variable) or "test"


def _sample(annotation: Any, name: str) -> Any:
    """Return a value of the type *annotation* for the variable or field called *name*."""
    kinds = [each for each in get_args(annotation) if each is not type(None)]
    origin = get_origin(annotation)
    if origin is Literal:
        return kinds[0]
    if origin in {Union, UnionType, Annotated}:
        return _sample(kinds[0], name)
    kind = origin or annotation
    fields = getattr(kind, "model_fields", None)
    if fields is not None:
        required = {each: field for each, field in fields.items() if field.is_required()}
        return {each: _sample(required[each].annotation, f"{name}_{each}") for each in required}
    if not isinstance(kind, type):
        return placeholder_of(name) or "test"
    if issubclass(kind, Enum):
        return next(iter(kind)).value
    for types, value in _SAMPLES:
        if issubclass(kind, types):
            return value
    if issubclass(kind, int | float):
        return placeholder_of(name) or 1
    is_url = kind.__name__.endswith(("Url", "Dsn")) and kind.__module__.startswith("pydantic")
    return placeholder_of(name) or ("http://localhost:1" if is_url else "test")


def _is_drivers() -> bool:
    """Tell whether the code that reads a variable is a driver's, or the guard's."""
    frame: Any = sys._getframe(2)  # noqa: SLF001 - as `traceback` does, and for a moment only
    while frame is not None and frame.f_globals.get("__name__") in _PYTHONS:
        frame = frame.f_back
    return frame is not None and not is_own(frame.f_code.co_filename)


def _missing_fields(error: BaseException | None) -> Iterator[str]:
    """Yield the variables for the fields that pydantic says are missing."""
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
    """Yield the classes of pydantic-settings that the project has made."""
    if base is None:
        base = getattr(sys.modules.get("pydantic_settings"), "BaseSettings", None)
    for each in base.__subclasses__() if base is not None else ():
        yield each
        yield from _models(each)


def _fields() -> Iterator[str]:
    """Yield the variables that these classes read, whether they are set or not."""
    for model in _models():
        # Those of pydantic-settings itself are for command lines.
        if not model.__module__.startswith("pydantic_settings"):
            for name, field in model.model_fields.items():
                nested = getattr(field.annotation, "model_fields", {}) if _delimiter(model) else {}
                for below in nested:
                    yield f"{_names(model, name)[0]}{_delimiter(model)}{below.upper()}"
                yield from () if nested else _names(model, name)


def _names(model: Any, name: str) -> list[str]:
    """Return the variables that the field *name* of a class of settings is read from."""
    alias = getattr(model.model_fields.get(name), "validation_alias", None)
    choices = [str(each) for each in getattr(alias, "choices", [alias]) if isinstance(each, str)]
    if choices or name not in model.model_fields:  # An error names a field by its alias.
        return [each.upper() for each in choices or [name]]
    return [f"{model.model_config.get('env_prefix') or ''}{name}".upper()]


def _delimiter(model: Any) -> str:
    return str((model is not None and model.model_config.get("env_nested_delimiter")) or "")


def _in_source(error: BaseException | None) -> Iterator[str]:
    """Yield the variables that the files name which *error* passed through: more may be missing."""
    files = dict.fromkeys(
        frame.filename for frame in traceback.extract_tb(error.__traceback__ if error else None)
    )
    for file in files:
        if is_own(file) and Path(file).is_file():
            yield from _NAMED.findall(Path(file).read_text(encoding="utf-8", errors="replace"))
