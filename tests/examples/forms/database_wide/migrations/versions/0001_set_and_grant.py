"""Set and grant what holds for the whole database, whatever its name is."""

from alembic import op

revision = "0001"
down_revision = None

SETTINGS = {
    "search_path": """ "Shop Data", public """,
    "shop.greeting": """ 'It''s "quoted", a \\ and 100%' """,
    "work_mem": """ '5MB' """,
}


def of_this_database(statement: str) -> None:
    """Execute a statement in which {} stands for the name of the database."""
    quoted = statement.replace("%", "%%").replace("'", "''").format("%1$I")
    op.execute(f"DO $$ BEGIN EXECUTE format('{quoted}', current_database()); END $$")


def upgrade() -> None:
    """Let a schema come first, and the database be for two roles of PostgreSQL's own."""
    op.execute('CREATE SCHEMA "Shop Data"')
    op.execute('CREATE TABLE "Shop Data".customer (id integer)')
    for name, value in SETTINGS.items():
        of_this_database(f"ALTER DATABASE {{}} SET {name} = {value}")
    of_this_database("ALTER ROLE CURRENT_USER IN DATABASE {} SET maintenance_work_mem = '7MB'")
    of_this_database("REVOKE ALL ON DATABASE {} FROM PUBLIC")
    of_this_database("GRANT CONNECT, TEMPORARY ON DATABASE {} TO pg_monitor")
    of_this_database("GRANT CREATE ON DATABASE {} TO pg_signal_backend WITH GRANT OPTION")


def downgrade() -> None:
    """Do the contrary."""
    of_this_database("REVOKE ALL ON DATABASE {} FROM pg_monitor, pg_signal_backend")
    of_this_database("GRANT CONNECT, TEMPORARY ON DATABASE {} TO PUBLIC")
    of_this_database("ALTER ROLE CURRENT_USER IN DATABASE {} RESET maintenance_work_mem")
    for name in SETTINGS:
        of_this_database(f"ALTER DATABASE {{}} RESET {name}")
    op.execute('DROP SCHEMA "Shop Data" CASCADE')
