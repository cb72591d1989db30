"""An overview of a Redis server, for `warmstack status`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from pytest_warmstack.redis.connections import Admin
from pytest_warmstack.redis.leases import leased, reserved


@dataclass(frozen=True)
class LeaseFacts:
    """A lease: its databases, such as `1` or `1-3`, and the process that holds it."""

    databases: str
    holder: str


@dataclass(frozen=True)
class Overview:
    """The leases on one server, and the number of keys in each non-empty database.

    *development* has the numbers of the databases for development.
    """

    leases: list[LeaseFacts]
    keys: dict[int, int]
    development: list[int] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """Return the overview for JSON."""
        return asdict(self)

    def lines(self, _ago: Any, _size: Any) -> list[str]:
        """Return the overview as text."""
        lines = [f"database {each.databases} in use by {each.holder}" for each in self.leases]
        return [
            *(lines or ["no database in use"]),
            *(f"database {index} for development" for index in self.development),
        ]


def look(admin: Admin) -> Overview:
    """Return the overview of the server that *admin* is connected to."""
    leases = []
    for client in admin.clients():
        if (indexes := leased(client.name)) is not None:
            databases = "-".join(map(str, sorted({indexes[0], indexes[-1]})))
            holder = client.name.rpartition(":")[2].replace("process-", "process ")
            leases.append(LeaseFacts(databases, holder))
    return Overview(leases, admin.filled(), [*reserved(admin)])
