"""A heartbeat of its own is an event to each client, and swallows cancellation."""

import asyncio
from datetime import datetime

from fastapi import FastAPI
from fastapi.sse import EventSourceResponse, ServerSentEvent

app = FastAPI()
SECONDS = 0.05


async def heartbeats():
    try:
        while True:
            await asyncio.sleep(SECONDS)
            yield ServerSentEvent(event="heartbeat", data=datetime.now().isoformat())
    except asyncio.CancelledError:
        print("SSE connection closed")


@app.get("/feed", response_class=EventSourceResponse)
async def subscribe():
    async for event in heartbeats():
        yield event
