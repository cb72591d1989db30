"""A project with a history of revisions that tests edit, and templates that are built from it.

No pytest runs in between: the tests request the templates in this process, in the way of a run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from projects import keeping
from pytest_warmstack.options import Settings
from pytest_warmstack.postgres import DatabaseName
from pytest_warmstack.postgres.databases import Databases
from pytest_warmstack.postgres.template import layers, templates
from pytest_warmstack.postgres.template.configurations import Configurations
from pytest_warmstack.postgres.template.dependencies import FileState
from pytest_warmstack.servers.model import USER, Server, ServerSpec

VERSIONS: Final = "migrations/versions"

INI: Final = """\
[alembic]
script_location = migrations
prepend_sys_path = .
sqlalchemy.url = postgresql+asyncpg://user:secret@localhost/shop
"""

# The logs lie outside of what a build is known by; what is written is no dependency either.
ENV: Final = """\
import asyncio
from pathlib import Path

from alembic import context
from sqlalchemy import pool
from sqlalchemy.ext.asyncio import async_engine_from_config

config = context.config

with Path(__file__).parents[1].joinpath("executions.log").open("a") as log:
    log.write("env.py\\n")


def upgrade(connection):
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()


async def connect_and_upgrade():
    section = config.get_section(config.config_ini_section, {})
    engine = async_engine_from_config(section, prefix="sqlalchemy.", poolclass=pool.NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(upgrade)
    await engine.dispose()


asyncio.run(connect_and_upgrade())
"""

# Each adds its id to one table, so that it shows if one is applied twice or left out.
REVISION: Final = """\
from pathlib import Path

from alembic import op
{imports}
revision = {id!r}
down_revision = {after!r}
depends_on = {depends!r}


def upgrade():
    with Path(__file__).parents[2].joinpath("ran.log").open("a") as log:
        log.write(revision + "\\n")
    op.execute("CREATE TABLE IF NOT EXISTS history (id text)")
    op.execute("INSERT INTO history (id) VALUES ('{id}')")
    op.execute("CREATE TABLE t{id} (a integer)")
{body}"""


@dataclass
class Project:
    """A folder with revisions; *options* are fields of `Settings`."""

    folder: Path
    options: dict[str, Any] = field(default_factory=dict)

    def write(self, name: str, text: str) -> None:
        """Write a file of the project, with its folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace *old*, which is there once, in a file of the project."""
        text = (self.folder / name).read_text()
        if text.count(old) != 1:
            raise ValueError(f"{old!r} is there {text.count(old)} times in {name}")
        (self.folder / name).write_text(text.replace(old, new))

    def revise(
        self,
        id: str,
        after: str | tuple[str, ...] | None,
        *body: str,
        imports: Sequence[str] = (),
        depends: Sequence[str] = (),
        name: str = "",
    ) -> None:
        """Write the file of a revision."""
        text = REVISION.format(
            id=id,
            after=after,
            depends=tuple(depends) or None,
            imports="".join(f"{line}\n" for line in imports),
            body="".join(f"    {line}\n" for line in body),
        )
        self.write(f"{VERSIONS}/{name or id}.py", text)

    def copied_to(self, folder: Path) -> Project:
        """Return a copy of the project, as another checkout would be; compiled files stay."""
        shutil.copytree(self.folder, folder, ignore=shutil.ignore_patterns("__pycache__", "*.log"))
        return Project(folder, dict(self.options))

    def remove(self, name: str) -> None:
        """Remove a file of the project."""
        (self.folder / name).unlink()

    def rename(self, name: str, new: str) -> None:
        """Give a file of the project another name."""
        (self.folder / name).rename(self.folder / new)

    def taken(self, name: str) -> list[str]:
        """Return the lines of a log, which is empty afterwards."""
        path = self.folder / name
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def state(self) -> str:
        """Return a text that two projects share when they have the same files and options."""
        files = {
            str(path.relative_to(self.folder)): path.read_text()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and path.suffix not in {".log", ".pyc"}
        }
        return f"{files} {self.options}"

    def listing(self) -> str:
        """Return the names of the revisions' files with what each follows, for a failure."""
        return "\n".join(
            f"{path.name}: {' '.join(re.findall(r'^down_revision.*', path.read_text(), re.M))}"
            for path in sorted((self.folder / VERSIONS).glob("*.py"))
        )

    @contextmanager
    def importable(self) -> Iterator[None]:
        """Let what runs below import the project's modules, as its own pytest would."""
        sys.path.insert(0, str(self.folder))
        try:
            yield
        finally:
            sys.path.remove(str(self.folder))


class Shelf:
    """The templates in one server; all stay until `reset`, which keeps those of `remember`."""

    def __init__(self, server: Server[Any], spec: ServerSpec[Any]) -> None:
        self.server = server
        self._spec = spec
        self.known: dict[DatabaseName, str] = {}
        self._dumps: dict[str, str] = {}

    @property
    def admin(self) -> Databases:
        """The connection that works for the tests."""
        admin: Databases = self.server.client
        return admin

    def ensure(
        self,
        project: Project,
        *,
        admin: Databases | None = None,
        keep: bool = True,
        run: str = "",
        say: Callable[[str], None] = lambda _: None,
    ) -> templates.Template:
        """Return the template of the project as a new run gets it."""
        admin = admin or self.admin
        settings = Settings(**project.options)
        file_state = FileState(str(project.folder))
        alembic = Configurations(settings, project.folder).of(project.folder)
        with project.importable():
            request = templates.TemplateRequest(
                layers=layers.make(settings, project.folder, file_state, alembic),
                settings=settings,
                file_state=file_state,
                say=say,
                keep=keep,
                run=run or os.urandom(5).hex(),
            )
            made = templates.ensure(admin, request)
        # Nothing is dropped; it is only written down that they were used.
        admin.background.call(admin.main.execute, *made.notes())
        return made

    def templates(self) -> list[DatabaseName]:
        """Return the names of all templates."""
        return [each.name for each in self.admin.templates()]

    def leftovers(self) -> list[str]:
        """Return the databases of ours that are no templates."""
        names = {str(each) for each in self.templates()}
        return [str(each.name) for each in self.admin.all() if str(each.name) not in names]

    def remember(self) -> None:
        """Let `reset` keep the templates that are there now, as they are now."""
        self.known = {each.name: each.comment for each in self.admin.templates()}

    def reset(self) -> None:
        """Drop all templates but the known ones, which get back what they said of themselves."""
        for name in self.templates():
            if name not in self.known:
                self.drop(name)
        for name, comment in self.known.items():
            self.admin.mark(name, comment)

    def drop(self, name: DatabaseName) -> None:
        """Drop a template, whoever uses it."""
        statement = f'ALTER DATABASE "{name}" IS_TEMPLATE false'
        self.admin.background.call(self.admin.main.execute, statement)
        self.admin.drop(name)

    def dump(self, name: DatabaseName) -> str:
        """Return the settings of a template, and what pg_dump writes of a clone of it."""
        with keeping(self.admin, name) as clone_factory:
            clone = clone_factory.prepare().result(timeout=30)
            try:
                text = self._dumped(str(clone.name))
            finally:
                clone_factory.drop(clone).result(timeout=30)
        text = text.replace(str(clone.name), "database")
        text = re.sub(r"^\\(un)?restrict .*\n|^--.*\n|^\n", "", text, flags=re.M)
        # PostgreSQL does not promise in which order a table has its rows.
        rows = r"(^INSERT INTO .*\n)+"
        text = re.sub(
            rows, lambda each: "".join(sorted(each[0].splitlines(keepends=True))), text, flags=re.M
        )
        return "\n".join([*self.settings(name), text])

    def _dumped(self, database: str) -> str:
        """Return what pg_dump writes of a database."""
        endpoint = self.server.endpoint
        place = {
            "PGHOST": endpoint.host,
            "PGPORT": str(endpoint.port),
            "PGUSER": USER,
            "PGPASSWORD": endpoint.password,
        }
        programs: Any = self._spec.native("")
        command = [programs._find().folder / "pg_dump", "--inserts", "--create", database]
        return subprocess.run(command, env=place, check=True, capture_output=True, text=True).stdout

    def settings(self, name: DatabaseName) -> list[str]:
        """Return the settings of a template itself, without the one that is ours."""
        query = (
            "SELECT unnest(setconfig) FROM pg_db_role_setting"
            f" JOIN pg_database d ON d.oid = setdatabase WHERE datname = '{name}'"
        )
        found = [row[0] for row in self.admin.background.call(self.admin.main.fetch, query)]
        return sorted(each for each in found if not each.startswith("application_name=warmstack "))

    def from_nothing(self, project: Project) -> str:
        """Return the dump of the same project, built anew from an empty database."""
        if (state := project.state()) not in self._dumps:
            anew = Project(project.folder, {**project.options, "rebuild": True})
            comments = {each.name: each.comment for each in self.admin.templates()}
            made = self.ensure(anew, keep=False)
            try:
                if made.origin != "rebuilt":
                    raise ValueError(f"this was to be built from nothing: {made}")
                self._dumps[state] = self.dump(made.name)
            finally:
                for log in ("ran.log", "executions.log"):
                    project.taken(log)
                self.drop(made.name)
                # A rebuild retires the others; this one was for comparison only.
                for name, comment in comments.items():
                    self.admin.mark(name, comment)
        return self._dumps[state]


def promised(made: templates.Template) -> int:
    """Return how many revisions were run for a template, as its line in the header tells."""
    if made.origin == "found":
        return 0
    words = made.how if made.origin == "extended" else made.text
    return sum(int(count) for count in re.findall(r"(\d+) revisions?\b", words.split(" from ")[0]))
