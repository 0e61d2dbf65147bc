# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165", "pytest>=9.0"]
# ///
# ruff: noqa: S101 - tests assert
"""Test streams, lifespans, WebSockets and overrides.

`TestClient` suits most tests: it runs the lifespan, reads endless streams and speaks
WebSocket. Use an async client if test and app must share an event loop, and a server
in a thread to test what a disconnect does.

**Use when** an app streams or has a lifespan. **Not when** a function needs no HTTP.

Gotchas:

- `TestClient(app)` without `with` runs no lifespan: an app that cannot start passes,
  or you see "'State' object has no attribute 'log'".
- If you leave a stream, `TestClient` cancels the dependencies too. A server does not:
  they continue after `yield`, so they commit, and background tasks run.
- `ASGITransport` runs no lifespan, and an endless stream never returns.
- Without `monkeypatch` an override stays for all later tests, in all files.
- For SIGTERM, start `uvicorn --fd` in a subprocess, with the listener in `pass_fds`.
- "async def functions are not natively supported": mark them with `pytest.mark.anyio`.

Try it:

    GET /row
    SSE /rows
    WS /echo hello

Keywords: pytest, TestClient, AsyncClient, ASGITransport, dependency_overrides, anyio,
  test hangs, uvicorn in a thread, live server, test client disconnect, test WebSocket
Related: lifespan/resources, lifespan/graceful_shutdown, sse/feed, websocket/rooms
"""

import asyncio
import socket
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from queue import SimpleQueue
from threading import Thread
from typing import Annotated

import httpx2
import pytest
import uvicorn
from fastapi import Depends, FastAPI, Request, WebSocket
from fastapi.sse import EventSourceResponse
from fastapi.testclient import TestClient


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, SimpleQueue[str]]]:
    yield {"log": SimpleQueue()}  # demo: your app


async def transaction(request: Request) -> AsyncIterator[str]:  # demo: of a database
    yield "a row"
    request.state.log.put("COMMIT")


Row = Annotated[str, Depends(transaction)]
app = FastAPI(lifespan=lifespan)


@app.get("/row")
async def get_row(row: Row) -> str:  # demo
    return row


@app.get("/rows", response_class=EventSourceResponse)
async def stream_rows(row: Row) -> AsyncIterable[str]:  # demo: endless
    while True:
        yield row
        await asyncio.sleep(0.1)


@app.websocket("/echo")
async def echo(websocket: WebSocket) -> None:  # demo
    await websocket.accept()
    await websocket.send_text(await websocket.receive_text())


@pytest.fixture
def client() -> Iterator[TestClient]:
    with TestClient(app) as client:  # `with`: a lifespan of its own for each test
        yield client


def test_stream(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(app.dependency_overrides, transaction, lambda: "a fake")
    with client.stream("GET", "/rows") as response:
        assert next(response.iter_lines()) == 'data: "a fake"'


def test_websocket(client: TestClient) -> None:
    with client.websocket_connect("/echo") as websocket:
        websocket.send_text("hello")
        assert websocket.receive_text() == "hello"


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # not trio
async def test_in_the_event_loop_of_the_app() -> None:
    async with lifespan(app) as state:
        transport = httpx2.ASGITransport(
            lambda scope, *rest: app({**scope, "state": {**state}}, *rest)
        )
        async with httpx2.AsyncClient(transport=transport) as http:
            assert (await http.get("http://app/row")).json() == "a row"
        assert state["log"].get_nowait() == "COMMIT"


@pytest.fixture
def server() -> Iterator[uvicorn.Server]:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # 0: a free port
        config = uvicorn.Config(app, port=listener.getsockname()[1], log_config=None)
        config.timeout_graceful_shutdown = 5  # an endpoint may hang
        server = uvicorn.Server(config)
        thread = Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            thread.join(0.01)
            assert thread.is_alive(), "the app cannot start"
        yield server
        server.should_exit = True
        thread.join()


def test_disconnect(server: uvicorn.Server) -> None:
    with httpx2.stream("GET", f"http://127.0.0.1:{server.config.port}/rows") as answer:
        assert next(answer.iter_lines()) == 'data: "a row"'
    assert server.lifespan.state["log"].get(timeout=5) == "COMMIT"


# --- evidence ---
def main() -> None:
    import os
    import subprocess
    import sys

    options = ["-q", "-c", os.devnull, "-p", "no:cacheprovider", __file__]
    command = [sys.executable, "-B", "-m", "pytest", *options]  # it leaves no files
    output = subprocess.check_output(command, text=True, timeout=50)  # noqa: S603
    print(output.splitlines()[-1].partition(" in ")[0])
    # > 4 passed


if __name__ == "__main__":
    main()
