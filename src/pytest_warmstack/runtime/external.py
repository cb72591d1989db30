"""Servers that somebody else runs: a CI service, one for many machines, a managed one.

They are connected to and used as ours are, and never started, stopped or removed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from pytest_warmstack import originals
from pytest_warmstack.errors import ServerFailed
from pytest_warmstack.identity import Service
from pytest_warmstack.runtime.base import (
    POLL,
    C,
    Endpoint,
    Household,
    NotOurs,
    NotReady,
    Server,
    ServerSpec,
)
from pytest_warmstack.settings import RuntimeName

_PORTS: Final = {Service.POSTGRES: 5432, Service.REDIS: 6379}


class External:
    """The runtime `external`."""

    name = RuntimeName.EXTERNAL

    def __init__(self, household: Household, say: Callable[[str], None]) -> None:
        self._seconds = household.start_timeout
        # A command works for no run: it only looks.
        self._looks = not household.run
        self._say = say

    def ensure(self, spec: ServerSpec[C]) -> Server[C]:
        """Return the server at the URL of *spec*, as soon as it answers: it may be starting."""
        endpoint = replace(endpoint_of(spec), looks=self._looks)
        client = self._connected(spec, endpoint)
        return Server(
            service=spec.service,
            title=spec.title,
            runtime=self.name,
            id=endpoint.place,
            fingerprint="",
            endpoint=client.endpoint,
            client=client,
            what=f"as {endpoint.user}" if endpoint.user else "",
            origin="connected",
            since=originals.now(),
        )

    def _connected(self, spec: ServerSpec[C], endpoint: Endpoint) -> C:
        deadline = originals.monotonic() + self._seconds
        told = False
        facts = {"title": spec.title, "place": endpoint.place, "variable": spec.url_variable}
        while True:
            try:
                return spec.connect(endpoint, "", max(deadline - originals.monotonic(), POLL))
            except NotOurs as refusal:
                raise ServerFailed.rejected(**facts, cause=str(refusal)) from refusal
            except NotReady as refusal:
                if originals.monotonic() >= deadline:
                    raise ServerFailed.unreachable(
                        **facts, seconds=self._seconds, cause=str(refusal)
                    ) from refusal
                if not told:
                    self._say(f"waiting up to {self._seconds:g} s for {spec.title}: {refusal}")
                    told = True
            originals.sleep(POLL)


def endpoint_of(spec: ServerSpec[Any]) -> Endpoint:
    """Return where the URL of *spec* leads."""
    parts = urlsplit(spec.url)
    is_redis = spec.service is Service.REDIS
    return Endpoint(
        host=parts.hostname or "",
        port=parts.port or _PORTS[spec.service],
        password=unquote(parts.password or ""),
        user=unquote(parts.username or ""),
        scheme=parts.scheme if is_redis else "",
        # What libpq does as well when nothing is said.
        query=parts.query if is_redis else parts.query or "sslmode=prefer",
    )
