"""Ask all shops, take the first good price, cancel the rest."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any
from urllib.parse import quote

import httpx2
from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel, Field, ValidationError


class Offer(BaseModel):
    price: Annotated[float, Field(ge=0, strict=True)]


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
    limits = httpx2.Limits(max_connections=500, max_keepalive_connections=50)
    async with httpx2.AsyncClient(limits=limits) as client:
        yield {"client": client, "urls": os.environ["PRICE_URLS"].split(",")}


app = FastAPI(lifespan=lifespan)


async def ask(client: httpx2.AsyncClient, url: str, sku: str) -> dict[str, Any]:
    answer = await client.get(f"{url}/price/{quote(sku, safe='')}")
    offer = Offer.model_validate_json(answer.raise_for_status().content)
    return {"price": offer.price, "from": url}


@app.get("/price/{sku}")
async def price(sku: str, request: Request) -> dict[str, Any]:
    state = request.state
    tasks = [asyncio.create_task(ask(state.client, url, sku)) for url in state.urls]
    try:
        async with asyncio.timeout(3):
            for done in asyncio.as_completed(tasks):
                try:
                    return await done
                except (httpx2.HTTPError, ValidationError):
                    continue
    except TimeoutError:
        raise HTTPException(504, "no shop answers in time") from None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    raise HTTPException(502, "no shop has a price")
