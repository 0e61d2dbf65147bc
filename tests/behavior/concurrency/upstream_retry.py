"""The shop that concurrency/retry calls; `/seen` tells what reached it."""

import asyncio
from collections import Counter
from typing import Annotated, Any

from fastapi import FastAPI, Header, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse
from starlette.types import Receive, Scope, Send

app = FastAPI()
calls: Counter[str] = Counter()
taken: list[str] = []
released = asyncio.Event()


class Dropped(Response):
    """An answer that breaks off, and the connection with it."""

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        length = (b"content-length", b"100")
        await send({"type": "http.response.start", "status": 200, "headers": [length]})


@app.get("/seen")
async def seen() -> dict[str, Any]:
    return {"calls": calls, "taken": len(taken)}


@app.post("/reset")
async def reset() -> None:
    calls.clear()
    taken.clear()
    released.clear()


@app.post("/up")
async def up() -> None:
    released.set()


@app.post("/stock/{sku}")
async def take(
    sku: str, idempotency_key: Annotated[str | None, Header()] = None
) -> Response:
    """The first answer to each order is lost."""
    calls[sku] += 1
    if idempotency_key in taken:
        return JSONResponse({"units": 3})
    taken.append(idempotency_key or f"order {len(taken)}")
    return Dropped()


@app.get("/stock/{sku}")
async def stock(request: Request, sku: str) -> Response:
    calls[sku] += 1
    if sku == "hangs":
        while (await request.receive())["type"] != "http.disconnect":
            pass
    good = JSONResponse({"units": 3})
    if sku == "down":
        return good if released.is_set() else Response(status_code=503)
    after = {"Retry-After": sku.removeprefix("after-")}
    answers: dict[str, Response] = {
        "missing": PlainTextResponse("secret", 404),
        "broken": PlainTextResponse("secret", 500),
        "moved": RedirectResponse("/stock/anvil"),
        "text": PlainTextResponse("secret"),
    }
    if sku in answers:
        return answers[sku]
    if calls[sku] > 2:
        return good
    if sku == "dropped":
        return Dropped()
    if sku.startswith("status-"):
        return Response(status_code=int(sku.removeprefix("status-")))
    return Response(status_code=429, headers=after) if "after" in sku else good
