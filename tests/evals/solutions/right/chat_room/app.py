"""A chat room: a bounded queue and a writer for each member."""

import asyncio
import json
from collections import defaultdict
from typing import Annotated

from fastapi import FastAPI, Query, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, Field, ValidationError

BACKLOG = 200
app = FastAPI()


class Message(BaseModel):
    text: str = Field(min_length=1, max_length=4000)


class Member:
    def __init__(self, websocket: WebSocket, name: str) -> None:
        self.websocket = websocket
        self.name = name
        self.queue: asyncio.Queue[str] = asyncio.Queue(BACKLOG)
        self.too_slow = asyncio.Event()

    def put(self, message: dict[str, str]) -> None:
        try:
            self.queue.put_nowait(json.dumps(message))
        except asyncio.QueueFull:
            self.too_slow.set()

    async def write(self) -> None:
        while True:
            await self.websocket.send_text(await self.queue.get())

    async def read(self, room: set["Member"]) -> None:
        while (event := await self.websocket.receive())["type"] == "websocket.receive":
            try:
                data = event.get("text") or event.get("bytes") or b""
                message = Message.model_validate_json(data)
            except ValidationError:
                self.put({"error": "send a JSON object with a text"})
            else:
                for member in list(room):
                    member.put({"from": self.name, "text": message.text})
            await asyncio.sleep(0)


rooms: defaultdict[str, set[Member]] = defaultdict(set)


@app.websocket("/rooms/{room}")
async def join(
    websocket: WebSocket, room: str, name: Annotated[str, Query(min_length=1)]
) -> None:
    await websocket.accept()
    member = Member(websocket, name)
    rooms[room].add(member)
    work = (member.write(), member.read(rooms[room]), member.too_slow.wait())
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        rooms[room].discard(member)
        if not rooms[room]:
            del rooms[room]
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception) and not isinstance(
                result, WebSocketDisconnect | RuntimeError
            ):
                raise result


@app.get("/rooms/{room}")
async def members(room: str) -> dict[str, list[str]]:
    return {"members": sorted(member.name for member in rooms.get(room, set()))}
