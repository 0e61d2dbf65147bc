# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165", "pytest>=9.0"]
# ///
# ruff: noqa: S101 - tests assert
"""Test streams, lifespans, WebSockets and overrides.

Use `TestClient` for most tests: it runs the lifespan, reads endless streams and speaks
WebSocket. Use an async client when a test itself must await in the app's event loop.
For SIGTERM or a client that does not read, start uvicorn in a process of its own.

**Use when** an app has a lifespan, a stream or a WebSocket. **Not when** a function
needs no HTTP: call it.

Gotchas:

- `TestClient(app)` without `with` runs no lifespan: an app that cannot start passes,
  or you see "'State' object has no attribute 'ordered'".
- `ASGITransport` runs no lifespan, and collects the body first: an endless stream never
  returns. Both clients return only when the background tasks have run.
- An override stays for all later tests, in all files: clear it in the fixture.
- Async tests need `pytest.mark.anyio` or `anyio_mode = "auto"`. Without the fixture
  `anyio_backend` they also run on trio, if it is installed.

Try it:

    POST /orders  # 201
    GET /ordered
    SSE /ticks
    WS /echo hello

Keywords: pytest, TestClient, AsyncClient, ASGITransport, dependency_overrides, anyio,
  test hangs, test server-sent events, test WebSocket
Related: lifespan/resources, sse/feed, websocket/rooms
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated

import httpx2
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Request, WebSocket
from fastapi.sse import EventSourceResponse
from fastapi.testclient import TestClient
from starlette.types import Receive, Scope, Send


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, object]]:  # demo: your app
    yield {"ordered": asyncio.Event(), "log": deque(maxlen=10)}


async def price() -> float:  # demo: asks another service
    return 9.99


Price = Annotated[float, Depends(price)]
app = FastAPI(lifespan=lifespan)


@app.post("/orders", status_code=201)
async def order(request: Request, tasks: BackgroundTasks, price: Price) -> None:  # demo
    request.state.ordered.set()
    tasks.add_task(request.state.log.append, f"mailed: you owe {price}")


@app.get("/ordered")
async def ordered(request: Request) -> bool:  # demo: waits for an order
    with suppress(TimeoutError):
        await asyncio.wait_for(request.state.ordered.wait(), 2)
    return bool(request.state.ordered.is_set())


@app.get("/ticks", response_class=EventSourceResponse)
async def ticks(request: Request) -> AsyncIterable[str]:  # demo: endless
    try:
        while True:
            yield "tick"
            await asyncio.sleep(0.1)
    finally:
        request.state.log.append("reader left")


@app.websocket("/echo")
async def echo(websocket: WebSocket) -> None:  # demo
    await websocket.accept()
    await websocket.send_text(await websocket.receive_text())


@pytest.fixture
def client() -> Iterator[TestClient]:
    with TestClient(app) as client:  # `with`: a lifespan of its own for each test
        yield client
    app.dependency_overrides.clear()


def test_override_and_background_task(client: TestClient) -> None:
    app.dependency_overrides[price] = lambda: 5
    assert client.post("/orders").status_code == 201
    assert list(client.app_state["log"]) == ["mailed: you owe 5"]


def test_stream(client: TestClient) -> None:
    with client.stream("GET", "/ticks") as response:
        assert next(response.iter_lines()) == 'data: "tick"'
    assert list(client.app_state["log"]) == ["reader left"]  # it was cancelled


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
        await app({**scope, "state": dict(state)}, receive, send)

    transport = httpx2.ASGITransport(with_state)
    http = httpx2.AsyncClient(transport=transport, base_url="http://app")
    async with lifespan(app) as state, http, asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(http.get("/ordered"))
        await http.post("/orders")
    assert waiting.result().json() is True


# --- evidence ---
def main() -> None:
    import os
    import subprocess
    import sys

    options = ["-q", "-c", os.devnull, "-p", "no:cacheprovider", __file__]
    command = [sys.executable, "-m", "pytest", *options]
    output = subprocess.check_output(command, text=True, timeout=50)  # noqa: S603
    print(output.splitlines()[-1].partition(" in ")[0])
    # > 4 passed


if __name__ == "__main__":
    main()
