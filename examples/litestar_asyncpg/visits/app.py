import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from litestar import Litestar, Request, get, post
from litestar.datastructures import State

DATABASE_URL = os.environ["DATABASE_URL"]


@asynccontextmanager
async def database(app: Litestar) -> AsyncIterator[None]:
    async with asyncpg.create_pool(DATABASE_URL, min_size=1, max_size=5) as pool:
        app.state.pool = pool
        yield


@post("/visits")
async def visit(request: Request[Any, Any, State], state: State) -> int:
    visited = await request.json()
    query = "INSERT INTO visits (page) VALUES ($1) RETURNING id"
    visit_id: int = await state.pool.fetchval(query, visited["page"])
    return visit_id


@get("/visits")
async def count(state: State) -> dict[str, int]:
    rows = await state.pool.fetch("SELECT page, count(*) FROM visits GROUP BY page ORDER BY page")
    return dict(rows)


app = Litestar([visit, count], lifespan=[database])
