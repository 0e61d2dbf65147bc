"""One socket that is stalled or dead stops the room, cuts the sender, or stays forever."""

from collections import defaultdict

from fastapi import FastAPI, WebSocket, WebSocketDisconnect


class ConnectionManager:
    def __init__(self):
        self.connections = defaultdict(list)

    async def connect(self, room: str, websocket: WebSocket):
        await websocket.accept()
        self.connections[room].append(websocket)

    def disconnect(self, room: str, websocket: WebSocket):
        self.connections[room].remove(websocket)

    async def broadcast(self, room: str, **event: str):
        for connection in self.connections[room]:
            await connection.send_json(event)


app = FastAPI()
manager = ConnectionManager()


@app.websocket("/rooms/{room}")
async def take_part(websocket: WebSocket, room: str):
    await manager.connect(room, websocket)
    await manager.broadcast(room, type="joined")
    try:
        while True:
            text = await websocket.receive_text()
            await manager.broadcast(room, type="message", text=text)
    except WebSocketDisconnect:
        manager.disconnect(room, websocket)
        await manager.broadcast(room, type="left")
