"""No ids and no history: who reconnects has lost what came meanwhile."""

import asyncio

from fastapi import FastAPI
from fastapi.sse import EventSourceResponse

app = FastAPI()
queues: list[asyncio.Queue[str]] = []


@app.post("/events", status_code=201)
async def publish(body: dict[str, str]):
    for queue in queues:
        queue.put_nowait(body["message"])


@app.get("/feed", response_class=EventSourceResponse)
async def subscribe():
    queue: asyncio.Queue[str] = asyncio.Queue()
    queues.append(queue)
    while True:
        yield await queue.get()
