"""The lifespan of lifespan/graceful_shutdown around endpoints that hold up a stop."""

import asyncio
from collections.abc import AsyncIterator

import anyio
from fastapi import BackgroundTasks, FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse

from recipes.lifespan import graceful_shutdown

graceful_shutdown.DRAIN_SECONDS = 0.2
graceful_shutdown.STOP_SECONDS = 1
app = FastAPI(lifespan=graceful_shutdown.lifespan)
app.add_api_route("/ready", graceful_shutdown.ready)


@app.get("/flood", response_class=StreamingResponse)
async def flood(request: Request) -> AsyncIterator[bytes]:
    """Begins with more than the buffers of a client hold that does not read."""
    stopping: asyncio.Event = request.state.stopping
    try:
        yield bytes(50_000_000)
        yield b"waits for a client that reads"
        await stopping.wait()
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(1)
        print("cleaned up", flush=True)  # noqa: T201 - the test reads it


@app.get("/background")
async def background(tasks: BackgroundTasks) -> None:
    tasks.add_task(asyncio.Event().wait)


@app.websocket("/listens")
async def listens(websocket: WebSocket) -> None:
    await websocket.accept()
    async for _ in websocket.iter_text():
        pass


@app.websocket("/waits")
async def waits(websocket: WebSocket) -> None:
    await websocket.accept()
    await asyncio.Event().wait()
