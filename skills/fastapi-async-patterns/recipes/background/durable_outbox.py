# /// script
# requires-python = ">=3.11"
# dependencies = ["asyncpg>=0.31", "fastapi[standard]>=0.165"]
# ///
"""Do work after the response that survives a crash.

One transaction writes the order and a row in an outbox table; then the 202 is sent.
Tasks in the lifespan claim rows, send them and delete them. A claim sets the time of
the next attempt: if the process dies, another one tries again then.

**Use when** the work must happen: an email, a webhook, an invoice. **Not when** it may
be lost: background/after_response is simpler.

Gotchas:

- At least once, not exactly once: after a timeout, or if the process dies just after
  `send`, the row is sent again. Give the receiver its id as an idempotency key.
- A row that failed MAX_ATTEMPTS times stays; its errors are in the log. Alert on
  `next_attempt = 'infinity'`; to try again, set `attempts = 0, next_attempt = now()`.
- A receiver that hangs takes a worker for SEND_SECONDS: many such rows delay others.
- Not covered: 503 while the database is gone (databases/asyncpg_pool), a repeated POST
  (databases/concurrent_writes), the order of rows.

Try it:

    POST /orders {"email": "ada@example.com", "item": "a book"}  # 202

Keywords: transactional outbox, lost background task, at-least-once, SKIP LOCKED
Related: background/after_response, databases/asyncpg_pool, lifespan/graceful_shutdown
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated

import asyncpg
from fastapi import FastAPI, Request
from pydantic import BaseModel, EmailStr, Field

WORKERS = 4  # rows sent at once, in each process
POLL_SECONDS = 0.5
SEND_SECONDS = 5.0  # a stop waits for what is being sent: SIGKILL must come later
RETRY_SECONDS = 15.0  # doubles each time; far above SEND_SECONDS, or two send at once
MAX_ATTEMPTS = 8  # within half an hour
COMMAND_TIMEOUT = 5.0  # seconds for a statement, and for a connection
NO_URL = "Set DATABASE_URL, such as postgresql://user:password@localhost/app"
SCHEMA = """
    SELECT pg_advisory_xact_lock(1); -- workers start at once
    CREATE TABLE IF NOT EXISTS outbox_orders (id bigserial PRIMARY KEY, item text);
    CREATE TABLE IF NOT EXISTS outbox (
        id bigserial PRIMARY KEY, email text, message text,
        attempts int DEFAULT 0, next_attempt timestamptz DEFAULT now());
    CREATE INDEX IF NOT EXISTS outbox_due ON outbox (next_attempt)
"""
CLAIM = """
    UPDATE outbox SET attempts = attempts + 1, next_attempt = CASE
        WHEN attempts + 1 < $1 THEN now() + make_interval(secs => $2 * 2 ^ attempts)
        ELSE 'infinity' END
    WHERE id = (SELECT id FROM outbox WHERE next_attempt <= now()
        ORDER BY next_attempt LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING id, email, message
"""
SENT = "DELETE FROM outbox WHERE id = $1"


class Order(BaseModel):
    email: EmailStr
    item: Annotated[str, Field(max_length=1000, pattern=r"^[^\x00]+$")]  # not in text


async def send(key: int, email: str, message: str) -> None:  # demo: your mail service
    print(f"{key}: {message} to {email}")


async def work(pool: asyncpg.Pool, stopping: asyncio.Event) -> None:
    log = logging.getLogger(__name__)
    while not stopping.is_set():
        row = None
        try:
            if row := await pool.fetchrow(CLAIM, MAX_ATTEMPTS, RETRY_SECONDS):
                async with asyncio.timeout(SEND_SECONDS):  # no lock, no connection held
                    await send(row["id"], row["email"], row["message"])
                await pool.execute(SENT, row["id"])
                continue
        except (Exception, asyncio.CancelledError) as error:
            if (task := asyncio.current_task()) and task.cancelling():
                raise  # else `send` awaited something that was cancelled
            log.warning("outbox %s: %r", row["id"] if row else "claim", error)
        with suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), POLL_SECONDS)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, asyncpg.Pool]]:
    if not (url := os.environ.get("DATABASE_URL")):
        raise RuntimeError(NO_URL)
    limits = {"timeout": COMMAND_TIMEOUT, "command_timeout": COMMAND_TIMEOUT}
    stopping = asyncio.Event()
    async with asyncpg.create_pool(url, min_size=1, **limits) as pool:
        await pool.execute(SCHEMA)  # demo: your migrations
        async with asyncio.TaskGroup() as workers:
            for number in range(WORKERS):
                workers.create_task(work(pool, stopping), name=f"outbox-{number}")
            yield {"pool": pool}
            stopping.set()  # the group waits for what is being sent


app = FastAPI(lifespan=lifespan)


@app.post("/orders", status_code=202, max_body_size=2**16)
async def create_order(request: Request, order: Order) -> dict[str, int]:
    pool: asyncpg.Pool = request.state.pool
    add = "INSERT INTO outbox_orders (item) VALUES ($1) RETURNING id"
    add_mail = "INSERT INTO outbox (email, message) VALUES ($1, $2)"
    async with pool.acquire(timeout=COMMAND_TIMEOUT) as db, db.transaction():
        order_id = await db.fetchval(add, order.item)
        await db.execute(add_mail, order.email, f"Order {order_id}: {order.item}")
    return {"order_id": order_id}


# --- evidence ---
def main() -> None:
    import time
    from unittest.mock import AsyncMock, patch

    from fastapi.testclient import TestClient

    if not os.environ.get("DATABASE_URL"):
        raise SystemExit(NO_URL)
    order = {"email": f"{os.urandom(8).hex()}@example.com", "item": "a book"}
    with patch.dict(globals(), WORKERS=0), TestClient(app) as client:
        accepted = client.post("/orders", json=order)  # it stops before it sends
    with patch.dict(globals(), send=AsyncMock()) as patched, TestClient(app):
        while order["email"] not in str(patched["send"].mock_calls):
            time.sleep(0.01)
    print(accepted.status_code, "and sent by the next process")
    # > 202 and sent by the next process


if __name__ == "__main__":
    main()
