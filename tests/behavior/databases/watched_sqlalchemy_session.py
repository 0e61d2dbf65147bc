"""The recipe and the naive form with what a test needs to see or to break.

`/with-task` starts a task after the response, `x-stall` makes a reader stall, `/break`
lets new connections to the database fail, and `/elsewhere` times out without one.
"""

import asyncio
import logging
import os
import socket
from typing import Any

import asyncpg
from fastapi import BackgroundTasks, Depends, FastAPI, Request
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recipes.databases import sqlalchemy_session
from tests.behavior.databases import naive_sqlalchemy_session

FAULTS: dict[str, Exception] = {
    "not found": socket.gaierror(-2, "Name or service not known"),
    "refused": ConnectionRefusedError(111, "Connection refused"),
    "refused twice": OSError("Multiple exceptions: [Errno 111] ..., [Errno 111] ..."),
    "slow": TimeoutError(),
    "full": asyncpg.TooManyConnectionsError("sorry, too many clients already"),
    "starting": asyncpg.CannotConnectNowError("the database system is starting up"),
}
connect = asyncpg.connect
broken = ""

sqlalchemy_session.COMMAND_TIMEOUT = 30  # a test may be slow
naive_pool: Any = naive_sqlalchemy_session.engine.pool
naive_pool._timeout = 0.3  # noqa: SLF001


async def connect_or_fail(*args: Any, **options: Any) -> Any:
    if broken in FAULTS:
        raise FAULTS[broken]
    if broken == "hanging":
        options["command_timeout"] = 0.2
    return await connect(*args, **options)


asyncpg.connect = connect_or_fail


@sqlalchemy_session.app.post("/break")
@naive_sqlalchemy_session.app.post("/break")
async def break_(how: str) -> None:
    global broken  # noqa: PLW0603
    broken = how


@sqlalchemy_session.app.get("/elsewhere")
async def elsewhere() -> None:
    raise TimeoutError


async def count() -> None:
    connection = await asyncpg.connect(os.environ["DATABASE_URL"])
    number = await connection.fetchval("SELECT count(*) FROM members")
    await connection.close()
    logging.getLogger(__name__).warning("the task sees %s rows", number)


@sqlalchemy_session.app.post("/with-task")
async def recipe_with_task(
    request: Request,
    new: sqlalchemy_session.NewMember,
    tasks: BackgroundTasks,
) -> None:
    tasks.add_task(count)
    await sqlalchemy_session.create_member(request, new)


GetDb = Depends(naive_sqlalchemy_session.get_db)


@naive_sqlalchemy_session.app.post("/with-task")
async def naive_with_task(
    body: dict[str, str],
    tasks: BackgroundTasks,
    db: AsyncSession = GetDb,
) -> None:
    tasks.add_task(count)
    await naive_sqlalchemy_session.join(body, db)


def stallable(app: FastAPI) -> ASGIApp:
    """A request with `x-stall` sends nothing until `/release`.

    To the app it is what a full socket is: `send` does not return.
    """
    stalled: list[asyncio.Event] = []

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def stalling(message: Message) -> None:
            if message["type"] == "http.response.start":
                stalled.append(asyncio.Event())
                logging.getLogger(__name__).warning("stalled: %s", len(stalled))
                await stalled[-1].wait()
            await send(message)

        headers: dict[bytes, Any] = dict(scope.get("headers", ()))
        if scope.get("path") == "/release":
            for event in stalled:
                event.set()
        await app(scope, receive, stalling if b"x-stall" in headers else send)

    return wrapped


recipe = stallable(sqlalchemy_session.app)
naive = stallable(naive_sqlalchemy_session.app)
