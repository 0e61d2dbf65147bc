# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi[standard]>=0.165"]
# ///
"""Speak a validated protocol over a WebSocket.

Each request is one of a few Pydantic models, told apart by its `type`. Anything else
gets an answer of type `invalid`, and the connection stays open. Each answer repeats
the `id` of its request, so that the client knows what was answered.

**Use when** a client sends several kinds of messages: a game, an editor, a trading
screen. **Not when** each request stands alone: an HTTP route is simpler.

Gotchas:

- `receive_json` raises `JSONDecodeError` on bad JSON, and `KeyError: 'text'` on a
  binary frame, as `receive_text` does. Uncaught, either closes the socket (1006).
- uvicorn buffers 16 MiB of a message before you can refuse it: start it with
  `--ws-max-size 65536`. A longer message closes the connection (1009).
- `send_text` waits forever for a peer that does not read, so limit its time. uvicorn
  keeps the socket of that peer: a stop needs `--timeout-graceful-shutdown 10`.
- After `failed` the request may have happened all the same. So it may when SIGTERM
  closes the socket at once (1012). If the client repeats it, store the `id` of what
  must happen only once.
- Not covered: who may connect, how many, and messages that answer no request.

Try it:

    WS /orders {"type": "price", "id": "1", "item": "tea"}
    WS /orders {"type": "order", "id": "2", "item": "tea", "quantity": 0}
    WS /orders oops

Keywords: JSON protocol, discriminated union, KeyError 'text', JSONDecodeError, 1006
Related: websocket/authentication, websocket/rooms, databases/concurrent_writes
"""

import asyncio
import logging
from contextlib import suppress
from typing import Annotated, Literal

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

MAX_MESSAGE = 4000  # characters, or bytes of a binary frame
PAUSE = 0.005  # seconds after each answer: a flood stays in its sender's socket
TIME_LIMIT = 5  # seconds to find an answer, and again to send it

logger = logging.getLogger(__name__)
Text = Annotated[str, Field(max_length=40)]


class Request(BaseModel):
    id: Text  # chosen by the client


class Price(Request):
    type: Literal["price"]
    item: Text


class Order(Request):
    type: Literal["order"]
    item: Text
    quantity: Annotated[int, Field(ge=1, le=100)]


AnyRequest = Annotated[Price | Order, Field(discriminator="type")]
ANY_REQUEST: TypeAdapter[Price | Order] = TypeAdapter(AnyRequest)


class Answer(BaseModel):
    type: Literal["ok", "invalid", "failed"]
    id: str | None  # None: the request had no valid one
    result: str


async def handle(request: Price | Order) -> str:  # demo: what you do
    match request:
        case Price():
            return f"{request.item}: 3.50"
        case Order():
            return f"{request.quantity} {request.item} ordered"


async def answer(data: str | bytes) -> Answer:
    if len(data) > MAX_MESSAGE:  # before it is parsed
        return Answer(type="invalid", id=None, result="too long")
    try:
        request = ANY_REQUEST.validate_json(data)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        reason = ": ".join([*map(str, first["loc"]), first["msg"]])
        return Answer(type="invalid", id=id_of(data), result=reason)
    try:
        async with asyncio.timeout(TIME_LIMIT):
            return Answer(type="ok", id=request.id, result=await handle(request))
    except Exception:
        logger.exception("request %r", request.id)
        return Answer(type="failed", id=request.id, result="it may have happened")


def id_of(data: str | bytes) -> str | None:
    with suppress(ValidationError):
        return Request.model_validate_json(data).id
    return None


app = FastAPI()


@app.websocket("/orders")
async def orders(websocket: WebSocket) -> None:
    # The client left, did not answer a ping (RuntimeError), or did not read.
    with suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
        await websocket.accept()
        while (event := await websocket.receive())["type"] == "websocket.receive":
            reply = await answer(event.get("text") or event.get("bytes") or "")
            async with asyncio.timeout(TIME_LIMIT):
                await websocket.send_text(reply.model_dump_json())
            await asyncio.sleep(PAUSE)


# --- evidence ---
def main() -> None:
    from fastapi.testclient import TestClient

    with TestClient(app) as client, client.websocket_connect("/orders") as socket:
        order = b'{"type": "order", "id": "7", "item": "tea", "quantity": %d}'
        for message in (order % 2, order % 0, b"oops"):
            socket.send_bytes(message)
            answer = socket.receive_json()
            print(answer["type"], answer["id"])
            # > ok 7
            # > invalid 7
            # > invalid None


if __name__ == "__main__":
    main()
