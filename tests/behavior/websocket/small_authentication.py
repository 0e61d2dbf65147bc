"""websocket/authentication that checks often, and whose store can fail."""

import asyncio

from fastapi import Depends, HTTPException, Request, WebSocket

from recipes.websocket import authentication

authentication.RECHECK_SECONDS = 0.05
authentication.CLOSE_SECONDS = 1
FIND_USER, TALK = authentication.find_user, authentication.talk
broken = False


async def find_user(sessions: dict[str, str], token: str) -> str | None:
    if broken:
        raise ConnectionError("no store")
    return await FIND_USER(sessions, token)


async def talk(websocket: WebSocket, user: str) -> None:
    if user == "brief":
        await websocket.send_text(await websocket.receive_text())
    elif user == "hangs":
        await asyncio.Event().wait()
    else:
        await TALK(websocket, user)


authentication.find_user = find_user
authentication.talk = talk
app = authentication.app


@app.post("/expire")
async def expire(request: Request) -> None:
    """As a store does when the time of its sessions has come."""
    request.state.sessions.clear()


@app.post("/break")
async def break_store() -> None:
    global broken  # noqa: PLW0603 - one process for each test
    broken = True


async def refuse() -> None:
    raise HTTPException(401)


@app.websocket("/refused", dependencies=[Depends(refuse)])
async def never(_: WebSocket) -> None: ...
