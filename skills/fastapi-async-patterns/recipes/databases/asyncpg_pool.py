# /// script
# requires-python = ">=3.11"
# dependencies = ["asyncpg>=0.31", "fastapi[standard]>=0.165"]
# ///
"""Query PostgreSQL through one asyncpg pool.

Each unit of work is one `async with connection(request)` in the endpoint, with a
transaction if it writes. At its end the connection is back in the pool, and only then
is the response sent: a failed commit is never a 201, a slow client holds no connection.

**Use when** you write the SQL yourself. **Not when** you want objects and their
relations: use databases/sqlalchemy_session.

Gotchas:

- A `yield` dependency with `pool.acquire()` holds its connection until the response is
  sent: ten clients that do not read exhaust the pool.
- `pool.fetch(…, timeout=5)` limits the statement, but waits forever for a connection.
- Call nothing but the database in the block: any `OSError` in it becomes the 503.
- A 503 may come after the commit: make retries safe, here by the unique email.
- A deferred constraint fails at COMMIT: catch its error outside of the block.
  Inserts of one value at once may deadlock on it: retry `DeadlockDetectedError`.
- After a migration a transaction may fail once: "cached statement plan is invalid due
  to a database schema or configuration change".
- Start uvicorn with `--timeout-graceful-shutdown 10`: a stalled body holds up a stop.

Try it:

    POST /readers {"name": "Ada", "email": "ada@example.com"}  # 201, then 409
    GET /readers?after=0

Keywords: connection pool, TooManyConnectionsError, PostgreSQL, keyset pagination
Related: databases/sqlalchemy_session, databases/concurrent_writes, lifespan/resources
"""

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import asyncpg
from fastapi import FastAPI, HTTPException, Query, Request
from pydantic import BaseModel, EmailStr, Field

POOL_SIZE = 10  # times the number of workers, it must be below max_connections
POOL_TIMEOUT = 2.0  # seconds to wait for a free connection
COMMAND_TIMEOUT = 5.0  # seconds for a statement, to connect, to disconnect
PAGE_SIZE = 100
UNUSABLE = (
    OSError,  # a TimeoutError is one
    asyncpg.InterfaceError,  # the connection was lost in a transaction
    asyncpg.InternalClientError,  # "cannot switch to state": lost at BEGIN
    asyncpg.PostgresConnectionError,
    asyncpg.InsufficientResourcesError,  # too many clients
    asyncpg.OperatorInterventionError,  # the server stops or starts
)
NO_URL = "Set DATABASE_URL, such as postgresql://user:password@localhost/app"
SCHEMA = """
    SELECT pg_advisory_xact_lock(1); -- workers start at once
    CREATE TABLE IF NOT EXISTS readers (
        id serial PRIMARY KEY, name text NOT NULL, password_hash text);
    CREATE TABLE IF NOT EXISTS reader_emails (
        email text PRIMARY KEY, reader_id int NOT NULL REFERENCES readers)
"""


class NewReader(BaseModel):
    name: Annotated[str, Field(max_length=100, pattern=r"^[^\x00]+$")]  # not in text
    email: EmailStr


class Reader(BaseModel):  # all that a response may contain
    id: int
    name: str


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, asyncpg.Pool]]:
    if not (url := os.environ.get("DATABASE_URL")):
        raise RuntimeError(NO_URL)
    limits = {"timeout": COMMAND_TIMEOUT, "command_timeout": COMMAND_TIMEOUT}
    sizes = {"min_size": 1, "max_size": POOL_SIZE}
    async with asyncpg.create_pool(url, **limits, **sizes) as pool:
        await pool.execute(SCHEMA)  # demo: your migrations
        yield {"pool": pool}


@asynccontextmanager
async def connection(request: Request) -> AsyncIterator[Any]:
    """A connection of the pool; 503 while the database cannot be used."""
    pool: asyncpg.Pool = request.state.pool
    try:
        async with pool.acquire(timeout=POOL_TIMEOUT) as db:
            yield db
    except UNUSABLE as error:
        lost = "closed" in str(error) or "released" in str(error)
        if isinstance(error, asyncpg.InterfaceError) and not lost:
            raise  # a mistake, such as an argument too few
        logging.getLogger(__name__).warning("database: %r", error)
        raise HTTPException(503, "Try again later", {"Retry-After": "2"}) from None


app = FastAPI(lifespan=lifespan)


@app.post("/readers", status_code=201, max_body_size=2**16)
async def create_reader(request: Request, new: NewReader) -> Reader:
    add = "INSERT INTO readers (name) VALUES ($1) RETURNING id, name"
    add_email = "INSERT INTO reader_emails VALUES ($1, $2)"
    try:
        async with connection(request) as db, db.transaction():
            row = await db.fetchrow(add, new.name)
            await db.execute(add_email, new.email, row["id"])
    except asyncpg.UniqueViolationError:  # the first INSERT is rolled back
        raise HTTPException(409, "This email is taken") from None
    return Reader(**row)


@app.get("/readers")
async def list_readers(
    request: Request, after: Annotated[int, Query(ge=0, lt=2**31)] = 0
) -> list[Reader]:
    """One page; the last id in it is the `after` of the next one."""
    page = "SELECT id, name FROM readers WHERE id > $1 ORDER BY id LIMIT $2"
    async with connection(request) as db:
        rows = await db.fetch(page, after, PAGE_SIZE)
    return [Reader(**row) for row in rows]  # the connection is back in the pool


# --- evidence ---
def main() -> None:
    from fastapi.testclient import TestClient

    if not os.environ.get("DATABASE_URL"):
        raise SystemExit(NO_URL)
    new = {"name": "Ada", "email": f"{os.urandom(8).hex()}@example.com"}
    with TestClient(app) as client:
        created, again = (client.post("/readers", json=new) for _ in range(2))
        print(created.status_code, again.status_code, created.json()["name"])
        # > 201 409 Ada


if __name__ == "__main__":
    main()
