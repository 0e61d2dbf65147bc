"""The shop that concurrency/bounded calls; `/seen` tells what reached it."""

import asyncio
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse

app = FastAPI()
asked: list[str] = []
running: list[str] = []
peak = 0
released = asyncio.Event()


@app.get("/seen")
async def seen() -> dict[str, Any]:
    return {"asked": asked, "running": len(running), "peak": peak}


@app.post("/reset")
async def reset() -> None:
    """Wait until the calls of the last test have ended, then be as new."""
    global peak  # noqa: PLW0603 - a counter of this process
    released.set()
    while running:
        await asyncio.sleep(0)
    released.clear()
    asked.clear()
    peak = 0


@app.post("/release")
async def release() -> None:
    released.set()


@app.get("/prices/{sku}")
async def price(request: Request, sku: str) -> Response:
    """Held until the caller hangs up or the test releases it, but for "quick" ones."""
    global peak  # noqa: PLW0603 - a counter of this process
    asked.append(sku)
    running.append(sku)
    peak = max(peak, len(running))
    try:
        if not sku.startswith("quick"):
            waits = [
                asyncio.create_task(w) for w in (hang_up(request), released.wait())
            ]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
    finally:
        running.remove(sku)
    answers: dict[str, Response] = {
        "quick-broken": JSONResponse({"sku": "secret", "price": 1}, 500),
        "quick-text": PlainTextResponse("secret"),
    }
    return answers.get(sku) or JSONResponse({"sku": sku, "price": 5})


async def hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
