from collections.abc import AsyncIterator

from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from orders.settings import settings

engine = create_async_engine(settings.database_url)
Session = async_sessionmaker(engine, expire_on_commit=False)
cache = Redis.from_url(settings.redis_url)


async def get_session() -> AsyncIterator[AsyncSession]:
    async with Session() as session:
        yield session
