# mypy: ignore-errors
"""Commits in a dependency, after the response has been sent."""

import os

from fastapi import Depends, FastAPI, HTTPException
from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

url = os.environ["DATABASE_URL"].replace("postgresql://", "postgresql+asyncpg://")
engine = create_async_engine(url)
SessionLocal = async_sessionmaker(engine, expire_on_commit=False)


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    reference: Mapped[str]
    amount: Mapped[int]


class NewOrder(BaseModel):
    reference: str = Field(min_length=1, max_length=40)
    amount: int = Field(gt=0, le=1_000_000)


async def get_db():
    async with SessionLocal() as session:
        try:
            yield session
            await session.commit()
        except Exception:
            await session.rollback()
            raise


app = FastAPI()


@app.post("/orders", status_code=201)
async def create_order(data: NewOrder, db: AsyncSession = Depends(get_db)):
    order = Order(**data.model_dump())
    db.add(order)
    try:
        await db.flush()
    except IntegrityError:
        raise HTTPException(409, "Reference already exists")
    return {"id": order.id, "reference": order.reference, "amount": order.amount}


@app.get("/orders/{order_id}")
async def get_order(order_id: int, db: AsyncSession = Depends(get_db)):
    result = await db.execute(select(Order).where(Order.id == order_id))
    order = result.scalar_one_or_none()
    if order is None:
        raise HTTPException(404, "Order not found")
    return {"id": order.id, "reference": order.reference, "amount": order.amount}
