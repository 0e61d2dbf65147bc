"""The recipe with a pool of 3, and the naive form.

`/collect` runs the garbage collector. `/held` calls the recipe inside a session, when
each of three requests has one. `/break` lets new connections fail.
"""

import asyncio
import gc
import os
import socket
from typing import Any

import asyncpg
from fastapi import Request
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from recipes.databases import sqlalchemy_parallel
from tests.behavior.databases import naive_sqlalchemy_parallel

sqlalchemy_parallel.POOL_SIZE = 3
sqlalchemy_parallel.POOL_TIMEOUT = float(os.environ.get("POOL_TIMEOUT", "30"))
recipe = sqlalchemy_parallel.app
naive = naive_sqlalchemy_parallel.app
barrier = asyncio.Barrier(3)
FAULTS: dict[str, Exception] = {
    "not found": socket.gaierror(-2, "Name or service not known"),
    "slow": TimeoutError(),
    "full": asyncpg.TooManyConnectionsError("sorry, too many clients already"),
    "starting": asyncpg.CannotConnectNowError("the database system is starting up"),
    "wrong": asyncpg.InvalidPasswordError("password authentication failed"),
}
connect = asyncpg.connect
broken = ""


async def connect_or_fail(*args: Any, **options: Any) -> Any:
    if broken in FAULTS:
        raise FAULTS[broken]
    return await connect(*args, **options)


asyncpg.connect = connect_or_fail


@recipe.post("/break")
async def break_(how: str) -> None:
    global broken  # noqa: PLW0603
    broken = how


@recipe.get("/collect")
@naive.get("/collect")
async def collect() -> int:
    return gc.collect()


@recipe.get("/held")
async def held(request: Request) -> dict[str, int]:
    sessions: async_sessionmaker[AsyncSession] = request.state.sessions
    async with sessions() as session:
        await session.scalar(select(1))
        await barrier.wait()
        return await sqlalchemy_parallel.board(request)
