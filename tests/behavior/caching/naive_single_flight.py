"""A hundred callers compute a hundred times, a 0 is computed each time, and nothing is
forgotten. Without `to_thread` it also holds up all other requests."""

import asyncio
import time

from fastapi import FastAPI

app = FastAPI()
cache = {}


def count_orders(city: str) -> int:
    time.sleep(0.2)
    return {"berlin": 3, "paris": 2}.get(city, 0)


@app.get("/orders/{city}")
async def orders(city: str):
    if cached := cache.get(city):
        return cached
    cache[city] = await asyncio.to_thread(count_orders, city)
    return cache[city]


@app.get("/blocking/orders/{city}")
async def blocking_orders(city: str):
    if city not in cache:
        cache[city] = count_orders(city)
    return cache[city]
