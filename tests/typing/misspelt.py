"""Imports names that do not exist: a checker has to say so, and not take them for `Any`."""

from __future__ import annotations

from pytest_warmstack import ServerHandel  # type: ignore[attr-defined]

__all__ = ["ServerHandel"]
