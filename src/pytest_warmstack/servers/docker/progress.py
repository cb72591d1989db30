"""How far a pull has come, told from the lines that a Docker engine writes about it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

EVERY: Final = 3.0
"""Seconds between two lines about a pull."""

_DOWNLOADED: Final = frozenset({"Download complete", "Extracting", "Pull complete"})
_KNOWN: Final = _DOWNLOADED | {"Pulling fs layer", "Waiting", "Downloading", "Verifying Checksum"}
"""What the engine says of a layer that was not there before."""


class Progress:
    """The layers of an image that is being pulled, and what is here of each.

    The engine tells a layer's size only when it has begun to fetch it, and of a small one never.
    """

    def __init__(self, image: str, now: float) -> None:
        self._image = image
        self._begin = self._told = now
        self._layers: dict[str, tuple[int, int]] = {}
        self._done: set[str] = set()

    def note(self, line: Mapping[str, Any], now: float) -> str | None:
        """Take in one *line* of the engine's; return what is to be said by now, if anything."""
        layer, status = str(line.get("id", "")), line.get("status", "")
        if status in _KNOWN:
            here, size = self._layers.setdefault(layer, (0, 0))
            detail = line.get("progressDetail") or {}
            if status == "Downloading":
                rest = max(detail.get("total", 0), 0)
                size = max(size, rest)
                # After a connection was cut, the engine tells of what was missing then. (And at the
                # cut that all is here: so this may go back.)
                here = size - rest + detail.get("current", 0)
            elif status in _DOWNLOADED:
                here = size
            self._layers[layer] = here, size
        if status == "Pull complete":
            self._done.add(layer)
        if now - self._told < EVERY or not self._layers:
            return None
        self._told = now
        here, size = (sum(each) for each in zip(*self._layers.values(), strict=True))
        layers = f"{len(self._done)} of {len(self._layers)} layers are here"
        return f"pulling {self._image}: {_mb(here)} of {_mb(size)} MB, {layers}"

    def end(self, now: float) -> str:
        """Return what is to be said when all is here."""
        size = sum(size for _, size in self._layers.values())
        return f"pulled {self._image}: {_mb(size)} MB in {now - self._begin:.1f} s"


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f}"
