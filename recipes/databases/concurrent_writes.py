# /// script
# requires-python = ">=3.11"
# dependencies = ["asyncpg>=0.31", "fastapi[standard]>=0.165"]
# ///
"""Move money once, under concurrent and repeated requests.

One transaction locks both accounts in the order of their ids, moves the money, and
stores the answer under the client's `Idempotency-Key`. The same request again, even at
the same moment, gets the stored answer.

**Use when** requests change the same rows, and a client may send one twice. **Not
when** one statement is enough, such as `UPDATE … SET n = n + 1`.

Gotchas:

- Lock in the same order everywhere, or two opposite transfers wait for each other until
  one gets "deadlock detected". The retry is for the place that you forgot.
- Look for the key after the lock: before it, two requests with one key both find none.
- A retry runs all of it again: call nothing else in it, see background/durable_outbox.
- After a 5xx the client repeats the request with the same key, and so learns what
  happened. A 409 stores nothing: a repeat may succeed.
- Not covered: who may transfer (make keys unique per user), deleting old keys.

Try it:

    POST /transfers {"source": 1, "target": 2, "cents": 1}  # 422, the key is missing
    GET /accounts/1

Keywords: Idempotency-Key, lost update, deadlock detected, SELECT FOR UPDATE, 40001
Related: databases/asyncpg_pool, concurrency/lock_per_key, background/durable_outbox
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import asyncpg
from fastapi import FastAPI, Header, HTTPException, Request
from pydantic import BaseModel, Field

ATTEMPTS = 5  # of a transaction that the database could not run beside others
COMMAND_TIMEOUT = 5.0  # seconds for a statement with its wait for a lock
CONFLICTS = (
    asyncpg.SerializationError,  # 40001
    asyncpg.DeadlockDetectedError,  # 40P01
    asyncpg.UniqueViolationError,  # one key for other accounts at the same moment
)
NO_URL = "Set DATABASE_URL, such as postgresql://user:password@localhost/app"
SCHEMA = """
    SELECT pg_advisory_xact_lock(1); -- workers start at once
    CREATE TABLE IF NOT EXISTS money_accounts (
        id int8 PRIMARY KEY, cents int8 CHECK (cents BETWEEN 0 AND 1000000000000));
    CREATE TABLE IF NOT EXISTS money_transfers (
        key text PRIMARY KEY, source int8, target int8, cents int8, balance int8);
    INSERT INTO money_accounts VALUES (1, 100000), (2, 100000) ON CONFLICT DO NOTHING
"""
LOCK = "SELECT id FROM money_accounts WHERE id = ANY ($1) ORDER BY id FOR UPDATE"
ADD = "UPDATE money_accounts SET cents = cents + $2 WHERE id = $1 RETURNING cents"
FIND = "SELECT source, target, cents, balance FROM money_transfers WHERE key = $1"
STORE = "INSERT INTO money_transfers VALUES ($1, $2, $3, $4, $5)"
READ = "SELECT cents FROM money_accounts WHERE id = $1"
AccountId = Annotated[int, Field(ge=1, lt=2**63)]
Key = Annotated[str, Header(alias="Idempotency-Key", pattern="^[!-~]{8,100}$")]


class Transfer(BaseModel):
    source: AccountId
    target: AccountId
    cents: Annotated[int, Field(ge=1, le=10**12)]  # no float: 0.1 + 0.2


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, asyncpg.Pool]]:
    if not (url := os.environ.get("DATABASE_URL")):
        raise RuntimeError(NO_URL)
    limits = {"timeout": COMMAND_TIMEOUT, "command_timeout": COMMAND_TIMEOUT}
    async with asyncpg.create_pool(url, min_size=1, **limits) as pool:
        await pool.execute(SCHEMA)  # demo: your migrations
        yield {"pool": pool}


async def move(db: asyncpg.Connection, key: str, new: Transfer) -> int:
    """The balance of the source, in a transaction of the caller."""
    if len(await db.fetch(LOCK, [new.source, new.target])) < 2:
        raise HTTPException(404, "Two different accounts that exist, please")
    wanted = (new.source, new.target, new.cents)
    if row := await db.fetchrow(FIND, key):  # of a request that had the lock before
        *stored, balance = row
        if tuple(stored) != wanted:
            raise HTTPException(422, "This key belongs to another transfer")
    else:
        balance = await db.fetchval(ADD, new.source, -new.cents)
        await db.execute(ADD, new.target, new.cents)
        await db.execute(STORE, key, *wanted, balance)
    return int(balance)


app = FastAPI(lifespan=lifespan)


@app.post("/transfers", status_code=201, max_body_size=2**16)
async def transfer(request: Request, new: Transfer, key: Key) -> dict[str, int]:
    pool: asyncpg.Pool = request.state.pool
    for attempt in range(ATTEMPTS):
        try:
            async with pool.acquire(timeout=COMMAND_TIMEOUT) as db, db.transaction():
                balance = await move(db, key, new)
        except CONFLICTS:
            await asyncio.sleep(0.05 * 2**attempt)
        except asyncpg.CheckViolationError:
            raise HTTPException(409, "Not enough money, or too much") from None
        except TimeoutError:  # too many want these accounts
            break
        else:
            return {"balance": balance}  # after the commit
    raise HTTPException(503, "Try again with the same key", {"Retry-After": "1"})


@app.get("/accounts/{account_id}")
async def get_balance(request: Request, account_id: AccountId) -> dict[str, int]:
    pool: asyncpg.Pool = request.state.pool
    async with pool.acquire(timeout=COMMAND_TIMEOUT) as db:
        cents = await db.fetchval(READ, account_id)
    if cents is None:
        raise HTTPException(404, "No such account")
    return {"cents": cents}


# --- evidence ---
def main() -> None:
    from concurrent.futures import ThreadPoolExecutor

    from fastapi.testclient import TestClient

    if not os.environ.get("DATABASE_URL"):
        raise SystemExit(NO_URL)
    headers = {"Idempotency-Key": os.urandom(8).hex()}
    new = {"source": 1, "target": 2, "cents": 1}
    with TestClient(app, headers=headers) as client, ThreadPoolExecutor() as threads:
        before = client.get("/accounts/2").json()["cents"]
        repeats = [threads.submit(client.post, "/transfers", json=new) for _ in "12345"]
        statuses = [repeat.result().status_code for repeat in repeats]
        print(statuses, client.get("/accounts/2").json()["cents"] - before)
        # > [201, 201, 201, 201, 201] 1


if __name__ == "__main__":
    main()
