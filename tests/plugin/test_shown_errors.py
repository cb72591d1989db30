"""An error that many tests get is shown in full once, and then in one line."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Run = Callable[..., pytest.RunResult]

UNREACHABLE = "--warmstack-postgres-url=postgresql://ada:secret@127.0.0.1:1/postgres"


@pytest.fixture(autouse=True)
def project(pytester: pytest.Pytester) -> None:
    """Tests of a server that does not answer, by a fixture of the session's and one of theirs."""
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("number", range(4))
        def test_it(postgres_container, number): pass

        def test_url(db_url): pass
        """
    )


def test_the_error_of_a_server_is_shown_whole_once(run: Run) -> None:
    """Also that of a fixture of the session's, which pytest remembers."""
    result = run(UNREACHABLE, runtime="")

    result.assert_outcomes(errors=5)
    text = result.stdout.str()
    assert text.count("What to do:") == 1
    assert text.count("(Same error as above; see its first occurrence for details.)") == 4


def test_each_worker_shows_it_whole_once(run: Run) -> None:
    """A worker does not know what the others have shown."""
    result = run(UNREACHABLE, "-n", "2", plugins=["xdist"], runtime="")

    result.assert_outcomes(errors=5)
    text = result.stdout.str()
    assert 1 <= text.count("What to do:") <= 2
    assert text.count("What to do:") + text.count("(Same error as above;") == 5


def test_a_test_that_is_run_again_shows_it_whole_again(run: Run) -> None:
    """Of its attempts only the last one is seen."""
    result = run(UNREACHABLE, "--reruns", "2", plugins=["pytest_rerunfailures"], runtime="")

    result.assert_outcomes(errors=5)
    assert result.stdout.str().count("What to do:") == 1
