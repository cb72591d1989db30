from sqlalchemy import func, select

from billing.database import Invoice, Session


def charge(user_id: int, cents: int) -> int:
    with Session.begin() as session:
        invoice = Invoice(user_id=user_id, cents=cents)
        session.add(invoice)
        session.flush()
        return invoice.id


def total(user_id: int) -> int:
    with Session() as session:
        query = select(func.sum(Invoice.cents)).where(Invoice.user_id == user_id)
        return session.scalar(query) or 0
