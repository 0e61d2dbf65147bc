"""A cache in Redis, with one fetch at a time for each player."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import quote

import httpx2
import redis.asyncio
from fastapi import FastAPI, HTTPException, Request
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

SECONDS = 60


class Scores:
    """Asks Redis, then the service; equal questions share one answer."""

    def __init__(
        self, cache: "redis.asyncio.Redis", client: httpx2.AsyncClient
    ) -> None:
        self.cache = cache
        self.client = client
        self.running: dict[str, asyncio.Task[Any]] = {}

    async def get(self, player: str) -> Any:
        task = self.running.get(player)
        if task is None:
            task = asyncio.create_task(self._fetch(player))
            self.running[player] = task
            task.add_done_callback(lambda _: self.running.pop(player))
        return await asyncio.shield(task)

    async def _fetch(self, player: str) -> Any:
        key = f"score:{player}"
        try:
            found = await self.cache.get(key)
        except (redis.RedisError, OSError):
            found = None
        if found is not None:
            return json.loads(found)
        answer = await self.client.get(f"/players/{quote(player, safe='')}")
        score = answer.raise_for_status().json()
        with suppress(redis.RedisError, OSError):
            await self.cache.set(key, json.dumps(score), ex=SECONDS)
        return score


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Scores]]:
    async with (
        redis.asyncio.from_url(
            os.environ["REDIS_URL"],
            retry=Retry(NoBackoff(), 0),
            socket_timeout=1,
            socket_connect_timeout=1,
        ) as cache,
        httpx2.AsyncClient(base_url=os.environ["SCORES_URL"], timeout=30) as client,
    ):
        yield {"scores": Scores(cache, client)}


app = FastAPI(lifespan=lifespan)


@app.get("/scores/{player}")
async def score(player: str, request: Request) -> dict[str, Any]:
    try:
        return {"player": player, "score": await request.state.scores.get(player)}
    except httpx2.HTTPStatusError as error:
        if error.response.status_code == 404:
            raise HTTPException(404, "no such player") from None
        raise HTTPException(502, "the service fails") from None
    except (httpx2.HTTPError, ValueError):
        raise HTTPException(502, "the service does not answer") from None
