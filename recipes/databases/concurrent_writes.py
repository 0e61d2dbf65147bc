# /// script
# requires-python = ">=3.11"
# dependencies = ["asyncpg>=0.31", "fastapi[standard]>=0.165"]
# ///
"""Move money once, under concurrent and repeated requests.

One transaction locks both accounts in the order of their ids, moves the money, and
stores the answer under the client's `Idempotency-Key`. The same request again gets the
stored answer: at the same moment, from another worker, after a crash.

**Use when** requests change the same rows, and a client may send one twice. **Not
when** one statement is enough, such as `UPDATE … SET n = n + 1`.

Gotchas:

- Lock in the same order everywhere, or two opposite transfers wait for each other until
  one gets "deadlock detected". The retry is for the place that you forgot.
- Look for the key after the lock: before it, two requests with one key both find none.
- A retry runs all of it again: call nothing else in it, see background/durable_outbox.
- After a 5xx the client repeats the request with the same key, and so learns what
  happened. A 409 stores nothing: a repeat may succeed.
- A key counts per source account. Where it is unique in all, claim it first: `INSERT …
  ON CONFLICT DO NOTHING`, then lock.
- Not covered: who may transfer, deleting old keys.

Try it:

    POST /transfers {"source": 1, "target": 2, "cents": 1}  # 422, the key is missing

Keywords: Idempotency-Key, lost update, deadlock detected, SELECT FOR UPDATE, 40001
Related: databases/asyncpg_pool, concurrency/lock_per_key, background/durable_outbox
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import asyncpg
from fastapi import FastAPI, Header, HTTPException, Request
from pydantic import BaseModel, Field

ATTEMPTS = 5
COMMAND_TIMEOUT = 5.0  # seconds for a statement with its wait for a lock
AGAIN = (  # the transaction had no effect, or the next attempt finds its key
    asyncpg.SerializationError,  # 40001
    asyncpg.DeadlockDetectedError,  # 40P01
    OSError,  # the database is gone
    asyncpg.InterfaceError,  # the connection was lost in the transaction
    asyncpg.InternalClientError,  # "cannot switch to state": lost at BEGIN
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # the server stops or starts
    asyncpg.InsufficientResourcesError,  # too many clients
)
NO_URL = "Set DATABASE_URL, such as postgresql://user:password@localhost/app"
SCHEMA = """
    SELECT pg_advisory_xact_lock(1); -- workers start at once
    CREATE TABLE IF NOT EXISTS money_accounts (
        id int8 PRIMARY KEY, cents int8 CHECK (cents BETWEEN 0 AND 1000000000000));
    CREATE TABLE IF NOT EXISTS money_transfers (
        source int8, key text, target int8, cents int8, balance int8,
        PRIMARY KEY (source, key));
    INSERT INTO money_accounts VALUES (1, 100000), (2, 100000) ON CONFLICT DO NOTHING
"""
LOCK = "SELECT id FROM money_accounts WHERE id = ANY ($1) ORDER BY id FOR UPDATE"
ADD = "UPDATE money_accounts SET cents = cents + $2 WHERE id = $1 RETURNING cents"
FIND = "SELECT * FROM money_transfers WHERE source = $1 AND key = $2"
STORE = "INSERT INTO money_transfers VALUES ($1, $2, $3, $4, $5)"
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
    if row := await db.fetchrow(FIND, new.source, key):  # who had the lock before
        if (row["target"], row["cents"]) != (new.target, new.cents):
            raise HTTPException(422, "This key belongs to another transfer")
        return int(row["balance"])
    balance = int(await db.fetchval(ADD, new.source, -new.cents))
    await db.execute(ADD, new.target, new.cents)
    await db.execute(STORE, new.source, key, new.target, new.cents, balance)
    return balance


app = FastAPI(lifespan=lifespan)


@app.post("/transfers", status_code=201, max_body_size=2**16)
async def transfer(request: Request, new: Transfer, key: Key) -> dict[str, int]:
    pool: asyncpg.Pool = request.state.pool
    for attempt in range(ATTEMPTS):
        try:
            async with pool.acquire(timeout=COMMAND_TIMEOUT) as db, db.transaction():
                balance = await move(db, key, new)
        except asyncpg.CheckViolationError:
            raise HTTPException(409, "Not enough money, or too much") from None
        except TimeoutError:  # too many want these accounts
            break
        except AGAIN as error:
            logging.getLogger(__name__).warning("transfer: %r", error)
            await asyncio.sleep(0.05 * 2**attempt)
        else:
            return {"balance": balance}  # after the commit
    raise HTTPException(503, "Try again with the same key", {"Retry-After": "1"})


# --- evidence ---
def main() -> None:
    from concurrent.futures import ThreadPoolExecutor
    from functools import partial

    from fastapi.testclient import TestClient

    if not os.environ.get("DATABASE_URL"):
        raise SystemExit(NO_URL)
    new = {"source": 1, "target": 2, "cents": 1}
    keys = [{"Idempotency-Key": os.urandom(8).hex()} for _ in range(2)]
    with TestClient(app) as client, ThreadPoolExecutor() as threads:
        post = partial(client.post, "/transfers", json=new)
        answers = [threads.submit(post, headers=keys[0]) for _ in "12345"]
        balances = {answer.result().json()["balance"] for answer in answers}
        print(len(balances), balances.pop() - post(headers=keys[1]).json()["balance"])
        # > 1 1


if __name__ == "__main__":
    main()
