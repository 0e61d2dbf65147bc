"""Transfers: the key first, then both accounts in one order, in one transaction."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import asyncpg
from fastapi import FastAPI, Header, HTTPException, Request
from pydantic import BaseModel, Field, model_validator

Account = Annotated[int, Field(ge=1, lt=2**63)]


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, asyncpg.Pool]]:
    url = os.environ["DATABASE_URL"]
    async with asyncpg.create_pool(url, min_size=1, max_size=10) as pool:
        yield {"pool": pool}


app = FastAPI(lifespan=lifespan)


class Transfer(BaseModel):
    source: Account
    target: Account
    amount: Annotated[int, Field(ge=1, le=10**15)]

    @model_validator(mode="after")
    def two_accounts(self) -> "Transfer":
        if self.source == self.target:
            raise ValueError("source and target are the same")
        return self


@app.post("/transfers", status_code=201)
async def transfer(
    order: Transfer,
    idempotency_key: Annotated[str, Header(min_length=1, max_length=100)],
    request: Request,
) -> dict[str, Any]:
    values = (order.source, order.target, order.amount)
    async with request.state.pool.acquire() as connection:
        async with connection.transaction():
            return await move(connection, idempotency_key, *values)


async def move(
    connection: asyncpg.Connection, key: str, source: int, target: int, amount: int
) -> dict[str, Any]:
    insert = """
        INSERT INTO transfers (idempotency_key, source, target, amount)
        VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING
        RETURNING id, source, target, amount"""
    row = await connection.fetchrow(insert, key, source, target, amount)
    if row is None:  # done before
        query = "SELECT id, source, target, amount FROM transfers"
        row = await connection.fetchrow(f"{query} WHERE idempotency_key = $1", key)
        if tuple(row)[1:] != (source, target, amount):
            raise HTTPException(409, "this key belongs to another transfer")
        return dict(row)
    lock = "SELECT id, balance FROM accounts WHERE id = ANY($1) ORDER BY id FOR UPDATE"
    balances = dict(await connection.fetch(lock, [source, target]))
    if len(balances) < 2:
        raise HTTPException(404, "no such account")
    if balances[source] < amount:
        raise HTTPException(402, "not enough money")
    change = "UPDATE accounts SET balance = balance + $2 WHERE id = $1"
    await connection.executemany(change, [(source, -amount), (target, amount)])
    return dict(row)


@app.get("/accounts/{number}")
async def account(number: int, request: Request) -> dict[str, int]:
    query = "SELECT id, balance FROM accounts WHERE id = $1"
    row = await request.state.pool.fetchrow(query, number)
    if row is None:
        raise HTTPException(404, "no such account")
    return dict(row)
