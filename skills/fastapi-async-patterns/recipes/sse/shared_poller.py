# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165"]
# ///
"""Poll a backend once for all readers of a stream.

One task polls and keeps the newest state. When it changes, each reader is woken and
sends the newest state; a slow reader skips those in between. While the backend fails
or hangs, readers hear `stale`, their streams stay open and polling goes on.

**Use when** many browsers watch something that only polling can tell: prices, a queue,
a score. **Not when** each event counts: use sse/feed.

Gotchas:

- Each worker polls, also without readers: a reader hears the newest state at once. It
  hears it again after a reconnect, also to another worker: events need no id.
- `asyncio.timeout` does not stop a blocking client: use `asyncio.to_thread` and the
  client's own timeout.
- Start uvicorn with `--timeout-graceful-shutdown 5`: an open stream keeps it alive.
- Not covered: who may read (`EventSource` sends cookies but no `Authorization` header).

Try it:

    SSE /prices

Keywords: polling, server-sent events, EventSource, fan-out, dashboard, live updates
Related: sse/feed, caching/single_flight, websocket/rooms
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager

import anyio
from fastapi import Depends, FastAPI, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

INTERVAL = 1.0  # seconds between polls
POLL_TIMEOUT = 5.0
STALE = ServerSentEvent(event="stale", data={})  # browsers ignore one without data


class Poller:
    """The newest state, and a bell for those who wait for the next one."""

    def __init__(self) -> None:
        self._newest = STALE
        self._bell = asyncio.Event()

    async def poll(self) -> None:
        try:
            async with asyncio.timeout(POLL_TIMEOUT):
                prices = await fetch_prices()  # demo: your backend
            text = json.dumps(prices, sort_keys=True, allow_nan=False)
            newest = ServerSentEvent(raw_data=text)
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if task and task.cancelling():
                raise  # the app stops; else it was only a call of the backend
            logging.getLogger(__name__).warning("poll: %r", error)
            newest = STALE
        if newest != self._newest:
            self._newest = newest
            self._bell.set()  # wakes all readers
            self._bell = asyncio.Event()  # for the next change

    async def run(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL)
            await self.poll()

    async def states(self) -> AsyncIterable[ServerSentEvent]:
        while True:
            bell = self._bell  # rings if there is a newer one by the time this is sent
            yield self._newest
            await bell.wait()


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Poller]]:
    poller = Poller()
    await poller.poll()
    task = asyncio.create_task(poller.run())
    try:
        yield {"poller": poller}
    finally:
        task.cancel()
        await asyncio.wait([task])


app = FastAPI(lifespan=lifespan)


async def quietly() -> AsyncIterator[None]:
    try:
        yield
    except* anyio.BrokenResourceError:
        pass  # FastAPI 0.165 logs a traceback if a reader leaves while an event is sent


@app.get("/prices", response_class=EventSourceResponse, dependencies=[Depends(quietly)])
async def prices(request: Request) -> AsyncIterable[ServerSentEvent]:
    poller: Poller = request.state.poller
    async for state in poller.states():  # a returned generator is not encoded
        yield state


async def fetch_prices() -> dict[str, int]:  # demo
    return {"tea": 450 + time.time_ns() // 10**10 % 10}


# --- evidence ---
def main() -> None:
    from unittest.mock import AsyncMock, patch

    from fastapi.testclient import TestClient

    polls = {"tea": 450}, ConnectionError(), {"tea": 450}, {"tea": 450}, {"tea": 455}
    fetch = AsyncMock(side_effect=polls)
    quick = patch.dict(globals(), INTERVAL=0.3, fetch_prices=fetch)
    with quick, TestClient(app) as client, client.stream("GET", "/prices") as stream:
        for line in stream.iter_lines():
            if line.startswith(("event: ", "data: ")):
                print(line)
                # > data: {"tea": 450}
                # > event: stale
                # > data: {}
                # > data: {"tea": 450}
                # > data: {"tea": 455}
            if "455" in line:
                break


if __name__ == "__main__":
    main()
