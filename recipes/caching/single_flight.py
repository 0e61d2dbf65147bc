# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165"]
# ///
"""Compute once for a hundred callers.

The first caller of a key starts a task; callers that come meanwhile wait for it. Its
value is cached, even a `0`, `[]` or `None`. When it fails, all who wait get 503, the
log gets the reason, and nothing is cached. A caller that leaves does not stop it.

**Use when** many ask for the same slow thing at once: a report, a price, a page.
**Not when** workers must share it: use cashews on Redis.

Gotchas:

- The task outlives the request that started it. Use nothing of that request in it: a
  session from a dependency may be closed. "Not found" is a value, not an exception.
- Put the user into the key of private data, or one user sees another's.
- All callers get the same object: cache what nobody changes.
- `asyncio.timeout` does not stop a thread: a blocking driver needs its own timeout.
- aiocache 0.12 computes 100 times for 100 callers. cashews 7.6 computes once, but
  when the first caller is cancelled, so are the others.
- uvicorn does not cancel a handler whose client left; `asyncio.timeout` does.
- Not covered: the size of values; a client that evicts all others by asking for junk.

Try it:

    GET /orders/Berlin
    GET /orders/Atlantis

Keywords: cache stampede, thundering herd, dogpile, coalescing, memoize, TTL, LRU
Related: lifespan/resources, concurrency/fan_out, routes/def_or_async
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from contextvars import Context
from typing import Annotated, Generic, TypeVar

from fastapi import FastAPI, HTTPException, Request
from pydantic import StringConstraints

TTL_SECONDS = 60.0
COMPUTE_SECONDS = 5.0  # with the wait for a slot
MAX_AT_ONCE = 4  # fewer than the threads of `asyncio.to_thread`: CPUs + 4
MAX_PENDING = 100
MAX_VALUES = 1000

logger = logging.getLogger(__name__)
K = TypeVar("K")
V = TypeVar("V")


class UnavailableError(Exception):
    """No value now."""


class Cache(Generic[K, V]):
    """The values last used, each computed by one task."""

    def __init__(self, compute: Callable[[K], Awaitable[V]]) -> None:
        self._compute = compute
        self._slots = asyncio.Semaphore(MAX_AT_ONCE)
        self._pending: dict[K, asyncio.Task[tuple[float, V] | None]] = {}
        self._values: OrderedDict[K, tuple[float, V]] = OrderedDict()  # expiry, value

    async def get(self, key: K) -> V:
        if (entry := self._values.get(key)) and time.monotonic() < entry[0]:
            self._values.move_to_end(key)
            return entry[1]
        if not (task := self._pending.get(key)):
            if len(self._pending) >= MAX_PENDING:
                raise UnavailableError("busy")
            # An empty context: the value must not depend on who asked first.
            task = asyncio.create_task(self._run(key), context=Context())
            task.add_done_callback(lambda _: self._pending.pop(key))
            self._pending[key] = task
        await asyncio.wait([task])  # `await task` would cancel it with its caller
        if task.cancelled() or not (entry := task.result()):
            raise UnavailableError("failed")
        return entry[1]

    async def _run(self, key: K) -> tuple[float, V] | None:
        try:
            async with asyncio.timeout(COMPUTE_SECONDS), self._slots:
                value = await self._compute(key)
        except Exception:
            logger.exception("could not compute %r", key)  # once, not once a caller
            return None
        entry = self._values[key] = time.monotonic() + TTL_SECONDS, value
        self._values.move_to_end(key)
        if len(self._values) > MAX_VALUES:
            self._values.popitem(last=False)
        return entry

    async def aclose(self) -> None:
        for task in (tasks := list(self._pending.values())):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def count_orders(city: str) -> int:
    time.sleep(0.2)  # a slow query in a blocking driver
    return {"berlin": 3, "paris": 2}.get(city, 0)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Cache[str, int]]]:
    cache: Cache[str, int] = Cache(lambda city: asyncio.to_thread(count_orders, city))
    async with aclosing(cache):
        yield {"cache": cache}


app = FastAPI(lifespan=lifespan)
Key = StringConstraints(strip_whitespace=True, to_lower=True, max_length=50)


@app.get("/orders/{city}")
async def orders(request: Request, city: Annotated[str, Key]) -> int:
    cache: Cache[str, int] = request.state.cache
    try:
        return await cache.get(city)
    except UnavailableError as error:
        raise HTTPException(503, str(error), {"Retry-After": "1"}) from error


# --- evidence ---
def main() -> None:
    from concurrent.futures import ThreadPoolExecutor
    from unittest.mock import Mock, patch

    from fastapi.testclient import TestClient

    counted = Mock(wraps=count_orders)
    with patch.dict(globals(), count_orders=counted), TestClient(app) as client:
        with ThreadPoolExecutor(100) as callers:
            answers = callers.map(client.get, ["/orders/Berlin"] * 100)
            print({answer.text for answer in answers}, counted.call_count)
            # > {'3'} 1
        answers = map(client.get, ["/orders/Atlantis"] * 100)
        print({answer.text for answer in answers}, counted.call_count)
        # > {'0'} 2


if __name__ == "__main__":
    main()
