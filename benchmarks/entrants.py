"""What `compare.py` compares: how each project keeps its servers, and what it can't do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

Runtime = Literal["docker", "embedded"]


@dataclass(frozen=True)
class Entrant:
    """A project with its tool, as `projects/` has it."""

    title: str
    project: str = ""
    """The folder of its conftest.py; the plugin's own projects have none."""
    packages: str = ""
    """The folder of its requirements.txt, if that is another."""
    runtime: Runtime | None = None
    """Where its servers run; None for Docker, or embedded ones where there is no engine."""
    plugins: tuple[str, ...] = ()
    """The names of its pytest plugins, which the case `unused` compares with blocked ones."""
    always: tuple[str, ...] = ()
    """Arguments of pytest."""
    keep: tuple[str, ...] = ()
    """Arguments with which it keeps its servers."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """The cases that it can't do, with the reason."""

    @property
    def environment(self) -> str:
        """The name of its virtual environment."""
        return self.packages or self.project

    @property
    def ours(self) -> bool:
        """Whether it is a project of this plugin."""
        return not self.project


_NO_PLUGIN: Final = {"unused": "it has no pytest plugin"}
_KEEPS_NONE: Final = "it keeps no servers: see the case cold"

ENTRANTS: Final = {
    "hand-docker": Entrant("by hand (Docker)", "hand", runtime="docker", left_out=_NO_PLUGIN),
    "hand-embedded": Entrant("by hand (embedded)", "hand", runtime="embedded", left_out=_NO_PLUGIN),
    "clone": Entrant(
        "a clone by hand",
        "clone",
        "hand",
        left_out={
            **_NO_PLUGIN,
            "cold": "it needs a server that stands",
            "added": "its template is migrated by hand: see `by hand`",
        },
    ),
    "testcontainers": Entrant(
        "testcontainers",
        "testcontainers",
        runtime="docker",
        left_out={**_NO_PLUGIN, "warm": _KEEPS_NONE, "added": _KEEPS_NONE},
    ),
    "pytest-testcontainers": Entrant(
        "pytest-testcontainers",
        "pytest-testcontainers",
        runtime="docker",
        plugins=("testcontainers",),
        keep=("--testcontainers-reuse",),
    ),
    "pytest-docker-tools": Entrant(
        "pytest-docker-tools",
        "pytest-docker-tools",
        runtime="docker",
        plugins=("docker_tools",),
        keep=("--reuse-containers",),
    ),
    "pytest-postgresql": Entrant(
        "pytest-postgresql, pytest-redis",
        "pytest-postgresql",
        runtime="embedded",
        plugins=("pytest_postgresql", "pytest_redis"),
    ),
    "warmstack-docker": Entrant(
        "warmstack (Docker)",
        packages="warmstack",
        runtime="docker",
        plugins=("warmstack",),
        keep=("--reuse-containers",),
    ),
    "warmstack-embedded": Entrant(
        "warmstack (embedded)",
        packages="warmstack-embedded",
        runtime="embedded",
        keep=("--reuse-containers",),
        left_out={"unused": "the same as in Docker"},
    ),
    "warmstack-rollback": Entrant(
        "warmstack (rollback)",
        packages="warmstack-embedded",
        keep=("--reuse-containers",),
        always=("--warmstack-isolation=rollback",),
        left_out={
            "cold": "the isolation changes nothing before the first test",
            "added": "the isolation changes nothing before the first test",
            "unused": "the same as without the option",
        },
    ),
}


@dataclass(frozen=True)
class Case:
    """A way to run the projects."""

    title: str
    many: bool = False
    """Whether it runs many tests."""
    loop: Literal["function", "session"] = "function"
    arguments: tuple[str, ...] = ()
    own_floor: bool = False
    """Whether each entrant is compared with a run of its own, and not with the floor."""
    rounds: int = 1
    """How many rounds it has for each round that was asked for."""
    span: bool = False
    """Whether the time between the first test and the last one is shown too."""


CASES: Final = {
    "warm": Case("One test, warm"),
    "cold": Case("One test, cold"),
    "session-loop": Case("{tests} tests in one event loop", many=True, loop="session", span=True),
    "function-loop": Case(
        "{tests} tests, an event loop each", many=True, loop="function", span=True
    ),
    "workers": Case(
        "{tests} tests in two workers", many=True, loop="session", arguments=("-n", "2")
    ),
    "added": Case("One revision added", own_floor=True),
    "unused": Case("Loaded and not used", own_floor=True, rounds=3),
}
