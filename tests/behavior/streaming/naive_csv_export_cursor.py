"""Each export holds a connection for as long as its client likes: four that do not read
take the pool from all other requests."""

import csv
import io
import os
from contextlib import asynccontextmanager

import asyncpg
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse


@asynccontextmanager
async def lifespan(app):
    async with asyncpg.create_pool(
        os.environ["DATABASE_URL"], min_size=1, max_size=4
    ) as pool:
        yield {"pool": pool}


app = FastAPI(lifespan=lifespan)


@app.get("/answers.csv")
async def export_answers(request: Request):
    async def csv_stream():
        async with request.state.pool.acquire() as db, db.transaction():
            async for row in db.cursor("SELECT * FROM survey_answers ORDER BY id"):
                output = io.StringIO()
                csv.writer(output).writerow(row)
                yield output.getvalue()

    return StreamingResponse(csv_stream(), media_type="text/csv")


@app.get("/count")
async def count(request: Request):
    return await request.state.pool.fetchval("SELECT count(*) FROM survey_answers")
