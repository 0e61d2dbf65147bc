# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165", "httpx2>=2.16"]
# ///
"""Call many services at once, keep what arrived, cancel the rest.

A `TaskGroup` owns the calls, one `asyncio.timeout` around it bounds them all. A
call that fails becomes an entry in `gaps`; if the essential one fails, the request
fails and the other calls are cancelled. No call outlives the response.

**Use when** most of an answer is better than none. **Not when** one call is
enough: lifespan/http_client.

Gotchas:

- An `HTTPException` raised in a task arrives as "ExceptionGroup: unhandled errors in
  a TaskGroup (1 sub-exception)": catch it with `except*`, not `except`.
- `gather` raises the first failure, and the other calls run on. With
  `return_exceptions=True` it returns even a `CancelledError` as a result.
- Put the timeout around the group: inside it, the timeout does not bound the tasks.
- The service may still finish a cancelled call: fan out reads, not writes.
- `SLOTS` is per request: ten slow requests take all 100 connections of the client.
- A partial answer is a 200: tell caches not to keep it.
- Not covered: repeating calls, services at several addresses.

Try it:

    GET /page/anvil?also=rope&also=glue
    GET /page/anvil?also=rope&also=broken&also=slow  # 200: with two gaps
    GET /page/broken?also=slow  # 502: at once

Keywords: gather, TaskGroup, ExceptionGroup, parallel requests, aggregate, partial
Related: lifespan/http_client, routes/def_or_async
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Annotated

import httpx2
from fastapi import FastAPI, HTTPException, Query, Request
from pydantic import BaseModel, StringConstraints

DEADLINE = 2  # seconds for all calls of a request together
SLOTS = 10  # of them at a time
MAX_BYTES = 64 * 1024

logger = logging.getLogger(__name__)


class Product(BaseModel):
    sku: str
    price: int


class Page(BaseModel):
    product: Product
    also: dict[str, Product]
    gaps: dict[str, str]


async def fetch(client: httpx2.AsyncClient, sku: str) -> Product:
    try:
        async with client.stream("GET", f"/products/{sku}") as response:
            body = b""  # an error's too: left unread, it costs the connection
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MAX_BYTES:
                    raise ValueError("too long")  # noqa: TRY301 - mapped below
        if response.status_code == 404:
            raise HTTPException(404, "No such item")
        response.raise_for_status()  # for a redirect too
        return Product.model_validate_json(body)
    except (httpx2.HTTPError, ValueError) as error:
        logger.warning("%s: %r", sku, error)
        raise HTTPException(502, "No usable answer") from error


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, httpx2.AsyncClient]]:
    async with httpx2.AsyncClient(
        # In your app: base_url=os.environ["SHOP_URL"], and delete both demo lines.
        base_url=os.environ.get("SHOP_URL", "http://stand-in"),  # demo
        mounts={"http://stand-in": httpx2.ASGITransport(app=stand_in)},  # demo
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # keeps none
    ) as client:
        yield {"client": client}


app = FastAPI(lifespan=lifespan)
Sku = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,40}$")]
Also = Annotated[list[Sku], Query(max_length=50, default_factory=list)]


@app.get("/page/{sku}")
async def page(request: Request, sku: Sku, also: Also) -> Page:
    slots = asyncio.Semaphore(SLOTS)
    found: dict[str, Product] = {}
    gaps = dict.fromkeys(also, "No answer in time")  # replaced or deleted below

    async def add(sku: str) -> None:
        try:
            async with slots:
                found[sku] = await fetch(request.state.client, sku)
            del gaps[sku]
        except HTTPException as failure:
            gaps[sku] = failure.detail

    try:
        async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as calls:
            # Essential: its failure leaves the task, so the group cancels the others.
            product = calls.create_task(fetch(request.state.client, sku))
            for other in list(gaps):
                calls.create_task(add(other))
    except* (TimeoutError, HTTPException):
        pass  # what is missing has a gap; the product follows
    if product.cancelled():  # its result() would raise CancelledError here
        raise HTTPException(504, "No answer in time")
    return Page(product=product.result(), also=found, gaps=gaps)


# --- evidence ---
stand_in = FastAPI()


@stand_in.get("/products/{sku}")
async def stand_in_product(sku: str) -> Product:
    if sku == "broken":
        raise HTTPException(500, "our password is 1234")
    await asyncio.sleep(60 if sku == "slow" else 0)
    return Product(sku=sku, price=5)


def main() -> None:
    from fastapi.testclient import TestClient

    with TestClient(app) as client:
        answer = client.get("/page/anvil?also=rope&also=broken&also=slow").json()
        print([*answer["also"]], answer["gaps"])
        # > ['rope'] {'broken': 'No usable answer', 'slow': 'No answer in time'}
        print(client.get("/page/broken?also=slow").json())
        # > {'detail': 'No usable answer'}


if __name__ == "__main__":
    main()
