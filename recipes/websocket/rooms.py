# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165"]
# ///
"""Broadcast to a room in which a stalled client harms nobody.

Sending to a room only puts the message into a bounded backlog per member, without
waiting. Each member has a writer task that empties its backlog into its own
socket. A member whose backlog is full is dropped with close code 1013.

**Use when** clients talk to each other: chat, presence, shared cursors. **Not when**
they only listen (`sse/feed` also resumes), or when there are several workers:
these rooms live in one process.

Gotchas:

- X

Try it:

    WS /rooms/lobby hello

Keywords: chat, broadcast, ConnectionManager, slow consumer, backpressure
Related: sse/feed, lifespan/resources
"""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated

import anyio
from fastapi import Depends, FastAPI, Path, WebSocket, WebSocketDisconnect

MAX_ROOMS = 100
MAX_MEMBERS = 50  # of a room
BACKLOG = 4 * MAX_MEMBERS  # they may all come, talk and leave in one turn of the loop
MAX_MESSAGE = 4000  # characters
PACE = 0.005  # seconds between two messages of a member: a flood waits in its socket
CLOSE_SECONDS = 5.0


class Member:
    """One socket. The others touch its backlog only."""

    def __init__(self, websocket: WebSocket, number: int) -> None:
        self.number = number
        self.overflow = anyio.CancelScope()
        self._websocket = websocket
        self._backlog: asyncio.Queue[str] = asyncio.Queue(BACKLOG)

    def tell(self, event: str) -> None:
        try:
            self._backlog.put_nowait(event)
        except asyncio.QueueFull:
            self.overflow.cancel()  # frees the writer from a send that never ends

    async def write(self) -> None:
        # RuntimeError: uvicorn has given up on a peer that does not answer its ping.
        with suppress(WebSocketDisconnect, RuntimeError):
            while True:
                await self._websocket.send_text(await self._backlog.get())


class Rooms:
    def __init__(self) -> None:
        self._rooms: dict[str, set[Member]] = {}

    def join(self, name: str, member: Member) -> bool:
        room = self._rooms.get(name, set())
        if len(room) >= MAX_MEMBERS or not room and len(self._rooms) >= MAX_ROOMS:
            return False
        room.add(member)
        self._rooms[name] = room
        self.publish(name, type="joined", member=member.number, members=len(room))
        return True

    def leave(self, name: str, member: Member) -> None:
        room = self._rooms.get(name, set())
        room.discard(member)
        if not room:
            self._rooms.pop(name, None)
        self.publish(name, type="left", member=member.number, members=len(room))

    def publish(self, name: str, **event: str | int) -> None:
        text = json.dumps(event)
        for member in self._rooms.get(name, ()):
            member.tell(text)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, object]]:
    yield {"rooms": Rooms(), "numbers": itertools.count(1)}


async def get_rooms(websocket: WebSocket) -> Rooms:
    rooms: Rooms = websocket.state.rooms
    return rooms


app = FastAPI(lifespan=lifespan)


@app.websocket("/rooms/{name}")
async def take_part(
    websocket: WebSocket,
    rooms: Annotated[Rooms, Depends(get_rooms)],
    name: Annotated[str, Path(pattern="^[a-z0-9-]{1,40}$")],
) -> None:
    await websocket.accept()
    member = Member(websocket, next(websocket.state.numbers))
    if not rooms.join(name, member):
        await hang_up(websocket, "full")
        return
    try:
        with member.overflow:
            async with anyio.create_task_group() as tasks:
                async def write() -> None:
                    await member.write()
                    tasks.cancel_scope.cancel()
                tasks.start_soon(write)
                while (message := await websocket.receive())["type"] != "websocket.disconnect":
                    text = message.get("text")
                    if not text or len(text) > MAX_MESSAGE:
                        member.tell(json.dumps({"type": "error", "text": f"1 to {MAX_MESSAGE} characters"}))
                    else:
                        rooms.publish(name, type="message", member=member.number, text=text)
                    await asyncio.sleep(PACE)
                tasks.cancel_scope.cancel()
    finally:
        rooms.leave(name, member)
    if member.overflow.cancelled_caught:
        await hang_up(websocket, "too slow")


async def hang_up(websocket: WebSocket, reason: str) -> None:
    # Like send, close waits for a peer that does not read.
    with anyio.move_on_after(CLOSE_SECONDS), suppress(WebSocketDisconnect, RuntimeError):
        await websocket.close(1013, reason)


# --- evidence ---
