"""Sign-ups with an outbox: the mail is written down with the row, then sent."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import httpx2
from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel, EmailStr

WORKERS = 4
TABLE = """
SELECT pg_advisory_xact_lock(4711);
CREATE TABLE IF NOT EXISTS signups (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    email text NOT NULL UNIQUE,
    due timestamptz DEFAULT now() -- of the next attempt; null: nothing left to do
)"""
CLAIM = """
SELECT id, email FROM signups WHERE due <= now() ORDER BY due
LIMIT 1 FOR UPDATE SKIP LOCKED"""


async def send_one(pool: asyncpg.Pool, client: httpx2.AsyncClient) -> bool:
    """Send what is due, in a transaction that a crash rolls back."""
    async with pool.acquire() as connection, connection.transaction():
        row = await connection.fetchrow(CLAIM)
        if row is None:
            return False
        headers = {"Idempotency-Key": f"signup-{row['id']}"}
        again = False
        try:
            async with asyncio.timeout(3):
                body = {"to": row["email"]}
                answer = await client.post("/send", json=body, headers=headers)
                again = answer.status_code >= 500
        except (httpx2.HTTPError, TimeoutError):
            again = True
        due = "now() + interval '0.5 s'" if again else "NULL"
        update = f"UPDATE signups SET due = {due} WHERE id = $1"  # noqa: S608
        await connection.execute(update, row["id"])
        return True


async def work(pool: asyncpg.Pool, client: httpx2.AsyncClient) -> None:
    while True:
        with contextlib.suppress(asyncpg.PostgresError, OSError):
            if await send_one(pool, client):
                continue
        await asyncio.sleep(0.2)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
    async with (
        asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=1) as pool,
        httpx2.AsyncClient(base_url=os.environ["MAIL_URL"]) as client,
    ):
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute(TABLE)
        workers = [asyncio.create_task(work(pool, client)) for _ in range(WORKERS)]
        try:
            yield {"pool": pool}
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)


app = FastAPI(lifespan=lifespan)


class SignUp(BaseModel):
    email: EmailStr


@app.post("/signups", status_code=202)
async def sign_up(data: SignUp, request: Request) -> SignUp:
    insert = "INSERT INTO signups (email) VALUES ($1)"
    try:
        await request.state.pool.execute(insert, data.email)
    except asyncpg.UniqueViolationError:
        raise HTTPException(409, "this address has signed up") from None
    return data
