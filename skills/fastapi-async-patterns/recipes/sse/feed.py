# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165"]
# ///
"""Stream a live feed that resumes after a dropped connection.

The feed keeps its last events in a ring. Each reader holds only a position in it,
so a slow reader costs its connection and nothing more. When a browser's
`EventSource` reconnects, it sends `Last-Event-ID`, and the stream goes on after that
event. If it cannot (away too long, or the server restarted), it sends `reset`.

**Use when** a page shows live updates and must neither lose nor repeat one when
the train enters a tunnel. **Not when** the client also talks (use a WebSocket),
or when there are several workers: this feed lives in one process.

Gotchas:

- The status is sent before the generator starts, so reject in a dependency: an
  `HTTPException` raised in the generator gives an empty 200.
- `ServerSentEvent(data="x")` sends JSON, `data: "x"`; `raw_data` sends text. Browsers
  ignore an event without data, such as a bare `event="reset"`.
- Without `--timeout-graceful-shutdown 5` open streams keep uvicorn at "Waiting for
  connections to close." To end them: lifespan/graceful_shutdown, then ring the bell.
- On `reset`, reload the current state: the events in between are gone. A page that
  starts from a state passes the id of the last event in it as `?after=`.
- Over HTTP/1.1 a browser opens six connections per host: the seventh tab hangs.
- Not covered: who may publish or read (`EventSource` sends cookies but no
  `Authorization` header); NaN in a message, see background/after_response.

Try it:

    SSE /feed
    POST /events {"message": "hello"}  # 201

Keywords: server-sent events, EventSource, reconnect, live updates, push
Related: websocket/rooms, lifespan/graceful_shutdown, lifespan/resources
"""

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import anyio
from fastapi import Body, Depends, FastAPI, Header, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

HISTORY = 1000  # events kept for readers who come back
MAX_MESSAGE = 4000  # characters: the ring stays below a few megabytes
Message = Annotated[str, Body(embed=True, max_length=MAX_MESSAGE)]


class Feed:
    """The last `HISTORY` messages, numbered from 1."""

    def __init__(self) -> None:
        self._run = secrets.token_hex(4)  # so that ids of an earlier process differ
        self._last = 0
        self._ring: deque[str] = deque(maxlen=HISTORY)
        self._bell = asyncio.Event()

    def publish(self, message: str) -> str:
        self._last += 1
        self._ring.append(message)
        self._bell.set()  # wakes all readers
        self._bell = asyncio.Event()  # for the next message
        return self._id(self._last)

    def position(self, event_id: str | None) -> int:
        """The number of the last event that a reader has seen; -1 if unknown."""
        if event_id is None:
            return self._last
        run, _, number = event_id.partition("-")
        known = run == self._run and number.isdecimal() and len(number) < 16
        return int(number) if known else -1

    async def after(self, seen: int) -> AsyncIterable[ServerSentEvent]:
        if seen == self._last:  # who drops before the first event can come back too
            yield ServerSentEvent(id=self._id(seen))
        while True:
            bell = self._bell
            forgotten = self._last - len(self._ring)
            if not forgotten <= seen <= self._last:
                seen = self._last
                yield ServerSentEvent(event="reset", data={}, id=self._id(seen))
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


app = FastAPI(lifespan=lifespan)


@app.post("/events", status_code=201, max_body_size=64 * 1024)
async def publish(request: Request, message: Message) -> str:
    feed: Feed = request.state.feed
    return feed.publish(message)


async def position(
    request: Request,
    after: str | None = None,
    last_event_id: Annotated[str | None, Header()] = None,
) -> AsyncIterator[int]:
    feed: Feed = request.state.feed
    try:
        yield feed.position(last_event_id or after)
    except* anyio.BrokenResourceError:
        pass  # FastAPI 0.165 logs a traceback if a reader leaves while an event is sent


@app.get("/feed", response_class=EventSourceResponse)
async def subscribe(
    request: Request, seen: Annotated[int, Depends(position)]
) -> AsyncIterable[ServerSentEvent]:
    feed: Feed = request.state.feed
    async for event in feed.after(seen):  # a returned generator is not encoded
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
