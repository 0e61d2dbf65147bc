"""The recipe and the naive form with a task after the answer, and stalled readers."""

import asyncio
import logging
import os
from typing import Any

import asyncpg
from fastapi import BackgroundTasks, Depends, FastAPI, Request, Response
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recipes.databases import sqlalchemy_session
from tests.behavior.databases import naive_sqlalchemy_session


async def count() -> None:
    connection = await asyncpg.connect(os.environ["DATABASE_URL"])
    number = await connection.fetchval("SELECT count(*) FROM members")
    await connection.close()
    logging.getLogger(__name__).warning("the task sees %s rows", number)


@sqlalchemy_session.app.post("/with-task")
async def recipe_with_task(
    request: Request,
    response: Response,
    email: sqlalchemy_session.Email,
    tasks: BackgroundTasks,
) -> None:
    tasks.add_task(count)
    await sqlalchemy_session.join(request, response, email)


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
