"""Where servers run: in Docker, as native processes, or wherever somebody else runs them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from pytest_warmstack.servers.errors import RuntimeUnavailable
from pytest_warmstack.servers.identity import Service
from pytest_warmstack.servers.model import OwnRuntime, RunContext, Runtime, ServerSpec
from pytest_warmstack.settings import RuntimeName

_OFFICIAL: Final = re.compile(
    r"((.+/)?library/|docker\.io/)?(postgres|redis)([:@].*)?"
    r"|(docker\.io/)?valkey/valkey([:@].*)?"
)
"""An official image, from Docker Hub or a mirror of it that keeps Docker Hub's names."""


_REPOSITORIES: Final = {
    **dict.fromkeys(("postgres", "postgresql", "postgis", "pgvector"), Service.POSTGRES),
    **dict.fromkeys(("redis", "redis-stack", "redis-stack-server", "valkey"), Service.REDIS),
}
"""The service that an image of this name has, whoever made it."""


def make(name: str, run_context: RunContext) -> OwnRuntime:
    """Return the runtime called *name*, which only now is imported.

    Raises `RuntimeUnavailable` when it can't be reached at all.
    """
    if name == RuntimeName.DOCKER:
        try:
            from pytest_warmstack.servers.docker import Docker
        except ImportError as error:
            raise RuntimeUnavailable.no_package(cause=str(error)) from error
        return Docker(run_context)
    from pytest_warmstack.servers.embedded import Embedded

    return Embedded(run_context)


def elsewhere(run_context: RunContext, say: Callable[[str], None]) -> Runtime:
    """Return the runtime for servers that somebody else runs."""
    from pytest_warmstack.servers.external import External

    return External(run_context, say)


def choose(
    name: RuntimeName,
    run_context: RunContext,
    specs: Sequence[ServerSpec[Any]],
    say: Callable[[str], None],
) -> tuple[OwnRuntime, str]:
    """Return the runtime for *specs*, none of which has a URL, and why it is this one.

    `auto` takes Docker when its engine answers and has, or can pull, the images; else native
    processes. What was named never gives way to another: neither a runtime nor an image. Without
    an engine, an official image does, since native processes are of the version in its tag.
    Raises `RuntimeUnavailable`.
    """
    if name is RuntimeName.EXTERNAL:
        raise RuntimeUnavailable.no_url(title=specs[0].title, variable=specs[0].url_variable)
    for spec in specs:
        service = _REPOSITORIES.get(re.split("[:@]", spec.image.rpartition("/")[2])[0])
        if service not in {None, spec.service}:
            raise RuntimeUnavailable.another_service(
                image=spec.image,
                found=str(service),
                cause="its name says so",
                title=spec.title,
                variable=spec.image_variable,
                source=spec.image_source,
            )
    names = (RuntimeName.DOCKER, RuntimeName.EMBEDDED) if name is RuntimeName.AUTO else (name,)
    refusals: list[RuntimeUnavailable] = []
    for candidate in names:
        try:
            runtime = make(candidate, run_context)
            try:
                runtime.check(specs, say)
            except BaseException:
                runtime.close()
                raise
        except RuntimeUnavailable as refusal:
            named = [each for each in specs if each.image_source]
            if name is not RuntimeName.AUTO or (refusal.image and named):
                raise
            for spec in named:
                if not _OFFICIAL.fullmatch(spec.image):
                    raise RuntimeUnavailable.no_embedded_image(
                        image=spec.image, source=spec.image_source, refusal=refusal
                    ) from refusal
            refusals.append(refusal)
        else:
            return runtime, "; ".join(refusal.brief_reason for refusal in refusals)
    raise RuntimeUnavailable.nothing(refusals)
