"""Plans and applies what `alembic upgrade heads` does, and reports what it read."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import Script, ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL, text

from pytest_warmstack.postgres.template.child.configuration import Configuration
from pytest_warmstack.postgres.template.child.failures import BuildFailure, listen_to_warnings
from pytest_warmstack.postgres.template.child.guard import Guard
from pytest_warmstack.postgres.template.child.history import History, misfits
from pytest_warmstack.postgres.template.child.recorder import Recorder

_ALWAYS: Final = frozenset({"package:alembic", "package:sqlalchemy"})
"""What every revision needs: it is reported once for all of them."""

_SCHEMA_OF: Final = (
    "SELECT coalesce(max(nspname), current_schema()) FROM pg_namespace WHERE oid ="
    " (SELECT relnamespace FROM pg_class WHERE oid = to_regclass(quote_ident(:name)))"
)
"""The schema in which the connection finds a table by its bare name, or would create it."""


class Revisions:
    """The revisions of the project, planned and applied by Alembic itself.

    For the report of an error, `stage` names the kind of work, `is_first` is true while the first
    of all revisions runs, and `alembic_warnings` collects Alembic's warnings.
    """

    def __init__(
        self,
        alembic: dict[str, Any],
        url: URL,
        guard: Guard,
        recorder: Recorder,
        tell: Callable[..., None],
    ) -> None:
        self.configuration = Configuration(alembic, url, recorder)
        self.stage = "config"
        self.is_first = False
        self.alembic_warnings: list[str] = []
        self._guard = guard
        self._recorder = recorder
        self._tell = tell
        self._history: History | None = None
        self._keys: dict[str, str] = {}
        self._remark = ""
        self._has_context = False
        self._tables: list[list[str | None]] = []
        self._wanted: set[str] = set()
        listen_to_warnings(self._note_warning)
        self._wrap_contexts()

    def plan(self) -> dict[str, Any]:
        """Return the revisions in the order in which Alembic applies them to an empty database.

        `own` is true if nothing can be planned: the project's function runs the migrations itself,
        or only `alembic upgrade` can load the revisions.
        """
        config = self._plan_config()
        if config is None:
            return {"own": True}
        try:
            self._load(config)
        except NameError as error:
            if "proxy object" not in str(error):
                raise
            return {"own": True}  # The revisions use Alembic's connection when they are imported.
        return {"own": False, **self._report(self._order())}

    def upgrade(self, links: list[str], *, own: bool) -> dict[str, Any]:
        """Apply the revisions *links*; return what they needed, and where the heads are.

        With *own*, apply everything that the project's own code applies.
        """
        self._wanted, self._has_context, self._tables = set(links), False, []
        if own:
            self.configuration.make()
        elif self.configuration.config is None:
            self.plan()  # Another process made the plan: a template has recorded it.
        self.stage = "upgrade"
        self._tell("in env.py")
        if (config := self.configuration.config) is not None:
            # Run Alembic's own command, with `heads`, since a project may have several.
            command.upgrade(config, "heads")
        elif not self._has_context:
            raise BuildFailure(
                "config",
                f"{self.configuration.function} returned no alembic.config.Config, and did not run"
                " Alembic in this process either",
            )
        if own:
            self._check_complete()
        done = [each for each in self._order() if own or each.revision in self._wanted]
        return {**self._report(done, own=own), "tables": self._tables}

    @property
    def home(self) -> Path | None:
        """The script location; None until it is known."""
        return self._history.home if self._history else None

    def by_path(self) -> dict[Path, str]:
        """Return the ids of the revisions by their files; empty if Alembic can't load them."""
        try:
            return {Path(each.path).resolve(): each.revision for each in self._order()}
        except Exception:
            return {}

    def _plan_config(self) -> Config | None:
        """Return the configuration; None if the project's function connects itself."""
        if not self.configuration.function:
            return self.configuration.make()
        self._guard.closed = True
        config = None
        try:
            config = self.configuration.make()
        except Exception:
            if not self._guard.refused:
                raise
        if self._guard.refused or config is None:
            self._guard.refused = ""
            return None
        self._guard.closed = False
        return config

    def _load(self, config: Config) -> None:
        """Load the revisions before env.py, so that their imports are recorded as theirs."""
        location = config.get_alembic_option("script_location")
        try:
            script = ScriptDirectory.from_config(config)
        except CommandError as error:
            known = f" (script_location is {Path.cwd() / location})" if location else ""
            raise BuildFailure("config", f"{error}{known}") from error
        self._use(script)
        self.stage = "revisions"
        self._tell("as the revisions were loaded")
        try:
            self._order()
        except Exception as error:
            if cause := misfits(self.alembic_warnings, self._keys):
                cause = f"{cause}\n{type(error).__name__}: {error}"
                raise BuildFailure("revisions", cause) from error
            raise
        self._check_complete()
        # Alembic's command would load them again, which takes a while.
        original = ScriptDirectory.from_config

        def from_config(other: Config) -> ScriptDirectory:
            return script if other is config else original(other)

        ScriptDirectory.from_config = from_config  # type: ignore[method-assign,assignment]

    def _use(self, script: ScriptDirectory) -> None:
        """Record the files of the revisions before they are loaded."""
        self._history = History(script)
        self._recorder.env = str(self._history.home / "env.py")
        self._keys |= self._recorder.add_revision_files(self._history.files())

    def _order(self) -> list[Script]:
        return self._history.order if self._history else []

    def _check_complete(self) -> None:
        """Raise `BuildFailure` if revisions don't fit together, or Alembic ignores some."""
        if self._history is None:
            return
        if cause := misfits(self.alembic_warnings, self._keys):
            raise BuildFailure("revisions", cause)
        self._remark = self._history.check_complete(self._recorder)

    def _report(self, scripts: list[Script], *, own: bool = False) -> dict[str, Any]:
        history = self._history
        heads = len(history.script.get_heads()) if history else 0
        remarks = [f" ({heads} heads: `alembic upgrade head` refuses them)"] * (heads > 1)
        warned = [f" (Alembic warns: {each})" for each in self.alembic_warnings]
        return {
            "links": [
                [each.revision, self._key(each), self._needs(each), history.after(each)]
                for each in scripts
                if history
            ],
            "heads": history.heads if history else [],
            "needs": self._common_needs(own=own),
            "folders": self._folders(),
            "remark": "".join([*remarks, self._remark, *warned]),
        }

    def _key(self, script: Script) -> str:
        return self._recorder.key("file", str(script.path))

    def _needs(self, script: Script) -> dict[str, str]:
        recorder = self._recorder
        needs = recorder.needs(recorder.modules(str(script.path)), script.revision)
        return recorder.digests(needs - _ALWAYS, own=self._key(script))

    def _common_needs(self, *, own: bool) -> dict[str, str]:
        """Return what every revision depends on: the configuration, env.py, Alembic itself.

        With *own*, add what each of them depends on, because they are one build step.
        """
        recorder, history = self._recorder, self._history
        keys = _ALWAYS | self.configuration.needs(recorder.env)
        if history is not None:
            # Of env.py's imports, only the files next to it: the application's models may change.
            beside = [
                each
                for each in recorder.modules(recorder.env)
                if Path(each).is_relative_to(history.home)
            ]
            keys |= {recorder.key("file", each) for each in beside}
            for folder in (history.home, *history.locations):
                keys |= recorder.package_of(str(folder))
        for path in self._keys if own else ():
            keys |= recorder.needs(recorder.modules(path))
        return recorder.digests(keys) | self.configuration.digests()

    def _folders(self) -> dict[str, str]:
        """Return the keys whose change requires a new plan: folders in which revisions may appear.

        And what the project's function reads, because its result may then change.
        """
        locations = self._history.locations if self._history else ()
        keys = {self._recorder.key("scripts", str(each)) for each in locations}
        if self.configuration.digests():
            keys |= self.configuration.function_needs()
        return self._recorder.digests(keys)

    def _note_warning(self, text: str, category: type[Warning], file: str, _line: int) -> None:
        """Record Alembic's warnings, such as those about revisions that don't fit together."""
        is_alembic = "alembic" in Path(file).parts and not issubclass(category, DeprecationWarning)
        if is_alembic and text not in self.alembic_warnings:
            self.alembic_warnings.append(text)

    def _wrap_contexts(self) -> None:
        """Hook into each context that env.py configures: it has the version table and the steps."""
        original = MigrationContext.configure.__func__  # type: ignore[attr-defined]

        def configure(cls: type[MigrationContext], *args: Any, **kwargs: Any) -> MigrationContext:
            context: MigrationContext = original(cls, *args, **kwargs)
            self._has_context = True
            if self._history is None and context.script is not None:
                self._use(context.script)
            if (steps := context._migrations_fn) is not None:  # noqa: SLF001
                context._migrations_fn = self._wrap_steps(steps)  # noqa: SLF001
            return context

        MigrationContext.configure = classmethod(configure)  # type: ignore[method-assign,assignment]

    def _wrap_steps(self, steps: Callable[..., Iterable[Any]]) -> Callable[..., list[Any]]:
        """Return a function that selects the wanted ones of *steps*, in Alembic's own order."""

        def wanted(heads: Any, context: MigrationContext) -> list[Any]:
            self._note_table(context)
            found = list(steps(heads, context))
            if not all(hasattr(each, "revision") for each in found):
                return found  # A stamp instead of an upgrade.
            names = [each.revision for each in self._order()]
            places = {name: f"{place} of {len(names)}" for place, name in enumerate(names, 1)}
            return [
                self._wrap_step(each, places.get(each.revision.revision, ""))
                for each in found
                if not self._wanted or each.revision.revision in self._wanted
            ]

        return wanted

    def _note_table(self, context: MigrationContext) -> None:
        """Record where the version table is, which Alembic has just created or found."""
        schema = context.version_table_schema
        if schema is None and context.connection is not None:
            # Its schema depends on the search_path of the connection.
            schema = context.connection.scalar(text(_SCHEMA_OF), {"name": context.version_table})
        if [schema, context.version_table] not in self._tables:
            self._tables.append([schema, context.version_table])

    def _wrap_step(self, step: Any, place: str) -> Any:
        original, revision = step.migration_fn, step.revision

        @functools.wraps(original)  # Alembic logs its name: "Running upgrade".
        def migrate(**kwargs: Any) -> None:
            file = Path(revision.path).name
            self._tell(f"in revision {revision.revision} ({file})", f"revision {place}, {file}")
            self.is_first = not revision.down_revision
            with self._recorder.step(revision.revision):
                original(**kwargs)
            self.is_first = False
            self._tell("in env.py", "running the migrations")

        step.migration_fn = migrate
        return step
