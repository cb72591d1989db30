import pytest


@pytest.fixture
def database(request):
    """As a step of pytest-bdd, or a plugin's lazy fixture, asks for it."""
    return request.getfixturevalue("db_url")


@pytest.mark.timeout(0.3)
def test_lazy(database):
    assert database


@pytest.mark.timeout(60)
def test_next(database):
    assert database
