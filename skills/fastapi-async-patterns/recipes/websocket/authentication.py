# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165"]
# ///
"""Authenticate a WebSocket that a browser opens.

A page cannot set headers on a WebSocket, but the browser sends its cookies and the
page's `Origin`. A dependency checks both before the socket is accepted; a stranger gets
403. While the socket is open, its session is looked up every few seconds. When it has
ended, the socket is closed with code 4401, even if the client is silent.

**Use when** a page of your own site opens the socket. **Not when** it is on another
site, where browsers block cookies: let it `POST` for a ticket that is valid once.

Gotchas:

- Without the check of `Origin` any page can open a socket as its visitor:
  `CORSMiddleware` ignores WebSockets. `SameSite` does not stop your own subdomains.
- Raise `WebSocketException` alone. `HTTPException` after `close()` is a RuntimeError,
  "Unexpected ASGI message 'websocket.http.response.start'"; on its own it makes uvicorn
  0.54 log an error, "ASGI callable returned without completing handshake."
- A page sees only close code 1006, as when the network fails. Let it `fetch` a route
  that needs the session before it connects again.
- uvicorn logs the URL of a socket, so put no token in it. With `--log-level debug` it
  logs the cookies, too.
- Not covered: the login, sockets per user, bad messages (websocket/typed_messages), a
  lookup that fails: it closes the socket (1006).

Try it:

    POST /login?user=ada
    WS /chat hello
    POST /logout  # 204, and an open socket is closed within 2 seconds

Keywords: WebSocket token, cookie, Origin, CSWSH, hijacking, 403, 4401, logout, expiry
Related: websocket/typed_messages, websocket/rooms
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Annotated

import anyio
from anyio.abc import TaskGroup
from fastapi import Cookie, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import WebSocketException
from fastapi.websockets import WebSocket, WebSocketDisconnect

ORIGINS = {None, "http://127.0.0.1:8000"}  # demo: {None, "https://your.site"}
RECHECK_SECONDS = 2.0  # so late an ended session is noticed
CLOSE_SECONDS = 5.0  # for a peer that does not read
MAX_SESSIONS, SESSION_SECONDS = 1000, 3600.0  # demo: the limits of your login

DISCONNECTED = WebSocketDisconnect, RuntimeError  # RuntimeError: no answer to a ping
Token = Annotated[str, Cookie(alias="chat_session")]
User = Annotated[str, Query(min_length=1, max_length=40)]


@dataclass(frozen=True)
class Session:
    user: str
    expires: float  # seconds since 1970


async def find(sessions: dict[str, Session], token: str) -> Session | None:
    session = sessions.get(token)  # demo: a query of your session store
    return session if session and session.expires > time.time() else None


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, dict[str, Session]]]:
    yield {"sessions": {}}


app = FastAPI(lifespan=lifespan)


async def logged_in(websocket: WebSocket, token: Token = "") -> Session:
    if websocket.headers.get("origin") not in ORIGINS:  # None: it is no browser
        raise WebSocketException(1008, "this page may not connect")
    if session := await find(websocket.state.sessions, token):
        return session
    raise WebSocketException(1008, "log in first")


@app.websocket("/chat")
async def chat(
    websocket: WebSocket, session: Annotated[Session, Depends(logged_in)], token: Token
) -> None:
    await websocket.accept()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(talk, websocket, session, tasks)
        while await find(websocket.state.sessions, token):  # noqa: ASYNC110 - no event
            await asyncio.sleep(RECHECK_SECONDS)
        tasks.cancel_scope.cancel()
    with suppress(*DISCONNECTED), anyio.move_on_after(CLOSE_SECONDS):
        await websocket.close(4401, "session ended")


async def talk(websocket: WebSocket, session: Session, tasks: TaskGroup) -> None:
    with suppress(*DISCONNECTED):
        while (event := await websocket.receive())["type"] == "websocket.receive":
            await websocket.send_text(f"{session.user}: {event.get('text')}")
    tasks.cancel_scope.cancel()


@app.post("/login", status_code=204)
async def login(request: Request, response: Response, user: User) -> None:  # demo
    sessions: dict[str, Session] = request.state.sessions
    if len(sessions) >= MAX_SESSIONS:
        del sessions[next(iter(sessions))]  # the oldest
    token = secrets.token_urlsafe()
    sessions[token] = Session(user, time.time() + SESSION_SECONDS)
    # With HTTPS, add secure=True.
    response.set_cookie("chat_session", token, httponly=True, samesite="strict")


@app.post("/logout", status_code=204)
async def logout(request: Request, token: Token = "") -> None:
    sessions: dict[str, Session] = request.state.sessions
    sessions.pop(token, None)


# --- evidence ---
def main() -> None:
    from fastapi.testclient import TestClient

    with TestClient(app) as client:
        client.post("/login?user=ada")
        with client.websocket_connect("/chat") as socket:
            socket.send_text("hello")
            print(socket.receive_text())
            # > ada: hello
            client.post("/logout")
            print(socket.receive()["code"])
            # > 4401
        try:
            client.websocket_connect("/chat").__enter__()
        except WebSocketDisconnect as refused:
            print(refused.reason)
            # > log in first


if __name__ == "__main__":
    main()
