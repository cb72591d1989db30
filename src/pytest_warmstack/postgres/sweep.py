"""Drops databases of ours that nobody holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from pytest_warmstack.background import sleep
from pytest_warmstack.postgres import Database, DatabaseName, State, sql
from pytest_warmstack.postgres.admin import databases_of
from pytest_warmstack.postgres.connections import IN_USE, Connection, Maintenance, retried
from pytest_warmstack.postgres.errors import StatementRefused

RENEWAL: Final = 0.25
"""Seconds for which a sweep spares what nobody holds: connections can be lost and made anew."""


_NO_RIGHT: Final = "42501"
"""SQLSTATE of a refusal for want of a right (documentation, appendix A)."""


async def sweep(
    janitor: Maintenance,
    doomed: Callable[[list[Database]], list[DatabaseName]],
    notes: Sequence[str] = (),
) -> list[DatabaseName]:
    """Drop what *doomed* picks of our databases and nobody holds a lock on; return what is gone.

    Before, execute *notes*, the statements that note which templates were just used.
    """
    for note in notes:
        # Another run may write the same at the same time; either is right.
        with suppress(StatementRefused):
            await janitor.execute(note)
    listed = databases_of(await janitor.fetch(sql.DATABASES))
    held = {row["key"] for row in await janitor.fetch(sql.HELD)}
    free = [name for name in doomed(listed) if name.lock_key not in held]
    owned = [name for name in free if name.state in {State.IN_USE, State.BUILDING}]
    dropped = [name for name in free if name not in owned and await _swept(janitor, name)]
    if owned:
        # Whoever lives and has only lost a connection holds its locks again by then.
        await sleep(RENEWAL)
    return dropped + [name for name in owned if await _swept(janitor, name)]


def meant(databases: Sequence[Database], project: str | None, idle: float) -> list[DatabaseName]:
    """Return the databases that belong to *project*, or to any, and were not used for *idle* s.

    A clone belongs to whom its template does; one without a template belongs to nobody.
    """
    templates = {
        each.name.fingerprint: each for each in databases if each.name.state is State.TEMPLATE
    }
    wanted = []
    for each in databases:
        origin = each if each.used else templates.get(each.name.fingerprint)
        unused = origin.unused if origin is not None else math.inf
        whose = origin.project if origin is not None else None
        if project in {None, whose} and unused >= idle:
            wanted.append(each.name)
    return wanted


async def _swept(maintenance: Maintenance, name: DatabaseName) -> bool:
    """Drop a database of ours, if nobody holds its lock; tell whether that was so.

    It may be gone since it was listed.
    """
    # Turn by turn, so that the drop of a test's clone need not wait for all of them.
    async with maintenance.turn() as janitor:
        if not await janitor.fetchval(f"SELECT pg_try_advisory_lock({name.lock_key})"):
            return False
        try:
            await unsealed_and_dropped(janitor, str(name))
        except StatementRefused as error:
            if error.state not in {IN_USE, _NO_RIGHT}:
                raise
            # The next run tries again. What another role has made, it alone can drop.
            return False
        finally:
            await janitor.fetchval(f"SELECT pg_advisory_unlock({name.lock_key})")
        return True


async def unsealed_and_dropped(janitor: Connection, name: str) -> None:
    """Drop a database, a template as well."""
    # Only if need be: to change one whose drop was interrupted ends the connection (PostgreSQL's
    # dbcommands.c, AlterDatabase); to drop it again does not.
    if await janitor.fetchval(sql.IS_TEMPLATE, name):
        await retried(janitor, sql.unseal(name))
    await retried(janitor, sql.drop(name))
