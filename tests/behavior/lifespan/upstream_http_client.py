"""The service that lifespan/http_client calls; `/seen` tells what reached it."""

import asyncio
from typing import Annotated, Any

from fastapi import Body, FastAPI, Header, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse

app = FastAPI()
connections: set[object] = set()
targets: list[str] = []
cookies: list[str] = []
charges: dict[str, int] = {}
released = asyncio.Event()


@app.get("/seen")
async def seen() -> dict[str, Any]:
    return {
        "connections": len(connections),
        "targets": targets,
        "cookies": cookies,
        "charges": [*charges.values()],
    }


@app.post("/release")
async def release() -> None:
    released.set()


@app.post("/charges")
async def charge(
    order: Annotated[int, Body(embed=True)],
    idempotency_key: Annotated[str | None, Header()] = None,
) -> Response:
    """It is done at once, and answered when the test says so."""
    key = idempotency_key or f"charge {len(charges)}"
    charges[key] = order
    await released.wait()
    return JSONResponse({"order": order}, 402 if order == 13 else 201)


@app.get("/{path:path}")
async def stock(request: Request, path: str) -> Response:
    connections.add(request.client)
    query = f"?{request.url.query}" if request.url.query else ""
    targets.append(f"/{path}{query}")
    cookies.append(request.headers.get("cookie", ""))
    sku = path.rpartition("/")[2]
    if sku == "slow":
        await hold(request)
    answers: dict[str, Response] = {
        "missing": PlainTextResponse("secret", 404),
        "broken": JSONResponse({"sku": "secret", "units": 1}, 500),
        "moved": RedirectResponse("/stock/anvil"),
        "text": PlainTextResponse("secret"),
        "list": JSONResponse(["secret"]),
        "words": JSONResponse({"sku": "secret", "units": "many"}),
        "nothing": Response(status_code=204),
    }
    answer = answers.get(sku) or JSONResponse({"sku": sku, "units": 3, "cost": 17})
    answer.set_cookie("user", sku)
    return answer


async def hold(request: Request) -> None:
    """Until the caller hangs up or the test says so."""

    async def hang_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    waits = [asyncio.create_task(w) for w in (hang_up(), released.wait())]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
