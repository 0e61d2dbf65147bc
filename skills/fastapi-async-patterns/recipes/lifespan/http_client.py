# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165", "httpx2>=2.16"]
# ///
"""Call another service through one pooled HTTP client.

The lifespan opens one client and closes it; all requests share its connections.
`fetch` limits a call in time and size and validates the response. The caller gets
502, 503 or 504; the log gets the reason.

**Use when** a route needs data from another HTTP service. **Not when** it makes
several calls at once: concurrency/fan_out.

Gotchas:

- `read=` limits the wait for the next bytes, only `asyncio.timeout` the whole call.
- After a 504 the service may still do the work: a POST needs `headers=
  {"Idempotency-Key": key}`, with the same key in each try.
- httpx2 turns `/stock/..` into `/`, hence the pattern of `Sku`. Free text such as a
  user's name: `quote(name, safe="")`, which keeps `.` and `..`: send `%2E`, `%2E%2E`.
- `keepalive_expiry` must be below the service's own (uvicorn: 5 s), else "Server
  disconnected without sending a response."
- One client per service: a slow one can use up the pool. Credentials go in its
  `headers=` or `auth=`, because httpx2 logs URLs.
- Not covered: retries, a circuit breaker, the caller's identity, a surplus response
  (the next caller gets it: compare an id in it with yours).

Try it:

    GET /stock/anvil
    GET /stock/broken  # 502: the service answers 500
    GET /stock/slow  # 504: the service needs a minute

Keywords: httpx, httpx2, AsyncClient, connection pool, upstream, timeout, POST
Related: concurrency/fan_out, lifespan/resources
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Annotated, TypeVar

import httpx2
from fastapi import FastAPI, HTTPException, Path, Request
from pydantic import BaseModel

DEADLINE = 2.0  # seconds for the whole call
MAX_BYTES = 64 * 1024
TIMEOUT = httpx2.Timeout(connect=0.5, read=1.5, write=1.5, pool=0.5)
LIMITS = httpx2.Limits(
    max_connections=50,
    max_keepalive_connections=20,  # each call looks at all idle ones
    keepalive_expiry=4,
)

logger = logging.getLogger(__name__)
Model = TypeVar("Model", bound=BaseModel)


async def fetch(
    client: httpx2.AsyncClient,
    method: str,
    path: str,
    model: type[Model],
    errors: dict[int, str],  # to pass on: the service's status, your words for it
    json: object = None,
    headers: dict[str, str] | None = None,
) -> Model:
    call = client.stream(method, path, json=json, headers=headers)
    try:
        async with asyncio.timeout(DEADLINE), call as response:
            body = b""  # read an error's body too, or its connection is closed
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MAX_BYTES:
                    raise ValueError("too long")
        if detail := errors.get(response.status_code):
            raise HTTPException(response.status_code, detail)
        response.raise_for_status()  # for a redirect too
        return model.model_validate_json(body)
    except (httpx2.HTTPError, TimeoutError, ValueError) as error:
        logger.warning("%s %s: %r", method, path, error)
        if isinstance(error, httpx2.PoolTimeout):
            raise HTTPException(503, "Busy, try again", {"Retry-After": "1"}) from error
        # The first comes from DEADLINE; httpx2's own are not `TimeoutError`.
        if isinstance(error, TimeoutError | httpx2.TimeoutException):
            raise HTTPException(504, "No answer in time") from error
        raise HTTPException(502, "No usable answer") from error


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, httpx2.AsyncClient]]:
    async with httpx2.AsyncClient(
        # demo: in your app os.environ["STOCK_URL"], and no mounts
        base_url=os.environ.get("STOCK_URL", "http://stand-in"),  # demo
        mounts={"http://stand-in": httpx2.ASGITransport(app=stand_in)},  # demo
        limits=LIMITS,
        timeout=TIMEOUT,
        # Keeps no cookies: one user's would go out with the request of the next.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
    ) as client:
        yield {"client": client}


Sku = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,40}$")]
app = FastAPI(lifespan=lifespan)


class Stock(BaseModel):
    sku: str
    units: int


@app.get("/stock/{sku}")
async def stock(request: Request, sku: Sku) -> Stock:
    client: httpx2.AsyncClient = request.state.client
    return await fetch(client, "GET", f"/stock/{sku}", Stock, {404: "No such item"})


# --- evidence ---
stand_in = FastAPI()


@stand_in.get("/stock/{sku}")
async def stand_in_stock(sku: str) -> dict[str, str | int]:
    if sku == "slow":
        await asyncio.sleep(60)
    if sku in ("nothing", "broken"):
        raise HTTPException(404 if sku == "nothing" else 500, "our password is 1234")
    return {"sku": sku, "units": 3, "cost": 17}


def main() -> None:
    from fastapi.testclient import TestClient

    with TestClient(app) as client:
        for sku in ("anvil", "nothing", "broken", "slow"):
            response = client.get(f"/stock/{sku}")
            print(response.status_code, response.json())
            # > 200 {'sku': 'anvil', 'units': 3}
            # > 404 {'detail': 'No such item'}
            # > 502 {'detail': 'No usable answer'}
            # > 504 {'detail': 'No answer in time'}


if __name__ == "__main__":
    main()
