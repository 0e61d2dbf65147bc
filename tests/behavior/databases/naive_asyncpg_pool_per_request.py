"""A pool as a dependency is one per request: it opens ten connections for one query."""

import os

import asyncpg
from fastapi import Depends, FastAPI

app = FastAPI()


async def get_pool():
    pool = await asyncpg.create_pool(os.environ["DATABASE_URL"], max_size=20)
    try:
        yield pool
    finally:
        await pool.close()


@app.get("/readers")
async def list_readers(pool=Depends(get_pool)):
    async with pool.acquire() as connection:
        return await connection.fetchval("SELECT count(*) FROM readers")
