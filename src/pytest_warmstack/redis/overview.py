"""What is on a Redis of ours, for whoever wants to see it; nothing is changed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from pytest_warmstack.redis.admin import Admin
from pytest_warmstack.redis.leases import leased


@dataclass(frozen=True)
class LeaseFacts:
    """A lease: its databases, such as `1` or `1-3`, and the process that holds it."""

    databases: str
    holder: str


@dataclass(frozen=True)
class Overview:
    """The leases on one server, and how many keys there are in each database that has any."""

    leases: list[LeaseFacts] = field(default_factory=list)
    keys: dict[int, int] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Return it as what JSON can hold."""
        return asdict(self)

    def lines(self, _ago: Any, _size: Any) -> list[str]:
        """Return it in words."""
        if not self.leases:
            return ["no database in use"]
        return [f"database {each.databases} in use by {each.holder}" for each in self.leases]


def look(admin: Admin) -> Overview:
    """Return what is on the server that *admin* is connected to."""
    leases = []
    for client in admin.clients():
        if (indexes := leased(client.name)) is not None:
            first, last = indexes[0], indexes[-1]
            holder = client.name.rpartition(":")[2].replace("process-", "process ")
            leases.append(LeaseFacts(f"{first}" if first == last else f"{first}-{last}", holder))
    return Overview(leases, admin.filled())
