from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Response
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from orders.database import Session, cache, engine, get_session
from orders.models import Order, OrderIn, OrderOut


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    await cache.ping()
    yield
    await cache.aclose()
    await engine.dispose()


app = FastAPI(lifespan=lifespan)
Database = Annotated[AsyncSession, Depends(get_session)]


@app.post("/orders", status_code=201)
async def create_order(order: OrderIn, session: Database, tasks: BackgroundTasks) -> OrderOut:
    created = Order(**order.model_dump())
    session.add(created)
    await session.commit()
    tasks.add_task(confirm, created.id)
    return OrderOut.model_validate(created)


async def confirm(order_id: int) -> None:
    async with Session() as session:
        order = await session.get_one(Order, order_id)
        order.status = "confirmed"
        await session.commit()
    await cache.delete(f"order:{order_id}")


@app.get("/orders/{order_id}", response_model=OrderOut)
async def read_order(order_id: int, session: Database) -> Response:
    cached = await cache.get(f"order:{order_id}")
    if cached is None:
        order = await session.get(Order, order_id)
        if order is None:
            raise HTTPException(404, "There is no such order.")
        cached = OrderOut.model_validate(order).model_dump_json()
        await cache.set(f"order:{order_id}", cached, ex=60)
    return Response(cached, media_type="application/json")


@app.get("/orders")
async def count_orders(session: Database) -> dict[str, int]:
    return {"orders": await session.scalar(select(func.count(Order.id))) or 0}
