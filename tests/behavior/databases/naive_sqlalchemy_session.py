"""Commits after the response was sent: a client gets its 200 when the commit fails."""

import os
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

url = make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+asyncpg")
engine = create_async_engine(url, pool_timeout=2)
SessionLocal = async_sessionmaker(engine, expire_on_commit=False)


class Base(DeclarativeBase): ...


class Member(Base):
    __tablename__ = "members"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)
    password_hash: Mapped[str | None]


async def get_db():
    async with SessionLocal() as session:
        yield session
        await session.commit()


@asynccontextmanager
async def create_tables(app: FastAPI):
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield


app = FastAPI(lifespan=create_tables)


@app.post("/members")
async def join(body: dict[str, str], db: AsyncSession = Depends(get_db)):
    db.add(Member(email=body["email"]))
    return {"created": True}


@app.get("/members/{member_id}")
async def read(member_id: int, db: AsyncSession = Depends(get_db)):
    return await db.get(Member, member_id)
