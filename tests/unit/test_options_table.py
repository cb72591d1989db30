"""The table of choices, and which of several values for one choice wins."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest

from pytest_warmstack import options
from pytest_warmstack.options import (
    OPTIONS,
    RESERVED,
    Isolation,
    Kind,
    Leaks,
    Lookup,
    MaskedUrl,
    Option,
    RedisPlan,
    RuntimeName,
    Settings,
    ci,
    environment,
    is_attribute,
    pairs,
    resolve,
)
from pytest_warmstack.placeholders import filled
from pytest_warmstack.settings_errors import SettingsError

EXAMPLES: dict[Kind, tuple[object, object]] = {
    options.SWITCH: ("yes", True),
    options.RUNTIME: ("docker", RuntimeName.DOCKER),
    options.ISOLATION: ("rollback", Isolation.ROLLBACK),
    options.LEAKS: ("ignore", Leaks.IGNORE),
    options.REPORT: ("costs.json", "costs.json"),
    options.REDIS: ("per-process", RedisPlan.PER_PROCESS),
    options.TEXT: ("postgres:15", "postgres:15"),
    options.PATH: ("conf/alembic.ini", "conf/alembic.ini"),
    options.SECONDS: ("2.5", 2.5),
    options.AGE: ("12h", 43200.0),
    options.POSTGRES_URL: ("postgresql://ci:x@db/any", "postgresql://ci:x@db/any"),
    options.REDIS_URL: ("rediss://cache:6380/0", "rediss://cache:6380/0"),
    options.COUNT: ("7", 7),
    options.LIMIT: ("0", 0),
    options.CONFIG: ("shop.db:make_config", "shop.db:make_config"),
    options.FLAG: (True, True),
    options.ADDRESSES: (["db:5432"], ("db:5432",)),
    options.PAIRS: (["tenant=a"], ("tenant=a",)),
    options.POSTGRES_ARGS: (["max_connections=500"], ("max_connections=500",)),
    options.POSTGRES_ENV: (["TZ=UTC"], ("TZ=UTC",)),
    options.PATTERNS: (["sql/*.sql"], ("sql/*.sql",)),
    options.SCRIPTS: (["sql/base.sql"], ("sql/base.sql",)),
    options.ENV: (["DATABASE_URL={db_url}"], ("DATABASE_URL={db_url}",)),
}
"""For each kind a raw value that no choice has as its default, and what it becomes."""

NAMES: dict[Kind, str] = {choice.kind: name for name, choice in reversed(OPTIONS.items())}
"""For each kind the first choice that has it."""


LISTS = {option.kind for option in OPTIONS.values() if option.kind.ini == "linelist"}
"""The kinds of several lines, which come from pytest's configuration file alone."""


def given(source: str, **values: object) -> Lookup:
    """Return a place called *source* that holds *values*."""

    def find(choice: Option) -> tuple[object, str] | None:
        return (values[choice.name], source) if choice.name in values else None

    return find


# Which value wins


def test_without_any_value_every_choice_has_its_default() -> None:
    """Settings that nobody chose are the defaults of the table, and have no sources."""
    settings = resolve(given("nowhere"))

    assert settings == Settings()
    assert {name: getattr(settings, name) for name in OPTIONS} == {
        name: choice.default for name, choice in OPTIONS.items()
    }
    assert settings.sources == {}


def test_the_defaults_are_those_that_the_mission_names() -> None:
    """PostgreSQL 16 and Redis 7 on Alpine, on whatever runs here, and nothing is kept."""
    settings = Settings()

    assert settings.postgres_image == "postgres:16-alpine"
    assert settings.redis_image == "redis:7-alpine"
    assert settings.runtime is RuntimeName.AUTO
    assert settings.reuse is False


def test_the_first_lookup_that_has_a_value_wins() -> None:
    """Of four places that name an image, the first is believed, and then the next."""
    places = [given(f"place {number}", redis_image=f"redis:{number}") for number in range(4)]

    for first in range(4):
        settings = resolve(*places[first:])
        assert settings.redis_image == f"redis:{first}"
        assert settings.sources == {"redis_image": f"place {first}"}


def test_each_choice_takes_its_value_and_its_source_from_its_own_place() -> None:
    """Values from three places stand side by side, each with the source it came from."""
    settings = resolve(
        given("command line", reuse=True),
        given("environment", runtime="docker", reuse=False),
        given("ini", redis_image="redis:8", runtime="auto"),
    )

    assert (settings.reuse, settings.runtime, settings.redis_image) == (
        True,
        RuntimeName.DOCKER,
        "redis:8",
    )
    assert settings.sources == {
        "reuse": "command line",
        "runtime": "environment",
        "redis_image": "ini",
    }


@pytest.mark.parametrize("no", [False, 0, "0", "no", "false", "off", "No", " FALSE "])
def test_a_no_above_beats_a_yes_below(no: object) -> None:
    """A value that is false still counts as given."""
    settings = resolve(given("above", reuse=no), given("below", reuse=True))

    assert settings.reuse is False
    assert settings.sources["reuse"] == "above"


def test_a_bad_value_below_is_not_looked_at() -> None:
    """A value that loses can't make the run fail."""
    settings = resolve(given("above", runtime="docker"), given("below", runtime="podman"))

    assert settings.runtime is RuntimeName.DOCKER


# The table's rows


@pytest.mark.parametrize("name", OPTIONS)
def test_each_choice_can_be_set(name: str) -> None:
    """A value for a choice arrives in the field of that name, and in no other."""
    raw, converted = EXAMPLES[OPTIONS[name].kind]

    settings = resolve(given("test", **{name: raw}))

    assert getattr(settings, name) == converted
    assert converted != OPTIONS[name].default
    assert all(
        getattr(settings, other) == choice.default
        for other, choice in OPTIONS.items()
        if other != name
    )


@pytest.mark.parametrize("name", [name for name, row in OPTIONS.items() if row.variable])
def test_each_choice_with_a_variable_is_read_from_it(name: str) -> None:
    """`WARMSTACK_` and the name in capitals is the variable, and is named as the source."""
    raw, converted = EXAMPLES[OPTIONS[name].kind]
    variable = f"WARMSTACK_{name.upper()}"

    settings = resolve(environment({variable: str(raw)}))

    assert getattr(settings, name) == converted
    assert settings.sources == {name: f"environment variable {variable}"}


def test_every_row_has_the_names_that_its_kind_can_have() -> None:
    """The names of a choice are derived from one, except for the flag that others know.

    Lines stand in the ini file alone, and what is for one run only has no variable.
    """
    for name, choice in OPTIONS.items():
        assert choice.ini == f"warmstack_{name}"
        assert (choice.flag is None) == (choice.kind in LISTS)
        assert (choice.variable is None) == (choice.kind in LISTS | {options.FLAG})
    assert OPTIONS["reuse"].flag == "--reuse-containers"
    assert OPTIONS["postgres_image"].flag == "--warmstack-postgres-image"
    assert OPTIONS["postgres_image"].variable == "WARMSTACK_POSTGRES_IMAGE"


def test_every_field_is_a_row_and_has_a_help_text() -> None:
    """No field but `sources` and `file` is left out of the table, and none is left unexplained."""
    fields = set(Settings.field_names)

    assert fields - set(OPTIONS) == {"sources", "file"}
    assert all(choice.help and not choice.help.endswith(".") for choice in OPTIONS.values())


# The environment


@pytest.mark.parametrize("name", [name for name, row in OPTIONS.items() if row.variable])
def test_an_empty_variable_counts_as_unset(name: str) -> None:
    """A variable that is set to nothing changes nothing."""
    settings = resolve(environment({f"WARMSTACK_{name.upper()}": ""}))

    assert settings == Settings()


def test_a_choice_without_a_variable_is_not_read_from_the_environment() -> None:
    """Lines for the migrations' environment come from the ini file alone."""
    settings = resolve(environment({"WARMSTACK_ENV": "A=B", "None": "A=B"}))

    assert settings == Settings()


@pytest.mark.parametrize("name", [name for name, row in OPTIONS.items() if not row.variable])
def test_a_variable_that_does_not_exist_is_not_read(name: str) -> None:
    """A build anew, once exported, would be done in every run; lines do not fit into a variable."""
    assert resolve(environment({f"WARMSTACK_{name.upper()}": "1"})) == Settings()


@pytest.mark.parametrize("value", ["true", "1", "yes", "GitHub"])
def test_ci_switches_off_what_the_project_switched_on(value: str) -> None:
    """Where `CI` is set, a reuse that stands in the ini file does not count."""
    settings = resolve(ci({"CI": value}), given("ini", reuse=True))

    assert settings.reuse is False
    assert settings.sources["reuse"] == "environment variable CI"


@pytest.mark.parametrize("environ", [{}, {"CI": ""}, {"CI": "0"}, {"CI": "false"}, {"CI": "False"}])
def test_a_ci_that_says_no_switches_nothing_off(environ: dict[str, str]) -> None:
    """`CI=false` and no `CI` are the same."""
    assert resolve(ci(environ), given("ini", reuse=True)).reuse is True


def test_ci_leaves_the_other_choices_alone() -> None:
    """Only the reuse is a matter of what becomes of the machine."""
    settings = resolve(ci({"CI": "true"}), given("ini", runtime="docker"))

    assert settings.runtime is RuntimeName.DOCKER


def test_the_variable_of_the_reuse_beats_ci() -> None:
    """Who sets our own variable on a CI machine means it."""
    environ = {"CI": "true", "WARMSTACK_REUSE": "1"}

    settings = resolve(environment(environ), ci(environ), given("ini", reuse=False))

    assert settings.reuse is True


def test_the_command_line_beats_ci() -> None:
    """Who types the option on a CI machine means it."""
    environ = {"CI": "true"}

    settings = resolve(given("command line", reuse=True), environment(environ), ci(environ))

    assert settings.reuse is True


# Conversions

GOOD: list[tuple[Kind, object, object]] = [
    (options.SWITCH, True, True),
    (options.SWITCH, False, False),
    *((options.SWITCH, yes, True) for yes in ("1", "true", "yes", "on", "True", "YES", " on ", 1)),
    *((options.SWITCH, no, False) for no in ("0", "false", "no", "off", "False", "NO", " off ", 0)),
    (options.RUNTIME, "auto", RuntimeName.AUTO),
    (options.RUNTIME, "Docker", RuntimeName.DOCKER),
    (options.RUNTIME, " embedded\n", RuntimeName.EMBEDDED),
    (options.ISOLATION, "clone", Isolation.CLONE),
    (options.ISOLATION, " Module ", Isolation.MODULE),
    (options.ISOLATION, "class", Isolation.CLASS),
    (options.LEAKS, "Report", Leaks.REPORT),
    (options.REPORT, "Yes", options.YES),
    (options.REPORT, " 1 ", options.YES),
    (options.REPORT, "off", ""),
    (options.REPORT, "out/costs.json", "out/costs.json"),
    (options.REDIS, "shared", RedisPlan.SHARED),
    (options.REDIS, "Per-Process\n", RedisPlan.PER_PROCESS),
    (options.TEXT, " postgres:16 ", "postgres:16"),
    (options.PATH, "alembic.ini", "alembic.ini"),
    (options.SECONDS, "1", 1.0),
    (options.SECONDS, 0.5, 0.5),
    (options.SECONDS, " 1e2 ", 100.0),
    (options.AGE, "7d", 604800.0),
    (options.AGE, " 30 min ", 1800.0),
    (options.AGE, "1.5H", 5400.0),
    (options.AGE, "0s", 0.0),
    (options.AGE, "Never", float("inf")),
    (options.POSTGRES_URL, " postgres://db ", "postgres://db"),
    (
        options.POSTGRES_URL,
        "postgresql+asyncpg://a:b@[::1]:1/x",
        "postgresql+asyncpg://a:b@[::1]:1/x",
    ),
    (
        options.POSTGRES_URL,
        "postgresql://db?sslmode=verify-full",
        "postgresql://db?sslmode=verify-full",
    ),
    (options.REDIS_URL, "redis://cache", "redis://cache"),
    (
        options.REDIS_URL,
        "rediss://u:p@cache:1/?ssl_cert_reqs=none",
        "rediss://u:p@cache:1/?ssl_cert_reqs=none",
    ),
    (options.COUNT, "1", 1),
    (options.COUNT, " 12 ", 12),
    (options.COUNT, 3, 3),
    (options.LIMIT, "0", 0),
    (options.LIMIT, " 12 ", 12),
    (options.CONFIG, " conf/alembic.ini ", "conf/alembic.ini"),
    (options.CONFIG, "shop.db:make_config", "shop.db:make_config"),
    (options.FLAG, True, True),
    *(
        (options.ADDRESSES, [line], (line,))
        for line in ("*", "db:5432", "db.x-1.example:*", "[::1]:6379", "/run/postgresql")
    ),
    (options.PAIRS, [], ()),
    (options.PAIRS, ["tenant=a", "  dry run=no ", "", "x="], ("tenant=a", "dry run=no", "x=")),
    (options.PAIRS, ["a={not a name of ours}"], ("a={not a name of ours}",)),
    (options.POSTGRES_ARGS, [], ()),
    (options.POSTGRES_ARGS, ["fsync=on", " work_mem = 8MB ", ""], ("fsync=on", "work_mem=8MB")),
    (options.POSTGRES_ARGS, ["TimeZone=Europe/Berlin"], ("timezone=Europe/Berlin",)),
    (options.POSTGRES_ARGS, ["auto_explain.log_format=json"], ("auto_explain.log_format=json",)),
    (options.POSTGRES_ARGS, ["search_path=", "x.y=a=b c"], ("search_path=", "x.y=a=b c")),
    (options.POSTGRES_ENV, [], ()),
    (options.POSTGRES_ENV, ["TZ=UTC", " TOKEN=a = {b} ", ""], ("TZ=UTC", "TOKEN=a = {b}")),
    (options.POSTGRES_ENV, ["EMPTY=", "lower_1=x"], ("EMPTY=", "lower_1=x")),
    (
        options.POSTGRES_ENV,
        ["POSTGRES_INITDB_ARGS=--locale-provider=icu --icu-rules='&a < b'"],
        ("POSTGRES_INITDB_ARGS=--locale-provider=icu --icu-rules='&a < b'",),
    ),
    (options.PATTERNS, [], ()),
    (options.PATTERNS, ["sql", " data/**/*.csv ", "", "../x"], ("sql", "data/**/*.csv", "../x")),
    (options.SCRIPTS, [], ()),
    (
        options.SCRIPTS,
        ["sql/a b.sql", " shop.models:Base.metadata ", "", "/abs.sql"],
        ("sql/a b.sql", "shop.models:Base.metadata", "/abs.sql"),
    ),
    (options.ENV, [], ()),
    (options.ENV, ["A=1", "  B=2 ", ""], ("A=1", "B=2")),
    (options.ENV, ("A=",), ("A=",)),
    (options.ENV, ["A=x=y"], ("A=x=y",)),
    (options.ENV, ["A={db_host}:{db_port}"], ("A={db_host}:{db_port}",)),
    (options.ENV, ["A={{}}"], ("A={{}}",)),
    *((options.ENV, [line], (line,)) for line in ("A={", "A={}", "A={0}", "A={{db_ulr}}")),
    *((options.ENV, [line], (line,)) for line in ('A={"b": {"c": {db_port}}}', "A={name} {id}")),
]


@pytest.mark.parametrize(("kind", "raw", "converted"), GOOD)
def test_a_good_value_is_converted(kind: Kind, raw: object, converted: object) -> None:
    """A value in any of its usual spellings becomes the type that the field has."""
    name = NAMES[kind]

    settings = resolve(given("test", **{name: raw}))

    assert getattr(settings, name) == converted
    assert type(getattr(settings, name)) is type(converted)


BAD: list[tuple[Kind, Any]] = [
    *((options.SWITCH, raw) for raw in ("", "maybe", "2", 2, None, [])),
    *((options.RUNTIME, raw) for raw in ("", "podman", "docker,embedded", None)),
    *((options.ISOLATION, raw) for raw in ("", "none", "package", "clone,class", None)),
    *((options.LEAKS, raw) for raw in ("", "no", "all", None)),
    *((options.REPORT, raw) for raw in ("tests", "costs.txt", "json", "2", None, [])),
    *((options.REDIS, raw) for raw in ("", "own", "per_process", None)),
    *((options.TEXT, raw) for raw in ("", "  ")),
    *((options.PATH, raw) for raw in ("", "\t")),
    *((options.SECONDS, raw) for raw in ("", "soon", "0", "-1", 0, "inf", "nan", "1 s", None)),
    *(
        (options.AGE, raw)
        for raw in ("", "7", "d", "-1d", "inf", "inf d", "nan d", "7 weeks", 7, None)
    ),
    *(
        (options.POSTGRES_URL, raw)
        for raw in ("", "db", "postgresql:///x", "postgres://:1", "postgres://db#x")
    ),
    *((options.POSTGRES_URL, f"postgres://db{raw}") for raw in (":0", ":99999", "?host=/run")),
    *((options.REDIS_URL, raw) for raw in ("", "cache:6379", "redis:///0", "//cache")),
    *((options.REDIS_URL, f"redis://cache{raw}") for raw in ("/5", "/x", "/0/1", ":0")),
    *((options.COUNT, raw) for raw in ("", "many", "0", "-1", 0, "1.5", 1.5, "inf", None, [3])),
    *((options.LIMIT, raw) for raw in ("", "many", "-1", "1.5", "inf", None, [3])),
    *((options.CONFIG, raw) for raw in ("", "  ")),
    *((options.FLAG, raw) for raw in ("", "maybe", 2)),
    *((options.ADDRESSES, [raw]) for raw in ("db", "db:", ":5432", "db:x", "db:0", "db:70000")),
    *(
        (options.ADDRESSES, [raw])
        for raw in ("a b:1", "*:1", "::1:1", "run/pg:1", "redis://db:6379", "**")
    ),
    (options.ADDRESSES, "db:5432"),
    *((options.PAIRS, raw) for raw in (["NAME"], ["=x"], [" = x"], ["a=1", "b"], "a=1", None)),
    *((options.POSTGRES_ARGS, raw) for raw in (["fsync"], ["=x"], ["a-b=1"], ["1a=x"], ["a..b=1"])),
    *(
        (options.POSTGRES_ARGS, raw)
        for raw in (["-c fsync=on"], ["größe=1"], ["a.=1"], "a=1", None)
    ),
    *((options.POSTGRES_ENV, raw) for raw in (["NAME"], ["A=1", "b"], "A=1", None)),
    (options.POSTGRES_ENV, ["POSTGRES_INITDB_ARGS=--set 'a"]),
    *((options.PATTERNS, raw) for raw in ("sql/*.sql", None, 7)),
    *((options.SCRIPTS, raw) for raw in (["a.txt"], ["shop.models"], ["a.SQL"], ["a:"], [":a"])),
    *((options.SCRIPTS, raw) for raw in (["a.sql", "b"], ["a b:c"], ["a:b:c"], "a.sql", None)),
    *((options.ENV, raw) for raw in (["NAME"], "A=1", None)),
]


@pytest.mark.parametrize(("kind", "raw"), BAD)
def test_a_bad_value_is_refused_with_its_source_and_what_is_wanted(kind: Kind, raw: object) -> None:
    """The error names the setting, the value, the place it stood in and what it may be.

    Of several lines, which come last here, it names the one that is wrong.
    """
    name = NAMES[kind]
    shown = raw[-1].strip() if kind in LISTS and isinstance(raw, list) else raw

    with pytest.raises(SettingsError) as caught:
        resolve(given("tox.ini", **{name: raw}))

    text = str(caught.value)
    assert text.startswith(f"Invalid value {shown!r} for warmstack_{name}.\n")
    assert f"Why: it takes {kind.wanted}\n" in text
    assert "Looked at: tox.ini\n" in text


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        *(("postgres_env", name) for name in ("", "1A", "A B", "A-B", "NAME ", "größe")),
        *(("env", name) for name in ("", "1A", "A B", "A-B", "NAME ")),
    ],
)
def test_the_value_of_a_bad_variable_is_not_shown(setting: str, name: str) -> None:
    """It may be a secret, and is not what is wrong."""
    with pytest.raises(SettingsError) as caught:
        resolve(given("pytest.ini", **{setting: [f"{name}=hunter2"]}))

    assert str(caught.value).startswith(f"Invalid value '{name}=...' for warmstack_{setting}.\n")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "found", "hint"),
    [
        ("{db_ulr}", "db_ulr", "write {db_url}"),
        ("{DB_HOST}", "DB_HOST", "write {db_host}"),
        ("{dbport}", "dbport", "write {db_port}"),
        ("{database_url}", "database_url", "write {db_url}"),
        ("{postgres_user}", "postgres_user", "write {db_user}"),
        ("{redis_uri}", "redis_uri", "write {redis_url}"),
        ('{"url": "{db_ulr}"}', "db_ulr", "write {db_url}"),
        ("{db_host}:{db_prt}", "db_prt", "write {db_port}"),
    ],
)
def test_a_placeholder_with_a_typo_is_answered_with_the_nearest(
    value: str, found: str, hint: str
) -> None:
    """Other braces, as JSON has them, are the value's own; what may be secret is not shown."""
    with pytest.raises(SettingsError) as caught:
        resolve(given("tox.ini", env=[f"A=hunter2 {value}"]))

    assert caught.value.what == f"Unknown placeholder {{{found}}} in warmstack_env."
    assert hint in caught.value.todo[0]
    assert caught.value.todo[1].endswith(f": {{{{{found}}}}}")
    assert "hunter2" not in str(caught.value)
    assert resolve(given("tox.ini", env=[f"A={{{{{found}}}}}"])).env == (f"A={{{{{found}}}}}",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{db_host}:{db_port}", "db:5432"),
        ("{{db_host}} {{}}", "{db_host} {}"),
        ('{{"a": {{"b": 1}}}}', '{"a": {"b": 1}}'),
        ('{"a": {"b": 1}}', '{"a": {"b": 1}}'),
        ('{"a": {"b": "{db_host}"}}', '{"a": {"b": "db"}}'),
        ('{"a": {"b": {db_port}}}', '{"a": {"b": 5432}}'),
        ('["{{db_host}}", {}]', '["{{db_host}}", {}]'),
        ("{", "{"),
        ("{0} {db_host.real}", "{0} {db_host.real}"),
    ],
)
def test_known_names_in_braces_are_filled_in_and_other_braces_stay(
    text: str, expected: str
) -> None:
    """Doubled braces are single ones where that is how the whole text was written."""
    assert filled(text, {"db_host": "db", "db_port": 5432}) == expected


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+asyncpg://ci:p%40ss@[::1]:1/a", "postgresql+asyncpg://ci:***@[::1]:1/a"),
        ("redis://:a@h/1?ssl_password=b", "redis://:***@h/1?ssl_password=***"),
        ("postgresql://db/shop?sslmode=require", "postgresql://db/shop?sslmode=require"),
    ],
)
def test_a_masked_url_is_a_text_that_shows_no_password(url: str, shown: str) -> None:
    """In every way in which Python shows a value; and it stays the same through pickle and JSON."""
    made = MaskedUrl(url)

    assert repr(made) == f"{made!r}" == "%r" % made == repr(shown)  # noqa: UP031
    assert repr([{"url": made}]) == repr([{"url": shown}])
    assert type(str(made)) is str
    assert (made, str(made), f"{made}", json.loads(json.dumps(made))) == (url,) * 4
    copy = pickle.loads(pickle.dumps(made))  # noqa: S301 - our own
    assert (copy, repr(copy)) == (url, repr(shown))


def test_settings_show_no_values() -> None:
    """Among them are URLs with passwords, and keys of the application."""
    settings = resolve(given("pytest.ini", env=["KEY=hunter2"], postgres_url="postgresql://a:b@c"))

    source = "'pytest.ini'"
    assert repr(settings) == f"Settings({{'postgres_url': {source}, 'env': {source}}})"


@pytest.mark.parametrize(
    ("setting", "name", "why"),
    [(setting, name, why) for setting, names in RESERVED.items() for name, why in names.items()],
)
def test_what_the_plugin_needs_for_itself_is_refused_with_the_reason(
    setting: str, name: str, why: str
) -> None:
    """Neither a setting nor a variable that would break the plugin gets through; no value shows."""
    with pytest.raises(SettingsError) as caught:
        resolve(given("pytest.ini", **{setting: ["fine=1", f"{name}=hunter2"]}))

    assert str(caught.value).splitlines() == [
        f"Can't set {name!r} in warmstack_{setting}.",
        f"Why: {why}",
        "Looked at: pytest.ini",
        "What to do: remove that line",
    ]


def test_a_setting_of_postgresql_is_refused_in_any_case() -> None:
    """PostgreSQL does not tell capitals from small letters there."""
    with pytest.raises(SettingsError, match="Can't set 'cluster_name' in"):
        resolve(given("pytest.ini", postgres_args=["Cluster_Name = mine"]))


def test_of_two_lines_for_one_name_the_later_counts() -> None:
    """As PostgreSQL itself reads its arguments."""
    assert pairs(("a=1", "b=x=y", "a=")) == {"a": "", "b": "x=y"}


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("postgres_url", "mysql://ci:hunter2@db/x"),
        ("postgres_url", "postgresql://ci:hun/ter2@db"),
        ("postgres_url", "postgresql://ci:hunter2@"),
        ("postgres_url", "postgresql://ci:a@hunter2@db?x=1"),
        ("postgres_url", "postgresql://a@b:hunter2@db?x=1"),
        ("postgres_url", "ci:hunter2@db:5432"),
        ("postgres_url", "http://ci:hunter2@db:5432"),
        ("redis_url", "redis://:hunter2@cache/5"),
        ("redis_url", "redis://a@hunter2@cache/5"),
    ],
)
def test_a_url_that_is_refused_is_shown_without_its_password(name: str, url: str) -> None:
    """The error stands in the log of a CI machine, which many can read."""
    with pytest.raises(SettingsError) as caught:
        resolve(given("tox.ini", **{name: url}))

    text = str(caught.value)
    assert "***@" in text
    assert "ter2" not in text


@pytest.mark.parametrize("url", ["postgresql://ci:hunter2", "postgresql://ci:hunter2/shop"])
def test_a_password_whose_host_was_forgotten_is_not_shown(url: str) -> None:
    """It stands where the port of the host `ci` would."""
    with pytest.raises(SettingsError) as caught:
        resolve(given("tox.ini", postgres_url=url))

    assert "Invalid value 'postgresql://ci:***' for" in str(caught.value)


UNESCAPED = [
    f"{before}{sign}{after}"
    for sign in "/?#[]"
    # With digits only, what is before the sign passes for a port; with an @, for the user.
    for before, after in (("hun", "ter2"), ("12", "34"), ("hun@", "ter2"), ("hun:", "ter2"))
]
"""Passwords that end too early for whoever reads the URL by the rules."""


@pytest.mark.parametrize("password", UNESCAPED)
@pytest.mark.parametrize("form", ["postgresql://ci:{}@db:5432/shop", "redis://:{}@db:6379"])
def test_a_password_that_has_to_be_escaped_is_recognised(form: str, password: str) -> None:
    """Also where a host and a port come out that make sense; the error shows how to write it."""
    name = "postgres_url" if form.startswith("postgres") else "redis_url"

    with pytest.raises(SettingsError) as caught:
        resolve(given("tox.ini", **{name: form.format(password)}))

    text = str(caught.value)
    assert text.startswith(f"Unescaped password in the URL of warmstack_{name}.\n")
    assert ":***@db" in text
    assert "hun" not in text.replace("***", "")
    assert "ter2" not in text
    assert "write @ as %40, / as %2F" in text


@pytest.mark.parametrize("password", ["p@ss", "p:ss", "p@s:s", "%40%2F%3A", "a@b@c"])
@pytest.mark.parametrize("form", ["postgresql://ci:{}@db:5432/shop", "rediss://:{}@db:6379/0"])
def test_a_password_that_can_be_understood_is_taken(form: str, password: str) -> None:
    """The last @ before the path ends it, and its first colon has ended the user's name."""
    name = "postgres_url" if form.startswith("postgres") else "redis_url"
    url = form.format(password)

    assert getattr(resolve(given("tox.ini", **{name: url})), name) == url


@pytest.mark.parametrize("query", ["ssl_ca_certs=/a@b/ca.pem", "a=1&ssl_ca_certs=/x@y"])
@pytest.mark.parametrize("place", ["cache:6379", ":pw@cache"])
def test_an_at_sign_in_an_option_is_no_password(place: str, query: str) -> None:
    """A file may be called so."""
    url = f"rediss://{place}?{query}"

    assert resolve(given("tox.ini", redis_url=url)).redis_url == url


@pytest.mark.parametrize(
    ("name", "url", "begin", "todo"),
    [
        ("postgres_url", "redis://:hunter2@db", "redis", "use it for warmstack_redis_url"),
        ("postgres_url", "mysql://db", "mysql", "write the URL of the server: postgresql://"),
        ("redis_url", "postgresql://ci:hunter2@db", "postgresql", "use it for warmstack_postgres"),
        ("redis_url", "http://cache", "http", "write the URL of the server: redis://"),
        ("redis_url", "unix:///x", "unix", "write the URL of the server: redis://"),
    ],
)
def test_the_url_of_something_else_is_told_by_its_scheme(
    name: str, url: str, begin: str, todo: str
) -> None:
    """And where it belongs."""
    with pytest.raises(SettingsError) as caught:
        resolve(given("tox.ini", **{name: url}))

    text = str(caught.value)
    assert text.startswith(f"Invalid URL for warmstack_{name}: it begins with {begin}://, not ")
    assert todo in text
    assert "hunter2" not in text


@pytest.mark.parametrize("variable", ["DATABASE_URL", "REDIS_URL", "POSTGRES_URL", "PGHOST"])
def test_what_the_application_is_told_is_no_target(variable: str) -> None:
    """The database of the application itself is never taken for one to test on."""
    environ = {variable: "postgresql://app:secret@production/app"}

    assert resolve(environment(environ), ci(environ)) == Settings()


@pytest.mark.parametrize(
    "text",
    ["shop:make", "shop.db:make_config", "shop.models:Base.metadata", "a._b:_c", "größe:maß"],
)
def test_an_attribute_of_a_module_is_known(text: str) -> None:
    """Dotted names on both sides of one colon."""
    assert is_attribute(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "shop", "shop.db", "shop:", ":make", "a..b:c", "a:b.", "a:b:c", "a-b:c"),
        *("alembic.ini", "conf/alembic.ini", "C:/alembic.ini", "shop.db:make()", "1a:b", "a b:c"),
        *("shop.sql", "shop:migrations/0001", " shop:make"),
    ],
)
def test_a_path_is_no_attribute_of_a_module(text: str) -> None:
    """Whatever could not stand in an import is taken for a path."""
    assert not is_attribute(text)


def test_a_bad_variable_is_named() -> None:
    """The error about a variable names the variable, and no file."""
    with pytest.raises(SettingsError) as caught:
        resolve(environment({"WARMSTACK_RUNTIME": "podman"}))

    assert caught.value.what == "Invalid value 'podman' for WARMSTACK_RUNTIME."
    assert caught.value.looked_at == ()


def test_every_kind_has_good_and_bad_examples_here() -> None:
    """A kind that is added to the table has to be added to these tests."""
    kinds = {option.kind for option in OPTIONS.values()}

    assert {kind for kind, *_ in GOOD} == kinds
    assert {kind for kind, _ in BAD} == kinds
    assert set(EXAMPLES) == kinds
