"""How answers of Redis are read, and how commands are written."""

from __future__ import annotations

import pytest

from pytest_warmstack.redis import leases
from pytest_warmstack.redis.connections import command_text, parse_clients, parse_counts
from pytest_warmstack.redis.server_state import ServerState, changes

LIST = (
    "id=7 addr=127.0.0.1:5 laddr=127.0.0.1:6 fd=8 name=pytest-warmstack:lease:3-5:process-1@a age=1"
    " idle=0 flags=N db=3 sub=0 psub=0 cmd=client|list user=default redir=-1\n"
    "id=8 addr=127.0.0.1:7 name= flags=b db=4 cmd=blpop\n"
    "id=9 addr=127.0.0.1:9 name=shop flags=P db=0 cmd=subscribe\n"
    "id=10 addr=127.0.0.1:9 name= flags=O db=0 cmd=monitor\n"
)
STATS = (
    "# Commandstats\r\n"
    "cmdstat_config|set:calls=3,usec=9,usec_per_call=3.00,rejected_calls=0,failed_calls=0\r\n"
    "cmdstat_config|get:calls=5,usec=9\r\n"
    "cmdstat_get:calls=12,usec=1\r\n"
)


def test_clients_are_parsed() -> None:
    """Their ids, names and databases, and whether they wait, listen or monitor."""
    clients = parse_clients(LIST)

    assert [each.id for each in clients] == [7, 8, 9, 10]
    assert [each.database for each in clients] == [3, 4, 0, 0]
    assert [each.name for each in clients[1:]] == ["", "shop", ""]
    assert [each.is_waiting for each in clients] == [False, True, True, True]
    assert clients[1].command == "blpop"


def test_counts_of_commands_are_parsed() -> None:
    """With subcommands, if the server counts them."""
    assert parse_counts(STATS) == {"config|set": 3, "config|get": 5, "get": 12}


@pytest.mark.parametrize(
    ("stats", "changed"),
    [
        ({}, set()),
        ({"config|set": 2, "config|get": 9}, {"config"}),
        ({"config": 4}, {"config"}),
        ({"function|load": 1, "function|delete": 2, "fcall": 9}, {"functions"}),
        ({"function|flush": 1, "acl|setuser": 1, "acl|list": 3}, {"functions", "users"}),
        ({"client|pause": 1, "client|list": 9}, {"pause"}),
    ],
)
def test_changes_are_noticed_by_the_counts(stats: dict[str, int], changed: set[str]) -> None:
    """Commands that only read count too if the server, before Redis 7, counts no subcommands."""
    assert ServerState().changed(stats) == changed


def test_commands_restore_a_state() -> None:
    """First removals, then settings, libraries and users; nothing for equal parts."""
    now = {"config maxmemory": "1", "config hz": "10", "function a": "code", "user ada": "on"}
    rules = "on #12ab ~(a* &* -@all (+get ~b)c) (~d +set)"
    wanted = {"config maxmemory": "0", "config hz": "10", "function b": "more", "user bob": rules}

    assert changes(now, wanted) == [
        ("FUNCTION", "DELETE", "a"),
        ("ACL", "DELUSER", "ada"),
        ("CONFIG", "SET", "maxmemory", "0"),
        ("FUNCTION", "LOAD", "REPLACE", "more"),
        (
            *("ACL", "SETUSER", "bob", "reset", "on", "#12ab", "~(a*", "&*", "-@all"),
            *("(+get ~b)c)", "(~d +set)"),
        ),
    ]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("SELECT", 3), "SELECT 3"),
        (("AUTH", "ada", "hunter2"), "AUTH ***"),
        (("CONFIG", "SET", "requirepass", "hunter2"), "CONFIG SET requirepass ***"),
        (
            ("ACL", "SETUSER", "ada", "on", ">hunter2", "#hunter2", "~a*"),
            "ACL SETUSER ada on >*** #*** ~a*",
        ),
        (("EVAL", "\nlocal a\n  = 1\n", 0), "EVAL local a = 1 0"),
        (("SET", "a", "b" * 99), f"SET a {'b' * 60}..."),
        (("MGET", *["key"] * 99), f"MGET {'key ' * 28}key..."),
    ],
)
def test_a_command_is_shown_cut_and_without_passwords(words: tuple[str, ...], text: str) -> None:
    """On one line."""
    assert command_text(words) == text


@pytest.mark.parametrize(
    ("name", "leased"),
    [
        ("pytest-warmstack:lease:3-5:process-1@a", range(3, 6)),
        ("pytest-warmstack:lease:12-12:process-1@a", range(12, 13)),
        ("pytest-warmstack", None),
        ("my-pytest-warmstack:lease:3-5", None),
        ("", None),
    ],
)
def test_a_connections_name_tells_its_databases(name: str, leased: range | None) -> None:
    """They stay leased if a FLUSHALL removes the keys."""
    assert leases.leased(name) == leased
