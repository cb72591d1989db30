"""The tasks; `taskiq worker mailer.tasks:broker` runs them."""

import os
from datetime import UTC, datetime

from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from mailer.database import Session
from mailer.models import Mail

results: RedisAsyncResultBackend[int] = RedisAsyncResultBackend(os.environ["REDIS_URL"])
broker = RedisStreamBroker(os.environ["REDIS_URL"]).with_result_backend(results)


@broker.task
async def send_mail(recipient: str) -> int:
    if "@" not in recipient:
        raise ValueError(f"{recipient} is not an address")
    async with Session() as session:
        mail = Mail(recipient=recipient, sent_at=datetime.now(UTC))
        session.add(mail)
        await session.commit()
        return mail.id
