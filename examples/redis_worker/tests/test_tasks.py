"""The worker runs in the test's process, or in one of its own as in production."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession
from taskiq.api import run_receiver_task

from mailer.models import Mail
from mailer.tasks import broker, send_mail


@pytest.fixture
async def queue() -> AsyncIterator[None]:
    await broker.startup()
    yield
    await broker.shutdown()


@pytest.fixture
async def worker(queue: None) -> AsyncIterator[None]:
    task = asyncio.create_task(run_receiver_task(broker))
    yield
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


@pytest.fixture
def worker_process() -> Iterator[None]:
    command = [sys.executable, "-m", "taskiq", "worker", "--workers", "1", "mailer.tasks:broker"]
    process = subprocess.Popen(command)
    yield
    process.terminate()
    process.wait(timeout=30)


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("recipient", ["ada@example.org", "grace@example.org"])
async def test_a_mail_is_recorded(db_session: AsyncSession, recipient: str) -> None:
    task = await send_mail.kiq(recipient)
    result = await task.wait_result(timeout=10)

    assert result.return_value == 1
    assert (await db_session.scalars(select(Mail.recipient))).all() == [recipient]


@pytest.mark.usefixtures("worker")
async def test_a_wrong_address_is_refused(db_session: AsyncSession) -> None:
    task = await send_mail.kiq("nobody")
    result = await task.wait_result(timeout=10)

    assert isinstance(result.error, ValueError)
    assert (await db_session.scalars(select(Mail))).all() == []


@pytest.mark.usefixtures("queue", "worker_process")
async def test_a_worker_in_another_process(db_session: AsyncSession) -> None:
    task = await send_mail.kiq("ada@example.org")
    result = await task.wait_result(timeout=30)

    assert result.return_value == 1
    assert (await db_session.scalars(select(Mail.recipient))).all() == ["ada@example.org"]
