# mypy: ignore-errors
"""Relies on the shutdown of the lifespan, which comes after the streams."""

import asyncio
import os
from contextlib import asynccontextmanager

import httpx2
from fastapi import FastAPI, HTTPException
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel

running = True


def audit(line):
    with open(os.environ["AUDIT_FILE"], "a") as f:
        f.write(line + "\n")


@asynccontextmanager
async def lifespan(app):
    global running
    yield
    running = False
    audit("stopped")


app = FastAPI(lifespan=lifespan)


class Payment(BaseModel):
    id: str


@app.post("/payments", status_code=201)
async def create_payment(payment: Payment):
    try:
        async with httpx2.AsyncClient(timeout=5) as client:
            response = await client.post(
                f"{os.environ['BANK_URL']}/charge", json={"id": payment.id}
            )
            response.raise_for_status()
    except httpx2.TimeoutException:
        raise HTTPException(504, "Bank timeout")
    audit(f"paid {payment.id}")
    return {"id": payment.id, "status": "paid"}


@app.get("/ticks", response_class=EventSourceResponse)
async def ticks():
    n = 0
    while running:
        n += 1
        yield ServerSentEvent(event="tick", data={"n": n})
        await asyncio.sleep(0.2)
    yield ServerSentEvent(event="bye", data={})
