# mypy: ignore-errors
"""The connection manager of the tutorials: sends to one member after the other."""

from fastapi import FastAPI, WebSocket, WebSocketDisconnect

app = FastAPI()


class ConnectionManager:
    def __init__(self):
        self.rooms = {}

    async def connect(self, room, name, websocket):
        await websocket.accept()
        self.rooms.setdefault(room, []).append((name, websocket))

    def disconnect(self, room, name, websocket):
        self.rooms[room].remove((name, websocket))

    async def broadcast(self, room, message):
        for _, connection in self.rooms[room]:
            await connection.send_json(message)


manager = ConnectionManager()


@app.websocket("/rooms/{room}")
async def chat(websocket: WebSocket, room: str, name: str):
    await manager.connect(room, name, websocket)
    try:
        while True:
            data = await websocket.receive_json()
            text = data.get("text")
            if not isinstance(text, str) or not 1 <= len(text) <= 4000:
                await websocket.send_json({"error": "invalid message"})
                continue
            await manager.broadcast(room, {"from": name, "text": text})
    except WebSocketDisconnect:
        manager.disconnect(room, name, websocket)


@app.get("/rooms/{room}")
async def get_members(room: str):
    return {"members": sorted(name for name, _ in manager.rooms.get(room, []))}
