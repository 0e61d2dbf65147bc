"""The recipe and the naive form with clients that do not read, and short limits.

A request with `x-stall` sends nothing until `/release`: `send` does not return, as for
a socket that is full.
"""

import asyncio
import logging
import os

from fastapi import FastAPI
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


asyncpg_pool.POOL_TIMEOUT = 0.3
asyncpg_pool.COMMAND_TIMEOUT = float(os.environ.get("COMMAND_TIMEOUT", "30"))
for one in (asyncpg_pool.app, naive_asyncpg_pool.app):
    one.get("/health")(health)
recipe = stalling(asyncpg_pool.app)
naive = stalling(naive_asyncpg_pool.app)
