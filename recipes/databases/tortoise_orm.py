# /// script
# requires-python = ">=3.11"
# dependencies = ["asyncpg>=0.31", "fastapi[standard]>=0.165",
#   "tortoise-orm[asyncpg]>=1.1"]
# ///
"""Use Tortoise ORM from the lifespan, with one transaction for a request.

`RegisterTortoise` loads the models at the start and closes the pool at the stop. All
queries in a block of `in_transaction()` are committed together, before the response is
sent. Each connection is a slot; a request that gets none in time is answered with 503.

**Use when** you have Tortoise models. **Not when** the app is new: use SQLAlchemy.

Gotchas:

- "Module "app.models" not found": name the module that has the models, here `__name__`.
- A second app in the process: "Global context fallback is already enabled by another
  Tortoise.init() call". Outside the lifespan: "No TortoiseContext is currently active".
- Workers that run `generate_schemas` at once: "duplicate key value violates unique
  constraint "pg_type_typname_nsp_index"". Hold a lock, or run migrations.
- If BEGIN fails, is cancelled or times out, the pool never gets its connection back. So
  there is no `asyncio.timeout` and no `command_timeout` here, but `statement_timeout`.
- Not covered: while the database hangs, requests hang too, and for good when all
  connections were lost at BEGIN. Let a health check make a transaction.

Try it:

    GET /concerts/1
    POST /concerts/1/tickets {"email": "ada@example.com"}  # 201, the second time 409
    GET /concerts/2147483647  # 404

Keywords: Tortoise, register_tortoise, RegisterTortoise, in_transaction, connection pool
Related: databases/sqlalchemy_session, databases/asyncpg_pool
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import asyncpg
from fastapi import Body, FastAPI, HTTPException, Path, Request
from pydantic import EmailStr
from tortoise import Tortoise, fields
from tortoise.backends.base.config_generator import expand_db_url
from tortoise.contrib.fastapi import RegisterTortoise
from tortoise.exceptions import IntegrityError
from tortoise.expressions import F
from tortoise.models import Model
from tortoise.transactions import in_transaction

POOL_SIZE = 10  # times the number of workers, it must be below max_connections
POOL_TIMEOUT = 2.0  # seconds to wait for a free connection
SETTINGS = {"statement_timeout": "5s"}  # the server stops a statement
LIMITS = {"maxsize": POOL_SIZE, "timeout": 5, "server_settings": SETTINGS}
LOST = asyncpg.InterfaceError, asyncpg.InternalClientError  # in use, or at BEGIN
NO_URL = "Set DATABASE_URL, such as postgresql://user:password@localhost/app"
Email = Annotated[EmailStr, Body(embed=True)]
ConcertId = Annotated[int, Path(ge=1, le=2**31 - 1)]  # the ids that fit the column


class Concert(Model):
    id = fields.IntField(primary_key=True)
    seats = fields.IntField()


class ConcertTicket(Model):
    email = fields.CharField(max_length=254, primary_key=True)
    concert_id = fields.IntField()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, object]]:
    if not (url := os.environ.get("DATABASE_URL")):
        raise RuntimeError(NO_URL)
    database = expand_db_url(url)
    database["credentials"] |= LIMITS
    models = {"models": {"models": [__name__]}}  # this module; also as a script
    config = {"connections": {"default": database}, "apps": models}
    async with RegisterTortoise(app, config=config):
        async with in_transaction() as connection:  # demo: your migrations
            await connection.execute_query("SELECT pg_advisory_xact_lock(1)")  # demo
            await Tortoise.generate_schemas()  # demo
            await Concert.get_or_create(id=1, defaults={"seats": 10_000})  # demo
        yield {"slots": asyncio.Semaphore(POOL_SIZE)}


@asynccontextmanager
async def transaction(request: Request) -> AsyncIterator[None]:
    """Commit when the block ends; 503 while the database cannot be used."""
    slots: asyncio.Semaphore = request.state.slots
    try:
        async with asyncio.timeout(POOL_TIMEOUT):
            await slots.acquire()
        try:
            async with in_transaction():
                yield
        finally:
            slots.release()
    except (OSError, asyncpg.PostgresError, *LOST) as error:
        logging.getLogger(__name__).warning("database: %r", error)
        raise HTTPException(503, "Try again later", {"Retry-After": "2"}) from None


app = FastAPI(lifespan=lifespan)


@app.post("/concerts/{concert_id}/tickets", status_code=201, max_body_size=2**16)
async def buy(request: Request, concert_id: ConcertId, email: Email) -> None:
    try:
        async with transaction(request):
            free = Concert.filter(id=concert_id, seats__gt=0)
            if not await free.update(seats=F("seats") - 1):
                raise HTTPException(409, "Sold out")
            await ConcertTicket.create(concert_id=concert_id, email=email)
    except IntegrityError:  # the seat is free again
        raise HTTPException(409, "This email has a ticket") from None


@app.get("/concerts/{concert_id}")
async def get_concert(request: Request, concert_id: ConcertId) -> dict[str, int]:
    async with transaction(request):
        concert = await Concert.get_or_none(id=concert_id)
    if concert is None:
        raise HTTPException(404, "No such concert")
    return {"seats": concert.seats}


# --- evidence ---
def main() -> None:
    from fastapi.testclient import TestClient

    if not os.environ.get("DATABASE_URL"):
        raise SystemExit(NO_URL)
    path, new = "/concerts/1", {"email": f"{os.urandom(8).hex()}@example.com"}
    with TestClient(app) as client:
        before = client.get(path).json()["seats"]
        bought, again = (client.post(f"{path}/tickets", json=new) for _ in range(2))
        sold = before - client.get(path).json()["seats"]
        print(bought.status_code, again.status_code, "seats sold:", sold)
        # > 201 409 seats sold: 1


if __name__ == "__main__":
    main()
