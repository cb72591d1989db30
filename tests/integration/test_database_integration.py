"""PostgreSQL as a test meets it: migrated, real, and its own."""

import asyncio
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, func, inspect, make_url, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from shop import service
from shop.models import Author, Base, Book, Customer, Order, OrderLine, OrderStatus, Payment, Stock

pytestmark = [pytest.mark.integration, pytest.mark.asyncio]

ALEMBIC_INI = Path(__file__).parents[2] / "alembic.ini"

# A test of isolation runs once per turn, and each turn leaves the same thing
# behind, so whichever runs second fails if anything of the first one is left.
in_turns = pytest.mark.parametrize("turn", ["first", "second", "third"])


def second_session(engine: AsyncEngine) -> AsyncSession:
    """Open another session on the database of *engine*."""
    return AsyncSession(engine, expire_on_commit=False)


# Connections


async def test_the_server_is_postgresql_16(
    db_session: AsyncSession, postgres_container: Any
) -> None:
    """The server's major version is 16; somebody else's has the one that it told us."""
    version = await db_session.scalar(text("SHOW server_version_num"))

    major = str(int(version) // 10_000)
    assert major == postgres_container.version.partition(".")[0]
    assert major == "16" or postgres_container.runtime == "external"


async def test_the_session_works_on_the_database_that_the_url_names(
    db_session: AsyncSession, db_url: str
) -> None:
    """The session, the engine and the URL mean one database."""
    assert await db_session.scalar(select(func.current_database())) == make_url(db_url).database


async def test_the_database_lives_in_the_container_of_the_run(
    db_url: str, postgres_container: Any
) -> None:
    """The URL leads to the host and port of the session's container."""
    url = make_url(db_url)

    assert url.host == postgres_container.get_container_host_ip()
    assert url.port == int(postgres_container.get_exposed_port(5432))


async def test_plain_asyncpg_can_use_the_url(db_url: str, ada: Customer) -> None:
    """A driver without SQLAlchemy reads what the session committed."""
    url = make_url(db_url).set(drivername="postgresql")
    connection = await asyncpg.connect(url.render_as_string(hide_password=False))
    try:
        names = await connection.fetch("SELECT name FROM customers")
    finally:
        await connection.close()

    assert [row["name"] for row in names] == [ada.name]


# The migrated schema


async def test_the_database_is_at_the_head_of_the_migrations(db_session: AsyncSession) -> None:
    """The revision in the database is the newest one in the folder."""
    scripts = ScriptDirectory.from_config(Config(ALEMBIC_INI))

    revisions = await db_session.scalars(text("SELECT version_num FROM alembic_version"))

    assert revisions.all() == scripts.get_heads()


async def test_the_models_equal_the_migrated_schema(db_engine: AsyncEngine) -> None:
    """Alembic would find nothing to put into a new revision."""

    def differences(connection: Connection) -> list[Any]:
        options = {"compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(connection, opts=options)
        return list(compare_metadata(context, Base.metadata))

    async with db_engine.connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_the_enum_has_its_values_in_order(db_session: AsyncSession) -> None:
    """The native type lists the statuses of an order as the code does."""
    statuses = await db_session.scalars(text("SELECT unnest(enum_range(NULL::order_status))::text"))

    assert statuses.all() == list(OrderStatus)


async def test_the_trigger_follows_every_change_of_an_order(
    db_session: AsyncSession, ada: Customer, dune: Book
) -> None:
    """The total is right after a line is added, changed and removed."""
    order = await service.place_order(db_session, ada, {dune.id: 1})
    totals = [order.total]

    order.lines[0].quantity = 3
    await db_session.flush()
    await db_session.refresh(order, ["total"])
    totals.append(order.total)

    order.lines.clear()
    await db_session.flush()
    await db_session.refresh(order, ["total"])
    totals.append(order.total)

    assert totals == [Decimal("9.99"), Decimal("29.97"), Decimal("0.00")]


async def test_the_view_counts_only_books_that_were_paid(
    db_session: AsyncSession, ada: Customer, dune: Book
) -> None:
    """A book becomes a bestseller by payment, not by order."""
    paid = await service.place_order(db_session, ada, {dune.id: 2})
    await service.pay(db_session, paid)
    await service.place_order(db_session, ada, {dune.id: 1})

    assert await service.top_books(db_session) == [("Dune", 2)]


# Reading and writing


async def test_a_row_is_created_read_changed_and_deleted(
    db_session: AsyncSession, ada: Customer
) -> None:
    """A customer goes through a whole life, each step committed."""
    db_session.expunge_all()
    found = await db_session.get_one(Customer, ada.id)
    assert (found.name, found.email) == ("Ada", "ada@example.org")

    found.name = "Ada Lovelace"
    await db_session.commit()
    assert await db_session.scalar(select(Customer.name)) == "Ada Lovelace"

    await db_session.delete(found)
    await db_session.commit()
    assert await db_session.get(Customer, ada.id) is None


async def test_the_server_fills_in_what_the_code_leaves_out(
    db_session: AsyncSession, ada: Customer
) -> None:
    """A new order is placed, costs nothing yet, and has a time with a zone."""
    order = Order(customer=ada)
    db_session.add(order)
    await db_session.commit()

    assert order.status is OrderStatus.PLACED
    assert order.total == Decimal(0)
    assert order.placed_at.tzinfo is not None


async def test_deleting_an_order_deletes_its_lines(
    db_session: AsyncSession, ada: Customer, dune: Book
) -> None:
    """The foreign key of the lines cascades in the database."""
    order = await service.place_order(db_session, ada, {dune.id: 1})

    await db_session.delete(order)
    await db_session.flush()

    assert (await db_session.scalars(select(OrderLine))).all() == []


# Constraints


async def test_two_customers_cannot_share_an_address(
    db_session: AsyncSession, ada: Customer
) -> None:
    """The unique index on an expression sees through upper case."""
    db_session.add(Customer(name="Another Ada", email=ada.email.upper()))

    with pytest.raises(IntegrityError, match="uq_customers_email"):
        await db_session.flush()


async def test_an_order_cannot_be_paid_twice(
    db_session: AsyncSession, ada: Customer, dune: Book
) -> None:
    """The partial unique index allows one payment that is not refunded."""
    order = await service.place_order(db_session, ada, {dune.id: 1})
    await service.pay(db_session, order)

    with pytest.raises(IntegrityError, match="uq_payments_order_id"):
        await service.pay(db_session, order)


async def test_a_refunded_order_can_be_paid_again(
    db_session: AsyncSession, ada: Customer, dune: Book
) -> None:
    """The partial unique index does not count refunded payments."""
    order = await service.place_order(db_session, ada, {dune.id: 1})
    await service.pay(db_session, order)
    await service.refund(db_session, order)
    await service.pay(db_session, order)

    assert await db_session.scalar(select(func.count(Payment.id))) == 2


async def test_an_order_needs_a_customer_that_exists(db_session: AsyncSession) -> None:
    """The foreign key refuses an order of nobody."""
    db_session.add(Order(customer_id=404))

    with pytest.raises(IntegrityError, match="fk_orders_customer_id"):
        await db_session.flush()


async def test_a_price_must_be_positive(db_session: AsyncSession, dune: Book) -> None:
    """The check constraint refuses a book for nothing."""
    dune.price = Decimal(0)

    with pytest.raises(IntegrityError, match="ck_books_price_positive"):
        await db_session.flush()


async def test_a_customer_must_have_a_name(db_session: AsyncSession) -> None:
    """The column refuses NULL."""
    db_session.add(Customer(email="nobody@example.org"))

    with pytest.raises(IntegrityError, match=r'"name".*not-null'):
        await db_session.flush()


async def test_a_status_must_be_one_of_the_enum(
    db_session: AsyncSession, ada: Customer, dune: Book
) -> None:
    """The native type refuses a word that it does not know."""
    await service.place_order(db_session, ada, {dune.id: 1})

    with pytest.raises(DBAPIError, match="invalid input value for enum order_status"):
        await db_session.execute(text("UPDATE orders SET status = 'lost'"))


# Transactions


@pytest.mark.usefixtures("ada")
async def test_a_session_goes_on_after_an_error_and_a_rollback(db_session: AsyncSession) -> None:
    """A rollback undoes the failed transaction and nothing before it."""
    db_session.add(Author(name="Frank Herbert"))
    db_session.add(Order(customer_id=404))
    with pytest.raises(IntegrityError):
        await db_session.flush()

    await db_session.rollback()

    assert (await db_session.scalars(select(Author))).all() == []
    assert (await db_session.scalars(select(Customer.name))).all() == ["Ada"]


async def test_a_savepoint_can_fail_alone(db_session: AsyncSession, ada: Customer) -> None:
    """An error inside a savepoint leaves the rest of the transaction standing."""
    db_session.add(Author(name="Frank Herbert"))
    with pytest.raises(IntegrityError):
        async with db_session.begin_nested():
            db_session.add(Customer(name="Another Ada", email=ada.email))
    await db_session.commit()

    assert (await db_session.scalars(select(Author.name))).all() == ["Frank Herbert"]


async def test_a_session_sees_what_another_one_commits_and_no_sooner(
    db_engine: AsyncEngine, db_session: AsyncSession
) -> None:
    """Two sessions on one engine meet at the commit."""
    authors = select(func.count(Author.id))
    async with second_session(db_engine) as other:
        db_session.add(Author(name="Ursula K. Le Guin"))
        await db_session.flush()
        before = await other.scalar(authors)

        await db_session.commit()
        after = await other.scalar(authors)

    assert (before, after) == (0, 1)


async def test_two_packers_never_ship_the_same_order(
    db_engine: AsyncEngine, db_session: AsyncSession, ada: Customer, dune: Book
) -> None:
    """A packer skips the order that another one has locked, and does not wait."""
    for _ in range(2):
        await service.pay(db_session, await service.place_order(db_session, ada, {dune.id: 1}))
    await db_session.commit()

    async with second_session(db_engine) as other, asyncio.timeout(10):
        mine = await service.ship_next(db_session)
        theirs = await service.ship_next(other)
        nothing = await service.ship_next(other)

    assert mine is not None
    assert theirs is not None
    assert (mine.id, theirs.id, nothing) == (1, 2, None)


async def test_two_buyers_cannot_both_have_the_last_copy(
    db_engine: AsyncEngine, db_session: AsyncSession, ada: Customer, dune: Book
) -> None:
    """Of two orders at the same time one gets the copy, and the other finds none."""
    await db_session.execute(update(Stock).values(copies=1))
    await db_session.commit()

    async def buy() -> None:
        async with second_session(db_engine) as session, session.begin():
            buyer = await session.get_one(Customer, ada.id)
            await service.place_order(session, buyer, {dune.id: 1})

    async with asyncio.timeout(10):
        outcomes = await asyncio.gather(buy(), buy(), return_exceptions=True)

    assert {type(outcome) for outcome in outcomes} == {type(None), service.OutOfStockError}
    assert await db_session.scalar(select(Stock.copies)) == 0


# Isolation


@in_turns
async def test_a_committed_row_is_seen_by_its_own_test_only(
    turn: str, db_session: AsyncSession
) -> None:
    """Every turn commits the same unique address and is alone with it."""
    db_session.add(Customer(name=turn, email="ada@example.org"))
    await db_session.commit()

    assert (await db_session.scalars(select(Customer.name))).all() == [turn]


@in_turns
async def test_the_numbers_of_rows_start_from_one(turn: str, db_session: AsyncSession) -> None:
    """Every turn's first row has the id 1, and its second the id 2."""
    authors = [Author(name=turn), Author(name="Frank Herbert")]
    db_session.add_all(authors)
    await db_session.commit()

    assert [author.id for author in authors] == [1, 2]


@in_turns
async def test_a_test_may_change_the_schema(turn: str, db_session: AsyncSession) -> None:
    """Every turn finds the migrated schema, and may break it."""
    query = select(Book.title)
    assert (await db_session.scalars(query)).all() == []

    await db_session.execute(text("ALTER TABLE books DROP COLUMN title CASCADE"))
    await db_session.execute(text(f"CREATE TABLE {turn} (id integer)"))
    await db_session.commit()

    with pytest.raises(ProgrammingError, match="title does not exist"):
        await db_session.scalars(query)


@in_turns
async def test_a_table_made_by_one_test_is_gone_for_the_next(
    turn: str, db_engine: AsyncEngine
) -> None:
    """Every turn finds the tables of the models and no others, then adds one."""
    async with db_engine.begin() as connection:
        tables = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
        await connection.execute(text(f"CREATE TABLE {turn} (id integer)"))

    assert set(tables) == {*Base.metadata.tables, "alembic_version"}
