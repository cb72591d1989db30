import pytest
import redis as sync_redis
import redis.asyncio as aredis


@pytest.fixture(scope="session")
def notifications(redis_container):
    client = sync_redis.Redis.from_url(redis_container.get_connection_url())
    client.config_set("notify-keyspace-events", "Ex")
    client.close()


@pytest.mark.parametrize("n", range(3))
async def test_expiry_is_noticed(notifications, redis_client, redis_url, n):
    db = redis_client.connection_pool.connection_kwargs.get("db", 0)
    listener = aredis.Redis.from_url(redis_url)
    pubsub = listener.pubsub()
    await pubsub.subscribe(f"__keyevent@{db}__:expired")
    await redis_client.set("session:1", "x", px=50)
    got = None
    for _ in range(30):
        message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=0.1)
        if message:
            got = message["data"]
            break
    await pubsub.aclose()
    await listener.aclose()
    assert got == b"session:1"
