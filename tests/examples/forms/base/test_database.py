"""The one test of every project here; it leaves what it finds in a database of its own."""

import json
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

HERE = Path(__file__).parent


async def test_what_is_in_the_database(db_session: AsyncSession) -> None:
    """The query can be asked; its rows are left in a file."""
    rows = await db_session.execute(text((HERE / "query.sql").read_text()))
    (HERE / "rows.json").write_text(json.dumps([list(row) for row in rows]))
