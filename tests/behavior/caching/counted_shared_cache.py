"""Serves the module that TARGET names with a `count_orders` that is counted.

The city's name says what happens: with `gated` in it, wait for `POST /release` of its
last word; with `broken`, raise. What it returns is what `PUT /orders/{city}` has stored
in Valkey. LIMITS replaces constants, as in `COMPUTE=1`.
"""

import asyncio
import importlib
import logging
import os
from collections import Counter, defaultdict
from typing import Any

from fastapi import Request
from redis.asyncio import Redis

target: Any = importlib.import_module(os.environ["TARGET"])
started: Counter[str] = Counter()
gates: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
STORE = os.environ.get("STORE_URL", "")


async def stored(city: str) -> int:
    async with Redis.from_url(STORE) as redis:
        return int(await redis.get(f"stored:{city}") or 0)


async def count_orders(city: str) -> int:
    started[city] += 1
    logging.getLogger(__name__).warning("computing %s", city)
    value = await stored(city) if STORE else 0
    if "gated" in city:
        await gates[city.rpartition(" ")[2]].wait()
    if "broken" in city:
        raise RuntimeError("the database is down")
    return value


target.count_orders = count_orders
for limit in os.environ.get("LIMITS", "").split():
    name, _, number = limit.partition("=")
    setattr(target, name, float(number))
app = target.app


async def counts(city: str) -> int:
    return started[city]


async def release(city: str) -> None:
    gates[city.rpartition(" ")[2]].set()


async def change(request: Request, city: str, count: int) -> None:
    async with Redis.from_url(STORE) as redis:
        await redis.set(f"stored:{city}", count)
    logging.getLogger(__name__).warning("stored %s", city)
    await request.state.cache.forget(city)


app.get("/counts/{city}")(counts)
app.post("/release/{city}")(release)
app.put("/orders/{city}")(change)
