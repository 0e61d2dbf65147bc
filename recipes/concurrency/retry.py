# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165", "httpx2>=2.16", "stamina>=25.2"]
# ///
"""Retry what is safe to repeat, and stop retrying in an outage.

stamina repeats a call whose failure may pass: the connection, 429, 502, 503, 504. It
waits longer each time, with jitter, or as `Retry-After` says; one deadline limits all
attempts. Each failure costs a token. Below half of the tokens nothing is repeated until
calls succeed again: an outage does not get three times the load.

**Use when** a service fails now and then. **Not when** your caller retries: 3 * 3 = 9.

Gotchas:

- A POST that timed out may have been done: repeat it only with an `Idempotency-Key`,
  the same for all attempts, and a service that honors it.
- stamina checks its own `timeout=` between attempts; it does not end one that hangs.
- stamina asks `on=` about `CancelledError` too: after a True it repeats the call.
- Not covered: a caller's repeats (take its key), a date in `Retry-After`, huge answers.

Try it:

    GET /stock/anvil  # 200: at the third attempt
    POST /stock/rope  # 200: the same, with one key
    GET /stock/busy  # 502: at once, its Retry-After is a minute

Keywords: stamina, exponential backoff, Idempotency-Key, tenacity, jitter, retry storm
Related: lifespan/http_client, concurrency/bounded, routes/deadline
"""

import asyncio
import logging
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated
from uuid import uuid4

import httpx2
import stamina
from fastapi import FastAPI, HTTPException, Path, Request
from pydantic import BaseModel

DEADLINE = 8  # seconds for all attempts and waits
MAX_WAIT = 2
TOKENS = 100.0

logger = logging.getLogger(__name__)
retrying = stamina.AsyncRetryingCaller(attempts=3, timeout=None, wait_max=MAX_WAIT)


class Stock(BaseModel):
    units: int


def pause(error: Exception) -> bool | float:
    """Seconds before the next attempt; True: as usual; False: do not repeat."""
    if not isinstance(error, httpx2.HTTPStatusError):
        return isinstance(error, httpx2.TransportError)
    if error.response.status_code not in (429, 502, 503, 504):
        return False
    after = error.response.headers.get("Retry-After", "")
    if after.isdecimal() and len(after) < 9 and int(after) <= MAX_WAIT:
        return int(after) + random.random()  # noqa: S311 - jitter is no secret
    return not after  # later than we can wait: earlier would not help


class Shop:
    def __init__(self, client: httpx2.AsyncClient) -> None:
        self._client = client
        self._tokens = TOKENS  # as in gRPC's retry throttling

    async def call(self, method: str, path: str, headers: dict[str, str]) -> Stock:
        repeatable = method in ("GET", "PUT", "DELETE") or "Idempotency-Key" in headers

        async def attempt() -> Stock:
            response = await self._client.request(method, path, headers=headers)
            response.raise_for_status()  # for a redirect too
            self._tokens = min(TOKENS, self._tokens + 0.1)
            return Stock.model_validate_json(response.content)

        def on(error: Exception) -> bool | float:
            seconds = pause(error)
            if seconds is not False:
                self._tokens = max(0, self._tokens - 1)
            return repeatable and self._tokens > TOKENS / 2 and seconds

        try:
            async with asyncio.timeout(DEADLINE):
                return await retrying(on, attempt)
        except (httpx2.HTTPError, TimeoutError, ValueError) as error:
            logger.warning("%s %s: %r", method, path, error)
            late = isinstance(error, TimeoutError | httpx2.TimeoutException)
            raise HTTPException(504 if late else 502, "No usable answer") from error


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Shop]]:
    async with httpx2.AsyncClient(
        base_url=os.environ.get("SHOP_URL", "http://stand-in"),  # demo: no default
        mounts={"http://stand-in": httpx2.ASGITransport(app=stand_in)},  # demo
        timeout=2,  # of one attempt
    ) as client:
        yield {"shop": Shop(client)}


app = FastAPI(lifespan=lifespan)
Sku = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,40}$")]


@app.get("/stock/{sku}")
async def look(request: Request, sku: Sku) -> Stock:
    shop: Shop = request.state.shop
    return await shop.call("GET", f"/stock/{sku}", {})


@app.post("/stock/{sku}")
async def take(request: Request, sku: Sku) -> Stock:
    shop: Shop = request.state.shop
    return await shop.call("POST", f"/stock/{sku}", {"Idempotency-Key": uuid4().hex})


# --- evidence ---
stand_in = FastAPI()
calls: list[str] = []


@stand_in.api_route("/stock/{sku}", methods=["GET", "POST"])
async def stand_in_stock(sku: str) -> Stock:
    calls.append(sku)
    if calls.count(sku) % 3:
        after = "60" if sku == "busy" else "0"
        raise HTTPException(503, headers={"Retry-After": after})
    return Stock(units=3)


def main() -> None:
    from fastapi.testclient import TestClient

    with stamina.set_testing(True, attempts=3), TestClient(app) as client:  # no waits
        for sku in ("anvil", "busy"):
            print(sku, client.get(f"/stock/{sku}").status_code, calls)
            # > anvil 200 ['anvil', 'anvil', 'anvil']
            # > busy 502 ['anvil', 'anvil', 'anvil', 'busy']


if __name__ == "__main__":
    main()
