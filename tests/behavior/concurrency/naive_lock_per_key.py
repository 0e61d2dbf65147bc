"""Of ten requests that add one at the same time nine are lost, since all read the same
count before one of them writes."""

import asyncio

from fastapi import FastAPI

app = FastAPI()
counters = {}


async def read(store: dict, name: str) -> int:
    await asyncio.sleep(0.01)
    return store.get(name, 0)


async def write(store: dict, name: str, count: int):
    await asyncio.sleep(0.01)
    store[name] = count


@app.post("/counters/{name}")
async def change(name: str, add: int) -> int:
    count = await read(counters, name)
    await write(counters, name, count + add)
    return count + add
