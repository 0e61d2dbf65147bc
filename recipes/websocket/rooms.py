# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165"]
# ///
"""Broadcast to a room without waiting for stalled or dead clients.

A broadcast never waits: it puts the message into a bounded backlog per member. A
writer task per member sends from its backlog to its socket. A member whose backlog
overflows is dropped with close code 1013, and the room goes on.

**Use when** clients talk to each other: chat, presence, cursors. **Not when** they only
listen (`sse/feed` also resumes), or with several workers: rooms live in one process.

Gotchas:

- `send_text` and `close` wait forever for a peer that does not read; uvicorn's ping
  does not end that. For a dead peer `send_text` raises `WebSocketDisconnect`; in a
  broadcast loop the sender's handler takes it for its own client's.
- Call `broadcast` in `async def` only: from a thread its message waits in the backlog.
- Start uvicorn with `--ws-max-size 65536 --timeout-graceful-shutdown 5`. By default it
  buffers up to 16 MiB of a message before you can refuse it, and at SIGTERM it waits
  for a dropped peer that does not read: "Waiting for connections to close."
- A dropped client has missed messages. It reconnects, then reloads the state.
- Not covered: who may join, as whom, and from which Origin.

Try it:

    WS /rooms/lobby hello

Keywords: chat, broadcast, ConnectionManager, slow consumer, backpressure, 1013
Related: sse/feed, lifespan/resources
"""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated

import anyio
from fastapi import FastAPI, Path, WebSocket, WebSocketDisconnect

MAX_ROOMS = 100
MAX_MEMBERS = 50  # per room
BACKLOG = 4 * MAX_MEMBERS  # all may join, talk and leave before a writer runs
MAX_MESSAGE = 4000  # characters; a room's backlogs share one copy of each
PACE = 0.005  # seconds between reads of a member: a flood stays in its own socket
CLOSE_SECONDS = 5
GONE = WebSocketDisconnect, RuntimeError  # RuntimeError: a ping went unanswered


class Member:
    def __init__(self, websocket: WebSocket) -> None:
        self.id = secrets.token_hex(4)
        self.scope = anyio.CancelScope()  # cancel it to drop this member
        self.backlog: asyncio.Queue[str] = asyncio.Queue(BACKLOG)
        self._websocket = websocket

    async def write(self) -> None:
        with suppress(*GONE):
            while True:
                await self._websocket.send_text(await self.backlog.get())
        self.scope.cancel()

    async def read(self, room: set["Member"]) -> None:
        while (event := await self._websocket.receive())["type"] == "websocket.receive":
            text = event.get("text") or ""  # `receive_text`: KeyError if binary
            if 0 < len(text) <= MAX_MESSAGE:
                broadcast(room, type="message", member=self.id, text=text)
            else:
                broadcast({self}, type="refused", limit=MAX_MESSAGE)
            await asyncio.sleep(PACE)


def broadcast(room: set[Member], **event: str | int) -> None:
    text = json.dumps(event)
    for member in room:  # no await: nobody comes or goes meanwhile
        try:
            member.backlog.put_nowait(text)
        except asyncio.QueueFull:
            member.scope.cancel()  # its writer may be stuck in a send


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, dict[str, set[Member]]]]:
    yield {"rooms": {}}


app = FastAPI(lifespan=lifespan)
RoomName = Annotated[str, Path(pattern="^[a-z0-9-]{1,40}$")]


@app.websocket("/rooms/{name}")
async def take_part(websocket: WebSocket, name: RoomName) -> None:
    rooms: dict[str, set[Member]] = websocket.state.rooms
    await websocket.accept()  # first: without it a browser cannot see why we refuse
    room = rooms.get(name, set())
    if len(room) >= MAX_MEMBERS or (not room and len(rooms) >= MAX_ROOMS):
        await hang_up(websocket, "full")
        return
    member = Member(websocket)
    room.add(member)
    rooms[name] = room
    try:
        broadcast(room, type="joined", member=member.id, members=len(room))
        with member.scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(member.write)
                await member.read(room)
                tasks.cancel_scope.cancel()
    finally:
        room.remove(member)
        broadcast(room, type="left", member=member.id, members=len(room))
        if not room:
            del rooms[name]
    if member.scope.cancelled_caught:
        await hang_up(websocket, "too slow")


async def hang_up(websocket: WebSocket, reason: str) -> None:
    with suppress(*GONE), anyio.move_on_after(CLOSE_SECONDS):
        await websocket.close(1013, reason)


# --- evidence ---
def main() -> None:
    import socket
    from threading import Thread

    import uvicorn
    from websockets.sync.client import connect

    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # soon full
    url = f"ws://127.0.0.1:{listener.getsockname()[1]}/rooms/lobby"
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = Thread(target=server.run, args=([listener],))
    thread.start()
    with connect(url, compression=None, close_timeout=0), connect(url) as ann:
        while (event := json.loads(ann.recv()))["type"] != "left":
            ann.send("x" * MAX_MESSAGE)  # the other one never reads
        print("members:", event["members"])
        # > members: 1
    server.should_exit = True
    thread.join()


if __name__ == "__main__":
    main()
