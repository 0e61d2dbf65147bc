"""A cursor in one snapshot, three exports at most, and cells that are text."""

import csv
import io
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import asyncpg
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse

AT_ONCE = 3
BATCH = 200
QUERY = "SELECT id, name, note FROM customers ORDER BY id"


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
    url = os.environ["DATABASE_URL"]
    async with asyncpg.create_pool(url, min_size=1, max_size=AT_ONCE + 5) as pool:
        yield {"pool": pool, "exports": [0]}


app = FastAPI(lifespan=lifespan)


async def snapshot(request: Request) -> AsyncIterator[asyncpg.Connection]:
    exports = request.state.exports
    if exports[0] >= AT_ONCE:
        raise HTTPException(503, "too many exports", {"Retry-After": "30"})
    exports[0] += 1
    try:
        async with request.state.pool.acquire() as connection:
            options = {"isolation": "repeatable_read", "readonly": True}
            async with connection.transaction(**options):
                yield connection
    finally:
        exports[0] -= 1


def cell(value: object) -> object:
    text = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if text else value


async def lines(connection: asyncpg.Connection) -> AsyncIterator[str]:
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["id", "name", "note"])
    cursor = await connection.cursor(QUERY)
    while rows := await cursor.fetch(BATCH):
        writer.writerows([cell(value) for value in row] for row in rows)
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
    yield buffer.getvalue()


@app.get("/customers.csv")
async def export(
    connection: Annotated[asyncpg.Connection, Depends(snapshot)],
) -> StreamingResponse:
    headers = {"Content-Disposition": 'attachment; filename="customers.csv"'}
    return StreamingResponse(lines(connection), media_type="text/csv", headers=headers)


@app.get("/customers/count")
async def count(request: Request) -> dict[str, int]:
    number = await request.state.pool.fetchval("SELECT count(*) FROM customers")
    return {"count": number}
