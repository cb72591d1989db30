"""What is read from the labels of a server, including labels that another program wrote."""

from __future__ import annotations

from itertools import pairwise

import pytest

from pytest_warmstack.cli import status
from pytest_warmstack.cli.project import title
from pytest_warmstack.inventory import Entry
from pytest_warmstack.servers.identity import Label
from pytest_warmstack.servers.model import ServerInfo


def found(**labels: str) -> ServerInfo:
    """Return a server with labels."""
    named = {Label[key]: value for key, value in labels.items()}
    return ServerInfo(runtime="docker", id="1", name="theirs", labels=named)


def test_the_plugins_own_labels_are_read() -> None:
    """The service and the configuration, as they were written."""
    ours = found(SERVICE="redis", CONFIG='{"image": "redis:7", "number": 2}')

    assert ours.service == "redis"
    assert ours.config == {"image": "redis:7", "number": "2"}
    assert title(ours) == "Redis"


@pytest.mark.parametrize("text", ["", "{", "7", "[1]", "null", '"text"'])
def test_a_configuration_that_is_none_is_nothing(text: str) -> None:
    """Any container can have these labels; that must not stop a run or a command."""
    assert found(CONFIG=text).config == {}
    assert found().config == {}


@pytest.mark.parametrize("text", ["", "mongo", "Redis", "postgres; rm"])
def test_an_unknown_service_is_none(text: str) -> None:
    """It is shown as a server of neither service."""
    theirs = found(SERVICE=text)

    assert theirs.service == ""
    assert title(theirs) == "server"


@pytest.mark.parametrize("text", ["", "x", "a/b/c", "host/0x7/1", "//"])
def test_an_owner_that_is_none_has_not_ended(text: str) -> None:
    """So the server isn't removed."""
    assert not found(OWNER=text, RUN="1").orphaned


def test_a_server_is_listed_under_its_project_or_what_stands_for_one() -> None:
    """Each heading appears once, whatever the order of the servers."""
    external = ServerInfo(
        runtime="external", id="", name="db:5432", labels={Label.SERVICE: "postgres"}
    )
    servers = [
        found(PATH="/shop", SERVICE="redis"),
        external,
        found(),
        found(PATH="/shop", SERVICE="postgres"),
    ]

    lines = status.lines([Entry(found=each) for each in servers])

    headings = [line for before, line in pairwise(lines) if not before]
    assert [lines[0], *headings] == [
        "servers without a project",
        "external servers",
        "/shop",
    ]
