# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165", "httpx2>=2.16"]
# ///
"""Make a thousand calls, ten at a time.

Ten workers share one iterator over the items: each takes the next when its call has
ended, so a request is ten tasks, not a thousand. A semaphore from the lifespan limits
all requests together. Results keep the order of the items. The first failure cancels
the rest and fails the request.

**Use when** a request carries many items that need a call each, and all results are
needed. **Not when** some may be missing: concurrency/fan_out.

Gotchas:

- `gather(*(call(item) for item in items))` starts all calls at once. With a semaphore
  made in the endpoint, ten requests still make a hundred calls.
- `Limits(max_connections=10)` is no queue: a call that waits 5 s for a connection fails
  with `PoolTimeout`. Here it waits for the semaphore, as long as `DEADLINE` allows.
- Requests take slots in turn: with a task per item a large one would make a small one
  wait for all its calls. If too many share the slots, all are late: 504.
- The limit is one process's: four uvicorn workers make forty calls at a time.

Try it:

    POST /prices ["anvil", "rope", "glue"]
    POST /prices ["anvil", "broken", "glue"]  # 502

Keywords: semaphore, limit concurrency, worker pool, PoolTimeout, batch, throttle
Related: concurrency/fan_out, concurrency/retry, lifespan/http_client
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

import httpx2
from fastapi import Body, FastAPI, HTTPException, Request
from pydantic import BaseModel, StringConstraints

AT_A_TIME = 10  # of all requests together
MAX_ITEMS = 1000
DEADLINE = 20  # seconds for all calls of a request

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")


async def bounded(
    call: Callable[[Item], Awaitable[Result]],
    items: Iterable[Item],
    slots: asyncio.Semaphore,
) -> list[Result]:
    """The results in the order of `items`; the first failure cancels the rest."""
    results: dict[int, Result] = {}
    rest = enumerate(items)

    async def worker() -> None:
        for index, item in rest:  # shared: each item goes to one worker
            async with slots:
                results[index] = await call(item)

    try:
        async with asyncio.TaskGroup() as workers:
            for _ in range(AT_A_TIME):
                workers.create_task(worker())
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from failures  # the first, so that `except` works
    return [results[index] for index in sorted(results)]


class Price(BaseModel):
    sku: str
    price: int


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
    async with httpx2.AsyncClient(
        base_url=os.environ.get("SHOP_URL", "http://stand-in"),  # demo: no default
        mounts={"http://stand-in": httpx2.ASGITransport(app=stand_in)},  # demo
    ) as client:
        yield {"client": client, "slots": asyncio.Semaphore(AT_A_TIME)}


app = FastAPI(lifespan=lifespan)
Sku = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,40}$")]
Skus = Annotated[list[Sku], Body(max_length=MAX_ITEMS)]


@app.post("/prices", max_body_size=64 * 1024)
async def prices(request: Request, skus: Skus) -> list[Price]:
    client: httpx2.AsyncClient = request.state.client
    slots: asyncio.Semaphore = request.state.slots

    async def price(sku: str) -> Price:
        response = await client.get(f"/prices/{sku}")
        response.raise_for_status()  # for a redirect too
        return Price.model_validate_json(response.content)

    try:
        async with asyncio.timeout(DEADLINE):
            return await bounded(price, skus, slots)
    except (httpx2.HTTPError, TimeoutError, ValueError) as error:
        logger.warning("no prices: %r", error)
        late = isinstance(error, TimeoutError | httpx2.TimeoutException)
        raise HTTPException(504 if late else 502, "No usable answer") from error


# --- evidence ---
stand_in = FastAPI()
running: list[str] = []
peaks: list[int] = []


@stand_in.get("/prices/{sku}")
async def stand_in_price(sku: str) -> Price:
    if sku == "broken":
        raise HTTPException(500)
    running.append(sku)
    peaks.append(len(running))
    await asyncio.sleep(0)
    running.remove(sku)
    return Price(sku=sku, price=5)


def main() -> None:
    from fastapi.testclient import TestClient

    with TestClient(app) as client:
        skus = [f"sku-{number}" for number in range(1000)]
        found = client.post("/prices", json=skus).json()
        print(len(found), [p["sku"] for p in found] == skus, "peak:", max(peaks))
        # > 1000 True peak: 10


if __name__ == "__main__":
    main()
