# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165", "redis>=8.0"]
# ///
"""Compute once for all workers, with Valkey or Redis.

Values live in Valkey as JSON. If one is missing, each worker starts one task; a lock in
Valkey lets one compute, the others read its value. If Valkey fails, each computes.
After a commit, `forget(key)`: what was computed from older data is not served again.

**Use when** several workers serve the same slow thing: a report, a price, a page.
**Not when** there is one worker: use caching/single_flight.

Gotchas:

- If Valkey is down when `forget` is called, the old value is served until its TTL ends.
- Clients that ask for junk fill Valkey: set `maxmemory-policy allkeys-lru`.
- On Python 3.11 redis-py can lose a cancellation: put no `asyncio.timeout` around it.

Try it:

    GET /orders/Berlin

Keywords: cache stampede, Redis, Valkey, thundering herd, cashews, aiocache, dogpile
Related: caching/single_flight, lifespan/resources, concurrency/lock_per_key
"""

import asyncio
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing, asynccontextmanager
from typing import Annotated, TypeVar

from fastapi import FastAPI, HTTPException, Path, Request
from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import RedisError

TTL = 60  # seconds, like those below; Valkey and the workers need the same time
COMPUTE = 3  # for the computation, with its slot, and before it for the lock
LOCK = 6  # COMPUTE and some WAITs; if a worker crashes, its keys are 503 so long
WAIT = 1.0  # for a connection, for an answer; no retries: `Redis(host=...)` has ten
MAX_AT_ONCE = 10
PREFIX = "orders:1:"  # use another number when the form of the values changes
T = TypeVar("T")
NO_URL = "Set REDIS_URL, such as redis://localhost:6379/0"


class SharedCache:
    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._slots = asyncio.Semaphore(MAX_AT_ONCE)
        self._tasks: dict[tuple[str, str], asyncio.Task[str | bytes]] = {}

    async def get(self, key: str) -> object:
        name, found = await self._ask(self._find(key)) or ("", [])  # "": it failed
        if found:
            return found[0]  # also 0 or None
        if not (task := self._tasks.get((key, name))):
            task = self._tasks[key, name] = asyncio.create_task(self._load(key, name))
            task.add_done_callback(lambda _: self._tasks.pop((key, name)))
        return json.loads(await asyncio.shield(task))  # one may leave, the task goes on

    async def forget(self, key: str) -> None:
        name = f"{PREFIX}{key}:version"  # what is being computed keeps the old one
        await self._ask(self._redis.set(name, os.urandom(8).hex(), ex=100 * TTL))

    async def _find(self, key: str) -> tuple[str, list[object]]:
        version = await self._redis.get(f"{PREFIX}{key}:version")
        name = f"{PREFIX}{key}:{version!r}"
        return name, [json.loads(text)] if (text := await self._redis.get(name)) else []

    async def _load(self, key: str, name: str) -> str | bytes:
        lock = self._redis.lock(f"{name}:lock", LOCK, 0.05, blocking_timeout=COMPUTE)
        locked = await self._ask(lock.acquire()) if name else None
        if locked is False:
            raise TimeoutError
        try:
            if locked and (text := await self._ask(self._redis.get(name))):
                return text  # another task was first
            expires = int(1000 * (time.time() + TTL))  # also if Valkey stalls
            async with asyncio.timeout(COMPUTE), self._slots:
                text = json.dumps(await count_orders(key))  # demo: your slow call
            if locked:
                await self._ask(self._redis.set(name, text, pxat=expires))
            return text
        finally:
            if locked:
                await self._ask(lock.release())

    async def _ask(self, command: Awaitable[T]) -> T | None:
        try:
            return await command
        except (RedisError, ValueError) as error:
            logging.getLogger(__name__).warning("cache: %s", error)
            return None

    async def aclose(self) -> None:
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await self._redis.aclose()


async def count_orders(city: str) -> int:  # demo
    return await asyncio.sleep(0.2, len(city))


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, SharedCache]]:
    if not (url := os.environ.get("REDIS_URL")):
        raise RuntimeError(NO_URL)
    waits = dict.fromkeys(("timeout", "socket_timeout", "socket_connect_timeout"), WAIT)
    pool = BlockingConnectionPool.from_url(url, decode_responses=True, **waits)
    async with aclosing(SharedCache(Redis.from_pool(pool))) as cache:
        yield {"cache": cache}


app = FastAPI(lifespan=lifespan)


@app.get("/orders/{city}")
async def orders(request: Request, city: Annotated[str, Path(max_length=50)]) -> object:
    cache: SharedCache = request.state.cache
    try:
        return await cache.get(city.lower())
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
        texts = ThreadPoolExecutor(99).map(lambda w: w.get(path).text, [one, two] * 50)
        print({*texts}, counted.await_count)
        # > {'16'} 1


if __name__ == "__main__":
    main()
