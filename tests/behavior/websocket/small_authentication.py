"""websocket/authentication that checks often, and whose store can fail."""

import os
import time

from fastapi import Depends, HTTPException, Request, WebSocket

from recipes.websocket import authentication

authentication.RECHECK_SECONDS = 0.05
authentication.CLOSE_SECONDS = 1
authentication.MAX_SESSIONS = int(os.environ.get("MAX_SESSIONS", "1000"))
authentication.SESSION_SECONDS = float(os.environ.get("SESSION_SECONDS", "60"))
FIND = authentication.find
broken = False


async def find(
    sessions: dict[str, authentication.Session], token: str
) -> authentication.Session | None:
    if broken:
        raise ConnectionError("no store")
    return await FIND(sessions, token)


authentication.find = find
app = authentication.app


@app.post("/expire")
async def expire(request: Request) -> None:
    """As if the time of every session had come."""
    sessions: dict[str, authentication.Session] = request.state.sessions
    for token, session in sessions.items():
        sessions[token] = authentication.Session(session.user, time.time())


@app.post("/break")
async def break_store() -> None:
    global broken  # noqa: PLW0603 - one process for each test
    broken = True


async def refuse() -> None:
    raise HTTPException(401)


@app.websocket("/refused", dependencies=[Depends(refuse)])
async def never(_: WebSocket) -> None: ...
