"""Tickets for one use, and sockets with a deadline that can be moved to now."""

import asyncio
import os
import secrets
import time
from collections import defaultdict
from contextlib import suppress
from typing import Annotated

from fastapi import (
    Depends,
    FastAPI,
    Header,
    HTTPException,
    WebSocket,
    WebSocketDisconnect,
)

app = FastAPI()
tickets: dict[str, tuple[str, float]] = {}
sessions: defaultdict[str, set[asyncio.Timeout]] = defaultdict(set)


def seconds(name: str, default: float) -> float:
    return float(os.environ.get(name, default))


def user(authorization: Annotated[str, Header()] = "") -> str:
    kind, _, given = authorization.partition(" ")
    for entry in os.environ["API_TOKENS"].split(","):
        name, _, token = entry.partition(":")
        if kind == "Bearer" and secrets.compare_digest(given.encode(), token.encode()):
            return name
    raise HTTPException(401)


User = Annotated[str, Depends(user)]


@app.post("/tickets", status_code=201)
async def new_ticket(name: User) -> dict[str, str]:
    now = time.monotonic()
    for old in [key for key, (_, until) in tickets.items() if until < now]:
        del tickets[old]
    ticket = secrets.token_urlsafe(24)
    tickets[ticket] = (name, now + seconds("TICKET_SECONDS", 30))
    return {"ticket": ticket}


@app.delete("/sessions", status_code=204)
async def end_sessions(name: User) -> None:
    for session in sessions[name]:
        session.reschedule(0)


def ticket_user(
    ticket: str = "", origin: Annotated[str | None, Header()] = None
) -> str:
    if origin not in {None, os.environ["ALLOWED_ORIGIN"]}:
        raise HTTPException(403)
    name, until = tickets.pop(ticket, ("", 0.0))
    if until < time.monotonic():
        raise HTTPException(401)
    return name


@app.websocket("/live")
async def live(
    websocket: WebSocket, name: Annotated[str, Depends(ticket_user)]
) -> None:
    await websocket.accept()
    limit = asyncio.timeout(seconds("SESSION_SECONDS", 3600))
    try:
        async with limit:
            sessions[name].add(limit)
            await websocket.send_json({"user": name})
            while True:
                text = await websocket.receive_text()
                await websocket.send_json({"user": name, "echo": text})
    except TimeoutError:
        with suppress(RuntimeError):
            await websocket.close(4401)
    except (WebSocketDisconnect, KeyError):
        pass
    finally:
        sessions[name].discard(limit)
