"""A client per call opens a connection each time, a global one is never closed and breaks in the app's second life, and both return the service's error as a 200."""

import os

import httpx2
from fastapi import FastAPI

app = FastAPI()
shared = None


@app.get("/stock/{sku}")
async def stock(sku: str):
    async with httpx2.AsyncClient(base_url=os.environ["STOCK_URL"]) as client:
        response = await client.get(f"/stock/{sku}")
        return response.json()


@app.get("/shared/stock/{sku}")
async def shared_stock(sku: str):
    global shared
    if shared is None:
        shared = httpx2.AsyncClient(base_url=os.environ["STOCK_URL"])
    response = await shared.get(f"/stock/{sku}")
    return response.json()
