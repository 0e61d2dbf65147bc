"""A feed with a ring of the last events, and ids that name the life of the server."""

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterable
from typing import Annotated

from fastapi import FastAPI, Header
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, Field

RING = 1000
LIFE = secrets.token_hex(4)
app = FastAPI()
ring: deque[tuple[int, str]] = deque(maxlen=RING)
count = 0
bell = asyncio.Event()


class Update(BaseModel):
    text: str = Field(min_length=1, max_length=500)


def known(last: str) -> int | None:
    """The number behind an id, if nothing after it is lost."""
    life, _, number = last.partition("-")
    if life != LIFE or not number.isdecimal():
        return None
    return int(number) if count - len(ring) <= int(number) <= count else None


@app.post("/events", status_code=201)
async def publish(update: Update) -> dict[str, str]:
    global bell, count  # noqa: PLW0603 - one process, one feed
    count += 1
    ring.append((count, update.text))
    bell.set()
    bell = asyncio.Event()
    return {"id": f"{LIFE}-{count}"}


@app.get("/events", response_class=EventSourceResponse)
async def subscribe(
    last_event_id: Annotated[str | None, Header()] = None,
) -> AsyncIterable[ServerSentEvent]:
    seen = known(last_event_id) if last_event_id else count
    while True:
        if seen is None or seen < count - len(ring):
            seen = count
            yield ServerSentEvent(id=f"{LIFE}-{seen}", event="reset", data={})
        ringing = bell
        for number, text in list(ring):
            if number > seen:
                seen = number
                yield ServerSentEvent(id=f"{LIFE}-{number}", data={"text": text})
        if seen == count:
            await ringing.wait()
