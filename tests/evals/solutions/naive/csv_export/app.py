# mypy: ignore-errors
"""Pages by OFFSET, each page another moment of the table."""

import csv
import io
import os
from contextlib import asynccontextmanager

import asyncpg
from fastapi import FastAPI
from fastapi.responses import StreamingResponse


@asynccontextmanager
async def lifespan(app):
    app.state.pool = await asyncpg.create_pool(os.environ["DATABASE_URL"])
    yield
    await app.state.pool.close()


app = FastAPI(lifespan=lifespan)


async def generate():
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["id", "name", "note"])
    offset = 0
    while True:
        rows = await app.state.pool.fetch(
            "SELECT id, name, note FROM customers ORDER BY id LIMIT 5000 OFFSET $1",
            offset,
        )
        if not rows:
            break
        for row in rows:
            writer.writerow(row)
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate(0)
        offset += 5000


@app.get("/customers.csv")
async def export():
    return StreamingResponse(
        generate(),
        media_type="text/csv",
        headers={"Content-Disposition": "attachment; filename=customers.csv"},
    )


@app.get("/customers/count")
async def count():
    return {"count": await app.state.pool.fetchval("SELECT count(*) FROM customers")}
