from pydantic import BaseModel, ConfigDict, PositiveInt
from sqlalchemy import String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str] = mapped_column(String(100))
    quantity: Mapped[int]
    status: Mapped[str] = mapped_column(String(20), default="new")


class OrderIn(BaseModel):
    item: str
    quantity: PositiveInt = 1


class OrderOut(OrderIn):
    model_config = ConfigDict(from_attributes=True)

    id: int
    status: str
