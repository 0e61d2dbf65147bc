# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165", "pytest>=9.0"]
# ///
# ruff: noqa: S101 - tests assert
"""Test streams, lifespans, WebSockets and overrides.

Use `TestClient` for most tests: it runs the lifespan, reads endless streams, speaks
WebSocket. Use an async client when a test awaits something in the event loop of the
app, and a real uvicorn for what clients and signals do to a server.

**Use when** an app has a lifespan, a stream or a WebSocket. **Not when** a function can
be tested without HTTP: call it.

Gotchas:

- `TestClient(app)` without `with` runs no lifespan: an app that cannot start passes,
  or you see "'State' object has no attribute 'shop'".
- `ASGITransport` runs no lifespan, and collects the body first: an endless stream never
  returns. Both clients return only when the background tasks have run.
- An override stays for all later tests, in all files: clear it in the fixture.
- Async tests need `anyio_mode = "auto"` or `pytest.mark.anyio`. Without the fixture
  `anyio_backend` they also run on trio, if that is installed.
- `TestClient` runs the app in a thread with an event loop of its own: what belongs to
  the loop of an async test does not work in it.
- For SIGTERM, run uvicorn in a process of its own: a thread gets no signals.

Try it:

    POST /orders  # 201
    GET /ordered
    SSE /ticks
    WS /echo hello

Keywords: pytest, TestClient, AsyncClient, ASGITransport, dependency_overrides, anyio,
  test hangs, test server-sent events, test WebSocket, LifespanManager
Related: lifespan/resources, sse/feed, websocket/rooms
"""

import asyncio
import socket
import threading
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated

import httpx2
import pytest
import uvicorn
from fastapi import BackgroundTasks, Depends, FastAPI, Request, WebSocket
from fastapi.sse import EventSourceResponse
from fastapi.testclient import TestClient
from starlette.types import Receive, Scope, Send


@dataclass
class Shop:  # demo: from here on an app to test
    ordered: asyncio.Event = field(default_factory=asyncio.Event)
    mail: str = ""
    readers: int = 0


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Shop]]:  # demo
    yield {"shop": Shop()}


async def price() -> float:  # demo: asks another service
    return 9.99


app = FastAPI(lifespan=lifespan)


@app.post("/orders", status_code=201)
async def order(  # demo
    request: Request, tasks: BackgroundTasks, price: Annotated[float, Depends(price)]
) -> None:
    request.state.shop.ordered.set()
    tasks.add_task(setattr, request.state.shop, "mail", f"You owe {price}")


@app.get("/ordered")
async def ordered(request: Request) -> None:  # demo: waits for an order
    await asyncio.wait_for(request.state.shop.ordered.wait(), 5)


@app.get("/ticks", response_class=EventSourceResponse)
async def ticks(request: Request) -> AsyncIterable[int]:  # demo: endless
    request.state.shop.readers += 1
    try:
        while True:
            yield request.state.shop.readers
            await asyncio.sleep(0.1)
    finally:
        request.state.shop.readers -= 1


@app.websocket("/echo")
async def echo(websocket: WebSocket) -> None:  # demo
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


@pytest.fixture
def client() -> Iterator[TestClient]:
    with TestClient(app) as client:  # `with`: a lifespan of its own for each test
        yield client
    app.dependency_overrides.clear()


def test_override_and_background_task(client: TestClient) -> None:
    app.dependency_overrides[price] = lambda: 5
    assert client.post("/orders").status_code == 201
    assert client.app_state["shop"].mail == "You owe 5"


def test_stream(client: TestClient) -> None:
    with client.stream("GET", "/ticks") as response:
        assert next(response.iter_lines()) == "data: 1"
    assert client.app_state["shop"].readers == 0  # it was cancelled, and cleaned up


def test_websocket(client: TestClient) -> None:
    with client.websocket_connect("/echo") as websocket:
        websocket.send_text("hello")
        assert websocket.receive_text() == "hello"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_two_requests_at_once() -> None:
    async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope | {"state": dict(state)}, receive, send)

    transport = httpx2.ASGITransport(with_state)
    async with lifespan(app) as state:
        async with httpx2.AsyncClient(transport=transport, base_url="http://x") as http:
            async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
                waiting = tasks.create_task(http.get("/ordered"))
                await http.post("/orders")
    assert waiting.result().is_success


def test_real_server() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    ...


# --- evidence ---
def main() -> None:
    import os
    import subprocess
    import sys

    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, __file__]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    print(result.stdout)


if __name__ == "__main__":
    main()
