"""The services that concurrency/first_success asks; `/seen` tells what reached them."""

import asyncio
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse

app = FastAPI()
asked: list[str] = []
running: list[str] = []
released = asyncio.Event()


@app.get("/seen")
async def seen() -> dict[str, Any]:
    return {"asked": sorted(asked), "running": sorted(running)}


@app.post("/reset")
async def reset() -> None:
    asked.clear()
    released.clear()


@app.post("/release")
async def release() -> None:
    released.set()


@app.get("/{service}/rates/{currency}")
async def rate(request: Request, service: str, currency: str) -> Response:
    asked.append(service)
    running.append(service)
    try:
        if service in ("held", "slow"):
            await hold(request, release=service == "held")
    finally:
        running.remove(service)
    good = {"currency": currency, "rate": 1.25}
    answers: dict[str, Response] = {
        "broken": JSONResponse(good | {"rate": 666}, 503),
        "moved": RedirectResponse("/good/rates/EUR"),
        "text": PlainTextResponse("secret"),
        "list": JSONResponse([good]),
        "zero": JSONResponse(good | {"rate": 0}),
        "nan": Response(b'{"currency": "EUR", "rate": NaN}'),
        "binary": Response(b"\x00\xff\x80", headers={"content-encoding": "gzip"}),
        "empty": Response(status_code=204),
    }
    return answers.get(service) or JSONResponse(good)


async def hold(request: Request, *, release: bool) -> None:
    """Until the caller hangs up; `release`: or until the test says so."""

    async def hang_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    waits = [asyncio.create_task(hang_up())]
    if release:
        waits.append(asyncio.create_task(released.wait()))  # type: ignore[arg-type]  # the results differ and nobody reads them
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
