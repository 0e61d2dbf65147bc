"""One dropped connection loses every result and leaves the other calls running; an error page passes for a product."""

import asyncio
import os

import httpx2
from fastapi import FastAPI, Query

app = FastAPI()
shared = httpx2.AsyncClient()


async def fetch_all(client: httpx2.AsyncClient, skus: list[str]):
    url = os.environ["SHOP_URL"]
    calls = [client.get(f"{url}/products/{sku}") for sku in skus]
    product, *also = await asyncio.gather(*calls)
    return {"product": product.json(), "also": [other.json() for other in also]}


@app.get("/page/{sku}")
async def page(sku: str, also: list[str] = Query([])):
    async with httpx2.AsyncClient() as client:
        return await fetch_all(client, [sku, *also])


@app.get("/shared/page/{sku}")
async def shared_page(sku: str, also: list[str] = Query([])):
    return await fetch_all(shared, [sku, *also])
