"""The shop that concurrency/fan_out calls; `/seen` tells what reached it."""

import asyncio
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.types import Receive, Scope, Send

app = FastAPI()
connections: set[object] = set()
started: list[str] = []
running: list[str] = []
finished: list[str] = []
cut_off: list[str] = []
peak = 0
released = asyncio.Event()


class Dropped(Response):
    """An answer that breaks off, and the connection with it."""

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        length = (b"content-length", b"100")
        await send({"type": "http.response.start", "status": 200, "headers": [length]})


@app.get("/seen")
async def seen() -> dict[str, Any]:
    return {
        "connections": len(connections),
        "started": sorted(started),
        "running": sorted(running),
        "finished": sorted(finished),
        "cut off": sorted(cut_off),
        "peak": peak,
    }


@app.post("/release")
async def release() -> None:
    released.set()


@app.get("/products/{sku}")
async def product(request: Request, sku: str) -> Response:
    global peak  # noqa: PLW0603 - a counter of this process
    connections.add(request.client)
    while sku == "dropped-late" and len(running) < 2:  # its siblings come first
        await asyncio.sleep(0.01)
    started.append(sku)
    running.append(sku)
    peak = max(peak, len(running))
    try:
        if sku.startswith("slow"):
            await hold(request)
    finally:
        running.remove(sku)
        gone = await request.is_disconnected()
        (cut_off if gone else finished).append(sku)
    answers: dict[str, Response] = {
        "dropped": Dropped(),
        "dropped-late": Dropped(),
        "broken": JSONResponse({"sku": "secret", "price": 1}, 500),
        "missing": JSONResponse({"detail": "secret"}, 404),
        "text": PlainTextResponse("secret"),
        "words": JSONResponse({"sku": "secret", "price": "much"}),
        "huge": JSONResponse({"sku": "secret" + " " * 65536, "price": 1}),
    }
    return answers.get(sku) or JSONResponse({"sku": sku, "price": 5, "cost": 4})


async def hold(request: Request) -> None:
    """Until the caller hangs up or the test says so."""

    async def hang_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    waits = [asyncio.create_task(w) for w in (hang_up(), released.wait())]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
