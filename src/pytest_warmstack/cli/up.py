"""`warmstack up`: prepares servers, template and clones before you run any test."""

from __future__ import annotations

import argparse
import sys
from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import chdir
from pathlib import Path
from typing import Final

import pytest

from pytest_warmstack import report
from pytest_warmstack.cli.project import Add, require, say
from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.servers.identity import Service
from pytest_warmstack.session import Session, session_of

_OFF: Final = {"numprocesses": "-n0", "no_cov": "--no-cov"}
"""The options that switch pytest-xdist and pytest-cov off, by the names of their settings."""


def declare(add: Add) -> None:
    """Declare the command."""
    add("up", run, "start the servers, build the template and make clones before you run tests")


def run(options: argparse.Namespace) -> int:
    """Prepare everything; keep the servers, whatever the configuration says."""
    require(options.project)
    return _Up().run(options.project)


class Preparation(ABC):
    """A pytest plugin that runs no tests, but prepares what they, or a command, need."""

    def run(self, folder: Path, *arguments: str) -> int:
        """Run pytest in *folder* with *arguments* and this plugin; return the exit status."""
        self.status = 1
        # This also works if `addopts` switches the plugin off, or turns warnings into errors.
        own = ["-p", "warmstack", "-W", "ignore", "--reuse-containers"]
        own += ["--no-header", "--disable-warnings", "-qqqq"]
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

    def prepare(self, session: Session) -> int:
        """Start the servers, build the templates and make clones."""
        session.show_progress(sys.stderr.fileno())
        environment, settings = session.open(), session.settings
        from pytest_warmstack.environment import TemplateKey

        keys = map(TemplateKey, environment.folders())
        environment.start(set(Service), dict.fromkeys(keys, settings.clones_ahead))
        steps, file = environment.ledger.steps, settings.file
        for line in report.header(steps, reuse=True, reuse_source="warmstack up", file=file):
            _tell(line)
        errors = environment.errors()
        for each in errors:
            say(f"warmstack: {each}")
        return 1 if errors else 0


def _tell(text: str) -> None:
    print(f"warmstack: {text}", flush=True)
