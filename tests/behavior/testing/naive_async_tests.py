"""The tests of the price pass, although the app cannot start and the second one asks for
the wrong price: it sees the override of the first. The test of the stream never ends."""

import asyncio
from contextlib import asynccontextmanager

import httpx2
import pytest
from fastapi import Depends, FastAPI
from fastapi.sse import EventSourceResponse
from fastapi.testclient import TestClient


@asynccontextmanager
async def lifespan(app):
    raise RuntimeError("no database")
    yield


async def price():
    return 9.99


app = FastAPI(lifespan=lifespan)
client = TestClient(app)
ticks_sent = 0


@app.get("/price")
async def get_price(price: float = Depends(price)):
    return price


@app.get("/ticks", response_class=EventSourceResponse)
async def ticks():
    global ticks_sent
    while True:
        yield "tick"
        ticks_sent += 1
        await asyncio.sleep(0)


def test_sale_price():
    app.dependency_overrides[price] = lambda: 5
    assert client.get("/price").json() == 5


def test_price():
    assert client.get("/price").json() == 5


@pytest.mark.anyio
async def test_ticks():
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://app") as http:
        async with http.stream("GET", "/ticks") as response:
            assert await anext(response.aiter_lines()) == 'data: "tick"'
