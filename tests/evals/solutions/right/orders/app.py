"""Orders that are committed before the client hears of them."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import asyncpg
from fastapi import FastAPI, HTTPException, Path, Request
from pydantic import BaseModel, Field


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, asyncpg.Pool]]:
    url = os.environ["DATABASE_URL"]
    async with asyncpg.create_pool(url, min_size=1, max_size=10) as pool:
        yield {"pool": pool}


app = FastAPI(lifespan=lifespan)


class NewOrder(BaseModel):
    reference: str = Field(min_length=1, max_length=40)
    amount: int = Field(ge=1, le=1_000_000)


class Order(NewOrder):
    id: int


@app.post("/orders", status_code=201)
async def create(order: NewOrder, request: Request) -> Order:
    insert = "INSERT INTO orders (reference, amount) VALUES ($1, $2) RETURNING id"
    try:
        async with request.state.pool.acquire(timeout=10) as connection:
            async with connection.transaction():
                number = await connection.fetchval(
                    insert, order.reference, order.amount
                )
    except asyncpg.UniqueViolationError:
        raise HTTPException(409, "this reference is taken") from None
    return Order(id=number, **order.model_dump())


@app.get("/orders/{number}")
async def read(number: Annotated[int, Path(ge=1, lt=2**63)], request: Request) -> Order:
    query = "SELECT id, reference, amount FROM orders WHERE id = $1"
    row = await request.state.pool.fetchrow(query, number)
    if row is None:
        raise HTTPException(404, "no such order")
    return Order(**row)
