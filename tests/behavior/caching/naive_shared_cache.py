"""Callers that come at once all compute, in each worker, a 0 is computed each time, and
without Valkey each request is a 500."""

import asyncio
import os

from fastapi import FastAPI
from redis.asyncio import Redis

app = FastAPI()
redis = Redis.from_url(os.environ["REDIS_URL"])


async def count_orders(city: str) -> int:
    await asyncio.sleep(0.2)
    return {"berlin": 3, "paris": 2}.get(city, 0)


@app.get("/orders/{city}")
async def orders(city: str):
    cached = await redis.get(f"naive:{city}")
    if cached and int(cached):
        return int(cached)
    value = await count_orders(city)
    await redis.set(f"naive:{city}", value, ex=60)
    return value
