"""Errors of the command `warmstack`."""

from __future__ import annotations

import shlex
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
    def no_program(cls, *, program: str) -> CommandFailed:
        """The *program* that `warmstack run` should run was not found."""
        return cls(
            f"Could not find the command {program}.",
            why="it is neither in the PATH nor an executable file",
            looked_at=["the PATH"],
            todo=["correct its name, or activate the virtual environment that has it"],
        )

    @classmethod
    def no_lines(cls, *, advice: str) -> CommandFailed:
        """No line of `warmstack_env` names a database; *advice* is the line to write."""
        return cls(
            "The command would not get the address of a database.",
            why="no line of warmstack_env has one",
            todo=[
                f"{advice}\nwhere DATABASE_URL is the variable that your application reads",
                "or write the address yourself: warmstack url",
            ],
        )

    @classmethod
    def which_configuration(cls, *, names: Sequence[str], folder: str) -> CommandFailed:
        """The project has several Alembic configurations, or none in the *folder* that is named."""
        several = "each configuration has a database of its own for development"
        return cls(
            "Could not choose an Alembic configuration.",
            why=f"{folder} has none" if folder else several,
            looked_at=names,
            todo=[
                f"name one: --alembic {names[0]}" if names else "correct the path, or leave it out"
            ],
        )

    @classmethod
    def no_development(cls) -> CommandFailed:
        """The project has no database for development on this server."""
        return cls(
            "Could not find a database for development.",
            why="none was made for this project, or its server was removed",
            todo=["make one: warmstack url"],
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

    @classmethod
    def no_template(cls, *, name: str, test: str) -> CommandFailed:
        """The template of the database *name*, which *test* used, was dropped.

        *test* may be several node ids, for tests that shared a database.
        """
        tests = test.partition(" (db_factory ")[0].split(", ")
        return cls(
            f"The template of {name} no longer exists.",
            why="a run dropped it: a server keeps the last templates of a project, and drops "
            "those that were unused for long",
            todo=[
                f"run the test again, and compare the database that is saved then:\n"
                f"pytest --reuse-containers {shlex.join(tests)}",
                "to keep more templates from now on, raise warmstack_keep_templates",
                f"to look at the database alone: warmstack psql {name.rpartition('_')[2]}",
            ],
        )

    @classmethod
    def not_of_a_test(cls, *, name: str) -> CommandFailed:
        """The template of the database *name* is not known."""
        return cls(
            f"The database {name} can't be compared with a template.",
            why="its name does not show the template: it is not the database of a test, or it has "
            "the name that the application has read, until the test ends",
            todo=["choose one of: warmstack failed"],
        )
