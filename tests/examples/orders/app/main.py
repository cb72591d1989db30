from collections.abc import AsyncIterator
from typing import Annotated

import redis.asyncio
from fastapi import Depends, FastAPI
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from app import settings
from app.models import Order

engine = create_async_engine(settings.DATABASE_URL)
events = redis.asyncio.from_url(settings.REDIS_URL)


async def get_session() -> AsyncIterator[AsyncSession]:
    async with async_sessionmaker(engine, expire_on_commit=False)() as session:
        yield session


def get_redis() -> redis.asyncio.Redis:
    return events


app = FastAPI()


@app.post("/orders/{item}")
async def order(
    item: str,
    session: Annotated[AsyncSession, Depends(get_session)],
    stream: Annotated[redis.asyncio.Redis, Depends(get_redis)],
) -> int:
    made = Order(item=item)
    session.add(made)
    await session.commit()
    await stream.xadd("orders", {"id": made.id})
    return made.id
