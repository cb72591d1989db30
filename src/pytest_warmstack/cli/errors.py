"""Errors of the command."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pytest_warmstack.errors import WarmstackError, listed


class NoProject(WarmstackError):
    """A command was called in a folder that belongs to no project."""

    @classmethod
    def here(cls, *, folder: str) -> NoProject:
        """Nothing in *folder* looks like tests."""
        return cls(
            f"No project found in {folder}.",
            why="it has no pytest configuration, alembic.ini, conftest.py or tests",
            todo=["change to the project's folder, or name it: --project FOLDER"],
        )

    @property
    def line(self) -> str:
        """The whole error on one line."""
        return f"{self.what.removesuffix('.')}: {self.why}; {self.todo[0]}"


class CommandFailed(WarmstackError):
    """A command of `warmstack` failed."""

    @classmethod
    def no_folder(cls, *, folder: str) -> CommandFailed:
        """The *folder* that was named does not exist."""
        return cls(
            f"The folder {folder} does not exist.",
            why="no server that can be seen from here belongs to it either",
            todo=["name a folder of the project, or list all projects: warmstack status"],
        )

    @classmethod
    def by_system(cls, *, cause: str) -> CommandFailed:
        """The operating system refused something."""
        return cls(
            "The operating system refused what the command needs.",
            why=cause,
            todo=["fix that, or check what else is needed: warmstack doctor"],
        )

    @classmethod
    def no_server(cls, *, title: str, project: str, looked_at: Iterable[str]) -> CommandFailed:
        """The *project* has no server of the kind *title* that answers."""
        return cls(
            f"No running {title} of this project found.",
            why="none was kept, or it has stopped",
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
        """*wanted* matches no database that can be opened, or several."""
        return cls(
            f"No single database matches {wanted!r}.",
            why=f"it matches {listed(matching)}; templates accept no connections",
            looked_at=[f"the databases of the server: {listed(names)}"],
            todo=["name one of them, or a part of its name that no other has"],
        )
