"""The database of a project that has no alembic.ini."""
