# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165"]
# ///
"""Lock per key: read, change and write without losing an update.

Between a read and the write that depends on it, an `await` lets other requests run. A
lock per key lets them in one after the other; other keys go on. A lock exists while
somebody holds it or waits for it. Only so many wait, for so long: the others get a 503,
and for them nothing was done.

**Use when** one process changes what it cannot change in one step: a file, a cache, a
service with only `get` and `put`. **Not when** a database can: an `UPDATE`, or a row
lock, which also holds for several workers (databases/concurrent_writes).

Gotchas:

- A lock lives in one process: with two workers, updates are lost again.
- `defaultdict(asyncio.Lock)` keeps a lock forever for each key that a client makes up.
- `asyncio.Lock` is not reentrant: `hold("a")` inside `hold("a")` waits for itself. Two
  tasks that hold "a" and "b" and want the other, too: lock several in sorted order.
- A timeout does not stop a thread. What runs in `asyncio.to_thread` goes on after the
  lock is released, and writes beside the next holder.
- After a 504, or a stop, nobody knows whether the write has happened.

Try it:

    POST /counters/visits?add=5
    POST /counters/visits?add=-2

Keywords: race condition, lost update, asyncio.Lock, mutex, critical section, deadlock
Related: databases/concurrent_writes, caching/single_flight, concurrency/debounce
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Path, Query, Request

MAX_WAITING = 20  # per key
WAIT_SECONDS = 5.0
HOLD_SECONDS = 5.0


class BusyError(Exception):
    """The lock was not acquired."""


class Locks:
    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._users: Counter[str] = Counter()  # who hold it or wait

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncIterator[None]:
        if self._users[key] > MAX_WAITING:
            raise BusyError
        self._users[key] += 1
        lock = self._locks.setdefault(key, asyncio.Lock())
        try:
            await self._acquire(lock)
            try:
                yield
            finally:
                lock.release()
        finally:
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key], self._locks[key]

    async def _acquire(self, lock: asyncio.Lock) -> None:
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await lock.acquire()
        except TimeoutError as error:
            raise BusyError from error


async def read(store: dict[str, int], name: str) -> int:  # demo: your service
    await asyncio.sleep(0.01)
    return store.get(name, 0)


async def write(store: dict[str, int], name: str, count: int) -> None:  # demo: the same
    await asyncio.sleep(0.01)
    store[name] = count


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
    yield {"locks": Locks(), "store": {}}


app = FastAPI(lifespan=lifespan)
Name = Annotated[str, Path(pattern="^[a-z0-9-]{1,40}$")]
Number = Annotated[int, Query(ge=-1000, le=1000)]


@app.post("/counters/{name}")
async def change(request: Request, name: Name, add: Number) -> int:
    locks: Locks = request.state.locks
    store: dict[str, int] = request.state.store
    try:
        async with locks.hold(name), asyncio.timeout(HOLD_SECONDS):
            count = await read(store, name) + add
            await write(store, name, count)
            return count
    except BusyError as error:
        raise HTTPException(503, "Try again", {"Retry-After": "1"}) from error
    except TimeoutError as error:
        raise HTTPException(504, "It may have happened") from error


# --- evidence ---
def main() -> None:
    from concurrent.futures import ThreadPoolExecutor

    from fastapi.testclient import TestClient

    with TestClient(app) as client, ThreadPoolExecutor(10) as callers:
        responses = callers.map(client.post, ["/counters/visits?add=1"] * 10)
        print(sorted(response.json() for response in responses))
        # > [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]


if __name__ == "__main__":
    main()
