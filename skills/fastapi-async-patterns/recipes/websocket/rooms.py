# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165"]
# ///
"""Broadcast to a room without waiting for stalled or dead clients.

`broadcast` never waits: it puts the message into a bounded backlog per member, from
which a writer task sends. A member whose backlog overflows, or to whom one send takes
too long, leaves the room, with close code 1013 if it reads again in time.

**Use when** clients talk to each other: chat, presence, cursors. **Not when** they only
listen (`sse/feed` also resumes), or with several workers: rooms live in one process.

Gotchas:

- uvicorn keeps the socket of a dropped peer until it reads or dies: limit connections
  per client in a proxy. It waits for them at SIGTERM ("Waiting for connections to
  close.") and buffers 16 MiB of a message: `--timeout-graceful-shutdown 5
  --ws-max-size 65536`.
- From an `async def` route: `broadcast(request.state.rooms.get(name, set()), event)`.
  From a `def` route: `anyio.from_thread.run_sync(broadcast, ...)`: it wakes the loop.
- A dropped client has missed messages. It reconnects, then reloads the state.
- Not covered: `Origin`, and who may join (both: websocket/authentication).

Try it:

    WS /rooms/lobby hello

Keywords: chat, broadcast, ConnectionManager, slow consumer, backpressure, 1013
Related: websocket/authentication, sse/feed, lifespan/resources
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
MAX_MESSAGE = 4000  # characters; the backlogs of a room share one copy of each
READ_PAUSE = 0.005  # seconds: a flood stays in its sender's socket
SEND_SECONDS = 30  # a peer that does not read leaves a silent room, too
CLOSE_SECONDS = 5  # `close` waits for it as well
DISCONNECTED = WebSocketDisconnect, RuntimeError  # RuntimeError: no answer to a ping


class Member:
    def __init__(self, websocket: WebSocket) -> None:
        self.id = secrets.token_hex(4)
        self.backlog: asyncio.Queue[str] = asyncio.Queue(BACKLOG)
        self.tasks = anyio.create_task_group()  # cancelled when one of them ends
        self._websocket = websocket

    async def write(self) -> None:
        with suppress(*DISCONNECTED, TimeoutError):
            while True:
                text = await self.backlog.get()
                async with asyncio.timeout(SEND_SECONDS):
                    await self._websocket.send_text(text)
        self.tasks.cancel_scope.cancel()

    async def read(self, room: set["Member"]) -> None:
        while (event := await self._websocket.receive())["type"] == "websocket.receive":
            text = event.get("text") or ""  # `receive_text`: KeyError if binary
            if 0 < len(text) <= MAX_MESSAGE:
                broadcast(room, {"type": "message", "member": self.id, "text": text})
            else:
                broadcast({self}, {"type": "refused", "limit": MAX_MESSAGE})
            await asyncio.sleep(READ_PAUSE)
        self.tasks.cancel_scope.cancel()


def broadcast(room: set[Member], event: dict[str, object]) -> None:
    text = json.dumps(event, ensure_ascii=False)  # else 12 characters for an emoji
    for member in room:  # no await: nobody comes or goes meanwhile
        try:
            member.backlog.put_nowait(text)
        except asyncio.QueueFull:
            member.tasks.cancel_scope.cancel()  # its writer may be stuck in a send


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, dict[str, set[Member]]]]:
    yield {"rooms": {}}


app = FastAPI(lifespan=lifespan)
RoomName = Annotated[str, Path(pattern="^[a-z0-9-]{1,40}$")]


@app.websocket("/rooms/{name}")
async def join(websocket: WebSocket, name: RoomName) -> None:
    rooms: dict[str, set[Member]] = websocket.state.rooms
    await websocket.accept()  # first: without it a browser cannot see why we refuse
    room = rooms.get(name, set())
    if len(room) >= MAX_MEMBERS or (not room and len(rooms) >= MAX_ROOMS):
        await close(websocket, "full")
        return
    member = Member(websocket)
    room.add(member)
    rooms[name] = room
    try:
        broadcast(room, {"type": "joined", "member": member.id, "members": len(room)})
        async with member.tasks as tasks:
            tasks.start_soon(member.write)
            tasks.start_soon(member.read, room)
    finally:
        room.remove(member)
        broadcast(room, {"type": "left", "member": member.id, "members": len(room)})
        if not room:
            del rooms[name]
    await close(websocket, "too slow")  # does nothing if the member left


async def close(websocket: WebSocket, reason: str) -> None:
    with suppress(*DISCONNECTED), anyio.move_on_after(CLOSE_SECONDS):
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
