"""The service that lifespan/http_client calls; `/seen` tells what reached it."""

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse

app = FastAPI()
connections: set[object] = set()
targets: list[str] = []
cookies: list[str] = []


@app.get("/seen")
async def seen() -> dict[str, Any]:
    return {"connections": len(connections), "targets": targets, "cookies": cookies}


@app.get("/{path:path}")
async def stock(request: Request, path: str) -> Response:
    connections.add(request.client)
    query = f"?{request.url.query}" if request.url.query else ""
    targets.append(f"/{path}{query}")
    cookies.append(request.headers.get("cookie", ""))
    sku = path.rpartition("/")[2]
    if sku == "slow":
        while (await request.receive())["type"] != "http.disconnect":
            pass
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
