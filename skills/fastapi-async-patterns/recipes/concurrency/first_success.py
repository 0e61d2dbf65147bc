# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165", "httpx2>=2.16"]
# ///
"""Ask several services and use the first good answer.

All calls start at once in a `TaskGroup`. A call that fails is logged and the race goes
on. The first valid answer wins; the other calls are cancelled, and the group waits for
them before the response is sent. All failed: 502. No good answer in time: 504.

**Use when** several services answer the same question and the slowest must not
decide. **Not when** you need all answers: concurrency/fan_out.

Gotchas:

- `asyncio.wait(..., return_when=FIRST_COMPLETED)` returns the call that ends first: a
  refused connection. Given coroutines it raises "TypeError: Passing coroutines is
  forbidden, use tasks explicitly."
- `task.cancel()` only asks: without the group, losers may still run when the response
  is sent. The group also waits for a loser that ignores its cancellation.
- A cancelled call costs its connection, and the service may still finish the work:
  race reads, not writes.
- Not covered: a 404 that is an answer (here it is a failure), the size of an answer
  (lifespan/http_client), asking the second only when the first is late (hedging).

Try it:

    GET /rates/EUR
    GET /rates/XXX  # 502: no service knows it
    GET /rates/ZZZ  # 504: no service answers in time

Keywords: race, FIRST_COMPLETED, asyncio.wait, as_completed, fastest, fallback, hedging
Related: concurrency/fan_out, lifespan/http_client, concurrency/retry
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import httpx2
from fastapi import FastAPI, HTTPException, Path, Request
from pydantic import BaseModel, Field

DEADLINE = 2  # seconds for the whole race
CONNECTIONS = 300  # a race takes one for each service

logger = logging.getLogger(__name__)


class Rate(BaseModel):
    currency: str
    rate: float = Field(gt=0, allow_inf_nan=False)


async def ask(client: httpx2.AsyncClient, service: str, currency: str) -> Rate | None:
    try:
        response = await client.get(f"{service}/rates/{currency}")
        response.raise_for_status()  # for a redirect too
        return Rate.model_validate_json(response.content)
    except (httpx2.HTTPError, ValueError) as error:
        logger.warning("%s has no rate of %s: %r", service, currency, error)
        return None  # raised, it would cancel the other calls of the group


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
    urls = os.environ.get("RATE_URLS", STAND_INS)  # demo: no default
    async with httpx2.AsyncClient(
        limits=httpx2.Limits(max_connections=CONNECTIONS, max_keepalive_connections=20),
        mounts={"http://stand-in": httpx2.ASGITransport(app=stand_in)},  # demo
    ) as client:
        yield {"client": client, "services": urls.split()}


app = FastAPI(lifespan=lifespan)


@app.get("/rates/{currency}")
async def rate(
    request: Request, currency: Annotated[str, Path(pattern="^[A-Z]{3}$")]
) -> Rate:
    client: httpx2.AsyncClient = request.state.client
    services: list[str] = request.state.services
    winner: Rate | None = None
    try:
        async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as race:
            calls = [race.create_task(ask(client, s, currency)) for s in services]
            for finished in asyncio.as_completed(calls):
                winner = await finished
                if winner is not None:
                    break
            for call in calls:
                call.cancel()  # the group waits until they have ended
    except TimeoutError:
        if winner is None:  # it is there if only a loser's cleanup was too slow
            raise HTTPException(504, "No answer in time") from None
    if winner is None:
        raise HTTPException(502, "No usable answer")
    return winner


# --- evidence ---
STAND_INS = "http://stand-in/down http://stand-in/slow http://stand-in/good"
stand_in = FastAPI()
cancelled: list[str] = []


@stand_in.get("/{service}/rates/{currency}")
async def stand_in_rate(service: str, currency: str) -> Rate:
    if service == "down" or currency == "XXX":
        raise HTTPException(503)
    try:
        await asyncio.sleep(60 if service == "slow" or currency == "ZZZ" else 0)
    except asyncio.CancelledError:
        cancelled.append(service)
        raise
    return Rate(currency=currency, rate=1.25)


def main() -> None:
    from fastapi.testclient import TestClient

    with TestClient(app) as client:
        print(client.get("/rates/EUR").json(), "cancelled:", cancelled)
        # > {'currency': 'EUR', 'rate': 1.25} cancelled: ['slow']
        print(client.get("/rates/XXX").json())
        # > {'detail': 'No usable answer'}


if __name__ == "__main__":
    main()
