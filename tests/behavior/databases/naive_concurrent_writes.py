"""Requests that read one balance at the same moment overwrite each other's; opposite
transfers deadlock, and a request that is sent again moves the money again."""

import os
from contextlib import asynccontextmanager

import asyncpg
from fastapi import FastAPI, HTTPException, Request


@asynccontextmanager
async def lifespan(app):
    async with asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=1) as pool:
        yield {"pool": pool}


app = FastAPI(lifespan=lifespan)
READ = "SELECT cents FROM money_accounts WHERE id = $1"
WRITE = "UPDATE money_accounts SET cents = $2 WHERE id = $1"


@app.post("/transfers", status_code=201)
async def transfer(request: Request, body: dict[str, int]):
    async with request.state.pool.acquire() as db, db.transaction():
        source = await db.fetchval(READ, body["source"])
        target = await db.fetchval(READ, body["target"])
        if source < body["cents"]:
            raise HTTPException(409, "Not enough money")
        await db.execute(WRITE, body["source"], source - body["cents"])
        await db.execute(WRITE, body["target"], target + body["cents"])
    return {"balance": source - body["cents"]}
