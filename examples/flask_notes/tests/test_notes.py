"""Synchronous tests; the last one looks into the database as the application does."""

import pytest
from flask.testing import FlaskClient
from sqlalchemy import func, select

from notes.app import app
from notes.database import Note, session


@pytest.fixture
def client() -> FlaskClient:
    return app.test_client()


@pytest.mark.parametrize("text", ["buy tea", "buy milk"])
def test_a_note_is_created(client: FlaskClient, text: str) -> None:
    response = client.post("/notes", json={"text": text})

    assert (response.status_code, response.json) == (201, {"id": 1})
    assert client.get("/notes").json == [text]


def test_a_note_is_unique(client: FlaskClient) -> None:
    client.post("/notes", json={"text": "buy tea"})

    assert client.post("/notes", json={"text": "buy tea"}).status_code == 409
    assert client.get("/notes").json == ["buy tea"]


def test_a_note_is_deleted(client: FlaskClient) -> None:
    assert client.delete("/notes/1").status_code == 404
    client.post("/notes", json={"text": "buy tea"})

    assert client.delete("/notes/1").status_code == 204
    assert client.get("/notes").json == []


def test_a_row_of_the_test_is_seen(client: FlaskClient) -> None:
    with app.app_context():
        session.add(Note(text="buy sugar"))
        session.commit()
        assert session.scalar(select(func.count(Note.id))) == 1

    assert client.get("/notes").json == ["buy sugar"]
