# mypy: ignore-errors
"""Reads, checks, then writes: right only as long as nobody else does."""

import os
from contextlib import asynccontextmanager

import asyncpg
from fastapi import FastAPI, Header, HTTPException
from pydantic import BaseModel, Field


@asynccontextmanager
async def lifespan(app):
    app.state.pool = await asyncpg.create_pool(os.environ["DATABASE_URL"])
    yield
    await app.state.pool.close()


app = FastAPI(lifespan=lifespan)


class Transfer(BaseModel):
    source: int
    target: int
    amount: int = Field(gt=0, lt=2**63)


@app.post("/transfers", status_code=201)
async def create_transfer(data: Transfer, idempotency_key: str = Header(...)):
    if data.source == data.target:
        raise HTTPException(422, "Same account")
    async with app.state.pool.acquire() as conn, conn.transaction():
        existing = await conn.fetchrow(
            "SELECT id, source, target, amount FROM transfers WHERE idempotency_key = $1",
            idempotency_key,
        )
        if existing:
            if dict(existing) != {"id": existing["id"], **data.model_dump()}:
                raise HTTPException(409, "Key already used")
            return dict(existing)
        balance = "SELECT balance FROM accounts WHERE id = $1"
        source = await conn.fetchval(balance, data.source)
        target = await conn.fetchval(balance, data.target)
        if source is None or target is None:
            raise HTTPException(404, "Account not found")
        if source < data.amount:
            raise HTTPException(402, "Insufficient funds")
        update = "UPDATE accounts SET balance = $1 WHERE id = $2"
        await conn.execute(update, source - data.amount, data.source)
        await conn.execute(update, target + data.amount, data.target)
        transfer_id = await conn.fetchval(
            "INSERT INTO transfers (idempotency_key, source, target, amount) "
            "VALUES ($1, $2, $3, $4) RETURNING id",
            idempotency_key,
            data.source,
            data.target,
            data.amount,
        )
    return {"id": transfer_id, **data.model_dump()}


@app.get("/accounts/{account_id}")
async def get_account(account_id: int):
    row = await app.state.pool.fetchrow(
        "SELECT id, balance FROM accounts WHERE id = $1", account_id
    )
    if row is None:
        raise HTTPException(404, "Account not found")
    return dict(row)
