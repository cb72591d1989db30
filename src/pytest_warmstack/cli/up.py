"""`warmstack up`: servers, template and stock made ready, as a run would, before any test."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Generator
from typing import Final

import pytest

from pytest_warmstack import report
from pytest_warmstack.cli.project import inside, needed
from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.servers.identity import Service
from pytest_warmstack.session import session_of

_OFF: Final = {"numprocesses": "-n0", "no_cov": "--no-cov"}
"""The options that switch pytest-xdist and pytest-cov off, by the names that pytest has for them.

`no_cov` is what pytest-cov calls the value of --no-cov.
"""


class _Up:
    """A pytest plugin: a run that has no tests, and makes ready what tests would ask for."""

    def __init__(self) -> None:
        self.status = 1

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_load_initial_conftests(
        self, early_config: pytest.Config, args: list[str]
    ) -> Generator[None]:
        """Switch off what the project's settings do with a run: spread it, or measure it.

        Only where the plugin for it is loaded: pytest refuses the options of one that is not.
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
        """Make everything ready, and tell of each thing as it is."""
        own = session_of(session.config)
        environment, settings = own.open(say=_say), own.settings
        try:
            folders = environment.folders()
            environment.start(set(Service), dict.fromkeys(folders, settings.clones_ahead))
        except WarmstackError as trouble:
            print(f"warmstack: {trouble}", file=sys.stderr)
            return True
        steps, file = environment.ledger.steps, settings.file
        for line in report.header(steps, reuse=True, reuse_source="warmstack up", file=file):
            _say(line)
        errors = environment.errors()
        for error in errors:
            print(f"warmstack: {error}", file=sys.stderr)
        self.status = 1 if errors else 0
        return True


def up(options: argparse.Namespace) -> int:
    """Make everything ready; the servers stay, whatever the configuration says."""
    needed(options.project)
    doing = _Up()
    # Also where `addopts` switches this plugin off, or turns warnings into errors.
    arguments = ["-p", "warmstack", "-W", "ignore", "--reuse-containers"]
    arguments += ["--no-header", "--disable-warnings", "-qqqq"]
    with inside(options.project):
        status = pytest.main(arguments, plugins=[doing])
    if status in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
        return doing.status
    return 1


def _say(text: str) -> None:
    print(f"warmstack: {text}", flush=True)
