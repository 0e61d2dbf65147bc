"""Three services at once, two seconds for all of them."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import httpx2
from fastapi import FastAPI, HTTPException, Request

NAMES = ("profile", "orders", "tips")
SECONDS = 1.8


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, httpx2.AsyncClient]]:
    async with httpx2.AsyncClient() as client:
        yield {"client": client}


app = FastAPI(lifespan=lifespan)


async def ask(client: httpx2.AsyncClient, name: str, user: str) -> Any:
    try:
        async with asyncio.timeout(SECONDS):
            url = f"{os.environ[f'{name.upper()}_URL']}/{quote(user, safe='')}"
            answer = await client.get(url)
            return answer.raise_for_status().json()
    except (httpx2.HTTPError, TimeoutError, ValueError):
        return None


@app.get("/dashboard/{user}")
async def dashboard(user: str, request: Request) -> dict[str, Any]:
    calls = (ask(request.state.client, name, user) for name in NAMES)
    parts: dict[str, Any] = dict(zip(NAMES, await asyncio.gather(*calls), strict=True))
    failed = sorted(name for name in NAMES if parts[name] is None)
    if len(failed) == len(NAMES):
        raise HTTPException(502, "no service answers")
    return {**parts, "failed": failed}
