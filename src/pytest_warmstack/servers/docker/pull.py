"""Pulls an image, with its progress, the registry's own answer, and a deadline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from docker.errors import DockerException
from requests.adapters import BaseAdapter
from requests.exceptions import RequestException
from requests.exceptions import Timeout as RequestsTimeout
from urllib3.exceptions import HTTPError

from pytest_warmstack import originals
from pytest_warmstack.servers.docker.engine import explanation
from pytest_warmstack.servers.docker.progress import Progress

STALL: Final = 60.0
"""Seconds for which a pull may bring nothing, not even another attempt, before it is given up."""


class NotPulled(Exception):
    """An image could not be pulled; the text is the answer of its registry, or of the engine."""


def fetch(client: Any, image: str, say: Callable[[str], None]) -> None:
    """Pull *image*, telling how far it has come.

    Raises `NotPulled` with the registry's answer, or when there is none for `STALL` seconds.
    """
    say(f"pulling {image} ...")
    api = client.api
    # docker-py waits for ever for a pull.
    api.mount(api.base_url, _Deadline(api.get_adapter(api.base_url), STALL))
    progress = Progress(image, originals.monotonic())
    cause: Exception | None = None
    try:
        for line in api.pull(_tagged(image), stream=True, decode=True):
            if "error" in line:
                words = line["error"]
                break
            if text := progress.note(line, originals.monotonic()):
                say(text)
        else:
            say(progress.end(originals.monotonic()))
            return
    except (RequestsTimeout, HTTPError) as error:
        cause, words = error, f"nothing has come for {STALL:g} seconds"
    except (DockerException, RequestException, OSError) as error:
        cause, words = error, explanation(error)
    raise NotPulled(words) from cause


class _Deadline(BaseAdapter):
    """A way to the engine that waits for *seconds* at most, where docker-py would for ever."""

    def __init__(self, way: BaseAdapter, seconds: float) -> None:
        super().__init__()
        self._way = way
        self._seconds = seconds

    def send(self, request: Any, *args: Any, **options: Any) -> Any:
        """Send *request*; between two pieces of its answer no more than that time may pass."""
        options["timeout"] = options.get("timeout") or self._seconds
        return self._way.send(request, *args, **options)

    def close(self) -> None:
        """Close the way itself."""
        self._way.close()


def _tagged(image: str) -> str:
    """Return *image* with a tag, as `docker pull` has it: without one, all there are would come."""
    return image if ":" in image.rpartition("/")[2] or "@" in image else f"{image}:latest"
