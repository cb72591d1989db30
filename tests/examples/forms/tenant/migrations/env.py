"""Migrate one tenant, whom `-x tenant=NAME` names, in a schema of his own."""

from alembic import context
from sqlalchemy import create_engine, pool
from sqlalchemy.schema import CreateSchema

config = context.config
tenant = context.get_x_argument(as_dictionary=True)["tenant"]
engine = create_engine(config.get_main_option("sqlalchemy.url"), poolclass=pool.NullPool)

with engine.connect() as connection:
    connection.execute(CreateSchema(tenant, if_not_exists=True))
    connection.commit()
    context.configure(connection=connection, version_table_schema=tenant)
    with context.begin_transaction():
        context.run_migrations()
