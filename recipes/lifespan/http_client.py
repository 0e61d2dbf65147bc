# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165", "httpx2>=2.16"]
# ///
"""Call another service through one pooled HTTP client.

The lifespan opens one client and closes it; all requests share its connections.
`fetch` bounds a call in time and size and validates the answer. The caller
gets 502, 503 or 504; the log gets the reason.

**Use when** a route needs an answer from another HTTP service. **Not when** it
needs several at once: concurrency/fan_out.

Gotchas:

- `read=` limits the wait for the next bytes: a server that sends one a second never
  exceeds it. Only `asyncio.timeout` limits the whole call.
- `AsyncClient(transport=...)` ignores `limits=`, `verify=` and the proxy variables:
  give them to the transport. `Limits(max_connections=50)` alone keeps all 50 open.
- A client keeps cookies: what the service sets for one user goes out with the
  request of the next.
- `quote(sku, safe="")` keeps `..`, and httpx2 turns `/stock/..` into `/`: hence the
  pattern of `Sku`.
- `except TimeoutError` catches no timeout of httpx2, `PoolTimeout` included.
- After a 504 the service may still do the work: a POST needs an idempotency key.
- httpx2 logs URLs, and a password in them: credentials go in headers or `auth=`.
- `retries=` repeats a failed connect, nothing else: it is safe for a POST too.
- `keepalive_expiry` must be below the service's own (uvicorn: 5 s), or a call can fail
  with "Server disconnected without sending a response."
- A slow service can use up the whole pool: one client per service.
- Not covered: repeating calls, a circuit breaker, the caller's identity.

Try it:

    GET /stock/anvil
    GET /stock/nothing  # 404
    GET /stock/broken  # 502: the service answers 500
    GET /stock/slow  # 504: the service needs a minute

Keywords: httpx, httpx2, AsyncClient, connection pool, upstream, timeout, bad gateway
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

DEADLINE = 2  # seconds for the whole call
MAX_BYTES = 64 * 1024
TIMEOUT = httpx2.Timeout(connect=0.5, read=1.5, write=1.5, pool=0.5)
LIMITS = httpx2.Limits(
    max_connections=50, max_keepalive_connections=20, keepalive_expiry=4
)

logger = logging.getLogger(__name__)
Model = TypeVar("Model", bound=BaseModel)


async def fetch(client: httpx2.AsyncClient, path: str, model: type[Model]) -> Model:
    try:
        async with asyncio.timeout(DEADLINE), client.stream("GET", path) as response:
            body = b""  # read an error's body too, or its connection is closed
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MAX_BYTES:
                    raise ValueError("too long")  # noqa: TRY301 - mapped below
        if response.status_code == 404:
            raise HTTPException(404, "No such item")
        response.raise_for_status()  # for a redirect too
        return model.model_validate_json(body)
    except (httpx2.HTTPError, TimeoutError, ValueError) as error:
        logger.warning("GET %s: %r", path, error)
        raise what_to_tell(error) from error


def what_to_tell(error: Exception) -> HTTPException:
    if isinstance(error, httpx2.PoolTimeout):
        return HTTPException(503, "Busy, try again", headers={"Retry-After": "1"})
    if isinstance(error, TimeoutError | httpx2.TimeoutException):
        return HTTPException(504, "No answer in time")
    return HTTPException(502, "No usable answer")


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, httpx2.AsyncClient]]:
    async with httpx2.AsyncClient(
        # In your app: base_url=os.environ["STOCK_URL"], and delete both demo lines.
        base_url=os.environ.get("STOCK_URL", "http://stand-in"),  # demo
        mounts={"http://stand-in": httpx2.ASGITransport(app=stand_in)},  # demo
        transport=httpx2.AsyncHTTPTransport(limits=LIMITS, retries=1),
        timeout=TIMEOUT,
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # keeps none
    ) as client:
        yield {"client": client}


Sku = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,40}$")]  # no `..`, `/`, `?`, `#`
app = FastAPI(lifespan=lifespan)


class Stock(BaseModel):
    sku: str
    units: int


@app.get("/stock/{sku}")
async def stock(request: Request, sku: Sku) -> Stock:
    return await fetch(request.state.client, f"/stock/{sku}", Stock)


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
            answer = client.get(f"/stock/{sku}")
            print(answer.status_code, answer.json())
            # > 200 {'sku': 'anvil', 'units': 3}
            # > 404 {'detail': 'No such item'}
            # > 502 {'detail': 'No usable answer'}
            # > 504 {'detail': 'No answer in time'}


if __name__ == "__main__":
    main()
