"""One row that exists makes the whole batch a 500, a million rows are accepted, and the
response has every column, secret ones too."""

import os
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI
from pydantic import BaseModel
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

url = make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+asyncpg")
engine = create_async_engine(url)
SessionLocal = async_sessionmaker(engine, expire_on_commit=False)


class Base(DeclarativeBase): ...


class Device(Base):
    __tablename__ = "devices"
    serial: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str]
    secret_hash: Mapped[str | None] = mapped_column(default=lambda: os.urandom(8).hex())


class NewDevice(BaseModel):
    serial: str
    model: str


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


@app.post("/devices")
async def add_devices(batch: list[NewDevice], db: AsyncSession = Depends(get_db)):
    devices = [Device(**new.dict()) for new in batch]
    db.add_all(devices)
    await db.flush()
    return devices
