# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165"]
# ///
"""Stop the work for a client that has left.

A handler is not cancelled when its client disconnects: it runs to its end for nobody.
`while_connected` waits for the disconnect beside the work and then cancels the work,
once, so that cleanup runs. What must be finished, such as a payment, stands behind the
block.

**Use when** the work costs money or a scarce slot: a model, a report, a large query.
**Not when** the response is a stream: FastAPI cancels its generator itself.

Gotchas:

- Do not poll `await request.is_disconnected()`: `await request.receive()` returns
  `{"type": "http.disconnect"}` when it happens. It reads the body too: open the block
  after the body has been read, and one block at a time.
- Cancelling ends an `await`, not a thread: `def` routes and `to_thread` go on.
- Once the client has left, uvicorn sends and logs nothing. The 499 is for middleware,
  metrics and dependencies; nginx uses the same number.
- A client that closes only its sending side counts as gone. One that vanishes without a
  word, or whose proxy keeps the connection, does not. Of pipelined requests uvicorn
  0.54 tells only the last. So limit the work too: routes/deadline.
- What stands behind the block is still cancelled by `--timeout-graceful-shutdown`.

Try it:

    POST /answers {"prompt": "Why is the sky blue?"}
    GET /usage

Keywords: client closed request, 499, is_disconnected, abort, http.disconnect,
  cancel on disconnect, AbortController
Related: routes/deadline, sse/feed, concurrency/first_success
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Body, FastAPI, HTTPException, Request

logger = logging.getLogger(__name__)


@asynccontextmanager
async def while_connected(request: Request) -> AsyncIterator[None]:
    """Cancel the block when the client disconnects."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass  # a body that nobody reads
        block.reschedule(0)  # in the past: cancels the block now

    try:
        async with asyncio.timeout(None) as block:
            watcher = asyncio.create_task(watch())
            try:
                yield
            finally:
                watcher.cancel()
                await asyncio.wait([watcher])
    except TimeoutError:
        if not block.expired():
            raise  # from the block itself
    if block.expired():  # also if the work has caught its cancellation
        logger.info("499 %r: the client has left", request.url.path)
        raise HTTPException(499, "Client closed request")


class Model:  # demo: your model, report or query
    def __init__(self) -> None:
        self.usage = {"started": 0, "cancelled": 0, "charged": 0}

    async def answer(self, prompt: str) -> str:
        self.usage["started"] += 1
        try:
            await asyncio.sleep(60 if prompt == "slow" else 0)
        except asyncio.CancelledError:
            self.usage["cancelled"] += 1
            raise
        return "Because."

    async def charge(self) -> None:
        self.usage["charged"] += 1


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Model]]:
    yield {"model": Model()}


app = FastAPI(lifespan=lifespan)
Prompt = Annotated[str, Body(embed=True, max_length=4000)]


@app.post("/answers", max_body_size=64 * 1024)
async def answer(request: Request, prompt: Prompt) -> str:
    model: Model = request.state.model
    async with while_connected(request):
        text = await model.answer(prompt)
    await model.charge()  # the work was done: finished even if the client leaves now
    return text


@app.get("/usage")
async def usage(request: Request) -> dict[str, int]:
    model: Model = request.state.model
    return model.usage


# --- evidence ---
async def leave() -> dict[str, int]:
    """What is used when the server reports a request, then the disconnect."""
    from unittest.mock import AsyncMock

    body = {"type": "http.request", "body": b'{"prompt": "slow"}'}
    receive = AsyncMock(side_effect=[body, {"type": "http.disconnect"}])
    scope = {"type": "http", "method": "POST", "path": "/answers", "query_string": b""}
    headers = [(b"content-type", b"application/json")]
    state = {"model": Model()}
    await app(scope | {"headers": headers, "state": state}, receive, AsyncMock())
    return state["model"].usage


def main() -> None:
    from fastapi.testclient import TestClient

    with TestClient(app) as client:
        client.post("/answers", json={"prompt": "Why?"})
        print(client.get("/usage").json())
        # > {'started': 1, 'cancelled': 0, 'charged': 1}
    print(asyncio.run(leave()))
    # > {'started': 1, 'cancelled': 1, 'charged': 0}


if __name__ == "__main__":
    main()
