"""With `gather` on one session, requests at the same time get a 500 and leave their
connections to the garbage collector; a request alone runs its queries one by one."""

import asyncio
import os
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from sqlalchemy import func, make_url, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

url = make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+asyncpg")
engine = create_async_engine(url)
SessionLocal = async_sessionmaker(engine, expire_on_commit=False)


class Base(DeclarativeBase):
    id: Mapped[int] = mapped_column(primary_key=True)


class Order(Base):
    __tablename__ = "board_orders"


class Visit(Base):
    __tablename__ = "board_visits"


class Review(Base):
    __tablename__ = "board_reviews"


async def get_db():
    async with SessionLocal() as session:
        yield session


@asynccontextmanager
async def create_tables(app: FastAPI):
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield


app = FastAPI(lifespan=create_tables)


@app.get("/board")
async def board(db: AsyncSession = Depends(get_db)):
    orders, visits, reviews = await asyncio.gather(
        db.scalar(select(func.count()).select_from(Order)),
        db.scalar(select(func.count()).select_from(Visit)),
        db.scalar(select(func.count()).select_from(Review)),
    )
    return {"orders": orders, "visits": visits, "reviews": reviews}
