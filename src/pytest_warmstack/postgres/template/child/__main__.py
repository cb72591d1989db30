"""What the child does: `python -m pytest_warmstack.postgres.template.child`.

It is told on standard input, a line of JSON each: first about the project, then what to do. It
answers each on standard output; whatever the project's code prints goes to standard error.
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
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pytest_warmstack.postgres.template.child import database_url, failures
from pytest_warmstack.postgres.template.child.guard import Guard
from pytest_warmstack.postgres.template.child.recorder import Recorder
from pytest_warmstack.postgres.template.child.variables import Variables

if TYPE_CHECKING:
    from pytest_warmstack.postgres.template.child.revisions import Revisions


def main() -> None:
    """Answer until there is nothing more to do."""
    # What comes in and goes out is ours alone: the project's code may read and print, too.
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w", encoding="utf-8")
    with open(os.devnull) as nothing:  # noqa: PTH123 - its descriptor is what is wanted
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    # A child that is late is asked where it is; this works also when Python itself is stuck.
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    # It takes long, and there is nothing to do yet. A tenth of it would be the search for garbage,
    # of which an import leaves none.
    gc.disable()
    for module in sys.argv[1:]:
        importlib.import_module(module)
    gc.freeze()
    gc.enable()
    with requests, answers:
        project = json.loads(requests.readline() or "null")
        work: Work | None = None
        for line in requests:
            request = json.loads(line)
            error: BaseException | None = None
            try:
                work = work or Work(project, answers)
                report = work.do(**request)
            except BaseException as raised:
                error = raised
                failures.show(error)
                report = failures.report(error, work and work.revisions)
            if work is not None:
                # Also when the project's code swallowed the refusal and went on.
                report["refused"] = work.guard.refused
                report["databases"] = work.revisions.databases() if work.revisions else []
                report["variables"] = work.environment.wanted(
                    error, project["env"], refused=bool(work.guard.refused)
                )
            for stream in (sys.stdout, sys.stderr):
                with suppress(Exception):  # The project's code may have closed or replaced it.
                    stream.flush()
            # What was written before the answer is read before it, too.
            os.write(2, b"\0\n")
            json.dump(report, answers)
            answers.write("\n")
            answers.flush()


class Work:
    """The work of this process: guarded, recorded, and telling where it is."""

    def __init__(self, project: dict[str, Any], answers: IO[str]) -> None:
        self._libraries = sys.path
        # The project's code finds modules where the tests do, and in the same order.
        sys.path = project["path"]
        self._project = project
        # Which driver it is takes Alembic to know; a script alone can do without.
        asks = any("{db_url}" in line for line in project["env"])
        if project["alembic"] and asks:
            with _path(self._libraries):
                importlib.import_module("alembic.config")
        url = database_url.url(project["alembic"] if asks else None, project["url"])
        database_url.set_environment(project["env"], url)
        self.environment = Variables()
        self.environment.watch()
        self.guard = Guard(url)
        self.revisions: Revisions | None = None
        self._root = project["root"]
        self._recorder = Recorder(self._root, project["ignore"], self.guard)
        self._answers = answers
        self.guard.install()
        self._recorder.install()

    def do(self, do: str, **request: Any) -> dict[str, Any]:
        """Do what is asked for, and return the report."""
        if do in {"describe", "script"}:
            with _path(self._libraries):
                from pytest_warmstack.postgres.template.child import scripts
            _prefer_own(request["line"], self._root)
            self._tell(f"in {request['line']}")
            if do == "describe":
                return scripts.describe(request["line"], self._recorder)
            return scripts.apply(request["line"], self._root, self.guard, self._recorder)
        if self.revisions is None:
            with _path(self._libraries):
                from pytest_warmstack.postgres.template.child.revisions import Revisions
            alembic = self._project["alembic"]
            _prefer_own(alembic["callable"], self._root)
            url = database_url.url(alembic, self._project["url"])
            self.revisions = Revisions(alembic, url, self.guard, self._recorder, self._tell)
        if do == "plan":
            return self.revisions.plan()
        report = self.revisions.upgrade(request["links"], own=request["own"])
        self.guard.release()
        return report

    def _tell(self, at: str) -> None:
        """Tell the parent what is being done, in case that it has to say so."""
        json.dump({"at": at}, self._answers)
        self._answers.write("\n")
        self._answers.flush()


@contextmanager
def _path(path: list[str]) -> Iterator[None]:
    """Look for modules in *path* for as long as this lasts.

    For our own imports: the project may have a folder with the name of a library, `alembic`, say.
    """
    sys.path, before = path, sys.path
    try:
        yield
    finally:
        sys.path = before


def _prefer_own(line: str, root: str) -> None:
    """See that the module that *line* names is the project's, if its folder has no `__init__.py`.

    Python prefers any package with one, wherever on the path it lies (PEP 420): `tests` of a wheel
    would hide the project's `tests/seed.py`.
    """
    module = line.partition(":")[0]
    top, file = module.partition(".")[0], Path(root, *module.split("."))
    if top not in sys.modules and (file.with_suffix(".py").is_file() or file.is_dir()):
        spec = PathFinder.find_spec(top, [root])
        if spec is not None and spec.loader is None:
            sys.modules[top] = module_from_spec(spec)


if __name__ == "__main__":
    main()
