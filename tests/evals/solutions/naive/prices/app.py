# mypy: ignore-errors
"""Waits for all shops with gather, then takes the first that said something."""

import asyncio
import os

import httpx2
from fastapi import FastAPI, HTTPException

app = FastAPI()
URLS = os.environ["PRICE_URLS"].split(",")


async def fetch(client, url, sku):
    response = await client.get(f"{url}/price/{sku}")
    response.raise_for_status()
    return {"price": response.json()["price"], "from": url}


@app.get("/price/{sku}")
async def get_price(sku: str):
    async with httpx2.AsyncClient(timeout=3) as client:
        results = await asyncio.gather(
            *(fetch(client, url, sku) for url in URLS), return_exceptions=True
        )
    for result in results:
        if not isinstance(result, Exception):
            return result
    raise HTTPException(502, "No price available")
