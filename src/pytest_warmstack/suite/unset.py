"""What to write where the tests' own imports miss the variables that lead to a database."""

from __future__ import annotations

import json
from typing import Final

from pytest_warmstack.placeholders import filled, lines_for, placeholder_of
from pytest_warmstack.postgres.template.child.variables import Variables
from pytest_warmstack.settings import Settings

_NOWHERE: Final = {
    # asyncpg comes with us, and can stand for any driver, since nothing is connected to. On port 1
    # nothing listens: an engine that the tests forget to replace reaches no other database.
    "db_url": "postgresql+asyncpg://test:test@localhost:1/test",
    "db_host": "localhost",
    "db_port": "1",
    "db_user": "test",
    "db_password": "test",
    "db_name": "test",
}


def advice(error: BaseException, settings: Settings) -> str:
    """Return the lines that let an application be imported; empty if *error* is another one.

    They are told only if a variable of a database or of Redis is missing: what else an application
    misses has nothing to do with this plugin.
    """
    # pytest wraps what a conftest file raises.
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        error = cause
    missing = Variables().wanted(error, (), refused=False)
    if not any(placeholder_of(name) for name in missing):
        return ""
    lines = [
        f"The application reads {', '.join(missing)} when it is imported. "
        "Write at the top of conftest.py, before it is imported:",
        "import os",
    ]
    for name, value in missing.items():
        lines.append(f'os.environ.setdefault("{name}", {json.dumps(filled(value, _NOWHERE))})')
    own = {line.partition("=")[0] for line in settings.env}
    if others := {name: value for name, value in missing.items() if name not in own}:
        told = lines_for(others, file=settings.file, more=bool(settings.env))
        lines.append(f"and, for its migrations, {told}")
    lines.append(
        "Tests reach their own database by db_engine or db_url, and Redis by redis_client."
    )
    return "\n".join(lines)
