# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165", "redis>=8.0"]
# ///
"""Compute once for all workers, with Valkey or Redis.

Values live in Valkey as JSON. If one is missing, each worker starts one task for its
callers. A lock in Valkey lets one task compute; the others wait and read what it has
stored. Without Valkey each worker computes for its own callers. After a commit, call
`forget(key)`: what was computed from older data is not served again.

**Use when** several workers serve the same slow thing: a report, a price, a page.
**Not when** there is one worker: use caching/single_flight.

Gotchas:

- If Valkey is down when `forget` is called, the old value is served until its TTL ends.
- Clients that ask for junk fill Valkey: set `maxmemory-policy allkeys-lru`.
- `@cache(lock=True)` of cashews 7.6 locks hits too, polls in a busy loop and unpickles.

Try it:

    GET /orders/Berlin

Keywords: cache stampede, Redis, Valkey, thundering herd, cashews, aiocache, dogpile
Related: caching/single_flight, lifespan/resources, concurrency/lock_per_key
"""

import asyncio
import json
import logging
import os
import secrets
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing, asynccontextmanager
from typing import Annotated, TypeVar

from fastapi import FastAPI, HTTPException, Request
from pydantic import StringConstraints
from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import RedisError

TTL = 60  # seconds, like those below
COMPUTE = 5  # with the wait for the lock and for a slot
LOCK = 6  # longer than that; if a worker crashes, its keys are 503 so long
WAIT = 1.0  # for a free connection to Valkey, and for its answer
MAX_AT_ONCE = 10
PREFIX = "orders:1:"  # use another number when the form of the values changes
T = TypeVar("T")
NO_URL = "Set REDIS_URL, such as redis://localhost:6379/0"


class SharedCache:
    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._slots = asyncio.Semaphore(MAX_AT_ONCE)
        self._tasks: dict[str, asyncio.Task[str]] = {}

    async def get(self, key: str) -> object:
        version = await self._ask(self._read(f"{PREFIX}{key}:version"))
        name = f"{PREFIX}{key}:{version}"
        if found := await self._ask(self._read(name)):  # also [0] or [None]
            return found[0]
        if not (task := self._tasks.get(name)):
            task = self._tasks[name] = asyncio.create_task(self._load(key, name))
            task.add_done_callback(lambda _: self._tasks.pop(name))
        return json.loads(await asyncio.shield(task))  # one may leave, the task goes on

    async def forget(self, key: str) -> None:
        name = f"{PREFIX}{key}:version"  # what is being computed keeps the old one
        await self._ask(self._redis.set(name, secrets.randbits(64), ex=100 * TTL))

    async def _load(self, key: str, name: str) -> str:
        lock = self._redis.lock(f"{name}:lock", LOCK, sleep=0.05)
        async with asyncio.timeout(COMPUTE):
            try:
                await self._ask(lock.acquire())  # without Valkey, go on without it
                if found := await self._ask(self._read(name)):
                    return json.dumps(found[0])  # another worker was first
                async with self._slots:
                    text = json.dumps(await count_orders(key))  # demo: your slow call
                await self._ask(self._redis.set(name, text, ex=TTL))
                return text
            finally:
                await self._ask(lock.release())

    async def _read(self, name: str) -> list[object]:
        return [json.loads(text)] if (text := await self._redis.get(name)) else []

    async def _ask(self, command: Awaitable[T]) -> T | None:
        try:
            return await command
        except (RedisError, ValueError) as error:  # as if there were no value
            logging.getLogger(__name__).warning("cache: %s", error)
            return None

    async def aclose(self) -> None:
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await self._redis.aclose()


async def count_orders(city: str) -> int:  # demo
    await asyncio.sleep(0.2)
    return {"berlin": 3, "paris": 2}.get(city, 0)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, SharedCache]]:
    if not (url := os.environ.get("REDIS_URL")):
        raise RuntimeError(NO_URL)
    waits = dict.fromkeys(("timeout", "socket_timeout", "socket_connect_timeout"), WAIT)
    pool = BlockingConnectionPool.from_url(url, decode_responses=True, **waits)
    async with aclosing(SharedCache(Redis.from_pool(pool))) as cache:
        yield {"cache": cache}


app = FastAPI(lifespan=lifespan)
City = Annotated[str, StringConstraints(to_lower=True, max_length=50)]


@app.get("/orders/{city}")
async def get_orders(request: Request, city: City) -> object:
    cache: SharedCache = request.state.cache
    try:
        return await cache.get(city)
    except TimeoutError:
        raise HTTPException(503, "Try again", {"Retry-After": "1"}) from None


# --- evidence ---
def main() -> None:
    from concurrent.futures import ThreadPoolExecutor
    from unittest.mock import AsyncMock, patch

    from fastapi.testclient import TestClient

    if not os.environ.get("REDIS_URL"):
        raise SystemExit(NO_URL)
    counted = AsyncMock(wraps=count_orders)
    path = f"/orders/{os.urandom(8).hex()}"
    patched = patch.dict(globals(), count_orders=counted, WAIT=10.0)
    with patched, TestClient(app) as one, TestClient(app) as two:
        with ThreadPoolExecutor(100) as threads:
            answers = threads.map(lambda worker: worker.get(path).text, [one, two] * 50)
        print({*answers}, counted.await_count)
        # > {'0'} 1


if __name__ == "__main__":
    main()
