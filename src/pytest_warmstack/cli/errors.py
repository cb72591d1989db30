"""What goes wrong with a command."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pytest_warmstack.errors import WarmstackError, listed


class NoProject(WarmstackError):
    """A command was called in a folder that belongs to no project."""

    @classmethod
    def here(cls, *, folder: str) -> NoProject:
        """Tell that nothing in *folder* speaks of tests."""
        return cls(
            f"There is no project in {folder}.",
            why="it has no pytest configuration, alembic.ini, conftest.py or tests",
            todo=["go to the project's folder, or name it: --project FOLDER"],
        )

    @property
    def line(self) -> str:
        """All of it: there is no more to be said."""
        return f"{self.what.removesuffix('.')}: {self.why}; {self.todo[0]}"


class CommandFailed(WarmstackError):
    """A command of `warmstack` could not do what it was asked for."""

    @classmethod
    def no_folder(cls, *, folder: str) -> CommandFailed:
        """Tell that the folder that was named is not there, and no server knows of it."""
        return cls(
            f"There is no folder {folder}.",
            why="there is no such folder, and no warmstack server belongs to it",
            looked_at=[folder],
            todo=["name a folder of the project, or see what there is: warmstack status"],
        )

    @classmethod
    def by_system(cls, *, cause: str) -> CommandFailed:
        """Tell that the operating system refused something."""
        return cls(
            "The operating system refused what the command needs.",
            why=cause,
            todo=["see its answer above, or what there is: warmstack doctor"],
        )

    @classmethod
    def no_server(cls, *, title: str, project: str, looked_at: Iterable[str]) -> CommandFailed:
        """Tell that the project has no server of the kind called *title* that answers."""
        return cls(
            f"There is no {title} of this project that runs.",
            why="none was kept, or it has stopped",
            looked_at=[project, *looked_at],
            todo=["start it: warmstack up", "or see what there is: warmstack status"],
        )

    @classmethod
    def no_client(cls, *, program: str, looked_at: Iterable[str]) -> CommandFailed:
        """Tell that the client *program* is nowhere to be found."""
        return cls(
            f"There is no {program} to be started.",
            why="it is not installed",
            looked_at=looked_at,
            todo=[f"install {program}, or put the folder that holds it on the PATH"],
        )

    @classmethod
    def which_database(
        cls, *, wanted: str, matching: Sequence[str], names: Iterable[str]
    ) -> CommandFailed:
        """Tell that *wanted* stands for no database that can be opened, or for several."""
        return cls(
            f"There is not one database that can be opened and is meant by {wanted!r}.",
            why=f"it fits {listed(matching)}; a template accepts no connections",
            looked_at=[f"the databases of the server: {listed(names)}"],
            todo=["name one of them, or a part of its name that no other has"],
        )
