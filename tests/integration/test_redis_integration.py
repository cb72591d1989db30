"""Redis as a test meets it: real, and empty."""

import asyncio
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError, WatchError

from shop import service

pytestmark = [pytest.mark.integration, pytest.mark.asyncio]

# A test of isolation runs once per turn, and each turn leaves the same thing
# behind, so whichever runs second fails if anything of the first one is left.
in_turns = pytest.mark.parametrize("turn", ["first", "second", "third"])


# Connections


async def test_the_server_answers(redis_client: Redis) -> None:
    """A ping is answered."""
    assert await redis_client.ping()


async def test_the_server_speaks_redis_7(redis_client: Redis, redis_container: Any) -> None:
    """The server's major version is 7; somebody else's has the one that it told us."""
    server = await redis_client.info("server")

    assert server["redis_version"] == redis_container.version
    assert server["redis_version"].split(".")[0] == "7" or redis_container.runtime == "external"


async def test_the_url_makes_a_second_client_of_the_same_database(
    redis_client: Redis, redis_url: str
) -> None:
    """What one client writes, a client made from the URL reads."""
    await redis_client.set("greeting", "hello")

    async with Redis.from_url(redis_url, decode_responses=True) as other:
        assert await other.get("greeting") == "hello"


async def test_the_database_lives_in_the_container_of_the_run(
    redis_url: str, redis_container: Any
) -> None:
    """The URL leads to the host and port of the session's container."""
    url = urlsplit(redis_url)

    assert url.hostname == redis_container.get_container_host_ip()
    assert url.port == int(redis_container.get_exposed_port(6379))


# Kinds of value


async def test_a_string_comes_back_as_bytes(redis_client: Redis) -> None:
    """A value is returned byte for byte, and an absent one as None."""
    await redis_client.set("title", "Große Erwartungen")

    assert await redis_client.get("title") == "Große Erwartungen".encode()
    assert await redis_client.get("author") is None


async def test_a_counter_counts(redis_client: Redis) -> None:
    """Increments add up, from nothing."""
    await redis_client.incr("visits")

    assert await redis_client.incrby("visits", 41) == 42


async def test_a_hash_keeps_fields(redis_client: Redis) -> None:
    """Fields are written together and read one by one or all at once."""
    await redis_client.hset("book:1", mapping={"title": "Dune", "copies": 3})

    assert await redis_client.hget("book:1", "title") == b"Dune"
    assert await redis_client.hgetall("book:1") == {b"title": b"Dune", b"copies": b"3"}


async def test_a_list_is_a_queue(redis_client: Redis) -> None:
    """What is pushed first is popped first."""
    await redis_client.rpush("parcels", "a", "b", "c")

    assert await redis_client.lpop("parcels") == b"a"
    assert await redis_client.lrange("parcels", 0, -1) == [b"b", b"c"]


async def test_a_set_keeps_one_of_each(redis_client: Redis) -> None:
    """A member added twice is there once, and sets intersect."""
    await redis_client.sadd("read:ada", "Dune", "Dune", "Emma")
    await redis_client.sadd("read:bob", "Emma")

    assert await redis_client.scard("read:ada") == 2
    assert await redis_client.sinter(["read:ada", "read:bob"]) == {b"Emma"}


async def test_a_sorted_set_ranks(redis_client: Redis) -> None:
    """Members are returned by score, the highest first."""
    await redis_client.zadd("sales", {"Emma": 2, "Dune": 5, "Ulysses": 1})

    assert await redis_client.zrange("sales", 0, 1, desc=True) == [b"Dune", b"Emma"]


# Time


async def test_a_cart_is_kept_for_a_week(redis_client: Redis) -> None:
    """Adding a book sets the cart's time to live."""
    await service.add_to_cart(redis_client, customer_id=1, book_id=7)

    left = timedelta(milliseconds=await redis_client.pttl("cart:1"))
    assert service.CART_LIFETIME - timedelta(minutes=1) < left <= service.CART_LIFETIME


async def test_a_rate_limit_does_not_move_its_window(redis_client: Redis) -> None:
    """A request within the window leaves the end of the window where it was."""
    await service.allow(redis_client, "ada", limit=9, window=timedelta(hours=1))
    await service.allow(redis_client, "ada", limit=9, window=timedelta(hours=2))

    assert 0 < await redis_client.ttl("rate:ada") <= 3600


async def test_an_expired_key_is_gone(redis_client: Redis) -> None:
    """A key with a millisecond to live is soon absent."""
    await redis_client.set("flash", "!", px=1)

    async with asyncio.timeout(5):
        while await redis_client.exists("flash"):
            pass

    assert await redis_client.get("flash") is None


# Several commands as one


async def test_a_pipeline_answers_all_its_commands_in_order(redis_client: Redis) -> None:
    """One round trip brings the answer of each command."""
    async with redis_client.pipeline(transaction=False) as pipe:
        pipe.set("copies", 3)
        pipe.decr("copies")
        pipe.get("copies")
        answers = await pipe.execute()

    assert answers == [True, 2, b"2"]


async def test_a_transaction_is_dropped_when_its_key_was_changed(redis_client: Redis) -> None:
    """A watched key that somebody else writes makes the transaction do nothing."""
    await redis_client.set("copies", 3)

    async with redis_client.pipeline() as pipe:
        await pipe.watch("copies")
        await redis_client.set("copies", 1)
        pipe.multi()
        pipe.set("copies", 2)
        with pytest.raises(WatchError):
            await pipe.execute()

    assert await redis_client.get("copies") == b"1"


async def test_a_script_runs_on_the_server(redis_client: Redis) -> None:
    """A Lua script reads and writes in one step, and refuses what it must."""
    take = redis_client.register_script("""
        if tonumber(redis.call('GET', KEYS[1])) < tonumber(ARGV[1]) then
            return redis.error_reply('OUTOFSTOCK too few copies')
        end
        return redis.call('DECRBY', KEYS[1], ARGV[1])
    """)
    await redis_client.set("copies", 3)

    assert await take(keys=["copies"], args=[2]) == 1
    with pytest.raises(ResponseError, match="OUTOFSTOCK"):
        await take(keys=["copies"], args=[2])


# Messages


async def test_a_subscriber_receives_what_is_published(redis_client: Redis) -> None:
    """A message arrives at the one subscriber of its channel, and of no other.

    Channels are the whole server's, so this test's have names that no other process has.
    """
    mine = f"shipped:{uuid4()}"
    async with redis_client.pubsub() as subscriber, asyncio.timeout(10):
        await subscriber.subscribe(mine)
        confirmation = await subscriber.get_message(timeout=None)

        assert confirmation is not None
        assert confirmation["type"] == "subscribe"
        assert await redis_client.publish(f"refunded:{uuid4()}", "order 1") == 0
        assert await redis_client.publish(mine, "order 2") == 1
        message = await subscriber.get_message(timeout=None)

    assert message is not None
    assert (message["channel"], message["data"]) == (mine.encode(), b"order 2")


# Isolation


@in_turns
async def test_a_key_is_seen_by_its_own_test_only(turn: str, redis_client: Redis) -> None:
    """Every turn finds the database empty, and leaves the same key in it for good."""
    assert await redis_client.dbsize() == 0

    await redis_client.set("owner", turn)

    assert await redis_client.keys() == [b"owner"]
