"""All calls of a request start at once, so the shop gets a hundred and the others fail with `PoolTimeout`; with a semaphore per request, each further request brings ten more."""

import asyncio
import os

import httpx2
from fastapi import FastAPI

app = FastAPI()
client = httpx2.AsyncClient(timeout=httpx2.Timeout(60, pool=1))


async def price(sku: str):
    response = await client.get(f"{os.environ['SHOP_URL']}/prices/{sku}")
    return response.json()


@app.post("/prices")
async def prices(skus: list[str]):
    return await asyncio.gather(*(price(sku) for sku in skus))


@app.post("/semaphore/prices")
async def prices_with_a_semaphore(skus: list[str]):
    slots = asyncio.Semaphore(10)

    async def one(sku: str):
        async with slots:
            return await price(sku)

    return await asyncio.gather(*(one(sku) for sku in skus))
