# /// script
# requires-python = ">=3.11"
# dependencies = ["asyncpg>=0.31", "fastapi[standard]>=0.165",
#   "sqlalchemy[asyncio]>=2.1"]
# ///
"""Run independent queries at once, each in a session of its own.

A connection runs one statement at a time, so each query has a session, which returns
its connection when the query ends. Nothing waits for a connection while it holds
another: a pool of 10 serves 100 requests with 300 queries. If one of them fails, the
others are cancelled. If no connection is free in time, or the database cannot be used,
the response is a 503.

**Use when** a response needs several slow queries. **Not when** they are fast, or must
agree: run them one after another in one session, or as one statement.

Gotchas:

- Each query sees another moment: an order may come in between two. What the request
  has written and not yet committed, none of them sees.
- Do not call this inside a session, such as that of `Depends(get_db)`: 10 requests hold
  the 10 connections and wait for more. "QueuePool limit of size 10 overflow 0 reached".
- `gather` on one session: "This session is provisioning a new connection; concurrent
  operations are not permitted", or the statements run one after another.

Try it:

    GET /board

Keywords: gather, concurrent queries, QueuePool limit, pool deadlock, AsyncSession
Related: databases/sqlalchemy_session, databases/sqlalchemy_relations
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, Request
from sqlalchemy import exc, func, make_url, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

POOL_SIZE = 10  # times the number of workers, it must be below max_connections
POOL_TIMEOUT = 5.0  # seconds to wait for a free connection
LIMITS = {"timeout": 5, "command_timeout": 5}  # seconds: to connect, for a statement
UNUSABLE = "08", "53", "57"  # SQLSTATE: connection lost, server full, starting
NO_URL = "Set DATABASE_URL, such as postgresql://user:password@localhost/app"


class Base(DeclarativeBase):
    id: Mapped[int] = mapped_column(primary_key=True)


class Order(Base):
    __tablename__ = "board_orders"


class Visit(Base):
    __tablename__ = "board_visits"


class Review(Base):
    __tablename__ = "board_reviews"


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, object]]:
    if not (database := os.environ.get("DATABASE_URL")):
        raise RuntimeError(NO_URL)
    engine = create_async_engine(
        make_url(database).set(drivername="postgresql+asyncpg"),
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT,
        pool_pre_ping=True,  # replaces connections that died, as after a restart
        connect_args=LIMITS,
    )
    try:
        async with engine.begin() as connection:  # demo: your migrations
            await connection.execute(select(func.pg_advisory_xact_lock(1)))  # demo
            await connection.run_sync(Base.metadata.create_all)  # demo
        yield {"sessions": async_sessionmaker(engine)}
    finally:
        await engine.dispose()


app = FastAPI(lifespan=lifespan)


def is_unusable(error: Exception) -> bool:
    """Whether the fault is of the database, and not of the statement."""
    if not isinstance(error, exc.DBAPIError | exc.TimeoutError | OSError):
        return False
    reported = getattr(error, "orig", None)  # without a state: it was lost
    return not reported or (reported.sqlstate or "08")[:2] in UNUSABLE


@app.get("/board")
async def board(request: Request) -> dict[str, int]:
    sessions: async_sessionmaker[AsyncSession] = request.state.sessions

    async def count(table: type[Base]) -> int:
        async with sessions() as session:
            return (await session.scalars(select(func.count(table.id)))).one()

    try:
        async with asyncio.TaskGroup() as queries:  # if one fails, it cancels the rest
            orders = queries.create_task(count(Order))
            visits = queries.create_task(count(Visit))
            reviews = queries.create_task(count(Review))
    except ExceptionGroup as errors:  # raised in `except*`, Python 3.11.2 wraps it
        if not all(map(is_unusable, errors.exceptions)):
            raise
        logging.getLogger(__name__).warning("database: %r", errors.exceptions)
        raise HTTPException(503, "Try again later", {"Retry-After": "2"}) from None
    return {
        "orders": orders.result(),
        "visits": visits.result(),
        "reviews": reviews.result(),
    }


# --- evidence ---
def main() -> None:
    from collections import Counter
    from concurrent.futures import ThreadPoolExecutor

    from fastapi.testclient import TestClient
    from sqlalchemy import event

    if not os.environ.get("DATABASE_URL"):
        raise SystemExit(NO_URL)
    callers, used = 100, set[int]()
    with TestClient(app) as client, ThreadPoolExecutor(callers) as threads:
        pool = client.app_state["sessions"].kw["bind"].sync_engine.pool
        event.listen(pool, "checkout", lambda used_one, *_: used.add(id(used_one)))
        statuses = threads.map(
            lambda _: client.get("/board").status_code, "." * callers
        )
        print(Counter(statuses), "connections:", len(used))
        # > Counter({200: 100}) connections: 10


if __name__ == "__main__":
    main()
