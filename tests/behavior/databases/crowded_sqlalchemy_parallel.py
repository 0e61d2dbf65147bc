"""The recipe with a pool of 3, and the naive form.

`/collect` runs the garbage collector. `/held` calls the recipe inside a session, when
each of three requests has one.
"""

import asyncio
import gc
import os

from fastapi import Request
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from recipes.databases import sqlalchemy_parallel
from tests.behavior.databases import naive_sqlalchemy_parallel

sqlalchemy_parallel.POOL_SIZE = 3
sqlalchemy_parallel.POOL_TIMEOUT = int(os.environ.get("POOL_TIMEOUT", "30"))
recipe = sqlalchemy_parallel.app
naive = naive_sqlalchemy_parallel.app
barrier = asyncio.Barrier(3)


@recipe.get("/collect")
@naive.get("/collect")
async def collect() -> int:
    return gc.collect()


@recipe.get("/held")
async def held(request: Request) -> sqlalchemy_parallel.Board:
    sessions: async_sessionmaker[AsyncSession] = request.state.sessions
    async with sessions() as session:
        await session.scalar(select(1))
        await barrier.wait()
        return await sqlalchemy_parallel.board(request)
