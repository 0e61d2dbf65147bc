"""It pages by OFFSET: who deletes or inserts a row meanwhile shifts the others, so that
one is missing or there twice; and an error is found when the 200 has been sent."""

import csv
import io
import os
from contextlib import asynccontextmanager

import asyncpg
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse


@asynccontextmanager
async def lifespan(app):
    async with asyncpg.create_pool(os.environ["DATABASE_URL"]) as pool:
        yield {"pool": pool}


app = FastAPI(lifespan=lifespan)


@app.get("/answers.csv")
async def export_answers(request: Request):
    async def csv_stream():
        output = io.StringIO()
        writer = csv.writer(output)
        writer.writerow(["id", "author", "answer", "score"])
        yield output.getvalue()
        offset = 0
        while True:
            rows = await request.state.pool.fetch(
                "SELECT * FROM survey_answers ORDER BY id LIMIT 100 OFFSET $1", offset
            )
            if not rows:
                break
            for row in rows:
                output.seek(0)
                output.truncate(0)
                writer.writerow(row)
                yield output.getvalue()
            offset += 100

    return StreamingResponse(csv_stream(), media_type="text/csv")
