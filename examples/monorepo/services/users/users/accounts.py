from sqlalchemy import select

from users.database import Session, User


async def register(email: str) -> int:
    async with Session() as session:
        user = User(email=email)
        session.add(user)
        await session.commit()
        return user.id


async def find(email: str) -> User | None:
    async with Session() as session:
        return await session.scalar(select(User).where(User.email == email))
