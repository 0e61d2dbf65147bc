"""Streams that hear of the signal, so that uvicorn can finish the rest."""

import asyncio
import os
import signal
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import httpx2
from fastapi import FastAPI, HTTPException, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel


def audit(line: str) -> None:
    with Path(os.environ["AUDIT_FILE"]).open("a") as file:
        file.write(f"{line}\n")


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(stopping.set)
        handler = previous[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    previous = {
        number: signal.signal(number, on_signal)
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    async with httpx2.AsyncClient(base_url=os.environ["BANK_URL"]) as client:
        yield {"stopping": stopping, "client": client}
    audit("stopped")


app = FastAPI(lifespan=lifespan)


class Payment(BaseModel):
    id: str


@app.post("/payments", status_code=201)
async def pay(payment: Payment, request: Request) -> dict[str, str]:
    try:
        async with asyncio.timeout(5):
            answer = await request.state.client.post("/charge", json={"id": payment.id})
            answer.raise_for_status()
    except (TimeoutError, httpx2.TimeoutException):
        raise HTTPException(504, "the bank does not answer") from None
    except httpx2.HTTPError:
        raise HTTPException(502, "the bank fails") from None
    audit(f"paid {payment.id}")
    return {"id": payment.id, "status": "paid"}


@app.get("/ticks", response_class=EventSourceResponse)
async def ticks(request: Request) -> AsyncIterable[ServerSentEvent]:
    stopping: asyncio.Event = request.state.stopping
    number = 0
    while not stopping.is_set():
        number += 1
        yield ServerSentEvent(event="tick", data={"n": number})
        with suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await stopping.wait()
    yield ServerSentEvent(event="bye", data={})
