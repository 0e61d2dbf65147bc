"""A blocking library on its own eight threads, with a bounded waiting room."""

import asyncio
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import FileResponse

CALLS = 8
WAITING = 30
SECONDS = 3


def vendor_quote(symbol: str) -> float:
    url = f"{os.environ['VENDOR_URL']}/quote/{urllib.parse.quote(symbol, safe='')}"
    with urllib.request.urlopen(url) as response:  # noqa: S310 - the vendor's code
        return json.loads(response.read())["price"]  # type: ignore[no-any-return]


class Vendor:
    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self.threads = threads
        self.inside = 0

    def leave(self, _: object) -> None:
        self.inside -= 1

    async def quote(self, symbol: str) -> float:
        if self.inside >= CALLS + WAITING:
            raise HTTPException(503, "too many requests", {"Retry-After": "3"})
        self.inside += 1
        loop = asyncio.get_running_loop()
        call = loop.run_in_executor(self.threads, vendor_quote, symbol)
        call.add_done_callback(self.leave)
        async with asyncio.timeout(SECONDS):
            return await call


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
    threads = ThreadPoolExecutor(CALLS)
    yield {"vendor": Vendor(threads)}
    threads.shutdown(wait=False, cancel_futures=True)


app = FastAPI(lifespan=lifespan)


@app.get("/quote/{symbol}")
async def quote(symbol: str, request: Request) -> dict[str, Any]:
    try:
        return {"symbol": symbol, "price": await request.state.vendor.quote(symbol)}
    except TimeoutError:
        raise HTTPException(504, "the vendor does not answer") from None
    except (urllib.error.URLError, ValueError, KeyError):
        raise HTTPException(502, "the vendor fails") from None


@app.get("/health")
async def health() -> dict[str, str]:
    return {"status": "ok"}


@app.get("/terms")
async def terms() -> FileResponse:
    return FileResponse(os.environ["TERMS_FILE"], media_type="text/plain")
