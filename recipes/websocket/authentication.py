# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165"]
# ///
"""Authenticate a WebSocket that a browser opens.

A page cannot set headers on a WebSocket, but the browser sends its cookies and the
page's `Origin`. A dependency checks both before the socket is accepted: a stranger, or
a page from another host, gets 403. While the socket is open, its session is looked up
every few seconds. When it has ended, the socket is closed with code 4401.

**Use when** a page of your own site opens the socket. **Not when** it is on another
site, where browsers block cookies: let it `POST` for a ticket, a random key of a dict
with user and expiry. `tickets.pop(ticket, None)` in the dependency makes it valid once.

Gotchas:

- Without the check of `Origin` any page can open a socket as its visitor:
  `CORSMiddleware` ignores WebSockets, and `SameSite` lets your subdomains through. Set
  the cookie without `domain`: an attacker's host name that points at your server (DNS
  rebinding) passes the check, but has no cookie.
- Behind a proxy that replaces `Host` each page gets 403: let it pass the browser's
  (nginx: `proxy_set_header Host $http_host`), or list the origins, also those of pages
  on other hosts: `ours = {None, "https://your.site"}`.
- Refuse with `WebSocketException`. `HTTPException` makes uvicorn 0.54 log an error,
  "ASGI callable returned without completing handshake."; after `close()` it is a
  RuntimeError, "Unexpected ASGI message 'websocket.http.response.start'".
- A page sees only close code 1006, as when the network fails. Let it `fetch` a route
  that needs the session before it connects again.
- uvicorn logs the URL of a socket, so put no token in it. With `--log-level debug` it
  logs the cookies, too.
- Not covered: the login, how many sockets, bad messages (websocket/typed_messages). A
  lookup that fails closes the socket (1006).

Try it:

    POST /login?user=ada
    WS /chat hello
    POST /logout  # 204, and an open socket is closed within 2 seconds

Keywords: WebSocket token, cookie, Origin, CSWSH, hijacking, 403, 4401, logout, expiry
Related: websocket/typed_messages, websocket/rooms
"""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated

import anyio
from fastapi import Cookie, Depends, FastAPI, Request, Response
from fastapi.exceptions import WebSocketException
from fastapi.websockets import WebSocket, WebSocketDisconnect

RECHECK_SECONDS = 2.0  # so late an ended session is noticed
CLOSE_SECONDS = 5.0  # for a peer that does not read

DISCONNECTED = WebSocketDisconnect, RuntimeError  # RuntimeError: no answer to a ping
Token = Annotated[str, Cookie(alias="chat_session")]


async def find_user(sessions: dict[str, str], token: str) -> str | None:
    return sessions.get(token)  # demo: ask your session store; None: it has ended


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, dict[str, str]]]:
    yield {"sessions": {}}


app = FastAPI(lifespan=lifespan)


async def logged_in(websocket: WebSocket, token: Token = "") -> str:
    host = websocket.headers.get("host")
    ours = {None, f"https://{host}", f"http://{host}"}  # None: it is no browser
    if websocket.headers.get("origin") not in ours:
        raise WebSocketException(1008, "this page may not connect")
    if user := await find_user(websocket.state.sessions, token):
        return user
    raise WebSocketException(1008, "log in first")


@app.websocket("/chat")
async def chat(
    websocket: WebSocket, user: Annotated[str, Depends(logged_in)], token: Token
) -> None:
    await websocket.accept()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(recheck, websocket, token, tasks.cancel_scope)
        with suppress(*DISCONNECTED):
            await talk(websocket, user)
            await websocket.close()  # 1000: it was not the session that ended
        tasks.cancel_scope.cancel()
    with suppress(*DISCONNECTED), anyio.move_on_after(CLOSE_SECONDS):
        await websocket.close(4401, "session ended")


async def recheck(websocket: WebSocket, token: str, scope: anyio.CancelScope) -> None:
    while await find_user(websocket.state.sessions, token):  # noqa: ASYNC110 - no event
        await asyncio.sleep(RECHECK_SECONDS)
    scope.cancel()


async def talk(websocket: WebSocket, user: str) -> None:  # demo: your protocol
    while (event := await websocket.receive())["type"] == "websocket.receive":
        await websocket.send_text(f"{user}: {event.get('text')}")


@app.post("/login", status_code=204)
async def login(request: Request, response: Response, user: str) -> None:  # demo
    sessions: dict[str, str] = request.state.sessions
    token = secrets.token_urlsafe()
    sessions[token] = user
    # With HTTPS, add secure=True.
    response.set_cookie("chat_session", token, httponly=True, samesite="strict")


@app.post("/logout", status_code=204)
async def logout(request: Request, token: Token = "") -> None:
    sessions: dict[str, str] = request.state.sessions
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
