"""The child's main program: `python -m pytest_warmstack.postgres.template.child MODULE...`.

The parent writes lines of JSON to standard input: first one about the project, then one for each
task. The child answers each on standard output; what the project's code prints goes to standard
error. The child imports the modules in its arguments before it reads.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any

from pytest_warmstack.postgres.template.child import database_url, failures
from pytest_warmstack.postgres.template.child.guard import Guard
from pytest_warmstack.postgres.template.child.recorder import Recorder
from pytest_warmstack.postgres.template.child.variables import Variables

if TYPE_CHECKING:
    from pytest_warmstack.postgres.template.child.revisions import Revisions


def main() -> None:
    """Answer requests until standard input ends."""
    requests, answers = _take_streams()
    # The parent sends this signal if the child is late; it works even if Python is stuck.
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    # Imports leave no garbage, and searching for it would take a tenth of their time.
    gc.disable()
    for module in sys.argv[1:]:
        importlib.import_module(module)
    gc.freeze()
    gc.enable()
    with requests, answers:
        project = json.loads(requests.readline() or "null")
        work: Work | None = None
        for line in requests:
            error: BaseException | None = None
            try:
                work = work or Work(project, answers)
                report = work.do(**json.loads(line))
            except BaseException as raised:
                error = raised
                failures.print_traceback(error)
                report = failures.report(error, work and work.revisions)
            if work is not None:
                report |= work.observed(error)
            for stream in (sys.stdout, sys.stderr):
                with suppress(Exception):  # The project's code may have closed or replaced it.
                    stream.flush()
            # The parent reads the output of a task up to this mark.
            os.write(2, b"\0\n")
            _send(answers, report)


def _take_streams() -> tuple[IO[str], IO[str]]:
    """Hide standard input and output from the project's code, which may use them too."""
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w", encoding="utf-8")
    with open(os.devnull) as nothing:  # noqa: PTH123 - for its descriptor
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return requests, answers


def _send(answers: IO[str], message: dict[str, Any]) -> None:
    json.dump(message, answers)
    answers.write("\n")
    answers.flush()


class Work:
    """Does the tasks of the parent, under the guard and the recorder."""

    def __init__(self, project: dict[str, Any], answers: IO[str]) -> None:
        # The process may have started before the tests' process had its environment.
        os.environ.clear()
        os.environ.update(project["environ"])
        self._own_path = sys.path
        # The project's code finds modules in the same folders as the tests, in the same order.
        sys.path = project["path"]
        self._project = project
        # Alembic's configuration names the project's driver. Scripts alone don't need the import.
        is_asked = any("{db_url}" in line for line in project["env"])
        if project["alembic"] and is_asked:
            with self._own_imports():
                importlib.import_module("alembic.config")
        url = database_url.url(project["alembic"] if is_asked else None, project["url"])
        database_url.set_environment(project["env"], url, project["before"])
        self._variables = Variables()
        self._variables.watch()
        self._guard = Guard(url)
        new_recorder: type[Recorder] = Recorder
        if project.get("profile"):
            with self._own_imports():
                from pytest_warmstack.postgres.template.child.profile import ProfilingRecorder
            new_recorder = ProfilingRecorder
        self._recorder = new_recorder(project["root"], project["ignore"], self._guard)
        self._answers = answers
        self.revisions: Revisions | None = None
        self._guard.install()
        self._recorder.install()

    def do(self, do: str, **request: Any) -> dict[str, Any]:
        """Do the task *do*, and return the report."""
        if do in {"describe", "script"}:
            return self._do_script(do, request["line"])
        self.revisions = self.revisions or self._load_revisions()
        if do == "plan":
            return self.revisions.plan()
        report = self.revisions.upgrade(request["links"], own=request["own"])
        self._guard.release()
        return report

    def observed(self, error: BaseException | None) -> dict[str, Any]:
        """Return what was observed, even if the project's code suppressed an error."""
        refused = self._guard.refused
        return {
            "refused": refused,
            "profile": self._recorder.profile(),
            "databases": self.revisions.configuration.databases() if self.revisions else [],
            "variables": self._variables.wanted(error, self._project["env"], refused=bool(refused)),
        }

    def _do_script(self, do: str, line: str) -> dict[str, Any]:
        with self._own_imports():
            from pytest_warmstack.postgres.template.child import scripts
        self._tell(f"in {line}")
        if do == "describe":
            return scripts.describe(line, self._recorder)
        return scripts.apply(line, self._guard, self._recorder)

    def _load_revisions(self) -> Revisions:
        with self._own_imports():
            from pytest_warmstack.postgres.template.child.revisions import Revisions
        alembic = self._project["alembic"]
        url = database_url.url(alembic, self._project["url"])
        return Revisions(alembic, url, self._guard, self._recorder, self._tell)

    def _tell(self, at: str, now: str = "") -> None:
        """Send the parent the current position, for an error if the child is late or ends.

        The user sees *now*, what happens, if that takes long.
        """
        _send(self._answers, {"at": at, "now": now} if now else {"at": at})

    @contextmanager
    def _own_imports(self) -> Iterator[None]:
        """Import modules from the child's own path, not from the project.

        The project may have a folder with the name of a library, such as `alembic`.
        """
        sys.path, before = self._own_path, sys.path
        try:
            yield
        finally:
            sys.path = before


if __name__ == "__main__":
    main()
