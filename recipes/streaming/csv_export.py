# /// script
# requires-python = ">=3.11"
# dependencies = ["asyncpg>=0.31", "fastapi[standard]>=0.165"]
# ///
"""Export a million rows as CSV, from one snapshot.

A cursor reads batches in one read-only transaction: each row is there once, whatever
others write meanwhile. The first batch is fetched before the response starts: an error
until then is a real 500, and a later one cuts the response off.

**Use when** users open a table in a spreadsheet. **Not when** it takes minutes: write a
file in a background job and offer it with streaming/download.

Gotchas:

- Spreadsheets run text that starts with =, +, - or @ as a formula: it gets an
  apostrophe, a phone number too. Numbers do not.
- A client sees the cut by the missing last chunk: "peer closed connection without
  sending complete message body (incomplete chunked read)" in httpx2.
- Excel needs the BOM. Other programs must read `utf-8-sig`, not `utf-8`.
- Until EXPORT_SECONDS are over, a client that does not read holds its snapshot, which
  VACUUM waits for. After that uvicorn still holds its socket.
- EXPORT_SECONDS must be enough for the slowest honest line. BATCH_ROWS rows must fit
  into memory: where people write long texts, fetch fewer.
- Start uvicorn with `--timeout-graceful-shutdown 30`: a stop waits for exports.
- Not covered: who may export, and limits per user: four slow clients take all slots.

Try it:

    GET /answers.csv

Keywords: StreamingResponse, CSV injection, server-side cursor, REPEATABLE READ, Excel
Related: streaming/download, databases/asyncpg_pool, streaming/html_report
"""

import asyncio
import csv
import io
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any

import asyncpg
from asyncpg.cursor import Cursor
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse
from starlette.types import Send

MAX_EXPORTS = 4  # at once; below POOL_SIZE, so that other requests find a connection
POOL_SIZE = 10
BATCH_ROWS = 1000
EXPORT_SECONDS = 600.0
COMMAND_TIMEOUT = 30.0  # seconds for a batch, for a connection
FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")  # also their full-width forms
COLUMNS = ("id", "author", "answer", "score")
QUERY = "SELECT id, author, answer, score FROM survey_answers ORDER BY id"
NO_URL = "Set DATABASE_URL, such as postgresql://user:password@localhost/app"
SCHEMA = """
    SELECT pg_advisory_xact_lock(1); -- workers start at once
    CREATE TABLE IF NOT EXISTS survey_answers (
        id int PRIMARY KEY, author text, answer text, score int);
    INSERT INTO survey_answers
        SELECT n, 'Ada', '=1+1', -n FROM generate_series(1, 2500) AS n
        WHERE NOT EXISTS (SELECT FROM survey_answers)
"""


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
    if not (url := os.environ.get("DATABASE_URL")):
        raise RuntimeError(NO_URL)
    limits = {"timeout": COMMAND_TIMEOUT, "command_timeout": COMMAND_TIMEOUT}
    pool = await asyncpg.create_pool(url, min_size=1, max_size=POOL_SIZE, **limits)
    try:
        await pool.execute(SCHEMA)  # demo: your migrations
        yield {"pool": pool, "exports": asyncio.Semaphore(MAX_EXPORTS)}
    finally:
        with suppress(TimeoutError):  # a server that hangs must not hold up the stop
            await asyncio.wait_for(pool.close(), 5)


class Export(StreamingResponse):
    media_type = "text/csv"

    async def stream_response(self, send: Send) -> None:
        async with asyncio.timeout(EXPORT_SECONDS):  # even if the client does not read
            await super().stream_response(send)


async def open_cursor(request: Request) -> AsyncIterator[Cursor]:
    """A dependency: it is cleaned up after the response, and when the client leaves."""
    pool: asyncpg.Pool = request.state.pool
    exports: asyncio.Semaphore = request.state.exports
    if exports.locked():  # no await between this and `async with`
        raise HTTPException(503, "Too many exports", {"Retry-After": "30"})
    async with (
        exports,
        pool.acquire(timeout=COMMAND_TIMEOUT) as db,
        db.transaction(isolation="repeatable_read", readonly=True),
    ):
        yield await db.cursor(QUERY)


app = FastAPI(lifespan=lifespan)


@app.get("/answers.csv", response_class=Export)
async def export_answers(cursor: Annotated[Cursor, Depends(open_cursor)]) -> Export:
    first = await cursor.fetch(BATCH_ROWS)  # before the status is sent
    headers = {"Content-Disposition": 'attachment; filename="answers.csv"'}
    return Export(csv_chunks(cursor, first), headers=headers)


async def csv_chunks(cursor: Cursor, batch: list[Any]) -> AsyncIterator[str]:
    yield "\ufeff" + to_csv([COLUMNS])
    while batch:
        yield to_csv(batch)
        batch = await cursor.fetch(BATCH_ROWS)


def to_csv(rows: Iterable[Iterable[object]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(map(safe, row) for row in rows)
    return text.getvalue()


def safe(value: object) -> object:
    formula = isinstance(value, str) and value.startswith(FORMULA)
    return f"'{value}" if formula else value


# --- evidence ---
def main() -> None:
    from fastapi.testclient import TestClient

    if not os.environ.get("DATABASE_URL"):
        raise SystemExit(NO_URL)
    with TestClient(app) as client:
        content = client.get("/answers.csv").content
        rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig"))))
        print(len(rows), rows[0], rows[-1])
        # > 2501 ['id', 'author', 'answer', 'score'] ['2500', 'Ada', "'=1+1", '-2500']


if __name__ == "__main__":
    main()
