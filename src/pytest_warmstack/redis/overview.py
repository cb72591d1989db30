"""An overview of a Redis server, for `warmstack status`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pytest_warmstack.redis.connections import Admin
from pytest_warmstack.redis.leases import leased


@dataclass(frozen=True)
class LeaseFacts:
    """A lease: its databases, such as `1` or `1-3`, and the process that holds it."""

    databases: str
    holder: str


@dataclass(frozen=True)
class Overview:
    """The leases on one server, and the number of keys in each non-empty database."""

    leases: list[LeaseFacts]
    keys: dict[int, int]

    def plain(self) -> dict[str, Any]:
        """Return the overview for JSON."""
        return asdict(self)

    def lines(self, _ago: Any, _size: Any) -> list[str]:
        """Return the overview as text."""
        if not self.leases:
            return ["no database in use"]
        return [f"database {each.databases} in use by {each.holder}" for each in self.leases]


def look(admin: Admin) -> Overview:
    """Return the overview of the server that *admin* is connected to."""
    leases = []
    for client in admin.clients():
        if (indexes := leased(client.name)) is not None:
            databases = "-".join(map(str, sorted({indexes[0], indexes[-1]})))
            holder = client.name.rpartition(":")[2].replace("process-", "process ")
            leases.append(LeaseFacts(databases, holder))
    return Overview(leases, admin.filled())
