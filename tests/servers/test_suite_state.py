"""What fixtures of a wider scope set up in Redis is kept; what tests change there is undone."""

from __future__ import annotations

import pytest
from redis import Redis

from projects import Library
from pytest_warmstack.servers.model import redis_url

REUSE = "--reuse-containers"

CONFTEST = """
import pytest
import redis

LIBRARY = "#!lua name={0}\\nredis.register_function('{0}', function() return 1 end)"

NAMES = (
    *("slowlog-max-len", "latency-tracking", "maxmemory-samples"),
    *("hz", "set-max-intset-entries"),
)

@pytest.fixture(scope="session")
def server(redis_process_url):
    with redis.Redis.from_url(redis_process_url, decode_responses=True) as client:
        yield client

@pytest.fixture(scope="session")
def of_the_session(server):
    server.config_set("slowlog-max-len", 11)
    server.function_load(LIBRARY.format("session"))
    server.acl_setuser("session", enabled=True, nopass=True, keys=["s:*"], commands=["+get"])
    return server.script_load("return 'session'")

@pytest.fixture(scope="package")
def of_the_package(server):
    server.config_set("latency-tracking", "no")

@pytest.fixture(scope="module")
def of_the_module(server):
    server.config_set("maxmemory-samples", 12)
    server.function_load(LIBRARY.format("module"))

@pytest.fixture(scope="module")
def of_another_module(server):
    server.config_set("zset-max-listpack-value", 65)

@pytest.fixture(scope="class")
def of_the_class(server):
    server.config_set("hz", 13)

def state(server):
    settings = server.config_get("*")
    return (
        [settings[name] for name in NAMES],
        sorted(each[1] for each in server.function_list()),
        sorted(set(server.acl_users()) - {"default", "pytest-warmstack"}),
    )

def spoil(server):
    server.config_set("set-max-intset-entries", 99)
    server.config_set("slowlog-max-len", 99)
    server.function_flush()
    server.function_load(LIBRARY.format("test"))
    server.acl_setuser("test")
    server.acl_deluser("session")
"""

SCOPES = """
import pytest
from conftest import spoil, state

BEFORE = ["128", "yes", "5", "10", "512"]

def test_another_one_before(redis_url, server):
    spoil(server)

@pytest.mark.parametrize("number", range(2))
def test_session(of_the_session, redis_url, server, number):
    assert state(server) == (["11", *BEFORE[1:]], ["session"], ["session"])
    assert server.evalsha(of_the_session, 0) == "session"
    spoil(server)

def test_package_and_module_in_the_middle(redis_url, server, request):
    spoil(server)
    request.getfixturevalue("of_the_package")
    request.getfixturevalue("of_the_module")

def test_after_them(redis_url, server):
    assert state(server) == (["11", "no", "12", *BEFORE[3:]], ["module", "session"], ["session"])

def test_in_the_middle_without_fixtures_of_its_own(server, request):
    server.config_set("set-max-intset-entries", 66)
    request.getfixturevalue("of_another_module")
    assert state(server)[0][4] == "66"

class TestClass:
    @pytest.fixture
    def own(self, redis_url, server, request):
        server.config_set("set-max-intset-entries", 77)
        request.getfixturevalue("of_the_class")

    def test_lazily(self, own, server):
        assert state(server)[0] == ["11", "no", "12", "13", "77"]

    def test_after_it(self, redis_url, server):
        assert state(server)[0] == ["11", "no", "12", "13", "512"]

    def test_without_a_url(self, server):
        spoil(server)

def test_at_last(redis_url, server):
    assert state(server) == (["11", "no", "12", "13", "512"], ["module", "session"], ["session"])
"""

XUNIT = """
import unittest
import conftest
import pytest
import redis

client = None

@pytest.fixture(scope="session", autouse=True)
def connected(redis_process_url):
    global client
    with redis.Redis.from_url(redis_process_url, decode_responses=True) as client:
        yield

def setup_module():
    client.config_set("slowlog-max-len", 21)

def teardown_module():
    client.config_set("slowlog-max-len", 128)

class TestXunit:
    @classmethod
    def setup_class(cls):
        client.config_set("maxmemory-samples", 22)

    @classmethod
    def teardown_class(cls):
        client.config_set("maxmemory-samples", 5)

    @pytest.mark.parametrize("number", range(2))
    def test_finds_both(self, redis_url, number):
        assert conftest.state(client)[0] == ["21", "yes", "22", "10", "512"]
        conftest.spoil(client)

class TestUnit(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        client.config_set("hz", 23)

    @pytest.fixture(autouse=True)
    def _empty(self, redis_url):
        pass

    def test_one(self):
        assert conftest.state(client)[0] == ["21", "yes", "5", "23", "512"]
        conftest.spoil(client)

    def test_two(self):
        assert conftest.state(client)[0] == ["21", "yes", "5", "23", "512"]
"""

AFTER = """
import conftest

def test_the_module_has_undone_its_own(redis_url, server):
    assert conftest.state(server)[0] == ["128", "yes", "5", "23", "512"]
"""

EVENTS = """
import pytest
import redis

@pytest.fixture(scope="session")
def events(redis_container):
    with redis.Redis.from_url(redis_container.get_connection_url()) as client:
        client.config_set("notify-keyspace-events", "Ex")

def flags(url):
    with redis.Redis.from_url(url, decode_responses=True) as client:
        return client.config_get("notify-keyspace-events")["notify-keyspace-events"]

def test_sets_it_itself(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("notify-keyspace-events", "Ex")

def test_has_it_from_a_fixture(events, redis_url):
    assert "x" in flags(redis_url)

def test_has_it_still(events, redis_url):
    assert "x" in flags(redis_url)
"""

FAILING = """
import pytest
import redis

@pytest.fixture(scope="module")
def broken(redis_process_url):
    with redis.Redis.from_url(redis_process_url) as client:
        client.config_set("slowlog-max-len", 31)
    raise RuntimeError("after it")

@pytest.fixture(scope="module", params=[41, 42])
def each(request, redis_process_url):
    with redis.Redis.from_url(redis_process_url) as client:
        client.config_set("slowlog-max-len", request.param)
        yield request.param
        client.config_set("hz", request.param)

def settings(url):
    with redis.Redis.from_url(url, decode_responses=True) as client:
        found = client.config_get("*")
        return found["slowlog-max-len"], found["hz"]

def test_errs(broken):
    pass

def test_stays(redis_url):
    assert settings(redis_url)[0] == "31"

def test_parameter(each, redis_url):
    assert settings(redis_url) == (str(each), "10" if each == 41 else "41")

def test_after_both(redis_url):
    assert settings(redis_url) == ("42", "41")
"""

ROUND_TRIPS = """
import pytest
import redis

def looks(url):
    with redis.Redis.from_url(url) as client:
        return client.info("commandstats")["cmdstat_info"]["calls"]

@pytest.fixture(scope="session")
def first(redis_process_url):
    return looks(redis_process_url)

@pytest.fixture(scope="session")
def second(first):
    return "nothing is done here"

@pytest.fixture(scope="module")
def third(second):
    return "nor here"

@pytest.fixture(scope="class")
def last(third, first, redis_process_url):
    return looks(redis_process_url) - first

def test_looks(last, redis_url):
    # One after each of the fixtures before, and the own one.
    assert last == 4
"""

LATE = """
from conftest import state

def test_one(request):
    request.getfixturevalue("of_the_module")

def test_two(request):
    request.getfixturevalue("redis_url")
    assert state(request.getfixturevalue("server"))[0][2] == "12"
"""

EARLY = """
import json
from pathlib import Path
import pytest
import redis

@pytest.fixture(scope="session", autouse=True)
def application():
    path = Path(".pytest_cache/d/warmstack/redis.json")
    known = json.loads(path.read_text())["server"]["endpoint"]
    with redis.Redis(port=known["port"], password=known["password"], db=1) as client:
        assert any("warmstack:lease" in each["name"] for each in client.client_list())
        assert client.config_get("hz")["hz"] == "10"
        client.config_set("hz", 33)

def test_finds_it(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        assert client.config_get("hz")["hz"] == "33"
"""

SESSION_URL = """
import os
import pytest
import redis

@pytest.fixture(scope="session")
def application(redis_process_url, redis_container):
    assert redis_container.get_connection_url() == redis_process_url
    assert redis_process_url.rpartition("/")[2] != "0"
    with redis.Redis.from_url(redis_process_url) as client:
        client.set("written", "before the test")
        yield client

@pytest.mark.parametrize("number", range(4))
def test_same_and_empty(application, redis_url, redis_process_url, number):
    assert redis_url == redis_process_url
    assert application.dbsize() == 0
    application.set("number", number)
    # A worker of xdist would cut the other one's connection in the middle of a command.
    if number == 1 and "PYTEST_XDIST_WORKER" not in os.environ:
        application.client_kill_filter(skipme=False, _type="normal")
"""


def settings(project: Library) -> dict[str, str]:
    """Return the settings, users and functions that the project's kept server has now."""
    with Redis.from_url(redis_url(project.kept("redis"), 0), decode_responses=True) as client:
        users = {f"user {name}": "" for name in client.acl_users()}
        libraries = {f"function {each[1]}": "" for each in client.function_list()}
        return {**client.config_get("*"), **users, **libraries}


@pytest.fixture
def suite(embedded_project: Library) -> Library:
    """A project whose tests change what belongs to the whole server."""
    embedded_project.write("conftest.py", CONFTEST)
    return embedded_project


def test_what_fixtures_of_each_scope_set_up_stays_and_what_tests_do_does_not(
    suite: Library,
) -> None:
    """Whoever asks for the fixture first, and when; the next run finds the server as it was."""
    suite.write("test_plain.py", "def test_one(redis_url):\n    pass\n")
    suite.run(REUSE, "test_plain.py").assert_outcomes(passed=1)
    before = settings(suite)
    suite.write("test_scopes.py", SCOPES)

    suite.run(REUSE, "test_scopes.py").assert_outcomes(passed=10)

    assert settings(suite) == before
    suite.run(REUSE, "test_scopes.py").assert_outcomes(passed=10)
    assert settings(suite) == before


def test_set_up_of_xunit_and_unittest_is_the_suites(suite: Library) -> None:
    """So is what their own ends undo: the module after it finds the server as it left it."""
    suite.write("test_a_xunit.py", XUNIT)
    suite.write("test_b_after.py", AFTER)

    suite.run("test_a_xunit.py", "test_b_after.py").assert_outcomes(passed=5)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_setting_that_another_one_has_made_before_is_the_suites_too(
    suite: Library, workers: int
) -> None:
    """Where a test, or a fixture in another worker, has set the same: nothing seems to change."""
    for name in "abcd":
        suite.write(f"test_{name}.py", EVENTS)

    result = suite.run(
        "-n", str(workers), "--dist=loadfile", *(f"test_{each}.py" for each in "abcd")
    )

    result.assert_outcomes(passed=12)


def test_a_fixture_that_fails_and_one_with_parameters(suite: Library) -> None:
    """What was done before the failure stays, and what a fixture does at its end as well."""
    suite.write("test_failing.py", FAILING)

    suite.run("test_failing.py").assert_outcomes(passed=4, errors=1)


def test_what_is_done_before_the_first_fixture_of_the_plugin_is_the_suites(suite: Library) -> None:
    """By an application that knows the address of the kept server: that is right by then."""
    suite.write("test_plain.py", "def test_one(redis_url):\n    pass\n")
    suite.run(REUSE, "test_plain.py").assert_outcomes(passed=1)
    with Redis.from_url(redis_url(suite.kept("redis"), 0)) as client:
        client.config_set("hz", 99)  # As a killed run would leave it.
    suite.write("test_early.py", EARLY)

    suite.run(REUSE, "test_early.py").assert_outcomes(passed=1)


def test_redis_may_be_asked_for_while_a_test_runs(suite: Library) -> None:
    """By a fixture of the suite that no test names: what it sets up stays as well."""
    suite.write("test_late.py", LATE)

    suite.run("test_late.py").assert_outcomes(passed=2)


def test_a_fixture_that_does_nothing_costs_one_round_trip(suite: Library) -> None:
    """The look after one fixture is the look before the next."""
    suite.write("test_looks.py", ROUND_TRIPS)

    suite.run("test_looks.py").assert_outcomes(passed=1)


@pytest.mark.parametrize("arguments", [(), ("-n", "2"), ("--warmstack-redis-databases=3",)])
def test_what_lives_as_long_as_the_run_has_the_url_of_the_tests(
    suite: Library, arguments: tuple[str, ...]
) -> None:
    """It never changes, also when every connection was cut; and it is never database 0."""
    suite.write("test_url.py", SESSION_URL)

    suite.run("test_url.py", *arguments).assert_outcomes(passed=4)


CLIENTS = """
import threading

import pytest
import redis


@pytest.fixture(scope="session")
def worker(redis_process_url):
    "As a worker of a task queue: it waits in a command, and listens to a channel."
    client = redis.Redis.from_url(redis_process_url)
    listener = client.pubsub()
    listener.subscribe("news")
    assert listener.get_message(timeout=5)["type"] == "subscribe"
    waiting = redis.Redis.from_url(redis_process_url)
    waiting.ping()
    done = []
    thread = threading.Thread(target=lambda: done.append(waiting.blpop("end", timeout=30)))
    thread.start()
    yield listener
    client.rpush("end", 1)
    thread.join()
    assert done == [(b"end", b"1")]
    for each in (listener, client, waiting):
        each.close()


@pytest.mark.parametrize("n", range(3))
def test_it(worker, redis_url, n):
    with redis.Redis.from_url(redis_url) as client:
        assert client.publish("news", n) == 1
    assert worker.get_message(timeout=5)["data"] == b"%d" % n


def test_that_forgets_a_listener(redis_url):
    listener = redis.Redis.from_url(redis_url).pubsub()
    listener.subscribe("other")
    test_that_forgets_a_listener.left = listener


def test_after_it(worker, redis_url):
    with redis.Redis.from_url(redis_url) as client:
        assert client.publish("news", 9) == 1
        assert client.publish("other", 9) == 0
"""


def test_clients_of_the_suite_stay_connected(kept: Library) -> None:
    """A worker or a listener that a fixture of the session's has opened is not a leftover."""
    kept.write("test_clients.py", CLIENTS)

    result = kept.run(REUSE, "test_clients.py")

    result.assert_outcomes(passed=5)
    told = [line for line in result.outlines if "it left a Redis client" in line]
    assert len(told) == 1
    assert "::test_that_forgets_a_listener: it left a Redis client that was subscribed" in told[0]
