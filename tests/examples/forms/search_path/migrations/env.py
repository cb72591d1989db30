"""Migrate one tenant in a schema of his own, which comes first on the connection's path.

As Alembic's cookbook does it ("Rudimental Schema-Level Multi Tenancy for PostgreSQL Databases").
"""

from alembic import context
from sqlalchemy import create_engine, pool, text
from sqlalchemy.schema import CreateSchema

config = context.config
tenant = context.get_x_argument(as_dictionary=True)["tenant"]
engine = create_engine(config.get_main_option("sqlalchemy.url"), poolclass=pool.NullPool)

with engine.connect() as connection:
    connection.execute(CreateSchema(tenant, if_not_exists=True))
    connection.execute(text(f'SET search_path TO "{tenant}"'))
    connection.commit()
    connection.dialect.default_schema_name = tenant
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
