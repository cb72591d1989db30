"""Whether loopback leads to the engine's machine, as far as it can be told without an engine."""

from __future__ import annotations

import pytest

from pytest_warmstack.runtime.docker import _gateway, _is_ours


@pytest.mark.parametrize(
    ("pool", "gateway"),
    [
        ({"Subnet": "172.17.0.0/16", "Gateway": "172.17.0.9"}, "172.17.0.9"),
        ({"Subnet": "172.17.0.0/16"}, "172.17.0.1"),
    ],
)
def test_the_gateway_is_told_or_the_first_address(pool: dict[str, str], gateway: str) -> None:
    """An engine that chose its network itself does not always tell the gateway."""
    assert _gateway(pool) == gateway


@pytest.mark.parametrize(("address", "ours"), [("127.0.0.1", True), ("203.0.113.1", False)])
def test_an_address_is_ours_when_a_socket_can_be_bound_to_it(address: str, ours: bool) -> None:
    """An address of another machine can't be bound; not a byte is sent to find that out."""
    assert _is_ours(address) is ours
