from typing import Any

from flask import Flask, abort, request
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from notes.database import Note, session

app = Flask(__name__)


@app.teardown_appcontext
def remove_session(error: BaseException | None) -> None:
    session.remove()


@app.post("/notes")
def create_note() -> tuple[dict[str, Any], int]:
    note = Note(text=request.get_json()["text"])
    session.add(note)
    try:
        session.commit()
    except IntegrityError:
        abort(409)
    return {"id": note.id}, 201


@app.get("/notes")
def list_notes() -> list[str]:
    return list(session.scalars(select(Note.text).order_by(Note.id)))


@app.delete("/notes/<int:note_id>")
def delete_note(note_id: int) -> tuple[str, int]:
    session.delete(session.get(Note, note_id) or abort(404))
    session.commit()
    return "", 204
