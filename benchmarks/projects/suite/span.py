"""Write how long it takes from the begin of the first test to the end of the last one."""

import os
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

times: list[float] = []


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol() -> Generator[None, Any, Any]:
    """Note the time before and after a test."""
    times.append(time.perf_counter())
    result = yield
    times.append(time.perf_counter())
    return result


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish() -> None:
    """Write the seconds; a process without tests, such as the controller of xdist, has none."""
    if times:
        Path(os.environ["BENCH_SPAN"]).write_text(str(times[-1] - times[0]))
