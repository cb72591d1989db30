"""Which lines of PostgreSQL's log belong to a database, and what they say together."""

from __future__ import annotations

from datetime import UTC, datetime

from pytest_warmstack.postgres.server_log import messages

LOG = """\
2026-03-01 10:00:00.100 UTC [7] LOG:  database system is ready to accept connections
2026-03-01 10:00:01.100 UTC [8] mine ERROR:  an earlier test
2026-03-01 10:00:01.100 UTC [8] mine STATEMENT:  SELECT 0
2026-03-01 10:00:02.100 UTC [8] mine ERROR:  first
	and second line
2026-03-01 10:00:02.100 UTC [9] mine WARNING:  in between
2026-03-01 10:00:02.100 UTC [8] other ERROR:  another database
2026-03-01 10:00:02.100 UTC [8] mine DETAIL:  more
2026-03-01 10:00:02.100 UTC [8] mine STATEMENT:  SELECT 1
	/ 0
2026-03-01 10:00:03.100 UTC [5] mine ERROR:  the plugin's
2026-03-01 10:00:03.100 UTC [9] mine FATAL:  terminating connection
ERROR:  without a prefix
	and its second line
""".splitlines()


def test_the_messages_of_one_database() -> None:
    """With their details and statements, in several lines, from a moment on."""
    since = datetime(2026, 3, 1, 10, 0, 2, tzinfo=UTC).timestamp()

    first, second, third = messages(LOG, "mine", since=since, without=5)

    assert first.lines == ["ERROR: first\nand second line", "DETAIL: more"]
    assert first.statement == "SELECT 1\n/ 0"
    assert first.is_failure
    assert second.lines == ["WARNING: in between"]
    assert third.lines == ["FATAL: terminating connection"]
    assert not second.is_failure
    assert not third.is_failure  # No statement failed.
