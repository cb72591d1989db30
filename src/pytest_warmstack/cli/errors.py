"""Errors of the command `warmstack`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pytest_warmstack.errors import WarmstackError, listed


class NoProject(WarmstackError):
    """The folder is not part of a project."""

    @classmethod
    def here(cls, *, folder: str) -> NoProject:
        """Nothing in *folder* looks like a project with tests."""
        return cls(
            f"No project found in {folder}.",
            why="it has no pytest configuration, alembic.ini, conftest.py or tests",
            todo=["run the command in the project's folder, or add --project FOLDER"],
        )

    @property
    def line(self) -> str:
        """The whole error on one line."""
        return f"{self.what.removesuffix('.')}: {self.why}; {self.todo[0]}"


class CommandFailed(WarmstackError):
    """A command of `warmstack` failed."""

    @classmethod
    def no_folder(cls, *, folder: str) -> CommandFailed:
        """The *folder* of the project does not exist."""
        return cls(
            f"The folder {folder} does not exist.",
            why="no warmstack server belongs to it either",
            todo=["correct the path; to list all projects: warmstack status"],
        )

    @classmethod
    def by_system(cls, *, cause: str) -> CommandFailed:
        """The operating system refused an operation."""
        return cls(
            "The operating system refused an operation of the command.",
            why=cause,
            todo=["fix the cause above; to check everything that runs need: warmstack doctor"],
        )

    @classmethod
    def no_server(cls, *, title: str, project: str, looked_at: Iterable[str]) -> CommandFailed:
        """The *project* has no running server of the kind *title*."""
        return cls(
            f"No running {title} of this project found.",
            why="no run has kept one, or it has stopped",
            looked_at=[project, *looked_at],
            todo=["start it: warmstack up", "or list all servers: warmstack status"],
        )

    @classmethod
    def no_client(cls, *, program: str, looked_at: Iterable[str]) -> CommandFailed:
        """The client *program* was not found."""
        return cls(
            f"Could not find {program}.",
            why="it is not installed",
            looked_at=looked_at,
            todo=[f"install {program}, or add its folder to the PATH"],
        )

    @classmethod
    def which_database(
        cls, *, wanted: str, matching: Sequence[str], names: Iterable[str]
    ) -> CommandFailed:
        """*wanted* matches several databases, or none that accepts connections."""
        return cls(
            f"No single database matches {wanted!r}.",
            why=f"it matches {listed(matching)}; templates accept no connections",
            looked_at=[f"the databases of the server: {listed(names)}"],
            todo=["write the name of one of them, or a part that occurs in no other name"],
        )
