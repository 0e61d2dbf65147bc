"""The recipe below a middleware that cancels on `/cancel`, in both ways there are."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tests.behavior.streaming import small_upload

running: list[Callable[[], object]] = []


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope.get("path") == "/cancel":
        for cancel in running:
            cancel()
        await Response()(scope, receive, send)
    else:
        await small_upload.app(scope, receive, send)


async def by_anyio(scope: Scope, receive: Receive, send: Send) -> None:
    with anyio.CancelScope() as cancel_scope:
        if scope.get("path") == "/files":
            running.append(cancel_scope.cancel)
        await app(scope, receive, send)


async def by_asyncio(scope: Scope, receive: Receive, send: Send) -> None:
    task = asyncio.current_task()
    if task and scope.get("path") == "/files":
        running.append(task.cancel)
    with suppress(asyncio.CancelledError):
        await app(scope, receive, send)
