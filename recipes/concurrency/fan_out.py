# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165", "httpx2>=2.16"]
# ///
"""Call many services at once, keep what arrived, cancel the rest.

A `TaskGroup` owns the calls, one `asyncio.timeout` around it limits them all. A
call that fails becomes an entry in `gaps`. If the essential one fails, the request
fails and the other calls are cancelled; with `gather` they would outlive the response.

**Use when** an incomplete response is better than none. **Not when** one call is
enough: lifespan/http_client.

Gotchas:

- An `HTTPException` raised in a task arrives as "ExceptionGroup: unhandled errors in
  a TaskGroup (1 sub-exception)": catch it with `except*`, not `except`.
- The service may still finish a cancelled call: fan out reads, not writes.
- `SLOTS` is per request: ten slow requests take all 100 connections of the client.
- Not covered: retries, services at several addresses.

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
from fastapi import FastAPI, HTTPException, Query, Request, Response
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
            body = b""  # read an error's body too, or its connection is closed
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MAX_BYTES:
                    raise ValueError("too long")
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
        # demo: in your app os.environ["SHOP_URL"], and no mounts
        base_url=os.environ.get("SHOP_URL", "http://stand-in"),  # demo
        mounts={"http://stand-in": httpx2.ASGITransport(app=stand_in)},  # demo
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # keeps none
    ) as client:
        yield {"client": client}


app = FastAPI(lifespan=lifespan)
Sku = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,40}$")]
Also = Annotated[list[Sku], Query(max_length=50, default_factory=list)]


@app.get("/page/{sku}")
async def page(request: Request, response: Response, sku: Sku, also: Also) -> Page:
    client: httpx2.AsyncClient = request.state.client
    slots = asyncio.Semaphore(SLOTS)
    # A product, or why there is none; in the order of the request, each once.
    others: dict[str, Product | str] = dict.fromkeys(also, "No answer in time")

    async def add(sku: str) -> None:
        try:
            async with slots:
                others[sku] = await fetch(client, sku)
        except HTTPException as failure:
            others[sku] = failure.detail

    try:
        async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as calls:
            # Essential: its failure leaves the task, so the group cancels the others.
            product = calls.create_task(fetch(client, sku))
            for other in others:
                calls.create_task(add(other))
    except* (TimeoutError, HTTPException):
        pass  # of the others, what is missing says why; the product follows
    if product.cancelled():  # its result() would raise CancelledError here
        raise HTTPException(504, "No answer in time")
    found = {sku: one for sku, one in others.items() if isinstance(one, Product)}
    gaps = {sku: why for sku, why in others.items() if isinstance(why, str)}
    if gaps:
        response.headers["Cache-Control"] = "no-store"
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
        page = client.get("/page/anvil?also=rope&also=broken&also=slow").json()
        print([*page["also"]], page["gaps"])
        # > ['rope'] {'broken': 'No usable answer', 'slow': 'No answer in time'}
        print(client.get("/page/broken?also=slow").json())
        # > {'detail': 'No usable answer'}


if __name__ == "__main__":
    main()
