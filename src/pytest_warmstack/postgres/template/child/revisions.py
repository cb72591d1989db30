"""Alembic at work: what `alembic upgrade heads` does, no less, and what it read meanwhile."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
import warnings
from argparse import Namespace
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import CommandLine, Config
from alembic.runtime.migration import MigrationContext
from alembic.script import Script, ScriptDirectory
from alembic.util import CommandError, to_tuple
from alembic.util.pyfiles import coerce_resource_to_filename
from sqlalchemy import URL, text

from pytest_warmstack.postgres.template.child import database_url, failures, revision_files, values
from pytest_warmstack.postgres.template.child.failures import Trouble
from pytest_warmstack.postgres.template.child.guard import Guard
from pytest_warmstack.postgres.template.child.recorder import Recorder, real
from pytest_warmstack.postgres.template.dependencies import python_files
from pytest_warmstack.postgres.template.record import CONFIG

_ALWAYS = frozenset({"package:alembic", "package:sqlalchemy"})
"""What every revision uses: it is noted once for all of them."""

_POSITIONAL = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
_NAMED = {inspect.Parameter.KEYWORD_ONLY}


_SCHEMA_OF = (
    "SELECT coalesce(max(nspname), current_schema()) FROM pg_namespace WHERE oid ="
    " (SELECT relnamespace FROM pg_class WHERE oid = to_regclass(quote_ident(:name)))"
)
"""The schema of a table that the connection sees under its bare name; else where it makes one."""


class Revisions:
    """The revisions of the project, planned and applied by Alembic itself.

    `stage` names what is being done, for an error, and `is_first` tells whether it is the first
    revision of all; `told` fills with what Alembic warns of.
    """

    def __init__(
        self,
        alembic: dict[str, Any],
        url: URL,
        guard: Guard,
        recorder: Recorder,
        tell: Callable[[str], None],
    ) -> None:
        self._alembic = alembic
        self._place = url
        self._url = url.render_as_string(hide_password=False)
        self._guard = guard
        self._recorder = recorder
        self._tell = tell
        self.stage = "config"
        self.is_first = False
        self.told: list[str] = []
        self.home: Path | None = None
        self._config: Config | None = None
        self._values = ""
        self._made_in: set[str] = set()
        self._script: ScriptDirectory | None = None
        self._keys: dict[str, str] = {}
        self._unseen = ""
        self._contexts: list[MigrationContext] = []
        self._ordered: list[Script] = []
        self._tables: list[list[str | None]] = []
        self._wanted: set[str] = set()
        self._watch_warnings()
        self._watch_contexts()

    def plan(self) -> dict[str, Any]:
        """Return the revisions in the order in which Alembic applies them to an empty database.

        `own` is true when there is nothing to plan: the project's callable migrates by itself, or
        its revisions can be loaded by `alembic upgrade` only.
        """
        if self._alembic["callable"]:
            # It may connect to nothing yet: whether it wants to is the question.
            self._guard.closed = True
            try:
                self._config = self._called()
            except Exception:
                if not self._guard.refused:
                    raise
            if self._config is None or self._guard.refused:
                self._guard.refused = ""
                return {"own": True}
            self._guard.closed = False
        else:
            self._config = self._read()
        try:
            self._load(self._wired(self._config))
        except NameError as error:
            if "proxy object" not in str(error):
                raise
            return {"own": True}  # They ask Alembic for the connection as they are loaded.
        return {
            "own": False,
            "links": self._links(self._order()),
            "heads": self._heads(),
            **self._common(),
        }

    def upgrade(self, links: list[str], *, own: bool) -> dict[str, Any]:
        """Apply the revisions *links* and return what they needed, and where the heads stand.

        With *own* all is applied that the project's own code wants to.
        """
        self._wanted, self._contexts, self._tables = set(links), [], []
        if own:
            config = self._called() if self._alembic["callable"] else self._read()
            self._config = config and self._wired(config)
        elif self._config is None:
            self.plan()  # What was planned is known from a template, in another process.
        self.stage = "upgrade"
        self._tell("in env.py")
        if self._config is not None:
            # Alembic's own command, whole. `heads`: a project may have several.
            command.upgrade(self._config, "heads")
        elif not self._contexts:
            raise Trouble(
                "config",
                f"{self._alembic['callable']} returned no alembic.config.Config, and Alembic did"
                " not run in this process either",
            )
        if own and self._script is not None:
            self._see_that_all_is_seen()
        ordered = self._order() if self._script else []
        done = [each for each in ordered if own or each.revision in self._wanted]
        return {
            "links": self._links(done),
            "heads": self._heads() if self._script else [],
            "tables": self._tables,
            **self._common(whole=own),
        }

    def _links(self, scripts: Iterable[Script]) -> list[list[Any]]:
        return [
            [each.revision, self._key(each), self._link_needs(each), self._after(each)]
            for each in scripts
        ]

    def _after(self, script: Script) -> list[str]:
        """Return the revisions that have to be applied before this one."""
        needed = self._loaded().get_revisions(script.dependencies or ())
        return [*to_tuple(script.down_revision, ()), *(each.revision for each in needed)]

    def _common(self, *, whole: bool = False) -> dict[str, Any]:
        """Return what is reported of all revisions together."""
        return {
            "needs": self._common_needs(whole=whole),
            "folders": self._folders(),
            "remark": "".join(
                (
                    self._heads_remark(),
                    self._unseen,
                    *(f" (Alembic warns: {each})" for each in self.told),
                )
            ),
        }

    def _heads_remark(self) -> str:
        """Return what is to be known of several heads: all of them are applied here."""
        count = len(self._script.get_heads()) if self._script else 0
        return f" ({count} heads: `alembic upgrade head` refuses them)" if count > 1 else ""

    def _heads(self) -> list[str]:
        """Return the heads that Alembic writes down: none that another revision depends on."""
        script = self._loaded()
        needed = {
            other.revision
            for each in self._order()
            if each.dependencies
            for other in script.get_revisions(each.dependencies)
        }
        return [each for each in script.get_heads() if each not in needed]

    def databases(self) -> list[str]:
        """Return the databases that the configuration lists, as Alembic's template multidb does."""
        listed = self._config.get_main_option("databases") if self._config else None
        return [] if self._alembic["callable"] else (listed or "").replace(",", " ").split()

    def by_path(self) -> dict[Path, str]:
        """Return the ids of the revisions by their files, as far as those can be loaded."""
        try:
            return {Path(each.path).resolve(): each.revision for each in self._order()}
        except Exception:
            return {}

    def _read(self) -> Config:
        """Return the configuration as the command `alembic` reads it."""
        options = self._options()
        config = Config(
            self._alembic["ini"],
            toml_file=self._alembic["toml"],
            ini_section=self._alembic["section"],
            cmd_opts=options,
        )
        section = self._alembic["section"]
        if section != "alembic" and not config.file_config.has_section(section):
            found = ", ".join(f"[{each}]" for each in config.file_config.sections())
            raise Trouble(
                "config",
                f"it has no section [{section}], as warmstack_alembic_section says, but {found}",
            )
        return config

    def _options(self) -> Namespace:
        """Return what the command line would be."""
        extra = [argument for each in self._alembic["x"] for argument in ("-x", each)]
        return CommandLine().parser.parse_args(
            ["-n", self._alembic["section"], *extra, "upgrade", "heads"]
        )

    def _called(self) -> Config | None:
        """Return what the project's callable gives: a configuration, or nothing."""
        # What it reads is its own.
        self._recorder.link(self._alembic["callable"])
        try:
            made = self._call(failures.attribute(self._alembic["callable"]))
            self._values = "" if made is None else values.digest(made, self._url)
        finally:
            self._recorder.link("")
        if made is not None and made.cmd_opts is None:
            made.cmd_opts = self._options()
        return made

    def _call(self, found: Any) -> Config | None:
        """Return what *found*, the callable, gives."""
        modules = (self._alembic["callable"].partition(":")[0], getattr(found, "__module__", ""))
        files = (getattr(sys.modules.get(each), "__file__", None) for each in modules)
        self._made_in = {real(each) for each in files if each}
        parameters = inspect.signature(found).parameters.values()
        if any(each.kind in _POSITIONAL for each in parameters):
            made = found(self._url)
        else:
            made = found(**{each.name: self._url for each in parameters if each.kind in _NAMED})
        if inspect.isawaitable(made):
            made = asyncio.run(_awaited(made))
        if made is not None and not isinstance(made, Config):
            raise Trouble(
                "config",
                f"{self._alembic['callable']} returned {made!r}, and neither an"
                " alembic.config.Config nor None",
            )
        config: Config | None = made
        return config

    def _wired(self, config: Config) -> Config:
        """Tell the configuration the URL, in the two ways in which env.py may ask for it."""
        if self._alembic["callable"]:
            url = database_url.like(database_url.own_url(config), self._place)
            self._url = url.render_as_string(hide_password=False)
        # ConfigParser takes % for the start of a substitution.
        config.set_main_option("sqlalchemy.url", self._url.replace("%", "%%"))
        config.attributes["url"] = self._url
        return config

    def _load(self, config: Config) -> None:
        """Load the revisions, before env.py runs: what this imports is theirs."""
        location = config.get_alembic_option("script_location")
        try:
            self._script = script = ScriptDirectory.from_config(config)
        except CommandError as error:
            known = f" (script_location is {Path.cwd() / location})" if location else ""
            raise Trouble("config", f"{error}{known}") from error
        self._take(script)
        self.stage = "revisions"
        self._tell("as the revisions were loaded")
        try:
            self._order()
        except Exception as error:
            if cause := revision_files.broken(self.told, self._keys):
                raise Trouble("revisions", f"{cause}\n{type(error).__name__}: {error}") from error
            raise
        self._see_that_all_is_seen()
        # What Alembic loads once more is what was planned, and it takes a while.
        original = ScriptDirectory.from_config

        def from_config(other: Config) -> ScriptDirectory:
            return script if other is config else original(other)

        ScriptDirectory.from_config = from_config  # type: ignore[method-assign,assignment]

    def _take(self, script: ScriptDirectory) -> None:
        """Look at the files of the revisions before they are loaded."""
        self.home = Path(script.dir).resolve()
        self._recorder.env = str(self.home / "env.py")
        paths = [path for folder in self._locations() for path in python_files(str(folder))]
        self._keys |= self._recorder.take_sources(paths)

    def _loaded(self) -> ScriptDirectory:
        """Return the folder of scripts, once there is one."""
        if self._script is None:
            raise Trouble("config", "no script location was seen")
        return self._script

    def _locations(self) -> list[Path]:
        """Return the folders of the revisions."""
        script = self._loaded()
        named = [coerce_resource_to_filename(str(each)) for each in script.version_locations or ()]
        folders = named or [Path(script.dir, "versions")]
        # Also those that are not there: one may appear.
        return [each.resolve() for each in folders]

    def _order(self) -> list[Script]:
        """Return the revisions in the order in which they are applied to an empty database."""
        if not self._ordered:
            found = self._loaded().iterate_revisions("heads", (), implicit_base=True)
            self._ordered = list(found)[::-1]
        return self._ordered

    def _key(self, script: Script) -> str:
        return self._recorder.key("file", str(script.path))

    def _link_needs(self, script: Script) -> dict[str, str]:
        needs = self._recorder.needs(str(script.path), script.revision)
        return self._recorder.digests(needs - _ALWAYS, own=self._key(script))

    def _common_needs(self, *, whole: bool) -> dict[str, str]:
        """Return what every revision depends on: the configuration, env.py, Alembic itself.

        With *whole* also what each of them depends on: all of them stand in one link.
        """
        recorder, alembic = self._recorder, self._alembic
        keys = set(_ALWAYS)
        for kind in ("ini", "toml"):
            if alembic[kind]:
                keys.add(recorder.key(kind, alembic[kind]))
        if alembic["callable"] and self._values:
            # Also what it shares with env.py, which may have imported it for more than the models.
            makers = self._makers()
            keys |= recorder.needs_of(makers & recorder.modules(recorder.env))
            keys |= {recorder.key("file", each) for each in makers & self._made_in}
        elif alembic["callable"]:
            # What it is made of may come from anywhere.
            keys |= recorder.needs_of(self._makers(), alembic["callable"])
        if self.home is not None:
            # Of what env.py imports only what lies with it: the application's models may change.
            lying = {
                each
                for each in recorder.modules(str(self.home / "env.py"))
                if Path(each).is_relative_to(self.home)
            }
            keys |= {recorder.key("file", each) for each in lying}
            for folder in (self.home, *(self._locations() if self._script else ())):
                keys |= recorder.version(str(folder))
        if whole:
            for path in self._keys:
                keys |= recorder.needs(path)
        made = {f"{CONFIG}{alembic['callable']}": self._values} if self._values else {}
        return recorder.digests(keys) | made

    def _makers(self) -> set[str]:
        """Return the files of the function's module and of what that imports."""
        return self._recorder.modules_of(self._alembic["callable"].partition(":")[0])

    def _folders(self) -> dict[str, str]:
        """Return what has to be planned again when it changes: where a new revision may appear.

        And what the function reads, which may then give other values.
        """
        keys: set[str] = set()
        if self._script is not None:
            keys |= {self._recorder.key("scripts", str(each)) for each in self._locations()}
        if self._values:
            keys |= self._recorder.needs_of(self._makers(), self._alembic["callable"])
        return self._recorder.digests(keys)

    def _see_that_all_is_seen(self) -> None:
        """Raise for revisions that do not fit together, or that Alembic does not see."""
        if cause := revision_files.broken(self.told, self._keys):
            raise Trouble("revisions", cause)
        seen = {real(str(each.path)): each.revision for each in self._order()}
        home = Path(self._loaded().dir).resolve()
        # Below a script location that holds the whole project lies more than scripts.
        inside = Path.cwd().resolve().is_relative_to(home)
        folders = [home / "versions" if inside else home, *self._locations()]
        missing, aside = (
            [each for each in paths if not self._recorder.is_ignored(self._name(each))]
            for paths in revision_files.unseen(map(str, folders), seen)
        )
        count = len(missing) + len(aside)
        if missing:
            names = [self._name(each) for each in missing]
            raise Trouble(
                "revisions",
                f"Alembic sees {len(seen)} of {len(seen) + count} revision files, and not:"
                f" {', '.join(names[:10])}{' ...' if len(names) > 10 else ''}\n"
                "(version_locations and recursive_version_locations tell it where to look)",
                unseen=[
                    self._name(each) for each in revision_files.apart([*missing, *aside], seen)
                ],
            )
        if aside:
            files = "file" if count == 1 else "files"
            self._unseen = f" ({count} revision {files} that Alembic does not see)"

    def _name(self, path: str) -> str:
        """Return the name of a file, as keys and patterns have it."""
        return self._recorder.key("file", path).partition(":")[2]

    def _watch_warnings(self) -> None:
        """Take down what Alembic warns of; it names files that it can't place."""
        show = warnings.showwarning

        def keep(
            message: Warning | str, category: type[Warning], filename: str, *rest: Any
        ) -> None:
            is_alembics = "alembic" in Path(filename).parts
            if is_alembics and not issubclass(category, DeprecationWarning):
                self.told += [str(message)] if str(message) not in self.told else []
            show(message, category, filename, *rest)

        warnings.showwarning = keep  # type: ignore[assignment]

    def _watch_contexts(self) -> None:
        """See every context that env.py configures: it knows the version table, and the steps."""
        original = MigrationContext.configure.__func__  # type: ignore[attr-defined]

        def configure(cls: type[MigrationContext], *args: Any, **kwargs: Any) -> MigrationContext:
            context: MigrationContext = original(cls, *args, **kwargs)
            self._contexts.append(context)
            if self._script is None and context.script is not None:
                self._script = context.script
                self._take(context.script)
            if (steps := context._migrations_fn) is not None:  # noqa: SLF001
                context._migrations_fn = self._recorded(steps)  # noqa: SLF001
            return context

        MigrationContext.configure = classmethod(configure)  # type: ignore[method-assign,assignment]

    def _recorded(self, steps: Callable[..., Iterable[Any]]) -> Callable[..., list[Any]]:
        """Return those of *steps* that are wanted, in Alembic's own order, and recorded."""

        def planned(heads: Any, context: MigrationContext) -> list[Any]:
            self._note_table(context)
            found = list(steps(heads, context))
            ids = [getattr(getattr(each, "revision", None), "revision", None) for each in found]
            if None in ids:
                return found  # A stamp, and no upgrade.
            by_id = dict(zip(ids, found, strict=True))
            wanted = [each for each in ids if each in self._wanted] if self._wanted else ids
            return [self._watched(str(each), by_id[each]) for each in wanted]

        return planned

    def _note_table(self, context: MigrationContext) -> None:
        """Note where the version table is, which Alembic has just made or found."""
        schema = context.version_table_schema
        if schema is None and context.connection is not None:
            # Where the connection finds it depends on its search_path, which only it knows.
            schema = context.connection.scalar(text(_SCHEMA_OF), {"name": context.version_table})
        if [schema, context.version_table] not in self._tables:
            self._tables.append([schema, context.version_table])

    def _watched(self, name: str, step: Any) -> Any:
        original = step.migration_fn
        file = Path(step.revision.path).name

        @functools.wraps(original)  # Alembic writes its name to the log: "Running upgrade".
        def migrate(**kwargs: Any) -> None:
            self._tell(f"in revision {name} ({file})")
            self._recorder.link(name)
            self.is_first = not step.revision.down_revision
            try:
                original(**kwargs)
            finally:
                self._recorder.link("")
            self.is_first = False
            self._tell("in env.py")

        step.migration_fn = migrate
        return step


async def _awaited(made: Awaitable[Any]) -> Any:
    return await made
