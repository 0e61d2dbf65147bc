# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165"]
# ///
"""Resume a live feed after a dropped connection.

The feed keeps its last events in a ring. Each reader holds only a position in
it, so a reader that stalls costs no memory. A browser's `EventSource` sends
`Last-Event-ID` when it reconnects; the stream goes on after that event. Where it
cannot (too long away, or the server restarted), it says `reset`.

**Use when** a page shows live updates and must neither lose nor repeat one when
the train enters a tunnel. **Not when** the client also talks (take a WebSocket),
or when there are several workers: this feed lives in one process.

Gotchas:

- The status line leaves before the generator starts: reject in a dependency. An
  `HTTPException` raised in the generator is an empty 200.
- `ServerSentEvent(data="x")` sends JSON, `data: "x"`; `raw_data` sends text.
- Start uvicorn with `--timeout-graceful-shutdown 5`. Without it an open stream
  keeps the process alive for ever: "Waiting for connections to close."
- On `reset`, load the current state again: its events are gone. A page that
  renders a state passes the id that belongs to it as `?after=`.
- Over HTTP/1.1 a browser opens six connections per host: the seventh tab hangs.
- Not covered: who may publish or read, and events that outlive the process.

Try it:

    SSE /feed
    POST /events {"message": "hello"}  # 201

Keywords: server-sent events, EventSource, reconnect, live updates, push
Related: websocket/rooms, lifespan/resources
"""

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Body, Depends, FastAPI, Header, Query, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

HISTORY = 1000  # events kept for readers who come back
MAX_MESSAGE = 4000  # characters: bounds the ring at a few megabytes


class Feed:
    """The last `HISTORY` messages, numbered from 1, and a bell for who waits."""

    def __init__(self) -> None:
        self._run = secrets.token_hex(4)  # ids of an earlier process are not ours
        self._last = 0
        self._ring: deque[str] = deque(maxlen=HISTORY)
        self._bell = asyncio.Event()

    def publish(self, message: str) -> str:
        self._last += 1
        self._ring.append(message)
        self._bell.set()
        self._bell = asyncio.Event()
        return self._id(self._last)

    def position(self, event_id: str | None) -> int:
        if event_id is None:
            return self._last
        run, _, number = event_id.partition("-")
        ours = run == self._run and number.isdecimal() and len(number) < 16
        return int(number) if ours else -1

    async def after(self, seen: int) -> AsyncIterable[ServerSentEvent]:
        while True:
            bell = self._bell
            forgotten = self._last - len(self._ring)
            if not forgotten <= seen <= self._last:
                seen = self._last
                yield ServerSentEvent(event="reset", data=None, id=self._id(seen))
            elif seen < self._last:
                message = self._ring[seen - forgotten]
                seen += 1
                yield ServerSentEvent(data=message, id=self._id(seen))
            else:
                await bell.wait()

    def _id(self, number: int) -> str:
        return f"{self._run}-{number}"


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Feed]]:
    yield {"feed": Feed()}


async def get_feed(request: Request) -> Feed:
    feed: Feed = request.state.feed
    return feed


FeedDep = Annotated[Feed, Depends(get_feed)]
app = FastAPI(lifespan=lifespan, max_body_size=64 * 1024)


@app.post("/events", status_code=201)
async def publish(
    feed: FeedDep, message: Annotated[str, Body(embed=True, max_length=MAX_MESSAGE)]
) -> str:
    return feed.publish(message)


async def missed_and_new(
    feed: FeedDep,
    after: Annotated[str | None, Query()] = None,
    last_event_id: Annotated[str | None, Header()] = None,
) -> AsyncIterable[ServerSentEvent]:
    # The position is fixed before the response starts: nothing is missed between.
    return feed.after(feed.position(last_event_id or after))


@app.get("/feed", response_class=EventSourceResponse)
async def subscribe(
    events: Annotated[AsyncIterable[ServerSentEvent], Depends(missed_and_new)],
) -> AsyncIterable[ServerSentEvent]:
    async for event in events:
        yield event


# --- evidence ---
def main() -> None:
    from fastapi.testclient import TestClient

    with TestClient(app) as client:
        messages = [{"message": text} for text in ("one", "two", "three")]
        first, *_ = [client.post("/events", json=m).json() for m in messages]
        for last_event_id in (first, "0badcafe-7"):
            headers = {"Last-Event-ID": last_event_id}
            with client.stream("GET", "/feed", headers=headers) as stream:
                print(next(stream.iter_lines()))
                # > data: "two"
                # > event: reset


if __name__ == "__main__":
    main()
