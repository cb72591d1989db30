"""`warmstack up`: servers, template and stock made ready, as a run would, before any test."""

from __future__ import annotations

import argparse
import importlib.util
import sys

import pytest

from pytest_warmstack import plugin, report
from pytest_warmstack.cli.project import QUIET, inside
from pytest_warmstack.errors import CommandFailed, WarmstackError
from pytest_warmstack.identity import Service


class _Up:
    """A pytest plugin: a run that has no tests, and makes ready what tests would ask for."""

    def __init__(self) -> None:
        self.status = 1

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> bool:
        """Collect nothing."""
        return True

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Make everything ready, and tell of each thing as it is."""
        config = session.config
        workbench = plugin.set_up(config, say=_say)
        settings = config.stash[plugin.SETTINGS]
        try:
            folders = workbench.folders()
            workbench.start(set(Service), dict.fromkeys(folders, settings.clones_ahead))
        except WarmstackError as trouble:
            print(f"warmstack: {trouble}", file=sys.stderr)
            return True
        for line in report.header(workbench.ledger.steps, reuse=True, reuse_source="warmstack up"):
            _say(line)
        errors = workbench.errors()
        for error in errors:
            print(f"warmstack: {error}", file=sys.stderr)
        self.status = 1 if errors else 0
        return True


def up(options: argparse.Namespace) -> int:
    """Make everything ready; the servers stay, whatever the configuration says."""
    if not options.project.is_dir():
        raise CommandFailed.no_folder(folder=str(options.project))
    doing = _Up()
    # What the project's own settings would do with a run: spread it, measure it, write reports.
    arguments = [*QUIET, "--reuse-containers", "--no-header", "--disable-warnings", "-qqqq"]
    if importlib.util.find_spec("xdist") is not None:
        arguments += ["-n0"]
    if importlib.util.find_spec("pytest_cov") is not None:
        arguments += ["--no-cov"]
    with inside(options.project):
        status = pytest.main(arguments, plugins=[doing])
    if status in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
        return doing.status
    return 1


def _say(text: str) -> None:
    print(f"warmstack: {text}", flush=True)
