"""`warmstack up`: prepares servers, template and clones before you run any test."""

from __future__ import annotations

import argparse
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import chdir
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from pytest_warmstack import report
from pytest_warmstack.cli.project import Add, require, say
from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.servers.identity import Service
from pytest_warmstack.session import Session, session_of

if TYPE_CHECKING:
    from pytest_warmstack.environment import Environment

_OFF: Final = {"numprocesses": "-n0", "no_cov": "--no-cov"}
"""The options that switch pytest-xdist and pytest-cov off, by the names of their settings."""


def declare(add: Add) -> None:
    """Declare the command."""
    up = add(
        "up", run, "start the servers, build the template and make clones before you run tests"
    )
    up.add_argument(
        "--profile",
        action="store_true",
        help="also list the revisions by their time, with their slowest statements. Each template"
        " is built once more for that, from nothing, beside the one that tests use, and dropped",
    )
    up.add_argument("--json", action="store_true", help="with --profile, print the list as JSON")
    up.set_defaults(parser=up)


def run(options: argparse.Namespace) -> int:
    """Prepare everything; keep the servers, whatever the configuration says."""
    if options.json and not options.profile:
        options.parser.error("--json is for --profile; write up --profile --json")
    require(options.project)
    return _Up(profile=options.profile, as_json=options.json).run(options.project)


class Preparation(ABC):
    """A pytest plugin that runs no tests, but prepares what they, or a command, need."""

    def run(self, folder: Path, *arguments: str) -> int:
        """Run pytest in *folder* with *arguments* and this plugin; return the exit status."""
        self.status = 1
        # This also works if `addopts` switches the plugin off, or turns warnings into errors.
        own = ["-p", "warmstack", "-W", "ignore", "--reuse-containers"]
        # No test runs, so there is nothing to report.
        own += ["--warmstack-report=no", "--no-header", "--disable-warnings", "-qqqq"]
        with chdir(folder):
            status = pytest.main([*own, *arguments], plugins=[self])
        is_done = status in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}
        return self.status if is_done else 1

    @abstractmethod
    def prepare(self, session: Session) -> int:
        """Prepare everything; return the exit status. Raises `WarmstackError`."""

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_load_initial_conftests(
        self, early_config: pytest.Config, args: list[str]
    ) -> Generator[None]:
        """Switch pytest-xdist and pytest-cov off.

        pytest refuses options of plugins that are not loaded, so add only those of loaded plugins.
        """
        known = vars(early_config.known_args_namespace)
        args += [option for name, option in _OFF.items() if name in known]
        return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> bool:
        """Collect nothing."""
        return True

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Prepare everything instead of running tests."""
        try:
            self.status = self.prepare(session_of(session.config))
        except WarmstackError as error:
            say(f"warmstack: {error}")
        return True


class _Up(Preparation):
    """Prepares what tests need, and reports each thing when it is ready."""

    def __init__(self, *, profile: bool, as_json: bool) -> None:
        self._profile = profile
        self._as_json = as_json
        self._tell = _say if as_json else _tell

    def prepare(self, session: Session) -> int:
        """Start the servers, build the templates and make clones; then profile the templates."""
        session.show_progress(sys.stderr.fileno())
        environment, settings = session.open(), session.settings
        from pytest_warmstack.environment import TemplateKey

        keys = map(TemplateKey, environment.folders())
        environment.start(set(Service), dict.fromkeys(keys, settings.clones_ahead))
        steps, file = environment.ledger.steps, settings.file
        for line in report.header(steps, reuse=True, reuse_source="warmstack up", file=file):
            self._tell(line)
        errors = environment.errors()
        for each in errors:
            say(f"warmstack: {each}")
        if self._profile and not errors:
            self._show_profiles(environment)
        return 1 if errors else 0

    def _show_profiles(self, environment: Environment) -> None:
        from pytest_warmstack.cli import profile

        found = {}
        for folder in environment.folders():
            name = ", ".join(each.name for each in environment.configurations_for(folder)[:1])
            found[name] = environment.profile(folder)
            if not self._as_json:
                for line in profile.lines(name, found[name]):
                    _tell(line)
        if self._as_json:
            print(json.dumps(profile.document(found), indent=2))


def _say(text: str) -> None:
    say(f"warmstack: {text}")


def _tell(text: str) -> None:
    print(f"warmstack: {text}", flush=True)
