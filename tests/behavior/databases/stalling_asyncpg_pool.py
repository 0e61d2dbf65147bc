"""The recipe and the naive form with clients that do not read, and short limits.

A request with `x-stall` sends nothing until `/release`: `send` does not return, as for
a socket that is full.
"""

import asyncio
import logging
import os
from contextlib import AsyncExitStack

from fastapi import FastAPI, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recipes.databases import asyncpg_pool
from tests.behavior.databases import naive_asyncpg_pool


def stalling(app: FastAPI) -> ASGIApp:
    release = asyncio.Event()

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def stall(message: Message) -> None:
            if message["type"] == "http.response.start":
                logging.getLogger(__name__).warning("stalled")
                await release.wait()
            await send(message)

        stalls = b"x-stall" in dict(scope.get("headers", ()))
        if scope.get("path") == "/release":
            release.set()
        await app(scope, receive, stall if stalls else send)

    return wrapped


async def health() -> str:
    """Answers without a database."""
    return "ok"


async def mistake(request: Request) -> None:
    """An argument too few."""
    async with asyncpg_pool.connection(request) as db:
        await db.fetch("SELECT $1::int")


async def cut(request: Request, *, transaction: bool = False) -> None:
    """The connection is lost between two statements."""
    async with asyncpg_pool.connection(request) as db, AsyncExitStack() as stack:
        if transaction:
            await stack.enter_async_context(db.transaction())
        pid = await db.fetchval("SELECT pg_backend_pid()")
        await request.state.pool.execute("SELECT pg_terminate_backend($1, 20_000)", pid)
        await db.fetch("SELECT 1")


async def cancelled(request: Request, times: int) -> str:
    """Reads, and is cancelled when the query is under way, `times` in a row."""
    reading = asyncio.create_task(asyncpg_pool.list_readers(request, 0))
    await asyncio.sleep(0.02)
    for _ in range(times):
        reading.cancel()
        await asyncio.sleep(0)
    await asyncio.wait([reading])
    return "cancelled" if reading.cancelled() else "not cancelled"


asyncpg_pool.POOL_TIMEOUT = 0.3
asyncpg_pool.COMMAND_TIMEOUT = float(os.environ.get("COMMAND_TIMEOUT", "30"))
for one in (asyncpg_pool.app, naive_asyncpg_pool.app):
    one.get("/health")(health)
for extra in (mistake, cut, cancelled):
    asyncpg_pool.app.get(f"/{extra.__name__}")(extra)
recipe = stalling(asyncpg_pool.app)
naive = stalling(naive_asyncpg_pool.app)
