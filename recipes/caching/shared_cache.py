# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165", "redis>=8.0"]
# ///
"""Compute once for all workers, with Valkey or Redis.

Values live in Valkey as JSON. If one is missing, each worker starts one task for all
its callers. A lock in Valkey lets one of these tasks compute; the others wait and read
what it stored. Without Valkey each worker computes for its own callers. After a write,
`await cache.forget(key)`.

**Use when** several workers serve the same slow thing: a report, a price, a page.
**Not when** there is one worker: use caching/single_flight.

Gotchas:

- Clients that ask for junk fill Valkey: set `maxmemory-policy allkeys-lru`.
- If Valkey is down during a write, the old value is served until its TTL ends.
- `@cache(lock=True)` of cashews 7.6 takes the lock for hits too, waits for it in a busy
  loop, cancels all callers with one, and unpickles what it reads.

Try it:

    GET /orders/Berlin

Keywords: cache stampede, Redis, Valkey, thundering herd, cashews, aiocache, dogpile
Related: caching/single_flight, lifespan/resources, concurrency/lock_per_key
"""

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing, asynccontextmanager
from typing import Annotated, TypeVar

from fastapi import FastAPI, HTTPException, Request
from pydantic import StringConstraints
from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import RedisError

TTL = 60  # seconds, like those below
COMPUTE = 5  # with the wait for a slot
LOCK = 6  # longer than that; if a worker crashes, the others wait so long
WAIT = 0.3  # for a free connection to Valkey, and for its answer
MAX_AT_ONCE = 10
PREFIX = "orders:1:"  # use another number when the form of the values changes
NO_URL = "Set REDIS_URL, such as redis://localhost:6379/0"
T = TypeVar("T")


class SharedCache:
    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._slots = asyncio.Semaphore(MAX_AT_ONCE)
        self._tasks: dict[str, asyncio.Task[str]] = {}

    async def get(self, key: str) -> object:
        if text := await self._ask(self._redis.get(PREFIX + key)):
            return json.loads(text)  # also "0" and "null"
        if not (task := self._tasks.get(key)):
            task = self._tasks[key] = asyncio.create_task(self._load(key))
            task.add_done_callback(lambda _: self._tasks.pop(key))
        return json.loads(await asyncio.shield(task))  # one may leave, the task goes on

    async def _load(self, key: str) -> str:
        async with self._locked(key):
            if text := await self._ask(self._redis.get(PREFIX + key)):
                return str(text)  # another worker was first
            async with asyncio.timeout(COMPUTE), self._slots:
                text = json.dumps(await count_orders(key))  # demo: your slow call
            await self._ask(self._redis.set(PREFIX + key, text, ex=TTL))
            return text

    async def forget(self, key: str) -> None:
        async with self._locked(key):  # whoever read the old value has stored it
            await self._ask(self._redis.delete(PREFIX + key))

    @asynccontextmanager
    async def _locked(self, key: str) -> AsyncIterator[None]:
        name = f"{PREFIX}lock:{key}"
        lock = self._redis.lock(name, LOCK, sleep=0.05, blocking_timeout=LOCK)
        try:
            await self._ask(lock.acquire())  # or go on without it
            yield
        finally:
            await self._ask(lock.release())

    async def _ask(self, command: Awaitable[T]) -> T | None:
        try:
            return await command
        except RedisError as error:  # as if there were no cache
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
    patched = patch.dict(globals(), count_orders=counted)
    with patched, TestClient(app) as one, TestClient(app) as two:
        with ThreadPoolExecutor(100) as threads:
            answers = threads.map(lambda worker: worker.get(path).text, [one, two] * 50)
        print({*answers}, counted.await_count)
        # > {'0'} 1


if __name__ == "__main__":
    main()
