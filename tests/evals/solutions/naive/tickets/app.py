# mypy: ignore-errors
"""Accepts first, then looks at a ticket that stays valid."""

import os
import time
import uuid

from fastapi import FastAPI, Header, HTTPException, WebSocket, WebSocketDisconnect

app = FastAPI()
TOKENS = {
    token: user
    for user, token in (pair.split(":") for pair in os.environ["API_TOKENS"].split(","))
}
TICKET_SECONDS = int(os.environ.get("TICKET_SECONDS", 30))
SESSION_SECONDS = int(os.environ.get("SESSION_SECONDS", 3600))
tickets = {}
connections = []


def get_user(authorization):
    token = (authorization or "").removeprefix("Bearer ")
    if token not in TOKENS:
        raise HTTPException(401, "Invalid token")
    return TOKENS[token]


@app.post("/tickets", status_code=201)
async def create_ticket(authorization: str = Header(None)):
    ticket = str(uuid.uuid4())
    tickets[ticket] = (get_user(authorization), time.time() + TICKET_SECONDS)
    return {"ticket": ticket}


@app.delete("/sessions", status_code=204)
async def delete_sessions(authorization: str = Header(None)):
    user = get_user(authorization)
    for owner, websocket in connections:
        if owner == user:
            await websocket.close(code=4401)


@app.websocket("/live")
async def live(websocket: WebSocket, ticket: str = ""):
    await websocket.accept()
    user, expires = tickets.get(ticket, (None, 0))
    if user is None or expires < time.time():
        await websocket.close(code=1008)
        return
    connections.append((user, websocket))
    started = time.time()
    await websocket.send_json({"user": user})
    try:
        while True:
            text = await websocket.receive_text()
            if time.time() - started > SESSION_SECONDS:
                await websocket.close(code=4401)
                break
            await websocket.send_json({"user": user, "echo": text})
    except WebSocketDisconnect:
        pass
    finally:
        connections.remove((user, websocket))
