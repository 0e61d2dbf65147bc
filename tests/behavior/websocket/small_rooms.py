"""websocket/rooms with limits that few messages reach, and routes that broadcast."""

from typing import Annotated

import anyio.from_thread
from fastapi import APIRouter, Depends, FastAPI, Header, Request
from fastapi.exceptions import WebSocketException

from recipes.websocket import rooms

MAX_ROOMS = rooms.MAX_ROOMS = 5
MAX_MEMBERS = rooms.MAX_MEMBERS = 10
BACKLOG = rooms.BACKLOG = 4 * MAX_MEMBERS
MAX_MESSAGE = rooms.MAX_MESSAGE = 16_000
EVENT: dict[str, object] = {"type": "saved", "by": {"name": "Ann"}}


async def login(user: Annotated[str | None, Header()] = None) -> None:
    if user is None:
        raise WebSocketException(1008)


protected = APIRouter(prefix="/protected", dependencies=[Depends(login)])
protected.add_api_websocket_route("/{name}", rooms.join)

app = FastAPI(lifespan=rooms.lifespan)
app.include_router(rooms.app.router)
app.include_router(protected)


def members(request: Request) -> set[rooms.Member]:
    found: set[rooms.Member] = request.state.rooms.get("lobby", set())
    return found


@app.post("/async-def")
async def in_the_loop(request: Request) -> None:
    rooms.broadcast(members(request), EVENT)


@app.post("/def")
def in_a_thread(request: Request) -> None:
    anyio.from_thread.run_sync(rooms.broadcast, members(request), EVENT)
