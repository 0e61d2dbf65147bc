# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165"]
# ///
"""Compute once for a hundred callers.

The first caller of a key starts a task; callers that come meanwhile wait for it. All
get its value or its error. A value is cached, even a `0`, `[]` or `None`; an error is
not, so the next caller tries again. A caller that leaves does not stop the task.

**Use when** many ask for the same slow thing at once: a report, a price, a page.
**Not when** workers must share it: use caching/shared_cache.

Gotchas:

- The task outlives the request that started it. Use nothing of that request in it: a
  session from a dependency may be closed.
- Put the user into the key of private data, or one user sees another's.
- All callers get the same object: cache what nobody changes.
- `asyncio.timeout` frees the slot but does not stop the thread, so hanging queries can
  take all threads of `asyncio.to_thread`: a blocking driver needs its own timeout.
- aiocache 0.12 computes 100 times for 100 callers. cashews 7.6 computes once, but
  when the first caller is cancelled, so are the others.
- Not covered: forgetting a value after a write, the size of values, a client that asks
  for junk: it evicts the others' values and fills `MAX_PENDING`, so they get 503.

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
MAX_AT_ONCE = 4  # below the number of threads of `asyncio.to_thread`: CPUs + 4
MAX_PENDING = 100
MAX_VALUES = 1000

logger = logging.getLogger(__name__)
Key = TypeVar("Key")
Value = TypeVar("Value")


class UnavailableError(Exception): ...


class Cache(Generic[Key, Value]):
    """The values last used, each computed by one task."""

    def __init__(self, compute: Callable[[Key], Awaitable[Value]]) -> None:
        self._compute = compute
        self._slots = asyncio.Semaphore(MAX_AT_ONCE)
        self._tasks: dict[Key, asyncio.Task[Value]] = {}
        # Each with the time when it expires; the one last used is at the end.
        self._values: OrderedDict[Key, tuple[float, Value]] = OrderedDict()

    async def get(self, key: Key) -> Value:
        if entry := self._values.get(key):
            expires, value = entry
            if time.monotonic() < expires:
                self._values.move_to_end(key)
                return value
        if not (task := self._tasks.get(key)):
            if len(self._tasks) >= MAX_PENDING:
                raise UnavailableError("too many keys at once")
            # An empty context: the value must not depend on who asked first.
            task = asyncio.create_task(self._run(key), context=Context())
            task.add_done_callback(lambda _: self._tasks.pop(key))
            self._tasks[key] = task
        await asyncio.wait([task])  # `await task` would cancel it with its caller
        if task.cancelled():  # its result() would look as if the caller were cancelled
            raise UnavailableError("stopped")
        return task.result()  # or its error

    async def _run(self, key: Key) -> Value:
        async with asyncio.timeout(COMPUTE_SECONDS), self._slots:
            value = await self._compute(key)
        self._values[key] = time.monotonic() + TTL_SECONDS, value
        self._values.move_to_end(key)
        if len(self._values) > MAX_VALUES:
            self._values.popitem(last=False)
        return value

    async def aclose(self) -> None:
        for task in (tasks := list(self._tasks.values())):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def count_orders(city: str) -> int:  # demo: your slow query in a blocking driver
    time.sleep(0.2)
    return {"berlin": 3, "paris": 2}.get(city, 0)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Cache[str, int]]]:
    cache: Cache[str, int] = Cache(lambda city: asyncio.to_thread(count_orders, city))
    async with aclosing(cache):
        yield {"cache": cache}


app = FastAPI(lifespan=lifespan)
City = StringConstraints(strip_whitespace=True, to_lower=True, max_length=50)


@app.get("/orders/{city}")
async def orders(request: Request, city: Annotated[str, City]) -> int:
    cache: Cache[str, int] = request.state.cache
    try:
        return await cache.get(city)
    except (UnavailableError, TimeoutError) as error:  # no value now
        logger.warning("orders of %r: %r", city, error)
        raise HTTPException(503, "Try again", {"Retry-After": "1"}) from error


# --- evidence ---
def main() -> None:
    from concurrent.futures import ThreadPoolExecutor
    from unittest.mock import Mock, patch

    from fastapi.testclient import TestClient

    counted = Mock(wraps=count_orders)
    with patch.dict(globals(), count_orders=counted), TestClient(app) as client:
        with ThreadPoolExecutor(100) as callers:
            responses = callers.map(client.get, ["/orders/Berlin"] * 100)
            print({response.text for response in responses}, counted.call_count)
            # > {'3'} 1
        responses = map(client.get, ["/orders/Atlantis"] * 100)
        print({response.text for response in responses}, counted.call_count)
        # > {'0'} 2


if __name__ == "__main__":
    main()
