"""The client gets its 504, but the endpoint runs on to its end and charges the card; and a `TimeoutError` of its own becomes a 504 too."""

import asyncio

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

app = FastAPI()
bank_is_up = asyncio.Event()
charges = []


@app.middleware("http")
async def deadline(request: Request, call_next):
    try:
        return await asyncio.wait_for(call_next(request), timeout=1)
    except TimeoutError:
        return JSONResponse({"detail": "No answer in time"}, status_code=504)


@app.post("/charge/{order}")
async def charge(order: int):
    await bank_is_up.wait()
    charges.append(order)


@app.get("/own-timeout")
async def own_timeout():
    raise TimeoutError("no connection free")


@app.get("/charges")
async def list_charges():
    return charges


@app.post("/bank-is-up")
async def bank():
    bank_is_up.set()
