# mypy: ignore-errors
"""A queue for each reader: what is published while a reader is away is lost."""

import asyncio
import json

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

app = FastAPI()
subscribers = []
counter = 0


class Event(BaseModel):
    text: str = Field(min_length=1, max_length=500)


@app.post("/events", status_code=201)
async def create_event(event: Event):
    global counter
    counter += 1
    for queue in subscribers:
        await queue.put((counter, event.text))
    return {"id": str(counter)}


@app.get("/events")
async def stream():
    queue = asyncio.Queue()
    subscribers.append(queue)

    async def generate():
        try:
            while True:
                number, text = await queue.get()
                yield f"id: {number}\ndata: {json.dumps({'text': text})}\n\n"
        finally:
            subscribers.remove(queue)

    return StreamingResponse(generate(), media_type="text/event-stream")
